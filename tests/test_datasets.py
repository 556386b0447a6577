from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from skpatchcore import list_images, load_image_folder
from skpatchcore.datasets import TEXTURES, make_textures
from skpatchcore.metrics import pixel_roc_auc_score


@pytest.fixture
def layout(tmp_path):
    picture = Image.fromarray(np.zeros((4, 4), np.uint8))
    for name in (
        "train/good/b.png", "train/good/a.JPG", "test/good/c.png", "test/crack/d.png", "test/hole/e.png",
        "ground_truth/crack/d_mask.png", "ground_truth/hole/e.png",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / name)
    (tmp_path / "train/good/notes.txt").write_text("not an image")
    (tmp_path / "train/good/.hidden.png").write_bytes(b"")
    return tmp_path


def test_the_layout_of_mvtec_is_read(layout):
    folder = load_image_folder(layout)
    assert [path[len(str(layout)) + 1 :] for path in folder.train_paths] == ["train/good/a.JPG", "train/good/b.png"]
    assert folder.test_defects.tolist() == ["crack", "good", "hole"]
    assert folder.test_labels.tolist() == [-1, 1, -1]
    assert folder.test_masks[1] is None
    assert folder.test_masks[0].endswith("d_mask.png")
    assert folder.test_masks[2].endswith("hole/e.png")
    frame = folder.to_frame()
    assert frame["split"].tolist() == ["train", "train", "test", "test", "test"]
    assert frame["label"].tolist() == [1, 1, -1, 1, -1]


def test_a_data_set_without_masks_is_read(layout):
    for path in (layout / "ground_truth").rglob("*.png"):
        path.unlink()
    for name in ("crack", "hole", ""):
        (layout / "ground_truth" / name).rmdir()
    assert load_image_folder(layout).test_masks.tolist() == [None, None, None]


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("train", "train/good"),
        ("test", "'test'"),
        ("ground_truth/crack", "no mask for .*d.png"),
        ("test/good/c.png", "no image"),
    ],
)
def test_what_is_missing_of_the_layout_is_named(layout, missing, message):
    (layout / missing).rename(layout / "elsewhere")
    with pytest.raises(FileNotFoundError, match=message):
        load_image_folder(layout)


def test_an_empty_test_folder_is_named(layout):
    (layout / "test").rename(layout / "elsewhere")
    (layout / "test").mkdir()
    with pytest.raises(FileNotFoundError, match="no folders of images"):
        load_image_folder(layout)


def test_images_are_listed_sorted(layout):
    assert [path[len(str(layout)) + 1 :] for path in list_images(layout / "train")] == [
        "train/good/a.JPG",
        "train/good/b.png",
    ]
    with pytest.raises(NotADirectoryError, match="nowhere"):
        list_images("nowhere")
    (layout / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no image"):
        list_images(layout / "empty")


@pytest.mark.parametrize("texture", TEXTURES)
def test_texture_tasks_are_sound(texture):
    task = make_textures(texture)
    good = task.test_labels == 1
    assert not task.test_masks[good].any()
    assert task.test_masks[~good].any(axis=(1, 2)).all()
    assert (task.test_masks[~good].mean(axis=(1, 2)) < 0.2).all()
    assert (good == (task.test_defects == "good")).all()
    again, other = make_textures(texture), make_textures(texture, random_state=1)
    assert (again.test_images == task.test_images).all()
    assert not (other.test_images == task.test_images).all()


def test_unknown_textures_are_refused():
    with pytest.raises(ValueError, match="brick"):
        make_textures("velvet")


def test_pixel_auroc_counts_all_pixels_of_all_images():
    masks = [np.array([[0, 1]]), np.array([[0], [0], [255]])]
    assert pixel_roc_auc_score(masks, [np.array([[0.1, 0.8]]), np.array([[0.2], [0.3], [0.9]])]) == 1.0
    assert pixel_roc_auc_score(masks, [np.array([[0.1, 0.25]]), np.array([[0.2], [0.3], [0.9]])]) == pytest.approx(
        5 / 6
    )


@pytest.mark.parametrize(
    ("masks", "maps", "message"),
    [
        ([np.zeros((2, 2))], [], "1 masks and 0 maps"),
        ([np.zeros((2, 2))], [np.zeros((2, 3))], "image 0"),
        ([np.zeros((2, 2))], [np.zeros((2, 2))], "not defined"),
        ([np.ones((2, 2))], [np.zeros((2, 2))], "not defined"),
        ([], [], "not defined"),
        ([np.eye(2)], [np.full((2, 2), np.nan)], "NaN"),
    ],
)
def test_pixel_auroc_refuses_what_cannot_define_it(masks, maps, message):
    with pytest.raises(ValueError, match=message):
        pixel_roc_auc_score(masks, maps)
