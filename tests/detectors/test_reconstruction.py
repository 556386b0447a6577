"""Detectors that are trained on pixels: errors, training, early stopping, resuming, and reproducibility."""

from __future__ import annotations

import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV

from skpatchcore import AutoencoderDetector, GANDetector, ImageError, OneClassSplit, PixelExtractor, load, save
from skpatchcore.detectors._networks import Adversaries, Autoencoder, squared_errors, ssim_errors
from skpatchcore.detectors._training import seeded, state_of, train

DETECTORS = [AutoencoderDetector, GANDetector]
SMALL = {"width": 4, "latent_size": 8, "max_epochs": 3, "patience": 3, "batch_size": 8, "random_state": 0}


@pytest.fixture(scope="module")
def good():
    rng = np.random.default_rng(0)
    return rng.normal(0.5, 0.03, (30, 32, 48, 3)).clip(0, 1).astype(np.float32)


def made(make, **params):
    return make(PixelExtractor(image_size=(32, 48))).set_params(**{**SMALL, **params})


def fitted(make, good, **params):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the training is short
        return made(make, **params).fit(good)


def test_pixels_are_the_colours_of_the_image(good):
    np.testing.assert_allclose(PixelExtractor(image_size=None).transform(good), good, atol=1e-6)
    grey = np.full((1, 20, 30, 1), 51, np.uint8)
    np.testing.assert_allclose(PixelExtractor(image_size=(10, 16)).transform(grey), np.full((1, 10, 16, 3), 0.2))


def test_pixels_of_images_that_differ_in_size_are_a_list():
    images = [np.zeros((20, 30, 3), np.uint8), np.zeros((30, 20, 3), np.uint8)]
    assert [x.shape for x in PixelExtractor(image_size=10).transform(images)] == [(10, 15, 3), (15, 10, 3)]


@pytest.mark.parametrize(
    "params", [{"image_size": 0}, {"image_size": (1, 2, 3)}, {"value_range": (1, 0)}, {"batch_size": 0}]
)
def test_pixels_refuse_parameters_out_of_range(params):
    with pytest.raises(ValueError, match=next(iter(params))):
        PixelExtractor(**params).fit()


def test_ssim_errors_are_those_of_scikit_image():
    rng = np.random.default_rng(0)
    pair = rng.random((2, 3, 32, 40)).astype(np.float32)
    own = ssim_errors(*(torch.from_numpy(x[None]) for x in pair))[0].numpy()
    _, expected = structural_similarity(
        *pair, channel_axis=0, full=True, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0,
        win_size=11,
    )  # fmt: skip
    inside = np.s_[6:-6, 6:-6]  # scikit-image mirrors the edges in another way
    np.testing.assert_allclose(own[inside], 1 - expected.mean(axis=0)[inside], atol=1e-4)


def test_errors_of_equal_images_are_zero():
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert float(squared_errors(images, images).abs().max()) == 0
    assert float(ssim_errors(images, images).abs().max()) < 1e-5


@pytest.mark.parametrize("network", [Autoencoder, Adversaries])
def test_weights_depend_on_the_seed_only(network):
    before = torch.random.get_rng_state()
    first, again, other = (state_of(seeded(lambda: network((32, 48), 4, 8), seed)) for seed in (0, 0, 1))
    torch.rand(1)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert any(not np.array_equal(first[name], other[name]) for name in first)
    torch.random.set_rng_state(before)


def test_weights_are_drawn_without_the_generators_of_gpus(monkeypatch):
    seeds = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
    seeded(lambda: Autoencoder((32, 48), 4, 8), 0)
    assert seeds == []


class Falling:
    """A trainee whose held-out losses are given."""

    def __init__(self, losses):
        self.network, self._losses = torch.nn.Linear(1, 1, bias=False), list(losses)
        self.n_steps = 0

    def step(self, images):
        self.n_steps += 1
        with torch.no_grad():
            self.network.weight.fill_(self.n_steps)
        return 1.0

    def loss(self, images):
        return torch.tensor(self._losses[self.n_steps - 1])


def trained(losses, **options):
    images = torch.zeros(4, 3, 2, 2)
    given = {"max_epochs": 10, "batch_size": 4, "patience": 2, "seed": 0, "verbose": 0, **options}
    return train(Falling(losses), images, images[:1], **given)


