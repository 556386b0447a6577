"""Tests of export: the exported graph gives the results of the detector, and other detectors are refused."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch.nn.functional as F
from sklearn.exceptions import NotFittedError
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, QuantileTransformer

import skpatchcore
from skpatchcore import (
    GreedyCoresetSampler,
    ImageError,
    PaDiMDetector,
    PatchCoreDetector,
    SPADEDetector,
    TorchFeatureExtractor,
)
from skpatchcore.images.views import placed

pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

# Largest relative difference of a stage: the issue of parity allows 1e-4, rounding reaches about 1e-5.
CLOSE = 5e-5


def pictures(n: int, height: int = 72, width: int = 96, seed: int = 0) -> np.ndarray:
    """Return smooth grey-green images with a little noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / height
    base = 120 + 40 * np.sin(9 * x[..., None] + np.array([0, 1, 2])) + 20 * y[..., None]
    return np.clip(base + rng.normal(0, 6, (n, height, width, 3)), 0, 255).astype(np.uint8)


def extractor(**parameters) -> TorchFeatureExtractor:
    return TorchFeatureExtractor(**{"backbone": "resnet18", "weights": None, "image_size": 64, **parameters})


def fitted(kind=PatchCoreDetector, images=None, **parameters):
    """Return a detector that is fitted on a few pictures."""
    own = {"extractor": extractor(), "random_state": 0, "calibration": "leave-one-out"}
    if kind is PatchCoreDetector:
        own["sampler"] = GreedyCoresetSampler(0.2)
    return kind(**{**own, **parameters}).fit(pictures(12) if images is None else images)


