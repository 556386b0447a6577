"""export: write a whole detector to one ONNX file that carries the means to verify itself."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from skpatchcore._utils.files import require_writable, written_whole
from skpatchcore.deployment._reading import InputRules
from skpatchcore.deployment._settings import ExportSettings
from skpatchcore.deployment.container import GOLDEN, MANIFEST, REGION, as_npz_text, with_entries
from skpatchcore.deployment.decisions import DecisionComparison, checked_labels, compared_decisions
from skpatchcore.deployment.errors import ExportError
from skpatchcore.deployment.golden import (
    STAGES,
    Reference,
    ScoreScale,
    StageDifference,
    golden_arrays,
    synthetic_images,
    synthetic_sizes,
    tolerances_of,
)
from skpatchcore.deployment.runtimes import Runner, open_runner, results_of
from skpatchcore.images.containers import as_image_sequence
from skpatchcore.images.errors import ImageError
from skpatchcore.images.views import placed

if TYPE_CHECKING:
    from onnx import ModelProto

    from skpatchcore.features._backbones import Network

# Distances of feature vectors up to this fraction of the lengths of the vectors count as rounding. Rounding reaches
# about 4e-7, and thresholds are usually about 1e-2.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class ExportReport:
    """Description of the file that :func:`~skpatchcore.export` wrote. ``print(report)`` shows it.

    Attributes
    ----------
    path : str
        Path of the file.
    n_bytes : int
        Size of the file.
    precision : str
        The parameter `precision` of :func:`~skpatchcore.export`.
    stages : tuple of StageDifference
        Largest differences between the file, run in ONNX Runtime, and the *detector*, on the golden images. With a
        reduced precision, they are larger than those that :func:`verify` shows: the golden results of such a file are
        those of the file itself.
    n_flipped : int
        Number of golden images with another label than from the detector, without labels that only rounding changes.
    decisions : DecisionComparison or None
        Comparison of the decisions for the test images; None without test images.

    See Also
    --------
    export : Write a file, and return its report.

    Examples
    --------
    >>> from skpatchcore import ExportReport
    >>> from skpatchcore.deployment import StageDifference
    >>> print(ExportReport("a.onnx", 5_200_000, "float32", (StageDifference("score", 2e-7, 1e-4),), 0))
    a.onnx: 5.2 MB, float32. Largest relative difference from the detector: 2.0e-07 (score). Flipped golden labels: 0.
    """

    path: str
    n_bytes: int
    precision: str
    stages: tuple[StageDifference, ...]
    n_flipped: int
    decisions: DecisionComparison | None = None

    def __str__(self) -> str:
        largest = max(self.stages, key=lambda stage: stage.difference)
        tested = "" if self.decisions is None else f" Test images: {self.decisions}"
        return (
            f"{self.path}: {self.n_bytes / 1e6:.1f} MB, {self.precision}. Largest relative difference from the "
            f"detector: {largest.difference:.1e} ({largest.stage}). Flipped golden labels: {self.n_flipped}.{tested}"
        )


def export(
    detector: Any,
    path: str | os.PathLike[str],
    *,
    precision: str = "float32",
    image_size: tuple[int, int] | None = None,
    map_size: str = "input",
    input_dtype: str = "uint8",
    golden: Sequence[Any] = (),
    good_images: Any = None,
    test_images: Any = None,
    y_test: Any = None,
    max_flipped: float = 0.01,
) -> ExportReport:
    """Write a fitted detector to one ONNX file, which any ONNX runtime can run without this package and without torch.

    The file takes images and returns scores, decisions, labels, p-values, anomaly maps and masks. It contains the
    resizing, the network, the memory bank and the thresholds. It also carries *golden images* with the results at every
    stage. :func:`~skpatchcore.verify` compares the results of a runtime with these golden results, on any machine. With
    ``precision="float32"``, the golden results are those of the detector. With a reduced precision, they are those of
    the file in ONNX Runtime, which other runtimes must reproduce. Before the file is written, it is run in ONNX Runtime
    and compared with the detector.

    Parameters
    ----------
    detector : PatchCoreDetector or PaDiMDetector
        The fitted detector, or a pipeline with this detector as its only step. Its extractor must be a
        TorchFeatureExtractor with a backbone that is given by name.
    path : path
        Path of the file to write. The recommended ending is ``.onnx``. An existing file is replaced only after the new
        file has been verified.
    precision : {"float32", "float16", "int8"}, default="float32"
        ``"float16"`` stores the weights of the network and the memory bank in float16. The file is about half as large.
        The graph computes in float32. ``"int8"`` quantises the network: its convolutions compute with 8-bit integers.
        The scores change, and decisions can flip; see `max_flipped`. The search and the scores stay in float32.
    image_size : (int, int) or None, default=None
        Height and width in pixels of all images. The file then accepts no other size. Required if the detector has a
        region of interest, and for transformers without a fixed input. None accepts images of any size.
    map_size : {"input", "image"}, default="input"
        Size of the outputs ``anomaly_map`` and ``mask``: that of the network's input, or that of the image, which takes
        longer. If the detector has ``image_score="map-max"``, the graph always computes a map at the image's size for
        the score.
    input_dtype : {"uint8", "float32"}, default="uint8"
        Data type of the images: 8-bit RGB, or RGB values from 0 (black) to 1 (white), e.g. for images with 16 bits.
    golden : sequence of images, default=()
        Additional golden images, e.g. a few good and a few defective parts. **The file contains these images.** It
        always contains golden images that are made from formulas, too. By default, it contains no image of yours.
    good_images : sequence of images or None, default=None
        Images of good parts that set the ranges of the integers with ``precision="int8"``. At most 64 of them are used.
        None uses the detector's training images, if they were paths and the files still exist.
    test_images : sequence of images or None, default=None
        Images for which the decisions of the file and of the detector are compared. None compares the decisions for
        `good_images` if `precision` is ``"int8"``, otherwise only for the golden images.
    y_test : array of shape (n_test_images,) or None, default=None
        Labels of `test_images`: +1 for good, -1 for defective; 0, NaN or None for images without a label. The report
        then contains the change of the AUROC.
    max_flipped : float, default=0.01
        Accepted fraction of flipped decisions among `test_images` with a reduced precision. If more decisions flip, no
        file is written.

    Returns
    -------
    ExportReport
        Size of the file, and the largest difference of each stage from the detector.

    Raises
    ------
    ExportError
        If the detector cannot be exported. The message states the reason, e.g. a backbone that is a function, an
        approximate index, or an extractor with ``dtype="bfloat16"``. A detector with a threshold of nearly 0 is
        refused, because rounding would decide its labels. The error is also raised if the results of the exported graph
        differ from those of the detector, if a result is not finite, or if too many decisions flip.
    ImageError
        If a golden image or a test image cannot be read.
    NotFittedError
        If the detector is not fitted.
    ValueError
        If a parameter has an invalid value, or if `y_test` is given without `test_images`.
    OSError
        If the file cannot be written, e.g. because its folder does not exist.
    ImportError
        If the packages of the extra ``onnx`` are not installed.

    See Also
    --------
    OnnxDetector : Run an exported file.
    verify : Compare an exported file with its golden results.
    save : Write a file from which this package can restore the detector.

    Notes
    -----
    The graph uses standard operators of opset 18 only. The antialiased resizing is written as matrix products, because
    runtimes implement the antialiasing of the operator Resize differently. Images larger than `tile_size` go through
    the network as a whole, so a runtime needs more memory for them than the detector.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> import numpy as np
    >>> import skpatchcore
    >>> good = np.random.default_rng(0).integers(110, 140, (12, 64, 64, 3), np.uint8)
    >>> extractor = skpatchcore.TorchFeatureExtractor("resnet18", weights=None, image_size=64)
    >>> detector = skpatchcore.PatchCoreDetector(extractor, random_state=0).fit(good)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder) / "parts.onnx"
    ...     report = skpatchcore.export(detector, file)
    ...     labels = skpatchcore.OnnxDetector(file).predict(good)
    >>> report.n_flipped
    0
    >>> bool((labels == detector.predict(good)).all())
    True
    """
    _require_packages()
    from skpatchcore.deployment._build import build_model, inspected_by, load_backbone
    from skpatchcore.deployment._exportable import check_detector, detector_of
    from skpatchcore.deployment._original import original_results
    from skpatchcore.deployment.manifest import manifest_of

    detector, target = detector_of(detector), Path(path)
    check_is_fitted(detector, "offset_")
    settings = ExportSettings.of(precision, image_size, map_size, input_dtype, max_flipped)
    require_writable(target)
    check_detector(detector, settings)
    _require_threshold(detector)
    if y_test is not None and test_images is None:
        raise ValueError("y_test is given without test_images: pass the images that it labels.")
    golden = _images(golden, "golden") if not (isinstance(golden, Sequence) and len(golden) == 0) else ()
    test = None if test_images is None else _images(test_images, "test_images")
    y_test = None if y_test is None or test is None else checked_labels(y_test, len(test), "y_test")
    network = load_backbone(detector.extractor_)
    inspected = inspected_by(detector, settings.image_size)
    change = None
    if precision == "int8":
        good = _images(_training_images(detector) if good_images is None else good_images, "good_images")
        test = good if test is None else test
        change = partial(_quantised, detector=detector, network=network, images=good, inspected=inspected)
    model = build_model(detector, network, settings, inspected, change).SerializeToString()
    images = _golden_images(detector, golden, settings)
    references = [Reference.of(image, original_results(detector, image, map_size, inspected)) for image in images]
    runner, names = open_runner(model, "onnxruntime", None, os.fspath(path)), [*STAGES, "label"]
    outputs = [results_of(names, runner.run(image[None], names)) for image in images]
    scale = ScoreScale(float(detector.offset_), detector.calibration_scores_)
    stages, n_flipped = _compared_with_detector(references, outputs, scale, settings)
    manifest = manifest_of(detector, network, settings, tolerances_of(precision))
    decisions = None
    if test is not None:
        decisions = _test_decisions(detector, runner, manifest, test, y_test)
        _require_few_flipped(decisions, settings)

    # With a reduced precision, other runtimes must reproduce the results of the file, not those of the detector.
    results = [reference.results() for reference in references] if precision == "float32" else outputs
    arrays = golden_arrays(images, results)
    entries = {MANIFEST: json.dumps(manifest, allow_nan=False), GOLDEN: as_npz_text(arrays)}
    if inspected is not None:
        entries[REGION] = as_npz_text(inspected.compact())
    content = with_entries(model, entries)
    with written_whole(target, durable=True) as unfinished:
        unfinished.write_bytes(content)
    return ExportReport(os.fspath(path), len(content), precision, stages, n_flipped, decisions)


def _require_packages() -> None:
    """Raise an ImportError that names the extra if a package is missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"export needs the package {error.name}, of the extra onnx: pip install onnx onnxscript onnxruntime"
        ) from error


