"""ForwardPass: compute the patch features of prepared images, in halves if a batch does not fit in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from skpatchcore._utils.arrays import as_array, largest_value, stacked_on, started_copy
from skpatchcore._utils.device import is_device_fault, is_out_of_memory
from skpatchcore._utils.modes import default_modes
from skpatchcore._utils.threads import SMALL_PRODUCT, one_thread
from skpatchcore._utils.warning import warn_user
from skpatchcore.features._aggregation import NotAGridError, tokens_to_grid
from skpatchcore.features._backbones import Network
from skpatchcore.features._batches import Prepared
from skpatchcore.features._cache import LayerCache
from skpatchcore.features.tiling import TilePlan, TileSize, check_tile_size, plan_tiles, stitched_maps
from skpatchcore.images.errors import ImageError
from skpatchcore.images.views import as_pair

# Largest absolute value of a feature.
_LIMIT = largest_value(np.float32)


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
    tile_size : int, (int, int), "auto" or None, default=None
        Maximum size of the tiles into which images are cut, as in :class:`~skpatchcore.TorchFeatureExtractor`.
    batch_size : int, default=1
        Maximum number of tiles that go through the network at once.
    """

    network: Network
    device: torch.device
    dtype: torch.dtype
    mean: Sequence[float]
    std: Sequence[float]
    aggregate: Callable[[list[torch.Tensor]], torch.Tensor]
    cache: LayerCache | None
    tile_size: TileSize = None
    batch_size: int = 1

    def plan_of(self, size: tuple[int, int]) -> TilePlan | None:
        """Return the tiles into which an image of this size is cut; None if it goes through the network as a whole.

        Raises
        ------
        ValueError
            If the network cannot be applied to tiles, or `tile_size` is too small.
        """
        return plan_tiles(self.network, size, self.tile_size, self._outputs, self.device, self.dtype)

    @default_modes()
    @torch.inference_mode()
    def n_channels_of_layers(self, size: Any) -> tuple[int, ...]:
        """Return the number of channels of each layer map, from a blank image.

        Parameters
        ----------
        size : int, (int, int) or None
            Side, or height and width, of the image in pixels. None uses a side of 224 pixels.
        """
        blank = torch.zeros(1, 3, *as_pair(size or 224), device=self.device, dtype=self.dtype)
        return tuple(int(output.shape[1]) for output in self._outputs(blank))

    def check_tile_size(self) -> None:
        """Raise a ValueError if the network cannot be applied to tiles, or `tile_size` is too small."""
        check_tile_size(self.network, self.tile_size, self._outputs, self.device, self.dtype)

    def grids_of(self, batch: list[Prepared]) -> tuple[np.ndarray | list[np.ndarray], tuple[int, int]]:
        """Return the patch features of a batch from the cache and from the network, and the first layer's grid.

        New patch features are stored in the cache.

        Parameters
        ----------
        batch : list of Prepared
            Images of one size.

        Returns
        -------
        features : array of shape (n_batch, grid_height, grid_width, n_channels), or list of arrays, float32
            Patch features. With a cache of patch features, a list with one array of shape (grid_height, grid_width,
            n_channels) per image. Arrays that are stored in the cache are of the type :class:`DigestedArray`.
        grid : (int, int)
            Height and width of the first layer's map, before the stride is applied.

        Raises
        ------
        ImageError, MemoryError
            As in `features_of`.
        """
        if self.cache is None or self.cache.grids is None:
            return self.features_of(batch)
        new = [image for image in batch if image.grid is None]
        found: dict[int, np.ndarray] = {}
        if new:
            features, grid = self.features_of(new)
            for image, own in zip(new, features, strict=True):
                assert image.entry is not None
                stored = self.cache.grids.keep(self.cache.grids.path_of(image.entry), own, image.view, grid)
                found[image.index] = own if stored is None else stored
        else:
            assert batch[0].grid is not None
            grid = batch[0].grid.first_grid
        return [found[image.index] if image.grid is None else image.grid.features for image in batch], grid

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
        checks: list[_Check] = []
        try:
            with one_thread(is_small):
                maps = self._layer_maps(batch, checks)
                features = self._aggregated(maps)  # makes the host wait for a GPU
                for check in checks:
                    check.raise_if_unusable()
                return features, (maps[0].shape[2], maps[0].shape[3])
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
    def _layer_maps(self, batch: list[Prepared], checks: list[_Check]) -> list[torch.Tensor]:
        """Return the layer maps of a batch from the cache and the network.

        Each map has the shape (n_batch, n_channels, height, width) and the dtype float32. Checks that are left for
        later are added to `checks`.
        """
        new = [image for image in batch if image.maps is None]
        outputs = self._run(new, checks) if new else []
        if self.cache is None:
            return outputs
        for i, image in enumerate(new):
            assert image.entry is not None
            image.maps = self.cache.keep(image.entry, [output[i].permute(1, 2, 0) for output in outputs], image.view)
        layers = zip(*(image.maps or [] for image in batch), strict=True)
        is_tiled = self.plan_of(batch[0].view.input_size) is not None
        device = torch.device("cpu") if is_tiled else self.device  # the stitched maps of new images are there, too
        stacked = (layer[0][None] if len(layer) == 1 else torch.stack(layer) for layer in layers)
        return [layer.to(device).permute(0, 3, 1, 2) for layer in stacked]

    def _run(self, batch: list[Prepared], checks: list[_Check]) -> list[torch.Tensor]:
        """Return the layer maps of a batch from the network, in tiles if the images are cut into tiles."""
        plan = self.plan_of(batch[0].view.input_size)
        if plan is None:
            pixels = [image.pixels for image in batch if image.pixels is not None]
            # A check makes the host wait for a GPU, so it is left for later, unless the maps are stored in a cache.
            is_later = self.device.type == "cuda" and self.cache is None
            return self._maps_of(pixels, batch, checks if is_later else None)
        stitched = [self._stitched(plan, image.pixels, image) for image in batch if image.pixels is not None]
        return stitched[0] if len(stitched) == 1 else [torch.cat(layer) for layer in zip(*stitched, strict=True)]

    def _stitched(self, plan: TilePlan, pixels: torch.Tensor, image: Prepared) -> list[torch.Tensor]:
        """Return the layer maps of an image that is cut into tiles."""

        def run(tiles: list[torch.Tensor]) -> list[torch.Tensor]:
            return self._maps_of(tiles, [image] * len(tiles))

        return stitched_maps(plan, pixels, run, self.batch_size)

    def _outputs(self, normalised: torch.Tensor) -> list[torch.Tensor]:
        """Run the network on normalised images and return the layer maps."""
        size = normalised.shape[2], normalised.shape[3]
        network = self.network
        outputs = network.module(normalised)
        return [_as_map(outputs[layer], layer, size, network) for layer in network.layers]

    def _maps_of(
        self, pixels: list[torch.Tensor], images: list[Prepared], checks: list[_Check] | None = None
    ) -> list[torch.Tensor]:
        """Run the network on images or tiles of one size; return the layer maps.

        Parameters
        ----------
        pixels : list of tensors of shape (3, height, width), float32
            Images or tiles.
        images : list of Prepared
            The image of each element of `pixels`, for error messages.
        checks : list or None, default=None
            List to which the check of the maps is added. None checks the maps now.

        Raises
        ------
        ImageError
            If a map is not usable.
        """
        mean, std = (_channel_values(tuple(map(float, values)), self.device) for values in (self.mean, self.std))
        size = pixels[0].shape[1:]
        normalised = ((stacked_on(pixels, self.device) - mean) / std).to(self.dtype)
        normalised = normalised.contiguous(memory_format=torch.channels_last)
        try:
            maps = self._outputs(normalised)
        except (RuntimeError, AssertionError, NotAGridError) as error:
            if is_device_fault(error):
                raise
            # Networks raise various errors for sizes that they do not accept. The ImageError names the image.
            raise ImageError(
                f"the backbone cannot use an input of {size[0]}×{size[1]} pixels: {error}",
                images[0].index,
                images[0].path,
            ) from error
        # NaN compares False, so NaN is not usable either.
        usable = torch.stack([(m.abs() <= _LIMIT).flatten(1).all(1) for m in maps]).all(0)
        check = _Check(started_copy(usable) if checks is not None else usable, images)
        if checks is None:
            check.raise_if_unusable()
        else:
            checks.append(check)
        return maps

    @torch.inference_mode()
    def _aggregated(self, maps: list[torch.Tensor]) -> np.ndarray:
        """Return the patch features made from layer maps, as a numpy array."""
        return as_array(self.aggregate(maps).contiguous())


