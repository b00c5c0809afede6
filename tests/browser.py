"""Notebook 02 in a real browser: JupyterLab in headless Chromium (``make test-browser``)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest
from playwright.sync_api import Locator, Page, sync_playwright

ROOT = Path(__file__).parent.parent
ARTEFACTS = ROOT / "artefacts"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
MINUTE = 60_000  # Playwright counts milliseconds


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[str]:
    """Address of a JupyterLab with a copy of the notebooks, and settings of its own."""
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    own = {f"JUPYTER_{kind}_DIR": str(tmp_path / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    command = [
        sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0",
        "--IdentityProvider.token=", "--ServerApp.disable_check_xsrf=True",
        f"--ServerApp.root_dir={tmp_path / 'notebooks'}",
        "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    with open(tmp_path / "lab.log", "w+", encoding="utf-8") as log:
        server = subprocess.Popen(command, stderr=log, env=os.environ | own)
        try:
            found, deadline = None, time.monotonic() + 120
            while found is None:
                assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "lab.log").read_text()
                time.sleep(0.2)
                found = re.search(r"http://127\.0\.0\.1:\d+", (tmp_path / "lab.log").read_text())
            yield found[0]
        finally:
            server.terminate()
            server.wait(30)


@pytest.fixture
def page() -> Iterator[Page]:
    assert CHROMIUM, "no Chromium: install Debian's package chromium, or name one in the environment variable CHROMIUM"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        found = browser.new_page(viewport={"width": 1500, "height": 1500})
        found.set_default_timeout(2 * MINUTE)
        yield found
        browser.close()


def shoot(page: Page, what: str | Locator, name: str) -> None:
    ARTEFACTS.mkdir(exist_ok=True)
    (page if isinstance(what, str) else what).screenshot(path=ARTEFACTS / f"{name}.png")


def test_play_with_priors(lab: str, page: Page) -> None:
    page.goto(f"{lab}/lab/tree/02-priors.ipynb")
    page.locator(".jp-NotebookPanel-toolbar").wait_for()
    page.get_by_text("Python 3", exact=False).first.wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    explorer = page.locator(".kgpyro-explorer").first
    explorer.wait_for(timeout=10 * MINUTE)  # a kernel that starts on a cold disk
    table = explorer.locator(".kgpyro tbody tr", has_text="ComplEx, dim 100")
    table.first.wait_for(timeout=4 * MINUTE)  # the fit that the notebook makes
    explorer.scroll_into_view_if_needed()
    shoot(page, explorer, "explorer")
    assert table.count() == 1
    said = page.locator("[data-mime-type*=stderr]").all_inner_texts()
    assert not [text for text in said if not re.match("findfont|Matplotlib is building", text)], said

    image, slider = explorer.locator("img").first, explorer.locator(".noUi-handle").nth(1)
    slider.focus()
    milliseconds = []
    for _ in range(5):
        before, started = image.get_attribute("src"), time.monotonic()
        page.keyboard.press("ArrowRight")
        page.wait_for_function("([e, src]) => e.src !== src", arg=[image.element_handle(), before])
        milliseconds.append(1000 * (time.monotonic() - started))
        page.wait_for_timeout(500)
    print(f"a slider's move shows after {median(milliseconds):.0f} ms, the first one after {milliseconds[0]:.0f}")
    assert "normal(scale=0." in explorer.locator("pre").first.text_content()

    explorer.get_by_role("button", name="Fit", exact=True).click()
    explorer.get_by_role("button", name="Stop", exact=True).and_(page.locator(":enabled")).wait_for()
    shoot(page, explorer, "fitting")
    table.nth(1).wait_for(timeout=4 * MINUTE)
    assert table.count() == 2
    shoot(page, explorer, "fitted")
    explorer.get_by_role("tab", name="Code", exact=True).click()
    assert "kgpyro.fit(graph" in explorer.locator("pre").first.text_content()
    shoot(page, explorer, "code")
