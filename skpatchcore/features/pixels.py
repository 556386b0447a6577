"""PixelExtractor: the colours of resized pixels as features, for detectors without a pretrained network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

from skpatchcore._utils.diagrams import DocumentationLinkMixin
from skpatchcore._utils.progress import progress_bar
from skpatchcore.features._batches import joined_grids, prepared_batches
from skpatchcore.features._parameters import CONSTRAINTS, check_image_parameters
from skpatchcore.images.containers import as_image_sequence
from skpatchcore.images.views import View
from skpatchcore.protocols import pixel_format_of


class PixelExtractor(DocumentationLinkMixin, TransformerMixin, BaseEstimator):
    """Turn images into grids of colours: each pixel of the resized image is a patch, and its colour the feature.

    Detectors that learn to reconstruct images, such as :class:`~skpatchcore.AutoencoderDetector`, use this extractor.

    Parameters
    ----------
    image_size : int, (int, int) or None, default=(128, 128)
        Size to which images are resized, as for :class:`~skpatchcore.TorchFeatureExtractor`: the shorter side, or
        height and width. Only a pair gives all images the same size.
    crop_size : int, (int, int) or None, default=None
        Size of the centre that is cut out after resizing. None uses the whole image.
    max_pixels : int or None, default=89478485
        Largest accepted number of pixels of an image. None accepts all.
    channel_order : {"rgb", "bgr"}, default="rgb"
        Order of the channels of arrays, as for :class:`~skpatchcore.TorchFeatureExtractor`.
    value_range : (float, float) or None, default=None
        Stored values of black and white, as for :class:`~skpatchcore.TorchFeatureExtractor`.
    batch_size : int, default=16
        Number of images per batch.
    verbose : int, default=0
        1 shows a progress bar.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore import PixelExtractor
    >>> PixelExtractor(image_size=(32, 48)).transform(np.zeros((2, 64, 96, 3), np.uint8)).shape
    (2, 32, 48, 3)
    """

    _parameter_constraints: dict[str, Any] = {
        name: CONSTRAINTS[name]
        for name in ("image_size", "crop_size", "max_pixels", "channel_order", "value_range", "batch_size", "verbose")
    }

    def __init__(
        self,
        *,
        image_size: Any = (128, 128),
        crop_size: Any = None,
        max_pixels: int | None = 89_478_485,
        channel_order: str = "rgb",
        value_range: Any = None,
        batch_size: int = 16,
        verbose: int = 0,
    ):
        self.image_size = image_size
        self.crop_size = crop_size
        self.max_pixels = max_pixels
        self.channel_order = channel_order
        self.value_range = value_range
        self.batch_size = batch_size
        self.verbose = verbose

    def fit(self, X: Any = None, y: Any = None) -> PixelExtractor:
        """Check the parameters; images are not used.

        Parameters
        ----------
        X, y : ignored
            Not used, present by convention.

        Returns
        -------
        PixelExtractor
            The extractor itself.

        Raises
        ------
        ValueError
            If a parameter is out of its range.
        """
        self._validate_params()
        check_image_parameters(self)
        return self

    def transform(self, X: Any) -> np.ndarray | list[np.ndarray]:
        """Return the colours of resized images.

        Parameters
        ----------
        X : collection of images, or array of shape (n_images, height, width, n_channels)
            Images, in any form that :class:`~skpatchcore.TorchFeatureExtractor` accepts.

        Returns
        -------
        array of shape (n_images, height, width, 3), float32 in [0, 1]
            Red, green and blue. A list of arrays if the images differ in size after resizing.

        Raises
        ------
        ImageError
            If an image cannot be read. The error names the index and the path.
        """
        X = as_image_sequence(X)
        return joined_grids((features for features, _ in self.iter_transform(X)), len(X))

    def iter_transform(self, X: Any) -> Iterator[tuple[np.ndarray, list[View]]]:
        """Yield the colours of the images, batch by batch, with the view of each image.

        Parameters
        ----------
        X : as for `transform`
            Images. Each image is read when its batch is prepared.

        Yields
        ------
        features : array of shape (n_batch, height, width, 3), float32 in [0, 1]
            Colours of the next images, in order.
        views : list of View
            Region of each original image that the grid covers.

        Raises
        ------
        ImageError
            In the same cases as `transform`.
        """
        self.fit()
        images = as_image_sequence(X)
        batches = prepared_batches(
            images, self.batch_size, self.image_size, self.crop_size, self.max_pixels, None, pixel_format_of(self), 1
        )
        with progress_bar(len(images), "reading pixels", "image", self.verbose) as bar:
            for batch in batches:
                pixels = np.stack(
                    [image.pixels.permute(1, 2, 0).numpy() for image in batch if image.pixels is not None]
                )
                yield pixels, [image.view.of_patches(pixels.shape[1:3], 1) for image in batch]
                bar.update(len(batch))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.no_validation = True
        return tags
