"""evaluate, studies, presets, stored results, and the evaluate command on whole data sets."""

from __future__ import annotations

import json
from dataclasses import replace

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.model_selection import KFold
from torchvision.models import resnet18

from skpatchcore import (
    GreedyCoresetSampler,
    PaDiMDetector,
    PatchCoreDetector,
    PatchCoreEnsemble,
    SPADEDetector,
    TorchFeatureExtractor,
    evaluate,
)
from skpatchcore.cli.main import main
from skpatchcore.datasets import load_categories, make_textures
from skpatchcore.evaluation.category import evaluate_category, pickled_bytes, table_of, with_mean
from skpatchcore.evaluation.presets import METHODS, PRESETS, default_resolution, make_detector
from skpatchcore.evaluation.runs import run_evaluation
from skpatchcore.evaluation.storage import Results, dataset_digest, settings_of
from skpatchcore.evaluation.studies import ABLATIONS, ablation, ablation_runs, low_shot_curve, named_grid, plain_runs
from skpatchcore.images.reading import load_image
from skpatchcore.metrics import aupimo_scores, aupro_score, f1_max_score, pixel_average_precision_score
from skpatchcore.reports import write_evaluation_report, write_worst
from tests.factories import detector
from tests.reports.pages import cards_of

# Some masks of the data are empty or full. Reading them warns.
pytestmark = pytest.mark.filterwarnings("ignore:the mask")


@pytest.fixture(scope="module")
def root(parts, tmp_path_factory):
    """Two categories on disk, each with three defective images. The mask of one of them is empty."""
    train, good, bad = parts
    top = tmp_path_factory.mktemp("data")
    for category, brightness in (("bright", 1.0), ("dark", 0.6)):
        images = {f"train/good/{i}.png": image for i, image in enumerate(train)}
        images |= {f"test/good/{i}.png": image for i, image in enumerate(good)}
        images |= {f"test/spot/{i}.png": np.roll(bad[0], 6 * i, axis=1) for i in range(3)}
        for i in range(3):
            mask = np.zeros((48, 64))
            if i < 2:
                mask[16:28, 20 + 6 * i : 34 + 6 * i] = 1
            images[f"ground_truth/spot/{i}_mask.png"] = mask / brightness
        for name, image in images.items():
            path = top / category / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image * brightness * 255).round().astype(np.uint8)).save(path)
    return top


def test_evaluate_returns_the_values_of_the_single_functions(root):
    table = evaluate(detector(), root)
    assert table.index.tolist() == ["bright", "dark"]
    assert table.index.name == "category"
    for name, folder in load_categories(root).items():
        fitted = detector().fit(folder.train_paths)
        scores, maps = fitted.score_and_segment(folder.test_paths)
        bad, row = folder.test_labels == -1, table.loc[name]
        assert row["image_auroc"] == roc_auc_score(bad, -scores)
        assert row["image_ap"] == average_precision_score(bad, -scores)
        best = f1_max_score(folder.test_labels, scores)
        assert (row["image_f1_max"], row["misclassified"]) == (best.f1, best.n_misclassified)
        # the image with an empty mask is included in image metrics only
        masks = [np.zeros((48, 64), bool) if m is None else load_image(m, 0)[..., 0] > 0.5 for m in folder.test_masks]
        counted = [i for i in range(7) if not bad[i] or masks[i].any()]
        assert (len(counted), row["n_masks"], row["n_defective"], row["n_good"], row["n_train"]) == (6, 2, 3, 4, 10)
        masks, maps = [masks[i] for i in counted], [maps[i] for i in counted]
        assert row["aupro"] == pytest.approx(aupro_score(masks, maps), abs=1e-12)
        assert row["aupro_05"] == pytest.approx(aupro_score(masks, maps, max_fpr=0.05), abs=1e-12)
        assert row["pixel_ap"] == pixel_average_precision_score(masks, maps)
        assert row["aupimo"] == np.nanmean(aupimo_scores(masks, maps))
        flagged = fitted.predict(folder.test_paths) == -1
        assert (row["good_flagged"], row["defects_found"]) == (flagged[~bad].mean(), flagged[bad].mean())
        assert row["bank_rows"] == len(fitted.memory_bank_)
        stages = [c for c in table if c.startswith("fit_") and c != "fit_seconds"]
        assert row["fit_seconds"] == pytest.approx(row[stages].sum())
        assert {"fit_network", "fit_selection", "fit_calibration"} <= set(stages)
    means = with_mean(table)
    assert means.loc["mean", "aupro"] == pytest.approx(table["aupro"].mean())
    assert means.loc["mean", "misclassified"] == table["misclassified"].sum()
    assert len(with_mean(table[:1])) == 1


