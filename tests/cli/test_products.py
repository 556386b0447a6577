"""The commands fit --products and predict with a model of several products."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from skpatchcore import MultiProductDetector, load
from skpatchcore.cli.main import main
from tests.reports.pages import cards_of

FAST = ["--backbone", "resnet18", "--weights", "none", "--image-size", "own", "--quiet"]


def write_images(folder, level, n, seed):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(n):
        pixels = rng.normal(level, 6, (64, 48, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("products")
    write_images(place / "train" / "nut", 80, 8, 0)
    write_images(place / "train" / "bolt" / "train" / "good", 180, 8, 1)
    write_images(place / "new" / "nuts", 80, 3, 2)
    write_images(place / "new" / "bolts", 180, 3, 3)
    strange = np.random.default_rng(4).integers(0, 255, (64, 48, 3)).astype(np.uint8)
    Image.fromarray(strange).save(place / "new" / "strange.png")
    words = ["fit", str(place / "train"), "--products", "-o", str(place / "parts.skops"), *FAST]
    assert main(words) == 0
    return place


def test_fit_learns_one_product_per_folder(place):
    model = load(place / "parts.skops")
    assert isinstance(model, MultiProductDetector)
    assert model.products_.tolist() == ["bolt", "nut"]
    assert [len(member.training_paths_) for member in model.estimators_] == [8, 8]
    assert all("bolt" in path for path in model.for_product("bolt").training_paths_)
    assert [member.verbose for member in model.estimators_] == [0, 0]


def test_predict_writes_the_product_of_each_image(place, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["predict", str(place / "parts.skops"), str(place / "new"), "-o", str(out), "--report"]) == 0
    with (out / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["path"]: row for row in csv.DictReader(file)}
    products = {path: row["product"] for path, row in rows.items()}
    assert {product for path, product in products.items() if "nuts" in path} == {"nut"}
    assert {product for path, product in products.items() if "bolts" in path} == {"bolt"}
    strange = rows[str(place / "new" / "strange.png")]
    assert (strange["product"], strange["label"]) == ("", "-1")
    assert "none of the products: 1 (1 anomalous)" in capsys.readouterr().out
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "none of the products" in page
    assert len(cards_of(out / "report.html")) == 7
    # A later run removes the maps that the table with products lists.
    maps = {row["map"] for row in rows.values()}
    assert main(["predict", str(place / "parts.skops"), str(place / "new" / "nuts"), "-o", str(out), "--quiet"]) == 0
    assert not (maps & {path.name for path in out.glob("new_bolts*.png")})


def test_predict_uses_the_given_product(place, tmp_path):
    words = ["predict", str(place / "parts.skops"), str(place / "new" / "bolts"), "-o", str(tmp_path), "--quiet"]
    assert main([*words, "--product", "nut"]) == 0
    with (tmp_path / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["product"] for row in rows} == {"nut"}
    assert {row["label"] for row in rows} == {"-1"}


@pytest.mark.parametrize(("words", "message"), [
    (["predict", "{model}", "{new}", "-o", "{out}", "--product", "screw"], "the model knows bolt, nut"),
    (["fit", "{train}/nut", "--products", "-o", "{out}/m.skops"], "must contain one folder per product"),
    (["fit", "{train}", "--products", "--tune", "-o", "{out}/m.skops"], "--tune: settings are chosen for one product"),
])  # fmt: skip
def test_wrong_use_is_explained(place, tmp_path, capsys, words, message):
    names = {"model": place / "parts.skops", "new": place / "new", "train": place / "train", "out": tmp_path}
    assert main([word.format(**names) for word in words]) == 1
    assert message in capsys.readouterr().err


def test_show_prints_the_thresholds_of_each_product(place, capsys):
    assert main(["show", str(place / "parts.skops")]) == 0
    text = capsys.readouterr().out
    assert text.index("Product bolt") < text.index("Product nut")
    for row in load(place / "parts.skops").thresholds().itertuples():
        assert f"{row.offset:.6g}" in text
