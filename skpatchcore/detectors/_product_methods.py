"""WithProducts: the methods of a detector that take the product of each image in addition to the images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from skpatchcore.detectors._image_detector import ImageDetector
from skpatchcore.images.products import with_products


class WithProducts(ImageDetector):
    """Base class whose methods take the product of each image in addition to the images.

    All methods pass the images on to :class:`ImageDetector`, together with their products.
    """

    def score_samples(self, X: Any, *, products: Any = None, on_error: str = "raise", roi: Any = None) -> np.ndarray:
        """Return image scores of shape (n_images,), **bigger = more normal**, -1 = at the threshold.

        Parameters
        ----------
        X : as for `fit`
            The images.
        products : str, sequence of shape (n_images,), or None, default=None
            Product of each image, or of all images. None, also in the sequence, recognises the product from the image.
        on_error : {"raise", "flag"}, default="raise"
            As for `PatchCoreDetector.score_samples`.
        roi : sequence of shape (n_images,) or None, default=None
            Region of interest of each image, as for `fit`.

        Returns
        -------
        array of shape (n_images,), float64
            Minus the anomaly score of the product's detector as a multiple of its threshold: -2 is twice as anomalous
            as the threshold. An image that shows none of the products has a score below -1.

        Raises
        ------
        ImageError, ValueError
            As in `PatchCoreDetector.score_samples`. In addition, a ValueError if a product is unknown.
        """
        return super().score_samples(with_products(X, products), on_error=on_error, roi=roi)

    def decision_function(
        self, X: Any, *, products: Any = None, on_error: str = "raise", roi: Any = None
    ) -> np.ndarray:
        """Return scores relative to the threshold, **bigger = more normal**, negative = anomalous.

        Parameters
        ----------
        X, products, on_error, roi
            As for `score_samples`.

        Returns
        -------
        array of shape (n_images,), float64
            The values of `score_samples` plus 1.
        """
        return self.score_samples(X, products=products, on_error=on_error, roi=roi) - self.offset_

    def predict(self, X: Any, *, products: Any = None, on_error: str = "raise", roi: Any = None) -> np.ndarray:
        """Return +1 for normal and -1 for anomalous images. Images of none of the products are anomalous.

        Parameters
        ----------
        X, products, on_error, roi
            As for `score_samples`.

        Returns
        -------
        array of shape (n_images,), int
        """
        return np.where(self.decision_function(X, products=products, on_error=on_error, roi=roi) >= 0, 1, -1)

    def segment(self, X: Any, *, products: Any = None, roi: Any = None) -> np.ndarray | list[np.ndarray]:
        """Return anomaly maps, **bigger = more anomalous**, 1 = at the pixel threshold of the product.

        Parameters
        ----------
        X, products, roi
            As for `score_samples`.

        Returns
        -------
        array of shape (n_images, height, width) or list of arrays (height, width), float32
            The maps, in the form of `PatchCoreDetector.segment`. An image that shows none of the products has the map
            of the most similar product.
        """
        return self.score_and_segment(X, products=products, roi=roi)[1]

    def score_and_segment(
        self, X: Any, *, products: Any = None, on_error: str = "raise", roi: Any = None
    ) -> tuple[np.ndarray, np.ndarray | list[Any]]:
        """Return the results of `score_samples` and `segment` from one run of the network.

        Parameters
        ----------
        X, products, on_error, roi
            As for `score_samples`.

        Returns
        -------
        scores : array of shape (n_images,), float64
            Bigger = more normal.
        maps : array of shape (n_images, height, width) or list of arrays (height, width), float32
            Bigger = more anomalous.
        """
        return super().score_and_segment(with_products(X, products), on_error=on_error, roi=roi)

    def predict_mask(
        self,
        X: Any,
        *,
        products: Any = None,
        pixel_contamination: float | None = None,
        min_area: int | str = 1,
        roi: Any = None,
    ) -> np.ndarray | list[np.ndarray]:
        """Return masks of the anomalous pixels, **True = anomalous**, at each image's own height and width.

        Parameters
        ----------
        X, products, roi
            As for `score_samples`.
        pixel_contamination, min_area
            As for `PatchCoreDetector.predict_mask`. Both refer to the calibration images of all products together.

        Returns
        -------
        array of shape (n_images, height, width), bool, or list of arrays (height, width)
        """
        return super().predict_mask(
            with_products(X, products), pixel_contamination=pixel_contamination, min_area=min_area, roi=roi
        )

    def regions(self, X: Any, *, products: Any = None, min_area: int | str = 1, roi: Any = None) -> pd.DataFrame:
        """Return a table of the connected regions of anomalous pixels, with a p-value for each region.

        Parameters
        ----------
        X, products, roi
            As for `score_samples`.
        min_area
            As for `PatchCoreDetector.regions`.

        Returns
        -------
        DataFrame
            The table of `PatchCoreDetector.regions`. The p-values compare with the calibration images of all products.
        """
        return super().regions(with_products(X, products), min_area=min_area, roi=roi)

    def fit_predict(
        self, X: Any, y: Any = None, *, products: Any = None, groups: Any = None, roi: Any = None
    ) -> np.ndarray:
        """Fit on images and return the labels of *these* images: +1 for normal and -1 for anomalous ones.

        Parameters
        ----------
        X, y, products, groups, roi
            As for `fit`.

        Returns
        -------
        array of shape (n_images,), int
            +1 or -1 for each image, as `PatchCoreDetector.fit_predict` returns them.
        """
        return super().fit_predict(with_products(X, products), y, groups=groups, roi=roi)
