"""ForwardPass: compute the patch features of prepared images, in halves if a batch does not fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from skpatchcore._utils.arrays import as_array, largest_value, stacked_on
from skpatchcore._utils.device import is_device_fault, is_out_of_memory
from skpatchcore._utils.modes import default_modes
from skpatchcore._utils.threads import SMALL_PRODUCT, one_thread
from skpatchcore._utils.warning import warn_user
from skpatchcore.features._aggregation import NotAGridError, tokens_to_grid
from skpatchcore.features._backbones import Network
from skpatchcore.features._batches import Prepared
from skpatchcore.features._cache import LayerCache
from skpatchcore.images.errors import ImageError


@dataclass(frozen=True)
class ForwardPass:
    """A network on a device, and the function that makes patch features from the layer maps.

    Attributes
    ----------
    network : Network
        Network that computes the layer maps.
    device : torch.device
        Device on which the network runs.
    dtype : torch.dtype
        Type in which the network computes.
    mean, std : sequences of 3 floats
        Mean and standard deviation of red, green and blue with which the input is normalised.
    aggregate : callable
        Function that maps layer maps, each of shape (n_batch, n_channels, height, width), to patch features of shape
        (n_batch, grid_height, grid_width, n_channels).
    cache : LayerCache or None
        Cache in which new layer maps are stored; None stores nothing.
    """

    network: Network
    device: torch.device
    dtype: torch.dtype
    mean: Sequence[float]
    std: Sequence[float]
    aggregate: Callable[[list[torch.Tensor]], torch.Tensor]
    cache: LayerCache | None

    @default_modes()
    def features_of(self, batch: list[Prepared]) -> tuple[np.ndarray, tuple[int, int]]:
        """Return the patch features of a batch, and the height and width of the first layer's grid.

        Parameters
        ----------
        batch : list of Prepared
            Images of one size. If they do not fit in memory together, they go through the network in halves.

        Returns
        -------
        features : array of shape (n_batch, grid_height, grid_width, n_channels), float32
            Patch features, one grid per image.
        grid : (int, int)
            Height and width of the first layer's map, before the stride is applied.

        Raises
        ------
        ImageError
            If the network does not accept images of this size, or if a layer returns values that are NaN, infinite or
            too large.
        MemoryError
            If a single image does not fit in memory.

        Warns
        -----
        RuntimeWarning
            If the batch goes through the network in halves.
        """
        height, width = batch[0].view.input_size
        # Estimated work per image: the sides of most layer maps are at most an eighth of the image's sides. The batch
        # size must not count: the number of threads affects rounding, and features must not depend on the batch.
        is_small = self.network.n_parameters * height * width / 64 < SMALL_PRODUCT
        try:
            with one_thread(is_small):
                maps = self._layer_maps(batch)
                return self._aggregated(maps), (maps[0].shape[2], maps[0].shape[3])
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            size = "×".join(map(str, batch[0].view.input_size))
            if len(batch) == 1:
                raise MemoryError(
                    f"image {batch[0].index} at {size} pixels takes more memory than {self.device} has left. Choose a "
                    "smaller image_size or another device."
                ) from error
        half = len(batch) // 2  # after the except block: inside, the exception would keep the tensors in memory
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        warn_user(
            f"{len(batch)} images at {size} pixels take more memory than {self.device} has left: they go through the "
            "network in halves. Choose a smaller batch_size to avoid the failed attempt.",
            RuntimeWarning,
        )
        first, grid = self.features_of(batch[:half])
        second, _ = self.features_of(batch[half:])
        return np.concatenate([first, second]), grid

    @torch.inference_mode()
    def _layer_maps(self, batch: list[Prepared]) -> list[torch.Tensor]:
        """Return the layer maps of a batch from the cache and the network.

        Each map has the shape (n_batch, n_channels, height, width) and the dtype float32.
        """
        new = [image for image in batch if image.maps is None]
        outputs = self._run(new) if new else []
        if self.cache is None:
            return outputs
        for i, image in enumerate(new):
            assert image.entry is not None
            image.maps = self.cache.keep(image.entry, [output[i].permute(1, 2, 0) for output in outputs], image.view)
        layers = zip(*(image.maps or [] for image in batch), strict=True)
        return [torch.stack(layer).to(self.device).permute(0, 3, 1, 2) for layer in layers]

    def _run(self, batch: list[Prepared]) -> list[torch.Tensor]:
        """Run the network on a batch and return the layer maps; raise an ImageError if a map is not usable."""
        network = self.network
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=self.device).view(3, 1, 1)
            for values in (self.mean, self.std)
        )
        size = batch[0].view.input_size
        images = stacked_on([image.pixels for image in batch if image.pixels is not None], self.device)
        normalised = ((images - mean) / std).to(self.dtype)
        normalised = normalised.contiguous(memory_format=torch.channels_last)
        try:
            outputs = network.module(normalised)
            maps = [_as_map(outputs[layer], layer, size, layer in network.channels_last) for layer in network.layers]
        except (RuntimeError, AssertionError, NotAGridError) as error:
            if is_device_fault(error):
                raise
            # Networks raise various errors for sizes that they do not accept. The ImageError names the image.
            raise ImageError(
                f"the backbone cannot use an input of {size[0]}×{size[1]} pixels: {error}",
                batch[0].index,
                batch[0].path,
            ) from error
        limit = largest_value(np.float32)  # NaN compares False, so NaN is not usable either
        usable = torch.stack([(m.abs() <= limit).flatten(1).all(1) for m in maps]).all(0)
        if not usable.all():
            first = batch[int(usable.int().argmin())]
            raise ImageError(
                f"the backbone returns features that are NaN or infinite, or beyond ±{limit:g}. Check the weights, "
                "mean and std.",
                first.index,
                first.path,
            )
        return maps

    @torch.inference_mode()
    def _aggregated(self, maps: list[torch.Tensor]) -> np.ndarray:
        """Return the patch features made from layer maps, as a numpy array."""
        return as_array(self.aggregate(maps).contiguous())


def _as_map(output: Any, layer: str, size: tuple[int, int], channels_last: bool) -> torch.Tensor:
    """Return the output of a layer as a float32 map of shape (n_images, n_channels, height, width).

    A 3-D output holds the tokens of a transformer. A ValueError is raised for an output that is neither 3-D nor 4-D.
    """
    if isinstance(output, torch.Tensor) and output.ndim == 3:
        return tokens_to_grid(output, size).float()
    if not isinstance(output, torch.Tensor) or output.ndim != 4:
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ValueError(f"layer {layer!r} returns {shape}, expected maps (4-D) or tokens (3-D). Choose another layer.")
    return (output.permute(0, 3, 1, 2) if channels_last else output).float()