def test_evaluate_accepts_arrays_groups_and_other_detectors():
    task = make_textures("brick", n_views=2)
    model = detector()
    table = evaluate(model, {"brick": task})
    assert not hasattr(model, "memory_bank_")
    grouped = detector().fit(task.train_images, groups=task.train_groups)
    result, fitted = evaluate_category(model, "brick", task)
    np.testing.assert_array_equal(fitted.calibration_scores_, grouped.calibration_scores_)
    assert table.loc["brick", "n_masks"] == 32
    for baseline in (SPADEDetector(model.extractor), PaDiMDetector(model.extractor, random_state=0)):
        row = evaluate(baseline, task).iloc[0]
        assert 0.3 < row["image_auroc"] <= 1
        assert np.isnan(row["bank_rows"])
    no_threshold = evaluate(detector(calibration=None), task).iloc[0]
    assert np.isnan(no_threshold["good_flagged"])
    assert no_threshold["image_auroc"] == result.row["image_auroc"]


def test_evaluate_compares_pixels_at_the_resolution_of_the_network(root):
    extractor = TorchFeatureExtractor("resnet18", weights=None, image_size=24, crop_size=(16, 24))
    own, seen = (evaluate(detector(extractor=extractor), root, resolution=r) for r in ("own", "seen"))
    assert (own["image_auroc"] == seen["image_auroc"]).all()
    # The spots are in rows 16 to 28 of 48. The crop (rows 8 to 40) contains all defects and fewer good pixels.
    folder = load_categories(root)["bright"]
    fitted = detector(extractor=extractor).fit(folder.train_paths)
    masks, maps = [], []
    for path, label, mask in zip(folder.test_paths, folder.test_labels, folder.test_masks, strict=True):
        pixels = np.zeros((48, 64), bool) if mask is None else load_image(mask, 0)[..., 0] > 0.5
        if label == 1 or pixels.any():
            anomaly_map = fitted.segment([path])[0]
            # a pixel of the network is the mean of 2 × 2 pixels of the image
            maps.append(sum(anomaly_map[8 + i : 40 : 2, 8 + j : 56 : 2] for i in (0, 1) for j in (0, 1)) / 4)
            masks.append(pixels[9:40:2, 9:56:2])
    assert seen.loc["bright", "aupro"] == pytest.approx(aupro_score(masks, maps), abs=1e-3)
    grids = np.random.default_rng(0).random((6, 4, 4, 3))
    features = replace(
        make_textures("brick"), train_images=grids, train_groups=None, test_images=np.repeat(grids, 8, 0)
    )
    with pytest.raises(ValueError, match="needs a detector with a TorchFeatureExtractor"):
        evaluate(PatchCoreDetector("precomputed"), features, resolution="seen")
    with pytest.raises(ValueError, match="resolution='big'"):
        evaluate(detector(), root, resolution="big")


def test_evaluate_refuses_missing_kinds_of_images_and_returns_nan_without_masks(root):
    folder = load_categories(root)["dark"]
    only = np.flatnonzero(folder.test_labels == -1)
    no_good = replace(
        folder, **{name: getattr(folder, f"{name}")[only] for name in ("test_paths", "test_labels", "test_defects",
                                                                       "test_masks")},
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"category 'dark' has no good \(\+1\) test images"):
        evaluate(detector(), {"bright": folder, "dark": no_good})
    with pytest.raises(TypeError, match="data set 'x' is a list"):
        evaluate(detector(), {"x": [1, 2]})
    unmasked = replace(folder, test_masks=np.full(7, None, object))
    row = evaluate(detector(), unmasked).iloc[0]
    assert row[["pixel_auroc", "aupro", "aupimo"]].isna().all()
    assert row["n_masks"] == 0
    assert row["image_auroc"] > 0


@pytest.mark.parametrize("resolution", ["own", "seen"])
def test_evaluate_refuses_a_mask_of_another_size(root, tmp_path, resolution):
    folder = load_categories(root, ["bright"])["bright"]
    masks = folder.test_masks.copy()
    masks[-1] = str(tmp_path / "mask.png")
    Image.fromarray(np.full((64, 48), 255, np.uint8)).save(masks[-1])
    with pytest.raises(ValueError, match=r"mask\.png' has shape \(64, 48\), but the image has shape \(48, 64\)"):
        evaluate(detector(), replace(folder, test_masks=masks), resolution=resolution)


