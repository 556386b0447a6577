"""``skpatchcore capability``: tables, report, real defects, errors."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from skpatchcore import load, save
from skpatchcore.cli.main import main
from tests.factories import detector

pytestmark = pytest.mark.filterwarnings("ignore:contamination")


@pytest.fixture(scope="module")
def top(parts, tmp_path_factory):
    """Return a folder with a model, its training images, good images, and ten defective images with masks."""
    train, good, _ = parts
    folder = tmp_path_factory.mktemp("capability")
    mask = np.zeros((48, 64), bool)
    images = {f"train/{i}.png": image for i, image in enumerate(train)}
    images |= {f"good/{i}.png": image for i, image in enumerate(good)}
    for i in range(10):
        mask[10 : 12 + 2 * i, 20 : 22 + 2 * i] = True
        images[f"bad/dent/{i}.png"] = np.where(mask[..., None], 0, good[i % 4])
        images[f"masks/dent/{i}_mask.png"] = mask.astype(float)
    for name, image in images.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255).round().astype(np.uint8)).save(folder / name)
    paths = [str(folder / f"train/{i}.png") for i in range(len(train))]
    save(detector(contamination=0.3).fit(paths), folder / "model.skops")
    return folder


def words(top, out, *more):
    return ["capability", str(top / "model.skops"), str(top / "good"), "-o", str(out), "--trials", "12", *more]


def test_capability_writes_tables_report_and_sentences(top, tmp_path, capsys):
    out = tmp_path / "out"
    given = words(top, out, "--kinds", "blob", "missing", "--contrasts", "0.5", "1")
    assert main(given) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.count("At a promised false-alarm rate of 30 %, the detector") == 4
    assert "good images are flagged" in shown
    assert shown.endswith("report.html")
    trials, table = pd.read_csv(out / "trials.csv"), pd.read_csv(out / "capability.csv")
    assert len(trials) == 4 * 12
    assert set(trials["image"]) <= {str(top / f"good/{i}.png") for i in range(4)}
    assert np.array_equal(trials["hit"], trials["score"] < load(top / "model.skops").offset_)
    assert table["kind"].tolist() == ["blob", "blob", "missing", "missing"]
    assert "Missing pieces of contrast 1" in (out / "report.html").read_text(encoding="utf-8")
    before = (out / "trials.csv").read_bytes()
    assert main([*given, "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert (out / "trials.csv").read_bytes() == before


def test_capability_of_real_defects_is_written_beside(top, tmp_path, capsys):
    out = tmp_path / "out"
    real = ["--defective", str(top / "bad"), "--masks", str(top / "masks"), "--size", "width"]
    assert main(words(top, out, "--kinds", "blob", "--contamination", "0.4", *real)) == 0
    assert "real defects of the kind 'dent'" in " ".join(capsys.readouterr().out.split())
    trials = pd.read_csv(out / "real_trials.csv")
    assert trials["size"].tolist() == [2.0 * (i + 1) for i in range(10)]
    assert trials["image"][0] == str(top / "bad/dent/0.png")
    assert pd.read_csv(out / "real_capability.csv")["size"].tolist() == ["width"]
    assert "Real defects" in (out / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--trials", "3"], "--trials 3: expected at least 12"),
        (["--contrasts", "2"], "--contrasts 2.0: expected numbers in (0, 1]"),
        (["--contamination", "0.9"], "--contamination 0.9: expected a fraction"),
        (["--defective", "nowhere", "--masks", "nowhere"], "there is no folder 'nowhere'"),
    ],
)
def test_errors_are_one_line(top, tmp_path, capsys, more, message):
    assert main(words(top, tmp_path / "out", "--quiet", *more)) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_training_images_are_refused(top, tmp_path, capsys):
    model, train = str(top / "model.skops"), str(top / "train")
    assert main(["capability", model, train, "-o", str(tmp_path / "out"), "--quiet"]) == 1
    assert "are training images of the detector" in capsys.readouterr().err


def test_masks_without_images_are_wrong_usage(top, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(words(top, tmp_path / "out", "--masks", "m"))
    assert exit_.value.code == 2
    assert "--defective and --masks must be given together" in capsys.readouterr().err
