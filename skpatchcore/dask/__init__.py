"""PatchCore on a Dask cluster: :class:`DaskPatchCoreDetector` fits on many machines.

This package needs Dask's ``distributed`` and ``dask``, which are optional. Names are imported on first use.
"""

from typing import TYPE_CHECKING

from skpatchcore._utils.lazy import attach

if TYPE_CHECKING:
    from skpatchcore.dask.estimator import DaskPatchCoreDetector

__all__ = ["DaskPatchCoreDetector"]

__getattr__, __dir__ = attach(__name__, submod_attrs={"estimator": ["DaskPatchCoreDetector"]})
