"""Fixtures and settings for all tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"
# Time limit of each test in seconds. A test that hangs fails after this time. The slowest test takes one minute on two
# busy cores. The limit is not set in pyproject.toml: with --strict-config, the tests would then need pytest-timeout.
TIMEOUT = 600


def pytest_collection_modifyitems(config, items):
    if config.pluginmanager.hasplugin("timeout"):
        for item in items:
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(TIMEOUT))
    if torch.cuda.is_available():
        return
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device on this machine"))


@pytest.fixture(scope="session")
def golden():
    """Return a function that loads reference arrays by name. The arrays are stored beside the project folder."""

    def load(name: str):
        path = SHARED / "golden" / f"{name}.npz"
        if not path.is_file():
            pytest.skip("the reference arrays (../shared/golden) are not on this machine")
        return np.load(path)

    return load


@pytest.fixture(scope="session")
def hazelnut():
    """Return the folder of the hazelnut images. Tests are skipped if the folder is missing."""
    path = SHARED / "data" / "hazelnut_toy"
    if not path.is_dir():
        pytest.skip("the images (../shared/data/hazelnut_toy) are not on this machine")
    return path


@pytest.fixture(scope="session")
def parts():
    """Return ten good training images, four good test images and one defective image with a dark spot.

    Each array has the shape (n_images, 48, 64, 3) and float values in [0, 1].
    """
    rng = np.random.default_rng(0)
    good = rng.normal(0.6, 0.03, (14, 48, 64, 3)).clip(0, 1)
    bad = good[-1:].copy()
    bad[0, 16:28, 20:34] = 0.0
    return good[:10], good[10:], bad