def _training_images(detector: Any) -> list[str]:
    """Return the paths of the detector's training images. Raise an ExportError if they are unknown or missing."""
    paths = [path for path in detector.training_paths_ or [] if path is not None]
    missing = [path for path in paths if not os.path.exists(path)]
    if not paths or missing:
        reason = f"{missing[0]!r} does not exist" if missing else "their paths are unknown"
        raise ExportError(
            f"precision='int8' needs images of good parts, and the training images cannot be used: {reason}. Pass "
            "good_images."
        )
    return paths


def _images(images: Any, name: str) -> Sequence[Any]:
    """Return images as a sequence of single images. Raise a ValueError that names the parameter if this fails."""
    try:
        return as_image_sequence(images)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _quantised(model: ModelProto, *, detector: Any, network: Network, images: Any, inspected: Any) -> ModelProto:
    """Return the model of a backbone with 8-bit integers. Raise an ExportError if this is not possible."""
    from skpatchcore.deployment._original import network_inputs
    from skpatchcore.deployment._quantize import quantized

    try:
        return quantized(model, network_inputs(detector, network, images, inspected))
    except ImageError:
        raise
    except ValueError as error:
        raise ExportError(
            f"precision='int8' is not possible for {detector.extractor_.backbone} with layers={list(network.layers)}, "
            f"e.g. because it has fewer than three convolutions: {error} Use precision='float16' or 'float32'."
        ) from error


