"""`OnnxDetector`: score images with an exported ONNX file, without torch and without scikit-learn."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from skpatchcore.calibration.conformal import adjusted_p_values, check_adjust, upper_tail_p_values
from skpatchcore.deployment._drawing import MapRules
from skpatchcore.deployment._reading import InputRules
from skpatchcore.deployment._scoring import ScoringGraph
from skpatchcore.deployment.container import read_container
from skpatchcore.deployment.errors import ModelFileError
from skpatchcore.deployment.outputs import with_ties
from skpatchcore.deployment.runtimes import open_runner
from skpatchcore.detectors._regions import area_rule, joined_regions
from skpatchcore.detectors._results import (
    ImageResult,
    Scored,
    as_stack,
    check_on_error,
    gathered,
    results_of,
    score_or_flag,
    turned,
)
from skpatchcore.images.containers import as_image_sequence
from skpatchcore.images.errors import ImageError
from skpatchcore.images.reading import path_of
from skpatchcore.maps import regions_of_map, without_small_regions

if TYPE_CHECKING:
    import pandas as pd


class OnnxDetector:
    """Detector that runs an ONNX file written by ``skpatchcore.export``, with the methods of the exported detector.

    The class needs numpy, Pillow and ONNX Runtime or OpenVINO. It imports neither torch nor scikit-learn. Therefore, it
    starts faster and needs less memory than the detector that was exported. ``skpatchcore verify`` measures how much
    the results of the file differ from those of the exported detector.

    The detector is fitted already. It cannot be fitted again, and its thresholds cannot be changed: recalibrate the
    original detector and export it again. The class is not an estimator of scikit-learn.

    Parameters
    ----------
    path : path
        The ONNX file. Its digest is verified. No code in the file is executed.
    runtime : {"onnxruntime", "openvino"}, default="onnxruntime"
        The library that runs the graph, on the CPU and in float32. The extras ``onnx`` and ``openvino`` of this package
        install them.
    n_threads : int or None, default=None
        Number of threads. None lets the runtime choose.
    batch_size : int, default=1
        Maximum number of images that are passed to the graph at once. Only consecutive images of one size are passed
        together. The memory that the graph needs grows with this number.

    Attributes
    ----------
    offset_ : float
        Image threshold: `predict` returns -1 for scores below it. NaN if the exported detector had no threshold.
    pixel_offset_ : float
        Pixel threshold: `predict_mask` returns True for values of the anomaly map above it.
    min_area_ : float
        Largest area of a region that ``min_area="auto"`` removes, as a fraction of the inspected pixels.
    promised_rate_ : float
        False-positive rate that the image threshold promises: an upper bound on the expected fraction of good images
        for which `predict` returns -1.
    calibration_scores_ : array of shape (n_calibration,), float64
        Scores of good images, **bigger = more normal**. NaN for images without a score.
    calibration_peaks_ : array of shape (n_calibration,), float64
        Maxima of the anomaly maps of good images, **bigger = more anomalous**.
    calibration_plan_ : str
        How the good images were scored.
    contamination : float or "auto"
        Accepted false-positive rate of the exported detector.
    channel_order : {"rgb", "bgr"}
        Order of the channels of arrays and tensors.
    value_range : (float, float) or None
        Stored values of black and of white; None if the dtype defines them.
    manifest : dict
        All metadata of the file: version, settings, backbone, thresholds, and what is inspected.
    digest : str
        SHA-256 of the file without its last entry.

    Raises
    ------
    OSError
        If the file does not exist or cannot be read.
    ModelFileError
        If the file is damaged, was not written by ``skpatchcore.export``, has a later format, or cannot be loaded by
        the runtime.
    ImportError
        If the runtime is not installed.
    ValueError
        If `runtime`, `n_threads` or `batch_size` is invalid.

    See Also
    --------
    load : Read a detector that :func:`save` wrote. It can be fitted and recalibrated, and needs torch.

    Notes
    -----
    An image whose score is not finite counts as anomalous. For such an image, `predict` returns -1, `p_values` returns
    the smallest p-value, and `segment` raises an ImageError.

    A pickle of this object contains the path of the file and its digest, not the file. Unpickling reads the file.

    Examples
    --------
    >>> from skpatchcore import OnnxDetector
    >>> OnnxDetector("parts.csv")
    Traceback (most recent call last):
    ...
    FileNotFoundError: [Errno 2] No such file or directory: 'parts.csv'

    With an exported file::

        detector = OnnxDetector("parts.onnx")
        labels = detector.predict(["part_01.png", "part_02.png"])   # +1 normal, -1 anomalous
        maps = detector.segment(["part_01.png", "part_02.png"])     # bigger = more anomalous
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        runtime: str = "onnxruntime",
        n_threads: int | None = None,
        batch_size: int = 1,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: expected at least 1.")
        self.path, self.runtime, self.n_threads, self.batch_size = os.fspath(path), runtime, n_threads, batch_size
        container = read_container(path)
        self.manifest, self.digest = container.manifest, container.digest
        try:
            self._take_thresholds(container.manifest)
            inputs, maps = InputRules.of(container.manifest), MapRules.of(container.manifest, container.region)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ModelFileError(
                f"{self.path!r} was not written by skpatchcore.export: {type(error).__name__}: {error}"
            ) from error
        self.channel_order, self.value_range = inputs.pixel_format.channel_order, inputs.pixel_format.value_range
        runner = open_runner(container.content, runtime, n_threads, self.path)
        self._graph = ScoringGraph(runner, inputs, maps, batch_size)

    def _take_thresholds(self, manifest: dict[str, Any]) -> None:
        """Set the thresholds and the attributes of the calibration from the manifest."""
        thresholds = manifest["thresholds"]
        self.offset_, self.pixel_offset_ = _number(thresholds["offset"]), _number(thresholds["pixel_offset"])
        self.min_area_, self.promised_rate_ = _number(thresholds["min_area"]), _number(thresholds["promised_rate"])
        self.contamination, self.calibration_plan_ = thresholds["contamination"], str(thresholds["calibration_plan"])
        self.calibration_scores_ = np.array([_number(score) for score in manifest["calibration_scores"]], np.float64)
        self._tied_scores = with_ties(self.calibration_scores_)
        self.calibration_peaks_ = np.array([_number(peak) for peak in manifest["calibration_peaks"]], np.float64)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path!r}, runtime={self.runtime!r}, detector={self.manifest['detector']})"

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("path", "runtime", "n_threads", "batch_size", "digest")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        digest = state.pop("digest")
        self.__init__(**state)  # type: ignore[misc]
        if self.digest != digest:
            raise ModelFileError(f"{self.path!r} has changed since this object was pickled: its digest differs.")

    def score_samples(self, X: Any, *, on_error: str = "raise") -> np.ndarray:
        """Return image scores of shape (n_images,), **bigger = more normal**.

        Parameters
        ----------
        X : list of images, array of shape (n_images, height, width, n_channels), or other collection
            The images: paths, bytes, open binary files, arrays, tensors or PIL images. Grey images are used as red,
            green and blue. Alpha is ignored.
        on_error : {"raise", "flag"}, default="raise"
            Action for an image that cannot be scored. ``"raise"`` raises an ImageError. ``"flag"`` returns NaN as the
            score of this image, scores all other images, and issues an :class:`~skpatchcore.ImageWarning`.

        Returns
        -------
        array of shape (n_images,), float64
            The scores of the exported detector, computed in float32.

        Raises
        ------
        ImageError
            If an image cannot be read, or the file does not take such an image, and ``on_error="raise"``. The error
            names the image's index and path.

        Warns
        -----
        ImageWarning
            If images cannot be scored, and ``on_error="flag"``. The warning's ``failures`` are their errors.
        """
        return np.asarray(turned(self._scored(X, None, on_error)[0]))

    def decision_function(self, X: Any, *, on_error: str = "raise") -> np.ndarray:
        """Return scores relative to the threshold, **bigger = more normal**, negative = anomalous.

        Parameters
        ----------
        X : as for `score_samples`
            The images.
        on_error : {"raise", "flag"}, default="raise"
            As in `score_samples`: ``"flag"`` returns NaN for an image that cannot be scored.

        Returns
        -------
        array of shape (n_images,), float64
            ``score_samples(X) - offset_``.

        Raises
        ------
        ImageError, ValueError
            As in `score_samples`. In addition, a ValueError if the exported detector had no threshold.
        """
        self._require_threshold()
        return self.score_samples(X, on_error=on_error) - self.offset_

    def predict(self, X: Any, *, on_error: str = "raise") -> np.ndarray:
        """Return +1 for normal and -1 for anomalous images.

        Parameters
        ----------
        X : as for `score_samples`
            The images.
        on_error : {"raise", "flag"}, default="raise"
            As in `score_samples`: ``"flag"`` returns -1 (anomalous) for an image that cannot be scored.

        Returns
        -------
        array of shape (n_images,), int
            +1 if `decision_function` is at least 0, otherwise -1. Also -1 if the score is not finite.

        Raises
        ------
        ImageError, ValueError
            As in `decision_function`.
        """
        decisions = self.decision_function(X, on_error=on_error)
        return np.where(np.isfinite(decisions) & (decisions >= 0), 1, -1)

    def p_values(self, X: Any, *, adjust: str | None = None) -> np.ndarray:
        """Return conformal p-values, **small = anomalous**: estimated fractions of good images that score no higher.

        Parameters
        ----------
        X : as for `score_samples`
            The images.
        adjust : {"bh", "by"} or None, default=None
            Adjustment for the number of images in `X`, by the method of Benjamini and Hochberg or of Benjamini and
            Yekutieli.

        Returns
        -------
        array of shape (n_images,), float64
            ``(1 + number of calibration scores that are at most the image's score) / (n_calibration + 1)``, before the
            adjustment. ``1 / (n_calibration + 1)`` if the score is not finite. A calibration score also counts if it
            exceeds the image's score by at most 1e-6 times the largest absolute calibration score, because runtimes
            round the score of the same image differently. The output ``p_value`` of the file has the same rule.

        Raises
        ------
        ImageError, ValueError
            As in `predict`. In addition, a ValueError if `adjust` has an invalid value.
        """
        check_adjust(adjust)
        self._require_threshold()
        scores = self._scored(X, None)[0]
        scores[~np.isfinite(scores)] = np.inf
        return adjusted_p_values(upper_tail_p_values(turned(self._tied_scores), scores), adjust)

    def segment(self, X: Any) -> np.ndarray | list[np.ndarray]:
        """Return anomaly maps, **bigger = more anomalous**, each at its image's own height and width.

        Parameters
        ----------
        X : as for `score_samples`
            The images.

        Returns
        -------
        array of shape (n_images, height, width), float32
            Upsampled and smoothed patch scores. A list of arrays of shape (height, width) if the images differ in size.
            **NaN marks pixels that are not inspected**: pixels outside the crop and outside the region of interest.

        Raises
        ------
        ImageError
            If an image cannot be read, or the file does not take such an image. The error is also raised if the score
            of an inspected patch is not finite.
        """
        return self.score_and_segment(X)[1]

    def score_and_segment(self, X: Any, *, on_error: str = "raise") -> tuple[np.ndarray, np.ndarray | list[Any]]:
        """Return the results of `score_samples` and `segment` from one run of the graph.

        Parameters
        ----------
        X : as for `score_samples`
            The images.
        on_error : {"raise", "flag"}, default="raise"
            As in `score_samples`. ``"flag"`` returns the score NaN and the map None for an image that cannot be scored.

        Returns
        -------
        scores : array of shape (n_images,), float64
            Bigger = more normal.
        maps : array of shape (n_images, height, width) or list of arrays (height, width), float32
            Bigger = more anomalous. NaN for pixels that are not inspected.

        Raises
        ------
        ImageError
            As in `segment`, if ``on_error="raise"``.
        """
        scores, maps = self._scored(X, np.asarray, on_error)
        return turned(scores), as_stack(maps)

    def iter_results(
        self, X: Any, *, with_maps: bool = True, on_error: str = "raise", chunk_size: int = 64
    ) -> Iterator[ImageResult]:
        """Return an iterator over the results of single images, in bounded memory for any number of images.

        Parameters
        ----------
        X : as for `score_samples`, or an iterable of images
            The images. A generator may be endless, e.g. the images of a camera.
        with_maps : bool, default=True
            If False, no anomaly maps are computed, which is faster.
        on_error : {"raise", "flag"}, default="raise"
            Action for an image that cannot be scored, or whose score is not finite. ``"raise"`` raises an ImageError.
            ``"flag"`` returns a result with the ``error``, the score NaN and the label -1. There is no warning.
        chunk_size : int, default=64
            Number of images that are read from a generator before the first of them is scored. Use 1 for a camera.

        Returns
        -------
        iterator of ImageResult
            Score, decision, label, p-value, anomaly map and error of each image, in the order of `X`.

        Raises
        ------
        ImageError
            If an image cannot be scored, and ``on_error="raise"``. The results of all previous images come first.
        """
        check_on_error(on_error)
        if chunk_size < 1:
            raise ValueError(f"chunk_size={chunk_size}: expected at least 1.")

        def iter_finite(images: Any) -> Iterator[tuple[np.ndarray, list[Any]]]:
            n_done = 0
            for scores, kept in self._graph.iter_scores(images, np.asarray if with_maps else None):
                if not np.isfinite(scores).all():
                    first = int(np.isfinite(scores).argmin())
                    path = path_of(images[n_done + first])
                    raise ImageError("the score is not finite.", n_done + first, path)
                n_done += len(scores)
                yield scores, kept

        def scored(images: Any) -> Iterator[Scored]:
            for part in score_or_flag(as_image_sequence(images), iter_finite):
                if part.error is not None and on_error == "raise":
                    raise part.error
                yield part

        return results_of(X, scored, self._tied_scores, self.offset_, chunk_size)

    def predict_mask(self, X: Any, *, min_area: int | str = 1) -> np.ndarray | list[np.ndarray]:
        """Return masks of the anomalous pixels, **True = anomalous**, at each image's own height and width.

        Parameters
        ----------
        X : as for `score_samples`
            The images.
        min_area : int or "auto", default=1
            Minimum area of a region in pixels. Pixels of smaller regions are False. ``"auto"`` uses the smallest area
            with which at most the fraction ``promised_rate_`` of good images is expected to have True pixels. Values
            other than 1 need scikit-image.

        Returns
        -------
        array of shape (n_images, height, width), bool
            True if the anomaly map is above ``pixel_offset_``. **False also for pixels that are not inspected**. A list
            of arrays of shape (height, width) if the images differ in size.

        Raises
        ------
        ImageError, ValueError
            As in `segment`. In addition, a ValueError if the exported detector had no threshold or if `min_area` is
            invalid.
        """
        self._require_threshold()
        least = area_rule(min_area, self.min_area_)

        def mask_of(anomaly_map: np.ndarray) -> np.ndarray:
            return without_small_regions(anomaly_map > self.pixel_offset_, least(anomaly_map))

        return as_stack(self._scored(X, mask_of)[1])

    def regions(self, X: Any, *, min_area: int | str = 1) -> pd.DataFrame:
        """Return a table of the connected regions of anomalous pixels, with a p-value for each region.

        This method needs pandas, scipy and scikit-image.

        Parameters
        ----------
        X : as for `score_samples`
            The images.
        min_area : int or "auto", default=1
            Minimum area of a region in pixels. Smaller regions are left out. ``"auto"`` as in `predict_mask`.

        Returns
        -------
        DataFrame
            One row per region, in the order of the images. The regions of an image are sorted by peak, highest first.
            Columns: ``image`` (index in `X`), ``top``, ``left``, ``bottom``, ``right`` (bounding box in pixels; bottom
            and right are exclusive, as in slices), ``area`` (pixels), ``peak`` (largest value of the anomaly map in the
            region, bigger = more anomalous), ``peak_row``, ``peak_column``, and ``p_value`` (small = anomalous). The
            table is empty if no pixel is anomalous.

        Raises
        ------
        ImageError, ValueError
            As in `predict_mask`.
        """
        self._require_threshold()
        least = area_rule(min_area, self.min_area_)

        def table_of(anomaly_map: np.ndarray) -> pd.DataFrame:
            return regions_of_map(anomaly_map, self.pixel_offset_, least(anomaly_map))

        return joined_regions(self._scored(X, table_of)[1], self.calibration_peaks_)

    def _scored(
        self, X: Any, of_map: Callable[[np.ndarray], Any] | None, on_error: str = "raise"
    ) -> tuple[np.ndarray, list[Any]]:
        """Return the anomaly scores of all images and the values of `of_map`. Warn if images cannot be scored."""
        check_on_error(on_error)
        images = as_image_sequence(X)
        if on_error == "raise":
            return gathered((Scored(scores, kept) for scores, kept in self._graph.iter_scores(images, of_map)))
        return gathered(score_or_flag(images, lambda some: self._graph.iter_scores(some, of_map)))

    def _require_threshold(self) -> None:
        if math.isnan(self.offset_):
            raise ValueError(
                "this detector has no threshold, because the detector that was exported had none. score_samples and "
                "segment work without a threshold. For predict, calibrate the detector and export it again."
            )


def _number(value: Any) -> float:
    """Return a number of the manifest, in which None stands for NaN."""
    return math.nan if value is None else float(value)
