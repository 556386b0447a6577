"""Tests of `OnnxDetector` on small graphs: scores, decisions, maps, forms of images, refused images and files."""

from __future__ import annotations

import copy
import io
import pickle
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.stats import false_discovery_control

from skpatchcore import ImageError, ImageWarning, ModelFileError, OnnxDetector
from skpatchcore.images.inside import PixelMask
from skpatchcore.images.views import View, placed
from skpatchcore.maps import map_of
from tests.deployment.graphs import CELL, darkness_model, manifest, write_exported

pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

RNG = np.random.default_rng(0)
X = RNG.integers(120, 256, (5, 48, 64, 3), dtype=np.uint8)
X[3, 16:32, 24:48] = 0  # a dark defect


def darkness(images, stride=1):
    """Return the patch scores that the graph computes."""
    n, height, width, _ = images.shape
    cells = images[:, : height // CELL * CELL, : width // CELL * CELL]
    cells = cells.reshape(n, height // CELL, CELL, width // CELL, CELL, 3)
    return (1 - cells.mean(axis=(2, 4, 5)) / 255)[:, ::stride, ::stride]


@pytest.fixture
def path(tmp_path):
    return write_exported(tmp_path / "parts.onnx")


@pytest.fixture(params=["onnxruntime", "openvino"])
def detector(path, request):
    pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    return OnnxDetector(path, runtime=request.param, n_threads=1)


def test_scores_and_decisions_have_scikit_learns_signs(detector):
    scores = detector.score_samples(X)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, -darkness(X).max(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(detector.decision_function(X), scores + 0.5)
    np.testing.assert_array_equal(detector.predict(X), [1, 1, 1, -1, 1])


def test_a_score_at_the_threshold_is_normal(tmp_path, path):
    score = OnnxDetector(path).score_samples(X[:1])[0]
    at = OnnxDetector(write_exported(tmp_path / "at.onnx", thresholds__offset=score))
    above = OnnxDetector(write_exported(tmp_path / "above.onnx", thresholds__offset=np.nextafter(score, 1)))
    assert (at.predict(X[:1]), above.predict(X[:1])) == (1, -1)


def test_p_values_count_calibration_scores_that_are_not_higher(detector):
    known = np.array([-0.5, -0.4, -0.3, -0.2])
    scores = detector.score_samples(X)
    expected = np.array([(1 + (known <= score).sum()) / 5 for score in scores])
    np.testing.assert_array_equal(detector.p_values(X), expected)
    for adjust in ("bh", "by"):
        np.testing.assert_allclose(
            detector.p_values(X, adjust=adjust), false_discovery_control(expected, method=adjust), rtol=1e-12
        )
    with pytest.raises(ValueError, match="adjust='x': expected"):
        detector.p_values(X, adjust="x")


def test_p_values_count_calibration_scores_that_are_equal_except_for_rounding(path):
    detector, image = OnnxDetector(path), np.full((16, 16, 3), 255, np.uint8)
    score = detector.score_samples([image])[0]
    detector._take_thresholds({**detector.manifest, "calibration_scores": [score + 0.9e-6, score + 2e-6, -1.0]})
    assert detector.p_values([image])[0] == 3 / 4
    assert next(detector.iter_results([image])).p_value == 3 / 4


def test_golden_results_are_not_read(tmp_path):
    path = write_exported(tmp_path / "a.onnx", golden="no npz file")
    assert OnnxDetector(path).predict([np.full((16, 16, 3), 255, np.uint8)]) == [1]


def test_maps_masks_and_regions_equal_those_of_the_shared_functions(detector):
    view = View((48, 64), (0.0, 0.0, 48.0, 64.0), (48, 64))
    expected = np.stack([map_of(scores, view, 4.0) for scores in darkness(X)])
    maps = detector.segment(X)
    assert maps.dtype == np.float32
    np.testing.assert_allclose(maps, expected, atol=1e-6)
    masks = detector.predict_mask(X)
    np.testing.assert_array_equal(masks, maps > detector.pixel_offset_)
    assert masks.any(axis=(1, 2)).tolist() == [False, False, False, True, False]
    area = int(masks[3].sum())
    assert detector.predict_mask(X, min_area=area)[3].sum() == area
    assert not detector.predict_mask(X, min_area=area + 1).any()
    np.testing.assert_array_equal(detector.predict_mask(X, min_area="auto"), masks)
    table = detector.regions(X)
    assert table["image"].tolist() == [3]
    assert table["area"].tolist() == [area]
    assert table["peak"].tolist() == [pytest.approx(float(maps[3].max()))]
    assert table["p_value"].tolist() == [1 / 5]
    assert detector.regions(X[:1]).columns.tolist() == table.columns.tolist()


@pytest.mark.parametrize(("size", "crop"), [((50, 71), (40, 56)), ((64, 64), (48, 32))])
@pytest.mark.parametrize("stride", [1, 2])
def test_pixels_outside_the_crop_are_nan_and_patches_lie_at_their_places(tmp_path, size, crop, stride):
    images = RNG.integers(0, 256, (2, *size, 3), dtype=np.uint8)
    _, corner, view = placed(size, None, crop, 0)
    model = darkness_model(crop=(*corner, *crop), stride=stride)
    changes = {"resize__crop_size": list(crop), "patches__stride": stride, "patches__smoothing": 2.5}
    found = OnnxDetector(write_exported(tmp_path / "a.onnx", model, **changes)).segment(images)
    seen = images[:, corner[0] : corner[0] + crop[0], corner[1] : corner[1] + crop[1]]
    view = view.of_patches((crop[0] // CELL, crop[1] // CELL), stride)
    expected = [map_of(scores, view, 2.5) for scores in darkness(seen, stride)]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert np.isnan(found).sum() == 2 * (size[0] * size[1] - crop[0] * crop[1])


def test_maps_of_resized_images_have_the_size_of_the_images(tmp_path):
    # the graph itself does not resize: only the places of the patches and the width of the Gaussian are compared
    detector = OnnxDetector(write_exported(tmp_path / "a.onnx", resize__image_size=32))
    images = [X[0], X[3, :40], X[3, :, :40]]
    maps = detector.segment(images)
    for image, found in zip(images, maps, strict=True):
        _, _, view = placed(image.shape[:2], 32, None, 0)
        np.testing.assert_allclose(found, map_of(darkness(image[None])[0], view, 4.0), atol=1e-6)


def test_region_of_interest_is_filled_before_the_map_is_drawn_and_nan_after(tmp_path):
    counted, inspected = np.ones((6, 8), bool), np.ones((48, 64), bool)
    counted[:, 5:], inspected[:, 38:] = False, False
    fill = np.arange(48).reshape(6, 8)
    fill[:, 5:] = fill[:, 4:5]
    region = {"fill": fill, "inspected": np.packbits(inspected)}
    model = darkness_model(counted=counted)
    detector = OnnxDetector(write_exported(tmp_path / "a.onnx", model, region, input__image_size=[48, 64]))
    view = View((48, 64), (0.0, 0.0, 48.0, 64.0), (48, 64))
    scores = np.where(counted, darkness(X), np.nan)
    expected = np.stack([map_of(some, view, 4.0, PixelMask.of(inspected)) for some in scores])
    np.testing.assert_allclose(detector.segment(X), expected, atol=1e-6)
    np.testing.assert_allclose(detector.score_samples(X), -np.nanmax(scores, axis=(1, 2)), rtol=1e-5)
    assert not detector.predict_mask(X)[:, :, 38:].any()
    assert detector.predict_mask(X)[3].any()


def test_all_forms_of_an_image_give_the_same_score(path, tmp_path):
    detector = OnnxDetector(path)
    Image.fromarray(X[0]).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    alpha = np.dstack([X[0], np.full((48, 64), 7, np.uint8)])
    images = [
        X[0], tmp_path / "a.png", str(tmp_path / "a.png"), content, io.BytesIO(content), Image.fromarray(X[0]), alpha,
        torch.from_numpy(X[0].transpose(2, 0, 1).copy()), X[0] / 255, (X[0] / 255).astype(np.float32),
        X[0].astype(np.uint16) * 257,
    ]  # fmt: skip
    expected = detector.score_samples(X[:1])[0]
    np.testing.assert_array_equal(detector.score_samples(images), np.full(len(images), expected))
    grey = X[0, :, :, :1]
    np.testing.assert_array_equal(
        detector.score_samples([grey, grey[:, :, 0], grey.repeat(3, axis=2)]), detector.score_samples([grey] * 3)
    )
    table = pd.DataFrame({"image": [str(tmp_path / "a.png")] * 2})
    np.testing.assert_array_equal(detector.score_samples(table), [expected] * 2)
    with pytest.raises(ValueError, match="pass a list of paths"):
        detector.score_samples(str(tmp_path / "a.png"))


def test_channel_order_and_value_range_of_the_file_are_used(tmp_path):
    model = darkness_model(dtype="float32")
    plain = OnnxDetector(write_exported(tmp_path / "a.onnx", model, input__dtype="float32"))
    changes = {"input__dtype": "float32", "input__channel_order": "bgr", "input__value_range": [0, 4095]}
    other = OnnxDetector(write_exported(tmp_path / "b.onnx", model, **changes))
    deep = RNG.integers(0, 4096, (1, 48, 64, 3)).astype(np.uint16)
    np.testing.assert_allclose(other.score_samples(deep), plain.score_samples(deep / 4095), rtol=1e-6)
    assert (other.channel_order, other.value_range) == ("bgr", (0, 4095))


@pytest.mark.parametrize(
    ("changes", "image", "message"),
    [
        ({}, X[0] / 256, "more than 8 bits per channel, but this file takes 8-bit images: export with input_dtype="),
        ({}, RNG.integers(0, 65536, (16, 16), dtype=np.uint16), "more than 8 bits per channel"),
        ({"input__image_size": [48, 63]}, X[0], "48×64 pixels, but this file takes only images of 48×63 pixels"),
        ({"resize__crop_size": 56}, X[0], "48×64 pixels after resizing, smaller than crop_size 56×56"),
        ({"input__max_pixels": 3000}, X[0], None),
        ({"input__max_pixels": 3072, "resize__image_size": 99}, X[0], "more than max_pixels=3072"),
        ({}, X[0, :, :, :2], "expected 1, 3 or 4 channels"),
        ({}, None, "is missing"),
        ({}, "no_such_file.png", r"image 1 \(no_such_file.png\): no such file"),
    ],
)  # fmt: skip
def test_an_image_that_the_file_does_not_take_raises_or_is_flagged(tmp_path, changes, image, message):
    detector = OnnxDetector(write_exported(tmp_path / "a.onnx", **changes), batch_size=3)
    good = X[0] if detector.manifest["input"]["image_size"] is None else np.full((48, 63, 3), 200, np.uint8)
    good = good if "resize__crop_size" not in changes else np.full((56, 64, 3), 200, np.uint8)
    good = good if "input__max_pixels" not in changes else np.full((32, 32, 3), 200, np.uint8)
    if message is None:  # arrays are decoded already; files are refused before they are decoded
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG")
        image, message = stream.getvalue(), "48×64 pixels, more than max_pixels=3000"
    images = [good, image, good]
    if "resize__image_size" in changes:
        images = [image]
    with pytest.raises(ImageError, match=message) as caught:
        detector.score_samples(images)
    assert caught.value.index == len(images) // 2
    with pytest.warns(ImageWarning) as warned:
        labels = detector.predict(images, on_error="flag")
    assert labels.tolist() == ([1, -1, 1] if len(images) == 3 else [-1])
    assert [failure.index for failure in warned[0].message.failures] == [len(images) // 2]
    with pytest.warns(ImageWarning):
        scores, maps = detector.score_and_segment(images, on_error="flag")
    assert np.isnan(scores).tolist() == [one is None for one in maps]
    results = list(detector.iter_results(images, on_error="flag"))
    assert [result.label for result in results] == labels.tolist()
    assert [result.error is not None for result in results] == [one is None for one in maps]


@pytest.mark.parametrize("kind", ["nan", "infinite"])
def test_a_score_that_is_not_finite_counts_as_anomalous(tmp_path, kind):
    detector = OnnxDetector(write_exported(tmp_path / "a.onnx", darkness_model(score=kind)), batch_size=3)
    images = X.copy()
    images[1] = 0
    assert np.isfinite(detector.score_samples(images)).tolist() == [True, False, True, True, True]
    assert detector.predict(images).tolist() == [1, -1, 1, 1, 1]
    assert detector.p_values(images)[1] == 1 / 5
    assert detector.p_values(images)[0] == 1
    with pytest.raises(ImageError, match="image 1: the score is not finite"):
        list(detector.iter_results(images))
    results = list(detector.iter_results(images, on_error="flag"))
    assert [result.label for result in results] == [1, -1, 1, 1, 1]
    assert [result.error is None for result in results] == [True, False, True, True, True]


def test_patch_scores_that_are_not_finite_raise_instead_of_an_empty_mask(tmp_path):
    counted = np.ones((6, 8), bool)
    counted[2, 3] = False  # NaN without a region of interest
    detector = OnnxDetector(write_exported(tmp_path / "a.onnx", darkness_model(counted=counted)))
    with pytest.raises(ImageError, match="image 0: the score of a patch is not finite"):
        detector.predict_mask(X)


@pytest.mark.parametrize(
    ("reason", "kind", "message"),
    [
        (
            "the input is too small",
            ImageError,
            r"image 1 .*the graph cannot be run on an image of 48×64 pixels",
        ),
        ("Failed to allocate memory for requested buffer", MemoryError, "image 1 at 48×64 pixels takes more memory"),
    ],
)
def test_an_error_of_the_runtime_names_the_image(path, tmp_path, monkeypatch, reason, kind, message):
    detector = OnnxDetector(path)
    names = [tmp_path / "a.png", tmp_path / "b.png"]
    for image, name in zip(X, names, strict=False):
        Image.fromarray(image).save(name)
    run = detector._graph._runner.run

    def fail_on_second(images, outputs):
        if (images[0] == X[1]).all():
            raise RuntimeError(reason)
        return run(images, outputs)

    monkeypatch.setattr(detector._graph._runner, "run", fail_on_second)
    with pytest.raises(kind, match=message):
        detector.score_samples(names)


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_results_do_not_depend_on_the_batch_size_and_sizes_may_be_mixed(path, batch_size):
    images = [X[0], X[1], X[2, :40], X[3, :40], X[4], X[3]]
    expected = [OnnxDetector(path).score_samples([image])[0] for image in images]
    detector = OnnxDetector(path, batch_size=batch_size)
    scores, maps = detector.score_and_segment(images)
    np.testing.assert_array_equal(scores, expected)
    assert [one.shape for one in maps] == [image.shape[:2] for image in images]


def test_iter_results_takes_generators_and_agrees_with_the_other_methods(path):
    detector = OnnxDetector(path, batch_size=2)
    results = list(detector.iter_results((image for image in X), chunk_size=2))
    assert [result.index for result in results] == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal([result.score for result in results], detector.score_samples(X))
    np.testing.assert_array_equal([result.decision for result in results], detector.decision_function(X))
    np.testing.assert_array_equal([result.p_value for result in results], detector.p_values(X))
    np.testing.assert_array_equal([result.anomaly_map for result in results], detector.segment(X))
    assert next(detector.iter_results(X, with_maps=False)).anomaly_map is None
    with pytest.raises(ValueError, match="chunk_size=0"):
        detector.iter_results(X, chunk_size=0)
    with pytest.raises(ValueError, match="on_error='x'"):
        detector.iter_results(X, on_error="x")


def test_attributes_are_those_of_the_manifest(path):
    detector = OnnxDetector(path)
    assert (detector.offset_, detector.pixel_offset_, detector.min_area_) == (-0.5, 0.45, 0.01)
    np.testing.assert_array_equal(detector.calibration_scores_, [-0.5, -0.4, np.nan, -0.3, -0.2])
    np.testing.assert_array_equal(detector.calibration_peaks_, [0.45, 0.35, np.nan, 0.25, 0.15])
    assert (detector.promised_rate_, detector.contamination) == (0.2, 0.2)
    assert detector.calibration_plan_ == "other good images"
    assert detector.manifest == manifest()
    assert repr(detector) == f"OnnxDetector({str(path)!r}, runtime='onnxruntime', detector=PatchCoreDetector)"


def test_pickles_and_copies_hold_the_path_and_verify_the_digest(path):
    detector = OnnxDetector(path, n_threads=1, batch_size=2)
    content = pickle.dumps(detector)
    assert len(content) < 1000
    for same in (pickle.loads(content), copy.deepcopy(detector)):
        np.testing.assert_array_equal(same.score_samples(X), detector.score_samples(X))
        assert (same.n_threads, same.batch_size) == (1, 2)
    write_exported(path, thresholds__offset=-9.0)
    with pytest.raises(ModelFileError, match="has changed since this object was pickled"):
        pickle.loads(content)


def test_a_file_without_thresholds_scores_and_segments_only(tmp_path):
    changes = {"thresholds__offset": None, "thresholds__pixel_offset": None, "thresholds__min_area": None}
    detector = OnnxDetector(write_exported(tmp_path / "a.onnx", **changes, calibration_scores=[]))
    assert detector.score_samples(X).shape == (5,)
    assert detector.segment(X).shape == (5, 48, 64)
    for method in ("predict", "decision_function", "p_values", "predict_mask", "regions"):
        with pytest.raises(ValueError, match="this detector has no threshold"):
            getattr(detector, method)(X)
    assert next(detector.iter_results(X)).label is None


def test_min_area_auto_needs_the_area_in_the_file(tmp_path):
    detector = OnnxDetector(write_exported(tmp_path / "a.onnx", thresholds__min_area=None))
    with pytest.raises(ValueError, match="min_area='auto' needs sketches"):
        detector.predict_mask(X, min_area="auto")
    with pytest.raises(ValueError, match="min_area=0"):
        detector.regions(X, min_area=0)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"runtime": "tensorrt"}, "runtime='tensorrt': expected 'onnxruntime' or 'openvino'"),
        ({"n_threads": 0}, "n_threads=0: expected at least 1"),
        ({"batch_size": 0}, "batch_size=0: expected at least 1"),
    ],
)
def test_invalid_parameters_raise(path, parameters, message):
    with pytest.raises(ValueError, match=message):
        OnnxDetector(path, **parameters)


@pytest.mark.parametrize(("runtime", "extra"), [("onnxruntime", "onnx"), ("openvino", "openvino")])
def test_a_missing_runtime_raises_an_error_that_names_the_extra(path, monkeypatch, runtime, extra):
    monkeypatch.setitem(sys.modules, runtime, None)
    with pytest.raises(ImportError, match=rf"which the extra '{extra}' installs\. Run: pip install {runtime}\."):
        OnnxDetector(path, runtime=runtime)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_graph_that_a_runtime_cannot_load_raises_a_model_file_error(tmp_path, runtime):
    pytest.importorskip(runtime, reason=f"{runtime} is not installed")
    path = write_exported(tmp_path / "a.onnx", b"\x08\x09\x3a\x03\x0a\x01\x08")
    with pytest.raises(ModelFileError, match=rf"cannot be loaded by {runtime}"):
        OnnxDetector(path, runtime=runtime)


@pytest.mark.parametrize("missing", ["thresholds", "input", "resize", "patches", "calibration_scores"])
def test_an_incomplete_manifest_raises_a_model_file_error(tmp_path, missing):
    path = write_exported(tmp_path / "a.onnx", **{missing: None})
    with pytest.raises(ModelFileError, match=r"was not written by skpatchcore\.export"):
        OnnxDetector(path)


def test_scoring_issues_no_warning(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        OnnxDetector(path).segment(X)
