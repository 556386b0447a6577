"""The command predict with an exported ONNX file: the same files as with a model file, without large libraries."""

from __future__ import annotations

import ast
import csv
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from skpatchcore import OnnxDetector
from skpatchcore.cli.main import main
from skpatchcore.display import overlay_anomaly_map
from tests.deployment.graphs import write_exported

pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

LARGE = ("torch", "torchvision", "sklearn", "scipy", "skimage", "pandas", "matplotlib", "joblib")
# Packages that the command does not need either, unless an image has a format that requires them.
OTHERS = ("imagecodecs", "onnx", "psutil", "pynndescent", "skops", "threadpoolctl", "tifffile")


@pytest.fixture
def folder(tmp_path):
    write_exported(tmp_path / "parts.onnx")
    (tmp_path / "new").mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        image = rng.integers(120, 256, (48, 64 + i, 3), dtype=np.uint8)
        image[16:32, 24:48] *= i != 2
        Image.fromarray(image).save(tmp_path / "new" / f"{i}.png")
    return tmp_path


def predict(folder, *options):
    return main(["predict", str(folder / "parts.onnx"), str(folder / "new"), "-o", str(folder / "out"), *options])


def rows(folder):
    with (folder / "out" / "scores.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_predict_writes_the_scores_and_heat_maps_of_the_python_methods(folder, capsys):
    assert predict(folder) == 0
    detector, table = OnnxDetector(folder / "parts.onnx"), rows(folder)
    assert list(table[0]) == ["path", "score", "decision", "label", "p_value", "map", "problem"]
    paths = [row["path"] for row in table]
    np.testing.assert_array_equal([float(row["score"]) for row in table], detector.score_samples(paths))
    np.testing.assert_array_equal([float(row["decision"]) for row in table], detector.decision_function(paths))
    np.testing.assert_array_equal([int(row["label"]) for row in table], detector.predict(paths))
    np.testing.assert_array_equal([float(row["p_value"]) for row in table], detector.p_values(paths))
    assert [row["label"] for row in table] == ["1", "1", "-1"]
    assert "3 images scored, 1 of them anomalous" in capsys.readouterr().out
    for row, anomaly_map in zip(table, detector.segment(paths), strict=True):
        with Image.open(row["path"]) as image, Image.open(folder / "out" / row["map"]) as picture:
            expected = overlay_anomaly_map(np.asarray(image) / 255, anomaly_map, detector.pixel_offset_)
            assert np.abs(np.asarray(picture).astype(int) - expected).max() <= 1


def test_predict_needs_no_large_library_also_for_an_image_that_cannot_be_read(folder):
    (folder / "new" / "broken.png").write_bytes(b"not an image")
    command = ["predict", str(folder / "parts.onnx"), str(folder / "new"), "-o", str(folder / "out")]
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({LARGE + OTHERS!r}))\n"  # an import of these packages raises ImportError
        "from skpatchcore.cli.main import main\n"
        f"print(main({command!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.splitlines() == [f"3 images scored, 1 of them anomalous: {folder / 'out' / 'scores.csv'}", "1"]
    assert "1 of 4 images could not be scored" in done.stderr
    assert [row["label"] for row in rows(folder)] == ["1", "1", "-1", "-1"]
    assert len(list((folder / "out").glob("*.png"))) == 3


def test_predict_loads_no_large_library_that_is_installed(folder):
    command = ["predict", str(folder / "parts.onnx"), str(folder / "new"), "-o", str(folder / "out"), "--quiet"]
    code = (
        "import sys\n"
        "from skpatchcore.cli.main import main\n"
        f"assert main({command!r}) == 0\n"
        f"print([name for name in {LARGE!r} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True).stdout
    assert ast.literal_eval(found) == []


def test_methods_of_the_class_need_no_large_library(folder):
    image = str(folder / "new" / "2.png")
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({LARGE + OTHERS!r}))\n"
        "import skpatchcore\n"
        f"detector = skpatchcore.OnnxDetector({str(folder / 'parts.onnx')!r})\n"
        f"X = [{image!r}]\n"
        "for name in ('score_samples', 'decision_function', 'predict', 'p_values', 'segment', 'predict_mask'):\n"
        "    getattr(detector, name)(X)\n"
        "detector.p_values(X, adjust='by')\n"
        "detector.predict([*X, 'no such file'], on_error='flag')\n"
        "print(len(list(detector.iter_results(X))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.strip() == "1"
    assert "ImageWarning" in done.stderr


def test_help_loads_no_large_library():
    code = (
        "import sys\n"
        "from skpatchcore.cli.main import main\n"
        "try:\n"
        "    main(['predict', '--help'])\n"
        "except SystemExit:\n"
        f"    print([name for name in {LARGE!r} if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True).stdout
    assert found.splitlines()[-1] == "[]"


def test_report_of_an_onnx_file_is_refused_before_the_work(folder, capsys):
    assert predict(folder, "--report") == 1
    assert "--report: the page shows the nearest good patches, which an ONNX file" in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_fail_on_anomalies(folder, capsys):
    assert predict(folder, "--fail-on-anomalies") == 3
    os.remove(folder / "new" / "2.png")
    assert predict(folder, "--fail-on-anomalies") == 0
    write_exported(folder / "parts.onnx", thresholds__offset=None)
    assert predict(folder, "--fail-on-anomalies") == 1
    assert "has no threshold" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no model file"),
        (b"PK", "is not an ONNX file"),
        (b"\x08\x09\x3a\x05abc", "is truncated or damaged"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(folder, capsys, content, message):
    os.remove(folder / "parts.onnx")
    if content is not None:
        (folder / "parts.onnx").write_bytes(content)
    assert predict(folder) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_a_missing_runtime_is_one_line_that_names_the_extra(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert predict(folder) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(
        "skpatchcore: runtime='onnxruntime' needs the package onnxruntime, which the extra 'onnx'"
    )
