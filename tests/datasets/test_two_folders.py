"""load_two_folders: the division of good images, kinds of defects, masks, and folders that it refuses."""

from __future__ import annotations

import os
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image

from skpatchcore.datasets import LayoutError, load_two_folders


def put(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8), np.uint8)).save(path)
    return path


@pytest.fixture
def top(tmp_path):
    for i in range(10):
        put(tmp_path / "good" / f"{i}.png", i)
    for i, name in enumerate(["scratch/0", "scratch/deep/1", "dent/0", "loose"]):
        put(tmp_path / "defective" / f"{name}.png", 100 + i)
        put(tmp_path / "masks" / f"{name}_mask.png", 200 + i)
    return tmp_path


def names(paths, top):
    return [os.path.relpath(path, top) for path in paths]


def test_load_two_folders_divides_good_images_and_tests_all_defective_ones(top):
    data = load_two_folders(top / "good", top / "defective")
    assert len(data.train_paths) == 8
    assert data.test_labels.tolist() == [1] * 2 + [-1] * 4
    assert data.test_defects.tolist() == ["good", "good", "dent", "defective", "scratch", "scratch"]
    assert names(data.test_paths[2:], top) == [
        f"defective/{name}.png" for name in ("dent/0", "loose", "scratch/0", "scratch/deep/1")
    ]
    both = [*data.train_paths, *data.test_paths[:2]]
    assert sorted(names(both, top)) == [f"good/{i}.png" for i in range(10)]
    assert data.test_masks.tolist() == [None] * 6
    assert data.split == {"test_size": 0.2, "random_state": 0}
    assert data.train_groups is None


def test_load_two_folders_repeats_its_division_for_a_seed(top):
    first, same, other = (load_two_folders(top / "good", top / "defective", random_state=i) for i in (0, 0, 1))
    assert first.train_paths.tolist() == same.train_paths.tolist()
    assert first.train_paths.tolist() != other.train_paths.tolist()


@pytest.mark.parametrize(("test_size", "n_test"), [(0.2, 2), (0.21, 3), (0.8, 8), (5, 5), (np.int64(1), 1)])
def test_load_two_folders_rounds_a_fraction_up_and_takes_a_number(top, test_size, n_test):
    data = load_two_folders(top / "good", top / "defective", test_size=test_size)
    assert (data.test_labels == 1).sum() == n_test


def test_load_two_folders_matches_masks_by_path(top):
    data = load_two_folders(top / "good", top / "defective", masks=top / "masks")
    assert data.test_masks[:2].tolist() == [None, None]
    assert names(data.test_masks[2:], top) == [
        f"masks/{name}_mask.png" for name in ("dent/0", "loose", "scratch/0", "scratch/deep/1")
    ]
    (top / "masks" / "dent" / "0_mask.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"no mask for .*dent"):
        load_two_folders(top / "good", top / "defective", masks=top / "masks")


@pytest.mark.parametrize("test_size", [0, 0.0, 1.0, -1, 1.5, True, "0.2"])
def test_load_two_folders_refuses_a_test_size_that_is_not_valid(top, test_size):
    with pytest.raises(ValueError, match=r"test_size=.* is not valid"):
        load_two_folders(top / "good", top / "defective", test_size=test_size)


@pytest.mark.parametrize("test_size", [9, 10, 0.9, 99])
def test_load_two_folders_refuses_too_few_training_images(top, test_size):
    with pytest.raises(ValueError, match=r"contains 10 good images, and test_size=.* leaves [01] of them for the fit"):
        load_two_folders(top / "good", top / "defective", test_size=test_size)


def test_load_two_folders_refuses_folders_that_share_images(top):
    with pytest.raises(ValueError, match="are the same folder"):
        load_two_folders(top / "good", top / "good" / ".." / "good")
    with pytest.raises(ValueError, match="lie within one another"):
        load_two_folders(top, top / "defective")
    with pytest.raises(ValueError, match="lie within one another"):
        load_two_folders(top / "good", top / "defective", masks=top / "defective" / "scratch")
    (top / "link").symlink_to(top / "good")
    with pytest.raises(ValueError, match="are the same folder"):
        load_two_folders(top / "good", top / "link")


@pytest.mark.parametrize("how", [shutil.copy, os.symlink, os.link])
def test_load_two_folders_refuses_an_image_that_is_good_and_defective(top, how):
    how(top / "good" / "3.png", top / "defective" / "dent" / "7.png")
    with pytest.raises(ValueError, match=r"good/3\.png' and '.*dent/7\.png' are the same image"):
        load_two_folders(top / "good", top / "defective")


def test_load_two_folders_warns_of_copies_among_good_images(top):
    for name in ("a.png", "b.png"):
        shutil.copy(top / "good" / "3.png", top / "good" / name)
    with pytest.warns(UserWarning, match=r"3 good images have the same content .*, such as .*3\.png"):
        load_two_folders(top / "good", top / "defective")


def test_load_two_folders_takes_images_of_equal_size_and_start(top):
    pixels = np.zeros((300, 300, 3), np.uint8)
    for i in range(2):  # bitmaps that differ in their last byte
        pixels[0, 0] = i
        Image.fromarray(pixels).save(top / "good" / f"{i}.bmp")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load_two_folders(top / "good", top / "defective").train_paths) == 9


def test_load_two_folders_refuses_folders_without_images(top):
    (top / "empty").mkdir()
    with pytest.raises(NotADirectoryError, match=r"there is no directory '.*gone'"):
        load_two_folders(top / "good", top / "gone")
    for good, defective in (("empty", "defective"), ("good", "empty")):
        with pytest.raises(FileNotFoundError, match=r"(holds|contains) no image"):
            load_two_folders(top / good, top / defective)


def test_load_two_folders_refuses_other_images_among_the_defective_ones(top):
    put(top / "all" / "Good" / "0.png", 300)
    put(top / "all" / "scratch" / "0.png", 301)
    with pytest.raises(LayoutError, match="is a folder of good images among the defective images"):
        load_two_folders(top / "good", top / "all")
    (top / "masks").rename(top / "defective" / "masks")
    with pytest.raises(LayoutError, match="masks of defects"):
        load_two_folders(top / "good", top / "defective")


def test_load_two_folders_refuses_a_complete_data_set(top):
    put(top / "set" / "train" / "good" / "0.png", 302)
    put(top / "set" / "test" / "good" / "0.png", 303)
    with pytest.raises(LayoutError, match="is a complete data set"):
        load_two_folders(top / "set", top / "defective")


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_load_two_folders_takes_names_that_are_not_unicode(top):
    os.rename(top / "good" / "0.png", os.fsencode(top / "good") + b"/ros\xe9.png")
    data = load_two_folders(top / "good", top / "defective")
    assert any("ros\udce9" in path for path in [*data.train_paths, *data.test_paths])
