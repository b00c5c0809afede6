"""``python -m kgpyro.fit``; see :func:`kgpyro.commands.fit_command`.

In Python ``kgpyro.fit`` is the function of ``kgpyro.inference``. Importing this module rebinds that name to the
module, as any import of a submodule does, so the module can be called as the function.
"""

import sys
from types import ModuleType
from typing import Any

from kgpyro.commands import fit_command
from kgpyro.inference.fitting import fit


class _CallableModule(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Any:
        return fit(*args, **options)


if __name__ == "__main__":
    sys.exit(fit_command())
sys.modules[__name__].__class__ = _CallableModule
