"""``skpatchcore evaluate`` on two plain folders: results, the division of images, resuming, usage errors."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from skpatchcore import TorchFeatureExtractor, load
from skpatchcore.cli.evaluate import _METHODS
from skpatchcore.cli.main import main
from skpatchcore.datasets import load_two_folders
from skpatchcore.evaluation import make_detector
from skpatchcore.evaluation.presets import METHODS

pytestmark = pytest.mark.filterwarnings("ignore:contamination")


@pytest.fixture(scope="module")
def folders(parts, tmp_path_factory):
    """Folders of ten good and three defective images of two kinds, with masks."""
    train, _, bad = parts
    top = tmp_path_factory.mktemp("parts")
    mask = np.zeros((48, 64))
    mask[16:28, 20:34] = 1
    images = {f"good/{i}.png": image for i, image in enumerate(train)}
    images |= {f"bad/{name}.png": np.roll(bad[0], 6 * i, axis=1) for i, name in enumerate(("dent/0", "dent/1", "2"))}
    images |= {f"masks/{name}_mask.png": np.roll(mask, 6 * i, 1) for i, name in enumerate(("dent/0", "dent/1", "2"))}
    for name, image in images.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255).round().astype(np.uint8)).save(top / name)
    return top


def words(folders, out):
    return ["evaluate", "--good", str(folders / "good"), "--defective", str(folders / "bad"), "-o", str(out)]


def test_evaluate_two_folders_writes_results_and_the_division(folders, tmp_path, capsys):
    out = tmp_path / "out"
    given = [*words(folders, out), "--masks", str(folders / "masks")]
    assert main(given) == 0
    shown = capsys.readouterr().out
    text = " ".join(shown.split())
    name = folders.name
    assert f"{name}: finds " in shown
    assert " of 3 defective images and flags " in shown
    assert "Fitted on 8 good images, drawn at random from 10 (seed 0)." in text
    assert "Tested on 2 other good images and 3 defective images (2 dent, 1 defective)." in text
    assert shown.strip().endswith(str(out / "report.html"))
    table = pd.read_csv(out / "results.csv", index_col="category")
    assert table.loc[name, ["n_train", "n_good", "n_defective", "n_masks"]].tolist() == [8, 2, 3, 3]
    images = pd.read_csv(out / "images.csv")
    data = load_two_folders(folders / "good", folders / "bad", masks=folders / "masks")
    assert images["path"].tolist() == [*data.train_paths, *data.test_paths]
    assert (images["split"] == "train").sum() == 8
    assert images["score"].isna().sum() == 8
    run = json.loads((out / "results.json").read_text())["runs"][0]
    assert run["settings"]["split"] == {"test_size": 0.2, "random_state": 0}
    assert run["provenance"]["split"] == {"test_size": 0.2, "random_state": 0, "n_good": 10}

    stored = out / "runs" / name / "all" / "result.json"
    made = stored.stat().st_mtime_ns
    assert main([*given, "--quiet"]) == 0  # the stored result is used again
    assert stored.stat().st_mtime_ns == made
    assert capsys.readouterr().out == ""
    assert main([*given, "--test-size", "3", "--quiet"]) == 1
    assert "made with other settings (test_size: 0.2 instead of 3)" in capsys.readouterr().err
    assert main([*given, "--seed", "1", "--quiet"]) == 1
    assert "made with other settings (random_state: 0 instead of 1)" in capsys.readouterr().err
    assert stored.stat().st_mtime_ns == made


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["root", "--good", "good", "--defective", "bad"], "ROOT and --good and --defective cannot be combined"),
        (["root", "--good", "good"], "ROOT and --good cannot be combined"),
        ([], "give ROOT, or --good and --defective"),
        (["--good", "good"], "--good needs --defective"),
        (["--defective", "bad"], "--defective needs --good"),
        (["root", "--masks", "masks"], "--masks needs --good and --defective"),
        (["root", "--test-size", "0.3"], "--test-size needs --good and --defective"),
        (["--good", "good", "--defective", "bad", "--categories", "a"], "--categories needs ROOT"),
        (["--good", "good", "--defective", "bad", "--test-size", "half"], "invalid"),
    ],
)
def test_evaluate_exits_with_2_for_contradicting_arguments(folders, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(folders)
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", *arguments, "-o", "out"])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert not (folders / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--good", "good", "--defective", "good"], "are the same folder"),
        (["--good", "good", "--defective", "gone"], "there is no directory 'gone'"),
        (
            ["--good", "good", "--defective", "bad", "--test-size", "9"],
            "and --test-size 9 leaves 1 of them for the fit",
        ),
        (["--good", "good", "--defective", "bad", "--test-size", "1.5"], "--test-size 1.5 is not valid"),
        (["--good", "good", "--defective", "bad", "-o", "good/out"], "lies in the folder of images 'good'"),
        (["--good", "good", "--defective", "bad", "-o", "bad"], "lies in the folder of images 'bad'"),
    ],
)
def test_evaluate_two_folders_explains_errors_before_the_work(folders, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(folders)
    assert main(["evaluate", "-o", "out", *arguments]) == 1
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert message in errors[0]
    assert not (folders / "out").exists()
    assert not (folders / "good" / "out").exists()


def test_help_of_evaluate_names_the_limit_of_a_random_division(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--good DIR --defective DIR [--masks DIR] -o OUT" in shown
    assert "If several photographs show the same part" in shown


def test_defaults_of_fit_evaluate_and_quick_start_are_equal_and_inspect_the_whole_image(folders, tmp_path, capsys):
    assert main(["fit", str(folders / "good"), "-o", str(tmp_path / "m.skops"), "--quiet"]) == 0
    assert capsys.readouterr().err == ""  # no warning of pixels outside a crop
    start = TorchFeatureExtractor("efficientnet_lite2", image_size=256, crop_size=None)
    for detector in (load(tmp_path / "m.skops"), make_detector("default")):
        extractor = detector.get_params()["extractor"].get_params()
        for name in ("backbone", "weights", "image_size", "crop_size", "layers", "patch_size", "n_channels"):
            assert extractor[name] == start.get_params()[name], name
        sampler = detector.get_params()["sampler"]
        assert (detector.contamination, detector.random_state, sampler.ratio) == ("auto", 0, 0.1)


def test_evaluate_of_a_method_without_maps_shows_the_images(folders, tmp_path):
    out = tmp_path / "out"
    given = [*words(folders, out), "--masks", str(folders / "masks"), "--method", "dn2", "--weights", "none", "--quiet"]
    assert main([*given, "--preset", "offline"]) == 0
    run = json.loads((out / "results.json").read_text())["runs"][0]
    pictures = run["provenance"]["pictures"]
    assert [one["kind"] for one in pictures] == ["miss"] * 3 + ["false positive"] * 2
    assert all(one["layers"]["image"] and one["layers"]["heat"] is None for one in pictures)
    assert sum(one["layers"]["truth"] is not None for one in pictures) == 3
    assert (out / "report.html").is_file()


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("autoencoder", ["--weights", "none"]),
        ("autoencoder", ["--cache", "cache"]),
        ("gan", ["--ablate", "layers"]),
        ("gan", ["--ablate", "sampler"]),
        ("dn2", ["--ablate", "patch_size", "sampler"]),
    ],
)
def test_options_that_a_method_does_not_have_are_refused(folders, tmp_path, capsys, method, options):
    out = tmp_path / "out"
    assert main([*words(folders, out), "--method", method, *options]) == 1
    message = capsys.readouterr().err
    assert options[0] in message
    assert f"the method {method} " in message
    assert not out.exists()


def test_methods_of_the_command_are_those_of_the_presets():
    assert tuple(_METHODS) == METHODS
