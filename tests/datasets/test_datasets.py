from __future__ import annotations

import functools
import hashlib
import http.server
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from skpatchcore import list_images, load_image_folder
from skpatchcore.datasets import (
    TEXTURES,
    fetch_btad,
    fetch_mvtec_ad,
    fetch_visa,
    fetching,
    load_categories,
    make_textures,
    read_mask,
)
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
    (tmp_path / "train/good/.hidden.png").write_bytes(b"")
    return tmp_path


def test_load_image_folder_reads_the_layout_of_mvtec_ad(layout):
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


def test_load_image_folder_reads_a_data_set_without_masks(layout):
    for path in (layout / "ground_truth").rglob("*.png"):
        path.unlink()
    for name in ("crack", "hole", ""):
        (layout / "ground_truth" / name).rmdir()
    assert load_image_folder(layout).test_masks.tolist() == [None, None, None]


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("train/good", "train' has no folder 'good'"),
        ("test", "'test'"),
        ("ground_truth/crack", "no mask for .*d.png"),
        ("test/good/c.png", "no image"),
    ],
)
def test_load_image_folder_error_names_the_missing_part(layout, missing, message):
    (layout / missing).rename(layout / "elsewhere")
    with pytest.raises(FileNotFoundError, match=message):
        load_image_folder(layout)


def test_load_image_folder_refuses_an_empty_test_folder(layout):
    (layout / "test").rename(layout / "elsewhere")
    (layout / "test").mkdir()
    with pytest.raises(FileNotFoundError, match="no folders of images"):
        load_image_folder(layout)


def test_list_images_is_sorted_and_refuses_missing_and_empty_folders(layout):
    assert [path[len(str(layout)) + 1 :] for path in list_images(layout / "train")] == [
        "train/good/a.JPG",
        "train/good/b.png",
    ]
    with pytest.raises(NotADirectoryError, match="nowhere"):
        list_images("nowhere")
    (layout / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no image"):
        list_images(layout / "empty")


@pytest.mark.parametrize(
    ("names", "mask"),
    [
        (("train/ok/a.bmp", "test/ok/b.bmp", "test/ko/c.bmp", "ground_truth/ko/c.bmp"), "ground_truth/ko/c.bmp"),
        (("train/ok/a.png", "test/ok/b.bmp", "test/ko/c.bmp", "ground_truth/ko/c.png"), "ground_truth/ko/c.png"),
        (
            (
                "train/good/a.png", "validation/good/v.png", "test_public/good/b.png", "test_public/bad/c.png",
                "test_public/ground_truth/bad/c_mask.png",
            ),
            "test_public/ground_truth/bad/c_mask.png",
        ),
        (
            ("train/good/a.JPG", "test/good/b.JPG", "test/bad/c.JPG", "ground_truth/bad/c.png"),
            "ground_truth/bad/c.png",
        ),
    ],
    ids=["BTAD", "BTAD with masks of another format", "MVTec AD 2", "VisA"],
)  # fmt: skip
def test_load_image_folder_reads_similar_layouts(tmp_path, names, mask):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / name, format="PNG")
    folder = load_image_folder(tmp_path)
    assert len(folder.train_paths) == 1
    assert sorted(folder.test_labels.tolist()) == [-1, 1]
    assert set(folder.test_defects) == {"good", names[-1].split("/")[-2]}
    assert [m for m in folder.test_masks if m] == [str(tmp_path / mask)]


def test_load_categories_finds_folders_in_the_layout_of_mvtec_ad(layout, tmp_path_factory):
    assert list(load_categories(layout)) == [layout.name]
    root = tmp_path_factory.mktemp("sets")
    for name in ("screw", "cable"):
        (root / name).symlink_to(layout)
    (root / "license.txt").write_text("terms")
    (root / "notes").mkdir()
    assert list(load_categories(root)) == ["cable", "screw"]
    assert list(load_categories(root, ["screw"])) == ["screw"]
    with pytest.raises(FileNotFoundError, match=r"no category 'zipper'\. The categories are cable, screw"):
        load_categories(root, ["zipper"])
    with pytest.raises(FileNotFoundError, match="no directory"):
        load_categories(root / "nothing")
    with pytest.raises(FileNotFoundError, match="no folder 'train', and none of its folders has a folder 'train'"):
        load_categories(root / "notes")


@pytest.mark.parametrize(
    ("name", "pixels", "expected"),
    [
        ("m.png", [0, 127, 128, 255], [0, 1, 1, 1]),
        ("m.png", [0, 0, 1, 1], [0, 0, 1, 1]),
        ("m.png", [0, 3, 0, 7], [0, 1, 0, 1]),
        ("palette.png", [0, 1, 2, 0], [0, 1, 1, 0]),
    ],
)
def test_read_mask_reads_grey_and_palette_files(tmp_path, name, pixels, expected):
    picture = Image.fromarray(np.array(pixels, np.uint8).reshape(2, 2))
    if name == "palette.png":
        picture.putpalette([0, 0, 0, 128, 0, 0, 0, 0, 128])
    picture.save(tmp_path / name)
    assert read_mask(str(tmp_path / name), (2, 2)).ravel().tolist() == expected
    with pytest.raises(ValueError, match=f"the mask '.*{name}' has shape"):
        read_mask(str(tmp_path / name), (2, 3))


