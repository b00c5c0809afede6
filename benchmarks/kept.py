"""Rows that are measured one by one, and kept in a file of results after each."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from machine import machine

import kgpyro


def parser(about: str | None, graphs: Iterable[str]) -> argparse.ArgumentParser:
    """That of a benchmark which measures what its file lacks, with ``--graphs`` and ``--table``."""
    found = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--graphs", nargs="+", default=list(graphs), choices=list(graphs))
    found.add_argument("--table", action="store_true", help="print what stands there, and run nothing")
    return found


def rows_in(file: Path) -> list[dict[str, Any]]:
    return json.loads(file.read_text())["rows"] if file.exists() else []


def keep(file: Path, rows: list[dict[str, Any]], ratios: dict[str, float] | None = None) -> None:
    kept = {"machine": machine(), "version": kgpyro.__version__, "rows": rows} | ({"ratios": ratios} if ratios else {})
    file.write_text(json.dumps(kept, indent=1) + "\n")
