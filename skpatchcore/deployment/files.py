"""The functions save and load, which write fitted detectors to files that contain no code, and read these files."""

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
from sklearn.utils.validation import check_is_fitted

from skpatchcore._utils.files import written_whole
from skpatchcore._utils.loaded import is_instance_of
from skpatchcore._utils.sklearn import versions_apart, warn_of_versions
from skpatchcore._utils.version import __version__
from skpatchcore._utils.warning import warn_user
from skpatchcore.bank.memory_bank import as_half, with_bank
from skpatchcore.deployment.container import is_exported
from skpatchcore.deployment.errors import ModelFileError

_FORMAT = 1  # version of the file format; increased when the content of files changes
_MANIFEST = "skpatchcore.json"
_OF_PICKLES = (".pkl", ".pickle", ".joblib")  # file name endings that other libraries use for pickles
_SPLITTERS = (
    "GroupKFold", "GroupShuffleSplit", "KFold", "LeaveOneGroupOut", "LeaveOneOut", "LeavePGroupsOut", "LeavePOut",
    "PredefinedSplit", "RepeatedKFold", "RepeatedStratifiedKFold", "ShuffleSplit", "StratifiedGroupKFold",
    "StratifiedKFold", "StratifiedShuffleSplit", "TimeSeriesSplit",
)  # fmt: skip
# Types that `load` trusts in addition to the types that skops trusts: numbers, arrays and scikit-learn's estimators.
_TRUSTED = (
    "skpatchcore.detectors._reconstruction.Reconstruction",
    "skpatchcore.detectors.autoencoder.AutoencoderDetector",
    "skpatchcore.detectors.gan.GANDetector",
    "skpatchcore.features.pixels.PixelExtractor",
    "skpatchcore.detectors.dn2.DN2Detector",
    "skpatchcore.detectors.dn2.ImageGallery",
    "skpatchcore.detectors.mahalanobis.LevelGaussians",
    "skpatchcore.detectors.mahalanobis.MahalanobisDetector",
    "skpatchcore.detectors.padim.Gaussians",
    "skpatchcore.detectors.padim.PaDiMDetector",
    "skpatchcore.detectors.spade.Gallery",
    "skpatchcore.detectors.spade.SPADEDetector",
    "skpatchcore.coreset.greedy.GreedyCoresetSampler",
    "skpatchcore.coreset.proxies.LearnedProxySampler",
    "skpatchcore.coreset.uniform.RandomSampler",
    "skpatchcore.detectors.patchcore.PatchCoreDetector",
    "skpatchcore.detectors.ensemble.PatchCoreEnsemble",
    "skpatchcore.detectors.lights.MultiLightDetector",
    "skpatchcore.detectors.products.MultiProductDetector",
    "skpatchcore.features.extractor.TorchFeatureExtractor",
    "skpatchcore.features.scaling.LayerScaling",
    "skpatchcore.features.whitening.PatchWhitening",
    "skpatchcore.index.exact.ExactIndex",
    "skpatchcore.index.pynndescent.PyNNDescentIndex",
    "skpatchcore.bank.memory_bank.SameAsBank",
    "skpatchcore.images.roi.Region",
    "skpatchcore.patches.inspection.Inspection",
    "sklearn.neighbors._ball_tree.BallTree",
    "sklearn.neighbors._kd_tree.KDTree",
    "sklearn.metrics._dist_metrics.EuclideanDistance64",
    "sklearn.metrics._dist_metrics.MinkowskiDistance64",
    *(f"sklearn.model_selection._split.{name}" for name in _SPLITTERS),
)
#: Names of the types that a file of a detector may contain, in addition to the types that skops trusts. Pass the list
#: to programs that load skops files themselves, e.g. as ``skops_trusted_types`` to ``mlflow.sklearn.log_model``.
TRUSTED_TYPES = list(_TRUSTED)
# The module and the class of each tree of scikit-learn.
_TREES = (("_ball_tree", "BallTree"), ("_kd_tree", "KDTree"))
_PACKAGES = ("scikit-learn", "numpy", "torch", "skops")


