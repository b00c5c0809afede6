"""``python -m kgpyro.calibrate RUN``; see :func:`kgpyro.commands.calibrate_command`."""

import sys

from kgpyro.commands import calibrate_command

if __name__ == "__main__":
    sys.exit(calibrate_command())
