"""``python -m kgpyro COMMAND``."""

import sys

from kgpyro.commands import main

sys.exit(main())
