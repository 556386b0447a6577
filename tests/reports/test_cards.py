"""Cards, groups and the page of cards: numbers, sentences, files, escapes, stale files."""

from __future__ import annotations

import math
import os
import weakref
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from sklearn.pipeline import make_pipeline

from skpatchcore import ImageError, PatchCoreDetector, TorchFeatureExtractor
from skpatchcore.reports import (
    Card,
    CardGroup,
    Layers,
    make_cards,
    predictions,
    write_card_page,
    write_prediction_report,
)
from skpatchcore.reports import card_page as module
from skpatchcore.reports.cards import headline
from skpatchcore.reports.explanations import explain
from skpatchcore.reports.groups import promise_of, settings_of
from skpatchcore.reports.layers import write_layers
from skpatchcore.reports.pictures import PictureFolder, remove_pictures
from skpatchcore.reports.predictions import write_predictions
from tests import factories
from tests.reports.pages import Darkness, cards_of, data_of, photo

GROUP = CardGroup(threshold=3.0, pixel_threshold=1.0, calibration_scores=np.array([1.0, 2.0, math.nan, 3.0]))


def card(score=2.0, verdict="normal", n_regions=0, **fields):
    layers = Layers(size=(4, 4), n_regions=n_regions, largest=1240 * bool(n_regions))
    return Card("/a/b.png", verdict, score, GROUP, layers, **fields)


@pytest.mark.parametrize(
    ("score", "text"),
    [
        (0.5, "3 of 3 good images score as badly"),
        (3.0, "1 of 3 good images scores as badly"),
        (3.1, "None of 3 good images scores as badly"),
        (math.nan, ""),
    ],
)
def test_rarity_counts_calibration_images_without_nan(score, text):
    assert card(score).rarity == text


def test_rarity_of_the_largest_calibration_score_is_one():
    assert card(3.0).n_as_bad == 1
    assert Card("a", "undecided", 1.0, CardGroup()).rarity == ""


@pytest.mark.parametrize(
    ("verdict", "n_regions", "disagrees", "text"),
    [
        ("normal", 0, False, "Normal: neither the anomaly score nor a pixel is above its threshold."),
        (
            "normal",
            2,
            True,
            "Normal: the anomaly score is not above the image threshold. 2 regions are above the pixel threshold.",
        ),
        (
            "anomalous",
            0,
            True,
            "Anomalous: the anomaly score is above the image threshold. No pixel is above the pixel threshold.",
        ),
        (
            "anomalous",
            1,
            False,
            "Anomalous: the anomaly score is above the image threshold, and 1 region is above the pixel threshold.",
        ),
        ("undecided", 0, False, "The detector has no threshold: it was not calibrated."),
        ("unreadable", 0, False, "The image could not be read. It is not a normal image."),
    ],
)
def test_decision_names_the_threshold_that_decided(verdict, n_regions, disagrees, text):
    made = card(verdict=verdict, n_regions=n_regions)
    assert (made.decision, made.disagrees) == (text, disagrees)


def test_extent_names_the_largest_region():
    assert card(n_regions=1).extent == "1 region of 1,240 pixels"
    assert card(n_regions=2).extent == "2 regions, largest 1,240 pixels"
    assert card().extent == ""


def test_card_refuses_another_verdict():
    with pytest.raises(ValueError, match="verdict='good': expected one of 'anomalous'"):
        card(verdict="good")


def test_headline_counts_verdicts():
    bad, good, unread = card(verdict="anomalous"), card(), card(verdict="unreadable")
    assert headline([bad, good]) == "1 of 2 parts is anomalous"
    assert headline([good] * 1200) == "None of 1,200 parts is anomalous"
    assert headline([bad, bad, unread], "tile") == "2 of 3 tiles are anomalous, 1 could not be read"
    assert headline([card(verdict="undecided")]) == "1 part scored, no threshold"


def fitted(parts, **parameters):
    return factories.detector(**parameters).fit(parts[0])


