"""Judge: reads complete files, scores them as one batch, and draws their maps."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from skpatchcore._utils.names import file_name
from skpatchcore._utils.warning import collected_warnings
from skpatchcore.detectors import ImageResult
from skpatchcore.images.errors import ImageError
from skpatchcore.images.files import opened
from skpatchcore.images.kept import KeptPath
from skpatchcore.protocols import pixel_format_of
from skpatchcore.reports.heat_maps import reason_of, write_heat_map, write_picture_layers
from skpatchcore.reports.pictures import PictureFolder
from skpatchcore.reports.pipelines import detector_of, image_detector_of
from skpatchcore.reports.predictions import Prediction, prediction_of, with_heat_map
from skpatchcore.watching.arrivals import Arrival
from skpatchcore.watching.candidates import Place, version_from
from skpatchcore.watching.drifting import Drift
from skpatchcore.watching.models import LoadedModel
from skpatchcore.watching.notices import Notices

MAPS = "maps"
# Maximum size of a file, as for all images.
_MAX_BYTES = 2**31
# Images of a batch, if the detector does not state it.
_BATCH = 4
# After so many files in a row on which the detector fails with an unexpected error, the error is not one of the files.
_N_UNEXPECTED = 5


@dataclass
class Judged:
    """A file with its result.

    Attributes
    ----------
    arrival : Arrival
        The file.
    prediction : Prediction
        Its prediction, without heat map.
    evidence : float
        Natural logarithm of the evidence of drift after this file. NaN if it is unknown.
    result : ImageResult or None
        Result with the anomaly map; None if the file could not be read.
    """

    arrival: Arrival
    prediction: Prediction
    evidence: float = math.nan
    result: ImageResult | None = None
    kept: KeptPath | None = None


class RecordingPictures(PictureFolder):
    """A folder of pictures that keeps the first error of the system, e.g. of a full disk."""

    error: OSError | None = None

    def _place(self, name: str, fill: Any) -> str:
        try:
            return super()._place(name, fill)
        except OSError as error:
            self.error = self.error or error
            raise


class Judge:
    """Judge complete files with a detector.

    Parameters
    ----------
    model : LoadedModel
        The detector.
    place : Place
        The watched folder.
    output : path
        Folder of results.
    maps : {"all", "anomalous", "none"}
        Which parts get a heat map.
    batch : int
        Maximum number of files that are scored at once.
    product : str or None
        Product of all files, for a detector of several products.
    pictures : RecordingPictures or None
        Folder of the pictures of the live page; None without page.
    notices : Notices
        Where warnings of the detector are said.
    """

    def __init__(
        self,
        model: LoadedModel,
        place: Place,
        output: Path,
        *,
        maps: str,
        batch: int,
        product: str | None,
        pictures: RecordingPictures | None,
        notices: Notices,
    ):
        self.detector, self.digest = model.detector, model.digest
        self._place, self._output, self._maps, self._pictures, self._notices = place, output, maps, pictures, notices
        self._given = {} if product is None else {"products": product}
        own = detector_of(self.detector)
        self.has_products = hasattr(own, "for_product")
        self.has_threshold = self.has_products or not math.isnan(float(getattr(own, "offset_", math.nan)))
        self.batch = min(batch, _batch_of(own))
        self._pixel_format, self._threshold = pixel_format_of(own), float(self.detector.pixel_offset_)
        self._is_pipeline = image_detector_of(self.detector) is None
        self.drift = Drift(self.detector)
        self._n_unexpected = 0

    def warm_up(self) -> None:
        """Judge an image and draw its map, so that the first part does not wait for imports and for the network."""
        with tempfile.TemporaryDirectory() as folder, collected_warnings():
            path = os.path.join(folder, "image.png")
            Image.fromarray(np.full((256, 256, 3), 128, np.uint8)).save(path)
            for result in self.detector.iter_results([path], on_error="flag", **self._given):
                if result.anomaly_map is not None and self._maps != "none":
                    write_heat_map(result, Path(folder, "map.png"), self._threshold, self._pixel_format)
                    count_regions(result.anomaly_map, float(np.nanmin(result.anomaly_map)))

    def judge(self, arrivals: Sequence[Arrival]) -> tuple[list[Judged], list[tuple[Arrival, str]]]:
        """Judge files.

        Parameters
        ----------
        arrivals : sequence of Arrival
            Complete files.

        Returns
        -------
        judged : list of Judged
            The files that could be scored, in order.
        failed : list of (Arrival, str)
            The files that could not be read or scored, or that changed meanwhile, with the reason.

        Raises
        ------
        Exception
            If the detector fails with unexpected errors on several files in a row.
        """
        read, failed = [], []
        for arrival in arrivals:
            try:
                read.append((arrival, self._read(arrival)))
            except ImageError as error:
                failed.append((arrival, error.message))
        if not read:
            return [], failed
        with self._recorded() as log, collected_warnings() as warned:
            try:
                results = list(self.detector.iter_results([kept for _, kept in read], on_error="flag", **self._given))
                self._n_unexpected = 0
            except Exception as error:  # of one file; the files are tried one by one
                if len(read) > 1:
                    parts = [self.judge([arrival]) for arrival, _ in read]
                    return [j for some, _ in parts for j in some], failed + [f for _, some in parts for f in some]
                self._n_unexpected += 1
                if self._n_unexpected >= _N_UNEXPECTED:
                    raise
                return [], [*failed, (read[0][0], f"{type(error).__name__}: {reason_of(error)}")]
        for warning in warned:
            self._notices.say_once(f"warning: {warning}", type(warning).__name__)
        judged = []
        for (arrival, kept), result in zip(read, results, strict=True):
            if result.error is not None:
                failed.append((arrival, result.error.message))
            elif self._is_pipeline and not self._is_same(arrival):
                failed.append((arrival, "has changed while it was read."))
            else:
                judged.append(Judged(arrival, prediction_of(result, str(kept)), result=result, kept=kept))
        is_complete = log is not None and len(log) == len(judged)
        evidence = self.drift.update([j.prediction.score for j in judged], log if is_complete else None)
        for one, value in zip(judged, evidence, strict=True):
            one.evidence = value
        return judged, failed

    def _is_same(self, arrival: Arrival) -> bool:
        """Return whether a file is still the version that arrived."""
        try:
            return self._place.version_of(arrival.version.path) == arrival.version
        except OSError:  # the folder has vanished
            return False

    def flag(self, arrival: Arrival, reason: str) -> Judged:
        """Return the result of a file that cannot be read: score NaN, and the label of an anomalous part."""
        path = self._place.full(arrival.version.path)
        return Judged(arrival, Prediction(path, math.nan, math.nan, -1, math.nan, None, reason))

    def draw(self, judged: Judged, name: str) -> None:
        """Write the heat map of a file, if it gets one, and the pictures of the live page.

        Parameters
        ----------
        judged : Judged
            The file. Its prediction is completed.
        name : str
            End of the name of the heat map, which no other map has.

        Raises
        ------
        OSError
            If a file cannot be written, e.g. because the disk is full. The call can be repeated.
        """
        result, pictures = judged.result, self._pictures
        if result is None:
            return
        stem = "" if pictures is None else pictures.new_stem()
        if pictures is not None:
            pictures.error = None
        is_drawn = self._maps == "all" or (self._maps == "anomalous" and judged.prediction.label == -1)
        if is_drawn and result.anomaly_map is not None:
            folder = self._output / MAPS
            folder.mkdir(exist_ok=True)
            stem_of_path = os.path.splitext(judged.arrival.version.path)[0].replace(os.sep, "_")
            target = folder / file_name(stem_of_path, f"-{name}.png")
            drawn = write_heat_map(result, target, self._threshold, self._pixel_format, pictures, stem)
            if isinstance(drawn.error, OSError):
                raise drawn.error
            if drawn.picture is not None:
                drawn = drawn._replace(picture=f"{MAPS}/{drawn.picture}")
            judged.prediction = with_heat_map(judged.prediction, drawn)
        elif pictures is not None:
            layers = write_picture_layers(result, self._threshold, self._pixel_format, pictures, stem)
            judged.prediction = judged.prediction._replace(layers=layers)
        if pictures is not None and pictures.error is not None:
            raise pictures.error

    def n_regions(self, judged: Judged) -> int | None:
        """Return the number of anomalous regions of a file; None if it is unknown."""
        if judged.prediction.layers is not None:
            return judged.prediction.layers.n_regions
        if judged.result is None or judged.result.anomaly_map is None or math.isnan(self._threshold):
            return None
        return count_regions(judged.result.anomaly_map, self._threshold)

    def _recorded(self) -> Any:
        if self.drift.reason:
            return nullcontext()
        from skpatchcore.patches.embedding import recorded_embeddings

        return recorded_embeddings()

    def _read(self, arrival: Arrival) -> KeptPath:
        """Return the path of a file with its content. Raise an ImageError if this is not the content of its version."""
        version = arrival.version
        path = KeptPath(self._place.full(version.path))
        if version.size > _MAX_BYTES:
            raise ImageError(f"has {version.size} bytes, expected at most 2 GiB.", 0, path)
        with opened(str(path), 0) as file:
            before = version_from(version.path, os.fstat(file.fileno()))
            content = file.read(version.size + 1)
            if before != version or version_from(version.path, os.fstat(file.fileno())) != version:
                raise ImageError("has changed while it was read.", 0, path)
            if len(content) != version.size:
                raise ImageError(f"has {len(content)} bytes, expected {version.size}.", 0, path)
        path.content = content
        return path


def count_regions(anomaly_map: np.ndarray, threshold: float) -> int | None:
    """Return the number of regions above a threshold; None if the packages for it are not installed."""
    if not bool((anomaly_map > threshold).any()):
        return 0
    try:
        from skpatchcore.maps import regions_of_map
    except ImportError:
        return None
    return len(regions_of_map(anomaly_map, threshold))


def _batch_of(detector: Any) -> int:
    """Return the number of images that go through the network at once."""
    first = next(iter(getattr(detector, "estimators_", ())), detector)
    size = getattr(getattr(first, "extractor_", None), "batch_size", None)
    return size if isinstance(size, int) and size > 0 else _BATCH