@dataclass(frozen=True)
class _Check:
    """Whether the layer maps of images or tiles are usable; the tensor may still be on its way from a GPU."""

    usable: torch.Tensor
    images: list[Prepared]

    def raise_if_unusable(self) -> None:
        """Raise an ImageError that names the first image whose maps are not usable."""
        if self.usable.all():
            return
        first = self.images[int(self.usable.int().argmin())]
        raise ImageError(
            f"the backbone returns features that are NaN or infinite, or beyond ±{_LIMIT:g}. Check the weights, mean "
            "and std.",
            first.index,
            first.path,
        )


@lru_cache(maxsize=32)
def _channel_values(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Return a value per channel on a device, copied once: a copy of a few numbers makes the host wait for a GPU."""
    return torch.tensor(values, dtype=torch.float32, device=device).view(3, 1, 1)


def _as_map(output: Any, layer: str, size: tuple[int, int], network: Network) -> torch.Tensor:
    """Return the output of a layer as a float32 map of shape (n_images, n_channels, height, width).

    A 3-D output holds the tokens of a transformer. A ValueError is raised for an output that is neither 3-D nor 4-D.
    """
    if isinstance(output, torch.Tensor) and output.ndim == 3:
        return tokens_to_grid(output, size, network.n_prefix_tokens).float()
    if not isinstance(output, torch.Tensor) or output.ndim != 4:
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ValueError(f"layer {layer!r} returns {shape}, expected maps (4-D) or tokens (3-D). Choose another layer.")
    return (output.permute(0, 3, 1, 2) if layer in network.channels_last else output).float()