@pytest.mark.parametrize(
    ("contamination", "text", "exact"),
    [
        (
            "auto",
            "On average, at most about 9 of 100 good parts are flagged; this model may flag up to 26 (95 % "
            "confidence). This holds for good parts like those of the calibration. None of the 10 good images of the "
            "calibration would be flagged.",
            "at most 9.09 % on average over calibrations; at most 26 % with this threshold, with 95 % confidence",
        ),
        (
            0.2,
            "On average, at most about 20 of 100 good parts are flagged; this model may flag up to 40 (95 % "
            "confidence). This holds for good parts like those of the calibration. 1 of the 10 good images of the "
            "calibration would be flagged.",
            "at most 20 % on average over calibrations; at most 39 % with this threshold, with 95 % confidence",
        ),
    ],
)
def test_promise_states_contamination_and_counts(parts, contamination, text, exact):
    detector = fitted(parts, contamination=contamination)
    assert promise_of(detector) == text
    assert settings_of(detector)["flagged good parts"] == exact
    detector.recalibrate(contamination=0.4)  # the promise is that of the threshold, not of the parameter
    assert "at most about 40 of 100 good parts" in promise_of(detector)
    detector.offset_ -= 1  # set by hand
    assert "at most" not in promise_of(detector)
    assert "flagged good parts" not in settings_of(detector)


def test_promise_below_one_percent_counts_parts_of_a_thousand(parts):
    detector = fitted(parts)
    detector.calibration_scores_ = -np.arange(1.0, 400.0)
    detector.recalibrate(contamination=0.005)
    assert promise_of(detector).startswith("On average, at most about 5 of 1,000 good parts are flagged;")


def test_promise_without_threshold(parts):
    assert promise_of(fitted(parts, calibration=None)) == "The model has no threshold: it was not calibrated."


def test_settings_name_backbone_sizes_and_bank(parts):
    settings = settings_of(fitted(parts))
    assert settings["backbone"] == "resnet18"
    assert settings["image size"] == "each image's own size"
    assert settings["crop"].startswith("none")
    assert settings["calibration"] == "10 good images (10 folds)"
    assert settings["contamination"] == "auto"
    assert settings["memory bank"].endswith("% of all")


def test_layers_are_small_and_have_all_regions(tmp_path):
    pixels = np.random.default_rng(0).random((900, 1600, 3))
    heat = np.zeros((900, 1600))
    for i in range(30):
        heat[20 : 24 + i, 50 * i + 10 : 50 * i + 14] = 2 + i
    layers = write_layers(pixels, heat, 1.0, PictureFolder(tmp_path), truth=heat > 5)
    assert (layers.n_regions, len(layers.regions), layers.largest) == (30, 20, 33 * 4)
    assert layers.regions[0].peak == 31
    sizes = {}
    for file in layers.files():
        with Image.open(tmp_path / file) as picture:
            sizes[file.split(".")[1]] = picture.size
    assert sizes == {
        "thumb": (320, 180), "image": (1200, 675), "map": (400, 225), "outline": (1200, 675), "truth": (1200, 675),
    }  # fmt: skip
    with Image.open(tmp_path / layers.outline) as picture:
        alpha = np.asarray(picture.convert("RGBA"))[..., 3]
    assert 0 < (alpha > 0).mean() < 0.2
    with Image.open(tmp_path / layers.heat) as picture:
        alpha = np.asarray(picture.convert("RGBA"))[..., 3]
    assert alpha[-1, 0] == 0
    assert alpha.max() == 255


def test_layers_leave_out_the_uninspected_margin(tmp_path):
    heat = np.full((20, 40), np.nan)
    heat[:, 10:30] = 0
    heat[8:12, 15:30] = 2
    layers = write_layers(np.zeros((20, 40, 1)), heat, 1.0, PictureFolder(tmp_path))
    assert [(r.left, r.right, r.area) for r in layers.regions] == [(15, 30, 60)]
    assert layers.inspected == (0.5, (0, 10, 0, 10), True)
    with Image.open(tmp_path / layers.unseen) as picture:
        alpha = np.asarray(picture.convert("RGBA"))[..., 3]
    np.testing.assert_array_equal(alpha > 0, np.isnan(heat))
    bright = write_layers(np.ones((20, 40, 1)), 0 * heat, 1.0, PictureFolder(tmp_path))
    with Image.open(tmp_path / bright.thumb) as picture:
        assert picture.getpixel((20, 80)) < 120 < 200 < picture.getpixel((160, 80))


