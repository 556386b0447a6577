"""The command watch with real models: the same scores as predict, drift, the report, and exit codes."""

from __future__ import annotations

import os

import joblib
import numpy as np
import pytest
from PIL import Image
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.pipeline import Pipeline

import skpatchcore
from skpatchcore.cli import watch as command
from skpatchcore.cli.main import main
from skpatchcore.reports import read_predictions
from tests.cli.test_products import write_images
from tests.deployment.graphs import write_exported
from tests.factories import detector
from tests.reports.pages import cards_of
from tests.watching.helpers import heartbeat_of, lines_of

FAST = ["--once", "--settle", "0", "--patience", "0.05", "--poll", "0.05"]


def write(path, value=120, dark=False):
    pixels = np.random.default_rng(value).integers(value, value + 12, (48, 64, 3)).astype(np.uint8)
    if dark:
        pixels[16:32, 24:48] = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    place = tmp_path_factory.mktemp("model")
    for i in range(12):
        write(place / "good" / f"{i}.png", 115 + i)
    paths = skpatchcore.list_images(place / "good")
    skpatchcore.save(detector(contamination=0.1).fit(paths), place / "parts.skops")
    return place / "parts.skops"


@pytest.fixture
def folder(tmp_path):
    for i in range(5):
        write(tmp_path / "in" / f"{i}.png", 116 + i, dark=i == 3)
    (tmp_path / "in" / "broken.png").write_bytes(b"no image")
    return tmp_path / "in"


def run(folder, model, output, *more):
    return main(["watch", str(folder), str(model), "-o", str(output), *FAST, *more])


def test_results_are_those_of_predict(folder, model, tmp_path, capsys):
    assert run(folder, model, tmp_path / "out") == 0
    printed = capsys.readouterr()
    assert "anomalous" in printed.out
    assert "unreadable" in printed.out
    assert main(["predict", str(model), str(folder), "-o", str(tmp_path / "predicted"), "--quiet"]) == 1
    found = {p.path: p for p in read_predictions(tmp_path / "out")}
    for expected in read_predictions(tmp_path / "predicted"):
        own = found[expected.path]
        np.testing.assert_allclose(own.score, expected.score, rtol=1e-5)
        np.testing.assert_allclose(own.p_value, expected.p_value)
        assert (own.label, own.problem) == (expected.label, expected.problem)
        assert (own.picture is not None) == (expected.is_scored and expected.label == -1)
        if own.picture is not None:
            assert (tmp_path / "out" / own.picture).read_bytes() == (
                tmp_path / "predicted" / expected.picture
            ).read_bytes()
    lines = {os.path.basename(line["path"]): line for line in lines_of(tmp_path / "out")}
    assert lines["3.png"]["n_regions"] >= 1
    assert lines["3.png"]["log_evidence"] is not None
    assert heartbeat_of(tmp_path / "out")["model"]["digest"] == lines["3.png"]["model"]


def test_quiet_prints_no_line_per_part(folder, model, tmp_path, capsys):
    assert run(folder, model, tmp_path / "out", "--quiet") == 0
    assert capsys.readouterr().out == ""


def test_drift_alarm_is_said_once_and_is_in_the_heartbeat(model, tmp_path, capsys):
    for i in range(60):
        write(tmp_path / "in" / f"{i:02d}.png", 180 + i % 12)
    assert run(tmp_path / "in", model, tmp_path / "out", "--maps", "none", "--quiet") == 0
    assert capsys.readouterr().err.count("(drift)") == 1
    assert "(drift)" in heartbeat_of(tmp_path / "out")["drift"]
    evidence = [line["log_evidence"] for line in lines_of(tmp_path / "out")]
    assert evidence[-1] > np.log(100) > evidence[0]


def test_exported_file_is_watched_without_torch_features(folder, tmp_path, capsys):
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    pytest.importorskip("onnx", reason="the extra onnx is not installed")
    write_exported(tmp_path / "parts.onnx")
    assert run(folder, tmp_path / "parts.onnx", tmp_path / "out", "--threads", "1") == 0
    assert len(read_predictions(tmp_path / "out")) == 6
    assert "drift is not found" in capsys.readouterr().err
    assert run(folder, tmp_path / "parts.onnx", tmp_path / "other", "--report") == 1
    assert "--report" in capsys.readouterr().err


def test_model_of_several_products_writes_the_product(tmp_path, capsys):
    for name, level in (("nut", 80), ("bolt", 180)):
        write_images(tmp_path / "train" / name, level, 8, level)
    fast = ["--backbone", "resnet18", "--weights", "none", "--image-size", "own", "--quiet"]
    model = tmp_path / "parts.skops"
    assert main(["fit", str(tmp_path / "train"), "--products", "-o", str(model), *fast]) == 0
    write_images(tmp_path / "in", 80, 2, 5)
    assert run(tmp_path / "in", model, tmp_path / "out") == 0
    assert [p.product for p in read_predictions(tmp_path / "out")] == ["nut", "nut"]
    assert [line["product"] for line in lines_of(tmp_path / "out")] == ["nut", "nut"]
    assert run(tmp_path / "in", model, tmp_path / "other", "--product", "bolt") == 0
    assert [p.product for p in read_predictions(tmp_path / "other")] == ["bolt", "bolt"]
    assert run(tmp_path / "in", model, tmp_path / "third", "--product", "screw") == 1
    assert "the model knows" in capsys.readouterr().err


