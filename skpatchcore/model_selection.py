"""OneClassSplit, scorers for images and PixelScorer: cross-validation of detectors that are fitted on good images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.utils.metadata_routing import MetadataRequest, get_routing_for_object

from skpatchcore._utils.labels import image_labels, is_nominal
from skpatchcore._utils.missing import is_missing
from skpatchcore._utils.sklearn import safe_indexing
from skpatchcore.datasets import read_mask
from skpatchcore.metrics import pixel_roc_auc_score


class OneClassSplit:
    """Cross-validator whose training sets hold good images only, and whose test sets hold good and anomalous images.

    Pass an instance to a parameter search: ``GridSearchCV(..., cv=OneClassSplit(5))``. Labels are +1 (good) and -1
    (anomalous). Do not pass an int as ``cv`` of the search: each test set is then a block of consecutive images. If
    a block contains good images only, its AUROC is nan.

    Parameters
    ----------
    cv : int or splitter, default=5
        Number of folds. The images are divided into folds, and each fold is the test set once. The training set then
        contains the good images of the remaining folds. Every fold has about the same fraction of anomalous images. If
        groups are given, all images of a group are in the same fold. Instead of a number, a scikit-learn splitter
        (stratified, grouped or plain) can be given: OneClassSplit then removes the anomalous images from the
        training sets of the splitter. The test sets stay unchanged.

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore import OneClassSplit
    >>> y = np.array([1, 1, 1, 1, -1, -1])
    >>> for train, test in OneClassSplit(2).split(np.zeros((6, 1)), y):
    ...     print(train, y[test])
    [2 3] [ 1  1 -1]
    [0 1] [ 1  1 -1]
    """

    def __init__(self, cv: Any = 5):
        self.cv = cv

    def __repr__(self) -> str:
        return f"OneClassSplit(cv={self.cv!r})"

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the indices of the training and the test images of each fold.

        Parameters
        ----------
        X : sequence of images, or array of shape (n_images, ...)
            Only its length is used.
        y : array of shape (n_images,) or None, default=None
            +1 good, -1 anomalous. Images labelled 0, NaN or None are in no fold. ``y=None`` means that all images are
            good. The test sets then contain no anomalous images, and the AUROC is not defined: ``scoring="roc_auc"``
            returns nan, and `image_roc_auc_scorer` raises an error.
        groups : array of shape (n_images,) or None, default=None
            Group of each image, e.g. the number of the workpiece. If `cv` is an int, images of the same group are
            always in the same fold. If `cv` is a splitter, `groups` is passed to the splitter.

        Yields
        ------
        train, test : arrays of int
            Indices in `X`. `train` holds good images only. `test` holds all labelled images of the fold, good and
            anomalous.

        Raises
        ------
        ValueError
            If `X`, `y` and `groups` differ in length, `y` holds values other than +1, -1, 0, NaN and None, no image is
            good, or the training set of a fold has no good image.

        Warns
        -----
        UserWarning
            If some images are labelled 0, NaN or None.
        """
        n_images = X.shape[0] if hasattr(X, "shape") else len(X)
        is_nominal(y, n_images)  # validates the labels and warns of unknown ones
        known, labels, groups = _known(n_images, y, groups)
        splits = self._splitter(groups).split(np.zeros((len(known), 1)), labels, groups)
        for number, (train, test) in enumerate(splits):
            train = train[labels[train] == 1]
            if not len(train):
                raise ValueError(f"{self!r}: fold {number} has no good image to fit on.")
            yield known[train], known[test]

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Return the number of folds.

        Parameters
        ----------
        X, y, groups : as for `split`
            Needed only if `cv` is a splitter whose number of folds depends on the data, e.g. ``LeaveOneGroupOut``.

        Returns
        -------
        int
            Number of pairs (train, test) that `split` yields.
        """
        if X is not None and y is not None:
            n_images = X.shape[0] if hasattr(X, "shape") else len(X)
            known, y, groups = _known(n_images, y, groups)
            X = np.zeros((len(known), 1))
        n_splits: int = self._splitter(groups).get_n_splits(X, y, groups)
        return n_splits

    def get_metadata_routing(self) -> MetadataRequest:
        """Return the metadata that `split` accepts, for scikit-learn's metadata routing.

        Returns
        -------
        MetadataRequest
            The request for `groups` if the splitter accepts `groups`, otherwise an empty request.
        """
        return get_routing_for_object(self._splitter(groups=()))

    def _splitter(self, groups: Any) -> Any:
        if not isinstance(self.cv, Integral):
            return self.cv
        return StratifiedKFold(self.cv) if groups is None else StratifiedGroupKFold(self.cv)


def image_roc_auc_scorer(estimator: Any, X: Any, y: Any) -> float:
    """Return the area under the ROC curve of a detector's image scores; **bigger = better**.

    Pass this function to a parameter search: ``GridSearchCV(..., scoring=image_roc_auc_scorer)``. The result equals
    that of ``scoring="roc_auc"``. In addition, this function ignores images without a label, and its error names the
    missing class. Both scorers work with ``calibration=None``, because a ranking needs no threshold.

    Parameters
    ----------
    estimator : estimator with `score_samples`
        A fitted detector, or a pipeline that ends in one.
    X : as for the estimator
        Images.
    y : array of shape (n_images,)
        +1 good, -1 anomalous. Images labelled 0, NaN or None are ignored.

    Returns
    -------
    float
        In [0, 1]: 1 is perfect. The expected value for random scores is 0.5.

    Raises
    ------
    ValueError
        If `y` contains no good image (+1) or no anomalous image (-1).
    """
    return float(roc_auc_score(*_labelled(y, estimator.score_samples(X))))


def image_average_precision_scorer(estimator: Any, X: Any, y: Any) -> float:
    """Return the average precision (AP) of a detector's image scores; **bigger = better**.

    Average precision is scikit-learn's ``average_precision_score``, with the anomalous images as the positive class.
    (``scoring="average_precision"`` takes the good images as the positive class.) Pass this function to a parameter
    search: ``GridSearchCV(..., scoring=image_average_precision_scorer)``.

    Parameters
    ----------
    estimator : estimator with `score_samples`
        A fitted detector, or a pipeline that ends in one.
    X : as for the estimator
        Images.
    y : array of shape (n_images,)
        +1 good, -1 anomalous. Images labelled 0, NaN or None are ignored.

    Returns
    -------
    float
        In [0, 1]: 1 is perfect. The expected value for random scores is about the fraction of anomalous images.

    Raises
    ------
    ValueError
        If `y` contains no good image (+1) or no anomalous image (-1).
    """
    return float(average_precision_score(*_labelled(y, estimator.score_samples(X))))


class PixelScorer:
    """Scorer that compares a detector's anomaly maps with masks of the defects; **bigger = better**.

    A parameter search passes the masks to the scorer if scikit-learn's metadata routing is enabled: call
    ``sklearn.set_config(enable_metadata_routing=True)`` first, then
    ``GridSearchCV(..., scoring=PixelScorer()).fit(X, y, masks=masks)``.

    Parameters
    ----------
    metric : callable, default=pixel_roc_auc_score
        ``metric(masks, maps)`` returns a number. Both arguments are lists of arrays of shape (height, width).

    Examples
    --------
    >>> import numpy as np
    >>> from skpatchcore.model_selection import PixelScorer
    >>> class Same:
    ...     def segment(self, X):
    ...         return X
    >>> X = np.array([[[0.0, 1.0], [0.0, 0.0]]])
    >>> PixelScorer()(Same(), X, masks=[X[0] > 0])
    1.0
    """

    def __init__(self, metric: Callable[[list[np.ndarray], list[np.ndarray]], float] = pixel_roc_auc_score):
        self.metric = metric

    def __repr__(self) -> str:
        return f"PixelScorer(metric={getattr(self.metric, '__name__', self.metric)})"

    def __call__(self, estimator: Any, X: Any, y: Any = None, *, masks: Sequence[Any] | None = None) -> float:
        """Return the metric of the anomaly maps of images.

        Parameters
        ----------
        estimator : estimator with `segment`
            A fitted detector, or a pipeline that ends in one.
        X : as for the estimator
            Images.
        y : array of shape (n_images,) or None, default=None
            +1 good, -1 anomalous. An anomalous image must have a mask. Images labelled 0, NaN or None are ignored.
        masks : sequence of (array of shape (height, width), path or None)
            One mask per image, of the height and width of the image: True or bright where a pixel is defective. None
            or NaN for a good image.

        Returns
        -------
        float
            Value of `metric`.

        Raises
        ------
        ValueError
            If `masks` is None, `masks` and `X` differ in length, an anomalous image has no mask, or a mask and its
            image differ in size.
        """
        if masks is None:
            raise ValueError(
                "masks=None: PixelScorer needs one mask per image. Call "
                "sklearn.set_config(enable_metadata_routing=True), and pass masks= to the search's fit, or "
                "params={'masks': masks} to cross_validate."
            )
        n_images = X.shape[0] if hasattr(X, "shape") else len(X)
        if len(masks) != n_images:
            raise ValueError(
                f"masks has {len(masks)} items for {n_images} images: pass one per image, None for a good image."
            )
        masks = list(masks)
        labels = image_labels(y, n_images)
        for i in np.flatnonzero(labels == -1):
            if is_missing(masks[i]):
                raise ValueError(f"masks[{i}] is missing although image {i} is anomalous (-1): pass its mask.")
        if isinstance(estimator, Pipeline):
            X = estimator[:-1].transform(X) if len(estimator) > 1 else X
            estimator = estimator[-1]
        maps = list(estimator.segment(X))
        known = np.flatnonzero(labels)
        marked = [read_mask(masks[i], maps[i].shape) for i in known]
        return float(self.metric(marked, [maps[i] for i in known]))

    def get_metadata_routing(self) -> MetadataRequest:
        """Return the metadata that the scorer requests (`masks`), for scikit-learn's metadata routing.

        Returns
        -------
        MetadataRequest
            `masks`.
        """
        request = MetadataRequest(owner=self)
        request.score.add_request(param="masks", alias=True)
        return request


def _known(n_images: int, y: Any, groups: Any) -> tuple[np.ndarray, np.ndarray, Any]:
    """Return the indices, labels and groups of the images with a known label."""
    labels = image_labels(y, n_images)
    known = np.flatnonzero(labels)
    return known, labels[known], None if groups is None else safe_indexing(groups, known)


def _labelled(y: Any, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return whether each labelled image is anomalous, and its anomaly score."""
    is_nominal(y, len(y))  # validates the labels and warns of unknown ones
    labels = image_labels(y, len(y))
    if -1 not in labels:
        raise ValueError("y holds no anomalous image (-1), so images cannot be ranked: pass good and anomalous images.")
    return labels[labels != 0] == -1, -scores[labels != 0]
