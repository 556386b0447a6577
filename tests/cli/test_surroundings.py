"""The command line in difficult environments: names, consoles, folders, interruptions, abbreviations."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import warnings
from pathlib import Path

import joblib
import numpy as np
import pytest
import sklearn
import tifffile
from PIL import Image
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.pipeline import make_pipeline

from skpatchcore import PatchCoreDetector, load, save
from skpatchcore._utils import sklearn as versions
from skpatchcore.cli import fit, predict
from skpatchcore.cli.advice import in_options
from skpatchcore.cli.main import main
from skpatchcore.images.errors import ImageError
from skpatchcore.images.reading import load_image
from tests import factories
from tests.reports.pages import cards_of

# The models of this module crop, and commands warn of a crop even with --quiet.
pytestmark = pytest.mark.filterwarnings("default:.*not inspected")


@pytest.fixture(scope="module")
def model(parts, tmp_path_factory):
    """Model file of an extractor with a crop: 32 × 32 of 48 × 64 pixels."""
    path = tmp_path_factory.mktemp("model") / "m.skops"
    detector = PatchCoreDetector(factories.extractor(image_size=48, crop_size=32), random_state=0)
    save(detector.fit(parts[0]), path)
    return str(path)


@pytest.fixture
def images(tmp_path, parts):
    folder = tmp_path / "new"
    folder.mkdir()
    for i, image in enumerate([*parts[1], *parts[2]]):
        Image.fromarray((image * 255).astype(np.uint8)).save(folder / f"{i}.png")
    return folder


def rows(folder):
    with (folder / "scores.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def in_a_process(words, **more):
    return subprocess.run(
        [sys.executable, "-m", "skpatchcore", *words], capture_output=True, timeout=120, check=False, **more
    )


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names are Unicode there")
def test_predict_scores_images_with_names_that_the_console_cannot_show(model, images, tmp_path):
    os.rename(images / "0.png", os.fsencode(images) + b"/ros\xe9.png")
    os.rename(images / "1.png", images / "部品.png")
    with open(os.fsencode(images) + b"/broken\xff.png", "wb") as file:
        file.write(b"no image")
    environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii:strict", "PYTHONUTF8": "0",
                   "PYTHONCOERCECLOCALE": "0"}  # fmt: skip
    out = tmp_path / "out"
    done = in_a_process(["predict", model, images, "-o", out, "--report"], env=environment)
    assert done.returncode == 1, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"broken\\xff.png: cannot be read" in done.stderr
    table = rows(out)
    assert len(table) == 6
    assert all((out / row["map"]).is_file() for row in table if row["map"])
    assert sum(row["score"] == "nan" for row in table) == 1
    assert (out / "report.html").is_file()


def test_predict_completes_if_its_output_pipe_is_closed(model, images, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    words = [sys.executable, "-m", "skpatchcore", "predict", model, str(images), "-o", str(tmp_path / "out")]
    with os.fdopen(writer, "wb") as broken:
        done = subprocess.run(words, stdout=broken, stderr=broken, timeout=120, check=False)
    assert done.returncode == 0
    assert len(rows(tmp_path / "out")) == 5


def test_predict_writes_all_scores_if_the_report_fails(model, images, tmp_path, monkeypatch, capsys):
    def fail(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("skpatchcore.reports.card_page.write_html", fail)
    out = tmp_path / "out"
    assert main(["predict", model, str(images), "-o", str(out), "--report", "--fail-on-anomalies"]) == 1
    assert len(rows(out)) == 5
    said = capsys.readouterr()
    assert "report.html" not in said.out
    assert "the report could not be written: [Errno 28] No space left on device. scores.csv is complete" in said.err


def test_predict_reports_missing_heat_maps_after_all_scores(model, images, tmp_path, capsys):
    (tmp_path / "out" / "1.png").mkdir(parents=True)
    assert main(["predict", model, str(images), "-o", str(tmp_path / "out"), "--quiet"]) == 1
    assert "1 heat map could not be written" in capsys.readouterr().err
    assert all(row["score"] != "nan" for row in rows(tmp_path / "out"))


def test_fail_on_anomalies_sets_the_exit_code(images, tmp_path, parts, capsys):
    detector = factories.detector().fit(parts[0])
    save(detector, tmp_path / "m.skops")
    words = ["predict", str(tmp_path / "m.skops"), "-o", str(tmp_path / "out"), "--quiet", "--fail-on-anomalies"]
    flagged = {str(images / f"{i}.png"): detector.predict([str(images / f"{i}.png")])[0] == -1 for i in range(5)}
    good = [path for path, is_flagged in flagged.items() if not is_flagged]
    assert good
    assert flagged[str(images / "4.png")]
    assert main([*words, str(images)]) == 3
    assert main([*words, *good]) == 0
    (images / "broken.png").write_bytes(b"no image")
    assert main([*words, str(images)]) == 1  # a failure has priority
    save(factories.detector(calibration=None).fit(parts[0]), tmp_path / "m.skops")
    assert main([*words, str(images)]) == 1
    assert "has no threshold" in capsys.readouterr().err


def test_quiet_commands_warn_once_of_pixels_outside_the_crop(model, images, tmp_path, capsys):
    words = ["predict", model, str(images), "-o", str(tmp_path / "out"), "--quiet"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("is not inspected") == 1
    assert said.err.startswith("skpatchcore: warning: ")
    assert main([*words, "--report"]) == 0  # the report contains the sentence
    assert capsys.readouterr().err == ""
    fast = ["--backbone", "resnet18", "--weights", "none", "--image-size", "48", "--quiet"]
    assert main(["fit", str(images), "-o", str(tmp_path / "m.skops"), "--crop-size", "32", *fast]) == 0
    said = capsys.readouterr()
    assert (said.out, said.err.count("are not inspected")) == ("", 1)
    assert main(["fit", str(images), "-o", str(tmp_path / "m.skops"), "--crop-size", "none", *fast]) == 0
    assert capsys.readouterr().err == ""


def test_predict_warns_of_a_pickle_of_another_version(images, parts, tmp_path, monkeypatch, capsys):
    fitted = factories.detector().fit(parts[0])
    with monkeypatch.context() as patch:
        patch.setattr(sklearn, "__version__", "0.9")
        patch.setattr(versions, "__version__", "0.0.1")
        joblib.dump(fitted, tmp_path / "m.joblib")
    words = ["predict", str(tmp_path / "m.joblib"), str(images), "-o", str(tmp_path / "out"), "--quiet"]
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert main(words) == 0
    said = capsys.readouterr().err
    assert said.count("was written by skpatchcore 0.0.1 and is read by") == 1
    assert said.count("estimator PatchCoreDetector from version 0.9") == 1


def test_fit_succeeds_if_images_are_moved_after_the_model_was_saved(images, tmp_path, monkeypatch, capsys):
    def saved(*given):
        write(*given)
        (images / "0.png").unlink()
        (images / "1.png").write_text("no image")

    write = fit.save_model
    monkeypatch.setattr(fit, "save_model", saved)
    words = ["--backbone", "resnet18", "--weights", "none", "--image-size", "48", "--crop-size", "32"]
    assert main(["fit", str(images), "-o", str(tmp_path / "m.skops"), *words]) == 0
    said = capsys.readouterr()
    assert "are not inspected" in said.out
    assert "0.png" not in said.out
    assert load(tmp_path / "m.skops").offset_ < 0


def test_commands_and_report_name_the_pixels_outside_the_crop(model, images, tmp_path, parts, capsys):
    Image.fromarray(np.zeros((96, 192, 3), np.uint8)).save(images / "wide.png")
    assert main(["predict", model, str(images), "-o", str(tmp_path / "out"), "--report"]) == 0
    # the resized image has 48 × 96 pixels, and the crop 32 × 32; the image itself is twice as large
    expected = f"{100 * (1 - 32 * 32 / (48 * 96)):.1f} % of the image {images / 'wide.png'} is not inspected"
    where = "16 pixels at the top, 16 at the bottom, 64 at the left and 64 at the right"
    said = capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert expected in said
    assert where in said
    assert expected in page
    assert where in page
    words = ["--backbone", "resnet18", "--weights", "none", "--image-size", "48", "--crop-size"]
    for crop, is_said in (("32", True), ("none", False)):
        assert main(["fit", str(images), "-o", str(tmp_path / "own.skops"), *words, crop]) == 0
        assert ("are not inspected: they lie outside the crop" in capsys.readouterr().out) == is_said


@pytest.mark.parametrize("name", ["m.pkl", "m", "m.zip", "m.skops.gz"])
def test_fit_refuses_model_names_with_an_unknown_ending(images, tmp_path, capsys, name):
    assert main(["fit", str(images), "-o", str(tmp_path / name)]) == 1
    assert "must end in .skops, or in .joblib" in capsys.readouterr().err
    assert not (tmp_path / name).exists()


def test_commands_check_the_output_before_the_work(model, images, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(PatchCoreDetector, "fit", lambda *args: pytest.fail("was fitted"))
    monkeypatch.setattr(PatchCoreDetector, "iter_results", lambda *args: pytest.fail("was scored"))
    below = str(tmp_path / "file" / "out")
    for words in (
        ["fit", str(images), "-o", str(tmp_path / "file" / "m.skops")],
        ["fit", str(images), "-o", str(tmp_path / "nowhere" / "m.skops")],
        ["predict", model, str(images), "-o", below],
        ["evaluate", str(images), "-o", below],
        ["demo", "-o", below],
    ):
        assert main(words) == 1
        assert "cannot write" in capsys.readouterr().err

    def refuse(**options):
        raise OSError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    for words in (["fit", str(images), "-o", str(tmp_path / "m.skops")], ["demo", "-o", str(tmp_path / "out")]):
        assert main(words) == 1
        assert "Permission denied" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "new"]


@pytest.mark.parametrize("words", [["fit", "d", "-o", "m", "--qui"], ["predict", "m", "i", "-o", "o", "--rep"],
                                   ["--vers"], ["evaluate", "r", "--out", "o"]])  # fmt: skip
def test_parser_refuses_abbreviated_options(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2


def test_warnings_are_single_lines_and_printed_once(images, tmp_path, monkeypatch, capsys):
    run = fit._fit

    def warn(options):
        for _ in range(3):
            warnings.warn("contamination=0.05 cannot be\npromised", UserWarning, stacklevel=1)
        warnings.warn("another", RuntimeWarning, stacklevel=1)
        return run(options)

    monkeypatch.setattr(fit, "_fit", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        before = warnings.showwarning
        assert main(["fit", str(tmp_path / "nowhere"), "-o", str(tmp_path / "m.skops")]) == 1
        assert warnings.showwarning is before
    errors = capsys.readouterr().err.splitlines()
    assert errors[0] == "skpatchcore: warning: --contamination 0.05 cannot be promised"
    assert errors[1] == "skpatchcore: warning: another"
    assert len(errors) == 3


@pytest.mark.parametrize("module", ["numpy", "pandas", "sklearn", "joblib", "skpatchcore.cli.commands"])
def test_interruption_during_imports_has_no_traceback(module):
    code = (
        "import sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}: raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "import runpy\n"
        "sys.argv = ['skpatchcore', 'fit', '.', '-o', 'm.skops']\n"
        "runpy.run_module('skpatchcore', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (130, "skpatchcore: interrupted\n")


@pytest.mark.parametrize(
    ("command", "message", "expected"),
    [
        ("fit", "give images, or calibration=None.", "give images, or --calibration none."),
        ("fit", "image_size=None, crop_size=None", "--image-size own, --crop-size none"),
        ("fit", "backbone='efficientnet_lite2', whose", "--backbone efficientnet_lite2, whose"),
        ("fit", "or weights=PATH to a copy of https://x/y.pth.", "or --weights PATH to a copy of https://x/y.pth."),
        ("fit", "ratio=5.5 rows", "--ratio 5.5 rows"),
        ("fit", "a smaller image_size, or", "a smaller --image-size, or"),
        ("fit", "an image_size of (224, 300)", "an --image-size of (224, 300)"),
        ("fit", "image_size=(224, 300): no", "--image-size 224x300: no"),
        ("fit", "batch_size=0.", "--batch-size 0."),
        ("fit", "The 'patch_size' parameter of X must be an int", "--patch-size must be an int"),
        ("fit", "max_memory=4 GB is too small: this fit needs 5 GB",
         "4 GB of memory are too little: this fit needs 5 GB"),
        ("fit", "more than max_pixels=99.", "more than the limit of 99 pixels."),
        ("fit", "image 3 (/data/crop_size/image_size=1.png): no such file.",
         "image 3 (/data/crop_size/image_size=1.png): no such file."),
        ("predict", "'m' is a pickle, and a pickle can run code. If you trust the file, read it with joblib.load.",
         "'m' is a pickle, and a pickle can run code. If you trust the file, give it a name that ends in .joblib."),
        ("predict", "If you trust these types, pass trusted=['a.B', 'c.d'].",
         "If you trust these types, pass --trust a.B --trust c.d."),
        ("predict", "smaller than crop_size 9×9.",
         "smaller than --crop-size 9×9 (these are options of 'skpatchcore fit')."),
        ("evaluate", "shots=[1, 99]: expected", "--shots 1 99: expected"),
        ("evaluate", "Choose another folder, or overwrite it.", "Choose another folder, or pass --overwrite."),
        ("evaluate", "crop_size=9", "crop_size=9"),
        ("demo", "device='cuda' is not available", "--device cuda is not available"),
    ],
)  # fmt: skip
def test_in_options_names_options_instead_of_parameters(command, message, expected):
    assert in_options(message, command) == expected


def test_in_options_translates_the_advice_on_an_unknown_value_range(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.arange(64, dtype=np.int32).reshape(8, 8))
    with pytest.raises(ImageError) as caught:
        load_image(tmp_path / "a.tif", 0)
    text = in_options(str(caught.value), "fit")
    assert text.endswith("values are in [0, 63]. Convert the image, or set --value-range.")
    assert "astype" not in text


class Cropped(TransformerMixin, BaseEstimator):
    """Transformer that reads images and removes their borders."""

    def fit(self, X, y=None):
        return self

    def transform(self, X):
        return [load_image(image, 0)[8:-8, 8:-8] for image in X]

    def __sklearn_is_fitted__(self):
        return True


@pytest.mark.parametrize("kind", ["preprocessing", "features"])
def test_predict_accepts_pipelines_that_end_in_a_detector(images, parts, tmp_path, kind, capsys):
    good = [str(path) for path in sorted(images.iterdir())[:4]]
    if kind == "preprocessing":
        pipeline = make_pipeline(Cropped(), factories.detector())
    else:
        pipeline = make_pipeline(factories.extractor(), PatchCoreDetector("precomputed", random_state=0))
    joblib.dump(pipeline.fit(good), tmp_path / "m.joblib")
    (images / "broken.png").write_bytes(b"no image")
    out = tmp_path / "out"
    assert main(["predict", str(tmp_path / "m.joblib"), str(images), "-o", str(out), "--report"]) == 1
    table = {Path(row["path"]).name: row for row in rows(out)}
    paths = [row["path"] for row in table.values() if row["score"] != "nan"]
    assert len(paths) == 5
    scores = [float(table[Path(path).name]["score"]) for path in paths]
    np.testing.assert_allclose(scores, pipeline.score_samples(paths), rtol=1e-5)
    assert "the steps before the detector failed" in table["broken.png"]["problem"]
    shape = pipeline[-1].segment(pipeline[:-1].transform(paths[:1]))[0].shape
    with Image.open(out / table["0.png"]["map"]) as picture:
        assert picture.size == shape[::-1]
    assert sum(card.get("image", "").startswith("data:image/jpeg") for card in cards_of(out / "report.html")) == 5


def test_predict_accepts_a_pipeline_in_a_file_without_code(images, tmp_path, capsys):
    good = [str(path) for path in sorted(images.iterdir())[:4]]
    pipeline = make_pipeline(Cropped(), factories.detector()).fit(good)
    with pytest.warns(UserWarning, match="To load the file, pass trusted"):
        save(pipeline, tmp_path / "m.skops")
    words = ["predict", str(tmp_path / "m.skops"), str(images), "-o", str(tmp_path / "out"), "--quiet"]
    assert main(words) == 1
    name = f"{Cropped.__module__}.Cropped"
    assert f"pass --trust {name}" in capsys.readouterr().err
    assert main([*words, "--trust", name]) == 0
    assert len(rows(tmp_path / "out")) == 5
    assert load(tmp_path / "m.skops", trusted=[name]).score_samples(good).shape == (4,)


def test_predict_refuses_pipelines_without_a_detector_at_the_end(images, tmp_path, capsys):
    joblib.dump(make_pipeline(Cropped()), tmp_path / "m.joblib")
    assert main(["predict", str(tmp_path / "m.joblib"), str(images), "-o", str(tmp_path / "out")]) == 1
    assert "a Pipeline that ends in a Cropped" in capsys.readouterr().err


def test_exit_code_of_anomalies_differs_from_other_exit_codes():
    assert predict.ANOMALIES_FOUND not in (0, 1, 2, 130)
