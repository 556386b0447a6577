"""Tests that `OnnxDetector` agrees with the exported detector in all its methods, on files that `export` wrote."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline

import skpatchcore
from skpatchcore import (
    GreedyCoresetSampler,
    LayerScaling,
    OnnxDetector,
    PaDiMDetector,
    PatchCoreDetector,
    PatchWhitening,
    TorchFeatureExtractor,
)

pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

# Largest difference of scores and maps, as a fraction of the threshold. Rounding in float32 reaches about 1e-5.
CLOSE = 1e-4
# Height and width of the training images.
SIZE = (72, 96)


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """Return a smooth image with a little noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / SIZE[0]
    base = 120 + 40 * np.sin(9 * x[..., None] + np.array([0, 1, 2])) + 20 * y[..., None]
    return np.clip(base + rng.normal(0, 6, (height, width, 3)), 0, 255).astype(np.uint8)


def good_images() -> np.ndarray:
    return np.stack([picture(i, *SIZE) for i in range(12)])


def with_defect(image: np.ndarray) -> np.ndarray:
    """Return a copy of an image with a black rectangle near its centre."""
    changed = image.copy()
    height, width = image.shape[:2]
    changed[height // 3 : height // 2, width // 3 : width * 2 // 3] = 0
    return changed


def images_of_one_size() -> list[np.ndarray]:
    """Return good, defective and training images of the size of the training images, in colour and in grey."""
    new = [picture(seed, *SIZE) for seed in (20, 21, 22)]
    return [new[0], with_defect(new[0]), with_defect(new[1]), new[2][..., 1], good_images()[3]]


def images_of_many_sizes() -> list[np.ndarray]:
    """Return upright and wide images, small and large."""
    sizes = [(72, 96), (72, 96), (96, 72), (150, 81), (80, 150), (64, 130)]
    images = [picture(30 + i, *size) for i, size in enumerate(sizes)]
    return [with_defect(image) if i % 2 else image for i, image in enumerate(images)]


def extractor(**parameters) -> TorchFeatureExtractor:
    return TorchFeatureExtractor(**{"backbone": "resnet18", "weights": None, "image_size": 64, **parameters})


def fitted(kind=PatchCoreDetector, **parameters):
    """Return a detector that is fitted on good images."""
    own = {"extractor": extractor(), "random_state": 0, "calibration": "leave-one-out"}
    if kind is PatchCoreDetector:
        own["sampler"] = GreedyCoresetSampler(0.2)
    return kind(**{**own, **parameters}).fit(good_images())


REGION = [(0.1, 0.2, 0.6, 0.5), [(0.7, 0.1), (0.95, 0.5), (0.7, 0.4)]]
# Detector, whether the images have one size, and parameters of the export.
CASES = {
    "whole images": (lambda: fitted(), False, {}),
    "crop and stride": (lambda: fitted(extractor=extractor(crop_size=(48, 56), stride=2), n_neighbors=1), False, {}),
    "own size and pooled channels": (lambda: fitted(extractor=extractor(image_size=None, n_channels=90)), False, {}),
    "region, crop and stride": (
        lambda: fitted(roi=(0.2, 0.1, 0.5, 0.7), extractor=extractor(crop_size=(56, 64), stride=2)),
        True,
        {"image_size": SIZE, "input_dtype": "float32"},
    ),
    "smoothed maximum": (lambda: fitted(image_score="map-max"), False, {}),
    "smoothed maximum, region, crop and map of the image": (
        lambda: fitted(image_score="map-max", roi=(0.2, 0.1, 0.5, 0.7), extractor=extractor(crop_size=(56, 64))),
        True,
        {"image_size": SIZE, "map_size": "image"},
    ),
    "smoothed maximum with a crop": (
        lambda: fitted(image_score="map-max", extractor=extractor(crop_size=(48, 56), stride=2)),
        False,
        {},
    ),
    "mean of the largest patch scores": (lambda: fitted(image_score=0.1), False, {}),
    "whitening": (lambda: fitted(calibration=3, transformer=PatchWhitening()), False, {}),
    "fewer columns and a region": (
        lambda: fitted(calibration=3, transformer=PatchWhitening(n_components=20), roi=(0.2, 0.1, 0.5, 0.7)),
        True,
        {"image_size": SIZE},
    ),
    "scaled layers, then PCA": (
        lambda: fitted(calibration=3, transformer=make_pipeline(LayerScaling((128, 256)), PCA(30, whiten=True))),
        False,
        {},
    ),
    "scaled layers": (lambda: fitted(calibration=3, transformer=LayerScaling()), False, {"map_size": "image"}),
    "PaDiM, mean of the largest": (lambda: fitted(PaDiMDetector, image_score=0.3), True, {"image_size": SIZE}),
    "PaDiM with a region": (lambda: fitted(PaDiMDetector, roi=REGION), True, {"image_size": SIZE}),
}


@pytest.fixture(scope="module", params=CASES)
def pair(request, tmp_path_factory):
    """Return a detector, the path of its exported file, and images."""
    make, is_one_size, parameters = CASES[request.param]
    detector, path = make(), tmp_path_factory.mktemp("agreement") / "parts.onnx"
    skpatchcore.export(detector, path, **parameters)
    return detector, path, images_of_one_size() if is_one_size else images_of_many_sizes()


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_onnx_detector_agrees_with_exported_detector(pair, runtime):
    pytest.importorskip(runtime, reason=f"{runtime} is not installed")
    detector, path, images = pair
    exported, threshold = OnnxDetector(path, runtime=runtime, n_threads=1), abs(detector.offset_)
    scores, maps = detector.score_and_segment(images)
    found, found_maps = exported.score_and_segment(images)
    np.testing.assert_allclose(found, scores, rtol=CLOSE, atol=CLOSE * threshold)
    for expected, one in zip(maps, found_maps, strict=True):
        np.testing.assert_allclose(one, expected, rtol=CLOSE, atol=CLOSE * threshold)  # NaN in the same pixels

    assert (exported.offset_, exported.pixel_offset_) == (detector.offset_, detector.pixel_offset_)
    np.testing.assert_allclose(exported.decision_function(images), scores - detector.offset_, atol=CLOSE * threshold)
    is_clear = np.abs(scores - detector.offset_) > CLOSE * threshold
    labels = detector.predict(images)
    assert set(labels[is_clear]) == {-1, 1}
    np.testing.assert_array_equal(exported.predict(images)[is_clear], labels[is_clear])
    # A training image can have the score of a calibration image exactly, where rounding changes the rank.
    distances = np.abs(scores[:, None] - detector.calibration_scores_).min(axis=1)
    is_clear = distances > CLOSE * threshold
    np.testing.assert_array_equal(exported.p_values(images)[is_clear], detector.p_values(images)[is_clear])


def test_masks_and_regions_agree_with_exported_detector(pair):
    detector, path, images = pair
    exported = OnnxDetector(path, n_threads=1)
    for parameters in ({}, {"min_area": "auto"}):
        expected, found = (some.predict_mask(images, **parameters) for some in (detector, exported))
        for anomaly_map, mask, own in zip(detector.segment(images), expected, found, strict=True):
            is_near = np.abs(anomaly_map - detector.pixel_offset_) <= CLOSE * detector.pixel_offset_
            assert not (mask ^ own)[~is_near].any()
    assert any(mask.any() for mask in expected)
    expected, found = (some.regions(images, min_area=30) for some in (detector, exported))
    assert found["image"].tolist() == expected["image"].tolist()
    assert len(found) > 0
    for column in ("top", "left", "bottom", "right", "peak_row", "peak_column"):
        np.testing.assert_allclose(found[column], expected[column], atol=1)
    np.testing.assert_allclose(found["area"], expected["area"], rtol=0.02)
    np.testing.assert_allclose(found["peak"], expected["peak"], rtol=CLOSE)
    np.testing.assert_array_equal(found["p_value"], expected["p_value"])


def test_file_is_an_onnx_model_of_this_package(pair):
    import onnx

    model = onnx.load(pair[1])
    assert (model.producer_name, model.producer_version) == ("skpatchcore", skpatchcore.__version__)
