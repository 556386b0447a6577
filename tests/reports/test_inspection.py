"""Sizes of images for the sentence about the uninspected margin: from headers, without unreadable files."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFile
from PIL.PngImagePlugin import PngInfo

from skpatchcore import PatchCoreDetector, PatchCoreEnsemble
from skpatchcore.images.reading import image_size
from skpatchcore.reports.inspection import describe_inspection, sizes_of
from tests import factories

TURNED = Image.Exif()
TURNED[ExifTags.Base.Orientation] = 6
TEXT = PngInfo()
TEXT.add_text("Software", "a camera")


@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "bmp"])
@pytest.mark.parametrize("more", [{}, {"exif": TURNED}, {"pnginfo": TEXT}], ids=["plain", "turned", "text"])
def test_sizes_of_equals_image_size(tmp_path, ending, more):
    path = str(tmp_path / f"a.{ending}")
    Image.fromarray(np.zeros((12, 20, 3), np.uint8)).save(path, **more)
    assert sizes_of([path]) == {path: image_size(path, 0)}


def test_sizes_of_leaves_out_unreadable_files(tmp_path):
    paths = [str(tmp_path / name) for name in ("a.png", "gone.png", "text.png", "cut.png", "folder.png")]
    Image.fromarray(np.zeros((12, 20), np.uint8)).save(paths[0])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:20])
    (tmp_path / "folder.png").mkdir()
    assert sizes_of(paths) == {paths[0]: (12, 20)}


def test_sizes_of_does_not_decode_a_png_without_orientation(tmp_path, monkeypatch):
    path = str(tmp_path / "a.png")
    Image.fromarray(np.zeros((12, 20), np.uint8)).save(path)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda *given: pytest.fail("was decoded"))
    assert sizes_of([path]) == {path: (12, 20)}


@pytest.mark.parametrize("is_ensemble", [False, True])
def test_describe_inspection_uses_the_fitted_extractor_not_the_present_default(parts, is_ensemble):
    # as for a detector with extractor=None that was fitted when the default extractor had a crop
    detector = PatchCoreDetector(factories.extractor(image_size=48, crop_size=32), random_state=0)
    fitted = (PatchCoreEnsemble([("a", detector)]) if is_ensemble else detector).fit(parts[0])
    for member in fitted.estimators_ if is_ensemble else [fitted]:
        member.extractor = None
    assert "not inspected" in describe_inspection(fitted, {"a.png": (48, 64)})
