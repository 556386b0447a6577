"""verify: compare what a runtime computes from an exported file with the results of the detector, stage by stage."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np

from skpatchcore._utils.progress import progress_bar
from skpatchcore.deployment._reading import InputRules
from skpatchcore.deployment.container import Container, read_container
from skpatchcore.deployment.decisions import DecisionComparison, compared_decisions
from skpatchcore.deployment.golden import STAGES, StageDifference, compared, golden_images, stage_difference
from skpatchcore.deployment.runtimes import RUNTIMES, Runner, open_runner


@dataclass(frozen=True)
class Check:
    """Comparison of one runtime with the detector. ``print(check)`` shows a table.

    Attributes
    ----------
    runtime : str
        Name and version of the runtime.
    images : str
        ``"golden images"`` or ``"images"``: what was compared.
    stages : tuple of StageDifference
        Largest difference of each stage.
    decisions : DecisionComparison
        Number of flipped decisions.
    max_flipped : float
        Accepted fraction of flipped decisions.
    """

    runtime: str
    images: str
    stages: tuple[StageDifference, ...]
    decisions: DecisionComparison
    max_flipped: float

    @property
    def is_passed(self) -> bool:
        """Whether no stage is off, and no more decisions are flipped than accepted."""
        is_off = any(stage.is_off for stage in self.stages)
        return not is_off and self.decisions.n_flipped <= self.max_flipped * self.decisions.n_images

    def __str__(self) -> str:
        lines = [
            f"{self.runtime}, {self.decisions.n_images} {self.images}",
            f"  {'stage':<14}{'largest difference':>20}{'tolerance':>12}",
        ]
        for stage in self.stages:
            tolerance = "none" if np.isinf(stage.tolerance) else f"{stage.tolerance:.1e}"
            mark = "  OFF" if stage.is_off else ""
            lines.append(f"  {stage.stage:<14}{stage.difference:>20.1e}{tolerance:>12}{mark}")
        return "\n".join([*lines, f"  {self.decisions}"])


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
    runtimes: Sequence[str] | None = None,
    detector: Any = None,
    images: Any = None,
    y: Any = None,
    n_threads: int | None = None,
    verbose: int = 0,
) -> Verification:
    """Run an exported file, and compare the results with those of the detector at every stage.

    Without `detector`, the results are compared with the golden results in the file. This needs neither torch nor the
    detector: run it on the machine on which the file will be used. With `detector` and `images`, the results for these
    images are compared too.

    Parameters
    ----------
    path : path
        The exported file.
    runtimes : sequence of {"onnxruntime", "openvino"} or None, default=None
        Runtimes that run the file. None uses all that are installed.
    detector : PatchCoreDetector, PaDiMDetector or None, default=None
        The detector that was exported.
    images : sequence of images or None, default=None
        Images for the comparison with `detector`.
    y : array of shape (n_images,) or None, default=None
        +1 for good and -1 for defective images. The AUROC of the file and of the detector are then computed.
    n_threads : int or None, default=None
        Number of threads of the runtime. None lets the runtime choose.
    verbose : int, default=0
        If 1, a progress bar is shown for `images`.

    Returns
    -------
    Verification
        One check per runtime for the golden images, and one for `images`. ``verification.is_passed`` states the
        result, and ``print(verification)`` shows the largest difference of each stage and the flipped decisions.

    Raises
    ------
    ModelFileError
        If the file is damaged or was not written by :func:`export`.
    ImportError
        If a runtime is not installed.
    ImageError
        If one of the `images` cannot be read.
    ValueError
        If only one of `detector` and `images` is given, or if the file was exported from another detector.

    See Also
    --------
    export : Write the file.

    Notes
    -----
    The difference of a stage is the largest absolute difference, divided by the largest value of the detector for the
    same image. Scores and maps are divided by at least the threshold, because the scores of training images can be
    nearly 0. The tolerance is 1e-4 for files in float32. For other precisions, the tolerance for the golden images is
    1.5 times the difference that was measured at the export, plus 1e-4; for `images`, only decisions are judged.

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
    container, name = read_container(path), os.fspath(path)
    if detector is not None:
        detector = _original_of(container, detector)
    checks = []
    for runtime in _installed() if runtimes is None else runtimes:
        runner = open_runner(container.content, runtime, n_threads, name)
        title = f"{runtime} {version(runtime)}"
        checks.append(_golden_check(container, runner, title))
        if detector is not None:
            checks.append(_image_check(container, runner, title, detector, images, y, verbose))
    return Verification(name, tuple(checks))


