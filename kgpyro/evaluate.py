"""``python -m kgpyro.evaluate RUN``; see :func:`kgpyro.commands.evaluate_command`."""

import sys

from kgpyro.commands import evaluate_command

if __name__ == "__main__":
    sys.exit(evaluate_command())
