"""Fixtures of the tests of watched folders."""

from __future__ import annotations

import pytest


@pytest.fixture
def folder(tmp_path):
    """Return an empty folder to be watched."""
    path = tmp_path / "in"
    path.mkdir()
    return path


@pytest.fixture
def output(tmp_path):
    """Return the path of a folder of results, which does not exist."""
    return tmp_path / "out"
