from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"
# Seconds after which a test fails that waits for something which never comes. The slowest takes a minute on two busy
# cores. Not an option of pyproject.toml: with --strict-config, tests could not run where pytest-timeout is missing.
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
    """Load reference arrays by name; they lie beside the project, not in it."""

    def load(name: str):
        path = SHARED / "golden" / f"{name}.npz"
        if not path.is_file():
            pytest.skip("the reference arrays (../shared/golden) are not on this machine")
        return np.load(path)

    return load


@pytest.fixture(scope="session")
def hazelnut():
    path = SHARED / "data" / "hazelnut_toy"
    if not path.is_dir():
        pytest.skip("the images (../shared/data/hazelnut_toy) are not on this machine")
    return path


@pytest.fixture(scope="session")
def parts():
    """Small images of good parts, and one with a dark spot: arrays (n, 48, 64, 3), float in [0, 1]."""
    rng = np.random.default_rng(0)
    good = rng.normal(0.6, 0.03, (14, 48, 64, 3)).clip(0, 1)
    bad = good[-1:].copy()
    bad[0, 16:28, 20:34] = 0.0
    return good[:10], good[10:], bad
