"""Files of answers: read_labels and merge_labels."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skpatchcore._utils.names import escape_name
from skpatchcore.reports import read_labels
from skpatchcore.reports.labels import COLUMNS, merge_labels

HEAD = ",".join(COLUMNS) + "\r\n"


def write(path, *rows, encoding="utf-8"):
    path.write_bytes((HEAD + "".join(f"{row}\r\n" for row in rows)).encode(encoding))
    return path


def test_csv_is_read_with_quotes_line_breaks_and_escaped_names(tmp_path):
    path = write(
        tmp_path / "review.csv",
        '"a,""b""\n.png",anomalous,-9.25,-8.0,defect,"two\nlines; ""x""",2026-01-02T03:04:05.006Z',
        r"part\xe9.png,unreadable,nan,,,,",
        "c.png,normal,-1.5,-8.0,Fine,'=1+1,",
        "d.png,normal,-1.5,-8.0,unsure,''=1,",
    )
    labels = read_labels(path)
    assert labels.columns.tolist() == COLUMNS
    assert labels["path"].tolist() == ['a,"b"\n.png', "part\udce9.png", "c.png", "d.png"]
    assert labels["review"].tolist() == ["defect", "", "fine", "unsure"]
    assert labels["note"].tolist() == ['two\nlines; "x"', "", "=1+1", "'=1"]
    assert labels["score"][0] == -9.25
    assert math.isnan(labels["score"][1])
    assert math.isnan(labels["threshold"][1])
    assert labels["time"][0] == "2026-01-02T03:04:05.006Z"


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_csv_of_a_spreadsheet_is_read(tmp_path, delimiter):
    rows = [COLUMNS, ["ä.png", "normal", "-1.5", "-8.0", "fine", "a note, with a comma", ""]]
    (tmp_path / "r.csv").write_text("\n".join(map(delimiter.join, rows)) + "\n", encoding="utf-8-sig")
    labels = read_labels(tmp_path / "r.csv")
    assert labels[["path", "note"]].to_numpy().tolist() == [["ä.png", "a note, with a comma"]]


NAMES = st.text(st.characters(exclude_characters="\0"), min_size=1)


@given(NAMES, st.floats(-1e6, 1e6), st.text(st.characters(exclude_categories=["Cs"])))
def test_json_returns_the_values(tmp_path_factory, name, score, note):
    path = tmp_path_factory.mktemp("labels") / "review.json"
    row = dict(zip(COLUMNS, [escape_name(name), "normal", score, None, "fine", note, ""], strict=True))
    path.write_text(json.dumps({"format": "skpatchcore review 1", "parts": [row]}), encoding="utf-8")
    (found,) = read_labels(path).to_dict("records")
    assert (found["path"], found["score"], found["note"]) == (name, score, note)


@pytest.mark.parametrize(("row", "message"), [
    ("a.png,normal,-1,-8,maybe,,", r"part 1 of .*: the answer is 'maybe'"),
    ("a.png,good,-1,-8,fine,,", "the verdict is 'good'"),
    ('a.png,normal,"-1,5",-8,fine,,', r"score='-1,5' is no number. Numbers need a decimal point"),
    ("a.png,normal", "more or fewer values"),
    ("a.png,normal,-1,-8,fine,,,more", "more or fewer values"),
    (",normal,-1,-8,fine,,", "has no path"),
    ('"a.png,normal', "damaged"),
])  # fmt: skip
def test_wrong_value_is_an_error_that_names_the_row(tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        read_labels(write(tmp_path / "r.csv", row))


def test_other_files_are_refused(tmp_path):
    (tmp_path / "scores.csv").write_text("path,score\na.png,1\n", encoding="utf-8")
    with pytest.raises(ValueError, match="it has no verdict, threshold, review"):
        read_labels(tmp_path / "scores.csv")
    (tmp_path / "x.json").write_text('{"parts": 3}', encoding="utf-8")
    with pytest.raises(ValueError, match="no file of answers"):
        read_labels(tmp_path / "x.json")
    with pytest.raises(ValueError, match="CSV UTF-8"):
        read_labels(write(tmp_path / "latin.csv", "ä.png,normal,-1,-8,fine,,", encoding="latin-1"))
    with pytest.raises(FileNotFoundError):
        read_labels(tmp_path / "missing.csv")


def test_files_are_merged_and_an_answer_completes_a_part(tmp_path):
    one = write(tmp_path / "1.csv", "a.png,normal,-1,-8,,,", "b.png,anomalous,-9,-8,defect,,")
    two = write(
        tmp_path / "2.csv", "a.png,normal,-1,-8,fine,,", "b.png,anomalous,-9,-8,defect,,", "b.png,normal,-2,-8,fine,,"
    )
    merged = merge_labels([one, two])
    assert merged[["path", "score", "review"]].to_numpy().tolist() == [
        ["a.png", -1, "fine"], ["b.png", -9, "defect"], ["b.png", -2, "fine"],
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"'b.png' is 'defect' in .*1.csv' and 'fine' in .*2.csv'"):
        merge_labels([one, two], by_path=True)


def test_answers_that_differ_are_an_error_that_names_the_part_and_both_files(tmp_path):
    one = write(tmp_path / "1.csv", "a.png,normal,-1,-8,fine,,")
    two = write(tmp_path / "2.csv", "a.png,normal,-1,-8,defect,,")
    with pytest.raises(ValueError, match=r"'a.png' is 'fine' in .*1.csv' and 'defect' in .*2.csv'"):
        merge_labels([one, two])


def test_scores_of_two_models_are_not_mixed(tmp_path):
    one = write(tmp_path / "1.csv", "a.png,normal,-1,-8,fine,,")
    two = write(tmp_path / "2.csv", "a.png,normal,-1.2,-9,fine,,")
    with pytest.raises(ValueError, match="scores of two models"):
        merge_labels([one, two])
    assert len(merge_labels([one, two], by_path=True)) == 1


def test_moved_thresholds_and_rounded_thresholds_are_scores_of_one_model(tmp_path):
    one = write(tmp_path / "1.csv", "a.png,normal,-1.25,-8.12345678901234567,fine,,", "b.png,normal,-2,-8,,,")
    two = write(tmp_path / "2.csv", "a.png,normal,-1.25,-8.12345678901235,,,", "b.png,anomalous,-2,-1.5,defect,,")
    assert merge_labels([one, two])["review"].tolist() == ["fine", "defect"]


def test_parts_with_one_name_in_one_file_may_be_of_two_models(tmp_path):
    file = write(tmp_path / "1.csv", "a.png,normal,-1,-8,fine,,", "a.png,normal,-1.2,-9,defect,,")
    assert merge_labels([file])["review"].tolist() == ["fine", "defect"]
