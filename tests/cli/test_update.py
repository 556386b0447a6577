"""The command update: new good images, false alarms, missed defects, and images to forget."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skpatchcore import PaDiMDetector, TorchFeatureExtractor, load, save
from skpatchcore.cli.main import main
from skpatchcore.deployment.files import manifest_of_file

FAST = ["--backbone", "resnet18", "--weights", "none", "--image-size", "own", "--quiet"]


def write(folder, n, seed, level=130, spot=None):
    """Write good images, or images with a spot of this grey value, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = []
    for i in range(n):
        pixels = rng.normal(level, 6, (64, 48, 3))
        if spot is not None:
            pixels[20:36, 16:32] = spot
        paths.append(folder / f"{seed}_{i}.png")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(paths[-1])
    return [str(path) for path in paths]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("update")
    write(place / "good", 10, 0)
    write(place / "new", 4, 1)
    write(place / "alarms", 2, 2, spot=160)
    write(place / "bad", 2, 3, spot=0)
    write(place / "faint", 2, 4, spot=131)
    assert main(["fit", str(place / "good"), "-o", str(place / "parts.skops"), *FAST]) == 0
    return place


@pytest.fixture
def model(place, tmp_path):
    return str(shutil.copy(place / "parts.skops", tmp_path / "parts.skops"))


def test_new_images_are_learnt_and_calibrate(place, model, capsys):
    before = load(model)
    assert main(["update", model, str(place / "new")]) == 0
    after = load(model)
    assert (before.n_images_seen_, after.n_images_seen_) == (10, 14)
    assert len(after.calibration_scores_) == 14
    np.testing.assert_array_equal(after.memory_bank_[: len(before.memory_bank_)], before.memory_bank_)
    assert set(after.bank_image_indices_) <= set(range(14))
    assert after.training_paths_[10:] == sorted(str(path) for path in (place / "new").iterdir())
    text = capsys.readouterr().out
    assert "4 images added." in text
    assert "training images 10 → 14" in text
    assert f"image threshold {before.offset_:.4g}" in text
    assert f"→ {after.promised_rate_:.3g}" in text


@pytest.mark.filterwarnings("always")
def test_folder_that_has_grown_can_be_passed_again(place, model, tmp_path, capsys):
    folder = tmp_path / "hot"
    shutil.copytree(place / "new", folder)
    assert main(["update", model, str(folder)]) == 0
    bank = load(model).memory_bank_
    write(folder, 1, 9)
    assert main(["update", model, str(folder)]) == 0
    assert "1 image added." in capsys.readouterr().out
    np.testing.assert_array_equal(load(model).memory_bank_[: len(bank)], bank)
    assert main(["update", model, str(folder)]) == 0
    captured = capsys.readouterr()
    assert "0 images added. 5 known already." in captured.out
    assert "training images of the detector already" in captured.err


def test_false_alarms_are_learnt_but_do_not_calibrate(place, model, capsys):
    paths = sorted(str(path) for path in (place / "alarms").iterdir())
    before = load(model)
    assert (before.predict(paths) == -1).all()
    assert main(["update", model, "--good", *paths]) == 0
    after = load(model)
    assert (after.predict(paths) == 1).all()
    assert len(after.calibration_scores_) == 10
    assert after.offset_ >= before.offset_  # the thresholds do not become more tolerant
    assert "2 of 2 were flagged before, 0 are flagged now" in capsys.readouterr().out


def test_missed_defects_move_the_threshold_only_if_asked(place, model, capsys):
    paths = sorted(str(path) for path in (place / "faint").iterdir())
    before = load(model)
    assert (before.predict(paths) == 1).any()
    assert main(["update", model, "--bad", *paths]) == 0
    text = capsys.readouterr().out
    same = load(model)
    assert same.offset_ == before.offset_
    assert "defective images are missed" in text
    rate = before.p_values(paths).max()
    if rate <= 0.5:
        assert f"{100 * rate:.3g} % of good images" in text
        assert main(["update", model, "--bad", *paths, "--move-threshold"]) == 0
        moved = load(model)
        assert (moved.predict(paths) == -1).all()
        assert moved.promised_rate_ == pytest.approx(rate)
        assert f"at most {100 * rate:.3g} %" in capsys.readouterr().out
    np.testing.assert_array_equal(same.memory_bank_, before.memory_bank_)


