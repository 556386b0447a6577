"""End-to-end tests, from files and tables to decisions, of kinds of faults that users of other programs reported."""

from __future__ import annotations

import csv
import io

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import make_pipeline

from skpatchcore import (
    ImageWarning,
    PaDiMDetector,
    PatchCoreDetector,
    PatchCoreEnsemble,
    SPADEDetector,
    list_images,
    load,
    load_image_folder,
)
from skpatchcore.cli.main import main
from skpatchcore.evaluation import evaluate
from tests.factories import detector, extractor

RNG = np.random.default_rng(0)
CORNER = np.s_[8:24, 8:24]
FIT = ["--backbone", "resnet18", "--weights", "none", "--image-size", "own", "--crop-size", "none", "--quiet"]
DETECTORS = {
    "PatchCore": lambda **p: PatchCoreDetector(random_state=0, **p),
    "PaDiM": lambda **p: PaDiMDetector(random_state=0, **p),
    "SPADE": lambda **p: SPADEDetector(**p),
    "ensemble": lambda **p: PatchCoreEnsemble([("a", PatchCoreDetector(random_state=0, **p))]),
}


def photograph(is_dark=False):
    """Return a noisy grey image, uint8, of 48 × 48 pixels; with `is_dark`, a square of the image is black."""
    image = (RNG.normal(0.5, 0.03, (48, 48, 3)).clip(0, 1) * 255).astype(np.uint8)
    if is_dark:
        image[CORNER] = 0
    return image


