"""Tests of warnings about images that look unlike the training images, and of the parameters that fix them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from skpatchcore import AppearanceWarning, ImageWarning
from skpatchcore.images.appearance import appearance_of, appearance_range, describe_difference
from tests.factories import detector, extractor

RNG = np.random.default_rng(0)


def photographs(n, shift=0.0, scale=1.0):
    """Return brownish images with small differences in brightness."""
    levels = np.array([0.6, 0.4, 0.2]) + RNG.normal(0, 0.01, (n, 1, 1, 1))
    return ((levels + RNG.normal(0, 0.05, (n, 48, 48, 3))) * scale + shift).clip(0, 1).astype(np.float32)


def test_appearance_of_a_grey_image_equals_that_of_three_equal_channels():
    grey = RNG.random((1, 9, 7), np.float32)
    assert appearance_of(grey) == pytest.approx(appearance_of(grey.repeat(3, axis=0)), abs=1e-6)
    red, green, blue, contrast, brightest = appearance_of(grey)
    some = grey[0, ::4, ::4]
    assert red == green == blue == pytest.approx(np.median(some))
    assert (contrast, brightest) == pytest.approx((np.subtract(*np.quantile(some, [0.75, 0.25])), float(grey.max())))


@given(st.integers(4, 9), st.floats(0.15, 0.4), st.sampled_from([-1, 1]))
def test_describe_difference_reports_a_shift_that_all_images_share(n, shift, sign):
    train = np.tile([0.5, 0.5, 0.5, 0.1, 0.8], (5, 1)) + np.linspace(-0.005, 0.005, 5)[:, None]
    new = np.tile([0.5, 0.5, 0.5, 0.1, 0.8], (n, 1))
    known = appearance_range(train)
    assert describe_difference(known, new) is None
    new[:, 2] += sign * (shift + 0.006)
    assert "blue" in describe_difference(known, new)
    new[0, 2] = 0.5  # one image looks like the training images
    assert describe_difference(known, new) is None


@pytest.mark.parametrize("memory", [False, True])
def test_detector_warns_of_a_batch_that_looks_unlike_the_training_images(memory, tmp_path):
    model = detector(extractor=extractor(memory=str(tmp_path) if memory else None)).fit(photographs(8))
    assert model.appearance_range_.shape == (2, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.predict(photographs(5))
        model.predict(photographs(3)[..., ::-1])  # too few images for a comparison
    for odd, word in ((photographs(5)[..., ::-1], "blue"), (photographs(5, scale=0.1), "red")):
        for _ in range(2):  # first from the network, then from the cache if there is one
            with pytest.warns(UserWarning, match=rf"all 5 images look unlike the training images.*{word}") as caught:
                model.predict(odd)
            assert caught[0].filename == __file__


def test_detector_on_bgr_images_gives_the_scores_of_rgb_images():
    images, new = photographs(8), photographs(5)
    expected = detector().fit(images).score_samples(new)
    found = detector(extractor=extractor(channel_order="bgr")).fit(images[..., ::-1]).score_samples(new[..., ::-1])
    np.testing.assert_array_equal(found, expected)


def test_fit_warns_of_12_bit_images_without_value_range():
    twelve = (photographs(8) * 4095).astype(np.uint16)
    with pytest.warns(UserWarning, match=r"nearly black.*set value_range .*such as \(0, 4095\)"):
        dark = detector().fit(twelve)
    assert dark.appearance_range_[1, 4] < 1 / 16
    right = detector(extractor=extractor(value_range=(0, 4095))).fit(twelve)
    assert right.appearance_range_[1, 4] > 0.5


@pytest.mark.parametrize("bad", [(1, 0), (0,), (0, np.nan), ("a", "b"), (3, 3)])
def test_extractor_refuses_value_ranges_that_are_not_ascending_pairs(bad):
    with pytest.raises(ValueError, match="expected the values of black and of white, ascending"):
        extractor(value_range=bad).fit()


def test_set_params_of_contamination_on_a_fitted_detector_warns():
    model = detector().fit(photographs(8))
    offset = model.offset_
    with pytest.warns(UserWarning, match="no effect on the thresholds of a fitted detector.*recalibrate"):
        model.set_params(contamination=0.3)
    assert model.offset_ == offset
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.set_params(contamination=0.3, n_neighbors=3)
        detector().set_params(contamination=0.2)


def test_fit_refuses_a_dataset_of_several_classes_without_labels():
    class Folder:
        classes = ("bad", "good")

        def __len__(self):
            return 10

        def __getitem__(self, index):
            return photographs(1)[0], index % 2

    with pytest.raises(
        ValueError, match="dataset with the classes bad, good: pass a dataset of good images only, or y"
    ):
        detector().fit(Folder())
    model = detector().fit(Folder(), [1, -1] * 5)
    assert len(model.calibration_scores_) == 5
    assert model.predict(Folder()).shape == (10,)


def test_generators_give_the_same_results_as_lists():
    images = list(photographs(8))
    expected = detector().fit(images).score_samples(images[:4])
    model = detector().fit(image for image in images)
    np.testing.assert_array_equal(model.score_samples(image for image in images[:4]), expected)
    np.testing.assert_array_equal(model.fit_predict(image for image in images), detector().fit_predict(images))


def test_recalibrate_on_brighter_images_ends_the_appearance_warnings():
    model = detector().fit(photographs(8))
    with pytest.warns(AppearanceWarning):
        model.predict(photographs(5, shift=0.2))
    model.recalibrate(photographs(6, shift=0.2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.predict(photographs(5, shift=0.2))
        model.predict(photographs(5))


def test_unreadable_image_in_a_batch_does_not_hide_the_appearance_warning():
    model = detector().fit(photographs(8))
    batch = [*photographs(6)[..., ::-1], np.full((48, 48, 3), np.nan)]
    with pytest.warns(AppearanceWarning, match="look unlike"), pytest.warns(ImageWarning):
        labels = model.predict(batch, on_error="flag")
    assert labels[-1] == -1


def test_fit_on_images_after_a_table_refuses_labels_of_another_convention():
    model = detector(extractor="precomputed").fit(np.random.default_rng(0).normal(size=(20, 3)))
    with pytest.raises(ValueError, match="convention"):
        model.set_params(extractor=extractor()).fit(photographs(8), ["good"] * 4 + ["bad"] * 4)


def test_subsets_of_datasets_keep_their_classes_and_read_only_used_images():
    reads = []

    class Folder:
        classes, targets = ("bad", "good"), [0, 1] * 6

        def __len__(self):
            return 12

        def __getitem__(self, index):
            reads.append(index)
            return photographs(1)[0], self.targets[index]

    good = torch.utils.data.Subset(Folder(), range(1, 12, 2))
    model = detector(calibration=None).fit(good, [1] * 5 + [-1])
    assert sorted(set(reads)) == [1, 3, 5, 7, 9]
    with pytest.raises(ValueError, match="classes bad, good"):
        detector().fit(torch.utils.data.Subset(Folder(), [0, 1, 2]))
    assert len(model.score_samples(good)) == 6
    pairs = torch.utils.data.TensorDataset(torch.rand(8, 3, 48, 48), torch.zeros(8))
    with pytest.warns(UserWarning, match="targets, which are ignored"):
        detector().fit(pairs)


def test_pil_images_and_arrays_of_the_same_values_do_not_share_a_cache_entry(tmp_path):
    picture = (photographs(1)[0] * 255).astype(np.uint8)
    bgr = extractor(memory=str(tmp_path), channel_order="bgr").fit()
    first = bgr.transform([Image.fromarray(picture)])
    second = bgr.transform([picture.astype(np.float32) / np.float32(255)])
    assert not np.array_equal(first, second)