def save(detector: Any, path: str | os.PathLike[str], *, bank_dtype: str | None = None) -> None:
    """Write a fitted detector to a file that :func:`load` can read.

    The file contains only data, no code, unlike a pickle. The write is atomic: an existing file is replaced only after
    the new file has been read back and verified. If the write is interrupted, e.g. by an error, the end of the process
    or a power failure, the existing file stays unchanged.

    Parameters
    ----------
    detector : estimator
        The fitted detector.
    path : path
        Path of the file to write. The recommended file ending is ``.skops``: the file has the format of the package
        skops, with one additional member, the manifest. The manifest holds checksums and the versions of packages. The
        format is the same for all file endings, and the file is never a pickle.
    bank_dtype : {"float16"} or None, default=None
        Data type of the memory bank in the file. The memory bank is the largest part of the file: the stored patch
        features of the training images. ``"float16"`` halves the size of a float32 bank in the file, by rounding its
        values. :func:`load` converts the bank back to its original data type. The rounding changes distances, and
        therefore scores, by about one part in ten thousand. The thresholds are saved unchanged. Therefore, an image
        with a score very close to a threshold can get another label after loading. None saves the bank unchanged.

    Raises
    ------
    NotFittedError
        If the detector is not fitted.
    ValueError
        If the detector contains an object that cannot be saved, e.g. a lambda function as `backbone` of the extractor.
        The error is also raised if `bank_dtype` is neither None nor ``"float16"``. If `bank_dtype` is ``"float16"``,
        the error is also raised in three cases: the detector has no memory bank, the bank contains values beyond
        ±65504 (the largest float16), or the index contains a second copy of the bank, which would not be rounded, e.g.
        ``sklearn.neighbors.NearestNeighbors`` with a tree.
    OSError
        If the file cannot be written, e.g. because the disk is full, or because `path` is a directory, a device, or an
        existing file without write permission.

    Warns
    -----
    UserWarning
        If the detector contains types that are neither from this package nor from scikit-learn. :func:`load` reads the
        file only if the names of these types are passed as `trusted`.
    UserWarning
        If `path` ends in ``.pkl``, ``.pickle`` or ``.joblib``. Files with these endings are usually pickles.

    See Also
    --------
    load : Read a file written by this function.

    Notes
    -----
    The file does not contain the neural network of the extractor. It contains the name of the network and the SHA-256
    digest (checksum) of the network's weights. The machine that loads the file needs the same weights, see `weights` of
    :class:`~skpatchcore.TorchFeatureExtractor`. The loaded detector verifies the digest when it first scores an image.

    Parameters with the name `memory`, e.g. of the extractor and of the sampler, are folders of caches on disk. They are
    saved as None, because another machine may not have these folders.

    If `path` is a symbolic link, the file to which the link points is replaced, and the link stays. The new file has
    the permissions of the old file. Other hard links to the old file keep the old content.

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
            f"{str(path)!r} ends in {path.suffix}, but the file will not be a pickle, and only skpatchcore.load can "
            "read it. Use the ending .skops, or write a pickle with joblib.dump."
        )
    with written_whole(path, durable=True) as partial:
        try:
            with versions_apart():  # the manifest contains the versions
                skops.io.dump(portable, partial)
                held = skops.io.load(partial, trusted=skops.io.get_untrusted_types(file=partial))
        except OSError:
            raise
        except Exception as error:  # skops raises many types of errors for objects that it cannot save
            raise ValueError(f"{type(detector).__name__} cannot be saved: {error}") from error
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
        warn_user(f"{str(path)!r} contains the types {', '.join(unknown)}. To load the file, pass trusted={unknown}.")


def _unknown_types(found: Iterable[str], trusted: Sequence[str] = ()) -> list[str]:
    """Return the sorted names of the types that neither this package nor `trusted` allows."""
    return sorted(set(found) - {*_TRUSTED, *trusted})


def load(path: str | os.PathLike[str], *, trusted: Sequence[str] = ()) -> Any:
    """Read a fitted detector from a file that :func:`save` wrote, without running code from the file.

    Parameters
    ----------
    path : path
        Path of the file.
    trusted : sequence of str, default=()
        Full names of your own classes and functions that the file may contain, e.g. ``"factory.networks.small_net"``
        for a function that is the `backbone` of the extractor. The modules of these classes and functions are imported.
        If the file contains a name that is missing in this list, the error states the name.

    Returns
    -------
    estimator
        The fitted detector. The detector loads its neural network when it first scores an image. If the weights of this
        network differ from the weights with which the detector was fitted, a :class:`~skpatchcore.WeightsError` with
        both digests (checksums) is raised.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ModelFileError
        If the file was not written by :func:`save`, is damaged, was written by a later version with another format, or
        contains classes or functions that are neither from this package or scikit-learn nor listed in `trusted`.

    Warns
    -----
    InconsistentVersionWarning
        If the file was written with another version of scikit-learn. This warning is a class of scikit-learn.
    UserWarning
        If the file was written by another version of this package.

    See Also
    --------
    save : Write a file that this function reads.

    Examples
    --------
    >>> import skpatchcore
    >>> skpatchcore.load("parts.csv")
    Traceback (most recent call last):
    ...
    FileNotFoundError: [Errno 2] No such file or directory: 'parts.csv'

    The documentation of :func:`save` has an example with both functions.
    """
    import skops.io

    path = Path(path)
    content = path.read_bytes()  # read once: a concurrent write cannot change the content between check and load
    manifest = _checked(content, path)
    try:
        unknown = _unknown_types(skops.io.get_untrusted_types(data=content), trusted)
        if unknown:
            raise ModelFileError(
                f"{str(path)!r} contains the types {', '.join(unknown)}, which can run code. If you trust these types, "
                f"pass trusted={unknown}."
            )
        with versions_apart():
            detector = skops.io.loads(content, trusted=[*_TRUSTED, *trusted])
        if manifest["bank"] is not None and manifest["bank"]["stored as"] is not None:
            detector = with_bank(detector, detector.memory_bank_.astype(manifest["bank"]["dtype"]))
    except ModelFileError:
        raise
    except Exception as error:  # the digests are correct, but this version cannot read the content
        made = ", ".join(f"{name} {number}" for name, number in manifest["versions"].items())
        raise ModelFileError(
            f"{str(path)!r} cannot be read with the installed packages: {error} (the file was written with {made})"
        ) from error
    warn_of_versions(manifest["versions"], manifest["holds"], repr(str(path)))
    return detector


def manifest_of_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the manifest of a file that :func:`save` wrote: versions, networks, data type of the bank, and digests.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ModelFileError
        If the file was not written by :func:`save`, or is damaged.
    """
    path = Path(path)
    return _checked(path.read_bytes(), path)


