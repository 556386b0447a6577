"""Fitted detectors as files: whole or not at all, checked when they are read, and without code in them."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import is_dataclass
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.neighbors import BallTree, KDTree
from sklearn.utils.validation import check_is_fitted

from skpatchcore._utils.files import written_whole
from skpatchcore._utils.sklearn import versions_apart, warn_of_versions
from skpatchcore._utils.warning import warn_user
from skpatchcore._version import __version__
from skpatchcore.bank.memory_bank import as_half, with_bank

_FORMAT = 1  # changes with what files hold
_MANIFEST = "skpatchcore.json"
_OF_PICKLES = (".pkl", ".pickle", ".joblib")  # endings that other libraries take for pickles
_SPLITTERS = (
    "GroupKFold", "GroupShuffleSplit", "KFold", "LeaveOneGroupOut", "LeaveOneOut", "LeavePGroupsOut", "LeavePOut",
    "PredefinedSplit", "RepeatedKFold", "RepeatedStratifiedKFold", "ShuffleSplit", "StratifiedGroupKFold",
    "StratifiedKFold", "StratifiedShuffleSplit", "TimeSeriesSplit",
)  # fmt: skip
# What a file may hold beside what skops trusts anyway: numbers, arrays, scikit-learn's estimators.
_TRUSTED = (
    "skpatchcore.detectors.padim.Gaussians",
    "skpatchcore.detectors.padim.PaDiMDetector",
    "skpatchcore.detectors.spade.Gallery",
    "skpatchcore.detectors.spade.SPADEDetector",
    "skpatchcore.coreset.greedy.GreedyCoresetSampler",
    "skpatchcore.coreset.proxies.LearnedProxySampler",
    "skpatchcore.coreset.uniform.RandomSampler",
    "skpatchcore.detectors.patchcore.PatchCoreDetector",
    "skpatchcore.detectors.ensemble.PatchCoreEnsemble",
    "skpatchcore.features.extractor.TorchFeatureExtractor",
    "skpatchcore.index.exact.ExactIndex",
    "skpatchcore.index.pynndescent.PyNNDescentIndex",
    "skpatchcore.bank.memory_bank.SameAsBank",
    "sklearn.neighbors._ball_tree.BallTree",
    "sklearn.neighbors._kd_tree.KDTree",
    "sklearn.metrics._dist_metrics.EuclideanDistance64",
    "sklearn.metrics._dist_metrics.MinkowskiDistance64",
    *(f"sklearn.model_selection._split.{name}" for name in _SPLITTERS),
)
_PACKAGES = ("scikit-learn", "numpy", "torch", "skops")


class ModelFileError(ValueError):
    """A file that can't be used as a model; the message names the file and what is wrong with it."""


