"""build_model: the ONNX model of a whole detector, assembled from the stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from onnx import ModelProto

from skpatchcore.deployment._graph import Graph, Value
from skpatchcore.deployment._graph_features import aggregated, normalised
from skpatchcore.deployment._graph_maps import drawn, n_repeats_of
from skpatchcore.deployment._graph_pixels import crop_start, resized_and_cropped
from skpatchcore.deployment._graph_scores import (
    bank_scores,
    decisions,
    gaussian_scores,
    is_finite,
    n_candidates_of,
    peak,
    top_mean,
)
from skpatchcore.deployment._linear import linear_map_of
from skpatchcore.deployment._network import network_model
from skpatchcore.deployment._settings import ExportSettings
from skpatchcore.deployment.outputs import OUTPUTS
from skpatchcore.detectors.padim import PaDiMDetector
from skpatchcore.features._backbones import Network, load_network
from skpatchcore.images.inside import PixelMask
from skpatchcore.images.views import View, as_pair, inspected_pixels, placed
from skpatchcore.maps import filled_with_nearest
from skpatchcore.patches.stream import PatchStream

# Shortest side of a network's input that is assumed if the size depends on the image.
_LEAST_SIDE = 32
# Largest distance of a float image from [0, 1] that counts as rounding.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class Inspected:
    """Inspected pixels and cells of images of one size, if a detector has a region of interest.

    Attributes
    ----------
    mask : array of shape (height, width), bool
        Pixels of the image in the region of interest.
    cells : array of shape (n_cells,), int64
        Row-major positions of the inspected cells in the patch grid.
    fill : array of shape (grid_height, grid_width), int64
        Position of the inspected cell from which a cell takes its score before the map is drawn.
    pixels : array of shape (height, width), bool
        Pixels of the image that are inspected.
    view : View
        Region of the image that the network sees.
    """

    mask: np.ndarray
    cells: np.ndarray
    fill: np.ndarray
    pixels: np.ndarray
    view: View

    @classmethod
    def of(cls, detector: Any, size: tuple[int, int]) -> Inspected:
        """Return what a detector inspects of images of a size (height, width)."""
        blank = np.full((*size, 3), 127, np.uint8)
        stream = PatchStream(detector.extractor_, [blank], region=detector.roi_)
        patches = next(iter(stream))
        grid, view, mask = tuple(int(n) for n in patches.sizes[0]), patches.views[0], patches.masks[0]
        assert view is not None
        n_cells = grid[0] * grid[1]
        own = patches.cells[0]
        cells = np.arange(n_cells) if own is None else own
        is_counted = np.isin(np.arange(n_cells), cells).reshape(grid)
        places = np.where(is_counted, np.arange(n_cells, dtype=np.float64).reshape(grid), np.nan)
        inside = np.ones(size, bool) if mask is None else mask.as_array()
        seen = inspected_pixels(is_counted, view)
        pixels = inside if seen is None else inside & seen
        return cls(inside, cells, filled_with_nearest(places).astype(np.int64), pixels, view)

    def of_input(self) -> np.ndarray:
        """Return the pixels of the network's input that are inspected, by the nearest pixel of the image."""
        rows, columns = (
            np.clip((start + (np.arange(n) + 0.5) * scale).astype(int), 0, limit - 1)
            for start, n, scale, limit in zip(
                self.view.region[:2], self.view.input_size, self.view.scale, self.view.image_size, strict=True
            )
        )
        found: np.ndarray = self.pixels[rows][:, columns]
        return found

    def compact(self) -> dict[str, np.ndarray]:
        """Return the arrays that a program needs to draw maps at the image's size."""
        return {"fill": self.fill, "inspected": PixelMask.of(self.pixels).bits}


def inspected_by(detector: Any, image_size: Sequence[int] | None) -> Inspected | None:
    """Return what a detector inspects of images of a size (height, width); None if it has no region of interest."""
    if detector.roi_ is None:
        return None
    assert image_size is not None  # check_detector requires the size
    return Inspected.of(detector, (image_size[0], image_size[1]))


