from __future__ import annotations

import numpy as np
import pytest
import sklearn
from PIL import Image
from sklearn.base import clone
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    LeaveOneGroupOut,
    StratifiedGroupKFold,
    StratifiedKFold,
    cross_val_score,
    cross_validate,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skpatchcore import OneClassSplit
from skpatchcore.metrics import pixel_roc_auc_score
from skpatchcore.model_selection import PixelScorer, image_average_precision_scorer, image_roc_auc_scorer
from tests import factories


@pytest.fixture
def routing():
    with sklearn.config_context(enable_metadata_routing=True):
        yield


def inspection(n_good=12, n_bad=6, seed=0):
    """Return images, labels and masks: grey plates, some with a dark square."""
    rng = np.random.default_rng(seed)
    X = rng.normal(0.6, 0.03, (n_good + n_bad, 32, 32, 1)).clip(0, 1)
    masks = np.zeros((len(X), 32, 32), bool)
    for i in range(n_good, len(X)):
        y, x = rng.integers(0, 20, 2)
        masks[i, y : y + 10, x : x + 10] = True
        X[i][masks[i]] = 0.1
    order = rng.permutation(len(X))
    return X[order], np.where(np.arange(len(X)) < n_good, 1, -1)[order], masks[order]


def detector(**parameters):
    return factories.detector(**{"calibration": None, **parameters})


@pytest.mark.parametrize("cv", [3, KFold(3), StratifiedKFold(3), GroupKFold(3), StratifiedGroupKFold(3)], ids=str)
def test_split_trains_on_good_images_only_and_tests_on_all(cv):
    y = np.tile([1, 1, -1], 12)
    groups = np.arange(36) // 2
    splitter = OneClassSplit(cv)
    tested = []
    for train, test in splitter.split(np.zeros((36, 2)), y, groups if "Group" in repr(cv) else None):
        assert (y[train] == 1).all()
        assert len(train)
        assert not set(train) & set(test)
        if "Group" in repr(cv):
            assert not set(groups[train]) & set(groups[test])
        tested += test.tolist()
    assert sorted(tested) == list(range(36))
    assert splitter.get_n_splits(np.zeros((36, 2)), y, groups) == 3


def test_split_with_int_is_stratified_and_keeps_groups_together():
    y, groups = np.tile([1, 1, -1], 12), np.repeat(np.arange(9), 4)
    for _, test in OneClassSplit(3).split(y, y):
        assert (y[test] == -1).sum() == 4
    for train, test in OneClassSplit(3).split(y, y, groups):
        assert not set(groups[train]) & set(groups[test])
    assert OneClassSplit(LeaveOneGroupOut()).get_n_splits(y, y, groups) == 9


def test_split_without_labels_takes_all_as_good_and_refuses_other_labels():
    folds = list(OneClassSplit(KFold(2)).split(np.zeros((4, 1))))
    assert [train.tolist() for train, _ in folds] == [[2, 3], [0, 1]]
    with pytest.raises(ValueError, match="convention"):
        list(OneClassSplit(2).split(np.zeros((4, 1)), [0, 0, 1, 1]))
    with pytest.raises(ValueError, match="fold 0 has no good image"):
        list(OneClassSplit(KFold(2)).split(np.zeros((4, 1)), [1, 1, -1, -1]))
    assert repr(OneClassSplit(3)) == "OneClassSplit(cv=3)"


def test_search_ranks_settings_by_image_scores():
    X, y, _ = inspection()
    search = GridSearchCV(
        detector(),
        {"extractor__patch_size": [1, 3], "n_neighbors": [1, 9]},
        scoring={"auroc": image_roc_auc_scorer, "ap": image_average_precision_scorer},
        cv=OneClassSplit(3),
        refit="auroc",
    ).fit(X, y)
    assert search.best_score_ > 0.9
    assert (search.cv_results_["mean_test_ap"] > 0.9).any()
    assert (y[search.best_estimator_.bank_image_indices_] == 1).all()
    model = search.best_estimator_
    assert image_roc_auc_scorer(model, X, y) == roc_auc_score(y, model.score_samples(X))
    assert image_average_precision_scorer(model, X, y) == average_precision_score(y == -1, -model.score_samples(X))