def test_evaluate_refuses_ensembles_with_different_views_at_seen_resolution(root):
    members = [("a", detector()), ("b", detector(n_neighbors=1))]
    categories = load_categories(root, ["bright"])
    own, seen = (evaluate(PatchCoreEnsemble(members), categories, resolution=r) for r in ("own", "seen"))
    assert own["aupro"].iloc[0] == pytest.approx(seen["aupro"].iloc[0])
    cropped = detector().set_params(extractor__crop_size=32)
    with pytest.raises(ValueError, match="members of the ensemble see different parts"):
        evaluate(PatchCoreEnsemble([("a", detector()), ("b", cropped)]), categories, resolution="seen")


def test_evaluate_returns_nan_bytes_for_a_detector_that_cannot_be_pickled(root):
    extractor = TorchFeatureExtractor(lambda: resnet18(), weights="DEFAULT", image_size=None, crop_size=None)
    row = evaluate(detector(extractor=extractor), {"bright": str(root / "bright")}).iloc[0]
    assert np.isnan(row["bytes"])


def test_pickled_bytes_equals_the_size_of_the_file(tmp_path, parts):
    fitted = detector().fit(parts[0])
    joblib.dump(fitted, tmp_path / "model.joblib")
    assert pickled_bytes(fitted) == pytest.approx((tmp_path / "model.joblib").stat().st_size, rel=0.01)


def test_low_shot_curve_draws_images_per_repetition(root):
    table = low_shot_curve(detector(), root, [1, 3, 99], n_repeats=2)
    assert table.groupby(["category", "shots"]).size().to_dict() == {
        (category, n): 2 for category in ("bright", "dark") for n in (1, 3)
    }
    assert (table["n_train"] == table["shots"]).all()
    assert table.loc[table["shots"] == 1, "good_flagged"].isna().all()
    again = low_shot_curve(detector(), root, [3], n_repeats=2)
    pd.testing.assert_series_equal(
        again["image_auroc"], table.loc[table["shots"] == 3, "image_auroc"].reset_index(drop=True)
    )
    alone = low_shot_curve(detector(), load_categories(root, ["dark"]), [3], n_repeats=2)
    np.testing.assert_array_equal(alone["image_auroc"], again.loc[again["category"] == "dark", "image_auroc"])
    for n in (0, 11):
        with pytest.raises(ValueError, match=rf"shots=\[{n}\]: expected numbers from 1 to 10"):
            low_shot_curve(detector(), root, [n])


@pytest.mark.parametrize("calibration", [0.2, 3, KFold(3), "leave-one-out", None])
def test_low_shot_curve_has_no_threshold_with_too_few_images(root, calibration):
    categories = load_categories(root, ["bright"])
    table = low_shot_curve(detector(calibration=calibration), categories, [1, 2, 4], n_repeats=1)
    can = {1: False, 2: calibration in (0.2, "leave-one-out"), 4: calibration is not None}
    assert table["good_flagged"].notna().tolist() == [can[n] for n in (1, 2, 4)]
    task = make_textures("brick", n_views=2)
    one_part = replace(task, train_images=task.train_images[:2], train_groups=task.train_groups[:2])
    assert low_shot_curve(detector(), one_part, [2], n_repeats=1)["good_flagged"].isna().all()


def test_ablation_evaluates_each_setting(root):
    categories = load_categories(root, ["bright"])
    table = ablation(detector(), categories, named_grid("patch_size", detector()))
    assert table["extractor__patch_size"].tolist() == [1, 3, 5, 7, 9]
    alone = evaluate(detector().set_params(extractor__patch_size=5), categories)
    assert table["aupro"][2] == alone["aupro"].iloc[0]
    layers = named_grid("layers", detector())["extractor__layers"]
    assert ("layer2", "layer3") in layers
    assert len(layers) == len(set(layers)) == 9
    other = detector(extractor=TorchFeatureExtractor("densenet201", weights=None))
    assert len(named_grid("layers", other)["extractor__layers"]) == 3
    samplers = ablation(detector(), categories, {"sampler": named_grid("sampler", detector())["sampler"][:2]})
    assert samplers["sampler"].tolist() == ["GreedyCoresetSampler(0.1)", "RandomSampler(0.1)"]
    unlike = [GreedyCoresetSampler(0.1, n_projections=n) for n in (8, 16)]
    table = ablation(detector(), categories, {"sampler": unlike})
    assert table["sampler"].nunique() == 2
    assert len({run.name for run in ablation_runs(detector(), categories, {"sampler": [unlike[0]] * 2})}) == 2
    assert named_grid("layers", PatchCoreDetector())["extractor__layers"][0] == ("layer1",)
    with pytest.raises(ValueError, match="'colour'"):
        named_grid("colour", detector())
    assert set(ABLATIONS) == {"patch_size", "layers", "stride", "sampler"}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("method", METHODS)
