"""original_results and network_inputs: what a detector computes, for the comparison with its exported graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from skpatchcore.calibration.conformal import upper_tail_p_values
from skpatchcore.deployment._build import Inspected, resize_of
from skpatchcore.detectors._results import turned
from skpatchcore.features._backbones import Network
from skpatchcore.images.errors import ImageError
from skpatchcore.images.inside import filled_outside
from skpatchcore.images.reading import as_stored, load_image
from skpatchcore.images.resizing import resize_and_crop
from skpatchcore.images.views import View
from skpatchcore.maps import anomaly_map
from skpatchcore.patches.stream import PatchStream
from skpatchcore.protocols import pixel_format_of

# Maximum number of images that set the ranges of quantised values.
_N_INPUTS = 64


def original_results(detector: Any, image: np.ndarray, map_size: str, inspected: Inspected | None) -> dict[str, Any]:
    """Return what the detector computes for an image, by the names of the exported outputs.

    Parameters
    ----------
    detector : PatchCoreDetector or PaDiMDetector
        The fitted detector.
    image : array of shape (height, width, 3), uint8, or float32 in [0, 1]
        RGB image.
    map_size : {"input", "image"}
        Size of the anomaly map.
    inspected : Inspected or None
        What is inspected; None if the detector has no region of interest.
    """
    extractor = detector.extractor_
    pixels = load_image(image, 0)  # without the extractor's format of arrays: the exported input is RGB
    stored = as_stored(pixels, pixel_format_of(extractor))
    stream = PatchStream(extractor, [stored], region=detector.roi_, transform=detector._row_transform())
    patches = next(iter(stream))
    scores, (patch_scores,) = detector._scoring_model().score(patches)
    seen = pixels if inspected is None else filled_outside(pixels, inspected.mask)
    view = patches.views[0]
    assert view is not None
    grid = _complete_grid(extractor, patches.sizes[0], view)
    if map_size == "image":
        drawn = detector.segment([stored])[0]
    else:
        # The view of the network's input, as if it were the image.
        own = View(view.input_size, (0.0, 0.0, float(view.input_size[0]), float(view.input_size[1])), view.input_size)
        box = own.of_patches(grid, extractor.stride).box
        drawn = anomaly_map(patch_scores, view.input_size, box, float(detector.smoothing))
        if inspected is not None:
            drawn[~inspected.of_input()] = np.nan
    score = turned(scores)
    decision = score - detector.offset_
    return {
        "pixels": resized_pixels(extractor, seen),
        "features": np.asarray(extractor.transform([as_stored(seen, pixel_format_of(extractor))])[0]),
        "patch_scores": patch_scores,
        "anomaly_map": drawn,
        "score": score[0],
        "decision": decision[0],
        "mask": drawn > detector.pixel_offset_,
        "grid": np.array(grid, np.int64),
        "label": 1 if decision[0] >= 0 else -1,
        "p_value": upper_tail_p_values(turned(detector.calibration_scores_), scores)[0],
    }


def resized_pixels(extractor: Any, pixels: np.ndarray) -> np.ndarray:
    """Return an image of shape (height, width, n_channels), float32 in [0, 1], as the network sees it."""
    resize = resize_of(extractor)
    found, _ = resize_and_crop(
        pixels, resize["image_size"], resize["crop_size"], index=0, rounded_to=resize["rounded_to"]
    )
    return found.numpy().transpose(1, 2, 0)


def network_inputs(detector: Any, network: Network, images: Any, inspected: Inspected | None) -> Iterator[np.ndarray]:
    """Yield the network's inputs for some images.

    Parameters
    ----------
    detector : PatchCoreDetector or PaDiMDetector
        The fitted detector.
    network : Network
        Its backbone.
    images : sequence of images
        The images. At most 64 of them, evenly spaced, are used.
    inspected : Inspected or None
        What is inspected; None if the detector has no region of interest.

    Yields
    ------
    array of shape (1, 3, input_height, input_width), float32
        One normalised image.

    Raises
    ------
    ImageError
        If an image cannot be read, or has another size than the region of interest.
    """
    extractor = detector.extractor_
    mean, std = (np.asarray(values, np.float32) for values in extractor._normalisation(network))
    for index in np.unique(np.linspace(0, len(images) - 1, min(len(images), _N_INPUTS)).astype(int)).tolist():
        pixels = load_image(images[index], index, extractor.max_pixels, pixel_format=pixel_format_of(extractor))
        if inspected is not None:
            if pixels.shape[:2] != inspected.mask.shape:
                raise ImageError(
                    f"{pixels.shape[0]}×{pixels.shape[1]} pixels, but the file takes images of "
                    f"{inspected.mask.shape[0]}×{inspected.mask.shape[1]} pixels only.",
                    index,
                )
            pixels = filled_outside(pixels, inspected.mask)
        seen = (np.broadcast_to(resized := resized_pixels(extractor, pixels), (*resized.shape[:2], 3)) - mean) / std
        yield np.ascontiguousarray(seen.transpose(2, 0, 1))[None]


def _complete_grid(extractor: Any, size: np.ndarray, view: View) -> tuple[int, int]:
    """Return the height and width of the patch grid before the stride is applied.

    The box of a view covers `stride` cells of the complete grid per kept patch.
    """
    if extractor.stride == 1:
        return int(size[0]), int(size[1])
    kept = np.array(view.box[2:]) / np.array(view.region[2:])  # kept cells, as a multiple of the complete grid
    rows, columns = np.rint(size * extractor.stride / kept).astype(int).tolist()
    return rows, columns