def _installed() -> list[str]:
    """Return the names of the runtimes that are installed. Raise an ImportError if there is none."""
    found = [name for name in RUNTIMES if importlib.util.find_spec(name) is not None]
    if not found:
        raise ImportError("verify needs ONNX Runtime or OpenVINO: pip install onnxruntime")
    return found


def _golden_check(container: Container, runner: Runner, title: str) -> Check:
    """Compare a runtime with the golden results of a file."""
    manifest, golden = container.manifest, container.golden
    offset = manifest["thresholds"]["offset"]
    outputs = [_outputs(runner, image) for image in golden_images(golden)]
    stages = compared(golden, outputs, offset, manifest["tolerances"])
    expected = np.array([golden[f"{i}/decision"].item() for i in range(len(outputs))])
    found = np.array([float(output["decision"]) for output in outputs])
    return Check(
        title, "golden images", tuple(stages), compared_decisions(expected, found, offset), _max_flipped(manifest)
    )


def _image_check(
    container: Container, runner: Runner, title: str, detector: Any, images: Any, y: Any, verbose: int
) -> Check:
    """Compare a runtime with the detector on images."""
    from skpatchcore.deployment._build import inspected_by
    from skpatchcore.deployment._original import original_results

    manifest, rules = container.manifest, InputRules.of(container.manifest)
    inspected = inspected_by(detector, manifest["input"]["image_size"])
    offset, map_size = manifest["thresholds"]["offset"], manifest["map_size"]
    largest = dict.fromkeys(STAGES, 0.0)
    expected, found = np.empty(len(images)), np.empty(len(images))
    with progress_bar(len(images), f"verifying in {title}", "image", verbose) as bar:
        for i in range(len(images)):
            pixels = rules.read(images[i], i).pixels
            original, output = original_results(detector, pixels, map_size, inspected), _outputs(runner, pixels)
            expected[i], found[i] = float(original["decision"]), float(output["decision"])
            for stage in STAGES:
                largest[stage] = max(largest[stage], stage_difference(stage, output[stage], original[stage], offset))
            bar.update(1)
    is_exact = manifest["precision"] == "float32"
    stages = [StageDifference(s, largest[s], manifest["tolerances"][s] if is_exact else np.inf) for s in STAGES]
    decisions = compared_decisions(expected, found, offset, y)
    return Check(title, "images", tuple(stages), decisions, _max_flipped(manifest))


def _max_flipped(manifest: dict[str, Any]) -> float:
    return 0.0 if manifest["precision"] == "float32" else float(manifest["max_flipped"])


def _outputs(runner: Runner, image: np.ndarray) -> dict[str, np.ndarray]:
    """Return the outputs of all stages for an image by name, without the axis of the images."""
    return {name: value[0] for name, value in zip(STAGES, runner.run(image[None], STAGES), strict=True)}


def _original_of(container: Container, detector: Any) -> Any:
    """Return the detector, or that of a pipeline. Raise a ValueError if the file belongs to another detector."""
    from skpatchcore.deployment._exportable import detector_of

    detector, manifest = detector_of(detector), container.manifest
    scores = np.array([np.nan if s is None else s for s in manifest["calibration_scores"]], np.float64)
    is_same = type(detector).__name__ == manifest["detector"] and np.array_equal(
        scores, getattr(detector, "calibration_scores_", ()), equal_nan=True
    )
    if not is_same or float(detector.offset_) != manifest["thresholds"]["offset"]:
        raise ValueError(
            "the file was exported from another detector, or the detector was recalibrated since: its calibration "
            "scores or its threshold differ. Export it again."
        )
    return detector
