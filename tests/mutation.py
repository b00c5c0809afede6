"""What the tests say to small errors in the modules that everything else rests on.

    python tests/mutation.py [MODULE…]        (`make mutation`; half an hour for all)

mutmut makes each small error (a mutant: another sign, a constant one larger, an argument left out) in a copy of the
package and runs the tests that meet it, until one fails. Printed: how many mutants of each module were found, and those
that were not, with what they change; ``tests/README.md`` says why they live.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = {  # of each module, and those of them to leave out: a mutant that lives runs all tests that meet it
    "program/likelihood": (
        "test_likelihood test_kernels test_categorical",
        "late_draws transformed_table a_fit_and_its",
    ),
    "program/batches": ("test_batches test_exactness", "local_noise"),
    "program/plates": ("test_batches test_exactness", "local_noise"),
    "evaluation/ranking": ("test_ranking test_uncertain_graphs", ""),
    "program/priors": (
        "test_priors test_hierarchy",
        "cold_start learned_scale_raises scale_in_the_bound fit_and_files moments",
    ),
}
CONFIG = """
[tool.mutmut]
source_paths = ["kgpyro"]
only_mutate = ["kgpyro/{module}.py"]
also_copy = ["models", "guides", "tests"]
pytest_add_cli_args = ["-p", "no:xdist", "-k", "{chosen}"]
pytest_add_cli_args_test_selection = [{tests}]
"""


def survivors(module: str) -> tuple[int, list[str]]:
    """How many mutants a module has, and the names and changes of those that live."""
    tests, out = (words.split() for words in TESTS[module])
    chosen = " and ".join(f"not {word}" for word in [*out, "gradient_variance", "mean_of_plain", "does_not_say"])
    paths = ", ".join(f'"tests/{name}.py"' for name in tests)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
        with (Path(folder) / "pyproject.toml").open("a") as file:
            file.write(CONFIG.format(module=module, chosen=chosen, tests=paths))

        def mutmut(*arguments: str) -> str:
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-m", "mutmut", *arguments]
            found = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
            if found.returncode:
                raise SystemExit(f"mutmut {' '.join(arguments)} failed:\n{found.stdout[-2000:]}{found.stderr[-2000:]}")
            return found.stdout

        mutmut("run", "--max-children", "2")
        results = re.findall(r"(\S+__mutmut_\d+): (.+)", mutmut("results", "--all", "true"))
        alive = [name for name, result in results if result.strip() != "killed"]
        changes = ["\n".join(re.findall(r"^[-+] .*$", mutmut("show", name), re.MULTILINE)) for name in alive]
    return len(results), [f"{name}\n{change}" for name, change in zip(alive, changes, strict=True)]


def main() -> int:
    rows, told = [], []
    for module in sys.argv[1:] or TESTS:
        number, alive = survivors(module)
        rows.append(f"| {module} | {number} | {number - len(alive)} | {1 - len(alive) / number:.1%} |")
        told += alive
    print("\n\n".join(told))
    print("\n| module | mutants | found | share |\n|---|---:|---:|---:|")
    print("\n".join(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