def test_read_mask_refuses_a_damaged_file_and_a_missing_size(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)).save(tmp_path / "mask.png")
    content = (tmp_path / "mask.png").read_bytes()
    (tmp_path / "mask.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"the mask '.*mask\.png' cannot be read"):
        read_mask(tmp_path / "mask.png")
    with pytest.raises(ValueError, match=r"there is no mask, and size is None\. Pass size="):
        read_mask(None)


def test_load_image_folder_ignores_hidden_folders(layout):
    (layout / "test" / ".checkpoints").mkdir()
    assert load_image_folder(layout).test_defects.tolist() == ["crack", "good", "hole"]


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Serve archives of small data sets on localhost; the addresses and checksums of the package are replaced."""
    pytest.importorskip("pooch")
    content, www = tmp_path / "content", tmp_path / "www"
    www.mkdir()
    picture = Image.fromarray(np.zeros((4, 4), np.uint8))
    for name in (
        "mvtec/bottle/train/good/0.png", "mvtec/bottle/test/good/1.png",
        "visa/pcb/Data/Images/Normal/0.JPG", "visa/pcb/Data/Images/Normal/1.JPG",
        "visa/pcb/Data/Images/Anomaly/2.JPG", "visa/pcb/Data/Masks/Anomaly/2.png",
    ):  # fmt: skip
        (content / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(content / name)
    (content / "visa/split_csv").mkdir()
    (content / "visa/split_csv/1cls.csv").write_text(
        "object,split,label,image,mask\n"
        "pcb,train,normal,pcb/Data/Images/Normal/0.JPG,\n"
        "pcb,test,normal,pcb/Data/Images/Normal/1.JPG,\n"
        "pcb,test,anomaly,pcb/Data/Images/Anomaly/2.JPG,pcb/Data/Masks/Anomaly/2.png\n"
    )
    shutil.make_archive(str(www / "mvtec"), "xztar", content / "mvtec")
    shutil.make_archive(str(www / "btad"), "zip", content, "mvtec")
    shutil.make_archive(str(www / "visa"), "tar", content / "visa")
    handler = functools.partial(QuietHandler, directory=str(www))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name, file in (("_MVTEC_AD", "mvtec.tar.xz"), ("_BTAD", "btad.zip"), ("_VISA", "visa.tar")):
            changed = replace(
                getattr(fetching, name),
                url=f"http://127.0.0.1:{server.server_port}/{file}",
                sha256=hashlib.sha256((www / file).read_bytes()).hexdigest(),
            )
            monkeypatch.setattr(fetching, name, changed)
        yield www
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_fetch_downloads_data_sets_once_and_arranges_them(served, tmp_path):
    home = tmp_path / "home"
    for fetch in (fetch_mvtec_ad, fetch_btad):
        categories = load_categories(fetch(home, accept_license=True))
        assert list(categories) == ["bottle"]
    visa = load_categories(fetch_visa(home, accept_license=True))["pcb"]
    assert (len(visa.train_paths), visa.test_labels.tolist()) == (1, [-1, 1])
    assert visa.test_masks[0].endswith("ground_truth/bad/2.png")
    for file in served.iterdir():
        file.unlink()  # later calls cannot download
    assert load_categories(fetch_visa(home, accept_license=True))["pcb"].test_paths.tolist() == visa.test_paths.tolist()
    assert "bottle" in load_categories(fetch_mvtec_ad(home, accept_license=True, url="http://127.0.0.1:1/moved"))
    assert not [path for path in home.iterdir() if path.is_file() or path.suffix == ".partial"]


def test_fetch_refuses_without_accepted_licence_and_with_wrong_checksum(served, tmp_path):
    with pytest.raises(ValueError, match=r"VisA: its licence is not accepted\. Read https"):
        fetch_visa(tmp_path / "home")
    assert not (tmp_path / "home").exists()
    (served / "btad.zip").write_bytes(b"something else")
    with pytest.raises(ValueError, match="hash"):
        fetch_btad(tmp_path / "home", accept_license=True)
    assert not list((tmp_path / "home").rglob("*.zip"))


def test_arrange_visa_refuses_paths_outside_the_data_set(tmp_path):
    table = tmp_path / "set" / "split_csv" / "1cls.csv"
    table.parent.mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(b"")
    table.write_text("object,split,label,image,mask\npcb,train,normal,../secret.png,\n")
    with pytest.raises(ValueError, match="outside the data set"):
        fetching.arrange_visa(table, tmp_path / "out")
    table.write_text("object,split,label,image,mask\n../..,train,normal,split_csv/1cls.csv,\n")
    with pytest.raises(ValueError, match="outside the data set"):
        fetching.arrange_visa(table, tmp_path / "out")


@pytest.mark.parametrize("texture", TEXTURES)
def test_make_textures_labels_match_masks_and_depend_on_random_state(texture):
    task = make_textures(texture)
    good = task.test_labels == 1
    assert not task.test_masks[good].any()
    assert task.test_masks[~good].any(axis=(1, 2)).all()
    assert (task.test_masks[~good].mean(axis=(1, 2)) < 0.2).all()
    assert (good == (task.test_defects == "good")).all()
    again, other = make_textures(texture), make_textures(texture, random_state=1)
    assert (again.test_images == task.test_images).all()
    assert not (other.test_images == task.test_images).all()


def test_make_textures_refuses_unknown_textures():
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
def test_pixel_auroc_refuses_invalid_masks_and_maps(masks, maps, message):
    with pytest.raises(ValueError, match=message):
        pixel_roc_auc_score(masks, maps)
