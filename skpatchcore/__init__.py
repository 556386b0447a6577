"""PatchCore image anomaly detection as scikit-learn estimators.

Importing the package does not import torch or pynndescent. The module of each public name is imported when the name is
first used. The public names are listed in ``__init__.pyi``.
"""

from skpatchcore._utils.lazy import attach_stub
from skpatchcore._utils.version import __version__

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
__all__ += ["__version__"]
