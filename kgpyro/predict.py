"""``python -m kgpyro.predict RUN``; see :func:`kgpyro.commands.predict_command`."""

import sys

from kgpyro.commands import predict_command

if __name__ == "__main__":
    sys.exit(predict_command())