def test_threshold_moves_to_flag_a_defect_and_states_the_rate(place, model, capsys):
    detector = load(model)
    scores = np.sort(detector.calibration_scores_)  # the most anomalous first
    paths = sorted(str(path) for path in (place / "bad").iterdir())
    detector.offset_ = float(detector.score_samples(paths).min()) - 1  # a threshold that misses all
    detector.calibration_scores_[:3] = detector.score_samples(paths).min() - 2
    save(detector, model)
    assert scores[0] > detector.calibration_scores_[0]
    assert main(["update", model, "--bad", *paths, "--move-threshold"]) == 0
    moved = load(model)
    assert (moved.predict(paths) == -1).all()
    assert moved.promised_rate_ == pytest.approx(4 / 11)
    text = capsys.readouterr().out
    assert "2 of 2 defective images are missed" in text
    assert "at most 36.4 %" in text
    # The next update keeps the rate in force.
    assert main(["update", model, str(place / "new")]) == 0
    assert load(model).promised_rate_ == pytest.approx(4 / 11)


def test_no_threshold_is_set_if_it_would_flag_most_good_images(place, model, capsys):
    detector = load(model)
    paths = sorted(str(path) for path in (place / "bad").iterdir())
    detector.offset_ = float(detector.score_samples(paths).min()) - 1
    detector.calibration_scores_[:] = detector.score_samples(paths).min() - 2
    save(detector, model)
    content = Path(model).read_bytes()
    assert main(["update", model, str(place / "new"), "--bad", *paths, "--move-threshold"]) == 1
    assert "no useful threshold" in capsys.readouterr().err
    assert Path(model).read_bytes() == content


def test_forgotten_images_leave_no_row(place, model, capsys):
    detector = load(model)
    image = int(np.bincount(detector.bank_image_indices_).argmax())
    path = detector.training_paths_[image]
    rows = detector.memory_bank_[detector.bank_image_indices_ == image]
    assert len(rows)
    assert main(["update", model, "--forget", path]) == 0
    after = load(model)
    assert image not in after.bank_image_indices_
    assert not (after.memory_bank_[:, None] == rows[None]).all(axis=2).any()
    assert "1 image removed." in capsys.readouterr().out
    assert main(["update", model, "--forget", path]) == 1
    assert "0_" in capsys.readouterr().err


def test_log_names_what_was_done_and_show_prints_it(place, model, capsys):
    good, bad = (sorted(str(path) for path in (place / name).iterdir()) for name in ("alarms", "bad"))
    assert main(["update", model, str(place / "new"), "--good", *good, "--bad", *bad]) == 0
    assert main(["update", model, "--forget", load(model).training_paths_[0]]) == 0
    capsys.readouterr()
    assert main(["show", model, "--json"]) == 0
    updates = json.loads(capsys.readouterr().out)["updates"]
    assert [entry["kind"] for entry in updates] == ["fit", "partial_fit", "partial_fit", "feedback", "forget"]
    assert [entry["n_images"] for entry in updates] == [10, 4, 2, 2, 1]
    assert all(len(digest) == 64 for entry in updates[1:4] for digest in entry["digests"])
    assert updates[1]["offset"][1] == updates[2]["offset"][0]
    assert main(["show", model]) == 0
    text = capsys.readouterr().out
    assert "partial_fit, 4 images" in text
    assert updates[1]["digests"][0][:12] in text


def test_file_keeps_the_data_type_of_the_bank(place, tmp_path):
    path = tmp_path / "half.skops"
    save(load(place / "parts.skops"), path, bank_dtype="float16")
    assert main(["update", str(path), str(place / "new"), "-o", str(tmp_path / "new.skops"), "--quiet"]) == 0
    assert manifest_of_file(tmp_path / "new.skops")["bank"]["stored as"] == "float16"
    assert load(path).n_images_seen_ == 10