def _require_threshold(detector: Any) -> None:
    """Raise an ExportError if the threshold is as small as rounding, which would decide the labels.

    The scores of the detector are distances of feature vectors, which are rounded in proportion to the lengths of these
    vectors.
    """
    if hasattr(detector, "memory_bank_"):
        vectors = np.asarray(detector.memory_bank_)
    else:
        vectors = np.einsum("cij,cj->ci", detector.model_.whitening, detector.model_.means)
    length = float(np.linalg.norm(vectors, axis=1).max())
    if abs(detector.offset_) <= _ROUNDING * length:
        raise ExportError(
            f"the threshold of the scores is {detector.offset_:.1e}, which is not larger than rounding: nearly all "
            "good images have the score 0, e.g. because they are identical. The exported file rounds differently, and "
            "rounding would decide its labels. Fit on images that differ, or call recalibrate with such images."
        )


def _golden_images(detector: Any, golden: Sequence[Any], settings: ExportSettings) -> list[np.ndarray]:
    """Return the golden images: made from formulas, and the given ones as the graph takes them."""
    from skpatchcore.deployment._build import input_size_of
    from skpatchcore.deployment.manifest import input_of

    extractor = detector.extractor_
    rules = InputRules.of(input_of(extractor, settings))
    if settings.image_size is not None:
        if not _is_small_enough(settings.image_size, rules):
            raise ValueError(
                f"image_size={settings.image_size}: max_pixels={rules.max_pixels} of the extractor allows no images of "
                "this size."
            )
        sizes = [settings.image_size] * 2
    else:
        input_size, given = input_size_of(extractor, None), extractor.image_size
        side = min(input_size) if input_size is not None else int(given) if given is not None else 256
        # Without image_size, small images are not enlarged for a crop.
        least = max(input_size or (1,)) if given is None else 1
        sizes = [_bounded(size, rules) for size in synthetic_sizes(side, least)]
    images = synthetic_images(sizes)
    if settings.input_dtype == "float32":
        images = [image.astype(np.float32) / np.float32(255) for image in images]
    return [*images, *(rules.read(image, index).pixels for index, image in enumerate(golden))]


