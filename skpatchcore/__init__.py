"""PatchCore image anomaly detection as scikit-learn estimators.

Importing the package imports neither torch nor pynndescent: each public name loads its module when it is first used.
The names stand in ``__init__.pyi``.
"""

import lazy_loader

from skpatchcore._version import __version__

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ += ["__version__"]
