"""export: write a whole detector to one ONNX file that carries the means to verify itself."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from skpatchcore._utils.files import written_whole
from skpatchcore.deployment._reading import InputRules
from skpatchcore.deployment._settings import ExportSettings
from skpatchcore.deployment.container import GOLDEN, MANIFEST, REGION, as_npz_text, with_entries
from skpatchcore.deployment.decisions import DecisionComparison, compared_decisions
from skpatchcore.deployment.errors import ExportError
from skpatchcore.deployment.golden import (
    STAGES,
    TOLERANCE,
    StageDifference,
    compared,
    golden_arrays,
    golden_images,
    synthetic_images,
)
from skpatchcore.deployment.runtimes import Runner, open_runner

# With a reduced precision, the differences that were measured at the export, times this factor, are accepted elsewhere.
_SLACK = 1.5


@dataclass(frozen=True)
class ExportReport:
    """What :func:`~skpatchcore.export` wrote. ``print(report)`` shows it.

    Attributes
    ----------
    path : str
        Path of the file.
    n_bytes : int
        Size of the file.
    precision : str
        Precision of the constants.
    stages : tuple of StageDifference
        Largest differences between the file, run in ONNX Runtime, and the detector, on the golden images.
    n_flipped : int
        Number of golden images with another label than from the detector.
    decisions : DecisionComparison or None
        Comparison of the decisions for the test images; None without test images.
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
    resizing, the network, the memory bank and the thresholds. It also carries *golden images* with the results of the
    detector at every stage. :func:`~skpatchcore.verify` compares the results of a runtime with them, on any machine.
    Before the file is written, it is verified in ONNX Runtime.

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
        longer.
    input_dtype : {"uint8", "float32"}, default="uint8"
        Data type of the images: 8-bit RGB, or RGB values from 0 (black) to 1 (white), e.g. for images with 16 bits.
    golden : sequence of images, default=()
        Additional golden images, e.g. a few good and a few defective parts. **The file contains these images.** By
        default, the golden images are made from formulas and contain no image of yours.
    good_images : sequence of images or None, default=None
        Images of good parts that set the ranges of the integers with ``precision="int8"``. At most 64 of them are used.
        None uses the detector's training images, if they were paths and the files still exist.
    test_images : sequence of images or None, default=None
        Images for which the decisions of the file and of the detector are compared. None compares the decisions for
        `good_images` if `precision` is ``"int8"``, otherwise only for the golden images.
    y_test : array of shape (n_test_images,) or None, default=None
        Labels of `test_images`: +1 for good, -1 for defective. The report then contains the change of the AUROC.
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
        approximate index, or an extractor with ``dtype="bfloat16"``. The error is also raised if the results of the
        exported graph differ from those of the detector, or if too many decisions flip.
    ImageError
        If a golden image or a test image cannot be read.
    NotFittedError
        If the detector is not fitted.
    ValueError
        If a parameter has an invalid value.
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
    from skpatchcore.deployment._original import network_inputs, original_results
    from skpatchcore.deployment._quantize import quantized
    from skpatchcore.deployment.manifest import manifest_of

    detector = detector_of(detector)
    check_is_fitted(detector, "offset_")
    settings = ExportSettings.of(precision, image_size, map_size, input_dtype, max_flipped)
    check_detector(detector, settings)
    if precision == "int8" and good_images is None:
        good_images = _training_images(detector)
    if precision == "int8" and test_images is None:
        test_images = good_images
    network = load_backbone(detector.extractor_)
    inspected = inspected_by(detector, settings.image_size)
    change = None
    if precision == "int8":
        _require_images(good_images, "good_images")
        change = partial(quantized, batches=network_inputs(detector, network, good_images, inspected))
    model = build_model(detector, network, settings, inspected, change).SerializeToString()

    images = _golden_images(detector, golden, settings)
    arrays = golden_arrays(images, [original_results(detector, image, map_size, inspected) for image in images])
    runner, names = open_runner(model, "onnxruntime", None, os.fspath(path)), [*STAGES, "label"]
    outputs = [_first(names, runner.run(image[None], names)) for image in golden_images(arrays)]
    stages = compared(arrays, outputs, detector.offset_, dict.fromkeys(STAGES, TOLERANCE))
    n_flipped = sum(int(output["label"]) != int(arrays[f"{i}/label"]) for i, output in enumerate(outputs))
    tolerances = dict.fromkeys(STAGES, TOLERANCE)
    if precision == "float32":
        _require_equal(stages)
    else:
        tolerances = {stage.stage: TOLERANCE + _SLACK * stage.difference for stage in stages}
    manifest = manifest_of(detector, network, settings, tolerances)
    decisions = None
    if test_images is not None:
        _require_images(test_images, "test_images")
        decisions = _test_decisions(detector, runner, manifest, test_images, y_test)
        _require_few_flipped(decisions, settings)

    entries = {MANIFEST: json.dumps(manifest), GOLDEN: as_npz_text(arrays)}
    if inspected is not None:
        entries[REGION] = as_npz_text(inspected.compact())
    content = with_entries(model, entries)
    with written_whole(Path(path), durable=True) as unfinished:
        unfinished.write_bytes(content)
    return ExportReport(os.fspath(path), len(content), precision, tuple(stages), n_flipped, decisions)


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
    paths = detector.training_paths_ or []
    missing = [path for path in paths if not os.path.exists(path)]
    if not paths or missing:
        reason = f"{missing[0]!r} does not exist" if missing else "their paths are unknown"
        raise ExportError(
            f"precision='int8' needs images of good parts, and the training images cannot be used: {reason}. Pass "
            "good_images."
        )
    return list(paths)


