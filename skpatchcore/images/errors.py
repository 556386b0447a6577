"""Errors and warnings about images: `ImageError`, `ImageWarning` and the warnings about training images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class ImageError(ValueError):
    """Raised if an image cannot be read or used, or if an object is not an image.

    Parameters
    ----------
    message : str
        Reason of the error, without the index and the path of the image.
    index : int
        Position of the image in `X`.
    path : str or None
        Path of the image's file. None if the image was not given by its path.

    Attributes
    ----------
    message : str
        Reason of the error, without the index and the path of the image.
    index : int
        Position of the image in `X`.
    path : str or None
        Path of the image's file. None if the image was not given by its path.
    """

    def __init__(self, message: str, index: int, path: str | None = None):
        super().__init__(f"image {index}{f' ({path})' if path else ''}: {message}")
        self.message, self.index, self.path = message, index, path

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.index, self.path)


class AppearanceWarning(UserWarning):
    """Issued if all images of one call look unlike the training images, or if all training images are nearly black.

    The methods that score images compare them with the training images. They issue this warning if the call has at
    least four images, and all of them are much brighter, darker, more colourful or less colourful, or have much more or
    much less contrast than every training image. If one image is similar to the training images, there is no warning.
    The usual cause is a change of all images: another lighting, another camera setting, swapped colour channels
    (`channel_order` of the extractor) or other values of black and white (`value_range` of the extractor). Find the
    cause before you use the predictions. After an intended change, call ``recalibrate`` or fit again.

    `fit` issues this warning if no value in any training image is above 1/8 of white. The usual cause is that the
    images do not use all bits of their dtype, e.g. 12 bits in uint16. Set `value_range` of the extractor for such
    images.
    """


class InspectionWarning(UserWarning):
    """Issued by `fit` if a part of the images is not inspected, or if a patch covers many pixels of an image.

    Pixels outside the crop (`crop_size` of the extractor) or outside the region of interest (`roi` of the detector) are
    not inspected: defects there are not found, and the anomaly map is NaN there. A patch that is more than 32 pixels of
    the image wide or high averages over small defects: increase `image_size` of the extractor. The attribute
    ``inspection_`` of the fitted detector holds the numbers.
    """


class SuspectImageWarning(UserWarning):
    """Issued by `fit` of a PatchCoreDetector if a few training images look anomalous.

    Each calibration image is compared with other training images. A few images are then far more anomalous than the
    others: they are more than 4 interquartile ranges above the upper quartile of the logarithms of the anomaly
    scores. Such images may be defective. A defective image in the training set makes similar defects look normal, and
    raises the thresholds. Look at the first rows of ``training_report()``, remove the defective images, and fit again.
    If the images are good, nothing needs to be done. No warning does not mean that all training images are good:
    defects that differ little from good parts are not found.
    """


class ImageWarning(UserWarning):
    """Issued if some images could not be scored, and the method was called with ``on_error="flag"``.

    An image cannot be scored if, for example, its file is missing or damaged. By default, a detector then raises an
    ImageError. With ``on_error="flag"``, the detector scores all other images and issues this warning once. The images
    that could not be scored have the score NaN, and `predict` returns -1 (anomalous) for them, so that such images are
    not taken as good.

    Parameters
    ----------
    failures : list of ImageError
        One error per image that could not be scored. Each error has the attributes ``index``, ``path`` and ``message``.

    Attributes
    ----------
    failures : list of ImageError
        One error per image that could not be scored. Each error has the attributes ``index``, ``path`` and ``message``.
    """

    def __init__(self, failures: Sequence[ImageError]):
        super().__init__(
            f"{len(failures)} images could not be scored: their scores are NaN. First error: {failures[0]}"
        )
        self.failures = list(failures)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.failures,)
