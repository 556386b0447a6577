"""The commands fit and predict: files, messages, exit codes, and reports."""

from __future__ import annotations

import csv
import gc
import re
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
from PIL import Image
from sklearn.base import BaseEstimator, TransformerMixin

import skpatchcore
from skpatchcore import PaDiMDetector, PatchCoreDetector, PatchCoreEnsemble, SPADEDetector, load, save
from skpatchcore.cli.main import main
from skpatchcore.display import overlay_anomaly_map
from skpatchcore.reports.drift import describe_drift
from skpatchcore.reports.predictions import picture_names
from tests import factories
from tests.reports.pages import cards_of

FAST = ["--backbone", "resnet18", "--weights", "none", "--image-size", "own", "--crop-size", "none", "--quiet"]


@pytest.fixture
def folder(tmp_path, parts):
    train, good, bad = parts
    for name, images in [("good", train), ("new/fine", good), ("new/bad", bad)]:
        (tmp_path / name).mkdir(parents=True)
        for i, image in enumerate(images):
            Image.fromarray((image * 255).astype(np.uint8)).save(tmp_path / name / f"{i}.png")
    return tmp_path


@pytest.fixture
def model(folder):
    assert main(["fit", str(folder / "good"), "-o", str(folder / "model.skops"), *FAST]) == 0
    return str(folder / "model.skops")


