"""export: write a whole detector to one ONNX file that carries the means to verify itself."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from skpatchcore._utils.files import written_whole
from skpatchcore.deployment.container import GOLDEN, MANIFEST, REGION, as_npz_text, with_entries
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
from skpatchcore.detectors.padim import PaDiMDetector
from skpatchcore.detectors.patchcore import PatchCoreDetector
from skpatchcore.features.extractor import TorchFeatureExtractor
from skpatchcore.images.errors import ImageError
from skpatchcore.images.reading import load_image
from skpatchcore.index.exact import ExactIndex
from skpatchcore.protocols import pixel_format_of

_PRECISIONS = ("float32", "float16", "int8")
# Protocol Buffers, the format of ONNX files, cannot hold more bytes.
_MAX_BYTES = 2**31 - 1
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
    """

    path: str
    n_bytes: int
    precision: str
    stages: tuple[StageDifference, ...]
    n_flipped: int

    def __str__(self) -> str:
        largest = max(self.stages, key=lambda stage: stage.difference)
        return (
            f"{self.path}: {self.n_bytes / 1e6:.1f} MB, {self.precision}. Largest relative difference from the "
            f"detector: {largest.difference:.1e} ({largest.stage}). Labels that differ: {self.n_flipped}."
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
    precision : {"float32", "float16"}, default="float32"
        ``"float16"`` stores the weights of the network and the memory bank in float16. The file is about half as large.
        The graph computes in float32.
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

    Returns
    -------
    ExportReport
        Size of the file, and the largest difference of each stage from the detector.

    Raises
    ------
    ExportError
        If the detector cannot be exported. The message states the reason, e.g. a backbone that is a function, an
        approximate index, or an extractor with ``dtype="bfloat16"``. The error is also raised if the results of the
        exported graph differ from those of the detector.
    ImageError
        If a golden image cannot be read.
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
    from skpatchcore.deployment._build import Inspected, build_model, load_backbone
    from skpatchcore.deployment._original import original_results
    from skpatchcore.deployment.manifest import manifest_of
    from skpatchcore.deployment.runtimes import open_runner

    detector = _detector_of(detector)
    check_is_fitted(detector, "offset_")
    _check_parameters(precision, image_size, map_size, input_dtype)
    _check_detector(detector, image_size, input_dtype)
    size = None if image_size is None else (int(image_size[0]), int(image_size[1]))
    network = load_backbone(detector.extractor_)
    inspected = None if detector.roi_ is None else Inspected.of(detector, _fixed(size))
    model = build_model(
        detector,
        network,
        image_size=size,
        map_size=map_size,
        input_dtype=input_dtype,
        inspected=inspected,
        compress=precision == "float16",
    ).SerializeToString()
    images = _golden_images(detector, golden, size, input_dtype)
    arrays = golden_arrays(images, [original_results(detector, image, map_size, inspected) for image in images])
    runner, names = open_runner(model, "onnxruntime", None, os.fspath(path)), [*STAGES, "label"]
    outputs = [_first(names, runner.run(image[None], names)) for image in golden_images(arrays)]
    stages, n_flipped = compared(arrays, outputs, detector.offset_, dict.fromkeys(STAGES, TOLERANCE))
    if precision == "float32":
        tolerances = dict.fromkeys(STAGES, TOLERANCE)
        _require_equal(stages)
    else:
        tolerances = {stage.stage: TOLERANCE + _SLACK * stage.difference for stage in stages}
    entries = {
        MANIFEST: json.dumps(
            manifest_of(
                detector,
                network,
                precision=precision,
                image_size=size,
                map_size=map_size,
                input_dtype=input_dtype,
                tolerances=tolerances,
            )
        ),
        GOLDEN: as_npz_text(arrays),
    }
    if inspected is not None:
        entries[REGION] = as_npz_text(inspected.compact())
    content = with_entries(model, entries)
    if len(content) > _MAX_BYTES:
        raise ExportError(
            f"the file would have {len(content) / 1e9:.1f} GB, and an ONNX file has at most 2.1 GB. Use a smaller "
            "ratio of the sampler, or precision='float16'."
        )
    with written_whole(Path(path), durable=True) as partial:
        partial.write_bytes(content)
    return ExportReport(os.fspath(path), len(content), precision, tuple(stages), n_flipped)


def _require_packages() -> None:
    """Raise an ImportError that names the extra if a package is missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # type: ignore[import-untyped]  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"export needs the package {error.name}: pip install 'skpatchcore[onnx]' installs it and all others."
        ) from error


def _detector_of(detector: Any) -> Any:
    """Return the detector of a pipeline with one step; other objects unchanged."""
    if isinstance(detector, Pipeline):
        if len(detector) > 1:
            raise ExportError(
                f"the pipeline has {len(detector)} steps, and only a detector can be exported. Export its last step, "
                "if the images need no other step."
            )
        return detector[-1]
    return detector


def _check_parameters(precision: str, image_size: Any, map_size: str, input_dtype: str) -> None:
    """Raise a ValueError for invalid parameters."""
    if precision not in _PRECISIONS:
        raise ValueError(f"precision={precision!r}: expected one of {', '.join(map(repr, _PRECISIONS))}.")
    if map_size not in ("input", "image"):
        raise ValueError(f"map_size={map_size!r}: expected 'input' or 'image'.")
    if input_dtype not in ("uint8", "float32"):
        raise ValueError(f"input_dtype={input_dtype!r}: expected 'uint8' or 'float32'.")
    if image_size is not None and (np.shape(image_size) != (2,) or not all(int(n) == n > 0 for n in image_size)):
        raise ValueError(f"image_size={image_size!r}: expected (height, width) in pixels, or None.")


def _check_detector(detector: Any, image_size: Any, input_dtype: str) -> None:
    """Raise an ExportError with the reason if a fitted detector cannot be exported."""
    from skpatchcore.deployment._build import input_size_of

    name = type(detector).__name__
    if type(detector) not in (PatchCoreDetector, PaDiMDetector):
        raise ExportError(f"a {name} cannot be exported: only PatchCoreDetector and PaDiMDetector can.")
    if math.isnan(detector.offset_):
        raise ExportError("the detector has no threshold: fit with calibration, or pass good images to recalibrate.")
    extractor = detector.extractor_
    if type(extractor) is not TorchFeatureExtractor:
        kind = "precomputed features" if extractor is None else type(extractor).__name__
        raise ExportError(f"extractor: {kind} cannot be exported: only a TorchFeatureExtractor can.")
    if not isinstance(extractor.backbone, str):
        raise ExportError(
            "backbone: a function cannot be exported, because the file must name the network and its weights. Use the "
            "name of a network, and the path of its weights."
        )
    if extractor.dtype != "float32":
        raise ExportError(
            f"dtype={extractor.dtype!r} of the extractor: the exported network computes in float32, and its features "
            "would differ by a few per cent. Fit again with dtype='float32'."
        )
    if extractor.memory is not None and extractor.cache_dtype != "float32":
        raise ExportError(
            f"cache_dtype={extractor.cache_dtype!r} of the extractor: its cache rounds the layer maps, and the "
            "exported network does not. Fit again with cache_dtype='float32'."
        )
    if pixel_format_of(extractor).value_range is not None and input_dtype == "uint8":
        raise ExportError(
            f"value_range={extractor.value_range} of the extractor: such images do not fit into uint8. Export with "
            "input_dtype='float32'."
        )
    if isinstance(detector, PatchCoreDetector) and type(detector.index_) is not ExactIndex:
        raise ExportError(
            f"index: a {type(detector.index_).__name__} cannot be exported, because its trees or graphs have no ONNX "
            "operators. Fit again with index='exact', or assign an ExactIndex that is fitted on memory_bank_."
        )
    if detector.inspection_ is not None and detector.inspection_.has_own_regions:
        raise ExportError("roi: the detector was fitted with a region for each image, and the file takes images only.")
    if detector.roi_ is not None and detector.roi_.function is not None:
        raise ExportError("roi: a function cannot be exported. Use a mask, a box or a polygon.")
    if isinstance(detector, PaDiMDetector) and input_size_of(extractor, image_size) is None:
        raise ExportError(
            "PaDiM scores images with one patch grid only, and the size of the network's input depends on the image. "
            "Export with image_size=(height, width), the size of the images."
        )
    if detector.roi_ is not None and image_size is None:
        raise ExportError("roi: the region is stored for images of one size. Pass image_size=(height, width).")


def _fixed(size: tuple[int, int] | None) -> tuple[int, int]:
    assert size is not None  # _check_detector requires a size with a region of interest
    return size


def _golden_images(
    detector: Any, golden: Sequence[Any], size: tuple[int, int] | None, input_dtype: str
) -> list[np.ndarray]:
    """Return the golden images: made from formulas, and the given ones as RGB."""
    from skpatchcore.deployment._build import input_size_of

    input_size = input_size_of(detector.extractor_, size)
    given = detector.extractor_.image_size
    side = min(input_size) if input_size is not None else int(given) if given is not None else 256
    # Images are enlarged for a crop only if they are resized.
    images = synthetic_images(size, side, least=max(input_size or (1,)) if given is None else 1)
    for index, image in enumerate(golden):
        pixels = load_image(
            image, index, detector.extractor_.max_pixels, pixel_format=pixel_format_of(detector.extractor_)
        )
        if size is not None and pixels.shape[:2] != size:
            raise ImageError(
                f"golden image of {pixels.shape[0]}×{pixels.shape[1]} pixels: the file takes images of "
                f"{size[0]}×{size[1]} pixels only.",
                index,
            )
        rgb = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
        images.append(np.rint(rgb * 255).astype(np.uint8) if input_dtype == "uint8" else np.ascontiguousarray(rgb))
    if input_dtype == "float32":
        images = [
            image if image.dtype == np.float32 else image.astype(np.float32) / np.float32(255) for image in images
        ]
    return images


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