def test_make_detector_returns_the_settings_of_each_preset(preset, method):
    parameters = make_detector(preset, method, random_state=3).get_params()
    if method in ("autoencoder", "gan"):
        assert parameters["extractor__image_size"] == (128, 128)
    elif preset == "paper-video":
        assert parameters["extractor__backbone"] == "wide_resnet50_2"
        assert parameters["extractor__layers"] == ("layer3", "layer4")
        assert (parameters["extractor__image_size"], parameters["extractor__crop_size"]) == ((256, 256), None)
        assert default_resolution(preset) == "seen"
    elif preset in ("default", "offline"):
        assert parameters["extractor__backbone"] == "efficientnet_lite2"
        assert parameters["extractor__image_size"] == (256 if preset == "default" else (224, 224))
        assert parameters["extractor__crop_size"] is None
        assert default_resolution(preset) == "own"
    else:
        assert (parameters["extractor__image_size"], parameters["extractor__crop_size"]) == (256, 224)
        assert (parameters["extractor__n_channels"], parameters["extractor__patch_size"]) == (1024, 3)
        assert default_resolution(preset) == "seen"
        explicit = TorchFeatureExtractor(
            "wide_resnet50_2", weights="IMAGENET1K_V1", image_size=256, crop_size=224, n_channels=1024, device="cpu"
        )
        made = make_detector(preset, method, device="cpu").extractor
        assert made.get_params() == explicit.set_params(device=made.device).get_params()
        assert make_detector(preset, method, crop_size=None).extractor.crop_size is None
    if method == "patchcore":
        assert parameters["sampler__ratio"] == PRESETS[preset]
    assert parameters["random_state"] == 3
    with pytest.raises(ValueError, match="preset='paper-2'"):
        make_detector("paper-2")


def test_results_are_loaded_only_with_the_same_settings(root, tmp_path):
    run = next(plain_runs(detector(), load_categories(root)))
    result, _ = evaluate_category(run.detector, run.category, run.dataset)
    results, settings = Results(tmp_path), settings_of(run, "own")
    assert results.load(run, settings) is None
    results.keep(run, settings, result, {"made": "here"})
    loaded, provenance = results.load(run, settings)
    assert provenance == {"made": "here"}
    pd.testing.assert_frame_equal(table_of([loaded]), table_of([result]))
    np.testing.assert_array_equal(loaded.scores, result.scores)
    np.testing.assert_array_equal(loaded.pro, result.pro)
    assert (loaded.paths == result.paths).all()
    # parameters that change the result are settings; parameters that change only the time are not
    other = replace(run, detector=detector(n_neighbors=3))
    with pytest.raises(ValueError, match=r"made with other settings \(n_neighbors: 9 instead of 3\)"):
        results.load(other, settings_of(other, "own"))
    assert Results(tmp_path, overwrite=True).load(other, settings_of(other, "own")) is None
    faster = replace(run, detector=detector().set_params(extractor__batch_size=1, verbose=1))
    assert settings_of(faster, "own") == settings
    weights = tmp_path / "weights.pth"
    digests = []
    for seed in (0, 1):  # different weights in a file of the same name
        torch.manual_seed(seed)
        torch.save(resnet18().state_dict(), weights)
        again = replace(run, detector=detector().set_params(extractor__weights=str(weights)))
        digests.append(settings_of(again, "own")["weights_digests"])
    assert digests[0] != digests[1]
    (tmp_path / "bright" / "all" / "result.json").write_text('{"settings": {')
    assert results.load(run, settings) is None


def test_dataset_digest_depends_on_files_and_arrays(root, tmp_path):
    folders = load_categories(root)
    assert dataset_digest(folders["bright"]) == dataset_digest(load_categories(root)["bright"])
    assert dataset_digest(folders["bright"]) != dataset_digest(folders["dark"])
    assert dataset_digest(make_textures()) != dataset_digest(make_textures(random_state=1))