def test_layers_without_threshold_have_no_outline(tmp_path):
    layers = write_layers(np.zeros((8, 8, 1)), np.ones((8, 8)), math.nan, PictureFolder(tmp_path))
    assert (layers.n_regions, layers.outline) == (0, None)
    assert layers.heat is not None


def test_a_small_region_of_a_large_image_stays_visible(tmp_path):
    heat = np.zeros((2400, 2400), np.float32)
    heat[1200, 1200] = 2
    layers = write_layers(np.full((2400, 2400, 1), 0.5, np.float32), heat, 1.0, PictureFolder(tmp_path))
    with Image.open(tmp_path / layers.outline) as picture:
        assert (np.asarray(picture) == 1).sum() > 4


def test_a_picture_that_cannot_be_written_is_named_on_its_card(tmp_path, monkeypatch):
    paths = [photo(tmp_path / f"{i}.png", 50 + i) for i in range(3)]
    save = Image.Image.save

    def full(self, target, *more, **options):
        if "00001.image" in str(target):
            raise OSError(28, "No space left on device")
        save(self, target, *more, **options)

    monkeypatch.setattr(Image.Image, "save", full)
    written = write_predictions(Darkness(), paths, tmp_path / "out", layers=True)
    assert not [p.problem for p in written if p.problem]  # the table is not concerned
    cards = {
        os.path.basename(c["path"]): c for c in cards_of(write_prediction_report(written, Darkness(), tmp_path / "out"))
    }
    assert ["image" in cards[f"{i}.png"] for i in range(3)] == [True, False, True]
    assert "a picture could not be written: [Errno 28]" in cards["1.png"]["problem"]


