"""``skpatchcore fit --tune``: the choice of settings before the fit."""

from __future__ import annotations

import pandas as pd
import pytest
from PIL import Image

from skpatchcore import PatchWhitening, load
from skpatchcore.cli.main import main
from skpatchcore.datasets import make_textures

pytestmark = pytest.mark.filterwarnings("ignore:contamination", "ignore::skpatchcore.InspectionWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    for i, image in enumerate(make_textures("brick").train_images[:10]):
        Image.fromarray(image.squeeze()).save(folder / f"{i}.png")
    return folder


def words(folder, out, *more):
    backbone = ["--backbone", "resnet18", "--weights", "none", "--image-size", "64"]
    return ["fit", str(folder), "-o", str(out / "parts.skops"), *backbone, *more]


def test_tune_prints_the_choice_and_fits_it(folder, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "tuning"
    assert main(words(folder, tmp_path, "--tune", "--tune-output", str(out), "--ratio", "0.2")) == 0
    shown = capsys.readouterr().out
    table = pd.read_csv(out / "settings.csv")
    assert len(table) == 8  # two layers, two transformers, two image scores
    assert table["setting"].iloc[0] in shown
    assert list(pd.read_csv(out / "kinds.csv")["setting"]) == list(table["setting"])
    with Image.open(out / "settings.png") as picture:
        assert picture.width > 500
    model = load(tmp_path / "parts.skops")
    chosen = table[table["chosen"]].iloc[0]
    assert ("image_score" in str(chosen["setting"])) == (model.image_score == "map-max")
    assert model.sampler.ratio == 0.2  # the ratio of the options, not that of the comparison
    assert model.extractor.memory is None


def test_tune_output_is_checked_before_the_work(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(words(folder, tmp_path, "--tune-output", str(tmp_path / "new"))) == 1
    assert "--tune-output needs --tune" in capsys.readouterr().err
    assert main(words(folder, tmp_path, "--tune", "--tune-output", str(tmp_path / "file"))) == 1
    assert "cannot write to the folder" in capsys.readouterr().err
    (tmp_path / "out/settings.csv").mkdir(parents=True)
    assert main(words(folder, tmp_path, "--tune", "--tune-output", str(tmp_path / "out"))) == 1
    assert "settings.csv" in capsys.readouterr().err
    assert not (tmp_path / "parts.skops").exists()


def test_whitening_and_views_are_options_of_fit(folder, tmp_path):
    more = ["--whiten", "--augment", "flips", "--image-score", "map-max", "--quiet"]
    assert main(words(folder, tmp_path, *more)) == 0
    model = load(tmp_path / "parts.skops")
    assert isinstance(model.transformer_, PatchWhitening)
    assert (model.augment, model.image_score) == ("flips", "map-max")
