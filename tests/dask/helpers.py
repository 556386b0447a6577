"""Helpers for the tests of fits on a Dask cluster."""

from __future__ import annotations

import numpy as np

from skpatchcore import PatchCoreDetector
from tests.factories import CellMeans


def fit_locally(parameters, X, arguments):
    """Fit an ordinary detector. Tests call this function on a worker, which has one thread like all workers."""
    return PatchCoreDetector(**parameters).fit(X, **arguments)


def local_fit(client, parameters, X, **arguments):
    """Return an ordinary detector that was fitted on one worker, without a reserve as on a cluster."""
    parameters = {"reserve": False, **parameters}
    return client.submit(fit_locally, parameters, X, arguments, pure=False).result(timeout=300)


def fitted_attributes(detector):
    return {name: value for name, value in vars(detector).items() if name.endswith("_") and not name.startswith("_")}


def assert_same_fit(found, expected):
    """Compare all fitted attributes of two ordinary detectors."""
    found, expected = fitted_attributes(found), fitted_attributes(expected)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name == "extractor_":
            assert type(found[name]) is type(value)
        elif name in ("sampler_", "index_"):
            assert repr(found[name]) == repr(value)
            assert_same_arrays(fitted_attributes(found[name]), fitted_attributes(value))
        elif name in ("inspection_", "roi_"):
            assert repr(found[name]) == repr(value)
        elif name == "updates_":  # without the time
            assert [(e["kind"], e["n_images"], e["n_bank"]) for e in found[name]] == [
                (e["kind"], e["n_images"], e["n_bank"]) for e in value
            ]
        elif name.endswith("calibration_slope_"):  # differences of logarithms
            np.testing.assert_allclose(found[name], value, atol=1e-5)
        else:
            assert_same_arrays({name: found[name]}, {name: value})


def assert_same_arrays(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, np.ndarray):
            assert found[name].dtype == value.dtype, name
        if name.startswith(("calibration_s", "calibration_peaks", "offset", "pixel_offset", "min_area")):
            # Images are scored in other batches.
            np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(found[name], value, err_msg=name)


class LoggedMeans(CellMeans):
    """CellMeans that appends the path of each image that it reads to a file."""

    def __init__(self, log=None):
        self.log = log

    def iter_transform(self, X):
        for path, item in zip(X, super().iter_transform(X), strict=True):
            with open(self.log, "a") as file:
                file.write(f"{path}\n")
            yield item