def _require_images(images: Any, name: str) -> None:
    """Raise a ValueError if a sequence of images is empty."""
    if not len(images):
        raise ValueError(f"{name} is empty: pass at least one image.")


def _golden_images(detector: Any, golden: Sequence[Any], settings: ExportSettings) -> list[np.ndarray]:
    """Return the golden images: made from formulas, and the given ones as the graph takes them."""
    from skpatchcore.deployment._build import input_size_of
    from skpatchcore.deployment.manifest import input_of

    extractor = detector.extractor_
    input_size, given = input_size_of(extractor, settings.image_size), extractor.image_size
    side = min(input_size) if input_size is not None else int(given) if given is not None else 256
    # Without image_size, small images are not enlarged for a crop.
    images = synthetic_images(settings.image_size, side, least=max(input_size or (1,)) if given is None else 1)
    if settings.input_dtype == "float32":
        images = [image.astype(np.float32) / np.float32(255) for image in images]
    rules = InputRules.of(input_of(extractor, settings))
    return [*images, *(rules.read(image, index).pixels for index, image in enumerate(golden))]


def _test_decisions(detector: Any, runner: Runner, manifest: dict[str, Any], images: Any, y: Any) -> DecisionComparison:
    """Compare the decisions of a graph with those of the detector."""
    rules = InputRules.of(manifest)
    original = detector.decision_function(images)
    scores = [runner.run(rules.read(images[i], i).pixels[None], ["score"])[0][0] for i in range(len(images))]
    return compared_decisions(original, np.array(scores, np.float64) - detector.offset_, detector.offset_, y)


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


def _first(names: Sequence[str], outputs: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Return the outputs of the first image of a batch by name."""
    return {name: value[0] for name, value in zip(names, outputs, strict=True)}


def _require_equal(stages: Sequence[StageDifference]) -> None:
    """Raise an ExportError if a stage differs from the detector."""
    for stage in stages:
        if stage.is_off:
            raise ExportError(
                f"the exported graph does not agree with the detector: {stage.stage} differs by "
                f"{stage.difference:.1e}, at most {stage.tolerance:.0e} is accepted. No file was written. If all "
                "images have one size, export with image_size=(height, width)."
            )
