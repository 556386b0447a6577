"""ExplainingDetector: the base class that explains image scores by the nearest patches of training images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn.utils.validation import check_is_fitted

from skpatchcore.bank.scoring import nearest_patches
from skpatchcore.detectors._patch_detector import PatchDetector
from skpatchcore.detectors._records import ImageRecords
from skpatchcore.images.containers import with_regions


class ExplainingDetector(PatchDetector):
    """Base class of detectors with a memory bank, which explain scores by rows of the bank."""

    index_: Any
    memory_bank_: np.ndarray
    bank_image_indices_: np.ndarray
    bank_boxes_: np.ndarray

    def nearest_patches(self, X: Any, *, n_patches: int = 1, roi: Any = None) -> pd.DataFrame:
        """Return the most anomalous patches of images, with the most similar bank row of each, **bigger = farther**.

        The table explains image scores. For each of the most anomalous patches of an image, the table contains the
        nearest row of the memory bank and the training image from which this row was computed.

        Parameters
        ----------
        X : as for `fit`
            The images.
        n_patches : int, default=1
            Number of patches to return per image. The patches with the largest distances from the bank are returned,
            the largest first. The returned patches are often neighbours in the patch grid.
        roi : sequence of shape (n_images,) or None, default=None
            Region of interest of each image, as for `fit`.

        Returns
        -------
        DataFrame
            One row per patch, in the order of the images, with these columns:

            - ``image``: index of the image in `X`.
            - ``rank``: 0 for the patch with the largest distance, then 1, 2 and so on. With
              ``image_score="reweighted"`` and ``"max"``, the patch of rank 0 determines the image score.
            - ``top``, ``left``, ``height``, ``width``: the cell of the patch (its rectangle of the patch grid), in the
              image's own pixels.
            - ``distance``: distance to the nearest row of the bank, bigger = more anomalous. For rank 0, this is the
              distance of Equation 6 of the PatchCore paper.
            - ``bank_row``: index of the nearest row in ``memory_bank_``.
            - ``nominal_image``: index in the `X` of `fit` of the image from which this bank row was computed.
            - ``nominal_top``, ``nominal_left``, ``nominal_height``, ``nominal_width``: the cell of the bank row's
              patch in that image, in the image's own pixels.

            With precomputed features, the columns of cells contain NaN.

        Raises
        ------
        ImageError
            If an image cannot be read or is not an image.
        ValueError
            If `n_patches` is less than 1.
        """
        check_is_fitted(self, "memory_bank_")
        if n_patches < 1:
            raise ValueError(f"n_patches={n_patches}: expected at least 1.")
        records = ImageRecords(self._patch_check(is_fitted=True), of_good_images=False)
        found = nearest_patches(self._stream(with_regions(X, roi), records), self.index_, n_patches, self.memory_bank_)
        nearest = found["nearest"]
        sides = ("top", "left", "height", "width")
        return pd.DataFrame(
            {
                "image": found["image"],
                "rank": found["rank"],
                **dict(zip(sides, found["box"].T, strict=True)),
                "distance": found["distance"],
                "bank_row": nearest,
                "nominal_image": self.bank_image_indices_[nearest],
                **{f"nominal_{side}": values for side, values in zip(sides, self.bank_boxes_[nearest].T, strict=True)},
            }
        )
