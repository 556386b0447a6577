"""Splitting and scoring for searches: folds that learn from good images only, and scorers for images and pixels."""

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
    """Folds whose training parts hold good images only, and whose test parts hold all.

    For ``GridSearchCV(..., cv=OneClassSplit(5))`` and its like, with labels +1 (good) and -1 (anomalous).

    Parameters
    ----------
    cv : int or splitter, default=5
        Number of folds, each with about the same share of anomalous images, and with whole groups where groups are
        given; or any splitter of scikit-learn's: stratified, grouped or plain.

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
        """Yield the folds.

        Parameters
        ----------
        X : sequence of images, or array of shape (n_images, ...)
            Only its length counts.
        y : array of shape (n_images,) or None, default=None
            +1 good, -1 anomalous; None takes all as good. Images labelled 0, NaN or None are in no fold.
        groups : array of shape (n_images,) or None, default=None
            For a splitter that takes groups.

        Yields
        ------
        train, test : arrays of int
            Indices into `X`: of good images, and of good and anomalous ones.

        Raises
        ------
        ValueError
            If lengths differ, `y` holds other labels, no image is good, or a fold has no good image to learn from.

        Warns
        -----
        UserWarning
            If labels are unknown.
        """
        n_images = X.shape[0] if hasattr(X, "shape") else len(X)
        is_nominal(y, n_images)  # checks and warns
        known, labels, groups = _known(n_images, y, groups)
        splits = self._splitter(groups).split(np.zeros((len(known), 1)), labels, groups)
        for number, (train, test) in enumerate(splits):
            train = train[labels[train] == 1]
            if not len(train):
                raise ValueError(f"{self!r}: fold {number} has no good image to learn from.")
            yield known[train], known[test]

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Return the number of folds.

        Parameters
        ----------
        X, y, groups : as for `split`
            For splitters that count by them.

        Returns
        -------
        int
            How many pairs of training and test images `split` yields.
        """
        if X is not None and y is not None:
            n_images = X.shape[0] if hasattr(X, "shape") else len(X)
            known, y, groups = _known(n_images, y, groups)
            X = np.zeros((len(known), 1))
        n_splits: int = self._splitter(groups).get_n_splits(X, y, groups)
        return n_splits

    def get_metadata_routing(self) -> MetadataRequest:
        """Return which metadata `split` takes, for scikit-learn's metadata routing.

        Returns
        -------
        MetadataRequest
            `groups`, unless the splitter inside doesn't take them.
        """
        return get_routing_for_object(self._splitter(groups=()))

    def _splitter(self, groups: Any) -> Any:
        if not isinstance(self.cv, Integral):
            return self.cv
        return StratifiedKFold(self.cv) if groups is None else StratifiedGroupKFold(self.cv)


def image_roc_auc_scorer(estimator: Any, X: Any, y: Any) -> float:
    """Score a detector by the area under the ROC curve of its image scores; **bigger = better**.

    For ``GridSearchCV(..., scoring=image_roc_auc_scorer)``. Needs no threshold: it works with ``calibration=None``,
    which ``scoring="roc_auc"`` does not.

    Parameters
    ----------
    estimator : estimator with `score_samples`
        A fitted detector, or a pipeline that ends in one.
    X : as for the estimator
        Images.
    y : array of shape (n_images,)
        +1 good, -1 anomalous.

    Returns
    -------
    float
        1 is perfect, 0.5 is chance.

    Raises
    ------
    ValueError
        If there is no good or no anomalous image.
    """
    return float(roc_auc_score(*_labelled(y, estimator.score_samples(X))))


def image_average_precision_scorer(estimator: Any, X: Any, y: Any) -> float:
    """Score a detector by its average precision in finding anomalous images; **bigger = better**.

    Parameters
    ----------
    estimator : estimator with `score_samples`
        A fitted detector, or a pipeline that ends in one.
    X : as for the estimator
        Images.
    y : array of shape (n_images,)
        +1 good, -1 anomalous: those to be found.

    Returns
    -------
    float
        1 is perfect; chance is the share of anomalous images.

    Raises
    ------
    ValueError
        If there is no good or no anomalous image.
    """
    return float(average_precision_score(*_labelled(y, estimator.score_samples(X))))


class PixelScorer:
    """Score a detector by how its anomaly maps agree with masks of the defects; **bigger = better**.

    Masks travel by scikit-learn's metadata routing:
    ``sklearn.set_config(enable_metadata_routing=True)`` and then
    ``GridSearchCV(..., scoring=PixelScorer()).fit(X, y, masks=masks)``.

    Parameters
    ----------
    metric : callable, default=pixel_roc_auc_score
        Takes masks and maps, lists of arrays of shape (height, width), and returns a number.

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
        """Return the metric.

        Parameters
        ----------
        estimator : estimator with `segment`
            A fitted detector, or a pipeline that ends in one.
        X : as for the estimator
            Images.
        y : array of shape (n_images,) or None, default=None
            +1 good, -1 anomalous: an anomalous image must have a mask. Images labelled 0, NaN or None do not count.
        masks : sequence of (array of shape (height, width), path or None)
            True or bright where a pixel is defective, at the image's own size; None for a good image, or NaN, as
            tables have it.

        Returns
        -------
        float
            What the scorer's function says of the maps.

        Raises
        ------
        ValueError
            If there are no masks, lengths differ, an anomalous image has none, or a mask has another size.
        """
        if masks is None:
            raise ValueError(
                "no masks: with sklearn.set_config(enable_metadata_routing=True), give masks= to the search's fit, or "
                "to cross_validate(params=...)."
            )
        n_images = X.shape[0] if hasattr(X, "shape") else len(X)
        if len(masks) != n_images:
            raise ValueError(f"{len(masks)} masks for {n_images} images.")
        masks = list(masks)
        labels = image_labels(y, n_images)
        for i in np.flatnonzero(labels == -1):
            if is_missing(masks[i]):
                raise ValueError(f"image {i} is anomalous and has no mask.")
        if isinstance(estimator, Pipeline):
            X = estimator[:-1].transform(X) if len(estimator) > 1 else X
            estimator = estimator[-1]
        maps = list(estimator.segment(X))
        known = np.flatnonzero(labels)
        marked = [read_mask(masks[i], maps[i].shape) for i in known]
        return float(self.metric(marked, [maps[i] for i in known]))

    def get_metadata_routing(self) -> MetadataRequest:
        """Return that `masks` are asked for, for scikit-learn's metadata routing.

        Returns
        -------
        MetadataRequest
            `masks`.
        """
        request = MetadataRequest(owner=self)
        request.score.add_request(param="masks", alias=True)
        return request


def _known(n_images: int, y: Any, groups: Any) -> tuple[np.ndarray, np.ndarray, Any]:
    """Return indices, labels and groups of the images whose label is known."""
    labels = image_labels(y, n_images)
    known = np.flatnonzero(labels)
    return known, labels[known], None if groups is None else safe_indexing(groups, known)


def _labelled(y: Any, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which of the labelled images are anomalous, and their anomaly scores."""
    is_nominal(y, len(y))  # checks and warns
    labels = image_labels(y, len(y))
    if -1 not in labels:
        raise ValueError("y holds no anomalous image (-1): there is nothing to be told apart.")
    return labels[labels != 0] == -1, -scores[labels != 0]
