"""The commands review and update --review: answers of a report page, counted and learnt."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from skpatchcore import load, save
from skpatchcore._utils.names import escape_name
from skpatchcore.cli.main import main
from skpatchcore.reports.labels import COLUMNS
from skpatchcore.reports.predictions import read_predictions
from tests.cli.test_update import FAST, write

VERDICTS = {1: "normal", -1: "anomalous", None: "undecided"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model of 30 images, and predictions of good images, false alarms, defects, and a damaged file."""
    place = tmp_path_factory.mktemp("review")
    write(place / "good", 30, 0)
    parts = place / "parts"
    write(parts / "fine", 6, 1)
    write(parts / "alarm", 3, 2, spot=160)
    write(parts / "bad", 3, 3, spot=0)
    write(parts / "faint", 2, 4, spot=131)
    (parts / "broken.png").write_bytes(b"no image")
    assert main(["fit", str(place / "good"), "-o", str(place / "parts.skops"), *FAST]) == 0
    assert main(["predict", str(place / "parts.skops"), str(parts), "-o", str(place / "out"), "--quiet"]) == 1
    return place


@pytest.fixture
def model(place, tmp_path):
    return str(shutil.copy(place / "parts.skops", tmp_path / "parts.skops"))


def answers_of(folder, path):
    """Return the right answer for a part by the folder of its file."""
    name = Path(path).parent.name
    return {"fine": "fine", "alarm": "fine", "bad": "defect", "faint": "defect"}.get(name, "")


def save_labels(place, target, answer=answers_of, **changes):
    """Write the file that the page would save, with an answer for each part; return its path."""
    offset = load(place / "parts.skops").offset_
    with target.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        for one in read_predictions(place / "out"):
            verdict = VERDICTS[one.label] if one.is_scored else "unreadable"
            values = {
                "path": escape_name(one.path), "verdict": verdict, "score": repr(one.score), "threshold": repr(offset),
                "review": answer(place, one.path), "note": "", "time": "", **changes,
            }  # fmt: skip
            rows.writerow([values[column] for column in COLUMNS])
    return str(target)