def test_pipeline_of_scikit_learn_is_watched(folder, tmp_path, capsys):
    pipeline = Pipeline([("read", Gray()), ("detect", detector(contamination=0.1))])
    for i in range(10):
        write(tmp_path / "good" / f"{i}.png", 115 + i)
    pipeline.fit(skpatchcore.list_images(tmp_path / "good"))
    model = tmp_path / "parts.joblib"
    joblib.dump(pipeline, model)
    assert run(folder, model, tmp_path / "out") == 0
    found = {os.path.basename(p.path): p for p in read_predictions(tmp_path / "out")}
    assert len(found) == 6
    assert found["3.png"].label == -1
    assert found["3.png"].picture is not None
    assert "before the detector failed" in found["broken.png"].problem
    good = str(folder / "0.png")
    np.testing.assert_allclose(found["0.png"].score, pipeline.score_samples([good])[0], rtol=1e-5)


class Gray(BaseEstimator, TransformerMixin):
    """A first step that reads paths as grey arrays."""

    def fit(self, X, y=None):
        return self

    def transform(self, X):
        return [np.asarray(Image.open(path).convert("L")) for path in X]

    def __sklearn_is_fitted__(self):
        return True


def test_report_shows_the_last_parts_also_of_an_earlier_run(folder, model, tmp_path):
    out = tmp_path / "out"
    assert run(folder, model, out, "--report") == 0
    first = cards_of(out / "report.html")
    write(folder / "new.png", 121)
    assert run(folder, model, out, "--report") == 0
    cards = cards_of(out / "report.html")
    assert [card["name"] for card in cards] == ["new.png", *(card["name"] for card in first)]
    assert sorted({card["verdict"] for card in cards}) == ["anomalous", "normal", "unreadable"]
    thumbs = [card["thumb"] for card in cards if card["verdict"] != "unreadable"]
    assert len({*thumbs}) == len(thumbs) == 6
    assert all((out / thumb).is_file() for thumb in thumbs)
    text = (out / "report.html").read_text(encoding="utf-8")
    assert "The last 7 parts over time" in text
    assert "The program was stopped on" in text
    assert "<dt>Judged since the start</dt><dd>1</dd>" in text


def test_parts_of_the_report_have_the_path_to_which_their_file_was_moved(folder, model, tmp_path):
    out, done = tmp_path / "out", tmp_path / "done"
    names = sorted(path.name for path in folder.iterdir() if path.suffix == ".png")
    for verdict in ("normal", "anomalous", "unreadable"):  # so that each file gets another name
        (done / verdict).mkdir(parents=True)
        for name in names:
            (done / verdict / name).write_bytes(b"another file")
    assert run(folder, model, out, "--report", "--move", str(done)) == 0
    cards = cards_of(out / "report.html")
    assert len(cards) == 6
    assert all(os.path.isfile(card["path"]) and card["name"].endswith("-2.png") for card in cards)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--settle", "-1"], "--settle -1.0"),
        (["--done-marker", ".png"], "--done-marker .png"),
        (["--webhook", "ftp://user:secret@x"], "http://"),
        (["--exec", "a 'b"], "--exec"),
        (["--runtime", "openvino"], "--runtime"),
        (["--product", "nut"], "--product"),
        (["--move", "."], "lies in"),
    ],
)
def test_error_of_the_user_is_one_line_and_exits_with_1(folder, model, tmp_path, capsys, monkeypatch, more, text):
    monkeypatch.chdir(tmp_path)
    assert run(folder, model, tmp_path / "out", *more) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if "watching by" not in line]
    assert len(said) == 1
    assert text in said[0]
    assert "secret" not in said[0]


def test_missing_folder_and_missing_model_exit_with_1(folder, model, tmp_path, capsys):
    assert run(tmp_path / "missing", model, tmp_path / "out") == 1
    assert "there is no directory" in capsys.readouterr().err
    assert run(folder, tmp_path / "missing.skops", tmp_path / "out") == 1
    assert "missing.skops" in capsys.readouterr().err


def test_unexpected_error_exits_with_4(folder, model, tmp_path, capsys, monkeypatch):
    from skpatchcore.watching.judging import Judge

    def fail(*arguments):
        raise RuntimeError("no device")

    monkeypatch.setattr(Judge, "judge", fail)
    assert run(folder, model, tmp_path / "out") == command.UNEXPECTED == 4
    assert "unexpected RuntimeError: no device" in capsys.readouterr().err
