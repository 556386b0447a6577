"""select_settings: the choice of settings from good images only."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import LeaveOneGroupOut, ShuffleSplit

from skpatchcore import (
    GreedyCoresetSampler,
    ImageError,
    PaDiMDetector,
    PatchCoreDetector,
    PatchWhitening,
    TorchFeatureExtractor,
    select_settings,
)
from skpatchcore.datasets import make_textures
from skpatchcore.evaluation import default_grid
from tests import factories


@pytest.fixture(scope="module")
def good():
    return list(make_textures("brick").train_images[:12])


def detector(**parameters):
    return PatchCoreDetector(
        factories.extractor(image_size=64, layers=["layer1", "layer2"]), random_state=0, **parameters
    )


def few(*arguments, **options):
    return select_settings(*arguments, **{"n_defects": 4, "kinds": ["blob", "scratch", "misplaced"], **options})


@pytest.fixture(scope="module")
def result(good):
    return few(detector(), {"image_score": ["reweighted", "max"], "extractor__patch_size": [1, 3]}, good)


def test_table_ranks_all_settings_and_counts_unchanged_values_as_given(result):
    table = result.table
    assert len(table) == 4
    assert table["found"].is_monotonic_decreasing
    assert table["chosen"].sum() == 1
    given = table[table["setting"] == "as given"].iloc[0]
    assert given["gain"] == given["gain_se"] == given["n_changes"] == 0
    assert set(table["n_changes"]) == {0, 1, 2}
    assert table["found"].between(0, 1).all()
    assert (table[["fit_seconds", "ms_per_image", "model_mb"]] > 0).all().all()
    assert list(result.by_kind["setting"]) == list(table["setting"])
    np.testing.assert_allclose(result.by_kind[["blob", "scratch", "misplaced"]].mean(axis=1), table["found"])


def test_chosen_parameters_are_those_of_the_detector_and_of_the_reason(result):
    chosen = result.table[result.table["chosen"]].iloc[0]
    assert chosen["n_changes"] == len(result.best_params)
    for name, value in result.best_params.items():
        assert result.detector.get_params()[name] == value
        assert name in result.reason
    assert result.detector.sampler is None  # the ratio of the comparison is not that of the detector
    assert result.detector.calibration == "auto"
    assert str(result).startswith(result.reason)


def test_trials_can_be_looked_at(result, good):
    assert len(result.trials) == result.n_defects == 12
    assert set(result.trials["kind"]) == {"blob", "scratch", "misplaced"}
    image, mask = result.draw(0)
    assert image.shape[:2] == mask.shape == np.shape(good[0])[:2]
    assert mask.any()


def test_choice_is_reproducible(result, good):
    grid = {"image_score": ["reweighted", "max"], "extractor__patch_size": [1, 3]}
    again = few(detector(), grid, good)
    for name in ("setting", "found", "gain", "gain_se"):
        assert list(again.table[name]) == list(result.table[name])
    assert again.trials.equals(result.trials)
    other = few(detector(), grid, good, random_state=1)
    assert not other.trials.equals(result.trials)


def test_detector_and_images_are_not_changed(good):
    given = detector()
    before, images = repr(given), [image.copy() for image in good]
    few(given, {"image_score": ["max"]}, images)
    assert repr(given) == before
    assert not hasattr(given, "offset_")
    assert all(np.array_equal(a, b) for a, b in zip(images, good, strict=True))


def test_useless_setting_is_not_chosen_and_is_ranked_last(good):
    # Averages over the whole grid of 16 x 16 positions do not show small defects.
    result = few(detector(), {"extractor__patch_size": [15]}, good, n_defects=12)
    assert result.best_params == {}
    assert result.reason.startswith("The given setting is kept")
    assert result.table["setting"].iloc[-1] == "extractor__patch_size=15"


def test_clearly_better_setting_is_chosen(good):
    poor = detector().set_params(extractor__patch_size=15)
    kinds = ["blob", "scratch", "misplaced", "missing", "stain", "rough"]
    result = few(poor, {"extractor__patch_size": [3]}, good, n_defects=16, kinds=kinds)
    assert result.best_params == {"extractor__patch_size": 3}
    assert result.detector.get_params()["extractor__patch_size"] == 3
    assert few(poor, {"extractor__patch_size": [3]}, good, n_defects=2, confidence=0.999).best_params == {}


def test_network_runs_once_per_image_and_defect(good, monkeypatch, tmp_path):
    from skpatchcore.features._forward import ForwardPass

    counts = []
    run = ForwardPass._outputs
    monkeypatch.setattr(ForwardPass, "_outputs", lambda self, x: (counts.append(len(x)), run(self, x))[1])
    grid = {"extractor__layers": [["layer1", "layer2"], ["layer2"]], "extractor__patch_size": [1, 3]}
    few(detector(), grid, good, memory=str(tmp_path))
    n_pilots = 3 * 2 * 16
    assert sum(counts) <= len(good) + 12 + n_pilots + 4  # one image per setting tells the number of patches
    counts.clear()
    few(detector(), grid, good, memory=str(tmp_path))
    assert sum(counts) <= 4


def test_groups_stay_together(good):
    groups = np.repeat(["a", "b", "c", "d"], 3)

    class Recorded(TorchFeatureExtractor):
        fitted = []

        def fit(self, X, y=None):
            Recorded.fitted.append([np.asarray(x).tobytes() for x in X])
            return super().fit(X, y)

    recorded = detector().set_params(
        extractor=Recorded("resnet18", weights=None, layers=["layer1"], image_size=64, memory=None)
    )
    few(recorded, {"image_score": ["max"]}, good, groups=groups, cv=4)
    known = [image.tobytes() for image in good]
    parts = [{groups[known.index(one)] for one in some} for some in Recorded.fitted if len(some) == 9]
    assert parts
    assert all(len(part) == 3 for part in parts)


def test_splitters_must_test_each_image_once(good):
    few(detector(), {"image_score": ["max"]}, good, groups=np.arange(12) % 3, cv=LeaveOneGroupOut())
    with pytest.raises(ValueError, match="contain each image once"):
        few(detector(), {"image_score": ["max"]}, good, cv=ShuffleSplit(2, random_state=0))


def test_other_detectors_can_be_chosen_for(good):
    padim = PaDiMDetector(factories.extractor(image_size=(64, 64), layers=["layer1"]), random_state=0)
    result = few(padim, {"regularization": [0.01, 0.1]}, good)
    assert len(result.table) == 2


def test_own_ratio_is_used_if_the_grid_contains_ratios(good):
    result = few(detector(sampler=GreedyCoresetSampler(0.5)), {"sampler__ratio": [0.25, 0.5]}, good)
    sizes = result.table.set_index("setting")["model_mb"]
    assert sizes["as given"] == pytest.approx(2 * sizes["sampler__ratio=0.25"], rel=0.02)
    small = few(detector(sampler=GreedyCoresetSampler(0.5)), {"image_score": ["max"]}, good, ratio=0.25)
    large = few(detector(sampler=GreedyCoresetSampler(0.5)), {"image_score": ["max"]}, good, ratio=None)
    assert large.table["model_mb"].iloc[0] == pytest.approx(2 * small.table["model_mb"].iloc[0], rel=0.05)


def test_defects_lie_in_the_region(good):
    region = np.zeros(np.shape(good[0])[:2], bool)
    region[:20] = True
    result = few(detector(), {"image_score": ["max"]}, good, region=region)
    masks = [result.draw(i)[1] for i in range(result.n_defects)]
    assert all(mask.any() and not mask[20:].any() for mask in masks)
    inspected = few(detector(roi=region), {"image_score": ["max"]}, good)
    assert not any(inspected.draw(i)[1][28:].any() for i in range(inspected.n_defects))  # cells at the border count


def test_defects_lie_on_the_part_in_front_of_a_uniform_background():
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:96, :96]
    images, discs = [], []
    for _ in range(10):
        disc = np.hypot(rows - rng.uniform(40, 56), columns - rng.uniform(40, 56)) < 22
        image = np.where(disc[..., None], 0.7, 0.1) + rng.normal(0, 0.02, (96, 96, 3))
        images.append(image.clip(0, 1))
        discs.append(disc)
    small = {"kinds": ["blob", "rough"], "n_defects": 6}

    def shares(region):
        result = few(detector(), {"image_score": ["max"]}, images, region=region, **small)
        drawn = [result.draw(i)[1] for i in range(result.n_defects)]
        return [
            mask[discs[image]].sum() / mask.sum() for mask, image in zip(drawn, result.trials["image"], strict=True)
        ]

    assert min(shares("part")) > 0.9
    assert min(shares(None)) < 0.1


def test_grey_images_get_grey_defects(good):
    grey = [np.repeat(np.asarray(image)[..., :1] if np.ndim(image) == 3 else image[..., None], 3, 2) for image in good]
    result = few(detector(), {"image_score": ["max"]}, grey, kinds=["shift", "blob"])
    for trial in range(result.n_defects):
        image, _ = result.draw(trial)
        assert np.ptp(image, axis=2).max() == 0


def test_unreadable_image_is_named_by_its_index(good, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not an image")
    with pytest.raises(ImageError, match=r"bad\.png") as caught:
        few(detector(), {"image_score": ["max"]}, [*good[:9], str(bad), *good[9:]])
    assert caught.value.index == 9


def test_setting_that_cannot_be_fitted_is_named(good):
    with pytest.raises(ValueError, match=r"the setting \{'sampler': GreedyCoresetSampler\(ratio=10000000\)\}"):
        few(detector(), {"sampler": [GreedyCoresetSampler(10_000_000)]}, good)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ["hole"]}, "kinds"),
        ({"kinds": []}, "kinds"),
        ({"n_defects": 0}, "n_defects=0"),
        ({"contamination": 0.6}, "contamination=0.6"),
        ({"confidence": 1}, "confidence=1"),
        ({"n_defects": 2.5}, "n_defects=2.5"),
        ({"kinds": "blob"}, "at least 2"),
        ({"cv": None}, "cv=None"),
        ({"cv": 2.7}, "cv=2.7"),
        ({"ratio": 2}, "ratio=2"),
        ({"groups": ["a"] * 12}, "one group"),
        ({"region": np.ones((3, 3), bool)}, "region has shape"),
        ({"region": "hole"}, "region='hole'"),
    ],
)
def test_bad_arguments_raise(good, options, message):
    with pytest.raises(ValueError, match=message):
        few(detector(), {"image_score": ["max"]}, good, **options)


def test_bad_detectors_and_grids_raise(good):
    with pytest.raises(ValueError, match="does not read images"):
        few(PatchCoreDetector("precomputed"), {"image_score": ["max"]}, good)
    with pytest.raises(ValueError, match="no setting other than"):
        few(detector(), {"image_score": ["reweighted"]}, good)
    with pytest.raises(ValueError, match="Invalid parameter"):
        few(detector(), {"imagescore": ["max"]}, good)
    with pytest.raises(ValueError, match="9 good images"):
        few(detector(), {"image_score": ["max"]}, good[:9])
    for grid in ({"image_score": ["map_max"]}, {"image_score": [2.0]}, {"sampler__ratio": [-1.0]}):
        with pytest.raises(ValueError, match=r"the setting .* is not valid"):
            few(detector(), grid, good)
    for grid in ({"extractor__channel_order": ["bgr"]}, {"extractor__value_range": [(0, 510)]}):
        with pytest.raises(ValueError, match="changes how stored images are read"):
            few(detector(), grid, good)


def settings_in(result):
    return set(result.table["setting"])


def test_estimators_in_the_grid_are_not_changed_and_not_shared(good):
    other = factories.extractor(image_size=64, layers=["layer1"], patch_size=3)
    before = repr(other)
    result = few(detector(), {"extractor": [other], "extractor__patch_size": [3, 9]}, good, n_defects=12)
    assert repr(other) == before
    assert len(result.table) == 3
    assert result.table["found"].nunique() == 3
    assert result.detector.get_params().get("extractor__memory") is None


def test_nested_values_that_equal_the_given_ones_are_kept_if_their_stage_changes(good):
    given = detector().set_params(extractor__patch_size=1)
    other = factories.extractor(image_size=64, layers=["layer1", "layer3"], patch_size=3)
    result = few(given, {"extractor": [other], "extractor__patch_size": [1]}, good)
    (changed,) = settings_in(result) - {"as given"}
    assert "extractor__patch_size=1" in changed


def test_parameters_of_a_transformer_are_varied_with_the_transformer(good):
    result = few(detector(), {"transformer": [PatchWhitening()], "transformer__shrinkage": [0.1, 0.5]}, good)
    names = settings_in(result)
    assert len(names) == 3
    assert any("shrinkage=0.5" in name for name in names)


def test_settings_that_change_no_score_give_a_warning(good):
    with pytest.warns(UserWarning, match=r"1 of 2 settings have exactly the scores .* contamination=0\.2"):
        few(detector(), [{"contamination": [0.2]}, {"extractor__patch_size": [1]}], good)


def test_large_arrays_are_told_apart(good):
    masks = [np.ones((200, 200), bool) for _ in range(3)]
    masks[0][90:110, 90:110] = False
    masks[1][20:40, 90:110] = False
    result = few(detector(roi=masks[2]), {"roi": masks}, good, n_defects=8)
    assert len(result.table) == 3


def test_images_without_a_defect_are_only_used_as_good_images(good):
    result = few(detector(), {"image_score": ["max"]}, good, cv=12, kinds=["blob", "stain"], n_defects=2)
    assert np.isfinite(result.table["found"]).all()


def test_banks_of_the_comparison_are_not_tiny(good):
    result = few(detector(), {"image_score": ["max"]}, good)
    n_channels = 64 + 128
    assert result.table["model_mb"].iloc[0] * 1e6 / 4 / n_channels >= 200  # 10 % of 8 images of 256 patches


def test_result_can_be_pickled(result):
    again = pickle.loads(pickle.dumps(result))
    np.testing.assert_array_equal(again.draw(1)[1], result.draw(1)[1])


def test_network_runs_once_with_a_region_of_interest(good, monkeypatch, tmp_path):
    from skpatchcore.features._forward import ForwardPass

    counts = []
    run = ForwardPass._outputs
    monkeypatch.setattr(ForwardPass, "_outputs", lambda self, x: (counts.append(len(x)), run(self, x))[1])
    region = np.ones((8, 8), bool)
    region[:2] = False
    few(detector(roi=region), {"extractor__patch_size": [1]}, good, memory=str(tmp_path))
    n_pilots = 3 * 2 * 16
    assert sum(counts) <= len(good) + 12 + n_pilots + 2  # one image per setting tells the number of patches


@pytest.mark.parametrize("backbone", ["wide_resnet50_2", "efficientnet_lite2", "densenet201", "convnext_tiny"])
def test_default_grid_has_valid_layers(backbone):
    extractor = TorchFeatureExtractor(backbone, weights=None, image_size=64)
    given = PatchCoreDetector(extractor)
    layers = [part["extractor__layers"][0] for part in default_grid(given) if "extractor__layers" in part]
    assert layers
    image = np.random.default_rng(0).random((1, 64, 64, 3)).astype(np.float32)
    usual = extractor.transform(image).shape[1:3]
    for part in default_grid(given):
        some = {name: values[0] for name, values in part.items() if name.startswith("extractor__")}
        made = clone(given).set_params(**some).extractor.transform(image)
        assert made.shape[1:3] == usual  # as many patches as with the default layers


def test_default_grid_leaves_chosen_layers_alone():
    extractor = TorchFeatureExtractor("resnet18", weights=None, layers=["layer1"])
    assert not any("extractor__layers" in part for part in default_grid(PatchCoreDetector(extractor)))
