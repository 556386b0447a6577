"""The command predict with an exported ONNX file: the same files as with a model file, without large libraries."""

from __future__ import annotations

import ast
import csv
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

import skpatchcore
from skpatchcore import OnnxDetector, PatchCoreDetector, TorchFeatureExtractor
from skpatchcore.cli.main import main
from skpatchcore.deployment.runtimes import open_runner
from skpatchcore.display import overlay_anomaly_map
from tests.deployment.graphs import write_exported

pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

LARGE = ("torch", "torchvision", "sklearn", "scipy", "skimage", "pandas", "matplotlib", "joblib")
# Start of a program that does not find some packages.
HIDDEN = """
import sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if is_hidden(name.split(".")[0]) else super().find_spec(name, path, target)

sys.meta_path = [Finder if finder is PathFinder else finder for finder in sys.meta_path]
"""
# Start of a program that finds only the standard library, skpatchcore, numpy, Pillow, ONNX Runtime, and the packages
# that `import onnxruntime` imports.
BARE = f"""
import sys
import numpy, PIL, onnxruntime
found = {{*sys.stdlib_module_names, "skpatchcore", *(name.split(".")[0] for name in sys.modules)}}
assert not found & {{"tqdm", *{LARGE!r}}}
is_hidden = lambda name: name not in found
{HIDDEN}
"""


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


def run_bare(code):
    """Run a program without the packages that an exported file does not need."""
    command = [sys.executable, "-c", BARE + code]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)


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


