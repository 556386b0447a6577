"""Download of public data sets: :func:`fetch_mvtec_ad`, :func:`fetch_btad` and :func:`fetch_visa`.

The archives are verified by their SHA-256 checksums, and the images are arranged in the layout of MVTec AD.
"""

from __future__ import annotations

import csv
import os
import shutil
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class _Archive:
    """Address and checksum of the archive of a data set."""

    title: str
    terms: str  # address of the page with the licence
    url: str
    suffix: str  # file ending, which determines how the archive is unpacked
    sha256: str

    @property
    def name(self) -> str:
        """Name of the folder of the data set."""
        return self.title.lower().replace(" ", "-")


_MVTEC_AD = _Archive(
    "MVTec AD",
    "https://www.mvtec.com/company/research/datasets/mvtec-ad",
    "https://www.mydrive.ch/shares/150996/b52ecdcbf521176e9db9c731f2304b27/download/420938113-1629960298/"
    "mvtec_anomaly_detection.tar.xz",
    ".tar.xz",
    "cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d",
)
_BTAD = _Archive(
    "BTAD",
    "https://avires.dimi.uniud.it/papers/btad/",
    "https://avires.dimi.uniud.it/papers/btad/btad.zip",
    ".zip",
    "461c9387e515bfed41ecaae07c50cf6b10def647b36c9e31d239ab2736b10d2a",
)
_VISA = _Archive(
    "VisA",
    "https://github.com/amazon-science/spot-diff",
    "https://amazon-visual-anomaly.s3.us-west-2.amazonaws.com/VisA_20220922.tar",
    ".tar",
    "2eb8690c803ab37de0324772964100169ec8ba1fa3f7e94291c9ca673f40f362",
)


def fetch_mvtec_ad(
    data_home: str | os.PathLike[str] | None = None, *, accept_license: bool = False, url: str | None = None
) -> Path:
    """Download the data set MVTec AD (15 categories, 5 GB) and return the path of its folder.

    A category is one kind of product, such as bottles. The folder has one subfolder per category.

    Parameters
    ----------
    data_home : path or None, default=None
        Folder in which data sets are stored. None uses the operating system's folder for caches. A data set that is
        already in the folder is not downloaded again. During the download, the archive and the unpacked files are on
        the disk, together about twice the size of the data set. The archive is deleted afterwards.
    accept_license : bool, default=False
        True confirms that you have read the licence of the data set and accept it. False raises an error.
    url : str or None, default=None
        Address of the archive. None uses the address that this package contains. Pass another address if the owner of
        the data set has moved the archive. The archive must be the same: its checksum is verified.

    Returns
    -------
    Path
        Folder with one subfolder per category, for :func:`~skpatchcore.datasets.load_categories`.

    Raises
    ------
    ValueError
        If `accept_license` is False, even if the data set is already in the folder. The error names the address of the
        licence. The error is also raised if the checksum of the downloaded archive is wrong.
    ImportError
        If the package pooch is not installed. Install pooch with ``pip install pooch``.

    References
    ----------
    Bergmann et al., "MVTec AD -- A Comprehensive Real-World Dataset for Unsupervised Anomaly Detection", CVPR 2019.
    Extended version: "The MVTec Anomaly Detection Dataset", IJCV 2021.

    Examples
    --------
    >>> from skpatchcore.datasets import fetch_mvtec_ad
    >>> fetch_mvtec_ad()
    Traceback (most recent call last):
    ValueError: MVTec AD: its licence is not accepted. Read https://www.mvtec.com/company/research/datasets/mvtec-ad ...
    """
    return _folder_of_categories(_download(_MVTEC_AD, data_home, accept_license, url))


def fetch_btad(
    data_home: str | os.PathLike[str] | None = None, *, accept_license: bool = False, url: str | None = None
) -> Path:
    """Download BTAD, the beanTech anomaly detection data set (3 categories), and return the path of its folder.

    Parameters
    ----------
    data_home : path or None, default=None
        Folder in which data sets are stored, as for :func:`fetch_mvtec_ad`. None uses the folder for caches.
    accept_license : bool, default=False
        True confirms that you have read the licence of the data set and accept it. False raises an error.
    url : str or None, default=None
        Address of the archive, as for :func:`fetch_mvtec_ad`. None uses the address that this package contains.

    Returns
    -------
    Path
        Folder with one subfolder per category, for :func:`~skpatchcore.datasets.load_categories`.

    Raises
    ------
    ValueError
        If `accept_license` is False, or if the checksum of the downloaded archive is wrong.
    ImportError
        If the package pooch is not installed. Install pooch with ``pip install pooch``.

    References
    ----------
    Mishra et al., "VT-ADL: A Vision Transformer Network for Image Anomaly Detection and Localization", ISIE 2021.
    """
    return _folder_of_categories(_download(_BTAD, data_home, accept_license, url))