def _bounded(size: tuple[int, int], rules: InputRules) -> tuple[int, int]:
    """Return a size that `max_pixels` allows: the size itself, or a smaller one that is nearer to a square."""
    height, width = size
    short = min(size)
    for step in range(5):  # first the longer side becomes shorter
        candidate = (height - (height - short) * step // 4, width - (width - short) * step // 4)
        if _is_small_enough(candidate, rules):
            return candidate
    smaller = ((side, side) for side in range(short, 0, -max(1, short // 64)))
    return next((candidate for candidate in smaller if _is_small_enough(candidate, rules)), size)


def _is_small_enough(size: tuple[int, int], rules: InputRules) -> bool:
    """Return whether `max_pixels` allows images of a size (height, width), before and after resizing."""
    if rules.max_pixels is not None and size[0] * size[1] > rules.max_pixels:
        return False
    try:
        placed(size, rules.resize, rules.crop, 0, None, rules.max_pixels, rules.rounded_to)
    except ImageError:
        return False
    return True


def _compared_with_detector(
    references: Sequence[Reference],
    outputs: Sequence[dict[str, np.ndarray]],
    scale: ScoreScale,
    settings: ExportSettings,
) -> tuple[tuple[StageDifference, ...], int]:
    """Compare the outputs of the graph for the golden images with the results of the detector.

    Returns
    -------
    stages : tuple of StageDifference
        Largest difference of each stage. Its tolerance is infinity for reduced precisions.
    n_flipped : int
        Number of labels that differ. Labels that only rounding changes are not counted.

    Raises
    ------
    ExportError
        If a stage or, with ``precision="float32"``, a label differs.
    """
    is_exact = settings.precision == "float32"
    tolerances = tolerances_of("float32") if is_exact else dict.fromkeys(STAGES, np.inf)
    found = [reference.differences(output, scale) for reference, output in zip(references, outputs, strict=True)]
    stages = tuple(StageDifference(stage, max(own[stage] for own in found), tolerances[stage]) for stage in STAGES)
    _require_equal(stages)
    decisions = compared_decisions(
        np.array([reference.decision for reference in references]),
        np.array([float(output["decision"]) for output in outputs]),
        scale.offset,
        labels=np.array([int(output["label"]) for output in outputs]),
    )
    if is_exact and decisions.n_flipped:
        raise ExportError(
            f"the exported graph does not agree with the detector on the golden images: {decisions} "
            "No file was written."
        )
    return stages, decisions.n_flipped


def _test_decisions(
    detector: Any, runner: Runner, manifest: dict[str, Any], images: Sequence[Any], y: np.ndarray | None
) -> DecisionComparison:
    """Compare the decisions of a graph with those of the detector."""
    rules, names = InputRules.of(manifest), ["decision", "label"]
    original = detector.decision_function(images)
    found = [results_of(names, runner.run(rules.read(images[i], i).pixels[None], names)) for i in range(len(images))]
    return compared_decisions(
        original,
        np.array([float(one["decision"]) for one in found]),
        detector.offset_,
        y,
        labels=np.array([int(one["label"]) for one in found]),
    )


def _require_few_flipped(decisions: DecisionComparison, settings: ExportSettings) -> None:
    """Raise an ExportError if more decisions flip than accepted."""
    is_exact = settings.precision == "float32"
    accepted = 0.0 if is_exact else settings.max_flipped
    if decisions.n_flipped > accepted * decisions.n_images:
        advice = "" if is_exact else " Use precision='float32', or a larger max_flipped."
        raise ExportError(
            f"precision={settings.precision!r} flips too many decisions: {decisions} At most {accepted:g} of the "
            f"images may flip. No file was written.{advice}"
        )


def _require_equal(stages: Sequence[StageDifference]) -> None:
    """Raise an ExportError if a stage differs by more than its tolerance, or if its difference is not finite."""
    for stage in stages:
        if stage.is_off:
            accepted = f"at most {stage.tolerance:.0e} is accepted" if np.isfinite(stage.tolerance) else "not finite"
            raise ExportError(
                f"the exported graph does not agree with the detector: {stage.stage} differs by "
                f"{stage.difference:.1e}, {accepted}. No file was written. If all images have one size, export with "
                "image_size=(height, width)."
            )