def test_predict_needs_no_other_package_also_for_an_image_that_cannot_be_read(folder):
    (folder / "new" / "broken.png").write_bytes(b"not an image")
    command = ["predict", str(folder / "parts.onnx"), str(folder / "new"), "-o", str(folder / "out")]
    done = run_bare(f"from skpatchcore.cli.main import main\nprint(main({command!r}))")
    assert done.stdout.splitlines() == [f"3 images scored, 1 of them anomalous: {folder / 'out' / 'scores.csv'}", "1"]
    problem, summary = done.stderr.splitlines()  # there is no progress bar without tqdm
    assert problem.startswith(f"skpatchcore: {folder / 'new' / 'broken.png'}: ")
    assert "1 of 4 images could not be scored" in summary
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


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return the path of an exported file with a real network."""
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    rng = np.random.default_rng(0)
    images = rng.integers(100, 160, (8, 32, 40, 3), dtype=np.uint8)
    extractor = TorchFeatureExtractor("resnet18", weights=None, image_size=32)
    detector = PatchCoreDetector(extractor, random_state=0, calibration="leave-one-out").fit(images)
    path = tmp_path_factory.mktemp("exported") / "parts.onnx"
    skpatchcore.export(detector, path)
    return path


def test_verify_and_methods_of_the_class_need_no_other_package(folder, exported):
    image = str(folder / "new" / "2.png")
    code = (
        "import skpatchcore\n"
        f"detector = skpatchcore.OnnxDetector({str(exported)!r})\n"
        f"X = [{image!r}]\n"
        "for name in ('score_samples', 'decision_function', 'predict', 'p_values', 'segment', 'predict_mask'):\n"
        "    getattr(detector, name)(X)\n"
        "detector.p_values(X, adjust='by')\n"
        "detector.predict([*X, 'no such file'], on_error='flag')\n"
        "print(len(list(detector.iter_results(X))))\n"
        "from skpatchcore.cli.main import main\n"
        f"print(main(['verify', {str(exported)!r}, '--runtime', 'onnxruntime', '--quiet']))\n"
        f"print(main(['predict', {str(exported)!r}, *X, '-o', {str(folder / 'out')!r}, '--quiet']))\n"
    )
    done = run_bare(code)
    assert done.stdout.split() == ["1", "0", "0"]
    assert [row["path"] for row in rows(folder)] == [image]
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
        "skpatchcore: --runtime onnxruntime needs the package onnxruntime, which the extra 'onnx'"
    )


def test_an_exported_file_is_recognised_by_its_content(folder):
    os.rename(folder / "parts.onnx", folder / "renamed.model")
    assert main(["predict", str(folder / "renamed.model"), str(folder / "new"), "-o", str(folder / "out")]) == 0
    assert [row["label"] for row in rows(folder)] == ["1", "1", "-1"]


@pytest.mark.parametrize("name", ["parts.onnx", "renamed.model"])
@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("capability MODEL new -o out", "which only 'predict' and 'verify' can use. Pass the .skops file of 'fit'."),
        ("export MODEL -o other.onnx", "which only 'predict' and 'verify' can use. Pass the .skops file of 'fit'."),
        (
            "verify MODEL --model MODEL --images new",
            "which only 'predict' and 'verify' can use. Pass the .skops file of 'fit'.",
        ),
        ("fit MODEL -o parts.skops", "which cannot be fitted. Pass a folder of good images."),
        (
            "evaluate MODEL -o out",
            "not a folder of images. 'evaluate' fits a detector itself, and takes no model file.",
        ),
    ],
)
def test_other_commands_refuse_an_exported_file_and_name_what_to_pass(
    folder, monkeypatch, capsys, name, command, message
):
    os.rename(folder / "parts.onnx", folder / name)
    monkeypatch.chdir(folder)
    assert main(command.replace("MODEL", name).split()) == 1
    assert capsys.readouterr().err == f"skpatchcore: {name!r} is an exported ONNX file, {message}\n"
    assert sorted(os.listdir(folder)) == sorted(["new", name])


def test_summary_of_one_image_has_the_singular(folder, capsys):
    arguments = ["predict", str(folder / "parts.onnx"), str(folder / "new" / "0.png"), "-o", str(folder / "out")]
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith("1 image scored, 0 of them anomalous: ")
    (folder / "new" / "0.png").write_bytes(b"not an image")
    assert main(arguments) == 1
    done = capsys.readouterr()
    assert done.out.startswith("0 images scored, 0 of them anomalous: ")
    assert "1 of 1 image could not be scored. scores.csv contains the reasons" in done.err


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_predict_passes_the_runtime_and_the_threads(folder, monkeypatch, runtime):
    pytest.importorskip(runtime, reason=f"the package {runtime} is not installed")
    opened = []

    def spy(content, *arguments):
        opened.append(arguments)
        return open_runner(content, *arguments)

    monkeypatch.setattr("skpatchcore.deployment.onnx_detector.open_runner", spy)
    assert predict(folder, "--runtime", runtime, "--threads", "1") == 0
    assert opened == [(runtime, 1, str(folder / "parts.onnx"))]
    assert [row["label"] for row in rows(folder)] == ["1", "1", "-1"]


def test_threads_below_1_are_one_line_in_the_words_of_the_command_line(folder, capsys):
    assert predict(folder, "--threads", "0") == 1
    assert capsys.readouterr().err == "skpatchcore: --threads 0: expected at least 1, or None.\n"


@pytest.mark.parametrize("option", [("--runtime", "openvino"), ("--threads", "2")])
def test_options_of_the_runtime_are_refused_with_a_model_file_of_fit(folder, capsys, option):
    with zipfile.ZipFile(folder / "parts.skops", "w"):
        pass
    assert main(["predict", str(folder / "parts.skops"), str(folder / "new"), "-o", str(folder / "out"), *option]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"skpatchcore: {option[0]}: only a file of 'export' is run by a runtime, and '")
    assert error.endswith(f"' is none. Leave out {option[0]}.\n")


@pytest.mark.parametrize("arguments", ["fit new -o parts.skops", "predict parts.skops new -o out"])
def test_missing_dependencies_are_one_line_with_what_to_install(folder, monkeypatch, arguments):
    (folder / "parts.skops").write_bytes(b"")
    code = (
        f"is_hidden = lambda name: name in ('torch', 'torchvision')\n{HIDDEN}\n"
        "from skpatchcore.cli.main import main\n"
        f"sys.exit(main({arguments.split()!r}))"
    )
    monkeypatch.chdir(folder)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr == (
        "skpatchcore: this command needs packages that are not installed: torch, torchvision. Run 'pip install .' in "
        "the folder with the source code of skpatchcore. Without these packages, 'predict' and 'verify' work with "
        "exported .onnx files.\n"
    )