def fetch_visa(
    data_home: str | os.PathLike[str] | None = None, *, accept_license: bool = False, url: str | None = None
) -> Path:
    """Download the data set VisA (12 categories), arrange its images and return the path of the new folder.

    The images are divided into training and test images by the one-class split that the authors publish. They are
    arranged in the layout of MVTec AD, as :func:`~skpatchcore.load_image_folder` describes it.

    Parameters
    ----------
    data_home : path or None, default=None
        Folder in which data sets are stored, as for :func:`fetch_mvtec_ad`. None uses the folder for caches.
    accept_license : bool, default=False
        True confirms that you have read the licence of the data set and accept it. False raises an error.
    url : str or None, default=None
        Address of the archive, as for :func:`fetch_mvtec_ad`. None uses the address that this package contains.

    Returns
    -------
    Path
        Folder with one subfolder per category, for :func:`~skpatchcore.datasets.load_categories`.

    Raises
    ------
    ValueError
        If `accept_license` is False, or if the checksum of the downloaded archive is wrong.
    ImportError
        If the package pooch is not installed. Install pooch with ``pip install pooch``.

    References
    ----------
    Zou et al., "SPot-the-Difference Self-Supervised Pre-training for Anomaly Detection and Segmentation", ECCV 2022.
    """
    folder = _download(_VISA, data_home, accept_license, url)
    table = next(folder.rglob("split_csv/1cls.csv"), None)
    if table is None:
        raise ValueError(
            f"{str(folder)!r} does not have the expected layout: the file 'split_csv/1cls.csv' is missing. Delete the "
            "folder to download the data set again."
        )
    target = folder / "one-class"
    if not target.is_dir():
        partial = folder / "one-class.partial"
        shutil.rmtree(partial, ignore_errors=True)
        arrange_visa(table, partial)
        partial.rename(target)
    return target


def arrange_visa(table: Path, target: Path) -> None:
    """Arrange the images of VisA in the layout of MVTec AD, by the table of its one-class split.

    The arranged images are hard links to the files of the data set, or copies if hard links are not possible.

    Parameters
    ----------
    table : path
        The file ``split_csv/1cls.csv`` of the data set, with the columns object, split, label, image and mask.
    target : path
        Folder in which the categories are created.

    Raises
    ------
    ValueError
        If an entry of the table points outside the data set or outside `target`.
    """
    top = table.parent.parent.resolve()
    with table.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            kind = "good" if row["label"] == "normal" else "bad"
            places = [(row["image"], target / row["object"] / row["split"] / kind)]
            if row["mask"]:
                places.append((row["mask"], target / row["object"] / "ground_truth" / kind))
            for name, folder in places:
                source = (top / name).resolve()
                if top not in source.parents or target.resolve() not in folder.resolve().parents:
                    raise ValueError(
                        f"{str(table)!r}: the row of {name!r} points to a place outside the data set. Correct the "
                        "table, or download the data set again."
                    )
                folder.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(source, folder / source.name)
                except OSError:  # the target is on another file system, or the file system has no hard links
                    shutil.copyfile(source, folder / source.name)


def _download(
    archive: _Archive, data_home: str | os.PathLike[str] | None, accept_license: bool, url: str | None
) -> Path:
    """Download, verify and unpack an archive if needed; return the folder of the unpacked archive."""
    if not accept_license:
        raise ValueError(
            f"{archive.title}: its licence is not accepted. Read {archive.terms} and, if you accept the terms, pass "
            "accept_license=True."
        )
    try:
        import pooch
    except ImportError as error:
        raise ImportError("downloads need pooch. Install it with: pip install pooch") from error
    home = Path(pooch.os_cache("skpatchcore") if data_home is None else data_home)
    target = home / archive.name
    if target.is_dir():  # the folder gets this name only after complete unpacking
        return target
    file = Path(
        pooch.retrieve(
            url or archive.url,
            known_hash=f"sha256:{archive.sha256}",
            fname=f"{archive.name}{archive.suffix}",
            path=home,
            progressbar=True,
        )
    )
    partial = home / f"{archive.name}.{os.getpid()}.partial"
    try:
        # members that point outside the folder raise an error for tar files; shutil skips them for zip files
        shutil.unpack_archive(file, partial, filter=None if archive.suffix == ".zip" else "data")
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    file.unlink()
    return target


def _folder_of_categories(folder: Path) -> Path:
    """Return the folder of the categories, which may be a subfolder of the unpacked archive."""
    found = sorted(folder.rglob("train"))
    if not found:
        raise ValueError(
            f"{str(folder)!r} does not have the expected layout: a folder 'train' is missing. Delete the "
            "folder to download the data set again."
        )
    return found[0].parent.parent