def input_size_of(extractor: Any, image_size: tuple[int, int] | None) -> tuple[int, int] | None:
    """Return the height and width of the network's input; None if they depend on the image.

    Parameters
    ----------
    extractor : TorchFeatureExtractor
        The fitted extractor.
    image_size : (int, int) or None
        Height and width of all images, if fixed.
    """
    if image_size is not None:
        resize = resize_of(extractor)
        return placed(image_size, resize["image_size"], resize["crop_size"], 0, rounded_to=resize["rounded_to"])[
            2
        ].input_size
    if extractor.crop_size is not None:
        return as_pair(extractor.crop_size)
    return as_pair(extractor.image_size) if isinstance(extractor.image_size, tuple | list) else None


def resize_of(extractor: Any) -> dict[str, Any]:
    """Return how an extractor resizes and crops images: `image_size`, `crop_size` and `rounded_to`."""

    def plain(size: Any) -> Any:
        return None if size is None else int(size) if np.ndim(size) == 0 else [int(side) for side in size]

    return {
        "image_size": plain(extractor.image_size),
        "crop_size": plain(extractor.crop_size),
        "rounded_to": int(extractor._rounded_to()),
    }


def load_backbone(extractor: Any) -> Network:
    """Return the network of a fitted extractor, on the CPU and in float32.

    Raises
    ------
    WeightsError
        If the weights are not those of the fit.
    """
    # The extractor itself compares the digest of the weights.
    extractor.transform([np.zeros((*(input_size_of(extractor, None) or (224, 224)), 3), np.uint8)])
    weights = extractor.weights
    return load_network(
        extractor.backbone, weights if weights is None else str(weights), extractor.layers, torch.device("cpu")
    )


def build_model(
    detector: Any,
    network: Network,
    settings: ExportSettings,
    inspected: Inspected | None,
    transform_network: Callable[[ModelProto], ModelProto] | None = None,
) -> ModelProto:
    """Return the ONNX model of a detector.

    Parameters
    ----------
    detector : PatchCoreDetector or PaDiMDetector
        The fitted detector.
    network : Network
        Its backbone.
    settings : ExportSettings
        Parameters of the export.
    inspected : Inspected or None
        What is inspected; None if the detector has no region of interest.
    transform_network : callable or None, default=None
        Function that replaces the model of the backbone, e.g. by a quantised model.

    Returns
    -------
    ModelProto
    """
    extractor, input_size = detector.extractor_, input_size_of(detector.extractor_, settings.image_size)
    graph = Graph(compress=settings.precision == "float16")
    height, width = settings.image_size or ("height", "width")
    images = graph.input("images", settings.input_dtype, ("n_images", height, width, 3))
    mask = None if inspected is None else inspected.mask
    pixels, resized = resized_and_cropped(images, **resize_of(extractor), inside=mask, white=settings.white)
    mean, std = extractor._normalisation(network)
    backbone = network_model(network, input_size)
    n_map_channels = [output.type.tensor_type.shape.dim[1].dim_value for output in backbone.graph.output]
    if transform_network is not None:
        backbone = transform_network(backbone)
    maps = graph.embed(backbone, normalised(pixels, mean, std), "network/")
    features, grid = aggregated(maps, n_map_channels, extractor.patch_size, extractor.stride, extractor.n_channels)
    size = pixels.size(1), pixels.size(3)
    scores, filled, is_learnt = _scored(detector, features, inspected, input_size)
    map_of_image = None
    if settings.map_size == "image" or detector.image_score == "map-max":
        map_of_image = _map_of_image(detector, filled, images, size, resized, grid, inspected)
        if detector.image_score == "map-max":
            scores = peak(*map_of_image)
    is_valid = is_finite(features)
    if is_learnt is not None:
        is_valid = is_valid & is_learnt
    if settings.input_dtype == "float32":
        is_valid = is_valid & _in_range(images)
    found = decisions(scores, is_valid, detector.calibration_scores_, detector.offset_)

    shape: tuple[Any, Any] = ("map_height", "map_width")
    if settings.map_size == "input" or map_of_image is None:
        drawn_map, seen = _map_of_input(detector, filled, size, grid, inspected, input_size)
    else:
        (drawn_map, seen), shape = map_of_image, (height, width)
    is_anomalous = drawn_map > np.float32(detector.pixel_offset_)
    patch_scores, is_valid, nan = filled, is_valid.unsqueeze(1, 2), np.float32(np.nan)
    if inspected is not None:
        is_counted = np.isin(np.arange(inspected.fill.size), inspected.cells).reshape(inspected.fill.shape)
        patch_scores = graph.as_value(is_counted).where(filled, nan)
    # NaN is inserted last: runtimes compare it with numbers in different ways.
    found |= {
        "anomaly_map": (is_valid if seen is None else is_valid & seen).where(drawn_map, nan),
        "mask": (is_anomalous if seen is None else is_anomalous & seen) | ~is_valid,
        "patch_scores": is_valid.where(patch_scores, nan),
        "pixels": pixels.transpose(0, 1, 3, 2),
        "features": features,
        "grid": grid,
    }
    shapes: dict[str, tuple[Any, ...]] = {
        "anomaly_map": ("n_images", *shape),
        "mask": ("n_images", *shape),
        "patch_scores": ("n_images", "grid_height", "grid_width"),
        "pixels": ("n_images", "input_height", "input_width", 3),
        "features": ("n_images", "grid_height", "grid_width", "n_channels"),
        "grid": (2,),
    }
    for name, (dtype, description) in OUTPUTS.items():
        graph.output(found[name], name, dtype, shapes.get(name, ("n_images",)), description)
    return graph.model(f"{type(detector).__name__} of skpatchcore: image anomaly detection")


