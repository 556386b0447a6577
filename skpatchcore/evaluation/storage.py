"""Results: the results of an evaluation on disk, each with the settings that it depends on."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import uuid
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import sklearn
import torch
import torchvision
from sklearn.base import BaseEstimator, clone

from skpatchcore._utils.device import available_device
from skpatchcore._utils.files import read_arrays, write_arrays, written_whole
from skpatchcore._utils.names import file_name, shown_name
from skpatchcore._utils.version import __version__
from skpatchcore._utils.warning import warn_user
from skpatchcore.evaluation.category import CategoryResult, extractors_of
from skpatchcore.evaluation.contents import content_digest, dataset_digest, has_hidden_content
from skpatchcore.evaluation.studies import Run
from skpatchcore.features.extractor import TorchFeatureExtractor
from skpatchcore.metrics.counts import PixelCounts

# Settings that are digests of content, and their names in messages.
_CONTENTS = {"data": "the data", "weights_digests": "the network", "contents": "a function or a class"}
# File of the numbers of pixels, beside the result.
_COUNTS = "pixel_counts.npz"
# Parameters that change the time but not the results.
_NO_SETTINGS = ("device", "batch_size", "memory", "cache_limit", "verbose", "n_jobs")


def settings_of(run: Run, resolution: str, known: dict[str, str] | None = None) -> dict[str, Any]:
    """Return everything that the metrics of a run depend on, as values of JSON.

    The settings are the parameters, digests of weights, data and functions, the resolution, and versions of packages.

    Parameters
    ----------
    run : Run
        Category, detector and data set.
    resolution : str
        As for :func:`~skpatchcore.evaluate`.
    known : dict or None, default=None
        Known digests of files, as for :func:`~skpatchcore.evaluation.contents.dataset_digest`.
    """
    given = {
        name: value
        for name, value in sorted(run.detector.get_params().items())
        if name.rsplit("__", 1)[-1] not in _NO_SETTINGS
    }
    hidden = {name: content_digest(value) for name, value in given.items() if has_hidden_content(value)}
    return {
        "skpatchcore": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "detector": type(run.detector).__name__,
        "weights_digests": _digests(run.detector),
        "parameters": {name: as_json(value) for name, value in given.items()},
        "contents": {"detector": content_digest(type(run.detector)), **hidden},
        "resolution": resolution,
        "data": dataset_digest(run.dataset, known),
        **({} if (split := _split_of(run.dataset)) is None else {"split": split}),
    }


def _split_of(dataset: Any) -> dict[str, Any] | None:
    """Return how the good images of a data set were divided at random; None if its folders divide them."""
    split = getattr(dataset, "split", None)
    return None if split is None else {name: as_json(value) for name, value in split.items()}


def provenance_of(fitted: Any, dataset: Any) -> dict[str, Any]:
    """Return the weights, the versions and the machine of a result.

    Parameters
    ----------
    fitted : estimator
        The detector.
    dataset : ImageFolder or TextureTask
        The data set. If its good images were divided at random, the division is included.
    """
    extractor = getattr(fitted, "extractor_", None)
    n_good = len(dataset.train_images) + int((np.asarray(dataset.test_labels) == 1).sum())
    split = _split_of(dataset)
    return {
        **({} if split is None else {"split": {**split, "n_good": n_good}}),
        "backbone": as_json(getattr(extractor, "backbone", None)),
        "weights_digest": getattr(extractor, "weights_digest_", None),
        "versions": {
            "python": platform.python_version(),
            "skpatchcore": __version__,
            **{m.__name__: m.__version__ for m in (torch, torchvision, sklearn, np, scipy)},
        },
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "device": available_device(getattr(extractor, "device", "cpu")).type,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


class Results:
    """Folder of results, one per run.

    Parameters
    ----------
    folder : path
        The folder. It is created with the first result.
    overwrite : bool, default=False
        Whether results with other settings are replaced. If False, such a result raises an error, because tables must
        not mix settings. Results with equal settings but other content are always replaced.
    """

    def __init__(self, folder: Path, overwrite: bool = False):
        self.folder, self.overwrite = folder, overwrite

    def place_of(self, run: Run) -> Path:
        """Return the folder of the result and the pictures of a run."""
        return self.folder / file_name(run.category) / file_name(run.name)

    def load(self, run: Run, settings: Mapping[str, Any]) -> tuple[CategoryResult, dict[str, Any]] | None:
        """Return the result and the provenance of a run; None if it is missing, damaged, or has other content.

        Raises
        ------
        ValueError
            If the result was stored with other settings, and `overwrite` is False.

        Warns
        -----
        UserWarning
            If the settings are equal, but the content of the data, of the weights or of a function has changed.
        """
        file = self.place_of(run) / "result.json"
        try:
            stored = json.loads(file.read_text(encoding="utf-8"))
            result = _result_from(stored["result"])
            counts = read_arrays(file.with_name(_COUNTS))
            if counts is not None and set(counts) == set(PixelCounts._fields):
                result.pixel_counts = PixelCounts(**counts)
        except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
            return None
        if stored["settings"] == settings:
            return result, stored["provenance"]
        if self.overwrite:
            return None
        changed = [_CONTENTS[key] for key in _CONTENTS if stored["settings"].get(key) != settings[key]]
        if {**stored["settings"], **{key: settings[key] for key in _CONTENTS}} == settings:
            warn_user(
                f"category {shown_name(run.category)!r}: {' and '.join(changed)} changed since the result in "
                f"{shown_name(str(file))!r} was stored. It is computed again.",
            )
            return None
        differences = _differences(stored["settings"], settings)
        raise ValueError(
            f"{str(file)!r} was made with other settings ({differences}). Choose another folder, or overwrite it."
        )

    def forget(self, run: Run) -> None:
        """Remove the result of a run, before its pictures change."""
        (self.place_of(run) / "result.json").unlink(missing_ok=True)

    def keep(
        self, run: Run, settings: Mapping[str, Any], result: CategoryResult, provenance: Mapping[str, Any]
    ) -> None:
        """Write the result of a run. The write is atomic."""
        place = self.place_of(run)
        place.mkdir(parents=True, exist_ok=True)
        counts = place / _COUNTS
        if result.pixel_counts is None:
            counts.unlink(missing_ok=True)
        else:
            write_arrays(counts, **result.pixel_counts._asdict())
        values = {name: as_json(value) for name, value in asdict(replace(result, pixel_counts=None)).items()}
        text = json.dumps({"settings": settings, "provenance": provenance, "result": values}, indent=1)
        with written_whole(place / "result.json") as partial:
            partial.write_text(text, encoding="utf-8")


def _digests(detector: Any) -> list[list[str]]:
    """Return digests of the weights and of the modules of the network of each extractor of a detector."""
    found = []
    for extractor in extractors_of(detector):
        if isinstance(extractor, TorchFeatureExtractor):
            weights, architecture = clone(extractor).network_digests()
            # if the code of a network cannot be read, the network is never treated as unchanged
            found.append([weights, architecture or f"unknown {uuid.uuid4()}"])
    return found


def _differences(stored: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    flat = [{**s, **s.get("parameters", {}), **s.get("split", {}), "parameters": None} for s in (stored, settings)]
    # the digest of the data is left out, because the division of the images explains its change
    keys = [key for key in flat[1] if flat[0].get(key) != flat[1][key] and key not in ("data", "split")]
    values = (f"{key}: {str(flat[0].get(key))[:40]} instead of {str(flat[1][key])[:40]}" for key in keys)
    return ", ".join(values) or "fewer parameters"


def _result_from(values: dict[str, Any]) -> CategoryResult:
    numbers = {name: np.array(values[name], float) for name in ("scores", "calibration_scores", "roc", "pro", "aupimo")}
    texts = {name: np.array(values[name]) for name in ("labels", "defects", "paths")}
    offsets = {name: np.nan if values[name] is None else values[name] for name in ("offset", "pixel_offset")}
    row = {name: np.nan if value is None else value for name, value in values["row"].items()}
    return CategoryResult(**{**values, **numbers, **texts, **offsets, "row": row})


def as_json(value: Any) -> Any:
    """Return a value of JSON: estimators become the name of their class, and functions their name."""
    if isinstance(value, np.ndarray | tuple | list):
        return [as_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, np.generic):
        return as_json(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no NaN and no infinity
    if isinstance(value, BaseEstimator):
        return type(value).__name__
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return getattr(value, "__qualname__", None) or re.sub(r" at 0x[0-9A-Fa-f]+", "", repr(value))
