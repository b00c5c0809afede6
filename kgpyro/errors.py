"""The one exception that stands for a user's mistake, and the guess at what was meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Bad input, told in one sentence that names the culprit and the way out.

    The commands print the sentence and exit with code 2; in Python it is an ordinary ``ValueError``.
    """


def meant(given: str, choices: Iterable[str], otherwise: str = "") -> str:
    """How to end a sentence that refuses a name: with what was probably meant, or all there are, or ``otherwise``."""
    known = {choice.lower().lstrip("-"): choice for choice in choices}
    if near := get_close_matches(given.lower().lstrip("-"), known, n=2, cutoff=0.65):
        names = [known[name] for name in near]
        return f"did you mean {' or '.join(name if name.startswith('--') else repr(name) for name in names)}?"
    return otherwise or f"choose from {', '.join(known.values())}."