def _portable(value: Any, known: dict[int, tuple[Any, Any]] | None = None) -> Any:
    """Return a copy of an estimator without the folders of its caches and with paths as strings.

    All containers are copied shallowly. Memory maps become plain arrays that share the memory. An object that occurs
    twice is converted once: `known` maps the id of each original object to the pair (original, converted).
    """
    known = {} if known is None else known
    if id(value) in known:
        return known[id(value)][1]
    made = value
    if isinstance(value, np.memmap):  # skops saves plain arrays only
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
    elif any(is_instance_of(value, f"sklearn.neighbors.{tree}", kind) for tree, kind in _TREES):
        make, arguments, state = value.__reduce__()
        made = make(*arguments)
        made.__setstate__(_portable(state, known))
    known[id(value)] = value, made  # keep the value alive: otherwise a new object could reuse its id
    return made


def _networks(value: Any) -> Iterator[tuple[str, str]]:
    """Yield the name and the digest of the weights of each network that an estimator was fitted with."""
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
    """Return the SHA-256 digest of each member of the archive except the manifest."""
    found = {}
    for name in archive.namelist():
        if name != _MANIFEST:
            with archive.open(name) as content:
                found[name] = hashlib.file_digest(content, "sha256").hexdigest()  # type: ignore[arg-type]
    return found


def _checked(content: bytes, path: Path) -> dict[str, Any]:
    """Return the manifest of a model file. Raise a ModelFileError if the file is damaged or of an unknown format."""
    try:
        if content[:1] == b"\x80" or (path.suffix == ".joblib" and not zipfile.is_zipfile(BytesIO(content))):
            raise ModelFileError(
                f"{str(path)!r} is a pickle, and a pickle can run code. If you trust the file, read it with "
                "joblib.load."
            )
        if is_exported(content):
            raise ModelFileError(f"{str(path)!r} is an exported ONNX file: read it with skpatchcore.OnnxDetector.")
        archive = zipfile.ZipFile(BytesIO(content))
        if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
            # A compressed member could fill the memory. Members without compression are not larger than the file.
            raise ModelFileError(f"{str(path)!r} is not a model file of skpatchcore: it contains compressed members.")
        manifest: dict[str, Any] = json.loads(archive.read(_MANIFEST))
        of_format, written_by = manifest["format"], manifest["versions"]["skpatchcore"]
        if of_format > _FORMAT:
            raise ModelFileError(
                f"{str(path)!r} has format {of_format}, written by skpatchcore {written_by}, but this version reads "
                f"files up to format {_FORMAT}: install a later version of skpatchcore."
            )
        if manifest["sha256"] != _digests(archive):
            raise ModelFileError(f"{str(path)!r} is damaged: its content does not match its digests. Save it again.")
        bank = manifest["bank"]
        if bank is not None and bank["stored as"] is not None:
            np.dtype(bank["dtype"])
    except ModelFileError:
        raise
    except Exception as error:  # arbitrary bytes can raise any type of error
        raise ModelFileError(f"{str(path)!r} is not a model file of skpatchcore, or is damaged: {error}") from error
    return manifest
