"""``python -m kgpyro.fit``.

In Python ``kgpyro.fit`` is the function of ``kgpyro.inference``. Importing this module rebinds that name to the
module, as any import of a submodule does, so the module can be called as the function.
"""

import sys
from types import ModuleType
from typing import Any

from kgpyro.commands import door


class _CallableModule(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Any:
        from kgpyro.inference.fitting import fit

        return fit(*args, **options)


door(__name__, __file__)
sys.modules[__name__].__class__ = _CallableModule
