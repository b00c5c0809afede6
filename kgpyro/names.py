"""What the names of models and guides stand for, and how a user's own come in: ``package.module:object``.

The core of kgpyro never imports ``kgpyro.models`` or ``kgpyro.guides``; it resolves them through these tables.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from kgpyro.errors import InputError

MODELS = {"lim": "kgpyro.models.lim:lim", "lfm": "kgpyro.models.lfm:lfm"}
GUIDES = {"lookup": "kgpyro.guides.lookup:Lookup"}


def is_dotted(name: str) -> bool:
    """Whether a name is a dotted path ``package.module:object`` to a user's own code."""
    module, _, attribute = name.partition(":")
    return bool(attribute) and "(" not in name and all(part.isidentifier() for part in module.split("."))


def import_dotted(path: str, kind: str) -> Any:
    """The object at ``package.module:object``; modules in the current folder are found too. Raises InputError."""
    module_name, _, attribute = path.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(f"{kind} {path}: module {module_name!r} cannot be imported ({error}).") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise InputError(f"{kind} {path}: module {module_name!r} has no {attribute!r}.")
        found = getattr(found, part)
    return found


def resolve(given: Any, table: dict[str, str], kind: str) -> Any:
    """The object that a name of ``table``, a dotted path, or the object itself stands for.

    Raises InputError with the valid names.
    """
    if not isinstance(given, str):
        return given
    if given.lower() in table:
        return import_dotted(table[given.lower()], kind)
    if is_dotted(given):
        return import_dotted(given, kind)
    raise InputError(f"unknown {kind} {given!r}; choose from {', '.join(table)}, or your own as package.module:object.")


def name_of(given: Any, table: dict[str, str], kind: str) -> str:
    """How a model or guide is written in a configuration. Raises InputError for what no path leads to."""
    if isinstance(given, str):
        return given.lower() if given.lower() in table else given
    path = f"{given.__module__}:{given.__qualname__}" if hasattr(given, "__qualname__") else ""
    if "<locals>" in path or path.startswith("__main__") or not path:
        raise InputError(f"this {kind} lives only in the running program; put it into a module to save the run.")
    return next((name for name, known in table.items() if known == path), path)
