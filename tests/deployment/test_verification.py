"""Tests of verify: an equal file passes, a changed file fails, and the differences are stated per stage."""

from __future__ import annotations

import base64
import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

import skpatchcore
from skpatchcore import GreedyCoresetSampler, ModelFileError, PatchCoreDetector, TorchFeatureExtractor
from skpatchcore.deployment.container import GOLDEN, MANIFEST, as_npz_text, read_container, with_entries
from skpatchcore.deployment.decisions import compared_decisions
from skpatchcore.deployment.golden import STAGES, relative_difference

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
    assert len(golden["0/features"]) == len(range(0, n, max(1, n // 4096)))


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
    assert result.checks[0].stages[1].tolerance > 1e-4


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
    assert (found.n_images, found.n_flipped, found.n_near) == (4, 1, 1)
    assert np.isnan(found.auroc)
    with pytest.raises(ValueError, match="3 labels for 4 images"):
        compared_decisions(original, exported, offset=-1.0, y=[1, 1, -1])


def test_relative_difference_of_values_that_are_not_finite():
    assert relative_difference(np.array([1.0, np.nan]), np.array([1.0, np.nan])) == 0
    assert relative_difference(np.array([np.nan]), np.array([1.0])) == np.inf
    assert relative_difference(np.array([0.0, 2.0]), np.array([0.0, 4.0])) == 0.5
    assert relative_difference(np.array([1e-9]), np.array([0.0]), least=1.0) == 1e-9
