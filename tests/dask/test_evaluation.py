"""Tests that an evaluation on a cluster gives the same table as an evaluation without one."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
from PIL import Image

pytest.importorskip("distributed", reason="needs the extra dask")

from skpatchcore import ImageError, PatchCoreDetector, SPADEDetector, evaluate
from skpatchcore.dask import DaskPatchCoreDetector
from skpatchcore.datasets import make_textures
from skpatchcore.evaluation import low_shot_curve
from skpatchcore.evaluation._cluster import fit_on_cluster
from skpatchcore.evaluation.category import evaluate_category
from tests.dask.clusters import local_cluster
from tests.factories import CellMeans


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with local_cluster(tmp_path_factory.mktemp("dask")) as client:
        yield client


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Return a folder with one category in the layout of MVTec AD."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("data") / "tile"
    for folder, n_images in {"train/good": 10, "test/good": 4, "test/dark": 3, "ground_truth/dark": 3}.items():
        (root / folder).mkdir(parents=True)
        for i in range(n_images):
            pixels = rng.normal(150, 8, (48, 64 + 8 * i)).clip(0, 255).astype(np.uint8)
            if folder == "ground_truth/dark":
                pixels[:] = 0
            if folder.endswith("dark"):
                pixels[16:32, 16:40] = 255 if folder.startswith("ground") else 10
            name = f"{i:03}_mask.png" if folder.startswith("ground") else f"{i:03}.png"
            Image.fromarray(pixels).save(root / folder / name)
    return root


def same(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Compare two tables except for times."""
    # A pickle repeats the name of a dtype that came from another process.
    np.testing.assert_allclose(found["bytes"], expected["bytes"], rtol=0.05)
    left, right = (
        table.drop(columns=[name for name in table if name == "bytes" or name.startswith(("fit_", "test_"))])
        for table in (found, expected)
    )
    pd.testing.assert_frame_equal(left, right)


@pytest.mark.parametrize(
    "detector",
    [
        PatchCoreDetector(CellMeans(), random_state=0),
        DaskPatchCoreDetector(CellMeans(), random_state=0),
        SPADEDetector(CellMeans(), random_state=0),
    ],
    ids=["PatchCore", "distributed", "SPADE"],
)
def test_evaluation_on_a_cluster_gives_the_table_of_a_local_one(detector, root, client):
    is_distributed = isinstance(detector, DaskPatchCoreDetector)
    local = PatchCoreDetector(CellMeans(), random_state=0) if is_distributed else detector
    table = evaluate(detector, root, client=None if is_distributed else client)
    same(table, evaluate(local, root))
    assert (table["fit_seconds"] > 0).all()
    assert (table["test_cluster"] > 0).all()


def test_evaluation_of_images_in_memory_returns_an_ordinary_detector(client):
    dataset = make_textures("brick", n_views=2)
    result, fitted = evaluate_category(PatchCoreDetector(CellMeans(), random_state=0), "brick", dataset, client=client)
    expected, local = evaluate_category(PatchCoreDetector(CellMeans(), random_state=0), "brick", dataset)
    assert type(fitted) is PatchCoreDetector
    np.testing.assert_array_equal(fitted.memory_bank_, local.memory_bank_)
    np.testing.assert_array_equal(result.scores, expected.scores)
    np.testing.assert_array_equal(result.pro, expected.pro)


def test_studies_run_on_a_cluster(root, client):
    detector = PatchCoreDetector(CellMeans(), random_state=0)
    table = low_shot_curve(detector, root, [2, 5], n_repeats=1, client=client)
    same(table, low_shot_curve(detector, root, [2, 5], n_repeats=1))


def test_broken_test_image_is_named(root, client, tmp_path):
    folder = shutil.copytree(root, tmp_path / "tile")
    (folder / "test" / "good" / "001.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"001\.png"):
        evaluate(PatchCoreDetector(CellMeans(), random_state=0), folder, client=client)


def test_fits_of_other_detectors_at_the_same_time_keep_their_results_apart(client):
    """Also after a failed fit, whose error still exists."""
    images = [np.random.default_rng(0).random((n, 2, 2, 4)) for n in (20, 12)]
    detector = SPADEDetector("precomputed", random_state=0)
    with pytest.raises(ValueError, match="NaN") as error:
        fit_on_cluster(client, detector, np.full((5, 2, 2, 4), np.nan), None)
    with ThreadPoolExecutor(2) as executor:
        fitted = list(executor.map(lambda X: fit_on_cluster(client, detector, X, None), images))
    assert [len(one.calibration_scores_) for one in fitted] == [20, 12]
    assert "NaN" in str(error.value)