def test_pixel_scorer_receives_routed_masks(routing):
    X, y, masks = inspection()
    scores = cross_validate(
        detector(),
        X,
        y,
        scoring=PixelScorer(),
        cv=OneClassSplit(3),
        params={"masks": list(masks)},
        return_indices=True,
        return_estimator=True,
    )
    for score, test, model in zip(scores["test_score"], scores["indices"]["test"], scores["estimator"], strict=True):
        assert score == pixel_roc_auc_score(list(masks[test]), list(model.segment(X[test])))
        assert score > 0.8
    search = GridSearchCV(detector(), {"smoothing": [0.5, 2.0]}, scoring=PixelScorer(), cv=OneClassSplit(2))
    search.fit(X, y, masks=masks)
    assert search.best_score_ > 0.8


def test_groups_are_routed_to_split_and_to_fit(routing):
    X, y, _ = inspection()
    groups = np.arange(len(X)) // 2
    model = detector(calibration="leave-one-out").set_fit_request(groups=True)
    search = GridSearchCV(
        model, {"n_neighbors": [1, 3]}, scoring=image_roc_auc_scorer, cv=OneClassSplit(StratifiedGroupKFold(2))
    ).fit(X, y, groups=groups)
    alone = clone(model).fit(X, y, groups=groups).set_params(n_neighbors=search.best_params_["n_neighbors"])
    expected = clone(alone).fit(X, y, groups=groups)
    np.testing.assert_array_equal(search.best_estimator_.calibration_scores_, expected.calibration_scores_)
    without = clone(alone).fit(X, y)
    assert not np.array_equal(without.calibration_scores_, expected.calibration_scores_)
    piped = make_pipeline(FunctionTransformer(), clone(model)).fit(X, y, groups=groups)
    assert np.isfinite(piped[-1].offset_)
    scores = cross_val_score(
        clone(model), X, y, scoring=image_roc_auc_scorer, cv=OneClassSplit(2), params={"groups": groups}
    )
    assert len(scores) == 2


def test_pixel_scorer_accepts_pipelines_and_mask_files(tmp_path):
    X, y, masks = inspection()
    train = X[y == 1]
    paths = [None if label == 1 else str(tmp_path / f"{i}_mask.png") for i, label in enumerate(y)]
    for path, mask in zip(paths, masks, strict=True):
        if path:
            Image.fromarray(mask.astype(np.uint8) * 255).save(path)
    model = detector().fit(train)
    expected = PixelScorer()(model, X, y, masks=masks)
    assert expected == PixelScorer()(model, X, y, masks=paths) == PixelScorer()(model, X, masks=np.array(paths, object))
    piped = make_pipeline(FunctionTransformer(lambda X: X), detector()).fit(train)
    assert PixelScorer()(piped, X, y, masks=masks) == pytest.approx(expected)
    assert PixelScorer()(make_pipeline(detector()).fit(train), X, y, masks=masks) == pytest.approx(expected)
    assert PixelScorer(lambda masks, maps: float(len(maps)))(model, X, masks=masks) == len(X)
    assert repr(PixelScorer()) == "PixelScorer(metric=pixel_roc_auc_score)"


def test_pixel_scorer_refuses_missing_and_misshapen_masks(tmp_path):
    X, y, masks = inspection()
    model = detector().fit(X[y == 1])
    scorer = PixelScorer()
    with pytest.raises(ValueError, match="enable_metadata_routing"):
        scorer(model, X, y)
    with pytest.raises(ValueError, match="masks has 3 items for 18 images"):
        scorer(model, X, y, masks=masks[:3])
    first_bad = int(np.flatnonzero(y == -1)[0])
    with pytest.raises(ValueError, match=rf"masks\[{first_bad}\] is missing although image {first_bad} is anomalous"):
        scorer(model, X, y, masks=[None] * len(X))
    with pytest.raises(ValueError, match=r"mask has shape \(16, 32\), but the image has shape \(32, 32\)"):
        scorer(model, X, y, masks=masks[:, :16])
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        scorer(model, X, masks=[str(tmp_path / "gone.png")] * len(X))
