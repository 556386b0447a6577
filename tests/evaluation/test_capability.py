"""detection_capability and capability_of_defects: trials, thresholds, false alarms, held-out images, and errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from skpatchcore import ImageError, PaDiMDetector, PatchCoreDetector, PatchCoreEnsemble, capability_of_defects
from skpatchcore.evaluation import detection_capability
from skpatchcore.evaluation._trials import DrawnImages, Trial, transition
from skpatchcore.evaluation.capability import mask_sizes, promised_rate
from skpatchcore.evaluation.pod import fit_pod
from skpatchcore.images.reading import DEFAULT_FORMAT, PixelFormat
from tests.factories import CellMeans, detector, extractor

pytestmark = pytest.mark.filterwarnings("ignore:contamination")
FEW = {"kinds": ["blob", "scratch"], "n_trials": 12}


@pytest.fixture(scope="module")
def surfaces():
    """Return 14 training images and 6 other good images of a noisy grey surface, uint8 of shape (64, 80, 1)."""
    rng = np.random.default_rng(0)
    images = (rng.normal(0.55, 0.03, (20, 64, 80, 1)).clip(0, 1) * 255).round().astype(np.uint8)
    return images[:14], images[14:]


@pytest.fixture(scope="module")
def fitted(surfaces):
    return detector(contamination=0.1, calibration="leave-one-out").fit(surfaces[0])


@pytest.fixture(scope="module")
def result(fitted, surfaces):
    return detection_capability(fitted, surfaces[1], kinds=["blob"], contrasts=[0.2, 1.0], n_trials=24)


def test_table_has_one_row_per_defect_with_scores_of_the_detector(result, fitted):
    trials = result.trials
    assert len(trials) == 2 * 24
    assert set(trials["contrast"]) == {0.2, 1.0}
    assert np.array_equal(trials["hit"], trials["score"] < fitted.offset_)
    assert np.allclose(trials["decision"], trials["score"] - fitted.offset_)
    for row in (0, 17, 40):
        image, mask = result.draw(row)
        assert fitted.score_samples([image])[0] == pytest.approx(trials.loc[row, "score"], rel=1e-5)
        assert 2 * math.sqrt(mask.sum() / math.pi) == pytest.approx(trials.loc[row, "size"], rel=0.3)


def test_larger_and_stronger_defects_are_found(result):
    strong = result.trials_of("blob", 1.0)
    assert strong["hit"].any()
    assert result.curves["blob", 1.0].slope > 0
    assert strong.loc[strong["hit"], "size"].mean() > strong.loc[~strong["hit"], "size"].mean()
    assert strong["hit"].sum() >= result.trials_of("blob", 0.2)["hit"].sum()


def test_frame_and_sentences_state_size_and_false_alarm_rate(result):
    frame = result.to_frame()
    assert frame["kind"].tolist() == ["blob", "blob"]
    assert frame["n_trials"].tolist() == [24, 24]
    sentence = result.sentences()[1]
    assert sentence.startswith("At a promised false-alarm rate of 10 %, the detector ")
    assert "blobs of contrast 1" in sentence
    assert " px" in sentence
    assert f"{result.n_flagged} of 6 good images are flagged" in result.summary()
    for example in result.examples("blob", 1.0):
        assert result.trials.loc[example.trial, "hit"] == example.caption.startswith("smallest found")


def test_same_seed_gives_same_trials_and_the_detector_is_not_changed(fitted, surfaces):
    before = dict(vars(fitted))
    few = {"kinds": ["blob"], "n_trials": 12}
    one, again, other = (detection_capability(fitted, surfaces[1], **few, random_state=seed) for seed in (3, 3, 4))
    assert one.trials.equals(again.trials)
    assert not one.trials["size"].equals(other.trials["size"])
    assert vars(fitted) == before


def test_contamination_sets_the_threshold_from_the_calibration_scores(fitted, surfaces):
    strict = detection_capability(fitted, surfaces[1], **FEW, contamination=0.4)
    assert strict.offset > fitted.offset_
    assert strict.offset in fitted.calibration_scores_
    assert strict.promised_rate == 0.4
    assert promised_rate(fitted) == 0.1
    assert promised_rate(fitted, 0.001) == 1 / 15


def test_promised_rate_counts_the_flagged_calibration_images_if_the_threshold_was_set_by_hand(fitted, monkeypatch):
    for n_flagged in (1, 2, 5):
        threshold = np.sort(fitted.calibration_scores_)[n_flagged]
        monkeypatch.setattr(fitted, "offset_", threshold)
        assert promised_rate(fitted) == pytest.approx((1 + n_flagged) / 15)


def test_good_images_that_are_flagged_are_left_out(fitted, surfaces):
    good = surfaces[1].copy()
    good[2, 10:40, 10:40] = 0
    result = detection_capability(fitted, good, **FEW)
    assert result.n_flagged >= 1
    assert 2 not in set(result.trials["image"])
    good[:, 10:40, 10:40] = 0
    with pytest.raises(ValueError, match="all 6 good images are flagged without a defect"):
        detection_capability(fitted, good, **FEW)


def test_training_images_are_refused(surfaces, tmp_path):
    paths = []
    for i, image in enumerate(surfaces[0]):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(image[..., 0]).save(paths[-1])
    fitted = detector(contamination=0.1).fit(paths[:12])
    with pytest.raises(ValueError, match=r"1 of 3 good images are training images of the detector.*3\.png"):
        detection_capability(fitted, [paths[12], paths[3], paths[13]], **FEW)
    result = detection_capability(fitted, paths[12:], **FEW)
    assert len(result.trials) == 24
    with pytest.raises(ImageError, match=r"image 1 \(.*missing\.png\): no such file"):
        detection_capability(fitted, [paths[12], str(tmp_path / "missing.png")], **FEW)


@pytest.mark.parametrize("kind", ["padim", "ensemble", "12 bits, BGR", "RGBA"])
def test_other_detectors_and_images_work(surfaces, kind):
    train, good = (np.repeat(images, 3, axis=3) for images in surfaces)
    if kind == "padim":
        fitted = PaDiMDetector(extractor(), n_channels=20, calibration=0.4, random_state=0)
    elif kind == "ensemble":
        fitted = PatchCoreEnsemble([("one", detector()), ("two", detector(n_neighbors=1))])
    elif kind == "RGBA":
        train, good = (np.concatenate([x, np.full_like(x[..., :1], 255)], axis=3) for x in (train, good))
        fitted = detector()
    else:
        train, good = train.astype(np.uint16) * 16, good.astype(np.uint16) * 16
        fitted = PatchCoreDetector(extractor(value_range=(0, 4095), channel_order="bgr"), random_state=0)
    result = detection_capability(fitted.fit(train), list(good), kinds=["blob"], n_trials=12)
    assert result.trials["score"].notna().all()


def test_region_confines_the_defects(fitted, surfaces):
    region = np.zeros((64, 80), bool)
    region[20:50, 30:70] = True
    result = detection_capability(fitted, surfaces[1], **FEW, region=region)
    masks = [result.draw(i)[1] for i in range(len(result.trials))]
    assert not any(mask[~region].any() for mask in masks)
    assert result.trials["size"].max() <= 15
    with pytest.raises(ValueError, match="region has shape"):
        detection_capability(fitted, surfaces[1], **FEW, region=region[:5])


@pytest.mark.parametrize("bgr", [False, True])
def test_drawn_images_of_files_have_the_form_of_arrays(tmp_path, bgr):
    Image.fromarray(np.full((40, 50, 3), (200, 100, 50), np.uint8)).save(tmp_path / "a.png")
    pixel_format = PixelFormat("bgr", (0, 4095)) if bgr else DEFAULT_FORMAT
    images = DrawnImages([tmp_path / "a.png"], [Trial(0, "blob", 4, 0.5, (0,))] * 3, [None], pixel_format)
    drawn, mask = images[1], images.draw(1)[1]
    assert np.allclose(drawn[~mask][0], [50, 100, 200] if bgr else np.array([200, 100, 50]) / 255)
    assert len(images[1:]) == 2
    assert np.array_equal(images[1:][0], drawn)


def test_second_stage_lies_in_the_transition():
    sizes = np.geomspace(1, 40, 30)
    low, high = transition(fit_pod(sizes, sizes > 6), 1, 40)
    assert 1 <= low < 6 < high <= 40
    assert high / low < 12
    assert transition(fit_pod(sizes, sizes > 0), 1, 40)[1] < 10
    assert transition(fit_pod(sizes, sizes < 0), 1, 40)[0] > 4


def test_mask_sizes_of_a_bar_and_a_disc():
    bar = np.zeros((60, 60), bool)
    bar[10:15, 5:55] = True
    assert mask_sizes(bar) == {"area": 250.0, "diameter": pytest.approx(17.84, abs=0.01), "width": 5.0}
    y, x = np.mgrid[:60, :60]
    disc = mask_sizes(np.hypot(y - 30, x - 30) <= 10)
    assert disc["diameter"] == pytest.approx(20, abs=0.6)
    assert disc["width"] == pytest.approx(20, abs=1.1)
    assert mask_sizes(np.zeros((3, 3), bool))["area"] == 0
    assert mask_sizes(bar[11:])["width"] == 4
    assert mask_sizes(np.eye(1, dtype=bool))["width"] == 1


def test_capability_of_labelled_defects_uses_sizes_from_masks(fitted, surfaces):
    images, masks, rng = np.repeat(surfaces[1], 4, axis=0), [], np.random.default_rng(0)
    for image, side in zip(images, rng.permutation(np.arange(1, 25)), strict=True):
        mask = np.zeros((64, 80), bool)
        mask[20 : 20 + side, 20 : 20 + side] = True
        image[mask] = 0
        masks.append(mask)
    masks[0][:] = False
    with pytest.warns(UserWarning, match="1 of 24 masks mark no pixel"):
        result = capability_of_defects(
            fitted, images, masks, kinds=["dent"] * 12 + ["hole"] * 12, good_images=surfaces[1]
        )
    assert len(result.trials) == 23
    assert result.seed is None
    assert result.n_good == 6
    assert set(result.curves) == {("dent", math.nan), ("hole", math.nan), ("all", math.nan)}
    assert result.curves["all", math.nan].false_alarm_rate == 0.1
    frame = result.to_frame().set_index("kind")
    assert frame.loc["all", "n_trials"] == 23
    assert np.allclose(result.trials["width"], np.sqrt(result.trials["area"]))
    assert "real defects of the kind 'dent'" in result.summary()
    image, mask = result.draw(0)
    assert image.shape == (64, 80, 1)
    assert mask.sum() == result.trials.loc[0, "area"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kinds": ["dent"]}, r"kinds=\['dent'\]: expected some of"),
        ({"contrasts": 0}, r"contrasts=\[0.0\]: expected numbers in \(0, 1\]"),
        ({"n_trials": 3}, "n_trials=3: expected at least 12"),
        ({"size_ranges": (5, 2)}, "size_ranges"),
        ({"contamination": 0.8}, "contamination=0.8"),
    ],
)
def test_bad_arguments_are_refused(fitted, surfaces, arguments, message):
    with pytest.raises(ValueError, match=message):
        detection_capability(fitted, surfaces[1], **arguments)


def test_detectors_without_threshold_or_images_are_refused(surfaces):
    with pytest.raises(ValueError, match="has no threshold"):
        detection_capability(detector(calibration=None).fit(surfaces[0]), surfaces[1])
    features = np.random.default_rng(0).random((12, 4, 4, 8))
    with pytest.raises(ValueError, match="precomputed patch features"):
        detection_capability(PatchCoreDetector("precomputed", random_state=0).fit(features), surfaces[1])


def test_real_defects_with_bad_arguments_are_refused(fitted, surfaces):
    masks = [np.ones((64, 80), bool)] * 6
    with pytest.raises(ValueError, match="6 images, 5 masks and 6 kinds"):
        capability_of_defects(fitted, surfaces[1], masks[1:])
    with pytest.raises(ValueError, match="size='length'"):
        capability_of_defects(fitted, surfaces[1], masks, size="length")
    with pytest.raises(ValueError, match="no mask marks a pixel"):
        capability_of_defects(fitted, surfaces[1], [~mask for mask in masks])


def test_defects_are_drawn_only_where_the_detector_inspects():
    images = np.random.default_rng(0).normal(0.5, 0.05, (8, 64, 64, 3)).clip(0, 1)
    fitted = PatchCoreDetector(CellMeans(), roi=(0, 0, 32, 64), random_state=0).fit(images)
    region = np.zeros((64, 64), bool)
    region[:, 32:] = True
    for given, inside in ((None, np.s_[:32]), (region, np.s_[:32, 32:])):
        found = detection_capability(fitted, images + 0, kinds=["blob"], n_trials=12, region=given, random_state=1)
        for trial in range(12):
            mask = found.draw(trial)[1]
            assert mask.any()
            assert mask[inside].sum() == mask.sum()
    with pytest.raises(ValueError, match="inspects no pixel of image 0 in region"):
        detection_capability(
            fitted, images + 0, kinds=["blob"], n_trials=12, region=np.arange(64)[:, None] >= np.full(64, 32)
        )