def test_training_keeps_the_best_epoch_and_ends_after_the_patience():
    found = trained([3.0, 1.0, 2.0, 2.0, 0.0])
    assert found.held_out_losses == [3, 1, 2, 2]
    assert float(found.state["weight"].item()) == 2


def test_training_ends_at_the_largest_number_of_epochs():
    assert trained([3.0, 2.0, 1.0], max_epochs=2).held_out_losses == [3, 2]


def test_training_with_a_loss_that_is_not_finite_is_an_error():
    with pytest.raises(ValueError, match=r"not finite after 2 epochs.*learning_rate"):
        trained([3.0, float("nan")])


@pytest.mark.parametrize("make", DETECTORS)
def test_fit_is_reproducible_and_changes_no_global_state(make, good):
    before = torch.random.get_rng_state()
    first, again = (fitted(make, good) for _ in range(2))
    np.testing.assert_array_equal(first.score_samples(good[:4]), again.score_samples(good[:4]))
    assert torch.equal(before, torch.random.get_rng_state())


@contextmanager
def doubles():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


MODES = {
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
    "float64": doubles,
    "device": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


@pytest.mark.parametrize("make", DETECTORS)
@pytest.mark.parametrize("mode", MODES)
def test_modes_of_torch_change_neither_the_training_nor_the_scores(make, mode, good):
    expected = fitted(make, good)
    with MODES[mode]():
        found, scores = fitted(make, good), expected.score_samples(good[:3])
    np.testing.assert_array_equal(found.calibration_scores_, expected.calibration_scores_)
    np.testing.assert_array_equal(scores, expected.score_samples(good[:3]))


@pytest.mark.parametrize("make", DETECTORS)
def test_defects_score_worse_and_are_in_the_map(make, good):
    bad = good[:4].copy()
    bad[:, 8:24, 10:26] = [1, 0, 0]
    detector = fitted(make, good, max_epochs=15, patience=15)
    assert detector.score_samples(bad).max() < detector.score_samples(good[:4]).min()
    assert (detector.predict(bad) == -1).all()
    for anomaly_map in detector.segment(bad):
        assert anomaly_map.shape == (32, 48)
        assert anomaly_map[12:20, 14:22].mean() > 2 * anomaly_map[:4].mean()


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")  # the training is short
@pytest.mark.parametrize("make", DETECTORS)
def test_search_over_parameters_of_the_network_and_of_the_images(make, good):
    bad = good[:6].copy()
    bad[:, 8:24, 10:26] = [1, 0, 0]
    X, y = np.concatenate([good[:16], bad]), np.r_[np.ones(16), -np.ones(6)]
    grid = {"latent_size": [2, 8], "extractor__image_size": [(16, 16), (32, 48)]}
    search = GridSearchCV(made(make, calibration=None), grid, scoring="roc_auc", cv=OneClassSplit(2)).fit(X, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_score_ > 0.9


@pytest.mark.parametrize("make", DETECTORS)
def test_saved_detector_scores_the_same(make, good, tmp_path):
    detector = fitted(make, good)
    save(detector, tmp_path / "parts.skops")
    again = load(tmp_path / "parts.skops")
    np.testing.assert_array_equal(again.score_samples(good[:3]), detector.score_samples(good[:3]))
    np.testing.assert_array_equal(again.segment(good[:3]), detector.segment(good[:3]))


@pytest.mark.parametrize("make", DETECTORS)
def test_scores_do_not_depend_on_the_other_images(make, good):
    detector = fitted(make, good)
    alone = np.concatenate([detector.score_samples(good[i : i + 1]) for i in range(5)])
    np.testing.assert_array_equal(detector.score_samples(good[:5]), alone)


@pytest.mark.parametrize("make", DETECTORS)
@pytest.mark.parametrize("size", [(32, 48), (128, 128)])
def test_scores_do_not_depend_on_the_number_of_threads(make, size, good):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        detector = made(make, extractor__image_size=size, max_epochs=1, width=16, latent_size=100).fit(good)
    found, n_threads = [], torch.get_num_threads()
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found.append((detector.score_samples(good[:4]), np.array(detector.segment(good[:4]))))
    finally:
        torch.set_num_threads(n_threads)
    for scores, maps in found[1:]:
        np.testing.assert_array_equal(scores, found[0][0])
        np.testing.assert_array_equal(maps, found[0][1])


@pytest.mark.parametrize("make", DETECTORS)
def test_warm_start_goes_on_from_the_best_epoch(make, good):
    detector = fitted(make, good)
    first = list(detector.model_.held_out_losses)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        detector.set_params(warm_start=True).fit(good)
    losses = detector.model_.held_out_losses
    assert losses[: len(first)] == first
    assert len(losses) > len(first)
    assert min(losses) <= min(first)


@pytest.mark.parametrize("params", [{"random_state": 1}, {"calibration": 0.5}])
def test_warm_start_refuses_other_training_images(params, good):
    detector = fitted(AutoencoderDetector, good, warm_start=True)
    losses = list(detector.model_.losses)
    with pytest.raises(ValueError, match="the training images are not those of the earlier fit"):
        detector.fit(good[:20])
    with pytest.raises(ValueError, match="the training images are not those of the earlier fit"):
        detector.set_params(**params).fit(good)
    assert detector.model_.losses == losses


def test_warm_start_needs_a_seed_and_the_same_network(good):
    detector = fitted(AutoencoderDetector, good, warm_start=True)
    with pytest.raises(ValueError, match="int as random_state"):
        detector.set_params(random_state=None).fit(good)
    with pytest.raises(ValueError, match="another size or other settings"):
        detector.set_params(random_state=0, width=5).fit(good)


def test_folds_start_anew_with_warm_start(good):
    once = fitted(AutoencoderDetector, good, calibration=2, warm_start=True)
    first = once.calibration_scores_.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        np.testing.assert_array_equal(once.fit(good).calibration_scores_, first)


def test_a_training_that_did_not_end_is_said(good):
    with pytest.warns(ConvergenceWarning, match="max_epochs=3, before its loss had stopped falling"):
        made(AutoencoderDetector).fit(good)


def test_a_training_that_ended_in_the_last_epoch_has_no_warning(good):
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        detector = made(AutoencoderDetector, learning_rate=1e-30, patience=2).fit(good)
    assert len(detector.model_.losses) == SMALL["max_epochs"]


@pytest.mark.parametrize(
    ("make", "params"), [(AutoencoderDetector, {"error": "ssim"}), (GANDetector, {"feature_weight": 3.0})]
)
def test_parameters_that_change_the_scores_but_not_the_thresholds_are_said(make, params, good):
    detector = fitted(make, good)
    with pytest.warns(UserWarning, match=f"{next(iter(params))} changes the scores of a fitted detector"):
        detector.set_params(**params)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detector.set_params(**params)


def test_leave_one_out_is_refused(good):
    for calibration in ("auto", "leave-one-out"):
        with pytest.raises(ValueError, match="calibration"):
            made(AutoencoderDetector, calibration=calibration).fit(good)


def test_sizes_and_channels_that_do_not_fit_are_refused(good):
    with pytest.raises(ValueError, match="32 x 40 pixels: expected multiples of 16"):
        AutoencoderDetector(PixelExtractor(image_size=(32, 40)), **SMALL).fit(good)
    with pytest.raises(ValueError, match="use an extractor with image_size"):
        AutoencoderDetector(PixelExtractor(image_size=None), calibration=None, **SMALL).fit([*good[:5], good[0][:16]])
    with pytest.raises(ValueError, match="expected the 3 colours"):
        AutoencoderDetector("precomputed", **SMALL).fit(np.zeros((10, 16, 16, 2), np.float32))


def test_an_image_that_cannot_be_read_is_named(good, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    detector = fitted(AutoencoderDetector, good)
    with pytest.raises(ImageError, match=r"broken\.png"):
        detector.score_samples([str(tmp_path / "broken.png")])


def test_pixels_outside_the_region_are_not_scored(good):
    bad = good[:2].copy()
    bad[:, :, 40:] = 0
    detector = fitted(AutoencoderDetector, good, roi=(0, 0, 32, 32), image_score="max")
    np.testing.assert_array_equal(detector.score_samples(bad), detector.score_samples(good[:2]))
    assert np.isnan(detector.segment(bad)[0][:, 33:]).all()


def test_nested_parameters_reach_the_default_extractor():
    detector = AutoencoderDetector().set_params(extractor__image_size=(32, 32))
    assert isinstance(detector.extractor, PixelExtractor)


def test_gan_score_adds_the_error_of_the_features(good):
    without, with_features = (fitted(GANDetector, good, feature_weight=w).score_samples(good[:3]) for w in (0.0, 10.0))
    assert (with_features < without).all()
