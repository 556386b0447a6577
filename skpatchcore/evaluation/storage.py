"""Results on disk, each with all that it depends on: an interrupted evaluation goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, fields
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
from skpatchcore._utils.files import written_whole
from skpatchcore._utils.names import file_name
from skpatchcore._version import __version__
from skpatchcore.evaluation.category import CategoryResult, extractors_of
from skpatchcore.evaluation.studies import Run
from skpatchcore.features.extractor import TorchFeatureExtractor

# What moves seconds, not results: another run may have another.
_NO_SETTINGS = ("device", "batch_size", "memory", "cache_limit", "verbose", "n_jobs")


def settings_of(run: Run, resolution: str) -> dict[str, Any]:
    """Return all that a run's metrics depend on, as JSON has it: parameters, weights, data, resolution, versions.

    Parameters
    ----------
    run : Run
        What is evaluated.
    resolution : str
        As for :func:`~skpatchcore.evaluate`.
    """
    parameters = {
        name: as_json(value)
        for name, value in sorted(run.detector.get_params().items())
        if name.rsplit("__", 1)[-1] not in _NO_SETTINGS
    }
    return {
        "skpatchcore": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "detector": type(run.detector).__name__,
        "weights_digests": _digests(run.detector),
        "parameters": parameters,
        "resolution": resolution,
        "data": fingerprint(run.dataset),
    }


def provenance_of(fitted: Any) -> dict[str, Any]:
    """Return with which weights, versions and machine a result was made.

    Parameters
    ----------
    fitted : estimator
        The detector.
    """
    extractor = getattr(fitted, "extractor_", None)
    return {
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


def fingerprint(dataset: Any) -> str:
    """Return a hash of a data set: of its files' names, sizes and labels, or of its arrays.

    Parameters
    ----------
    dataset : ImageFolder or TextureTask
        A file that has changed but kept its name and size is taken to be the same.
    """
    digest = hashlib.sha256()
    for data_field in fields(dataset):
        values = getattr(dataset, data_field.name)
        digest.update(data_field.name.encode())
        if data_field.name.endswith(("paths", "masks")) and values.dtype == object:
            for path in values:
                where = "" if path is None else f"{'/'.join(Path(path).parts[-3:])} {os.path.getsize(path)}"
                digest.update(f"{where}\n".encode())
        elif values is not None:
            array = np.ascontiguousarray(values.astype(str) if values.dtype == object else values)
            digest.update(str(array.shape).encode() + array.tobytes())
    return digest.hexdigest()


class Results:
    """A folder of results, one of each run.

    Parameters
    ----------
    folder : path
        Made if need be.
    overwrite : bool, default=False
        Make anew what was made with other settings. Else it is an error: tables don't mix settings.
    """

    def __init__(self, folder: Path, overwrite: bool = False):
        self.folder, self.overwrite = folder, overwrite

    def place_of(self, run: Run) -> Path:
        """Return the folder of a run's result and pictures."""
        return self.folder / file_name(run.category) / file_name(run.name)

    def load(self, run: Run, settings: Mapping[str, Any]) -> tuple[CategoryResult, dict[str, Any]] | None:
        """Return a run's result and provenance; None if it is not there, or not whole.

        Raises
        ------
        ValueError
            If it was made with other settings.
        """
        file = self.place_of(run) / "result.json"
        try:
            stored = json.loads(file.read_text(encoding="utf-8"))
            result = _result_from(stored["result"])
        except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
            return None
        if stored["settings"] == settings:
            return result, stored["provenance"]
        if self.overwrite:
            return None
        differences = _differences(stored["settings"], settings)
        raise ValueError(
            f"{str(file)!r} was made with other settings ({differences}). Choose another folder, or overwrite it."
        )

    def forget(self, run: Run) -> None:
        """Remove a run's result, before anything that belongs to it changes."""
        (self.place_of(run) / "result.json").unlink(missing_ok=True)

    def keep(
        self, run: Run, settings: Mapping[str, Any], result: CategoryResult, provenance: Mapping[str, Any]
    ) -> None:
        """Write a result in one step: a reader finds all of it or none."""
        place = self.place_of(run)
        place.mkdir(parents=True, exist_ok=True)
        values = {name: as_json(value) for name, value in asdict(result).items()}
        text = json.dumps({"settings": settings, "provenance": provenance, "result": values}, indent=1)
        with written_whole(place / "result.json") as partial:
            partial.write_text(text, encoding="utf-8")


def _digests(detector: Any) -> list[str]:
    """Return the digests of the weights of all extractors that a detector holds."""
    return [clone(e).fit().weights_digest_ for e in extractors_of(detector) if isinstance(e, TorchFeatureExtractor)]


def _differences(stored: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    flat = [{**s, **s.get("parameters", {}), "parameters": None} for s in (stored, settings)]
    keys = [key for key in flat[1] if flat[0].get(key) != flat[1][key]]
    values = (f"{key}: {str(flat[0].get(key))[:40]} instead of {str(flat[1][key])[:40]}" for key in keys)
    return ", ".join(values) or "fewer parameters"


def _result_from(values: dict[str, Any]) -> CategoryResult:
    numbers = {name: np.array(values[name], float) for name in ("scores", "calibration_scores", "roc", "pro")}
    texts = {name: np.array(values[name]) for name in ("labels", "defects", "paths")}
    offsets = {name: np.nan if values[name] is None else values[name] for name in ("offset", "pixel_offset")}
    row = {name: np.nan if value is None else value for name, value in values["row"].items()}
    return CategoryResult(**{**values, **numbers, **texts, **offsets, "row": row})


def as_json(value: Any) -> Any:
    """Return what JSON can hold: estimators by class (their parameters stand beside them), functions by name."""
    if isinstance(value, np.ndarray | tuple | list):
        return [as_json(item) for item in value]
    if isinstance(value, dict):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, np.generic):
        return as_json(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no such numbers
    if isinstance(value, BaseEstimator):
        return type(value).__name__
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return getattr(value, "__qualname__", None) or repr(value)