def reviewed(words, capsys):
    capsys.readouterr()
    assert main(["review", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_review_counts_the_decisions_of_the_model(place, model, tmp_path, capsys):
    labels = save_labels(place, tmp_path / "review.csv")
    found = reviewed([labels, "--model", model], capsys)
    detector = load(model)
    flagged = {one.path: one.label == -1 for one in read_predictions(place / "out")}
    defects = [path for path in flagged if answers_of(place, path) == "defect"]
    fine = [path for path in flagged if answers_of(place, path) == "fine"]
    assert found["decisions"]["source"] == "scores"
    assert found["parts"]["parts"] == {"flagged": sum(flagged.values()), "not flagged": 15 - sum(flagged.values())}
    assert found["parts"]["defect"]["flagged"] == sum(flagged[path] for path in defects)
    assert found["parts"]["fine"]["flagged"] == sum(flagged[path] for path in fine) > 0
    assert found["parts"]["open"]["flagged"] == 1  # the damaged file
    assert [Path(name).name for name in found["unreadable"]] == ["broken.png"]
    assert found["thresholds"][0]["anomaly score"] == -detector.offset_
    assert found["thresholds"][0]["promised rate"] == pytest.approx(1 / 31)
    assert [one["name"] for one in found["thresholds"]] == [
        "current", "promised", "promised", "all defects", "no fine part",
    ]  # fmt: skip
    assert main(["review", labels, "--model", model]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "15 parts in" in text
    assert "14 reviewed, 1 not reviewed" in text
    assert "The scores in the file are of this model." in text
    assert "broken.png" in text
    assert "chosen at random" in text


def test_unsure_parts_are_left_out(place, model, tmp_path, capsys):
    labels = save_labels(place, tmp_path / "review.csv", lambda place, path: "unsure" if "bad" in path else "fine")
    found = reviewed([labels, "--model", model], capsys)
    assert found["parts"]["unsure"]["flagged"] + found["parts"]["unsure"]["not flagged"] == 3
    assert found["defects of flagged"]["defects"] == 0
    assert found["miss rate"] == {"rate": None, "interval": None, "missing": "defect"}


def test_review_of_flagged_parts_alone_states_what_to_review(place, model, tmp_path, capsys):
    flagged = {one.path for one in read_predictions(place / "out") if one.label == -1}
    labels = save_labels(
        place, tmp_path / "r.csv", lambda place, path: answers_of(place, path) if path in flagged else ""
    )
    found = reviewed([labels, "--model", model], capsys)
    assert found["miss rate"]["missing"] == "passed"
    assert main(["review", labels, "--model", model]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "No part that is not flagged has an answer. Review" in text
    assert "No answer about a part that is not flagged." in text


def test_other_model_uses_the_decisions_in_the_file_or_scores_again(place, model, tmp_path, capsys):
    labels = save_labels(place, tmp_path / "review.csv", threshold="-3.5")
    found = reviewed([labels, "--model", model], capsys)
    assert found["decisions"]["source"] == "file"
    assert found["thresholds"] is None
    assert main(["review", labels, "--model", model]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "NOT those of" in text
    assert "of another model" in text
    again = reviewed([labels, "--model", model, "--rescore", "--quiet"], capsys)
    known = reviewed([save_labels(place, tmp_path / "own.csv"), "--model", model], capsys)
    assert again["decisions"]["source"] == "rescored"
    for key in ("parts", "unreadable", "false-alarm rate", "miss rate"):
        assert again[key] == known[key], key


def test_moved_threshold_decides_about_the_old_scores_but_learnt_images_do_not(place, model, tmp_path, capsys):
    labels = save_labels(place, tmp_path / "review.csv")
    detector = load(model)
    save(detector.recalibrate(contamination=0.3), model)
    found = reviewed([labels, "--model", model], capsys)
    assert found["decisions"]["source"] == "scores"
    assert found["learnt"] == 0
    flagged = [one.score < detector.offset_ for one in read_predictions(place / "out") if one.is_scored]
    assert found["parts"]["parts"]["flagged"] == 1 + sum(flagged)
    assert found["thresholds"][0]["anomaly score"] == -detector.offset_
    assert main(["update", model, "--review", labels, "--quiet"]) == 0
    found = reviewed([labels, "--model", model], capsys)
    assert found["decisions"]["source"] == "file"
    assert "learnt or forgotten images" in found["decisions"]["reason"]
    assert found["learnt"] >= 3  # the false alarms
    assert main(["review", labels, "--model", model, "--rescore", "--quiet"]) == 0
    assert "ATTENTION: the model has learnt" in capsys.readouterr().out


def test_printed_commands_set_the_printed_thresholds(place, model, tmp_path, capsys):
    labels = save_labels(place, tmp_path / "review.csv")
    rows = [one for one in reviewed([labels, "--model", model], capsys)["thresholds"] if one["command"]]
    assert {one["name"] for one in rows} >= {"promised", "all defects"}
    content = Path(model).read_bytes()
    for row in rows:
        Path(model).write_bytes(content)
        words = shlex.split(row["command"])
        if words[0] == "skpatchcore":
            assert row["name"] == "all defects"
            assert main(words[1:]) == 0
        else:
            assert words[:2] == ["python", "-c"]
            subprocess.run([sys.executable, *words[1:]], check=True, capture_output=True, timeout=120)
        detector = load(model)
        assert -detector.offset_ == pytest.approx(row["anomaly score"], rel=1e-12)
        if row["promised rate"] is not None:
            assert detector.promised_rate_ == pytest.approx(row["promised rate"])
        defects = [one.path for one in read_predictions(place / "out") if answers_of(place, one.path) == "defect"]
        assert int((detector.predict(defects) == -1).sum()) == row["defects found"]


def test_answers_that_differ_are_an_error(place, model, tmp_path, capsys):
    one = save_labels(place, tmp_path / "one.csv")
    two = save_labels(place, tmp_path / "two.csv", lambda place, path: "fine" if "bad" in path else "")
    assert main(["review", one, two, "--model", model]) == 1
    error = capsys.readouterr().err
    assert "one.csv" in error
    assert "two.csv" in error
    assert "3_0.png" in error


def test_update_learns_false_alarms_and_reports_missed_defects(place, model, tmp_path, capsys):
    labels = save_labels(place, tmp_path / "review.csv", lambda place, path: answers_of(place, path) or "fine")
    before = load(model)
    alarms = sorted(str(path) for path in (place / "parts" / "alarm").iterdir())
    assert (before.predict(alarms) == -1).all()
    assert main(["update", model, "--review", labels]) == 0
    text = " ".join(capsys.readouterr().out.split())
    after = load(model)
    assert (after.score_samples(alarms) > before.score_samples(alarms)).all()
    assert {Path(path).name for path in after.training_paths_[30:]} >= {"2_0.png", "2_1.png", "2_2.png"}
    assert not any("bad" in path or "faint" in path for path in after.training_paths_)
    assert len(after.calibration_scores_) == 30
    assert "--review: 5 defects, 10 fine, 0 unsure (ignored)." in text
    assert "ignored, because the model does not flag" in text
    assert "no random sample" in text
    assert "broken.png" in text
    assert "defective images are missed" in text
    assert [entry["kind"] for entry in after.updates_] == ["fit", "partial_fit", "feedback"]
    n_flagged = int((after.predict(alarms) == -1).sum())
    assert main(["update", model, "--review", labels]) == 0
    text = capsys.readouterr().out
    assert ("still flagged although the model has learnt" in text) == (n_flagged > 0)
    assert len(load(model).training_paths_) == len(after.training_paths_)


def test_update_moves_the_threshold_for_the_defects_of_a_review(place, model, tmp_path, capsys):
    labels = save_labels(place, tmp_path / "review.csv", lambda place, path: "defect" if "bad" in path else "unsure")
    detector = load(model)
    bad = sorted(str(path) for path in (place / "parts" / "bad").iterdir())
    detector.offset_ = float(detector.score_samples(bad).min()) - 1  # a threshold that misses all
    save(detector, model)
    assert main(["update", model, "--review", labels, "--move-threshold"]) == 0
    assert (load(model).predict(bad) == -1).all()
    assert "12 unsure (ignored)" in capsys.readouterr().out


def test_review_without_an_answer_that_changes_the_model_writes_nothing(place, model, tmp_path, capsys):
    labels = save_labels(place, tmp_path / "review.csv", lambda place, path: "unsure")
    content = Path(model).read_bytes()
    assert main(["update", model, "--review", labels]) == 0
    assert "Nothing to change" in capsys.readouterr().out
    assert main(["update", model, "--review", labels, "--move-threshold"]) == 1
    assert "has no defect" in capsys.readouterr().err
    assert Path(model).read_bytes() == content


def test_parts_of_other_products_are_not_learnt(tmp_path, capsys):
    write(tmp_path / "good" / "nut", 8, 0, level=200)
    write(tmp_path / "good" / "bolt", 8, 1, level=60)
    parts = [*write(tmp_path / "new", 2, 2, level=200), *write(tmp_path / "new", 2, 3, level=60, spot=90)]
    model = str(tmp_path / "m.skops")
    assert main(["fit", str(tmp_path / "good"), "--products", "-o", model, *FAST]) == 0
    labels = tmp_path / "review.csv"
    rows = [COLUMNS, *([path, "anomalous", "-2", "-1", "fine", "", ""] for path in parts)]
    labels.write_text("\r\n".join(map(",".join, rows)) + "\r\n", encoding="utf-8")
    before = load(model)
    assert before.identify(parts[:2]).tolist() == ["nut", "nut"]
    assert main(["update", model, "--review", str(labels), "--product", "bolt"]) == 0
    assert "2 parts left out, because the model recognises another product." in capsys.readouterr().out
    after = load(model)
    learnt = {path for member in after.estimators_ for path in member.training_paths_}
    assert not learnt & set(parts[:2])
    assert reviewed([str(labels), "--model", model], capsys)["decisions"]["source"] == "file"


@pytest.mark.parametrize("command", ["update", "review"])
def test_files_that_do_not_exist_any_more_are_named(place, model, tmp_path, capsys, command):
    labels = tmp_path / "review.csv"
    rows = [COLUMNS, *([f"gone/{i}.png", "normal", "-1", "-8", "fine", "", ""] for i in range(7))]
    labels.write_text("\r\n".join(map(",".join, rows)) + "\r\n", encoding="utf-8")
    content = Path(model).read_bytes()
    words = [model, "--review", str(labels)] if command == "update" else [str(labels), "--model", model, "--rescore"]
    assert main([command, *words]) == 1
    error = capsys.readouterr().err
    assert "7 of 7 files do not exist any more" in error
    assert "gone/0.png" in error
    assert "and 2 more" in error
    assert Path(model).read_bytes() == content


def test_model_without_a_threshold_is_refused(place, model, tmp_path, capsys):
    labels = save_labels(place, tmp_path / "review.csv")
    detector = load(model)
    detector.offset_ = np.nan
    save(detector, model)
    assert main(["review", labels, "--model", model]) == 1
    assert "has no threshold" in capsys.readouterr().err


def test_parts_that_are_all_unsure_are_not_proposed_for_a_review(place, model, tmp_path, capsys):
    labels = save_labels(place, tmp_path / "review.csv", lambda place, path: "unsure")
    assert main(["review", labels, "--model", model]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "All parts that are not flagged are marked as unsure." in text
    assert "No part that is flagged is marked as a defect or as fine." in text
    assert "Review 0" not in text
    assert "No answer" not in text


def test_reviewed_parts_with_changed_decisions_are_not_denied(place, model, tmp_path, capsys):
    flagged = {one.path for one in read_predictions(place / "out") if one.label == -1}
    labels = save_labels(
        place, tmp_path / "r.csv", lambda place, path: answers_of(place, path) if path in flagged else ""
    )
    detector = load(model)
    detector.offset_ = min(one.score for one in read_predictions(place / "out") if one.is_scored) - 1  # flags no score
    save(detector, model)
    found = reviewed([labels, "--model", model, "--rescore", "--quiet"], capsys)
    assert found["parts"]["defect"]["not flagged"] > 0
    assert main(["review", labels, "--model", model, "--rescore", "--quiet"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "No part that is not flagged, and was not flagged on the page, has an answer." in text


def test_reviewed_image_that_was_replaced_is_not_learnt(place, model, tmp_path, capsys):
    folder = tmp_path / "parts"
    shutil.copytree(place / "parts" / "alarm", folder)
    alarms = sorted(str(path) for path in folder.iterdir())
    detector = load(model)
    scores = detector.score_samples(alarms)
    labels = tmp_path / "review.csv"
    rows = [
        [p, "anomalous", repr(float(s)), repr(detector.offset_), "fine", "", ""]
        for p, s in zip(alarms, scores, strict=True)
    ]
    labels.write_text("\r\n".join(map(",".join, [COLUMNS, *rows])) + "\r\n", encoding="utf-8")
    shutil.copy(next((place / "parts" / "bad").iterdir()), alarms[1])
    assert main(["review", str(labels), "--model", model, "--rescore", "--quiet"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "ATTENTION: 1 of 3 images have another score than in the file of answers" in text
    assert main(["update", model, "--review", str(labels)]) == 0
    text = capsys.readouterr().out
    assert f"another score now, and so is not the one that was reviewed: {alarms[1]}" in text
    assert set(load(model).training_paths_[30:]) == {alarms[0], alarms[2]}


def test_commands_work_for_names_that_cannot_be_printed_or_look_like_options(place, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = "a \"b'\U0001f600.skops"
    shutil.copy(place / "parts.skops", model)
    faint, bad = (sorted((place / "parts" / kind).iterdir()) for kind in ("faint", "bad"))
    detector = load(model)
    detector.offset_ = float(detector.score_samples(list(map(str, bad))).min()) - 1  # a threshold that misses all
    save(detector, model)

    def commands(name):
        shutil.copy(faint[0], name)
        score = float(detector.score_samples([name])[0])
        row = [escape_name(name), "normal", repr(score), repr(detector.offset_), "defect", "", ""]
        Path("-labels.csv").write_text("\r\n".join(map(",".join, [COLUMNS, row])), encoding="utf-8")
        capsys.readouterr()
        assert main(["review", "--model", model, "--json", "--", "-labels.csv"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert main(shlex.split(found["teach"])[1:]) == 0
        shutil.copy(place / "parts.skops", model)
        save(detector, model)
        return {one["name"]: shlex.split(one["command"]) for one in found["thresholds"] if one["command"]}

    words = commands("-1.png")["all defects"]
    assert "./-1.png" in words
    assert main(words[1:]) == 0
    save(detector, model)
    words = commands("b\udcff.png")["all defects"]
    assert words[:2] == ["python", "-c"]  # no name in it
    subprocess.run([sys.executable, *words[1:]], check=True, capture_output=True, timeout=120)
    assert load(model).offset_ != detector.offset_


def test_learnt_defect_is_not_in_the_command_that_would_refuse_it(place, model, tmp_path, capsys):
    labels = save_labels(place, tmp_path / "review.csv")
    faint = sorted(str(path) for path in (place / "parts" / "faint").iterdir())
    assert main(["update", model, "--good", *faint[:1]]) == 0
    found = reviewed([labels, "--model", model, "--rescore", "--quiet"], capsys)
    (one,) = [one for one in found["thresholds"] if one["name"] == "all defects"]
    assert one["command"] is None or one["command"].startswith("python")