def test_a_file_in_the_place_of_the_folder_of_pictures_leaves_a_page(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report_files").write_text("mine")
    written = write_predictions(Darkness(), [photo(tmp_path / "a.png")], tmp_path / "out", layers=True)
    (found,) = cards_of(write_prediction_report(written, Darkness(), tmp_path / "out"))
    assert "a picture could not be written" in found["problem"]
    assert (tmp_path / "out" / "report_files").read_text() == "mine"


def report(tmp_path, paths, embed, layers=True):
    written = write_predictions(Darkness(), paths, tmp_path / "out", layers=layers)
    return write_prediction_report(written, Darkness(), tmp_path / "out", embed=embed)


@pytest.mark.parametrize("layers", [True, False])
@pytest.mark.parametrize(("embed", "is_inside"), [("10MB", True), (None, False), (100, False)])
def test_pictures_are_inside_up_to_a_size(tmp_path, embed, is_inside, layers):
    page = report(tmp_path, [photo(tmp_path / "a.png")], embed, layers)
    (found,) = cards_of(page)
    assert found["thumb"].startswith("data:" if is_inside else "report_files/")
    assert (tmp_path / "out" / "report_files").exists() != is_inside
    if not is_inside:
        assert (tmp_path / "out" / found["image"]).is_file()


def test_embed_that_is_no_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'many' is not an amount of memory"):
        report(tmp_path, [photo(tmp_path / "a.png")], "many")


def test_a_report_can_be_written_twice(tmp_path):
    written = write_predictions(Darkness(), [photo(tmp_path / "a.png")], tmp_path / "out", layers=True)
    for embed in ("10MB", None, None, "10MB"):
        (found,) = cards_of(write_prediction_report(written, Darkness(), tmp_path / "out", embed=embed))
        assert "image" in found


def test_a_new_run_removes_the_pictures_of_an_earlier_run_only(tmp_path):
    out, pictures = tmp_path / "out", tmp_path / "out" / "report_files"
    report(tmp_path, [photo(tmp_path / f"{i}.png") for i in range(3)], None)
    photo(pictures / "00007.thumb.jpg")  # of the user, with a name like ours
    photo(pictures / "mine.png")
    outside = photo(tmp_path / "outside.png")
    with (pictures / "files.txt").open("a") as file:
        file.write("../../outside.png\nmine.png\n00001.thumb.jpg/../mine.png\n")
    write_predictions(Darkness(), [photo(tmp_path / "new.png")], out)
    assert sorted(p.name for p in pictures.iterdir()) == ["00007.thumb.jpg", "mine.png"]
    assert os.path.exists(outside)
    assert not (out / "report.html").exists()
    report(tmp_path, [photo(tmp_path / f"{i}.png") for i in range(9)], None)
    with Image.open(pictures / "00007.thumb.jpg") as picture:
        assert picture.size == (8, 6)


def test_pictures_of_an_interrupted_run_are_removed(tmp_path):
    written = PictureFolder(tmp_path)
    write_layers(np.zeros((8, 8, 3)), np.ones((8, 8)), 0.5, written)
    (tmp_path / "report_files" / ".00000.map.png.partial").write_text("half")
    remove_pictures(tmp_path)
    assert not (tmp_path / "report_files").exists()


def test_an_old_page_stays_if_the_new_one_cannot_be_written(tmp_path, monkeypatch):
    cards = make_cards([photo(tmp_path / "a.png")], Darkness(), tmp_path)
    page = write_card_page(cards, tmp_path / "report.html", title="Old", embed=None)
    monkeypatch.setattr(module, "write_html", lambda *given: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space left"):
        write_card_page(cards, page, title="New")
    assert "<title>Old</title>" in page.read_text()
    assert (tmp_path / cards_of(page)[0]["image"]).is_file()


def test_texts_in_the_page_end_no_element(tmp_path):
    bad = "</script><script>alert(1)</script>{{data}}<!--"
    cards = [
        replace(card(), path=f"/a/{bad}", problem=bad, note=bad, group=CardGroup(bad, promise=bad, settings={bad: bad}))
    ]
    page = write_card_page(cards, tmp_path / "report.html", title=bad, about={bad: bad}, noun=bad)
    text = page.read_text(encoding="utf-8")
    assert text.count("<script") == 2  # the data and the script
    assert "alert(1)</script>" not in text
    assert text.count('"cards":[') == 1  # a name cannot repeat a part of the page
    assert data_of(page)["cards"][0]["problem"] == bad


def test_groups_with_the_same_promise_share_one_sentence(tmp_path):
    groups = [CardGroup(name, promise=promise) for name, promise in [("a", "One."), ("b", "Two."), ("c", "One.")]]
    cards = [Card(f"/{group.name}.png", "undecided", 1.0, group) for group in groups]
    text = write_card_page(cards, tmp_path / "report.html", title="T").read_text(encoding="utf-8")
    assert '<div class="promises"><p>a, c: One.</p><p>b: Two.</p></div>' in text


def test_page_needs_no_network(tmp_path):
    text = write_card_page([card()], tmp_path / "report.html", title="T").read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in text


@pytest.fixture
def trained(tmp_path, parts):
    """A detector that was fitted on files, a flagged image, and the files."""
    (tmp_path / "good").mkdir()
    files = []
    for i, image in enumerate(parts[0]):
        files.append(str(tmp_path / "good" / f"{i}.png"))
        Image.fromarray((image * 255).astype(np.uint8)).save(files[-1])
    bad = str(tmp_path / "bad.png")
    Image.fromarray((parts[2][0] * 255).astype(np.uint8)).save(bad)
    return factories.detector().fit(files), bad, files


def test_flagged_images_show_the_nearest_good_patch(trained, tmp_path):
    detector, bad, files = trained
    (found,) = make_cards([bad], detector, tmp_path)
    assert found.verdict == "anomalous"
    assert found.nearest.name == files[detector.nearest_patches([bad])["nominal_image"][0]]
    with Image.open(tmp_path / found.nearest.patch) as patch, Image.open(tmp_path / found.nearest.nominal) as nominal:
        assert patch.size == nominal.size  # the same scale
        dark, bright = ((np.asarray(crop) < 30).mean() for crop in (patch, nominal))
    assert dark > 0.04 > bright  # the dark spot is on one of them
    (shown,) = cards_of(write_card_page([found], tmp_path / "report.html", title="T"))
    assert shown["nearest"]["nominal"].startswith("data:image/jpeg")


@pytest.mark.parametrize("fault", ["gone", "damaged", "smaller", "unknown"])
def test_a_missing_training_image_is_named(trained, tmp_path, fault):
    detector, bad, files = trained
    for file in files:
        if fault == "gone":
            os.remove(file)
        elif fault == "damaged":
            with open(file, "wb") as content:
                content.write(b"no image")
        elif fault == "smaller":
            photo(file, size=(2, 2))
    if fault == "unknown":
        detector.training_paths_ = None
    (found,) = make_cards([bad], detector, tmp_path)
    assert found.nearest.nominal is None
    assert found.nearest.patch is not None
    assert "not available" in found.nearest.problem
    assert (found.nearest.name in files) == (fault != "unknown")


def test_images_that_vanish_before_the_explanation_leave_the_others(trained, tmp_path):
    detector, bad, _ = trained
    done = []
    found = explain(
        detector, [str(tmp_path / "gone.png"), bad], PictureFolder(tmp_path), on_explained=lambda *n: done.append(n)
    )
    assert list(found) == [bad]
    assert done == [(2, 2)]


def test_only_flagged_and_worst_images_are_explained(tmp_path):
    class Explaining(Darkness):
        asked = ()

        def nearest_patches(self, X):
            self.asked += tuple(X)
            raise ImageError("cannot be read", 0, None)

    detector = Explaining()
    paths = [photo(tmp_path / f"{i}.png", 10 + i) for i in range(60)] + [
        photo(tmp_path / f"g{i}.png", 200 + i) for i in range(9)
    ]
    make_cards(paths, detector, tmp_path / "out")
    assert set(detector.asked) == set(paths[:60])


def test_pipelines_that_change_images_have_no_explanation(trained, tmp_path):
    detector, bad, _ = trained
    extractor = TorchFeatureExtractor("resnet18", weights=None, image_size=None, crop_size=None)
    pipeline = make_pipeline(extractor, PatchCoreDetector("precomputed", random_state=0))
    pipeline.fit([bad] * 3)
    assert make_cards([bad], pipeline, tmp_path)[0].nearest is None
    assert make_cards([bad], make_pipeline(detector), tmp_path)[0].nearest is not None


def test_the_inspected_area_of_a_crop_is_on_the_card(tmp_path, parts):
    cropping = factories.extractor(image_size=48, crop_size=32)
    detector = PatchCoreDetector(cropping, random_state=0).fit(parts[0])
    path = str(tmp_path / "wide.png")
    Image.fromarray(np.zeros((96, 192, 3), np.uint8)).save(path)
    (found,) = make_cards([path], detector, tmp_path)
    assert found.layers.inspected == (64 * 64 / (96 * 192), (16, 64, 16, 64), True)
    page = write_prediction_report(write_predictions(detector, [path], tmp_path / "out"), detector, tmp_path / "out")
    assert "is not inspected" in page.read_text(encoding="utf-8")


def test_scores_on_the_page_have_the_sign_of_the_threshold(tmp_path):
    path = photo(tmp_path / "a.png", 25)
    written = write_predictions(Darkness(), [path], tmp_path / "out")
    page = write_prediction_report(written, Darkness(), tmp_path / "out")
    (found,) = cards_of(page)
    assert found["score"] == pytest.approx(-written[0].score, abs=1e-5)
    assert data_of(page)["groups"][0]["threshold"] == -Darkness.offset_


def test_write_predictions_holds_few_anomaly_maps_at_a_time(tmp_path, monkeypatch):
    maps = []
    monkeypatch.setattr(predictions, "_MAX_BYTES", 0)

    class Streaming(Darkness):
        def iter_results(self, X, on_error="flag"):
            for result in super().iter_results(X, on_error):
                assert sum(known() is not None for known in maps) <= 1  # the last one, which is being drawn
                anomaly_map = result.anomaly_map.view()
                maps.append(weakref.ref(anomaly_map))
                result = replace(result, anomaly_map=anomaly_map)
                del anomaly_map
                yield result

    paths = [photo(tmp_path / f"{i}.png", 50 + i) for i in range(6)]
    write_predictions(Streaming(), paths, tmp_path / "out", layers=True)
    assert len(maps) == 6