def save(detector: Any, path: str | os.PathLike[str], *, bank_dtype: str | None = None) -> None:
    """Write a fitted detector to a file that holds no code, for :func:`load`.

    Whatever happens meanwhile (an error, a kill, a loss of power), the file that was there before is still there, or
    the new one is, whole. Before it takes the place it is read back.

    Parameters
    ----------
    detector : estimator
        Fitted.
    path : path
        Where to; ``.skops`` is a good ending, for that is the format, with a manifest added. The format is the same for
        any ending: the file is never a pickle.
    bank_dtype : {"float16"} or None, default=None
        ``"float16"`` halves the memory bank in the file; distances change by about one part in ten thousand, while
        thresholds stay. None keeps it as it is.

    Raises
    ------
    NotFittedError
        If it is not fitted.
    ValueError
        If it holds something that no file can, such as a lambda as backbone; if `bank_dtype` is another one, or does
        not suit the detector: it has no bank, or values beyond 65504, or an index that keeps a copy of its own.
    OSError
        If the file can't be written, such as on a full disk, or `path` is a directory, a device, or a file that the
        user may not write to.

    Warns
    -----
    UserWarning
        If it holds types that are neither this package's nor scikit-learn's: `load` will want them by name. If `path`
        ends in ``.pkl``, ``.pickle`` or ``.joblib``, which are endings of pickles.

    See Also
    --------
    load : Reads it.

    Notes
    -----
    A detector holds the network's name and the SHA-256 of its weights, not the network. `memory` parameters are not
    saved: folders of caches are those of another machine.

    If `path` is a symbolic link, it stays one, and the file that it leads to is replaced. The new file has the
    permissions of the old one. Other hard links to the old file keep the old content.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> import skpatchcore
    >>> detector = skpatchcore.PatchCoreDetector("precomputed", random_state=0)
    >>> detector = detector.fit(np.random.default_rng(0).random((20, 4, 4, 8), np.float32))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     skpatchcore.save(detector, pathlib.Path(folder) / "parts.skops")
    ...     same = skpatchcore.load(pathlib.Path(folder) / "parts.skops")
    >>> same.offset_ == detector.offset_
    True
    """
    import skops.io

    check_is_fitted(detector)
    portable = _portable(detector)
    bank = getattr(detector, "memory_bank_", None)
    if bank_dtype is not None:
        portable = with_bank(portable, as_half(bank, bank_dtype, detector))
    path = Path(path)
    if path.suffix.lower() in _OF_PICKLES:
        warn_user(
            f"{str(path)!r} ends in {path.suffix}, but the file will be no pickle: only skpatchcore.load reads it. Use "
            "the ending .skops, or joblib.dump for a pickle."
        )
    with written_whole(path, durable=True) as partial:
        try:
            with versions_apart():  # the manifest has them
                skops.io.dump(portable, partial)
                held = skops.io.load(partial, trusted=skops.io.get_untrusted_types(file=partial))
        except OSError:
            raise
        except Exception as error:  # skops says in many ways what it has no form for
            raise ValueError(f"{type(detector).__name__} can't be saved: {error}") from error
        manifest = {
            "format": _FORMAT,
            "holds": type(held).__name__,
            "versions": {"skpatchcore": __version__, **{name: version(name) for name in _PACKAGES}},
            "networks": sorted(set(_networks(detector))),
            "bank": None if bank is None else {"shape": bank.shape, "dtype": str(bank.dtype), "stored as": bank_dtype},
        }
        with zipfile.ZipFile(partial, "a") as archive:
            manifest["sha256"] = _digests(archive)
            archive.writestr(_MANIFEST, json.dumps(manifest, indent=1))
        _checked(partial.read_bytes(), path)
        unknown = _unknown_types(skops.io.get_untrusted_types(file=partial))
    if unknown:
        warn_user(f"{str(path)!r} holds {', '.join(unknown)}: load will ask for trusted={unknown}.")


def _unknown_types(found: Iterable[str], trusted: Sequence[str] = ()) -> list[str]:
    return sorted(set(found) - {*_TRUSTED, *trusted})


def load(path: str | os.PathLike[str], *, trusted: Sequence[str] = ()) -> Any:
    """Read a detector that :func:`save` wrote. Nothing that the file may hold is executed.

    Parameters
    ----------
    path : path
        The file.
    trusted : sequence of str, default=()
        Types and functions of your own that it may hold, such as ``"factory.networks.small_net"`` for a `backbone`:
        their modules are imported. The error names those that are missing here.

    Returns
    -------
    estimator
        Fitted, as it was saved. The network is looked for when it is first used, and refused with both digests if its
        weights are others than those it was fitted with.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ModelFileError
        If the file is none of :func:`save`'s, or damaged, or of a later version's format, or holds types that are
        neither this package's nor trusted.

    Warns
    -----
    InconsistentVersionWarning
        scikit-learn's, if the file was written with another version of scikit-learn.
    UserWarning
        If the file was written by another version of this package.

    See Also
    --------
    save : Writes it.

    Examples
    --------
    >>> import skpatchcore
    >>> skpatchcore.load("parts.csv")
    Traceback (most recent call last):
    ...
    FileNotFoundError: [Errno 2] No such file or directory: 'parts.csv'

    :func:`save` has an example of both.
    """
    import skops.io

    path = Path(path)
    content = path.read_bytes()  # once: what is checked is what is loaded, whoever writes to the file meanwhile
    manifest = _checked(content, path)
    try:
        unknown = _unknown_types(skops.io.get_untrusted_types(data=content), trusted)
        if unknown:
            raise ModelFileError(
                f"{str(path)!r} holds {', '.join(unknown)}, which may run code of its own. If that is yours, pass "
                f"trusted={unknown}."
            )
        with versions_apart():
            detector = skops.io.loads(content, trusted=[*_TRUSTED, *trusted])
        if manifest["bank"] is not None and manifest["bank"]["stored as"] is not None:
            detector = with_bank(detector, detector.memory_bank_.astype(manifest["bank"]["dtype"]))
    except ModelFileError:
        raise
    except Exception as error:  # a file with a right digest that this version can't read
        made = ", ".join(f"{name} {number}" for name, number in manifest["versions"].items())
        raise ModelFileError(f"{str(path)!r} can't be read here: {error} (it was written by {made})") from error
    warn_of_versions(manifest["versions"], manifest["holds"], repr(str(path)))
    return detector


