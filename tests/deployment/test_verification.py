"""Tests of verify: an equal file passes, a changed file fails, and the differences are stated per stage."""

from __future__ import annotations

import base64
import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import skpatchcore
from skpatchcore import GreedyCoresetSampler, ModelFileError, PatchCoreDetector, TorchFeatureExtractor
from skpatchcore.deployment.container import GOLDEN, MANIFEST, as_npz_text, read_container, with_entries
from skpatchcore.deployment.decisions import compared_decisions
from skpatchcore.deployment.golden import (
    STAGES,
    Reference,
    ScoreScale,
    StageDifference,
    golden_arrays,
    golden_results,
    relative_difference,
    sampling_step,
)

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")


def pictures(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = np.linspace(0, 9, 80)
    base = 120 + 40 * np.sin(x[None, :, None] + np.array([0, 1, 2]))
    return np.clip(base + rng.normal(0, 6, (n, 64, 80, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return a detector, and the path of its exported file."""
    extractor = TorchFeatureExtractor("resnet18", weights=None, image_size=64)
    detector = PatchCoreDetector(
        extractor, sampler=GreedyCoresetSampler(0.2), random_state=0, calibration="leave-one-out"
    )
    detector.fit(pictures(12))
    path = tmp_path_factory.mktemp("exported") / "parts.onnx"
    skpatchcore.export(detector, path, golden=[pictures(1, seed=1)[0]])
    return detector, path


def test_equal_file_passes_without_detector(exported):
    result = skpatchcore.verify(exported[1], runtimes=["onnxruntime"])
    assert result.is_passed
    (check,) = result.checks
    assert [stage.stage for stage in check.stages] == list(STAGES)
    assert check.decisions.n_images == 4
    assert max(stage.difference for stage in check.stages) < 1e-4
    assert "passed" in str(result)


def test_equal_file_passes_in_all_installed_runtimes(exported):
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    result = skpatchcore.verify(exported[1])
    assert result.is_passed, str(result)
    assert [check.runtime.split()[0] for check in result.checks] == ["onnxruntime", "openvino"]


def test_images_are_compared_with_detector(exported):
    detector, path = exported
    images = pictures(6, seed=2)
    images[:2, 20:40, 20:40] = 0
    result = skpatchcore.verify(
        path, runtimes=["onnxruntime"], detector=detector, images=images, y=[-1, -1, 1, 1, 1, 1]
    )
    golden, own = result.checks
    assert (golden.images, own.images) == ("golden images", "images")
    assert own.is_passed
    assert own.decisions.n_images == 6
    assert own.decisions.auroc == own.decisions.auroc_original == 1


def changed(path: Path, target: Path, name: str, factor: float) -> Path:
    """Write the file with one constant multiplied by a factor, and with a valid digest."""
    container = read_container(path)
    model = onnx.load_from_string(container.content)
    entries = {entry.key: entry.value for entry in model.metadata_props if entry.key in (MANIFEST, GOLDEN)}
    del model.metadata_props[:]
    tensor = next(t for t in model.graph.initializer if name in t.name and len(t.dims) == 4)
    array = onnx.numpy_helper.to_array(tensor) * np.float32(factor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    target.write_bytes(with_entries(model.SerializeToString(), entries))
    return target


def test_changed_network_is_off_from_the_features_on(exported, tmp_path):
    result = skpatchcore.verify(
        changed(exported[1], tmp_path / "other.onnx", "network/", 1.01), runtimes=["onnxruntime"]
    )
    assert not result.is_passed
    off = {stage.stage for stage in result.checks[0].stages if stage.is_off}
    assert "pixels" not in off
    assert {"features", "score"} <= off
    assert "OFF" in str(result)
    assert "FAILED" in str(result)


def test_other_detector_is_refused(exported):
    detector, path = exported
    other = skpatchcore.PatchCoreDetector(detector.extractor, random_state=1, calibration=0.5).fit(pictures(12, seed=3))
    with pytest.raises(ValueError, match="another detector"):
        skpatchcore.verify(path, detector=other, images=pictures(1))
    with pytest.raises(ValueError, match="both"):
        skpatchcore.verify(path, detector=detector)


def test_damaged_and_foreign_files_raise_one_clear_error(exported, tmp_path):
    content = exported[1].read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    newer = with_entries(b"", {MANIFEST: json.dumps({"format": 99, "skpatchcore": "9.9"}), GOLDEN: as_npz_text({})})
    plain = onnx.load_from_string(content)
    del plain.metadata_props[:]
    plain.producer_name = "other"
    cases = {
        "damaged": bytes(flipped),
        "truncated": content[:-1000],
        "update skpatchcore": newer,
        "did not write": plain.SerializeToString(),
        "not an ONNX file": b"PK\3\4 something else",
    }
    for reason, some in cases.items():
        path = tmp_path / "file.onnx"
        path.write_bytes(some)
        with pytest.raises(ModelFileError, match=reason):
            skpatchcore.verify(path)


def test_golden_arrays_can_be_read_without_this_package(exported):
    model = onnx.load(exported[1])
    entries = {entry.key: entry.value for entry in model.metadata_props}
    golden = np.load(BytesIO(base64.b64decode(entries[GOLDEN])), allow_pickle=False)
    assert golden["0/image"].tobytes().startswith(b"\x89PNG")
    n = int(np.prod(golden["0/features/shape"]))
    assert len(golden["0/features"]) == len(range(0, n, int(golden["0/features/step"])))
    assert golden["0/features/sha256"].shape == (32,)
    assert golden["0/grid"].tolist() == golden["0/features/shape"][:2].tolist()
    assert golden["0/mask"].size == -(-np.prod(golden["0/mask/shape"]) // 8)


def test_float16_is_judged_by_decisions_on_images(exported, tmp_path):
    detector, _ = exported
    images = pictures(8, seed=4)
    report = skpatchcore.export(
        detector, tmp_path / "half.onnx", precision="float16", test_images=images, max_flipped=1.0
    )
    assert report.decisions.n_images == 8
    assert "Test images" in str(report)
    result = skpatchcore.verify(tmp_path / "half.onnx", runtimes=["onnxruntime"], detector=detector, images=images)
    assert result.is_passed
    assert np.isinf([stage.tolerance for stage in result.checks[1].stages]).all()
    # The golden results are those of the file, so the tolerances are those of float32.
    golden = {stage.stage: stage for stage in result.checks[0].stages}
    assert golden["features"].tolerance == 1e-4
    assert golden["features"].difference < 1e-6
    assert max(stage.difference for stage in report.stages) > 1e-4


def test_too_many_flipped_decisions_are_refused(exported, tmp_path, monkeypatch):
    detector, _ = exported
    # A threshold in the middle of the differences: half of the decisions flip when the scores are rounded.
    images = pictures(8, seed=5)
    from skpatchcore.deployment import exporter

    monkeypatch.setattr(exporter, "_test_decisions", lambda *_: compared_decisions(np.ones(4), -np.ones(4), 1.0))
    with pytest.raises(skpatchcore.ExportError, match="4 of 4 decisions flipped"):
        skpatchcore.export(detector, tmp_path / "half.onnx", precision="float16", test_images=images)
    assert not (tmp_path / "half.onnx").exists()


def test_compared_decisions_counts_flips_and_near_ones():
    original = np.array([1.0, -1.0, 1e-7, -2.0])
    exported = np.array([-1.0, -1.0, -1e-7, np.nan])
    found = compared_decisions(original, exported, offset=-1.0)
    assert (found.n_images, found.n_flipped, found.n_near) == (4, 2, 1)
    assert found.largest_difference == np.inf
    assert np.isnan(found.auroc)
    with pytest.raises(ValueError, match="3 labels for 4 images"):
        compared_decisions(original, exported, offset=-1.0, y=[1, 1, -1])


@pytest.mark.parametrize(
    ("original", "exported", "label", "counts"),
    [
        (0.0, np.nan, -1, (1, 0)),  # the original is at the threshold, and the file has no score
        (0.0, -0.5, -1, (1, 0)),  # only the original is near the threshold
        (np.nan, 0.5, 1, (1, 0)),
        (np.nan, np.nan, -1, (0, 0)),
        (-0.5, np.nan, -1, (1, 0)),  # equal labels, but no score
        (np.inf, 1.0, 1, (1, 0)),
        (5e-6, -4e-6, -1, (0, 1)),
        (1.2e-5, -1e-6, -1, (1, 0)),
        (0.5, 0.5, -1, (1, 0)),  # the label contradicts the decision
    ],
)
def test_only_finite_decisions_near_the_threshold_are_near(original, exported, label, counts):
    found = compared_decisions(np.array([original]), np.array([exported]), -1.0, labels=np.array([label]))
    assert (found.n_flipped, found.n_near) == counts


@pytest.mark.parametrize("y", [[0, 1, 1, 0], [True, False, True, True], [1, 2, -1, 1]])
def test_labels_of_another_convention_are_refused(y):
    with pytest.raises(ValueError, match=r"y: .*\+1 for good and -1 for anomalous"):
        compared_decisions(np.ones(4), np.ones(4), -1.0, y)


def test_relative_difference_of_values_that_are_not_finite():
    assert relative_difference(np.array([1.0, np.nan]), np.array([1.0, np.nan])) == 0
    assert relative_difference(np.array([np.nan]), np.array([1.0])) == np.inf
    assert relative_difference(np.array([0.0, 2.0]), np.array([0.0, 4.0])) == 0.5
    assert relative_difference(np.array([1e-9]), np.array([0.0]), least=1.0) == 1e-9


@pytest.mark.parametrize("side", [64, 224, 256, 320])
def test_sampled_values_lie_in_all_rows_columns_and_channels(side):
    for shape in ((side, side, 3), (side, side), (side // 8, side // 8, 384), (side // 4, side // 8, 1000)):
        step = sampling_step(shape)
        seen = np.unravel_index(np.arange(0, np.prod(shape), step), shape)
        assert [len(np.unique(places)) for places in seen] == list(shape)
        assert np.prod(shape) / 2 <= len(seen[0]) * step
        assert len(seen[0]) <= 8192
    assert sampling_step(()) == sampling_step((1,)) == sampling_step((0, 4)) == 1


def results(**changes):
    """Return results of an image, as the detector computes them."""
    map_of_input = np.linspace(0, 2, 4000, dtype=np.float32).reshape(50, 80)
    found = {
        "pixels": np.ones((8, 8, 3), np.float32),
        "grid": np.array([2, 2]),
        "features": np.ones((2, 2, 5), np.float32),
        "patch_scores": np.ones((2, 2), np.float32),
        "anomaly_map": map_of_input,
        "mask": map_of_input > 1,
        "score": np.float32(-3),
        "decision": np.float32(1),
        "label": 1,
        "p_value": np.float32(0.75),
    }
    return {**found, **changes}


SCALE = ScoreScale(-4.0, np.array([-4.0, np.nan, -3.0, -2.0]))
IMAGE = np.zeros((8, 8, 3), np.uint8)


@pytest.mark.parametrize("is_stored", [False, True])
def test_references_find_each_changed_stage(is_stored):
    reference = Reference.of(IMAGE, results())
    if is_stored:
        (reference,) = golden_results(golden_arrays([IMAGE], [results()]), "a.onnx")
    assert set(reference.differences(results(), SCALE).values()) == {0.0}
    mask = results()["mask"].copy()
    mask[0, :40] ^= True
    cases = {
        "mask": (mask, 0.01),
        "grid": (np.array([2, 3]), 0.5),
        "score": (np.float32(-3.04), 0.01),
        "p_value": (np.float32(0.25), 0.25),
        "features": (np.ones((1, 2, 2, 5), np.float32), np.inf),
        "anomaly_map": (results()["anomaly_map"].T, np.inf),
    }
    for stage, (value, expected) in cases.items():
        found = reference.differences(results(**{stage: value}), SCALE)
        assert found[stage] == pytest.approx(expected, rel=1e-5)
        assert [name for name, difference in found.items() if difference] == [stage]


def test_p_value_may_be_that_of_any_score_within_the_tolerance():
    assert SCALE.distance_of_p_value(0.75, -3.0) == 0
    assert SCALE.distance_of_p_value(0.5, -3.0) == 0  # rounding moves the score below the calibration score
    assert SCALE.distance_of_p_value(1.0, -3.0) == 0.25
    assert SCALE.distance_of_p_value(0.25, -3.0) == 0.25
    assert SCALE.distance_of_p_value(0.75, -2.9) == 0
    assert SCALE.distance_of_p_value(0.5, -2.9) == 0.25
    assert SCALE.distance_of_p_value(0.25, np.nan) == 0
    assert SCALE.distance_of_p_value(0.5, np.nan) == 0.25
    assert SCALE.distance_of_p_value(np.nan, -3.0) == np.inf


def test_difference_that_is_not_finite_is_off_for_every_tolerance():
    assert StageDifference("score", np.inf, np.inf).is_off
    assert StageDifference("score", np.nan, np.inf).is_off
    assert not StageDifference("score", 9.0, np.inf).is_off


def image_bytes(kind: str, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> np.ndarray:
    content = BytesIO()
    Image.new(mode, size).save(content, kind)
    return np.frombuffer(content.getvalue(), np.uint8)


def test_golden_images_are_small_png_files_in_rgb_only(monkeypatch):
    arrays = golden_arrays([IMAGE], [results()])
    bad = [image_bytes("GIF", mode="P"), image_bytes("JPEG"), image_bytes("PNG", mode="L"), image_bytes("PNG")[:40]]
    bad += [np.frombuffer(b"%!PS-Adobe-3.0 EPSF-3.0", np.uint8), np.zeros((8, 8, 3), np.float64)]
    for image in bad:
        with pytest.raises(ModelFileError, match=r"golden image 0 of 'a\.onnx' cannot be used"):
            golden_results({**arrays, "0/image": image}, "a.onnx")
    for name in ("0/score", "0/pixels/step", "0/mask/shape", "0/label", "0/grid"):
        with pytest.raises(ModelFileError, match="golden image 0"):
            golden_results({key: value for key, value in arrays.items() if key != name}, "a.onnx")
    with pytest.raises(ModelFileError, match="score has the shape"):
        golden_results({**arrays, "0/score": np.zeros(2, np.float32)}, "a.onnx")
    with pytest.raises(ModelFileError, match="has no golden images"):
        golden_results({}, "a.onnx")
    monkeypatch.setattr("skpatchcore.deployment.golden.MAX_PIXELS", 63)
    with pytest.raises(ModelFileError, match="RGB with 8×8 pixels"):
        golden_results(arrays, "a.onnx")
    with pytest.raises(skpatchcore.ExportError, match="golden image 0 has 8×8 pixels"):
        golden_arrays([IMAGE], [results()])


def test_calibration_images_pass_although_rounding_moves_their_rank(exported, tmp_path):
    detector, _ = exported
    images = pictures(12, seed=6)
    detector = PatchCoreDetector(detector.extractor, random_state=0).fit(pictures(12)).recalibrate(images)
    path = tmp_path / "parts.onnx"
    skpatchcore.export(detector, path, golden=images)
    result = skpatchcore.verify(path, runtimes="onnxruntime", detector=detector, images=images)
    assert result.is_passed, str(result)
    outputs = skpatchcore.OnnxDetector(path)
    session = pytest.importorskip("onnxruntime").InferenceSession(path.read_bytes())
    (graph,) = session.run(["p_value"], {"images": images})
    np.testing.assert_array_equal(outputs.p_values(images).astype(np.float32), graph)
    found = [result.p_value for result in outputs.iter_results(images, with_maps=False)]
    np.testing.assert_array_equal(np.float32(found), graph)


class Broken:
    """A runtime that returns changed outputs, or raises an error for some images."""

    def __init__(self, runner, change):
        self._runner, self._change = runner, change

    def run(self, images, names):
        return self._change(images, dict(zip(names, self._runner.run(images, names), strict=True)))


def verified_with(monkeypatch, path, change, **parameters):
    """Return the check of the golden images, or the last check, with changed outputs of ONNX Runtime."""
    from skpatchcore.deployment import verification

    real = verification.open_runner
    monkeypatch.setattr(verification, "open_runner", lambda *given: Broken(real(*given), change))
    return skpatchcore.verify(path, runtimes="onnxruntime", **parameters).checks[-1]


def test_wrong_labels_masks_grids_and_shapes_are_found(exported, monkeypatch):
    cases = {
        "label": lambda _, found: found | {"label": -found["label"]},
        "mask": lambda _, found: found | {"mask": ~found["mask"]},
        "grid": lambda _, found: found | {"grid": found["grid"][::-1] + 1},
        "score": lambda _, found: found | {"score": found["score"][:1]},
        "anomaly_map": lambda _, found: found | {"anomaly_map": found["anomaly_map"][:, ::-1]},
    }
    for name, change in cases.items():
        with monkeypatch.context() as patch:
            check = verified_with(
                patch, exported[1], lambda images, found, change=change: list(change(images, found).values())
            )
        assert not check.is_passed
        if name == "label":
            assert check.decisions.n_flipped == 4
        elif name == "score":
            assert "for 2 images" in check.failures[0]
        else:
            assert [stage.stage for stage in check.stages if stage.is_off] == [name]


def test_error_of_a_runtime_is_one_line_and_other_images_are_compared(exported, monkeypatch):
    def change(images, found):
        if images.shape[1] == 64 and images.shape[2] == 80:
            raise RuntimeError("out of\nregisters")
        return list(found.values())

    check = verified_with(monkeypatch, exported[1], change)
    assert not check.is_passed
    assert check.decisions.n_images == 3
    assert check.failures == ("golden image 3: RuntimeError: out of registers",)
    assert "FAILED: 1\n    golden image 3" in str(check)


def test_runtime_that_cannot_load_the_file_fails_and_the_others_are_checked(exported, monkeypatch):
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    from skpatchcore.deployment import verification

    real = verification.open_runner

    def opened(content, runtime, *others):
        if runtime == "openvino":
            raise ModelFileError("the file cannot be loaded by openvino: reason")
        return real(content, runtime, *others)

    monkeypatch.setattr(verification, "open_runner", opened)
    result = skpatchcore.verify(exported[1], runtimes=["openvino", "onnxruntime"])
    assert [check.is_passed for check in result.checks] == [False, True]
    assert not result.is_passed
    assert "cannot be loaded by openvino" in str(result)


def test_image_with_nan_must_get_the_label_of_an_anomaly(exported, tmp_path, monkeypatch):
    path = tmp_path / "float.onnx"
    skpatchcore.export(exported[0], path, input_dtype="float32")
    assert skpatchcore.verify(path, runtimes="onnxruntime").is_passed

    def change(images, found):
        return list((found | {"label": np.ones_like(found["label"])} if np.isnan(images).any() else found).values())

    check = verified_with(monkeypatch, path, change)
    assert not check.is_passed
    assert check.failures == ("an image with NaN has the label +1, expected -1.",)


def test_unreadable_image_fails_and_the_others_are_compared(exported, tmp_path):
    detector, path = exported
    images = [*pictures(2, seed=7), str(tmp_path / "none.png"), pictures(1, seed=8)[0]]
    result = skpatchcore.verify(path, runtimes="onnxruntime", detector=detector, images=images, y=[1, -1, 1, -1])
    check = result.checks[1]
    assert not result.is_passed
    assert check.decisions.n_images == 3
    assert len(check.failures) == 1
    assert "image 2" in check.failures[0]
    assert "none.png" in check.failures[0]
    only = skpatchcore.verify(path, runtimes="onnxruntime", detector=detector, images=images[2:3]).checks[1]
    assert (only.is_passed, only.decisions.n_images, only.stages) == (False, 0, ())


def test_checks_that_compare_nothing_are_refused(exported):
    detector, path = exported
    for parameters, message in (
        ({"runtimes": []}, r"runtimes=\[\]"),
        ({"runtimes": "tensorrt"}, "runtimes='tensorrt'"),
        ({"runtimes": ["onnxruntime", "onnx"]}, "expected 'onnxruntime' or 'openvino'"),
        ({"detector": detector, "images": []}, "images: .*no images"),
        ({"detector": detector, "images": "folder"}, "images: .*single path"),
        ({"detector": detector, "images": pictures(1)[0]}, "images: .*array of shape"),
        ({"detector": detector, "images": pictures(2), "y": [0, 1]}, r"y: .*\+1 for good"),
        ({"y": [1]}, "y is given without images"),
    ):
        with pytest.raises(ValueError, match=message):
            skpatchcore.verify(path, **parameters)


def test_signed_file_with_missing_parts_is_refused(exported, tmp_path):
    container = read_container(exported[1])
    path = tmp_path / "other.onnx"
    for change in (
        {"tolerances": None},
        {"tolerances": {"pixels": 1e-4}},
        {"tolerances": dict.fromkeys(STAGES, np.inf)},
        {"calibration_scores": [None]},
        {"thresholds": {}},
        {"input": {}},
        {"precision": "int8", "max_flipped": None},
    ):
        entries = {MANIFEST: json.dumps(container.manifest | change), GOLDEN: container.golden_text}
        path.write_bytes(with_entries(b"\x08\x09", entries))
        with pytest.raises(ModelFileError, match=r"other\.onnx' was not written by skpatchcore\.export"):
            skpatchcore.verify(path)
    path.write_bytes(with_entries(b"\x08\x09", {MANIFEST: json.dumps(container.manifest), GOLDEN: as_npz_text({})}))
    with pytest.raises(ModelFileError, match="has no golden images"):
        skpatchcore.verify(path)
