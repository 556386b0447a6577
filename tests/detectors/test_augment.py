"""The parameter `augment`: turned views of training images."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone

from skpatchcore import GreedyCoresetSampler, ImageError, PatchCoreDetector, TorchFeatureExtractor, load, save
from skpatchcore.bank.budget import MemoryEstimate
from skpatchcore.images.turns import TURNS
from tests import factories

RNG = np.random.default_rng(0)
# A gradient and noise: no two cells have equal features, and a turned image is not like the image.
GRADIENT = np.linspace(0, 1, 40)[:, None, None] * np.linspace(0.2, 1, 56)[None, :, None] * [0.4, 0.7, 1.0]
IMAGES = [np.clip(GRADIENT + RNG.normal(0, 0.03, (40, 56, 3)), 0, 1).astype(np.float32) for _ in range(8)]
EVERYTHING = GreedyCoresetSampler(1.0)


def detector(**parameters):
    given = {"extractor": factories.CellMeans(), "sampler": EVERYTHING, "n_neighbors": 1, "random_state": 0}
    return PatchCoreDetector(**{**given, **parameters})


@pytest.mark.parametrize("augment", ["rotations", "flips", "rotations+flips"])
def test_bank_holds_the_patches_of_all_views(augment):
    fitted = detector(augment=augment, calibration=None).fit(IMAGES[:2])
    turned = [turn.of(image) for turn in TURNS[augment] for image in IMAGES[:2]]
    expected = detector(calibration=None).fit([*IMAGES[:2], *turned])
    np.testing.assert_allclose(fitted.memory_bank_, expected.memory_bank_, rtol=0, atol=1e-6)
    assert (fitted.bank_image_indices_ == expected.bank_image_indices_ % 2).all()


def test_boxes_and_positions_refer_to_the_original_image():
    fitted = detector(augment="rotations+flips", calibration=None).fit(IMAGES[:3])
    assert len(fitted.memory_bank_) == 8 * 3 * 35
    for row, image, box in zip(
        fitted.memory_bank_, fitted.bank_image_indices_, fitted.bank_boxes_.astype(int), strict=True
    ):
        cell = IMAGES[image][box[0] : box[0] + box[2], box[1] : box[1] + box[3]]
        np.testing.assert_allclose(row[:3], cell.mean((0, 1)), atol=1e-5)
    assert (fitted.bank_positions_ * 8 == fitted.bank_boxes_[:, :2]).all()
    table = fitted.nearest_patches([np.rot90(IMAGES[1]).copy()])
    assert table["nominal_image"].tolist() == [1]
    # The same cell: turned back, the box of the new image is the box of the training image.
    back = TURNS["rotations"][0].original_boxes(table[["top", "left", "height", "width"]].to_numpy(), (56, 40))
    np.testing.assert_allclose(
        back, table[["nominal_top", "nominal_left", "nominal_height", "nominal_width"]].to_numpy()
    )


@pytest.mark.parametrize("calibration", ["leave-one-out", 4, "auto", 0.5])
@pytest.mark.parametrize("way", ["at once", "two passes"])
def test_calibration_scores_the_images_without_their_views(monkeypatch, calibration, way):
    monkeypatch.setattr(MemoryEstimate, "way", lambda *args: way)
    parameters = {"calibration": calibration, "sampler": GreedyCoresetSampler(0.5), "augment": "rotations"}
    # Each image has a pattern of its own. Its views have the same cells, which no other image has.
    images = [np.clip(image * 0.5 + i / 16, 0, 1) for i, image in enumerate(IMAGES)]
    fitted = detector(**parameters).fit(images)
    n_scores = 4 if calibration == 0.5 else 8
    assert len(fitted.calibration_scores_) == n_scores
    assert fitted.calibration_image_indices_.max() < len(images)
    assert (fitted.calibration_scores_ < -0.01).all()  # their own views would give scores of about 0
    if calibration == 0.5:
        assert not set(fitted.bank_image_indices_) & set(fitted.calibration_image_indices_)
    assert (fitted.bank_image_indices_ < len(images)).all()
    assert len(fitted.embeddings_) == 8


def test_calibration_with_all_rows_equals_the_scores_against_the_other_images_and_their_views():
    fitted = detector(augment="flips", calibration="leave-one-out").fit(IMAGES)
    for i in (0, 5):
        others = [image for j, image in enumerate(IMAGES) if j != i]
        views = [turn.of(image) for turn in TURNS["flips"] for image in others]
        without = detector(calibration=None).fit([*others, *views])
        np.testing.assert_allclose(fitted.calibration_scores_[i], without.score_samples([IMAGES[i]])[0], rtol=1e-5)


def test_views_of_a_group_are_left_out_with_the_group():
    images = [*IMAGES[:4], *[np.rot90(image).copy() for image in IMAGES[:4]]]
    groups = [*range(4), *range(4)]
    for calibration in ("leave-one-out", 4):
        fitted = detector(augment="rotations", calibration=calibration).fit(images, groups=groups)
        assert (fitted.calibration_scores_ < -0.01).all()
    alone = detector(augment="rotations", calibration="leave-one-out").fit(images)
    assert (alone.calibration_scores_ > -1e-3).all()  # without groups, the turned copy is another image


def test_labels_and_numbers_refer_to_the_given_images():
    labels = np.array([1, -1, 1, 1, -1, 1, 1, 1])
    fitted = detector(augment="flips", calibration=3).fit(IMAGES, labels)
    assert set(fitted.bank_image_indices_) == set(np.flatnonzero(labels == 1))
    assert set(fitted.calibration_image_indices_) == set(np.flatnonzero(labels == 1))


def test_region_of_interest_turns_with_the_image():
    roi = (0, 0, 16, 24)  # 2 × 3 cells in the upper left corner
    fitted = detector(augment="rotations+flips", calibration="leave-one-out", roi=roi).fit(IMAGES)
    assert len(fitted.memory_bank_) == 8 * 8 * 6
    assert (fitted.bank_boxes_[:, 0] + fitted.bank_boxes_[:, 2] <= 16).all()
    assert (fitted.bank_boxes_[:, 1] + fitted.bank_boxes_[:, 3] <= 24).all()
    of_each = detector(augment="rotations+flips", calibration="leave-one-out").fit(IMAGES, roi=[roi] * 8)
    assert (of_each.memory_bank_ == fitted.memory_bank_).all()
    assert (of_each.bank_boxes_ == fitted.bank_boxes_).all()


def test_records_are_those_of_the_originals_and_the_detector_is_saved(tmp_path):
    extractor = TorchFeatureExtractor("resnet18", weights=None, image_size=32)
    given = {"extractor": extractor, "calibration": 3, "roi": (0.0, 0.0, 0.5, 1.0)}
    fitted = detector(**given, augment="rotations").fit(IMAGES)
    plain = detector(**given).fit(IMAGES)
    assert len(fitted.memory_bank_) == 4 * len(plain.memory_bank_)
    assert fitted.inspection_ == plain.inspection_
    assert (fitted.embeddings_ == plain.embeddings_).all()
    assert (fitted.appearance_range_ == plain.appearance_range_).all()
    save(fitted, tmp_path / "m.skops")
    assert (load(tmp_path / "m.skops").score_samples(IMAGES) == fitted.score_samples(IMAGES)).all()


def test_turned_new_images_are_normal_only_with_views():
    turned = [np.rot90(image).copy() for image in IMAGES]
    given = {"extractor": TorchFeatureExtractor("resnet18", weights=None, image_size=32), "calibration": None}
    found = detector(**given, augment="rotations").fit(IMAGES).score_samples(turned)
    plain = detector(**given).fit(IMAGES).score_samples(turned)
    assert found.min() > 0.1 * plain.max()
    np.testing.assert_allclose(found, 0, atol=0.05)


def test_streamed_fit_equals_the_fit_at_once(monkeypatch):
    extractor = TorchFeatureExtractor("resnet18", weights=None, image_size=64, batch_size=3)
    given = {"extractor": extractor, "sampler": GreedyCoresetSampler(0.05), "augment": "rotations", "calibration": 4}
    at_once = detector(**given, max_memory=None).fit(IMAGES)
    estimate = detector(**given).estimate_memory(len(IMAGES), IMAGES[0])
    assert estimate.n_patches == 4 * detector(**{**given, "augment": None}).estimate_memory(8, IMAGES[0]).n_patches
    monkeypatch.setattr(MemoryEstimate, "way", lambda *args: "two passes")
    streamed = detector(**given).fit(IMAGES)
    assert (streamed.memory_bank_ == at_once.memory_bank_).all()
    assert (streamed.bank_boxes_ == at_once.bank_boxes_).all()
    np.testing.assert_allclose(streamed.calibration_scores_, at_once.calibration_scores_, rtol=1e-6)


def test_error_in_a_view_names_the_image():
    class Broken(factories.CellMeans):
        def iter_transform(self, X):
            for i in range(len(X)):
                if i == 10:
                    raise ImageError("cannot be read", i)
                yield from super().iter_transform([X[i]])

    with pytest.raises(ImageError, match="image 2"):
        detector(extractor=Broken(), augment="flips", calibration=None).fit(IMAGES)


@pytest.mark.parametrize(
    ("parameters", "X", "message"),
    [
        ({"augment": "mirror"}, IMAGES, "augment"),
        ({"augment": "flips", "extractor": "precomputed"}, np.ones((4, 2, 2, 3)), "augment needs images"),
        (
            {
                "augment": "rotations",
                "extractor": TorchFeatureExtractor("resnet18", weights=None, image_size=(32, 64)),
            },
            IMAGES,
            r"image_size=\(32, 64\).*augment='flips'",
        ),
        (
            {
                "augment": "rotations+flips",
                "extractor": TorchFeatureExtractor("resnet18", weights=None, image_size=64, crop_size=(32, 64)),
            },
            IMAGES,
            r"crop_size=\(32, 64\)",
        ),
    ],
)
def test_fit_refuses_what_cannot_be_turned(parameters, X, message):
    with pytest.raises(ValueError, match=message):
        detector(**parameters).fit(X)


def test_views_are_off_by_default_and_can_be_searched():
    assert PatchCoreDetector().augment is None
    assert clone(detector(augment="flips")).augment == "flips"