def _portable(value: Any, known: dict[int, tuple[Any, Any]] | None = None) -> Any:
    """Return an estimator without the folders of its caches, and paths as text; shallow copies all the way.

    Memory maps become plain arrays on the same memory. An object that is held twice is still one object: `known` has
    what was made of each, by its id.
    """
    known = {} if known is None else known
    if id(value) in known:
        return known[id(value)][1]
    made = value
    if isinstance(value, np.memmap):  # files hold plain arrays only
        made = value.view(np.ndarray)
    elif isinstance(value, os.PathLike):
        made = os.fspath(value)
    elif type(value) in (list, tuple):
        made = type(value)(_portable(item, known) for item in value)
    elif type(value) is dict:
        made = {key: _portable(item, known) for key, item in value.items()}
    elif isinstance(value, BaseEstimator) or (is_dataclass(value) and not isinstance(value, type)):
        made = copy(value)
        for name, own in vars(value).items():
            vars(made)[name] = None if name == "memory" else _portable(own, known)
    elif isinstance(value, BallTree | KDTree):
        make, arguments, state = value.__reduce__()
        made = make(*arguments)
        made.__setstate__(_portable(state, known))
    known[id(value)] = value, made  # the value too: another object could get its id
    return made


def _networks(value: Any) -> Iterator[tuple[str, str]]:
    """Yield names and weights' digests of the networks that an estimator was fitted with."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from _networks(item)
    elif isinstance(value, BaseEstimator):
        if hasattr(value, "weights_digest_"):
            backbone = value.backbone
            yield backbone if isinstance(backbone, str) else repr(backbone), value.weights_digest_
        for own in vars(value).values():
            yield from _networks(own)


def _digests(archive: zipfile.ZipFile) -> dict[str, str]:
    """Return the SHA-256 of each member, but for the manifest."""
    found = {}
    for name in archive.namelist():
        if name != _MANIFEST:
            with archive.open(name) as content:
                found[name] = hashlib.file_digest(content, "sha256").hexdigest()  # type: ignore[arg-type]
    return found


def _checked(content: bytes, path: Path) -> dict[str, Any]:
    """Return the manifest of a model file that is whole and of a known format."""
    try:
        if content[:1] == b"\x80" or (path.suffix == ".joblib" and not zipfile.is_zipfile(BytesIO(content))):
            raise ModelFileError(
                f"{str(path)!r} is a pickle, and pickles are code: if you trust it, read it with joblib.load."
            )
        archive = zipfile.ZipFile(BytesIO(content))
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            # what is not compressed can't grow beyond the file
            raise ModelFileError(f"{str(path)!r} is no model file of skpatchcore: it holds compressed parts.")
        manifest: dict[str, Any] = json.loads(archive.read(_MANIFEST))
        of_format, written_by = manifest["format"], manifest["versions"]["skpatchcore"]
        if of_format > _FORMAT:
            raise ModelFileError(
                f"{str(path)!r} is of format {of_format}, written by skpatchcore {written_by}; this one reads up to "
                f"format {_FORMAT}: install a later one."
            )
        if manifest["sha256"] != _digests(archive):
            raise ModelFileError(f"{str(path)!r} is damaged: its content is not what was written.")
        bank = manifest["bank"]
        if bank is not None and bank["stored as"] is not None:
            np.dtype(bank["dtype"])
    except ModelFileError:
        raise
    except Exception as error:  # bytes of any kind fail in any way
        raise ModelFileError(f"{str(path)!r} is no model file of skpatchcore, or a damaged one: {error}") from error
    return manifest