def put(path, pixels, name="PNG"):
    """Write an image file in the format `name`, with its parent folders; return its path as str."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, name)
    return str(path)


def data_set(top, good="good", bad="dark", mask="{}_mask.png", mask_pixels=None):
    """Write a data set with defects that are dark squares, and their masks; return its folder."""
    corner = np.zeros((48, 48), np.uint8)
    corner[CORNER] = 255
    for i in range(8):
        put(top / "train" / good / f"{i}.png", photograph())
        put(top / "test" / good / f"{i}.png", photograph())
        put(top / "test" / bad / f"{i}.png", photograph(is_dark=True))
        put(top / "ground_truth" / bad / mask.format(i), corner if mask_pixels is None else mask_pixels)
    return top


@pytest.mark.parametrize(("good", "bad", "mask"), [("good", "dark", "{}_mask.png"), ("ok", "ko", "{}.png")])
def test_command_fit_uses_only_the_training_images_of_a_data_set(good, bad, mask, tmp_path):
    folder = data_set(tmp_path / "data", good, bad, mask)
    assert main(["fit", str(folder), "-o", str(tmp_path / "m.skops"), *FIT]) == 0
    model = load(tmp_path / "m.skops")
    assert len(model.calibration_scores_) == 8
    assert (model.predict(list_images(folder / "test" / bad)) == -1).all()


@pytest.mark.parametrize("place", ["", "01", "01/test", "01/ground_truth"])
def test_command_fit_refuses_folders_with_images_other_than_good_ones(place, tmp_path, capsys):
    data_set(tmp_path / "data" / "01")
    if place == "01":  # not a known layout
        (tmp_path / "data" / "01" / "train" / "good").rename(tmp_path / "data" / "01" / "train" / "pieces")
    assert main(["fit", str(tmp_path / "data" / place), "-o", str(tmp_path / "m.skops"), *FIT]) != 0
    assert "Pass " in capsys.readouterr().err
    assert not (tmp_path / "m.skops").exists()


def masks_of_one_truth():
    """Return masks of the same defect in several encodings, as a dict from name to pixels."""
    corner = np.zeros((48, 48), np.uint8)
    corner[CORNER] = 1
    half = corner.copy()
    half[20:24, 8:24] *= 2
    painted = np.dstack([np.full((48, 48, 3), 255, np.uint8), corner * 255])
    return {"label 1": corner, "two labels": half * 100, "16 bits": corner.astype(np.uint16) * 300, "alpha": painted}


@pytest.mark.parametrize("name", masks_of_one_truth())
def test_evaluate_gives_the_same_metrics_for_every_mask_encoding(name, tmp_path):
    expected = evaluate(detector(), data_set(tmp_path / "plain"))
    for path in (tmp_path / "plain" / "ground_truth").rglob("*.png"):
        put(path, masks_of_one_truth()[name])
    found = evaluate(detector(), tmp_path / "plain")
    columns = ["pixel_auroc", "pixel_ap", "aupro"]
    pd.testing.assert_frame_equal(found[columns], expected[columns])
    assert found["aupro"].iloc[0] > 0.5


def test_12_bit_files_give_the_same_decisions_as_their_arrays(tmp_path):
    base = 2000 + 300 * np.sin(np.arange(64) / 9)[:, None, None] * np.ones((64, 64, 3))
    images = [(base + RNG.normal(0, 8, base.shape)).astype(np.uint16) for _ in range(9)]
    images[-1][24:40, 24:40] += 60
    for i, image in enumerate(images):
        tifffile.imwrite(tmp_path / f"{i}.tif", image, photometric="rgb", compression="lzw", predictor=True)
    few = extractor(value_range=(0, 4095), mean=(0.5,) * 3, std=(0.1,) * 3)
    found = [
        detector(extractor=few).fit(given[:8]).decision_function(given[8:])
        for given in (images, [str(tmp_path / f"{i}.tif") for i in range(9)])
    ]
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.filterwarnings("ignore:y labels")
@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("unknown", [0, np.nan, None])
def test_fit_leaves_out_anomalous_and_unknown_images_and_refuses_other_labels(name, unknown):
    X = RNG.normal(size=(24, 4, 4, 8)).astype(np.float32)
    X[20:] += 8
    model = DETECTORS[name](extractor="precomputed").fit(X, [1] * 18 + [unknown] * 2 + [-1] * 4)
    assert len(model.calibration_scores_) == 18
    assert (model.predict(X[20:]) == -1).all()
    for labels in ([0] * 20 + [1] * 4, [True] * 20 + [False] * 4, ["good"] * 20 + ["bad"] * 4):
        with pytest.raises(ValueError, match="convention"):
            DETECTORS[name](extractor="precomputed").fit(X, labels)


def test_damaged_png_is_flagged_as_anomalous(tmp_path):
    train, new = [photograph() for _ in range(8)], [photograph() for _ in range(3)]
    model = detector().fit(train)
    paths = [put(tmp_path / f"{i}.png", image) for i, image in enumerate(new)]
    content = bytearray((tmp_path / "1.png").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "1.png").write_bytes(content)
    with pytest.warns(ImageWarning, match="checksum"):
        labels = model.predict(paths, on_error="flag")
    assert labels[1] == -1


def test_masks_in_nested_folders_are_matched_to_their_images(tmp_path):
    top = data_set(tmp_path)
    for part, name in (("test", "0.png"), ("ground_truth", "0_mask.png")):
        (top / part / "dark" / "deep").mkdir()
        (top / part / "dark" / name).rename(top / part / "dark" / "deep" / name)
    data = load_image_folder(top)
    pairs = dict(zip(data.test_paths, data.test_masks, strict=True))
    assert pairs[str(top / "test/dark/deep/0.png")] == str(top / "ground_truth/dark/deep/0_mask.png")


def test_column_transformer_passes_a_column_of_paths_to_the_extractor(tmp_path):
    paths = [put(tmp_path / f"{i}.png", photograph()) for i in range(8)]
    table = pd.DataFrame({"id": range(8), "path": paths}, index=range(20, 28))
    expected = detector().fit(paths).score_samples(paths)
    for columns in ("path", ["path"]):
        images = ColumnTransformer([("images", "passthrough", columns)]) if columns == ["path"] else None
        if images is None:
            found = detector().fit(table[columns]).score_samples(table[columns])
        else:
            found = make_pipeline(images, detector()).fit(table).score_samples(table)
        np.testing.assert_array_equal(found, expected)


def test_command_predict_scores_every_format_and_linked_folder(tmp_path):
    model = str(tmp_path / "m.skops")
    for i in range(8):
        put(tmp_path / "good" / f"{i}.png", photograph())
    assert main(["fit", str(tmp_path / "good"), "-o", model, *FIT]) == 0
    for ending, name in (("jfif", "JPEG"), ("gif", "GIF"), ("tga", "TGA"), ("jp2", "JPEG2000"), ("PPM", "PPM")):
        put(tmp_path / "new" / f"part.{ending}", photograph(is_dark=True), name)
    put(tmp_path / "store" / "x.png", photograph(is_dark=True))
    (tmp_path / "new" / "camera2").symlink_to(tmp_path / "store")
    (tmp_path / "new" / "lost.png").symlink_to(tmp_path / "gone.png")
    main(["predict", model, str(tmp_path / "new"), "-o", str(tmp_path / "out"), "--quiet"])
    with (tmp_path / "out" / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 7
    assert {row["label"] for row in rows} == {"-1"}


def test_images_in_memory_give_the_same_decisions_as_their_paths(tmp_path):
    paths = [put(tmp_path / f"{i}.png", photograph(i == 7)) for i in range(8)]
    model = detector().fit(paths[:7])
    expected = model.decision_function(paths)
    contents = [(tmp_path / f"{i}.png").read_bytes() for i in range(8)]
    for form in (
        contents,
        [io.BytesIO(c) for c in contents],
        [Image.open(io.BytesIO(c)) for c in contents],
        (p for p in paths),
    ):
        np.testing.assert_array_equal(model.decision_function(form), expected)
