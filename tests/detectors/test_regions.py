"""Detectors with a region of interest: what is outside is neither learnt nor scored, and is NaN in maps."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import sklearn
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.model_selection import GridSearchCV, StratifiedKFold

import skpatchcore
from skpatchcore import (
    AnomalyMapDisplay,
    AppearanceWarning,
    ImageError,
    ImageWarning,
    InspectionDisplay,
    InspectionWarning,
    MultiLightDetector,
    PaDiMDetector,
    PatchCoreDetector,
    PatchCoreEnsemble,
    RandomSampler,
    SPADEDetector,
    detection_capability,
)
from skpatchcore.images.containers import with_regions
from skpatchcore.images.roi import as_region
from skpatchcore.metrics import aupimo_scores, pixel_metrics
from skpatchcore.patches.stream import PatchStream
from skpatchcore.reports.inspection import describe_inspection, inspected_part
from tests.bank.test_budget import fit_in_one_way
from tests.factories import CellMeans, extractor

DETECTORS = [PatchCoreDetector, PaDiMDetector, SPADEDetector]
# Rows 16 to 47 and columns 8 to 39 of an image of 64 × 64 pixels: 4 × 4 of 8 × 8 cells.
BOX = (16, 8, 32, 32)


def mask_of_box(size=(64, 64), box=BOX):
    """Return the mask of a box."""
    mask = np.zeros(size, bool)
    mask[box[0] : box[0] + box[2], box[1] : box[1] + box[3]] = True
    return mask


@pytest.fixture(scope="module")
def good():
    """Return 12 images of noise."""
    return np.random.default_rng(0).normal(0.5, 0.05, (12, 64, 64, 3)).clip(0, 1)


@pytest.fixture(scope="module")
def bad(good):
    """Return an image with a defect outside the box, and one with a defect inside."""
    images = good[:2].copy()
    images[0, 48:64, 48:64] = 0
    images[1, 24:32, 16:24] = 0
    return images


@pytest.mark.parametrize("cls", DETECTORS)
def test_one_region_equals_the_same_region_for_each_image(cls, good, bad):
    one = cls(CellMeans(), roi=BOX, random_state=0).fit(good)
    each = cls(CellMeans(), random_state=0).fit(good, roi=[mask_of_box()] * len(good))
    masks = [BOX, mask_of_box()]
    np.testing.assert_array_equal(one.calibration_scores_, each.calibration_scores_)
    np.testing.assert_array_equal(one.calibration_sketches_, each.calibration_sketches_)
    assert one.offset_ == each.offset_
    for method in ("score_samples", "decision_function", "predict", "p_values", "segment", "predict_mask"):
        np.testing.assert_array_equal(getattr(one, method)(bad), getattr(each, method)(bad, roi=masks))
    assert one.regions(bad).equals(each.regions(bad, roi=masks))
    results = list(each.iter_results(bad, roi=masks))
    assert [r.score for r in results] == one.score_samples(bad).tolist()
    np.testing.assert_array_equal(each.score_and_segment(bad, roi=masks)[1], one.segment(bad))


@pytest.mark.parametrize("cls", DETECTORS)
def test_a_defect_outside_the_region_changes_nothing(cls, good, bad):
    detector = cls(CellMeans(), roi=BOX, random_state=0).fit(good)
    np.testing.assert_array_equal(detector.score_samples(bad[:1]), detector.score_samples(good[:1]))
    assert detector.predict(bad[1:]) == [-1]
    assert detector.regions(bad)["image"].tolist() == [1]
    np.testing.assert_array_equal(np.isnan(detector.segment(bad)), np.stack([~mask_of_box()] * 2))
    assert not detector.predict_mask(bad)[:, ~mask_of_box()].any()


def test_the_region_equals_a_detector_that_sees_only_the_box(good, bad):
    """CellMeans has no receptive field beyond a cell, so a crop of the images gives the same patches."""
    top, left, height, width = BOX
    inside = np.s_[:, top : top + height, left : left + width]
    # Without smoothing, because the Gaussian filter continues the map in another way at the border of an image.
    within = PatchCoreDetector(CellMeans(), roi=BOX, smoothing=0, random_state=0).fit(good)
    cropped = PatchCoreDetector(CellMeans(), smoothing=0, random_state=0).fit(good[inside])
    np.testing.assert_array_equal(within.memory_bank_, cropped.memory_bank_)
    np.testing.assert_array_equal(within.bank_positions_, cropped.bank_positions_ + np.array([2, 1]))
    np.testing.assert_array_equal(within.bank_boxes_[:, :2], cropped.bank_boxes_[:, :2] + np.array([16, 8]))
    np.testing.assert_array_equal(within.score_samples(bad), cropped.score_samples(bad[inside]))
    assert within.offset_ == cropped.offset_
    np.testing.assert_allclose(within.calibration_peaks_, cropped.calibration_peaks_, rtol=1e-6)
    np.testing.assert_allclose(within.segment(bad)[inside], cropped.segment(bad[inside]), rtol=1e-5)
    nearest, other = within.nearest_patches(bad), cropped.nearest_patches(bad[inside])
    assert nearest["bank_row"].equals(other["bank_row"])
    assert nearest["top"].tolist() == [value + 16 for value in other["top"]]


@pytest.mark.parametrize("calibration", ["auto", "leave-one-out", 3, 0.3])
def test_two_passes_give_the_result_of_one_pass(monkeypatch, calibration, good, bad):
    masks = [mask_of_box(box=(8 * (i % 3), 8, 32, 24)) for i in range(len(good))]
    params = {"random_state": 0, "calibration": calibration}
    held = fit_in_one_way(monkeypatch, "at once", PatchCoreDetector(CellMeans(), **params), good, roi=masks)
    streamed = fit_in_one_way(monkeypatch, "two passes", PatchCoreDetector(CellMeans(), **params), good, roi=masks)
    np.testing.assert_array_equal(held.memory_bank_, streamed.memory_bank_)
    np.testing.assert_array_equal(held.bank_positions_, streamed.bank_positions_)
    np.testing.assert_allclose(held.calibration_scores_, streamed.calibration_scores_, rtol=1e-6)
    np.testing.assert_array_equal(held.segment(bad, roi=masks[:2]), streamed.segment(bad, roi=masks[:2]))


def test_the_region_of_a_function_reads_the_image(good, bad):
    seen = []

    def bright(image):
        seen.append(image.shape)
        return mask_of_box(image.shape[:2])

    detector = PatchCoreDetector(CellMeans(), roi=bright, random_state=0).fit(good)
    assert set(seen) == {(64, 64, 3)}
    expected = PatchCoreDetector(CellMeans(), roi=BOX, random_state=0).fit(good).segment(bad)
    np.testing.assert_array_equal(detector.segment(bad), expected)


def test_precomputed_features_have_regions_in_fractions_or_masks():
    features = np.random.default_rng(0).random((12, 8, 8, 4))
    by_box = PatchCoreDetector("precomputed", roi=(0.25, 0.0, 0.5, 1.0), random_state=0).fit(features)
    mask = mask_of_box((8, 8), (2, 0, 4, 8))
    by_mask = PatchCoreDetector("precomputed", random_state=0).fit(features, roi=[mask] * 12)
    np.testing.assert_array_equal(by_box.memory_bank_, by_mask.memory_bank_)
    np.testing.assert_array_equal(np.isnan(by_box.segment(features[:1])[0]), ~mask)
    with pytest.raises(ImageError, match="image 0: roi is given in pixels, but the size of the image is unknown"):
        PatchCoreDetector("precomputed", roi=(1, 1, 3, 3)).fit(features)
    with pytest.raises(ImageError, match="only patch features"):
        PatchCoreDetector("precomputed", roi=lambda image: image).fit(features)


def test_an_image_without_a_patch_in_the_region_raises_or_is_flagged(good, bad, tmp_path):
    masks = [mask_of_box()] * 11 + [mask_of_box(box=(0, 0, 2, 64))]
    with pytest.raises(ImageError, match="image 11: no patch of this image lies at least half"):
        PatchCoreDetector(CellMeans()).fit(good, roi=masks)
    detector = PatchCoreDetector(CellMeans(), random_state=0).fit(good)
    path = str(tmp_path / "part.png")
    Image.fromarray(np.uint8(255 * bad[1])).save(path)
    with pytest.raises(ImageError, match=r"image 0 \(.*part.png\): no patch"):
        PatchCoreDetector(CellMeans(), roi=(0, 0, 2, 64)).fit([path] * 3)
    with pytest.warns(ImageWarning, match="1 images could not be scored"):
        labels = detector.predict(good[:3], roi=[None, np.zeros((64, 64), bool), BOX], on_error="flag")
    assert labels[1] == -1
    with pytest.raises(ImageError, match="image 1: the region roi reaches row 90"):
        detector.predict(good[:2], roi=[BOX, (80, 0, 10, 10)])


@pytest.mark.parametrize("roi", [[BOX] * 3, "mask.png", 5])
def test_regions_that_do_not_match_the_images_raise(roi, good):
    with pytest.raises(ValueError, match="roi"):
        PatchCoreDetector(CellMeans()).fit(good, roi=roi)


def test_padim_needs_one_region_and_scores_parts_of_it(good, bad):
    with pytest.raises(ValueError, match="image 1 has another region of interest"):
        PaDiMDetector(CellMeans()).fit(good, roi=[BOX, None] * 6)
    detector = PaDiMDetector(CellMeans(), random_state=0).fit(good, roi=[BOX] * 12)
    part = mask_of_box(box=(24, 16, 16, 16))
    np.testing.assert_array_equal(np.isnan(detector.segment(bad, roi=[part] * 2)[0]), ~part)
    whole, some = detector.score_samples(bad, roi=[BOX] * 2), detector.score_samples(bad, roi=[part] * 2)
    assert some[1] == pytest.approx(whole[1])  # the defect lies in the part
    with pytest.raises(ValueError, match="outside the region of the training images"):
        detector.segment(bad)
    with pytest.raises(ValueError, match="outside the region of the training images"):
        detector.segment(bad, roi=[BOX, (16, 8, 32, 40)])


def test_thresholds_follow_the_region(good):
    """Noise outside the region has no effect on the thresholds."""
    noisy = good.copy()
    noisy[:, :16] = np.random.default_rng(1).random((12, 16, 64, 3))
    inside = PatchCoreDetector(CellMeans(), roi=BOX, random_state=0).fit(good)
    same = PatchCoreDetector(CellMeans(), roi=BOX, random_state=0).fit(noisy)
    whole = PatchCoreDetector(CellMeans(), random_state=0).fit(noisy)
    assert (inside.offset_, inside.pixel_offset_) == (same.offset_, same.pixel_offset_)
    assert (whole.offset_, whole.pixel_offset_) != (same.offset_, same.pixel_offset_)


def test_fit_predict_and_recalibrate_take_regions(good):
    masks = [BOX] * len(good)
    one = PatchCoreDetector(CellMeans(), roi=BOX, random_state=0)
    each = PatchCoreDetector(CellMeans(), random_state=0)
    np.testing.assert_array_equal(one.fit_predict(good), each.fit_predict(good, roi=masks))
    assert one.recalibrate(good).offset_ == each.recalibrate(good, roi=masks).offset_


def test_files_keep_the_region(good, bad, tmp_path):
    Image.fromarray(np.uint8(mask_of_box())).save(tmp_path / "mask.png")
    fitted = PatchCoreDetector(extractor(), roi=str(tmp_path / "mask.png"), random_state=0).fit(good)
    skpatchcore.save(fitted, tmp_path / "model.skops")
    (tmp_path / "mask.png").unlink()
    loaded = skpatchcore.load(tmp_path / "model.skops")
    np.testing.assert_array_equal(loaded.segment(bad), fitted.segment(bad))
    assert loaded.inspection_ == fitted.inspection_
    assert np.isnan(loaded.segment(bad)).any()


def test_searches_route_regions(good):
    X = np.concatenate([good, good * 0.1])
    y = np.array([1] * 12 + [-1] * 12)
    with sklearn.config_context(enable_metadata_routing=True):
        detector = PatchCoreDetector(CellMeans(), random_state=0).set_fit_request(roi=True)
        search = GridSearchCV(detector, {"n_neighbors": [1, 3]}, scoring="roc_auc", cv=StratifiedKFold(2))
        search.fit(X, y, roi=[BOX] * len(X))
    assert np.isnan(search.best_estimator_.calibration_scores_).sum() == 0
    assert len(search.best_estimator_.calibration_scores_) == 12


def test_fit_says_what_is_not_inspected(good):
    with pytest.warns(InspectionWarning, match=r"75\.0 % of the pixels .* are not inspected.*region of interest"):
        detector = PatchCoreDetector(CellMeans(), roi=BOX).fit(good)
    assert (detector.inspection_.seen, detector.inspection_.inspected) == (1, 0.25)
    with pytest.warns(InspectionWarning, match=r"23\.4 % .*outside the crop"):
        detector = PatchCoreDetector(extractor(image_size=32, crop_size=28)).fit(good)
    assert detector.inspection_.seen == detector.inspection_.inspected == pytest.approx((28 / 32) ** 2)


@pytest.mark.parametrize(
    "options",
    [{}, {"crop_size": (24, 28)}, {"stride": 2}, {"crop_size": 21, "stride": 3}],
    ids=["region", "crop", "stride", "crop and stride"],
)
@pytest.mark.parametrize("form", ["none", "polygon", "half of one cell"])
def test_inspected_fraction_of_fit_is_that_of_the_anomaly_maps(good, form, options):
    regions = {
        "none": None,
        "polygon": [(0.1, 0.2), (0.9, 0.05), (0.95, 0.7), (0.4, 0.93)],
        "half of one cell": (0, 0, 64, 37),
    }
    detector = PatchCoreDetector(
        extractor(image_size=32, **options), roi=regions[form], random_state=0, calibration=None
    ).fit(good)
    anomaly_map = detector.segment(good[:1])[0]
    assert detector.inspection_.inspected == np.mean(~np.isnan(anomaly_map))
    assert form == "none" or detector.inspection_.inspected < detector.inspection_.seen
    assert (describe_inspection({"1.png": inspected_part(anomaly_map)}) or "").split(" %")[0] == (
        (detector.inspection_.problem() or "").split(" %")[0]
    )


def test_fit_says_how_small_a_defect_may_be():
    large = np.random.default_rng(0).random((3, 188, 188, 3))
    with pytest.warns(InspectionWarning, match="One patch covers 47 × 47 pixels") as caught:
        detector = PatchCoreDetector(extractor(image_size=32)).fit(large)
    assert "smaller than about 24 pixels may be missed" in str(caught[0].message)
    assert detector.inspection_.proposal == 128
    assert "With image_size=128, a patch would cover 12 pixels." in str(detector.inspection_)


def test_memory_is_estimated_for_the_region():
    whole = PatchCoreDetector(extractor(image_size=(64, 64))).estimate_memory(10)
    part = PatchCoreDetector(extractor(image_size=(64, 64)), roi=(0.0, 0.0, 0.5, 1.0)).estimate_memory(10)
    assert 2 * part.n_patches == whole.n_patches


def test_ensembles_pass_regions_on(good, bad):
    members = [
        ("a", PatchCoreDetector(CellMeans(), random_state=0)),
        ("b", PatchCoreDetector(CellMeans(), random_state=1)),
    ]
    ensemble = PatchCoreEnsemble(members).fit(good, roi=[BOX] * 12)
    np.testing.assert_array_equal(np.isnan(ensemble.segment(bad, roi=[BOX] * 2)[0]), ~mask_of_box())


def test_a_picture_of_the_region_is_one_call(good):
    detector = PatchCoreDetector(CellMeans(), roi=BOX, random_state=0).fit(good)
    display = InspectionDisplay.from_estimator(detector, good[0])
    assert display.ax_.get_title() == "25.0 % of the pixels are inspected"
    drawn = display.ax_.images[0].get_array()
    assert drawn[0, 0].sum() < 255  # dark stripes
    np.testing.assert_array_equal(drawn[24:40, 16:32], (good[0, 24:40, 16:32] * 255).round())


SIDES, CORNERS = st.integers(16, 50), st.floats(0, 0.6)
BOXES = st.tuples(CORNERS, CORNERS, st.floats(0.3, 0.4), st.floats(0.3, 0.4))


@settings(max_examples=25, deadline=None)
@given(st.tuples(SIDES, SIDES), st.lists(BOXES, min_size=1, max_size=3), st.integers(0, 2**31 - 1))
def test_nan_marks_what_is_not_inspected_and_never_leaks(size, boxes, seed):
    rng = np.random.default_rng(seed)
    X, test = rng.random((6, *size, 3)), rng.random((2, *size, 3))
    test[1, size[0] // 3 : size[0] // 3 + 8, size[1] // 3 : size[1] // 3 + 8] = 3 * rng.random() / 3
    detector = PatchCoreDetector(
        CellMeans(), sampler=RandomSampler(0.5), roi=boxes, calibration=2, contamination=0.4, random_state=0
    )
    try:
        detector.fit(X)
    except ImageError as error:  # the boxes may lie between the cells
        message = str(error)
    else:
        message = ""
    if message:
        assert "no patch" in message
        return
    maps = detector.segment(test)
    known = ~np.isnan(maps)
    assert known.any()
    np.testing.assert_array_equal(known[0], known[1])
    of_detector = [detector.calibration_scores_, detector.calibration_sketches_, detector.calibration_peaks_]
    of_detector += [detector.offset_, detector.pixel_offset_, detector.min_area_, detector.embeddings_]
    regions = detector.regions(test, min_area="auto")
    of_images = [detector.score_samples(test), detector.p_values(test), regions.to_numpy(float), maps[known]]
    assert all(np.isfinite(values).all() for values in [*of_detector, *of_images])
    assert all(known[tuple(place)] for place in regions[["image", "peak_row", "peak_column"]].to_numpy())
    mask = np.zeros_like(known)
    mask[1, size[0] // 3 : size[0] // 3 + 8, size[1] // 3 : size[1] // 3 + 8] = True
    if not (mask & known).any() or not (known & ~mask).any():
        return
    metrics, curve = pixel_metrics(mask, maps)
    values = [*metrics.values(), *curve.ravel(), aupimo_scores(mask, maps)[1]]
    assert np.isfinite(values).all()


@pytest.mark.parametrize("on_error", ["raise", "flag"])
def test_lights_pass_regions_on(good, bad, on_error):
    parts, test = np.stack([good, good[::-1]], axis=1), np.stack([bad, bad], axis=1)
    one = MultiLightDetector(PatchCoreDetector(CellMeans(), roi=BOX, random_state=0)).fit(parts)
    each = MultiLightDetector(PatchCoreDetector(CellMeans(), random_state=0)).fit(parts, roi=[BOX] * 12)
    scores, maps = each.score_and_segment(test, roi=[BOX] * 2, on_error=on_error)
    np.testing.assert_array_equal(scores, one.score_samples(test))
    np.testing.assert_array_equal(maps, one.segment(test))
    np.testing.assert_array_equal(np.isnan(maps[0]), ~mask_of_box())


@pytest.mark.parametrize("cls", DETECTORS)
@pytest.mark.parametrize("params", [{}, {"channel_order": "bgr", "value_range": (0, 2)}])
def test_pixels_outside_the_region_have_no_effect_on_a_network(cls, params, good):
    """The receptive field of a patch is larger than its cell: pixels outside must not reach the network."""
    scale = 2 if params else 1
    other = good.copy()
    other[:, ~mask_of_box()] = np.random.default_rng(1).random((3,))
    detector = cls(extractor(**params), roi=BOX, random_state=0).fit(scale * good)
    np.testing.assert_array_equal(detector.segment(scale * other), detector.segment(scale * good))
    again = cls(extractor(**params), roi=mask_of_box(), random_state=0).fit(scale * other)
    assert again.offset_ == detector.offset_
    whole = cls(extractor(**params), random_state=0).fit(scale * good)
    assert not np.array_equal(whole.score_samples(scale * other[:3]), whole.score_samples(scale * good[:3]))


def test_an_unreadable_image_with_a_region_names_its_path(good, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    detector = PatchCoreDetector(extractor(), roi=BOX, random_state=0).fit(good)
    with pytest.raises(ImageError, match=r"image 1 \(.*broken.png\)"):
        detector.predict([good[0], str(tmp_path / "broken.png")])
    with pytest.warns(ImageWarning):
        assert detector.predict([good[0], str(tmp_path / "broken.png")], on_error="flag")[1] == -1
    small = PatchCoreDetector(extractor(max_pixels=100), roi=BOX)
    with pytest.raises(ImageError, match=r"image 0: .*max_pixels"):
        small.fit([Image.fromarray(np.uint8(255 * image)) for image in good])


def test_a_function_that_fails_names_the_image_and_loses_none(good):
    """An IndexError would end the iteration over a sequence."""
    calls = []

    def failing(image):
        calls.append(image)
        return [][0] if len(calls) == 6 else mask_of_box()

    detector = PatchCoreDetector(extractor(), roi=lambda image: mask_of_box(), random_state=0).fit(good)
    detector.roi_ = as_region(failing)
    with pytest.raises(ImageError, match="image 5: the function roi failed: IndexError"):
        detector.score_samples(good)
    calls.clear()
    with pytest.warns(ImageWarning, match="1 images could not be scored"):
        assert len(detector.score_samples(good, on_error="flag")) == 12


def test_a_function_sees_each_image_once(good):
    seen = []
    with pytest.raises(ImageError, match="returned an array of shape"):
        PatchCoreDetector(extractor(), roi=lambda image: image).fit(good)

    def region(image):
        seen.append(image)
        return mask_of_box()

    detector = PatchCoreDetector(extractor(), roi=region, random_state=0)
    detector.set_params(calibration=None).fit(good)
    assert len(seen) == 12


def test_pixels_outside_the_mask_are_nan_even_in_inspected_cells(good):
    mask = mask_of_box(box=(16, 8, 32, 30))  # the last cells of the rows lie inside by 6 of 8 columns
    detector = PatchCoreDetector(CellMeans(), roi=mask, random_state=0).fit(good)
    np.testing.assert_array_equal(np.isnan(detector.segment(good[:1])[0]), ~mask)
    assert len(np.unique(detector.bank_positions_[:, 1])) == 4


def test_a_forgotten_region_of_single_images_is_noticed(good, tmp_path):
    detector = PatchCoreDetector(extractor(), random_state=0).fit(good, roi=[BOX] * 12)
    detector.predict(good[:2], roi=[BOX] * 2)
    with pytest.warns(InspectionWarning, match="fitted with a region of interest for each image"):
        detector.predict(good[:2])
    skpatchcore.save(detector, tmp_path / "model.skops")
    with pytest.warns(InspectionWarning, match="Pass roi to this method"):
        skpatchcore.load(tmp_path / "model.skops").predict(good[:2])


def test_missing_regions_of_a_table_are_whole_images(good, tmp_path):
    Image.fromarray(np.uint8(mask_of_box())).save(tmp_path / "mask.png")
    regions = pd.Series([str(tmp_path / "mask.png"), None, np.nan])
    detector = PatchCoreDetector(CellMeans(), random_state=0).fit(good)
    known = ~np.isnan(detector.segment(good[:3], roi=regions))
    assert known.mean(axis=(1, 2)).tolist() == [0.25, 1, 1]


def test_sparse_regions_of_large_images_have_pixel_thresholds():
    images = np.random.default_rng(0).random((6, 193 * 8, 239 * 8, 1), np.float32)
    detector = PatchCoreDetector(CellMeans(), roi=[(0, 1152, 8, 8), (1072, 0, 8, 8)], calibration=3, random_state=0)
    detector.fit(images)
    assert np.isfinite([detector.pixel_offset_, detector.min_area_]).all()
    assert np.isfinite(detector.calibration_peaks_).all()


def test_the_appearance_is_that_of_the_region(good):
    """A loss of contrast inside a small region is noticed, and a change outside is not."""
    detector = PatchCoreDetector(extractor(), roi=(8, 8, 32, 32), random_state=0).fit(good)
    low, high = detector.appearance_range_[:, 3]
    assert 0.02 < low < high < 0.2
    other = good.copy()
    other[:, 48:] = 0
    detector.predict(other)  # no warning
    with pytest.warns(AppearanceWarning, match="contrast"):
        detector.predict(0.5 + 0.01 * (good - 0.5))


def test_ensembles_of_different_regions_keep_the_promise_of_pixels():
    rng = np.random.default_rng(0)
    X = rng.standard_t(2, (60, 48, 48, 3)).clip(-5, 5) * 0.1 + 0.5
    members = [
        (name, PatchCoreDetector(CellMeans(), roi=box, random_state=0, smoothing=0, calibration="leave-one-out"))
        for name, box in (("left", (0, 0, 48, 24)), ("right", (0, 24, 48, 24)))
    ]
    ensemble = PatchCoreEnsemble(members).fit(X.clip(0, 1))
    peaks = [np.nanmax(combined) for combined in ensemble.segment(X[:20].clip(0, 1))]
    assert (ensemble.calibration_peaks_[:20] >= np.array(peaks) - 1e-6).all()


def test_ensembles_say_once_what_is_not_inspected(good):
    members = [(name, PatchCoreDetector(extractor(), roi=BOX, random_state=i)) for i, name in enumerate("abc")]
    with pytest.warns(InspectionWarning) as caught:
        ensemble = PatchCoreEnsemble(members).fit(good)
    assert len(caught) == 1
    assert ensemble.inspection_.inspected == 0.25
    finer = PatchCoreEnsemble.at_image_sizes(PatchCoreDetector(extractor(), random_state=0), [32, 64]).fit(good)
    assert finer.inspection_.patch_size == (8, 8)


def test_an_extractor_is_fitted_on_images_without_regions(good):
    class Recorder(CellMeans):
        def fit(self, X=None, y=None):
            self.shape_ = X.shape
            return self

    detector = PatchCoreDetector(Recorder(), random_state=0).fit(good, roi=[BOX] * 12)
    assert detector.extractor_.shape_ == good.shape


def test_errors_of_a_network_name_the_path_of_an_image_with_a_region(good, tmp_path):
    path = str(tmp_path / "small.png")
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(path)
    detector = PatchCoreDetector(extractor(crop_size=48), roi=(0.1, 0.1, 0.8, 0.8), random_state=0).fit(good)
    with pytest.raises(ImageError, match=r"image 0 \(.*small.png\): .* smaller than crop_size"):
        detector.predict([path])


def test_memory_of_a_region_in_pixels_needs_an_example():
    detector = PatchCoreDetector(extractor(image_size=(64, 64)), roi=(0, 0, 320, 320))
    with pytest.raises(ValueError, match=r"depends on the region roi.*example image"):
        detector.estimate_memory(10)
    assert detector.estimate_memory(10, np.zeros((640, 320, 3), np.uint8)).n_patches == 10 * 32


def test_regions_that_start_small_do_not_break_the_memory_limit(good):
    small = [mask_of_box(box=(0, 0, 8, 8))] * 8
    stream = PatchStream(CellMeans(), with_regions(good, [*small, *[None] * 4]))
    assert stream.expected_patches(stream.peek()) == 12 * 64


def test_displays_draw_the_first_light_of_a_part(good):
    parts = np.stack([good, good[::-1]], axis=1)
    detector = MultiLightDetector(PatchCoreDetector(CellMeans(), roi=BOX, random_state=0)).fit(parts)
    shown = AnomalyMapDisplay.from_estimator(detector, parts[:2])
    np.testing.assert_allclose(shown.images[1], good[1], atol=1e-6)
    picture = InspectionDisplay.from_estimator(detector, parts[3])
    np.testing.assert_allclose(picture.image, good[3], atol=1e-6)
    with pytest.raises(ValueError, match="several lights"):
        detection_capability(detector, parts)
    shown = AnomalyMapDisplay.from_estimator(
        PatchCoreDetector(CellMeans(), random_state=0).fit(good), good[:2], roi=[BOX, None]
    )
    assert np.isnan(shown.anomaly_maps[0]).mean() == 0.75
    plt.close("all")


def test_lights_of_a_table_are_compared_by_name(good, tmp_path):
    for i, image in enumerate(good):
        Image.fromarray(np.uint8(255 * image)).save(tmp_path / f"{i}.png")
    paths = [str(tmp_path / f"{i}.png") for i in range(12)]
    table = pd.DataFrame({"top": paths, "side": paths[::-1]})
    detector = MultiLightDetector(PatchCoreDetector(CellMeans(), random_state=0)).fit(table)
    assert detector.feature_names_in_.tolist() == ["top", "side"]
    detector.predict(table)
    with pytest.raises(ValueError, match="X has the columns"):
        detector.predict(table[["side", "top"]])
    assert not hasattr(detector.fit(table.to_numpy()), "feature_names_in_")
