"""Fits and predictions on a Dask cluster: :class:`DaskPatchCoreDetector`.

Names are imported on first use. They need the packages dask and distributed, which are optional.
"""

from typing import TYPE_CHECKING, Any

from skpatchcore._utils.lazy import attach

if TYPE_CHECKING:
    from skpatchcore.dask.estimator import DaskPatchCoreDetector

__all__ = ["DaskPatchCoreDetector"]

_get, __dir__ = attach(__name__, submod_attrs={"estimator": ["DaskPatchCoreDetector"]})


def __getattr__(name: str) -> Any:
    try:
        return _get(name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("dask", "distributed"):
            raise
        raise ImportError(
            f"skpatchcore.dask needs the package {error.name}, of the extra dask: pip install distributed"
        ) from error