@pytest.mark.filterwarnings("ignore:contamination")
def test_evaluate_command_writes_tables_provenance_and_report(root, tmp_path, capsys, monkeypatch):
    out = tmp_path / "results"
    words = ["evaluate", str(root), "-o", str(out), "--ratio", "0.05", "--preset", "offline",
             "--shots", "2", "5", "--repeats", "2", "--ablate", "patch_size",
             "--cache", str(tmp_path / "cache")]  # fmt: skip
    assert main([*words, "--categories", "bright", "--quiet"]) == 0
    first = json.loads((out / "results.json").read_text())
    assert [run["category"] for run in first["runs"]] == ["bright"]
    provenance = first["runs"][0]["provenance"]
    expected = TorchFeatureExtractor("efficientnet_lite2").fit().weights_digest_
    assert (provenance["backbone"], provenance["weights_digest"]) == ("efficientnet_lite2", expected)
    assert {"torch", "sklearn", "skpatchcore", "python"} <= set(provenance["versions"])
    settings = first["runs"][0]["settings"]
    assert (settings["parameters"]["random_state"], settings["resolution"]) == (0, "own")
    made = (out / "runs/bright/all/result.json").stat().st_mtime_ns

    # the second category is added, and the first is not computed again
    assert main(words) == 0
    assert (out / "runs/bright/all/result.json").stat().st_mtime_ns == made
    shown = capsys.readouterr().out
    assert "mean" in shown
    assert "low-shot" in shown
    table = pd.read_csv(out / "results.csv", index_col="category")
    assert table.index.tolist() == ["bright", "dark", "mean"]
    intervals = pd.read_csv(out / "intervals.csv", index_col=["category", "metric"])
    assert {"bright", "dark"} == set(intervals.index.get_level_values("category"))
    assert intervals.loc[("dark", "image_auroc"), "value"] == pytest.approx(table.loc["dark", "image_auroc"])
    assert len(pd.read_csv(out / "low-shot.csv")) == 8
    assert pd.read_csv(out / "patch_size.csv")["extractor__patch_size"].tolist() == [1, 3, 5, 7, 9] * 2
    report = (out / "report.html").read_text(encoding="utf-8")
    assert report.count('<figure class="chart">') == 2 * 3 + 3 + 3  # two categories and two studies
    assert len(cards_of(out / "report.html")) == 2 * (3 + 4)
    assert "http://" not in report.replace("http://www.w3.org", "")

    assert main([*words, "--seed", "1"]) == 1
    assert "made with other settings (random_state: 0 instead of 1)" in capsys.readouterr().err
    assert main([*words[:8], "--categories", "dark", "--quiet"]) == 0
    assert not (out / "low-shot.csv").exists()  # a table of another run must not remain
    for wrong in (["--shots", "99"], ["--method", "padim", "--ablate", "sampler"], ["--method", "spade"]):
        assert main([*words[:8], "--overwrite", "--quiet", *wrong]) == 1
        assert (out / "runs/bright/all/result.json").stat().st_mtime_ns == made
    assert main(["evaluate", str(root), "-o", str(out), "--shots", "0"]) == 1
    assert main(["evaluate", str(root / "bright" / "test"), "-o", str(out)]) == 1


def test_run_evaluation_resumes_and_writes_its_report(root, tmp_path):
    categories = load_categories(root)
    drawn = []

    def draw(result, fitted, dataset, folder):
        drawn.append(result.category)
        return write_worst(result, fitted, dataset, folder, n=1)

    first = run_evaluation(detector(), {"dark": categories["dark"]}, tmp_path, draw=draw)
    assert first.table.index.tolist() == ["dark"]
    both = run_evaluation(detector(), categories, tmp_path, draw=draw, shots=[2], n_repeats=1)
    assert drawn == ["dark", "bright"]
    assert both.table.index.tolist() == ["bright", "dark", "mean"]
    pd.testing.assert_series_equal(both.table.loc["dark"], first.table.loc["dark"], check_dtype=False)
    assert both.studies["low-shot"]["shots"].tolist() == [2, 2]
    assert sorted(path.name for path in tmp_path.glob("*.*")) == [
        "images.csv", "intervals.csv", "low-shot.csv", "results.csv", "results.json",
    ]  # fmt: skip
    again = run_evaluation(detector(), categories, tmp_path, shots=[2], n_repeats=1)
    pd.testing.assert_frame_equal(again.table, both.table)
    page = write_evaluation_report(again, "parts")
    assert page == tmp_path / "report.html"
    text = page.read_text(encoding="utf-8")
    assert "parts, 2 categories" in text
    assert "PatchCoreDetector" in text
    assert len(cards_of(page)) == 4
    with pytest.raises(ValueError, match="made with other settings"):
        run_evaluation(detector(n_neighbors=1), categories, tmp_path)
    with pytest.raises(ValueError, match="n_repeats=0"):
        run_evaluation(detector(), categories, tmp_path, n_repeats=0)
