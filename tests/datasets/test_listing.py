from __future__ import annotations

import os
import re
import warnings

import numpy as np
import pytest
from PIL import Image

from skpatchcore import list_images
from skpatchcore.datasets import LayoutError, list_test_images, list_training_images, load_image_folder
from skpatchcore.images.formats import FORMATS, has_image_suffix, pillow_formats

PICTURE = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))


def put(top, *names):
    for name in names:
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        PICTURE.save(top / name, "PNG")
    return top


def names_of(paths, top):
    return [os.path.relpath(path, top) for path in paths]


def test_list_images_finds_the_endings_of_all_formats(tmp_path):
    names = [f"{ending[1:]}{ending}" for endings in FORMATS.values() for ending in endings]
    assert names_of(list_images(put(tmp_path, *names, "PART.PNG")), tmp_path) == sorted([*names, "PART.PNG"])
    assert {"PNG", "JPEG", "TIFF", "BMP", "PPM"} <= set(pillow_formats()) <= set(FORMATS)
    assert not has_image_suffix("notes.txt")


def test_list_images_warns_of_files_without_an_image_ending(tmp_path):
    put(tmp_path, "a.png", "b/c.raw", "b/d.raw", "b/e", ".hidden/f.txt", "b/.g", "Thumbs.db")
    with pytest.warns(UserWarning, match=r"3 files .* left out \(2 \.raw, 1 without ending\)") as caught:
        assert names_of(list_images(tmp_path), tmp_path) == ["a.png"]
    assert caught[0].filename == __file__
    (tmp_path / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no image .* 3 files"):
        list_images(tmp_path)


def test_list_images_follows_linked_folders_once_and_ends_in_cycles(tmp_path):
    put(tmp_path, "store/x.png", "new/a.png", "new/deep/b.png")
    os.symlink(tmp_path / "store", tmp_path / "new" / "camera2")
    os.symlink(tmp_path / "store", tmp_path / "new" / "camera3")
    os.symlink(tmp_path / "new", tmp_path / "new" / "deep" / "circle")
    os.symlink(tmp_path / "new" / "deep", tmp_path / "new" / "again")
    assert names_of(list_images(tmp_path / "new"), tmp_path / "new") == ["a.png", "camera2/x.png", "deep/b.png"]


def test_list_images_lists_broken_links(tmp_path):
    put(tmp_path, "a.png")
    os.symlink(tmp_path / "gone.png", tmp_path / "lost.png")
    assert names_of(list_images(tmp_path), tmp_path) == ["a.png", "lost.png"]


def test_list_images_warns_of_masks(tmp_path):
    put(tmp_path, "test/a.png", "Ground_Truth/a.png", "b.png", "b_mask.png", "c_mask.png")
    with pytest.warns(UserWarning, match=r"2 of 5 images look like masks"):
        list_images(tmp_path)


LAYOUTS = {
    "MVTec AD": (["train/good/0.png"], ["test/good/1.png", "test/crack/2.png"], ["ground_truth/crack/2_mask.png"]),
    "BTAD": (["train/ok/0.bmp"], ["test/ok/1.bmp", "test/ko/2.bmp"], ["ground_truth/ko/2.png"]),
    "upper case": (["Train/OK/0.bmp"], ["Test/ok/1.bmp", "Test/KO/2.bmp"], ["Ground_Truth/KO/2.png"]),
    "MVTec AD 2": (
        ["train/good/0.png"], ["test_public/good/1.png", "test_public/bad/2.png"],
        ["test_public/ground_truth/bad/2_mask.png", "validation/good/3.png", "test_private/4.png"],
    ),
    "VisA": (["train/good/0.JPG"], ["test/good/1.JPG", "test/bad/2.JPG"], ["ground_truth/bad/2.png"]),
    "MVTec 3D-AD": (
        ["train/good/rgb/0.png"], ["test/good/rgb/1.png", "test/hole/rgb/2.png"],
        ["test/hole/gt/2.png", "train/good/xyz/0.tiff", "test/good/xyz/1.tiff", "validation/good/rgb/3.png"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_known_layouts_are_recognised_by_all_listing_functions(name, tmp_path):
    train, test, others = LAYOUTS[name]
    put(tmp_path, *train, *test, *others)
    assert names_of(list_training_images(tmp_path), tmp_path) == train
    with pytest.warns(UserWarning, match="is a data set: only the 2 images in .* are listed"):
        assert sorted(names_of(list_test_images(tmp_path), tmp_path)) == sorted(test)
    data = load_image_folder(tmp_path)
    assert names_of(data.train_paths, tmp_path) == train
    assert sorted(names_of(data.test_paths, tmp_path)) == sorted(test)
    assert sorted(data.test_labels) == [-1, 1]
    assert sum(mask is not None for mask in data.test_masks) == 1


@pytest.mark.parametrize(
    ("names", "message"),
    {
        "categories": (
            ["a/train/good/0.png", "a/test/bad/1.png", "b/train/good/0.png", "b/test/bad/1.png"],
            "holds 2 data sets (a, b). Pass the folder of one data set, such as '{top}/a'",
        ),
        "good and bad": (
            ["good/0.png", "bad/1.png"],
            "holds 'bad', which are not images of good parts. Pass the folder of good images, such as '{top}/good'",
        ),
        "good and a defect": (
            ["good/0.png", "scratch/1.png"],
            "holds images outside of 'good', which may not be good. Pass '{top}/good' instead",
        ),
        "good and images": (["good/0.png", "1.png"], "holds images outside of 'good'"),
        "test": (["train/0.png", "test/1.png"], "Pass the folder of good images, such as '{top}/train'"),
        "masks": (["0.png", "masks/0.png"], "holds 'masks'"),
        "masks beside": (["0.png", "0_mask.png"], "holds masks of defects, such as '{top}/0_mask.png'"),
        "VisA as it comes": (
            ["Data/Images/Normal/0.JPG", "Data/Images/Anomaly/1.JPG", "Data/Masks/Anomaly/1.png"], "holds 'Masks'",
        ),
        "MTD as it comes": (["MT_Free/Imgs/0.jpg", "MT_Free/Imgs/0.png"], "such as '{top}/MT_Free/Imgs/0.png'"),
        "AITEX as it comes": (
            ["NODefect_images/0.png", "Defect_images/1.png", "Mask_images/1_mask.png"],
            "such as '{top}/NODefect_images'",
        ),
        "DAGM as it comes": (["Train/1.PNG", "Train/Label/1_label.PNG"], "holds 'Label'"),
        "deep": (["line1/good/0.png", "line1/ng/1.png"], "'{top}/line1/good'"),
    }.values(),
)  # fmt: skip
def test_list_training_images_refuses_folders_with_other_images_and_names_the_folder_to_pass(names, message, tmp_path):
    put(tmp_path, *names)
    with pytest.raises(LayoutError, match=re.escape(message.format(top=tmp_path))):
        list_training_images(tmp_path)


@pytest.mark.parametrize(
    "names", [["0.png"], ["camera1/0.png", "camera2/0.png"], ["good/0.png"], ["2026-01/good/0.png"]]
)
def test_list_training_images_lists_all_images_of_a_plain_folder(names, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert names_of(list_training_images(put(tmp_path, *names)), tmp_path) == names


def test_list_training_images_accepts_a_folder_named_labels(tmp_path):
    put(tmp_path, "labels/0.png")
    assert names_of(list_training_images(tmp_path / "labels"), tmp_path) == ["labels/0.png"]


def test_list_test_images_refuses_folders_of_masks_and_of_categories(tmp_path):
    put(tmp_path, "a/train/good/0.png", "a/test/bad/1.png", "a/ground_truth/bad/1.png", "mixed/0.png", "mixed/gt/0.png")
    for name, message in ((".", "holds 1 data sets"), ("a/ground_truth", "folder of masks"), ("mixed", "holds masks")):
        with pytest.raises(LayoutError, match=message):
            list_test_images(tmp_path / name)
    put(tmp_path, "new/good/0.png", "new/bad/1.png")
    assert len(list_test_images(tmp_path / "new")) == 2


def test_list_training_images_ignores_text_files_and_empty_folders(tmp_path):
    put(tmp_path, "good/0.png")
    (tmp_path / "readme.txt").write_text("notes")
    (tmp_path / "notes").mkdir()
    with pytest.warns(UserWarning, match="1 files .* left out"):
        assert names_of(list_training_images(tmp_path), tmp_path) == ["good/0.png"]


def test_test_images_without_a_subfolder_are_listed_and_load_image_folder_warns(tmp_path):
    put(tmp_path, "train/good/0.png", "test/good/1.png", "test/bad/2.png", "test/3.png", "test/out/4.png")
    with pytest.warns(UserWarning, match="is a data set"):
        found = list_test_images(tmp_path, exclude=tmp_path / "test" / "out")
    assert names_of(found, tmp_path / "test") == ["3.png", "bad/2.png", "good/1.png"]
    with pytest.warns(UserWarning, match=r"1 images are directly in .*3\.png"):
        load_image_folder(tmp_path)


def test_load_image_folder_does_not_treat_masks_as_a_kind_of_defect(tmp_path):
    put(tmp_path, "train/good/0.png", "test/good/1.png", "test/bad/2.png", "ground_truth/bad/2.png", "test/masks/2.png")
    assert set(load_image_folder(tmp_path).test_defects) == {"good", "bad"}


def test_listing_functions_refuse_folders_that_hold_only_masks(tmp_path):
    put(tmp_path, "drawn/0_mask.png", "drawn/1_mask.png", "bottle/ground_truth/crack/0.png")
    for name in ("drawn", "bottle/ground_truth", "bottle/ground_truth/crack"):
        for listed in (list_training_images, list_test_images):
            with pytest.raises(LayoutError, match="masks"):
                listed(tmp_path / name)


def test_list_images_leaves_out_heat_maps_of_earlier_predictions_and_warns(tmp_path):
    put(tmp_path, "0.png", "monday/0.png", "monday/own.png")
    (tmp_path / "monday" / "scores.csv").write_text(
        "path,score,decision,label,p_value,map,problem\n0.png,-1,1,1,1,0.png,\n"
    )
    with (
        pytest.warns(UserWarning, match="results of skpatchcore predict: its 1 heat maps"),
        pytest.warns(UserWarning, match="csv"),
    ):
        found = list_images(tmp_path)
    assert names_of(found, tmp_path) == ["0.png", "monday/own.png"]
