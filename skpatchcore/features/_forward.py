"""Prepared images to patch features: the forward pass, in halves where memory does not suffice."""

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
    """A network on a device, and how features are made from the outputs of its layers.

    Attributes
    ----------
    network : Network
        The network.
    device : torch.device
        Where it runs.
    dtype : torch.dtype
        What it computes in.
    mean, std : sequences of 3 floats
        Normalisation of red, green and blue.
    aggregate : callable
        From layer maps, each of shape (n_batch, n_channels, height, width), to patch features of shape (n_batch,
        grid_height, grid_width, n_channels).
    cache : LayerCache or None
        Where layer maps are stored.
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
        """Return the features of a batch, and the height and width of the first layer's grid.

        Parameters
        ----------
        batch : list of Prepared
            Images of one size. If they take more memory than there is, they go through the network in halves.

        Returns
        -------
        features : array of shape (n_batch, grid_height, grid_width, n_channels), float32
        grid : (int, int)

        Raises
        ------
        ImageError
            If the network can't use an image of that size, or its outputs are not finite.
        MemoryError
            If one image alone takes more memory than there is.

        Warns
        -----
        RuntimeWarning
            If the batch goes through the network in halves.
        """
        height, width = batch[0].view.input_size
        # Most layers have an eighth of the image's sides, or less. The size of the batch does not count: rounding
        # depends on the number of threads, and shall not depend on the batch.
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
                    f"image {batch[0].index} at {size} pixels takes more memory than {self.device} has left: choose a "
                    "smaller image_size, or another device."
                ) from error
        half = len(batch) // 2  # not within the handler, which would keep what did not fit
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        warn_user(
            f"{len(batch)} images at {size} pixels take more memory than {self.device} has left: they go through the "
            "network in halves. A smaller batch_size avoids the failed attempt.",
            RuntimeWarning,
        )
        first, grid = self.features_of(batch[:half])
        second, _ = self.features_of(batch[half:])
        return np.concatenate([first, second]), grid

    @torch.inference_mode()
    def _layer_maps(self, batch: list[Prepared]) -> list[torch.Tensor]:
        """Return the layers' outputs, each of shape (n_batch, n_channels, height, width), float32."""
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
            # Networks refuse sizes in their own words (too small to pool, not the transformer's): say which image.
            raise ImageError(
                f"the backbone can't use an input of {size[0]}×{size[1]} pixels: {error}", batch[0].index, batch[0].path
            ) from error
        limit = largest_value(np.float32)  # NaN compares False
        usable = torch.stack([(m.abs() <= limit).flatten(1).all(1) for m in maps]).all(0)
        if not usable.all():
            first = batch[int(usable.int().argmin())]
            raise ImageError(
                f"the backbone gives features that are NaN or infinite, or beyond ±{limit:g}.", first.index, first.path
            )
        return maps

    @torch.inference_mode()
    def _aggregated(self, maps: list[torch.Tensor]) -> np.ndarray:
        return as_array(self.aggregate(maps).contiguous())


def _as_map(output: Any, layer: str, size: tuple[int, int], channels_last: bool) -> torch.Tensor:
    if isinstance(output, torch.Tensor) and output.ndim == 3:
        return tokens_to_grid(output, size).float()
    if not isinstance(output, torch.Tensor) or output.ndim != 4:
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ValueError(f"layer {layer!r} gives {shape}, expected maps (4-D) or tokens (3-D)")
    return (output.permute(0, 3, 1, 2) if channels_last else output).float()
