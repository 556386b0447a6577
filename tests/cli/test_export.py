"""The commands export and verify."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

import skpatchcore
from skpatchcore import GreedyCoresetSampler, PatchCoreDetector, TorchFeatureExtractor
from skpatchcore.cli.main import main
from skpatchcore.deployment.container import read_container, with_entries

pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")


def save_pictures(folder, n, brightness=120, seed=0):
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for i in range(n):
        picture = rng.normal(brightness, 6, (48, 64, 3)) + 40 * np.sin(np.linspace(0, 9, 64))[None, :, None]
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a model file, and folders of good and defective images."""
    folder = tmp_path_factory.mktemp("cli")
    save_pictures(folder / "good", 12)
    save_pictures(folder / "bad", 3, brightness=40)
    extractor = TorchFeatureExtractor("resnet18", weights=None, image_size=48)
    detector = PatchCoreDetector(
        extractor, sampler=GreedyCoresetSampler(0.3), random_state=0, calibration="leave-one-out"
    )
    detector.fit([str(path) for path in sorted((folder / "good").iterdir())])
    skpatchcore.save(detector, folder / "parts.skops")
    return folder


@pytest.fixture(scope="module")
def exported(folder):
    assert main(["export", str(folder / "parts.skops"), "-o", str(folder / "parts.onnx"), "--quiet"]) == 0
    return folder / "parts.onnx"


def test_export_writes_a_file_and_states_its_size(folder, capsys):
    command = ["export", str(folder / "parts.skops"), "-o", str(folder / "half.onnx"), "--precision", "float16"]
    command += ["--good", str(folder / "good"), "--defective", str(folder / "bad"), "--max-flipped", "0.5"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "half.onnx" in out
    assert "of 15 decisions flipped" in out
    assert "AUROC" in out
    assert read_container(folder / "half.onnx").manifest["precision"] == "float16"


def test_verify_prints_a_table_and_compares_with_the_model(folder, exported, capsys):
    command = ["verify", str(exported), "--runtime", "onnxruntime", "--model", str(folder / "parts.skops")]
    assert main([*command, "--images", str(folder / "good"), str(folder / "bad" / "0.png")]) == 0
    out = capsys.readouterr().out
    assert "patch_scores" in out
    assert "13 images" in out
    assert "0 of 13 decisions flipped" in out
    assert "passed" in out
    assert main(["verify", str(exported), "--runtime", "onnxruntime", "--quiet"]) == 0
    assert capsys.readouterr().out == ""


def test_verify_exits_with_1_if_a_stage_is_off(exported, tmp_path, capsys):
    import onnx

    model = onnx.load(exported)
    entries = {entry.key: entry.value for entry in model.metadata_props if not entry.key.endswith("sha256")}
    del model.metadata_props[:]
    for tensor in model.graph.initializer:
        if tensor.name.startswith("network/") and len(tensor.dims) == 4:
            array = onnx.numpy_helper.to_array(tensor) * np.float32(1.01)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    path = tmp_path / "other.onnx"
    path.write_bytes(with_entries(model.SerializeToString(), entries))
    assert main(["verify", str(path), "--runtime", "onnxruntime", "--quiet"]) == 1
    out = capsys.readouterr().out
    assert "OFF" in out
    assert "FAILED" in out


def test_export_never_overwrites_the_model(folder, capsys):
    path = folder / "parts.skops"
    before = path.read_bytes()
    for name in ("parts.skops", f"../{folder.name}/parts.skops"):
        assert main(["export", str(path), "-o", str(folder / name)]) == 1
        assert "is the file of the model" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_verify_reports_unreadable_images_and_compares_the_others(folder, exported, capsys):
    (folder / "bad" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    command = ["verify", str(exported), "--runtime", "onnxruntime", "--model", str(folder / "parts.skops")]
    try:
        assert main([*command, "--images", str(folder / "bad")]) == 1
    finally:
        (folder / "bad" / "broken.png").unlink()
    out = capsys.readouterr().out
    assert "3 images" in out
    assert "FAILED: 1" in out
    assert "broken.png" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "{parts.onnx}", "--images", "{good}"], "--images and --model belong together"),
        (["verify", "{parts.skops}"], "is not an ONNX file"),
        (["export", "{parts.skops}", "-o", "{x.onnx}", "--image-size", "64"], "HEIGHTxWIDTH"),
        (["export", "{parts.skops}", "-o", "{x.onnx}", "--golden", "{none}"], "there is no file or folder"),
        (["export", "{parts.skops}", "-o", "{x.onnx}", "--max-flipped", "3"], "--max-flipped 3"),
    ],
)
def test_errors_are_one_line_with_exit_code_1(folder, exported, capsys, arguments, message):
    given = [str(folder / text[1:-1]) if text[0] == "{" else text for text in arguments]
    assert main(given) == 1
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (folder / "x.onnx").exists()