def test_growth_by_ratio_keeps_the_fraction_of_the_patches(place, model):
    before = load(model)
    n_patches = len(before.memory_bank_) / before.sampler_.ratio
    assert main(["update", model, str(place / "new"), "--growth", "ratio", "--quiet"]) == 0
    after = load(model)
    assert len(after.memory_bank_) == pytest.approx(1.4 * n_patches * before.sampler_.ratio, abs=2)


@pytest.mark.parametrize(("words", "message"), [
    ([], "nothing to do"),
    (["{new}", "--move-threshold"], "--move-threshold needs --bad"),
    (["{new}", "--bad", "{new}"], "is given as good and as defective"),
    (["{new}", "--product", "nut"], "has no products"),
    (["--forget", "never_seen.png"], "never_seen.png"),
    (["missing_folder"], "missing_folder"),
])  # fmt: skip
def test_wrong_use_is_explained_and_changes_nothing(place, model, capsys, words, message):
    content = Path(model).read_bytes()
    assert main(["update", model, *(word.format(new=place / "new") for word in words)]) == 1
    assert message in capsys.readouterr().err
    assert Path(model).read_bytes() == content


def test_unreadable_image_changes_nothing(place, model, tmp_path, capsys):
    content = Path(model).read_bytes()
    (tmp_path / "broken.png").write_bytes(b"no image")
    assert main(["update", model, str(place / "new"), "--good", str(tmp_path / "broken.png")]) == 1
    assert "broken.png" in capsys.readouterr().err
    assert Path(model).read_bytes() == content


def test_other_detectors_are_refused(place, tmp_path, capsys):
    extractor = TorchFeatureExtractor("resnet18", weights=None, image_size=(64, 64))
    paths = [str(path) for path in (place / "good").iterdir()]
    save(PaDiMDetector(extractor, n_channels=20, random_state=0).fit(paths), tmp_path / "p.skops")
    assert main(["update", str(tmp_path / "p.skops"), str(place / "new")]) == 1
    assert "a PaDiMDetector cannot be updated" in capsys.readouterr().err


def test_folders_follow_the_rules_of_fit(place, model, tmp_path, capsys):
    content = Path(model).read_bytes()
    write(tmp_path / "set" / "good", 2, 11)
    write(tmp_path / "set" / "bad", 2, 12, spot=0)
    assert main(["update", model, str(tmp_path / "set")]) == 1
    assert Path(model).read_bytes() == content
    assert main(["update", model, str(tmp_path / "set" / "good"), "--quiet"]) == 0
    assert load(model).n_images_seen_ == 12


@pytest.mark.filterwarnings("always")
def test_many_flagged_new_images_are_reported(place, model, capsys):
    assert main(["update", model, str(place / "bad"), str(place / "alarms")]) == 0
    captured = capsys.readouterr()
    assert "4 of 4 new images are flagged by the detector as it was" in captured.err
    assert "--forget" in captured.err or "forget" in captured.err
    assert load(model).updates_[-1]["note"] == "4 of 4 were flagged before"


def test_defective_training_image_must_be_forgotten_first(place, model, capsys):
    path = load(model).training_paths_[0]
    assert main(["update", model, "--bad", path]) == 1
    assert "is a training image of the model: remove it with --forget first" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_killed_update_leaves_a_whole_file(place, model):
    """The process is killed at several moments, also while it writes. The file is then the old or the new one."""
    words = [sys.executable, "-m", "skpatchcore", "update", model, str(place / "new"), "--quiet"]

    for delay in (1.0, 2.5, 4.0):
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
        assert load(model).n_images_seen_ in (10, 14)


def test_write_that_fails_leaves_the_old_file(place, model, monkeypatch, capsys):
    from skpatchcore.deployment import files

    content = Path(model).read_bytes()

    def fail(archive):
        raise OSError(28, "No space left on device")

    detector = load(model)
    monkeypatch.setattr("skpatchcore.cli.update.load_detector", lambda path, trusted: detector)
    monkeypatch.setattr("skpatchcore.cli.show.manifest_or_none", lambda path: None)
    monkeypatch.setattr(files, "_digests", fail)
    assert main(["update", model, str(place / "new")]) == 1
    assert "No space left" in capsys.readouterr().err
    assert Path(model).read_bytes() == content
