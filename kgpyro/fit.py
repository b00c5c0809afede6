"""``python -m kgpyro.fit``. Imported, the module is the function, as its import rebinds the name ``kgpyro.fit``."""

import sys

from kgpyro.commands import door

door(__name__, __file__)

from kgpyro.inference.fitting import fit  # noqa: E402

sys.modules[__name__] = fit  # type: ignore[assignment]
