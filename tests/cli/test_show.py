"""The command show: what a model file contains, as text and as JSON."""

from __future__ import annotations

import json

import joblib
import numpy as np
import pytest
from PIL import Image

from skpatchcore import PaDiMDetector, PatchCoreDetector, TorchFeatureExtractor, export, save
from skpatchcore.cli.main import main
from skpatchcore.deployment.files import manifest_of_file
from skpatchcore.reports.model_summary import summary_of, text_of
from tests import factories


@pytest.fixture(scope="module")
def fitted(parts):
    train, _, _ = parts
    extractor = TorchFeatureExtractor("resnet18", weights=None, image_size=(64, 64))
    return PatchCoreDetector(extractor, random_state=0).fit(train)


@pytest.fixture
def model(fitted, tmp_path):
    save(fitted, tmp_path / "parts.skops", bank_dtype="float16")
    return tmp_path / "parts.skops"


def test_show_prints_network_bank_thresholds_and_calibration(fitted, model, capsys):
    assert main(["show", str(model)]) == 0
    text = capsys.readouterr().out
    assert "resnet18 (layers layer2 + layer3, image_size 64×64" in text
    assert fitted.extractor_.weights_digest_ in text
    assert f"{len(fitted.memory_bank_):,} rows of 384 columns" in text
    assert f"score below {fitted.offset_:.6g}" in text
    assert f"above {fitted.pixel_offset_:.6g}" in text
    assert fitted.calibration_plan_ in text
    assert "Bank in file  float16" in text
    assert "All pixels of the training images are inspected" in text


def test_json_holds_the_values_of_the_detector(fitted, model, capsys):
    assert main(["show", str(model), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["thresholds"]["image"] == fitted.offset_
    assert found["memory bank"]["rows"] == len(fitted.memory_bank_)
    assert found["memory bank"]["covering radius"] == fitted.sampler_.covering_radius_
    assert found["calibration"]["scores"] == len(fitted.calibration_scores_)
    assert found["model"]["written with"] == manifest_of_file(model)["versions"]
    assert found["training images"] == {"number": len(fitted.embeddings_), "paths": None}


def test_covering_radius_is_that_of_the_sampler_after_forget():
    X = np.random.default_rng(0).random((40, 4, 4, 8), np.float32)
    detector = PatchCoreDetector("precomputed", random_state=0, calibration=None).fit(X)
    detector.forget(detector.bank_image_indices_[-1])
    sampler = detector.sampler_
    assert sampler.covering_radius_ != sampler.selection_distances_[-1]
    assert summary_of(detector)["memory bank"]["covering radius"] == sampler.covering_radius_
    del sampler.covering_radius_
    assert summary_of(detector)["memory bank"]["covering radius"] == sampler.selection_distances_[-1]


@pytest.mark.parametrize("kind", ["pickle", "padim", "without calibration", "precomputed"])
def test_other_models_are_shown_too(kind, fitted, parts, tmp_path, capsys):
    path = tmp_path / ("m.joblib" if kind == "pickle" else "m.skops")
    if kind == "pickle":
        joblib.dump(fitted, path)
    elif kind == "padim":
        extractor = TorchFeatureExtractor("resnet18", weights=None, image_size=(64, 64))
        save(PaDiMDetector(extractor, n_channels=20, random_state=0).fit(parts[0]), path)
    elif kind == "without calibration":
        save(factories.detector(calibration=None).fit(parts[0]), path)
    else:
        features = np.random.default_rng(0).random((8, 3, 3, 4))
        detector = PatchCoreDetector("precomputed", random_state=0).fit(features)
        save(detector, path)
        assert "precomputed patch features" in text_of(summary_of(detector), path)
        return
    assert main(["show", str(path)]) == 0
    text = capsys.readouterr().out
    assert ("no threshold" in text) == (kind == "without calibration")


def test_exported_file_is_shown_without_a_runtime(fitted, tmp_path, capsys):
    pytest.importorskip("onnx")
    export(fitted, tmp_path / "parts.onnx", image_size=(64, 64))
    assert main(["show", str(tmp_path / "parts.onnx")]) == 0
    text = capsys.readouterr().out
    assert "exported PatchCoreDetector" in text
    assert f"{fitted.offset_:.6g}" in text
    assert main(["show", str(tmp_path / "parts.onnx"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["detector"] == "PatchCoreDetector"
    assert main(["show", str(tmp_path / "parts.onnx"), "--training", "3"]) == 1


@pytest.mark.parametrize("content", [None, b"no model"])
def test_missing_or_damaged_file_is_an_error(content, tmp_path, capsys):
    path = tmp_path / "parts.skops"
    if content is not None:
        path.write_bytes(content)
    assert main(["show", str(path)]) == 1
    assert "parts.skops" in capsys.readouterr().err


def test_suspicious_training_images_are_printed(parts, tmp_path, capsys):
    train, _, bad = parts
    paths = []
    for i, image in enumerate([*train, bad[0]]):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray((image * 255).astype(np.uint8)).save(paths[-1])
    extractor = TorchFeatureExtractor("resnet18", weights=None, image_size=(64, 64))
    detector = PatchCoreDetector(extractor, random_state=0).fit(paths)
    save(detector, tmp_path / "m.skops")
    assert main(["show", str(tmp_path / "m.skops"), "--training", "2"]) == 0
    text = capsys.readouterr().out.split("Most suspicious training images:")[1]
    assert text.index(paths[-1]) < text.index("p-value")  # the defective image is the first
    assert text.count("score") == 2
    assert "most similar patch of another image" in text
    assert main(["show", str(tmp_path / "m.skops"), "--training", "2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["training report"]["model"]
    assert next(row["image"] for row in rows) == len(paths) - 1
    assert main(["show", str(tmp_path / "m.skops"), "--training", "0"]) == 1
