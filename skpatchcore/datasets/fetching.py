"""Public data sets, downloaded when asked for, checked, and laid out as MVTec AD is."""

from __future__ import annotations

import csv
import os
import shutil
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class _Archive:
    """Where a data set is, and how it is known to be whole."""

    title: str
    terms: str  # the page on which its licence is
    url: str
    suffix: str  # which says how it is packed
    sha256: str

    @property
    def name(self) -> str:
        """The folder's."""
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
    """Download MVTec AD (15 categories, 5 GB) and return the folder of its categories.

    Parameters
    ----------
    data_home : path or None, default=None
        Where data sets are kept; None is a folder of the operating system for caches. What is there is not downloaded
        again. While it is unpacked, there is room needed for it twice.
    accept_license : bool, default=False
        That you have read the data set's licence, and keep to it. Nothing is downloaded without.
    url : str or None, default=None
        Another address of the same file, if its owner has moved it. The checksum is the same.

    Returns
    -------
    Path
        For :func:`~skpatchcore.datasets.load_categories`.

    Raises
    ------
    ValueError
        If the licence is not accepted (the error says where it is), or the file is not the one expected.
    ImportError
        If pooch is missing: ``pip install "skpatchcore[fetch]"``.

    References
    ----------
    Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021.

    Examples
    --------
    >>> from skpatchcore.datasets import fetch_mvtec_ad
    >>> fetch_mvtec_ad()
    Traceback (most recent call last):
    ValueError: MVTec AD has terms of its own: read https://www.mvtec.com/company/research/datasets/mvtec-ad, and ...
    """
    return _folder_of_categories(_download(_MVTEC_AD, data_home, accept_license, url))


def fetch_btad(
    data_home: str | os.PathLike[str] | None = None, *, accept_license: bool = False, url: str | None = None
) -> Path:
    """Download BTAD, the beanTech anomaly detection data set (3 categories), and return the folder of its categories.

    Parameters
    ----------
    data_home, accept_license, url
        As of :func:`fetch_mvtec_ad`.

    Returns
    -------
    Path
        For :func:`~skpatchcore.datasets.load_categories`.

    Raises
    ------
    ValueError, ImportError
        As :func:`fetch_mvtec_ad`.

    References
    ----------
    Mishra et al., "VT-ADL: A Vision Transformer Network for Image Anomaly Detection and Localization", ISIE 2021.
    """
    return _folder_of_categories(_download(_BTAD, data_home, accept_license, url))


def fetch_visa(
    data_home: str | os.PathLike[str] | None = None, *, accept_license: bool = False, url: str | None = None
) -> Path:
    """Download VisA (12 categories), lay it out by its one-class split, and return the folder of its categories.

    Parameters
    ----------
    data_home, accept_license, url
        As of :func:`fetch_mvtec_ad`.

    Returns
    -------
    Path
        For :func:`~skpatchcore.datasets.load_categories`.

    Raises
    ------
    ValueError, ImportError
        As :func:`fetch_mvtec_ad`.

    References
    ----------
    Zou et al., "SPot-the-Difference Self-Supervised Pre-training for Anomaly Detection and Segmentation", ECCV 2022.
    """
    folder = _download(_VISA, data_home, accept_license, url)
    table = next(folder.rglob("split_csv/1cls.csv"), None)
    if table is None:
        raise ValueError(f"{str(folder)!r} is not laid out as expected: it has no 'split_csv/1cls.csv'.")
    target = folder / "one-class"
    if not target.is_dir():
        partial = folder / "one-class.partial"
        shutil.rmtree(partial, ignore_errors=True)
        arrange_visa(table, partial)
        partial.rename(target)
    return target


def arrange_visa(table: Path, target: Path) -> None:
    """Lay out VisA as MVTec AD is, by a table of its own: with links to the images, or copies where there are none.

    Parameters
    ----------
    table : path
        ``split_csv/1cls.csv`` of the data set, with the columns object, split, label, image and mask.
    target : path
        Where the categories go.

    Raises
    ------
    ValueError
        If the table names a file outside the data set.
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
                    raise ValueError(f"{str(table)!r} names {name!r}, which is outside the data set.")
                folder.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(source, folder / source.name)
                except OSError:  # another file system, or one without links
                    shutil.copyfile(source, folder / source.name)


def _download(
    archive: _Archive, data_home: str | os.PathLike[str] | None, accept_license: bool, url: str | None
) -> Path:
    """Return the folder of the unpacked archive."""
    if not accept_license:
        raise ValueError(
            f"{archive.title} has terms of its own: read {archive.terms}, and if you keep to them pass "
            "accept_license=True."
        )
    try:
        import pooch
    except ImportError as error:
        raise ImportError('downloads need pooch: pip install "skpatchcore[fetch]"') from error
    home = Path(pooch.os_cache("skpatchcore") if data_home is None else data_home)
    target = home / archive.name
    if target.is_dir():  # renamed to that once it was whole
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
        # members of a tar file that point outside are refused; those of a zip file are left out by shutil
        shutil.unpack_archive(file, partial, filter=None if archive.suffix == ".zip" else "data")
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    file.unlink()
    return target


def _folder_of_categories(folder: Path) -> Path:
    """Return the folder of the categories, which an archive may hold in a folder of its own."""
    found = sorted(folder.rglob("train"))
    if not found:
        raise ValueError(f"{str(folder)!r} is not laid out as expected: it has no folder 'train'.")
    return found[0].parent.parent