def _scored(
    detector: Any, features: Value, inspected: Inspected | None, input_size: tuple[int, int] | None
) -> tuple[Value, Value, Value | None]:
    """Return the scores of the images.

    Returns
    -------
    scores : Value of shape (n_images,)
        Image scores, bigger = more anomalous: the largest patch scores with ``image_score="map-max"``.
    patch_scores : Value of shape (n_images, grid_height, grid_width)
        Patch scores. A cell that is not inspected has the score of the nearest inspected cell.
    is_learnt : Value or None
        Whether the patch grid is that of the model. None if the model accepts all grids.
    """
    graph = features.graph
    shape = graph.op("Shape", features, start=0, end=3)
    rows = features.reshape(0, -1, features.size(3))
    if inspected is not None:
        rows = graph.op("Gather", rows, inspected.cells, axis=1)
    is_learnt = None
    if isinstance(detector, PaDiMDetector):
        model = detector.model_
        same = graph.op("Equal", shape.between(1, 3, 0), np.array(model.grid)).cast("int64")
        is_learnt = graph.op("Equal", same.sum(0), np.int64(2))
        chosen = slice(None) if inspected is None else np.searchsorted(_cells_of(model), inspected.cells)
        scores, distances = gaussian_scores(rows, model.means[chosen], model.whitening[chosen], model.channels)
    else:
        if detector.transformer_ is not None:
            linear = linear_map_of(detector.transformer_)
            assert linear is not None  # check_detector refuses other transformers
            rows = linear.applied(rows)
        bank = np.asarray(detector.memory_bank_, np.float32)
        n_patches = None if input_size is None else max(1, input_size[0] * input_size[1] // 64)
        n_candidates = n_candidates_of(bank, detector.index_)
        scores, distances = bank_scores(rows, bank, other_neighbours(detector), n_candidates, n_patches)
    if not isinstance(detector.image_score, str):
        scores = top_mean(distances, float(detector.image_score))
    if inspected is None:
        return scores, distances.reshape(*(shape.between(i, i + 1, 0) for i in range(3))), is_learnt
    fill = np.searchsorted(inspected.cells, inspected.fill)  # position among the inspected cells
    return scores, graph.op("Gather", distances, fill, axis=1), is_learnt


def _in_range(images: Value) -> Value:
    """Return whether all pixels of each image are in [0, 1], with a tolerance for rounding."""
    least, largest = np.float32(-_ROUNDING), np.float32(1 + _ROUNDING)
    return ((images >= least) & (images <= largest)).all(1, 2, 3)


def _cells_of(model: Any) -> np.ndarray:
    return np.arange(model.grid[0] * model.grid[1]) if model.cells is None else model.cells


def other_neighbours(detector: Any) -> np.ndarray:
    """Return, for each row of a memory bank, its nearest other rows, as Equation 7 uses them.

    Returns
    -------
    array of shape (n_bank, b - 1), int64
        No columns if the re-weighting is off.
    """
    bank = detector.memory_bank_
    b = min(detector._n_in_weight(), len(bank))
    if b <= 1:
        return np.zeros((len(bank), 0), np.int64)
    _, neighbours = detector.index_.kneighbors(bank, b)
    own = np.arange(len(bank))[:, None]
    # A row counts as its own first neighbour, even if only rows with equal values were found.
    order = np.argsort(neighbours == own, axis=1, kind="stable")[:, : b - 1]
    others: np.ndarray = np.take_along_axis(neighbours, order, axis=1).astype(np.int64)
    return others


def _map_of_input(
    detector: Any,
    filled: Value,
    size: tuple[Value, Value],
    grid: Value,
    inspected: Inspected | None,
    input_size: tuple[int, int] | None,
) -> tuple[Value, Value | None]:
    """Return anomaly maps at the size of the network's input, and the inspected pixels if not all are inspected."""
    graph, smoothing = filled.graph, float(detector.smoothing)
    side = min(input_size) if input_size is not None else _LEAST_SIDE
    sigma = graph.as_value(np.array([smoothing], np.float32))
    sigmas = None if smoothing <= 1e-3 else (sigma, sigma)
    found = drawn(filled, size, grid, detector.extractor_.stride, sigmas, None, n_repeats_of(smoothing, side))
    return found, None if inspected is None else graph.as_value(inspected.of_input())


def _map_of_image(
    detector: Any,
    filled: Value,
    images: Value,
    size: tuple[Value, Value],
    resized: Value,
    grid: Value,
    inspected: Inspected | None,
) -> tuple[Value, Value | None]:
    """Return anomaly maps at the size of the images, and the inspected pixels if not all are inspected."""
    graph, smoothing, crop = filled.graph, float(detector.smoothing), detector.extractor_.crop_size
    own = images.size(1), images.size(2)
    boxes, sigmas, seen = [], [], []
    for axis in range(2):
        whole = resized.between(axis, axis + 1, 0)
        scale = own[axis].cast("float32") / whole.cast("float32")
        sigmas.append(scale * np.float32(smoothing))
        start = graph.shape(0) if crop is None else crop_start(graph, whole, as_pair(crop)[axis])
        boxes.append((start.cast("float32") * scale, size[axis].cast("float32") * scale))
        # The centre of pixel i is seen if start <= (i + 1/2) / scale <= start + size, here without rounding.
        centres = (
            graph.op("Range", np.int64(0), own[axis].squeeze(0), np.int64(1)) * np.array([2]) + np.array([1])
        ) * whole
        edges = (edge * own[axis] * np.array([2]) for edge in (start, start + size[axis]))
        first, last = edges
        seen.append((centres >= first) & (centres <= last))
    side = _LEAST_SIDE if crop is None else min(as_pair(crop))
    found = drawn(
        filled, own, grid, detector.extractor_.stride, None if smoothing <= 1e-3 else (sigmas[0], sigmas[1]),
        (boxes[0], boxes[1]), n_repeats_of(smoothing, side),
    )  # fmt: skip
    if inspected is not None:
        return found, graph.as_value(inspected.pixels)
    return found, None if crop is None else seen[0].unsqueeze(1) & seen[1].unsqueeze(0)
