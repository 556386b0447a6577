"""Fixtures for the tests of fits on a Dask cluster: one cluster for all tests, and small images."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def cluster_client(tmp_path_factory):
    """Return the client of a cluster with two worker processes of one thread each."""
    pytest.importorskip("distributed", reason="needs the extra dask")
    from tests.dask.clusters import local_cluster

    with local_cluster(tmp_path_factory.mktemp("dask"), set_as_default=False) as client:
        yield client


@pytest.fixture(scope="session")
def image_paths(tmp_path_factory):
    """Return the paths of 26 images of three sizes: runs of 10, 6, 6 and 4 images have the same size."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    found = []
    for i in range(26):
        size = (48, 64) if i < 10 or i >= 22 else (56, 64) if i < 16 else (64, 48)
        pixels = rng.normal(0.6, 0.1, (*size, 3)).clip(0, 1)
        found.append(str(folder / f"{i:02}.png"))
        Image.fromarray((255 * pixels).astype(np.uint8)).save(found[-1])
    return found