def rows(folder):
    with (folder / "scores.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_fit_passes_suspect_share(folder):
    given = ["fit", str(folder / "good"), "-o", str(folder / "model.skops"), *FAST]
    assert main([*given, "--suspect-share", "0.02"]) == 0
    assert load(str(folder / "model.skops")).suspect_share == 0.02


def test_fit_and_predict_write_the_scores_of_the_python_methods(folder, model, capsys):
    out = folder / "out"
    assert main(["predict", model, str(folder / "new"), "-o", str(out)]) == 0
    detector = load(model)
    table = rows(out)
    assert list(table[0]) == ["path", "score", "decision", "label", "p_value", "map", "problem"]
    paths = [row["path"] for row in table]
    assert len(paths) == 5
    np.testing.assert_array_equal([float(row["score"]) for row in table], detector.score_samples(paths))
    np.testing.assert_array_equal([float(row["decision"]) for row in table], detector.decision_function(paths))
    np.testing.assert_array_equal([int(row["label"]) for row in table], detector.predict(paths))
    np.testing.assert_array_equal([float(row["p_value"]) for row in table], detector.p_values(paths))
    assert [row["label"] for row in table if "/bad/" in row["path"]] == ["-1"]
    assert "5 images scored, 1 of them anomalous" in capsys.readouterr().out
    # two files have the name 0.png, so that heat maps are named after their folders too
    pictures = sorted(path.name for path in out.glob("*.png"))
    assert pictures == ["bad_0.png", "fine_0.png", "fine_1.png", "fine_2.png", "fine_3.png"]
    assert sorted(row["map"] for row in table) == pictures
    with Image.open(out / "bad_0.png") as picture:
        assert picture.size == (64, 48)


@pytest.mark.parametrize(("text", "expected"), [("map-max", "map-max"), ("0.05", 0.05)])
def test_fit_passes_the_image_score_to_the_detector(folder, text, expected):
    words = ["fit", str(folder / "good"), "-o", str(folder / "model.skops"), *FAST, "--image-score", text]
    assert main(words) == 0
    assert load(folder / "model.skops").image_score == expected


def test_fit_names_the_option_of_an_invalid_image_score(folder, capsys):
    assert main(["fit", str(folder / "good"), "-o", str(folder / "m.skops"), *FAST, "--image-score", "1.5"]) == 1
    assert "--image-score must" in capsys.readouterr().err


def test_fit_writes_a_pickle_if_the_name_ends_in_joblib(folder, parts):
    assert main(["fit", str(folder / "good"), "-o", str(folder / "model.joblib"), *FAST]) == 0
    detector = joblib.load(folder / "model.joblib")
    assert (
        main(["predict", str(folder / "model.joblib"), str(folder / "new"), "-o", str(folder / "out"), "--quiet"]) == 0
    )
    assert [float(row["score"]) for row in rows(folder / "out")] == [
        float(score) for score in detector.score_samples([row["path"] for row in rows(folder / "out")])
    ]


def test_picture_names_are_unique(tmp_path):
    names = ["x.png", "x.jpg", "a/b.png", "c/b.png", "a_b.png", "a/x.png"]
    found = picture_names([str(tmp_path / name) for name in names])
    assert len(set(found.values())) == len(names)


def test_predict_ignores_heat_maps_of_an_earlier_run(folder, model):
    out = folder / "new" / "out"
    for _ in range(2):
        assert main(["predict", model, str(folder / "new"), "-o", str(out), "--quiet"]) == 0
        assert len(rows(out)) == 5
    assert main(["predict", model, str(out), "-o", str(out), "--quiet"]) == 1


def test_predict_called_by_other_code_leaves_its_garbage_collector_unchanged(folder, model):
    before = gc.isenabled(), gc.get_freeze_count()
    assert main(["predict", model, str(folder / "new"), "-o", str(folder / "out"), "--quiet"]) == 0
    assert (gc.isenabled(), gc.get_freeze_count()) == before


def test_fit_stores_the_absolute_path_of_a_weights_file(folder, parts, monkeypatch):
    import torch
    import torchvision

    monkeypatch.chdir(folder)
    torch.save(torchvision.models.resnet18().state_dict(), "w.pth")
    assert main(["fit", "good", "-o", "m.joblib", *FAST, "--weights", "w.pth"]) == 0
    monkeypatch.chdir(folder / "new")
    assert np.isfinite(joblib.load(folder / "m.joblib").score_samples(parts[1])).all()


def test_fit_uses_the_training_images_of_a_data_set(folder, parts):
    (folder / "train").mkdir()
    (folder / "good").rename(folder / "train" / "good")
    (folder / "new").rename(folder / "test")
    assert main(["fit", str(folder), "-o", str(folder / "model.skops"), *FAST]) == 0
    assert len(load(folder / "model.skops").calibration_scores_) == len(parts[0])


def test_predict_flags_images_that_cannot_be_read(folder, model, capsys):
    (folder / "new" / "broken.png").write_bytes(b"no image")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    images = [str(folder / "new"), str(folder / "gone.png")]
    assert main(["predict", model, *images, "-o", str(folder / "out"), "--quiet"]) == 1
    table = {row["path"].rsplit("/", 1)[-1]: row for row in rows(folder / "out")}
    assert len(rows(folder / "out")) == 7
    for name in ("broken.png", "gone.png"):
        assert (table[name]["score"], table[name]["label"], table[name]["map"]) == ("nan", "-1", "")
        assert table[name]["problem"]
    assert np.isfinite(float(table["3.png"]["score"]))
    errors = capsys.readouterr().err
    assert "broken.png: cannot be read" in errors
    assert "image 0" not in errors
    assert "2 of 7 images could not be scored" in errors
    assert "Traceback" not in errors


def test_predict_writes_no_labels_for_a_model_without_threshold(folder, parts):
    detector = joblib.load(fit_uncalibrated(folder, parts))
    assert np.isnan(detector.offset_)
    assert main(["predict", str(folder / "m.joblib"), str(folder / "new"), "-o", str(folder / "out"), "--quiet"]) == 0
    assert {row["label"] for row in rows(folder / "out")} == {""}


def fit_uncalibrated(folder, parts):
    from skpatchcore import TorchFeatureExtractor

    extractor = TorchFeatureExtractor("resnet18", weights=None, image_size=None, crop_size=None)
    joblib.dump(PatchCoreDetector(extractor, calibration=None).fit(parts[0]), folder / "m.joblib")
    return folder / "m.joblib"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "nowhere", "-o", "m.joblib"], "no directory 'nowhere'"),
        (["fit", "good", "-o", "nowhere/m.joblib"], "cannot write"),
        (["fit", "good", "-o", "m.joblib", "--backbone", "resnet81"], "resnet18"),
        (["fit", "good", "-o", "m.joblib", *FAST, "--patch-size", "2"], "even"),
        (["fit", "good", "-o", "m.joblib", *FAST, "--device", "abacus"], "abacus"),
        (["fit", "good", "-o", "m.joblib", *FAST, "--weights", "gone.pth"], "gone.pth"),
        (["predict", "gone.joblib", "good", "-o", "out"], "no model file"),
        (["predict", "model.skops", "good", "god", "-o", "out"], "no file or folder 'god'"),
        (["predict", "text.joblib", "good", "-o", "out"], "cannot be read as a model file"),
        (["predict", "text.skops", "good", "-o", "out"], "not a model file of skpatchcore"),
        (["predict", "list.joblib", "good", "-o", "out"], "contains no detector of this package, but a list"),
        (["predict", "model.skops", "empty", "-o", "out"], "holds no image"),
    ],
)
def test_errors_are_one_line_with_exit_code_1(folder, model, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(folder)
    for name in ("text.joblib", "text.skops"):
        (folder / name).write_text("no model")
    (folder / "empty").mkdir()
    joblib.dump([1], folder / "list.joblib")
    capsys.readouterr()
    assert main(arguments) == 1
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("skpatchcore: ")
    assert message in errors[0]
    assert not list(folder.glob(".*partial"))
    assert not (folder / "out").exists()


def test_debug_raises_the_error(folder):
    with pytest.raises(NotADirectoryError):
        main(["fit", "nowhere", "-o", str(folder / "m.joblib"), "--debug"])


def test_fit_keeps_the_old_model_if_the_write_fails(folder, model, monkeypatch, capsys):
    with open(model, "rb") as file:
        before = file.read()

    def full(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr("skops.io.dump", full)
    assert main(["fit", str(folder / "good"), "-o", model, *FAST]) == 1
    assert "no space left" in capsys.readouterr().err
    with open(model, "rb") as file:
        assert file.read() == before


def test_interrupted_predict_exits_with_130_without_traceback(folder, model, monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(PatchCoreDetector, "iter_results", interrupt)
    assert main(["predict", model, str(folder / "new"), "-o", str(folder / "out"), "--quiet"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_wrong_usage_exits_with_2(capsys):
    for arguments in ([], ["fit"], ["fit", "good", "-o", "m", "--image-size", "1x2x3"], ["fly"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
    assert "usage: skpatchcore" in capsys.readouterr().err


def test_package_runs_as_a_module():
    shown = subprocess.run(
        [sys.executable, "-m", "skpatchcore", "--version"], capture_output=True, text=True, check=True, timeout=120
    )
    assert shown.stdout.startswith("skpatchcore 0.")


def test_overlay_shows_the_image_below_and_heat_above_the_threshold():
    image = np.random.default_rng(0).random((30, 40, 3))
    scores = np.full((30, 40), 0.3)
    scores[10:20, 10:20] = 5.0
    picture = overlay_anomaly_map(image, scores, threshold=1.0)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture[:8], (image[:8] * 255).round())
    assert np.abs(picture[12:18, 12:18] / 255 - image[12:18, 12:18]).mean() > 0.2
    assert (picture[9, 9:21] == picture[9, 9]).all()  # the outline
    grey = overlay_anomaly_map(image[:, :, :1], scores * 0, threshold=1.0)
    assert (grey[..., 0] == grey[..., 2]).all()
    with pytest.raises(ValueError, match="differ in size"):
        overlay_anomaly_map(image, scores[1:], threshold=1.0)


def test_predict_report_contains_every_image(folder, model, capsys):
    (folder / "new" / "broken <b>.png").write_bytes(b"no image")
    out = folder / "out"
    assert main(["predict", model, str(folder / "new"), "-o", str(out), "--report"]) == 1
    assert "and report.html" in capsys.readouterr().out
    report = (out / "report.html").read_text(encoding="utf-8")
    cards = cards_of(out / "report.html")
    assert {card["path"] for card in cards} == {row["path"] for row in rows(out)}
    assert sum(card.get("image", "").startswith("data:image/jpeg;base64") for card in cards) == 5
    assert sum("nearest" in card for card in cards) == 5
    assert "1 of 6 parts is anomalous, 1 could not be read" in report
    assert "broken &lt;b&gt;.png" in report
    assert "<b>" not in report
    assert [card["verdict"] for card in cards] == ["unreadable", "anomalous", "normal", "normal", "normal", "normal"]
    assert "/bad/" in cards[1]["path"]
    assert not (out / "report_files").exists()
    assert main(["predict", model, str(folder / "new"), "-o", str(out), "--report", "--embed", "1kB"]) == 1
    assert all((out / card["image"]).is_file() for card in cards_of(out / "report.html") if "image" in card)
    capsys.readouterr()
    assert main(["predict", model, str(folder / "new"), "-o", str(out), "--report", "--embed", "much"]) == 1
    assert "--embed: 'much' is not an amount of memory" in capsys.readouterr().err


def test_predict_writes_its_report_without_matplotlib(folder, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["predict", model, str(folder / "new"), "-o", str(folder / "out"), "--report"]) == 0
    assert (folder / "out" / "report.html").is_file()


@pytest.mark.parametrize("kind", ["spade", "padim", "ensemble", "without threshold"])
def test_predict_accepts_every_detector_that_save_accepts(folder, parts, kind, capsys):
    members = [("a", factories.detector(verbose=1)), ("b", PaDiMDetector(factories.extractor(), n_channels=9))]
    made = {
        "spade": SPADEDetector(factories.extractor()),
        "padim": PaDiMDetector(factories.extractor(), n_channels=9, verbose=1),
        "ensemble": PatchCoreEnsemble(members),
        "without threshold": factories.detector(calibration=None),
    }[kind].fit(parts[0])
    capsys.readouterr()
    save(made, folder / "other.skops")
    out = folder / "out"
    assert main(["predict", str(folder / "other.skops"), str(folder / "new"), "-o", str(out), "--report"]) == 0
    assert "scoring" not in capsys.readouterr().err
    table = rows(out)
    paths = [row["path"] for row in table]
    np.testing.assert_allclose([float(row["score"]) for row in table], made.score_samples(paths), rtol=1e-6)
    assert len(list(out.glob("*.png"))) == len(paths) == 5
    page = (out / "report.html").read_text(encoding="utf-8")
    assert ("no threshold" in page) == (kind == "without threshold")


class Brightness(TransformerMixin, BaseEstimator):
    """Extractor that reads files itself, with the mean of blocks of 8 × 8 pixels as features."""

    def fit(self, X, y=None):
        return self

    def transform(self, X):
        images = np.stack([np.asarray(Image.open(path).convert("RGB"), np.float32) for path in X])
        n, height, width, _ = images.shape
        return images.reshape(n, height // 8, 8, width // 8, 8, 3).mean(axis=(2, 4))


def test_predict_accepts_a_detector_with_an_own_extractor(folder):
    good = [str(path) for path in sorted((folder / "good").iterdir())]
    joblib.dump(PatchCoreDetector(Brightness(), random_state=0).fit(good), folder / "own.joblib")
    assert main(["predict", str(folder / "own.joblib"), str(folder / "new"), "-o", str(folder / "out"), "--quiet"]) == 0
    assert len(rows(folder / "out")) == 5


def test_predict_refuses_precomputed_and_unfitted_detectors(folder, capsys):
    features = np.random.default_rng(0).random((9, 2, 2, 3))
    save(PatchCoreDetector("precomputed").fit(features), folder / "features.skops")
    joblib.dump(PatchCoreDetector(), folder / "unfitted.joblib")
    for name, message in (("features.skops", "cannot read images"), ("unfitted.joblib", "not fitted")):
        assert main(["predict", str(folder / name), str(folder / "new"), "-o", str(folder / "out")]) == 1
        assert message in capsys.readouterr().err


def test_package_never_advises_to_install_itself_from_an_index():
    root = Path(skpatchcore.__file__).parent
    for path in root.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "skpatchcore[" not in text, path
        assert "pip install skpatchcore" not in text, path


def test_predict_tells_of_drift_and_keeps_the_exit_code(folder, model, parts, capsys):
    def write(name, images):
        (folder / name).mkdir()
        for i, image in enumerate(images):
            Image.fromarray((image * 255).astype(np.uint8)).save(folder / name / f"{i:03}.png")
        return str(folder / name)

    rng = np.random.default_rng(1)
    fresh = rng.normal(0.6, 0.03, (30, 48, 64, 3)).clip(0, 1)
    darker = write("darker", fresh * 0.85)
    assert main(["predict", model, darker, "-o", str(folder / "out"), "--report"]) == 0
    sentence = capsys.readouterr().out.splitlines()[-1]
    assert sentence.startswith("The images look unlike the training images (drift): ")
    assert "the images are darker" in sentence
    assert "the images are darker" in (folder / "out" / "report.html").read_text(encoding="utf-8")
    same = write("same", fresh[:20])
    assert main(["predict", model, same, "-o", str(folder / "out2"), "--report"]) == 0
    assert "(drift)" not in capsys.readouterr().out
    assert "(drift)" not in (folder / "out2" / "report.html").read_text(encoding="utf-8")


def test_describe_drift_names_defects_as_a_possible_cause(parts):
    detector = factories.detector().fit(parts[0])
    detector.calibration_scores_ = np.linspace(-3, -2, 200)
    good, bad = np.linspace(-3, -2, 100).tolist(), [-1e9] * 100
    assert describe_drift(detector, [*good, float("nan")]) is None
    assert describe_drift(detector, good + bad[:4]) is None  # sorted by kind, with 4 % of defective images
    assert "Either more than 5% of the parts are defective, or the light" in describe_drift(detector, good + bad)
    assert describe_drift(factories.detector(calibration=None).fit(parts[0][:4]), bad) is None


def test_fit_takes_masks_of_what_is_inspected_and_of_what_is_not(folder, capsys):
    inside, outside = np.zeros((48, 64), np.uint8), np.zeros((24, 32), np.uint8)
    inside[8:40, 8:56] = 255
    outside[12:16, 16:20] = 1  # half of the size: it is scaled
    for name, mask in (("inside", inside), ("outside", outside), ("all", np.full((8, 8), 255, np.uint8))):
        Image.fromarray(mask).save(folder / f"{name}.png")
    words = ["fit", str(folder / "good"), "-o", str(folder / "model.skops"), *FAST[:-1]]
    assert main([*words, "--roi", str(folder / "inside.png"), "--ignore", str(folder / "outside.png")]) == 0
    inside[24:32, 32:40] = 0
    image = str(folder / "good" / "0.png")
    np.testing.assert_array_equal(np.isnan(load(folder / "model.skops").segment([image])[0]), inside == 0)
    said = capsys.readouterr()
    assert f"{100 * (1 - (inside > 0).mean()):.1f} % of the pixels of the training images are not inspected" in said.out
    assert "not inspected" not in said.err
    assert main([*words, "--ignore", str(folder / "outside.png")]) == 0
    assert np.isnan(load(folder / "model.skops").segment([image])[0]).sum() == 64
    for options, message in (
        (["--roi", str(folder / "nowhere.png")], "--roi .*nowhere.png.* does not exist"),
        (["--ignore", str(folder / "all.png")], "--ignore: the mask leaves no pixel"),
    ):
        assert main([*words, *options]) == 1
        assert re.search(message, capsys.readouterr().err)
