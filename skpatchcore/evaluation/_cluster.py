"""fit_on_cluster and map_on_cluster: the parts of an evaluation that run on the workers of a Dask cluster."""

from __future__ import annotations

import uuid
from collections import deque
from typing import Any

from sklearn.base import clone

from skpatchcore._utils.progress import phase
from skpatchcore.dask import DaskPatchCoreDetector
from skpatchcore.dask._group import DaskGroup
from skpatchcore.dask._partitions import OfImages, large_graphs, warnings_on_client
from skpatchcore.dask._prediction import map_images
from skpatchcore.detectors.patchcore import PatchCoreDetector
from skpatchcore.evaluation._clones import unfitted


def fit_on_cluster(client: Any, detector: Any, images: Any, groups: Any) -> Any:
    """Return a fitted clone of a detector, which does not use the cluster any more.

    Parameters
    ----------
    client : distributed.Client
        Client of the cluster.
    detector : estimator
        The fit of a PatchCoreDetector or DaskPatchCoreDetector is distributed to all workers. Any other detector is
        fitted by one task on one worker.
    images, groups
        Arguments of `fit`.
    """
    with phase("cluster"), large_graphs():  # a data set can hold its images in memory
        if type(detector) is PatchCoreDetector:
            detector = DaskPatchCoreDetector(**detector.get_params(deep=False))
        if isinstance(detector, DaskPatchCoreDetector):
            return clone(detector).set_params(client=client).fit(images, groups=groups).to_local()
        key = f"skpatchcore-fit-{uuid.uuid4().hex}"  # a key of its own, so that no other fit gets this result
        with DaskGroup(client) as group:
            return group.gather([client.submit(_fit, unfitted(detector), images, groups, key=key, pure=False)])[0]


def map_on_cluster(client: Any, function: OfImages, fitted: Any, images: Any) -> list[Any]:
    """Return the items of ``function(fitted, some_images, None)`` for all images, in order."""
    with phase("cluster"), large_graphs():
        items = map_images(function, fitted, images, name="skpatchcore-evaluate", client=client)
        # part by part: `compute` of the Bag would first collect all maps on one worker
        waiting, found = deque(client.compute(items.to_delayed())), []
        with DaskGroup(client) as group:
            while waiting:  # a part is released on the workers as soon as it has arrived
                found += group.gather([waiting.popleft()])[0]
        return found


def _fit(detector: Any, images: Any, groups: Any) -> Any:
    """Fit a detector. This function runs on a worker."""
    with warnings_on_client():
        return detector.fit(images, groups=groups)