def opened(path: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Return a function of images that returns the outputs of a file in ONNX Runtime by name."""
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {"images": images}), strict=True))


def run(path: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return the outputs of a file in ONNX Runtime by name."""
    return opened(path)(images)


def entries(path: Path) -> dict[str, str]:
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return session.get_modelmeta().custom_metadata_map


def close(found, expected, scale=0.0) -> bool:
    """Return whether arrays are equal, relative to the largest expected value or to `scale`."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    return np.nanmax(np.abs(found - expected)) <= CLOSE * max(np.nanmax(np.abs(expected)), scale)


CASES = {
    "defaults": lambda: fitted(),
    "no re-weighting": lambda: fitted(n_neighbors=1),
    "pooled channels": lambda: fitted(extractor=extractor(n_channels=100, crop_size=48)),
    "stride and patch size": lambda: fitted(extractor=extractor(stride=2, patch_size=5, image_size=(96, 80))),
    "stride and pooled channels": lambda: fitted(extractor=extractor(stride=3, n_channels=64, image_size=96)),
    "own size": lambda: fitted(extractor=extractor(image_size=None)),
    "efficientnet": lambda: fitted(extractor=extractor(backbone="efficientnet_lite0")),
    "no smoothing": lambda: fitted(smoothing=0),
    "wide smoothing": lambda: fitted(smoothing=40.0),
    "bank of two rows": lambda: fitted(sampler=GreedyCoresetSampler(2)),
    "bank of all rows": lambda: fitted(sampler=GreedyCoresetSampler(1.0)),
    "PaDiM": lambda: fitted(PaDiMDetector, extractor=extractor(image_size=(64, 80))),
}


@pytest.mark.parametrize("case", CASES)
def test_export_agrees_with_detector_for_sizes_and_batches(case, tmp_path):
    detector = CASES[case]()
    path = tmp_path / "parts.onnx"
    report = skpatchcore.export(detector, path, map_size="image")
    assert report.n_flipped == 0
    assert report.n_bytes == path.stat().st_size
    outputs_of = opened(path)
    tests = [pictures(7, seed=1), pictures(1, 150, 81, seed=2), pictures(12)[:2]]
    tests[0][0, 20:50, 20:60] = 0
    for images in tests:
        found = outputs_of(images)
        scores, maps = detector.score_and_segment(images)
        threshold = abs(detector.offset_)
        assert close(found["score"], scores, threshold)
        assert close(found["decision"], scores - detector.offset_, threshold)
        assert close(found["p_value"], detector.p_values(images))
        assert close(found["anomaly_map"], np.stack(maps), threshold)
        clear = np.abs(scores - detector.offset_) > 1e-5 * threshold
        assert np.array_equal(found["label"][clear], detector.predict(images)[clear])
        far = np.abs(np.nan_to_num(maps) - detector.pixel_offset_) > 1e-4 * threshold
        assert np.array_equal(found["mask"][far], np.stack(detector.predict_mask(images))[far])
        assert close(found["features"], detector.extractor_.transform(images))


def test_detector_that_has_grown_and_forgotten_is_exported(tmp_path):
    detector = fitted(images=pictures(12)).partial_fit(pictures(8, seed=1)).forget([0, 14])
    skpatchcore.export(detector, tmp_path / "parts.onnx")
    images = pictures(4, seed=2)
    found = run(tmp_path / "parts.onnx", images)
    scores = detector.score_samples(images)
    assert any(np.allclose(np.abs(np.ravel(value)), -scores, rtol=CLOSE) for value in found.values() if value.size == 4)
    exported = skpatchcore.OnnxDetector(tmp_path / "parts.onnx")
    assert exported.offset_ == pytest.approx(detector.offset_, rel=1e-6)


def test_export_with_region_agrees_with_detector(tmp_path):
    region = [(0.1, 0.2, 0.6, 0.5), [(0.7, 0.1), (0.95, 0.5), (0.7, 0.4)]]
    for kind in (PatchCoreDetector, PaDiMDetector):
        detector = fitted(kind, roi=region, extractor=extractor(image_size=(64, 80)))
        for map_size in ("image", "input"):
            path = tmp_path / f"{map_size}.onnx"
            skpatchcore.export(detector, path, image_size=(72, 96), map_size=map_size)
            images = pictures(3, seed=3)
            images[0, 30:40, 30:50] = 255
            images[1, :5] = 255  # outside the region
            found = run(path, images)
            scores, maps = detector.score_and_segment(images)
            assert close(found["score"], scores, abs(detector.offset_))
            if map_size == "image":
                assert close(found["anomaly_map"], maps, abs(detector.offset_))
            else:
                assert found["anomaly_map"].shape == (3, 64, 80)
                share = np.isnan(maps).mean()
                assert abs(np.isnan(found["anomaly_map"]).mean() - share) < 0.03
            assert not found["mask"][np.isnan(found["anomaly_map"])].any()
            assert np.isnan(found["patch_scores"]).any()


def test_region_in_batches_in_any_runtime(tmp_path):
    detector = fitted(roi=(0.1, 0.2, 0.6, 0.5), extractor=extractor(image_size=(64, 80)))
    skpatchcore.export(detector, tmp_path / "parts.onnx", image_size=(72, 96))
    images = pictures(4, seed=3)
    images[2, 30:40, 30:50] = 255
    for outputs_of in open_all(tmp_path / "parts.onnx").values():
        assert close(outputs_of(images)["score"], detector.score_samples(images), abs(detector.offset_))


def test_map_of_input_has_the_size_of_the_input(tmp_path):
    detector = fitted(extractor=extractor(crop_size=(48, 56)))
    skpatchcore.export(detector, tmp_path / "parts.onnx")
    found = run(tmp_path / "parts.onnx", pictures(2, 100, 130))
    assert found["anomaly_map"].shape == found["mask"].shape == (2, 48, 56)
    assert found["pixels"].shape == (2, 48, 56, 3)
    assert not np.isnan(found["anomaly_map"]).any()


def test_export_takes_float_images(tmp_path):
    detector = fitted()
    skpatchcore.export(detector, tmp_path / "parts.onnx", input_dtype="float32")
    images = pictures(2, seed=4) * np.float32(1 / 255) * 0.999
    found = run(tmp_path / "parts.onnx", images.astype(np.float32))
    assert close(found["score"], detector.score_samples(images.astype(np.float32)))


def test_float16_file_is_smaller_and_keeps_labels(tmp_path):
    detector = fitted()
    large = skpatchcore.export(detector, tmp_path / "large.onnx")
    small = skpatchcore.export(detector, tmp_path / "small.onnx", precision="float16")
    assert small.n_bytes < 0.6 * large.n_bytes
    assert small.n_flipped == 0
    images = pictures(5, seed=5)
    scores = run(tmp_path / "small.onnx", images)["score"]
    assert np.allclose(scores, detector.score_samples(images), rtol=0.02)


def test_padim_needs_one_size(tmp_path):
    detector = fitted(PaDiMDetector)
    with pytest.raises(skpatchcore.ExportError, match="one patch grid"):
        skpatchcore.export(detector, tmp_path / "parts.onnx")
    skpatchcore.export(detector, tmp_path / "parts.onnx", image_size=(72, 96))
    assert np.isfinite(run(tmp_path / "parts.onnx", pictures(1))["score"]).all()


def test_crop_larger_than_image_fails_in_runtime(tmp_path):
    detector = fitted(extractor=extractor(image_size=None, crop_size=64))
    skpatchcore.export(detector, tmp_path / "parts.onnx")
    with pytest.raises(Exception, match=r"(?i)reshape|dimension|shape"):
        run(tmp_path / "parts.onnx", pictures(1, 40, 40))


def test_manifest_describes_the_detector_and_names_no_folder(tmp_path):
    detector = fitted()
    skpatchcore.export(detector, tmp_path / "parts.onnx", golden=[pictures(1)[0]])
    found = entries(tmp_path / "parts.onnx")
    manifest = json.loads(found["skpatchcore"])
    assert manifest["detector"] == "PatchCoreDetector"
    assert manifest["backbone"]["name"] == "resnet18"
    assert manifest["backbone"]["digest"] == detector.extractor_.weights_digest_
    assert manifest["thresholds"]["offset"] == detector.offset_
    assert np.array_equal(manifest["calibration_scores"], detector.calibration_scores_)
    assert manifest["resize"] == {"image_size": 64, "crop_size": None, "rounded_to": 16}
    assert manifest["parameters"]["sampler__ratio"] == 0.2
    assert str(tmp_path) not in found["skpatchcore"]


def test_same_detector_gives_same_bytes(tmp_path):
    detector = fitted()
    for name in ("a.onnx", "b.onnx"):
        skpatchcore.export(detector, tmp_path / name)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_graph_uses_standard_operators_only(tmp_path):
    import onnx

    skpatchcore.export(fitted(), tmp_path / "parts.onnx")
    model = onnx.load(tmp_path / "parts.onnx")
    assert [(item.domain, item.version) for item in model.opset_import] == [("", 18)]
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert not {node.op_type for node in model.graph.node} & {"Loop", "If", "Scan"}


def one_network():
    from torchvision.models import resnet18

    return resnet18()


REFUSED = {
    "threshold": (lambda: fitted(calibration=None), {}),
    "a function": (lambda: fitted(extractor=extractor(backbone=one_network)), {}),
    "trees or graphs": (lambda: fitted(index=NearestNeighbors(algorithm="kd_tree")), {}),
    "bfloat16": (lambda: fitted(extractor=extractor(dtype="bfloat16")), {}),
    "precomputed": (
        lambda: PatchCoreDetector("precomputed", random_state=0).fit(np.random.default_rng(0).random((9, 4, 4, 3))),
        {},
    ),
    "not known to be linear": (lambda: fitted(calibration=0.3, transformer=QuantileTransformer(n_quantiles=10)), {}),
    "SPADEDetector": (lambda: fitted(SPADEDetector), {}),
    "roi: a function": (lambda: fitted(roi=lambda image: image[:, :, 0] > 0.1), {"image_size": (72, 96)}),
    "Pass image_size": (lambda: fitted(roi=(0.1, 0.1, 0.5, 0.5)), {}),
    "value_range": (lambda: fitted(extractor=extractor(value_range=(0, 400))), {}),
    "transformer": (lambda: fitted(extractor=extractor(backbone="swin_t", image_size=None)), {}),
    "2 steps": (lambda: make_pipeline(FunctionTransformer(), fitted()), {}),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_export_refuses_with_a_reason(reason, tmp_path):
    make, parameters = REFUSED[reason]
    with pytest.raises(skpatchcore.ExportError, match=reason):
        skpatchcore.export(make(), tmp_path / "parts.onnx", **parameters)
    assert not list(tmp_path.iterdir())


def test_export_refuses_rounding_caches(tmp_path):
    detector = fitted(extractor=extractor(memory=str(tmp_path / "cache"), cache_dtype="float16"))
    with pytest.raises(skpatchcore.ExportError, match="cache_dtype"):
        skpatchcore.export(detector, tmp_path / "parts.onnx")


def test_export_checks_parameters(tmp_path):
    detector = fitted()
    for parameters in (
        {"precision": "float64"},
        {"map_size": "large"},
        {"input_dtype": "uint16"},
        {"image_size": 64},
        {"image_size": (0, 64)},
        {"image_size": ("64", "64")},
        {"max_flipped": "1%"},
        {"max_flipped": 2},
        {"y_test": [1]},
        {"golden": "good.png"},
        {"golden": pictures(1)[0]},
        {"test_images": "folder"},
        {"test_images": []},
        {"good_images": [], "precision": "int8"},
        {"y_test": [0, 1], "test_images": pictures(2)},
        {"y_test": [1], "test_images": pictures(2)},
    ):
        with pytest.raises(ValueError, match=next(iter(parameters))):
            skpatchcore.export(detector, tmp_path / "parts.onnx", **parameters)
    with pytest.raises(NotFittedError):
        skpatchcore.export(PatchCoreDetector(), tmp_path / "parts.onnx")
    with pytest.raises(ImageError, match="image 1"):
        skpatchcore.export(detector, tmp_path / "parts.onnx", golden=[pictures(1)[0], str(tmp_path / "none.png")])
    with pytest.raises(FileNotFoundError, match=r"missing'$"):
        skpatchcore.export(detector, tmp_path / "missing" / "parts.onnx")
    assert not list(tmp_path.iterdir())


def test_manifest_holds_plain_numbers_and_null_for_nan(tmp_path):
    detector = fitted(contamination=np.float32(0.25), extractor=extractor(max_pixels=np.int64(10**7)))
    detector.min_area_, detector.promised_rate_, detector.pixel_contamination = np.nan, np.nan, np.inf
    detector.calibration_scores_[3] = np.nan
    skpatchcore.export(detector, tmp_path / "parts.onnx")

    def refuse(name):
        raise ValueError(name)

    manifest = json.loads(entries(tmp_path / "parts.onnx")["skpatchcore"], parse_constant=refuse)
    assert manifest["thresholds"]["contamination"] == 0.25
    assert manifest["thresholds"]["min_area"] is manifest["thresholds"]["promised_rate"] is None
    assert manifest["parameters"]["pixel_contamination"] is None
    assert manifest["input"]["max_pixels"] == 10**7
    assert manifest["calibration_scores"][3] is None


def test_golden_images_respect_max_pixels(tmp_path):
    from skpatchcore.deployment.container import read_container
    from skpatchcore.deployment.golden import golden_results

    detector = fitted(extractor=extractor(max_pixels=5000), images=pictures(12, 64, 64))
    skpatchcore.export(detector, tmp_path / "parts.onnx")
    references = golden_results(read_container(tmp_path / "parts.onnx").golden, "")
    assert [reference.image.shape[0] * reference.image.shape[1] <= 5000 for reference in references] == [True] * 3
    with pytest.raises(ValueError, match=r"image_size=\(100, 64\): max_pixels=5000"):
        skpatchcore.export(detector, tmp_path / "parts.onnx", image_size=(100, 64))


@pytest.mark.parametrize("n_images", [9, 12])  # the thresholds are 0, or nearly 0 by rounding
@pytest.mark.parametrize("kind", [PatchCoreDetector, PaDiMDetector])
def test_threshold_of_0_is_refused(tmp_path, kind, n_images):
    sampler = {"sampler": GreedyCoresetSampler(1.0)} if kind is PatchCoreDetector else {}
    detector = fitted(kind, images=np.repeat(pictures(1), n_images, axis=0), **sampler)
    with pytest.raises(skpatchcore.ExportError, match=r"the threshold of the scores is .*e[-+]0\d, .*identical"):
        skpatchcore.export(detector, tmp_path / "parts.onnx", image_size=(72, 96))


def test_network_with_too_few_convolutions_is_refused_for_int8(tmp_path):
    detector = fitted(extractor=extractor(layers=["relu"]), sampler=GreedyCoresetSampler(20))
    with pytest.raises(skpatchcore.ExportError, match=r"precision='int8' is not possible for resnet18.*relu"):
        skpatchcore.export(detector, tmp_path / "parts.onnx", precision="int8", good_images=pictures(2))


def test_results_that_are_not_finite_are_refused_for_all_precisions(tmp_path, monkeypatch):
    from skpatchcore.deployment import exporter

    real = exporter.results_of
    monkeypatch.setattr(exporter, "results_of", lambda *given: real(*given) | {"score": np.float32(np.nan)})
    for precision in ("float32", "float16"):
        with pytest.raises(skpatchcore.ExportError, match=r"score differs by inf"):
            skpatchcore.export(fitted(), tmp_path / "parts.onnx", precision=precision)
    assert not list(tmp_path.iterdir())


def test_detector_is_not_changed_by_export(tmp_path):
    detector = fitted(extractor=extractor(backbone="efficientnet_lite0"))
    images = pictures(2, seed=6)
    before = detector.score_samples(images)
    skpatchcore.export(detector, tmp_path / "parts.onnx")
    assert np.array_equal(detector.score_samples(images), before)


def test_pooling_weights_are_adaptive_average_pooling():
    import torch

    from skpatchcore.deployment._graph_features import pooling_weights

    for n_in, patch_size, n_channels in ((40, 3, 100), (12, 1, 12), (7, 3, 5), (8, 3, 1024)):
        weights, n_groups = pooling_weights(n_in, patch_size, n_channels)
        maps = torch.rand(2, n_in, 6, 7)
        found = F.conv2d(maps, torch.from_numpy(weights), padding=patch_size // 2, groups=n_groups)
        unfolded = F.unfold(maps, patch_size, padding=patch_size // 2).transpose(1, 2)
        expected = F.adaptive_avg_pool1d(unfolded, n_channels).transpose(1, 2).reshape(2, n_channels, 6, 7)
        assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("image_size", [1, 64, 256, (70, 33)])
@pytest.mark.parametrize("rounded_to", [1, 16])
def test_resized_size_is_that_of_placed(image_size, rounded_to):
    from skpatchcore.deployment._graph import Graph
    from skpatchcore.deployment._graph_pixels import _resized_size

    graph = Graph()
    size = graph.input("size", "int64", (2,))
    resized = _resized_size(graph, (size.between(0, 1, 0), size.between(1, 2, 0)), image_size, rounded_to)
    graph.output(graph.concat(resized, 0), "resized", "int64", (2,))
    session = onnxruntime.InferenceSession(graph.model("").SerializeToString(), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    sizes = [(1, 1), (64, 72), (72, 64), (100, 104), *rng.integers(1, 5000, (200, 2)).tolist()]
    for own in sizes:
        (found,) = session.run(None, {"size": np.array(own)})
        assert tuple(found) == placed(tuple(own), image_size, None, 0, rounded_to=rounded_to)[0]


def test_int8_uses_training_images_and_states_flips(tmp_path):
    from PIL import Image

    paths = []
    for i, picture in enumerate(pictures(12)):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(picture).save(paths[-1])
    detector = fitted(images=[str(path) for path in paths])
    float32 = skpatchcore.export(detector, tmp_path / "float32.onnx")
    report = skpatchcore.export(detector, tmp_path / "int8.onnx", precision="int8", max_flipped=1.0)
    assert report.decisions.n_images == 12
    assert report.n_bytes < 0.5 * float32.n_bytes
    assert np.allclose(
        run(tmp_path / "int8.onnx", pictures(3, seed=7))["score"], detector.score_samples(pictures(3, seed=7)), rtol=0.1
    )
    paths[3].unlink()
    with pytest.raises(skpatchcore.ExportError, match=r"3\.png' does not exist.*good_images"):
        skpatchcore.export(detector, tmp_path / "int8.onnx", precision="int8")
    y_test = [1] * 3 + [-1] * 3
    dark = pictures(3, seed=8) // 3
    report = skpatchcore.export(
        detector,
        tmp_path / "int8.onnx",
        precision="int8",
        good_images=pictures(4),
        test_images=[*pictures(3, seed=9), *dark],
        y_test=y_test,
        max_flipped=1.0,
    )
    assert report.decisions.auroc_original == report.decisions.auroc == 1
    assert "AUROC" in str(report)


def open_all(path: Path) -> dict[str, Callable[[np.ndarray], dict[str, np.ndarray]]]:
    """Return, for each installed runtime, a function of images that returns all outputs of a file by name."""
    from skpatchcore.deployment.outputs import OUTPUTS
    from skpatchcore.deployment.runtimes import RUNTIMES, open_runner

    names, found = list(OUTPUTS), {}
    for runtime in RUNTIMES:
        if importlib.util.find_spec(runtime) is not None:
            runner = open_runner(path.read_bytes(), runtime, 1, str(path))
            found[runtime] = lambda images, runner=runner: dict(zip(names, runner.run(images, names), strict=True))
    return found


def test_pixels_that_are_not_inspected_are_never_anomalous_in_any_runtime(tmp_path):
    detector = fitted(extractor=extractor(crop_size=40))
    skpatchcore.export(detector, tmp_path / "parts.onnx", map_size="image")
    images = pictures(1, seed=3)
    images[0, 20:50, 20:60] = 0
    for outputs_of in open_all(tmp_path / "parts.onnx").values():
        found = outputs_of(images)
        is_unseen = np.isnan(found["anomaly_map"])
        assert is_unseen.any()
        assert not found["mask"][is_unseen].any()
        assert found["mask"].any()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e38, 1.5, -0.5])
def test_images_with_invalid_values_are_anomalous_in_any_runtime(value, float_file):
    detector, runtimes = float_file
    images = (pictures(2) / 255).astype(np.float32)
    images[1, 5, 5] = value
    for outputs_of in runtimes.values():
        found = outputs_of(images)
        assert close(found["score"][:1], detector.score_samples(images[:1]))
        assert np.isnan(found["score"][1])
        assert np.isnan(found["decision"][1])
        assert found["label"][1] == -1
        assert found["p_value"][1] == np.float32(1 / 13)
        assert found["mask"][1].all()
        assert np.isnan(found["anomaly_map"][1]).all()
        assert np.isnan(found["patch_scores"][1]).all()


@pytest.fixture(scope="module")
def float_file(tmp_path_factory):
    """Return a detector, and its exported file in all runtimes, which takes float images."""
    detector = fitted()
    path = tmp_path_factory.mktemp("float") / "parts.onnx"
    skpatchcore.export(detector, path, input_dtype="float32")
    return detector, open_all(path)


@pytest.mark.parametrize("stride", [2, 3])
def test_stride_gives_the_same_maps_in_any_runtime(stride, tmp_path):
    detector = fitted(extractor=extractor(stride=stride, image_size=96))
    skpatchcore.export(detector, tmp_path / "parts.onnx", map_size="image")
    for outputs_of in open_all(tmp_path / "parts.onnx").values():
        for images in (pictures(2, seed=4), pictures(1, 130, 100, seed=5)):
            found = outputs_of(images)
            assert close(found["anomaly_map"], np.stack(detector.segment(images)), abs(detector.offset_))


def test_rows_of_the_bank_that_rounding_cannot_separate(tmp_path):
    rng = np.random.default_rng(0)
    # Dark and bright images that differ by single levels: clusters of near rows, far from the mean of the bank.
    levels = np.repeat([20, 230], 8)[:, None, None, None]
    images = (levels + rng.integers(-1, 2, (16, 64, 64, 3))).astype(np.uint8)
    near = (levels[::4] + rng.integers(-1, 2, (4, 64, 64, 3))).astype(np.uint8)
    detector = fitted(
        images=images, extractor=extractor(layers=("layer1", "layer2")), sampler=GreedyCoresetSampler(1.0)
    )
    skpatchcore.export(detector, tmp_path / "parts.onnx")
    found = run(tmp_path / "parts.onnx", near)
    assert close(found["score"], detector.score_samples(near), abs(detector.offset_))


def test_number_of_candidates_grows_with_near_rows():
    from skpatchcore import ExactIndex
    from skpatchcore.deployment._graph_scores import n_candidates_of

    rng = np.random.default_rng(0)
    bank = rng.normal(size=(500, 8)).astype(np.float32)
    assert n_candidates_of(bank, ExactIndex(device="cpu").fit(bank)) == 4
    bank[:10] = bank[0] + rng.normal(0, 1e-5, (10, 8)).astype(np.float32)
    assert 10 <= n_candidates_of(bank, ExactIndex(device="cpu").fit(bank)) <= 32
    bank[:100] = bank[0] + rng.normal(0, 1e-5, (100, 8)).astype(np.float32)
    assert n_candidates_of(bank, ExactIndex(device="cpu").fit(bank)) is None


def test_file_contains_no_path_of_the_machine(tmp_path):
    import torch

    skpatchcore.export(fitted(), tmp_path / "parts.onnx")
    content = (tmp_path / "parts.onnx").read_bytes()
    for text in (b"site-packages", b".py", str(Path(torch.__file__).parent).encode(), str(tmp_path).encode()):
        assert text not in content


def test_export_does_not_depend_on_modes_of_torch(tmp_path):
    import torch

    detector = fitted(extractor=extractor(layers=("layer1", "layer3")))
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            skpatchcore.export(detector, tmp_path / "parts.onnx")
    finally:
        torch.set_default_dtype(torch.float32)
    assert close(run(tmp_path / "parts.onnx", pictures(2))["score"], detector.score_samples(pictures(2)))


def test_exports_in_several_threads(tmp_path):
    detectors = [fitted(extractor=extractor(layers=(f"layer{i}", "layer3"))) for i in (1, 2)]
    with ThreadPoolExecutor(2) as pool:
        reports = list(
            pool.map(lambda i: skpatchcore.export(detectors[i], tmp_path / f"{i}.onnx"), range(len(detectors)))
        )
    assert [report.n_flipped for report in reports] == [0, 0]
