"""``python -m kgpyro.check RUN``; see :func:`kgpyro.commands.check_command`."""

import sys

from kgpyro.commands import check_command

if __name__ == "__main__":
    sys.exit(check_command())
