"""verify: compare what a runtime computes from an exported file with the results of the detector, stage by stage."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from skpatchcore._utils.progress import progress_bar
from skpatchcore.deployment._reading import InputRules
from skpatchcore.deployment.container import Container, read_container
from skpatchcore.deployment.decisions import DecisionComparison, checked_labels, compared_decisions
from skpatchcore.deployment.errors import ModelFileError
from skpatchcore.deployment.golden import MARGIN, STAGES, Reference, ScoreScale, StageDifference, golden_results
from skpatchcore.deployment.runtimes import RUNTIMES, Runner, open_runner, results_of
from skpatchcore.images.containers import as_image_sequence
from skpatchcore.images.errors import ImageError

_GOLDEN, _IMAGES = "golden images", "images"


@dataclass(frozen=True)
class Check:
    """Comparison of one runtime with the golden results or with the detector. ``print(check)`` shows a table.

    Attributes
    ----------
    runtime : str
        Name and version of the runtime.
    images : str
        ``"golden images"`` or ``"images"``: what was compared.
    stages : tuple of StageDifference
        Largest difference of each stage. Empty if no image could be compared.
    decisions : DecisionComparison
        Number of flipped labels among the images that could be compared.
    max_flipped : float
        Accepted fraction of flipped labels.
    failures : tuple of str
        A sentence for each image that could not be read or that the runtime could not run, and for an image with NaN
        that does not get the label -1.
    """

    runtime: str
    images: str
    stages: tuple[StageDifference, ...]
    decisions: DecisionComparison
    max_flipped: float
    failures: tuple[str, ...] = ()

    @property
    def is_passed(self) -> bool:
        """Whether nothing failed, no stage differs by more than its tolerance, and at most the accepted labels flip."""
        if self.failures or not self.decisions.n_images or any(stage.is_off for stage in self.stages):
            return False
        return self.decisions.n_flipped <= self.max_flipped * self.decisions.n_images

    def __str__(self) -> str:
        lines = [f"{self.runtime}, {self.decisions.n_images} {self.images}"]
        if self.stages:
            lines.append(f"  {'stage':<14}{'largest difference':>20}{'tolerance':>12}")
        for stage in self.stages:
            tolerance = "none" if np.isinf(stage.tolerance) else f"{stage.tolerance:.1e}"
            mark = "  OFF" if stage.is_off else ""
            lines.append(f"  {stage.stage:<14}{stage.difference:>20.1e}{tolerance:>12}{mark}")
        if self.stages:
            lines.append(f"  {self.decisions}")
        if self.failures:
            lines.append(f"  FAILED: {len(self.failures)}")
        return "\n".join([*lines, *(f"    {failure}" for failure in self.failures)])


@dataclass(frozen=True)
class Verification:
    """Result of :func:`~skpatchcore.verify`. ``print(verification)`` shows a table per runtime.

    Attributes
    ----------
    path : str
        Path of the file.
    checks : tuple of Check
        One check per runtime and per set of images.

    See Also
    --------
    verify : Compare an exported file with the detector.

    Examples
    --------
    >>> from skpatchcore import Verification
    >>> from skpatchcore.deployment import Check, DecisionComparison, StageDifference
    >>> stages = (StageDifference("score", 3e-2, 1e-4),)
    >>> check = Check("onnxruntime 1.32.0", "golden images", stages, DecisionComparison(3, 1, 0, 3e-2), 0.0)
    >>> verification = Verification("parts.onnx", (check,))
    >>> verification.is_passed
    False
    >>> [stage.stage for stage in check.stages if stage.is_off]
    ['score']
    """

    path: str
    checks: tuple[Check, ...]

    @property
    def is_passed(self) -> bool:
        """Whether all checks are passed."""
        return all(check.is_passed for check in self.checks)

    def __str__(self) -> str:
        result = "passed" if self.is_passed else "FAILED"
        return "\n\n".join([*map(str, self.checks), f"{self.path}: {result}"])


def verify(
    path: str | os.PathLike[str],
    *,
    runtimes: str | Sequence[str] | None = None,
    detector: Any = None,
    images: Any = None,
    y: Any = None,
    n_threads: int | None = None,
    verbose: int = 0,
) -> Verification:
    """Run an exported file, and compare the results with the expected results at every stage.

    Without `detector`, the results are compared with the golden results in the file. This needs neither torch nor the
    detector: run it on the machine on which the file will be used. The golden results of a float32 file are those of
    the detector. Those of a float16 or int8 file are those of the file in ONNX Runtime. With `detector` and `images`,
    the results for these images are compared with the detector, too.

    Parameters
    ----------
    path : path
        The exported file.
    runtimes : {"onnxruntime", "openvino"}, sequence of these names, or None, default=None
        Runtimes that run the file. None uses all installed runtimes.
    detector : PatchCoreDetector, PaDiMDetector or None, default=None
        The detector that was exported.
    images : sequence of images or None, default=None
        Images for the comparison with `detector`.
    y : array of shape (n_images,) or None, default=None
        +1 for good and -1 for defective images; 0, NaN or None for images without a label. The AUROC of the file and of
        the detector are then computed.
    n_threads : int or None, default=None
        Number of threads of the runtime. None lets the runtime choose.
    verbose : int, default=0
        If 1, a progress bar is shown for `images`.

    Returns
    -------
    Verification
        One check per runtime for the golden images, and one for `images`. ``verification.is_passed`` states the result,
        and ``print(verification)`` shows the largest difference of each stage and the flipped decisions. If an image
        cannot be read or a runtime raises an error, the check is not passed. ``print(verification)`` shows the failure,
        and everything else is still compared.

    Raises
    ------
    ModelFileError
        If the file is damaged, was not written by :func:`export`, or has no golden images.
    ImportError
        If a runtime is not installed.
    ValueError
        If only one of `detector` and `images` is given, if one of `images`, `runtimes` and `y` is invalid or empty, or
        if the file was exported from another detector.

    See Also
    --------
    export : Write the file.

    Notes
    -----
    The difference of a stage is the largest absolute difference, divided by the largest expected value for the same
    image. For scores and maps, the divisor is at least the threshold, because the scores of training images can be
    nearly 0. A p-value passes if a score within the tolerance has this p-value: a small difference of the score can
    change its rank among the calibration scores, e.g. if the image is a calibration image. The difference of ``mask``
    is the fraction of pixels that differ.

    The tolerance is 1e-4 for files in float32 and float16, which compute in float32, and 1e-3 for ``mask``. For int8,
    runtimes round differently, and the tolerances are larger; the manifest contains them. For `images` and a reduced
    precision, only the labels are judged.

    The first golden image is run twice in one batch. A file with ``input_dtype="float32"`` is also run on an image with
    NaN, which must get the label -1.

    Examples
    --------
    >>> import skpatchcore
    >>> skpatchcore.verify("parts.csv")
    Traceback (most recent call last):
    ...
    FileNotFoundError: [Errno 2] No such file or directory: 'parts.csv'
    """
    if (detector is None) != (images is None):
        raise ValueError("pass both detector and images, or none of them.")
    if y is not None and images is None:
        raise ValueError("y is given without images: pass the images that it labels.")
    names = _runtimes(runtimes)
    container = read_container(path)
    expected = _Expected.of(container)
    if detector is not None:
        try:
            images = as_image_sequence(images)
        except ValueError as error:
            raise ValueError(f"images: {error}") from error
        y = None if y is None else checked_labels(y, len(images), "y")
        detector = _original_of(container, detector)
    checks = []
    for name in names:
        try:
            runner = open_runner(container.content, name, n_threads, container.name)
        except ModelFileError as error:
            checks.append(_without_results(_title(name), expected, str(error)))
            continue
        checks.append(_golden_check(expected, runner, _title(name)))
        if detector is not None:
            checks.append(_image_check(expected, runner, _title(name), detector, images, y, verbose))
    return Verification(container.name, tuple(checks))


@dataclass(frozen=True)
class _Expected:
    """Expected results of an exported file, and their tolerances, as the file states them.

    `margin` is the largest difference of a decision from the golden decision that counts as rounding, as a fraction of
    the threshold.
    """

    references: list[Reference]
    scale: ScoreScale
    tolerances: dict[str, float]
    rules: InputRules
    map_size: str
    image_size: Sequence[int] | None
    is_exact: bool
    max_flipped: float
    margin: float

    @classmethod
    def of(cls, container: Container) -> _Expected:
        """Return the expectations of a file. Raise a ModelFileError if a part is missing."""
        manifest, references = container.manifest, golden_results(container.golden, container.name)
        try:
            tolerances = {stage: float(manifest["tolerances"][stage]) for stage in STAGES}
            if not np.isfinite(list(tolerances.values())).all():
                raise ValueError("a tolerance is not finite.")
            scores = _calibration_scores(manifest)
            if np.isnan(scores).all():
                raise ValueError("there are no calibration scores.")
            is_exact = manifest["precision"] == "float32"
            return cls(
                references,
                ScoreScale(float(manifest["thresholds"]["offset"]), scores, tolerances["score"]),
                tolerances,
                InputRules.of(manifest),
                str(manifest["map_size"]),
                manifest["input"]["image_size"],
                is_exact,
                0.0 if is_exact else float(manifest["max_flipped"]),
                MARGIN if manifest["precision"] != "int8" else tolerances["decision"],
            )
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ModelFileError(
                f"{container.name!r} was not written by skpatchcore.export: {type(error).__name__}: {error}"
            ) from error


def _runtimes(given: str | Sequence[str] | None) -> list[str]:
    """Return the names of the runtimes to use.

    Raises
    ------
    ValueError
        If a name is unknown, or if there is no name.
    ImportError
        If `given` is None and no runtime is installed.
    """
    if given is None:
        found = [name for name in RUNTIMES if importlib.util.find_spec(name) is not None]
        if not found:
            raise ImportError("verify needs ONNX Runtime or OpenVINO: pip install onnxruntime")
        return found
    names = [given] if isinstance(given, str) else list(given)
    unknown = [name for name in names if name not in RUNTIMES]
    if unknown or not names:
        raise ValueError(f"runtimes={given!r}: expected {' or '.join(map(repr, RUNTIMES))}, or both in a list.")
    return names


def _title(runtime: str) -> str:
    """Return the name and the version of a runtime that is installed."""
    try:
        return f"{runtime} {version(runtime)}"
    except PackageNotFoundError:  # the package has another name, e.g. that for GPUs
        return f"{runtime} {importlib.import_module(runtime).__version__}"


def _without_results(title: str, expected: _Expected, failure: str) -> Check:
    """Return the check of a runtime that cannot load the file."""
    return Check(title, _GOLDEN, (), DecisionComparison(0, 0, 0, 0.0), expected.max_flipped, (failure,))


def _golden_check(expected: _Expected, runner: Runner, title: str) -> Check:
    """Compare a runtime with the golden results of a file."""
    check = _check(title, _GOLDEN, expected, runner, expected.references, expected.tolerances, None, expected.margin)
    failure = _failure_with_nan(runner, expected.references[0].image)
    return check if failure is None else replace(check, failures=(*check.failures, failure))


def _image_check(
    expected: _Expected, runner: Runner, title: str, detector: Any, images: Sequence[Any], y: Any, verbose: int
) -> Check:
    """Compare a runtime with the detector on images."""
    # With a reduced precision, the results differ from those of the detector, and only the labels are judged.
    tolerances = expected.tolerances if expected.is_exact else dict.fromkeys(STAGES, np.inf)
    with progress_bar(len(images), f"verifying in {title}", "image", verbose) as bar:

        def shown(references: Iterator[Reference | ImageError]) -> Iterator[Reference | ImageError]:
            for reference in references:
                yield reference
                bar.update(1)

        references = shown(_originals(expected, detector, images))
        return _check(title, _IMAGES, expected, runner, references, tolerances, y, MARGIN)


def _originals(expected: _Expected, detector: Any, images: Sequence[Any]) -> Iterator[Reference | ImageError]:
    """Yield each image with the results of the detector, or the error of an image that cannot be used."""
    from skpatchcore.deployment._build import inspected_by
    from skpatchcore.deployment._original import original_results

    inspected = inspected_by(detector, expected.image_size)
    for i in range(len(images)):
        try:
            prepared = expected.rules.read(images[i], i)
            try:
                results = original_results(detector, prepared.pixels, expected.map_size, inspected)
            except ImageError as error:
                raise ImageError(error.message, i, prepared.path) from error
            yield Reference.of(prepared.pixels, results)
        except ImageError as error:
            yield error


def _check(
    title: str,
    kind: str,
    expected: _Expected,
    runner: Runner,
    references: Iterable[Reference | ImageError],
    tolerances: dict[str, float],
    y: np.ndarray | None,
    margin: float,
) -> Check:
    """Compare a runtime with expected results."""
    largest: dict[str, float] = {}
    failures: list[str] = []
    compared: list[tuple[int, float, float, int]] = []  # index, expected and found decision, found label
    for number, reference in enumerate(references):
        if isinstance(reference, ImageError):
            failures.append(str(reference))
            continue
        try:
            output = _outputs(runner, reference.image, 2 if kind == _GOLDEN and number == 0 else 1)
        except _RuntimeFailureError as error:
            failures.append(f"{'golden image' if kind == _GOLDEN else 'image'} {number}: {error}")
            continue
        for stage, difference in reference.differences(output, expected.scale).items():
            largest[stage] = max(largest.get(stage, 0.0), difference)
        compared.append((number, reference.decision, float(output["decision"]), int(output["label"])))
    table = np.array(compared, np.float64).reshape(-1, 4)
    indices, original, found, labels = table[:, 0].astype(int), table[:, 1], table[:, 2], table[:, 3].astype(int)
    decisions = compared_decisions(
        original, found, expected.scale.offset, None if y is None else y[indices], labels=labels, margin=margin
    )
    stages = tuple(StageDifference(stage, value, tolerances[stage]) for stage, value in largest.items())
    return Check(title, kind, stages, decisions, expected.max_flipped, tuple(failures))


class _RuntimeFailureError(Exception):
    """Raised if a runtime cannot run the graph, or returns results of another form; the message is one line."""


def _outputs(runner: Runner, image: np.ndarray, n_images: int = 1) -> dict[str, np.ndarray]:
    """Return all outputs for an image by name, without the axis of the images.

    Parameters
    ----------
    runner : Runner
        The runtime.
    image : array of shape (height, width, 3)
        The image.
    n_images : int, default=1
        Number of copies of the image in the batch. The outputs for the last copy are returned.
    """
    names = [*STAGES, "label"]
    try:
        return results_of(names, runner.run(np.stack([image] * n_images), names), n_images)
    except Exception as error:  # runtimes raise their own classes of errors
        raise _RuntimeFailureError(" ".join(f"{type(error).__name__}: {error}".split())) from error


def _failure_with_nan(runner: Runner, image: np.ndarray) -> str | None:
    """Return the failure for an image with NaN that is not labelled -1; None if the label is -1, or if NaN is no input.

    Every second row and column is NaN, so that every region of interest contains NaN.
    """
    if image.dtype != np.float32:
        return None
    image = image.copy()
    image[::2, ::2] = np.nan
    try:
        label = int(_outputs(runner, image)["label"])
    except _RuntimeFailureError as error:
        return f"an image with NaN: {error}"
    return None if label == -1 else f"an image with NaN has the label {label:+d}, expected -1."


def _calibration_scores(manifest: dict[str, Any]) -> np.ndarray:
    """Return the calibration scores of a manifest, in which None stands for NaN."""
    return np.array([np.nan if score is None else score for score in manifest["calibration_scores"]], np.float64)


def _original_of(container: Container, detector: Any) -> Any:
    """Return the detector, or that of a pipeline. Raise a ValueError if the file belongs to another detector."""
    from skpatchcore.deployment._exportable import detector_of

    detector, manifest = detector_of(detector), container.manifest
    scores = _calibration_scores(manifest)
    is_same = type(detector).__name__ == manifest["detector"] and np.array_equal(
        scores, getattr(detector, "calibration_scores_", ()), equal_nan=True
    )
    if not is_same or float(detector.offset_) != manifest["thresholds"]["offset"]:
        raise ValueError(
            "the file was exported from another detector, or the detector was recalibrated since: its calibration "
            "scores or its threshold differ. Export it again."
        )
    return detector
