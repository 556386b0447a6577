"""Test that every part of the package accepts the outputs of the other parts, in memory and read back from files."""

from __future__ import annotations

import copy
import io
import pickle
import warnings

import joblib
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import roc_auc_score

from skpatchcore import (
    AnomalyMapDisplay,
    AutoencoderDetector,
    CoresetDisplay,
    DN2Detector,
    ExactIndex,
    GANDetector,
    GreedyCoresetSampler,
    MahalanobisDetector,
    OneClassSplit,
    PaDiMDetector,
    PatchCoreDetector,
    PatchCoreEnsemble,
    PixelExtractor,
    ScoreHistogramDisplay,
    SPADEDetector,
    evaluate,
    load,
    save,
)
from skpatchcore.datasets import load_image_folder, make_textures, read_mask
from skpatchcore.display import outline_mask, overlay_anomaly_map
from skpatchcore.evaluation import run_evaluation, with_mean
from skpatchcore.evaluation.category import evaluate_category
from skpatchcore.images.reading import load_image
from skpatchcore.metrics import aupro_score, pixel_metrics, pixel_roc_auc_score
from skpatchcore.model_selection import PixelScorer, image_average_precision_scorer, image_roc_auc_scorer
from skpatchcore.reports import (
    read_predictions,
    write_evaluation_report,
    write_prediction_report,
    write_predictions,
    write_worst,
)
from skpatchcore.reports.evaluation import category_charts
from skpatchcore.reports.inspection import InspectedPart
from tests import factories

mpl.use("Agg")


class Blocks(TransformerMixin, BaseEstimator):
    """A fast extractor: mean and standard deviation of blocks of 8 × 8 pixels."""

    def fit(self, X, y=None):
        return self

    def transform(self, X):
        grids = []
        for i, image in enumerate(X):
            pixels = load_image(image, i).mean(axis=2)
            height, width = (side // 8 for side in pixels.shape)
            blocks = pixels[: 8 * height, : 8 * width].reshape(height, 8, width, 8)
            grids.append(np.stack([blocks.mean(axis=(1, 3)), blocks.std(axis=(1, 3))], -1).astype(np.float32))
        return np.stack(grids) if len({grid.shape for grid in grids}) == 1 else grids


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Write images of good parts, images of parts with a dark spot, and their masks; return the loaded data set."""
    rng, top = np.random.default_rng(0), tmp_path_factory.mktemp("data")

    def put(name, pixels):
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)

    for i in range(12):
        for part in ("train/good", "test/good", "test/dark"):
            pixels = (rng.normal(0.6, 0.03, (40, 48, 3)).clip(0, 1) * 255).astype(np.uint8)
            pixels[8:24, 16:32] //= 1 + 9 * (part == "test/dark")
            if part == "train/good" or i < 4:
                put(f"{part}/{i}.png", pixels)
        if i < 4:
            put(f"ground_truth/dark/{i}_mask.png", np.pad(np.full((16, 16), 255, np.uint8), ((8, 16), (16, 16))))
    return load_image_folder(top)


def made(name):
    """Return a new detector of the kind `name`, not fitted."""
    return {
        "PatchCore": lambda: PatchCoreDetector(Blocks(), sampler=GreedyCoresetSampler(0.5), random_state=0),
        "approximate": lambda: PatchCoreDetector(Blocks(), index="pynndescent", random_state=0),
        "PaDiM": lambda: PaDiMDetector(Blocks(), n_channels=2, random_state=0),
        "SPADE": lambda: SPADEDetector(Blocks(), random_state=0),
        "Mahalanobis": lambda: MahalanobisDetector(Blocks(), random_state=0),
        "DN2": lambda: DN2Detector(Blocks(), random_state=0),
        "autoencoder": lambda: AutoencoderDetector(PixelExtractor(image_size=(16, 32)), **TRAINED),
        "GAN": lambda: GANDetector(PixelExtractor(image_size=(16, 32)), **TRAINED),
        "ensemble": lambda: PatchCoreEnsemble(
            [(n, PatchCoreDetector(Blocks(), n_neighbors=k, random_state=0)) for n, k in (("a", 1), ("b", 3))]
        ),
    }[name]()


NAMES = ["PatchCore", "approximate", "PaDiM", "SPADE", "ensemble", "Mahalanobis", "DN2", "autoencoder", "GAN"]
WITHOUT_MAPS = ("Mahalanobis", "DN2")
TRAINED = {"max_epochs": 2, "patience": 2, "width": 4, "latent_size": 8, "random_state": 0}


@pytest.fixture(scope="module")
def fitted(data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the training of the test is short
        warnings.filterwarnings("ignore", message=".*all channels are one level")
        return {name: made(name).fit(data.train_paths) for name in NAMES}


def through_csv(frame):
    """Write the table as CSV, and return the table that pandas reads back."""
    text = io.StringIO()
    frame.to_csv(text, index=False)
    return pd.read_csv(io.StringIO(text.getvalue()))


FRAMES = {
    "to_frame": lambda frame: frame,
    "from a CSV file": through_csv,
    "from a CSV file, empty texts": lambda frame: pd.read_csv(
        io.StringIO(frame.to_csv(index=False)), keep_default_na=False
    ),
    "object columns": lambda frame: frame.astype(object),
    "pandas.NA": lambda frame: frame.convert_dtypes(),
    "pickled": lambda frame: pickle.loads(pickle.dumps(frame)),
    "shuffled index": lambda frame: frame.set_axis(range(100, 100 + len(frame))[::-1]),
}


@pytest.mark.parametrize("form", FRAMES.values(), ids=FRAMES)
def test_columns_of_to_frame_are_accepted_everywhere(form, data, fitted, tmp_path):
    frame = form(data.to_frame())
    train, test = frame[frame["split"] == "train"], frame[frame["split"] == "test"]
    known = fitted["PatchCore"]
    detector = made("PatchCore").fit(train["path"], train["label"])
    np.testing.assert_array_equal(detector.score_samples(test["path"]), known.score_samples(data.test_paths))
    np.testing.assert_array_equal(detector.predict(test["path"]), known.predict(data.test_paths))
    both = made("PatchCore").fit(frame["path"], frame["label"])  # fit leaves out anomalous images
    assert both.calibration_scores_.shape == (16,)
    for scorer in (image_roc_auc_scorer, image_average_precision_scorer):
        assert scorer(detector, test["path"], test["label"]) == scorer(known, data.test_paths, data.test_labels)
    expected = PixelScorer()(known, data.test_paths, data.test_labels, masks=data.test_masks)
    for masks in (test["mask"], test["mask"].tolist(), test["mask"].to_numpy(object)):
        assert PixelScorer()(detector, test["path"], test["label"], masks=masks) == expected
    assert len(list(OneClassSplit(2).split(frame["path"], frame["label"]))) == 2
    detector.recalibrate(train["path"])
    display = AnomalyMapDisplay.from_estimator(detector, test["path"], masks=test["mask"])
    assert len(display.axes_) == len(test)
    ScoreHistogramDisplay.from_estimator(detector, test["path"], test["label"])
    assert [p.path for p in write_predictions(detector, test["path"], tmp_path)] == list(data.test_paths)


def test_pixel_scorer_refuses_anomalous_image_with_missing_mask_of_any_kind(data, fitted):
    test = data.to_frame().query("split == 'test'")
    for missing in (None, np.nan, pd.NA, ""):
        masks = [missing] * len(test)
        with pytest.raises(ValueError, match=r"masks\[0\] is missing although image 0 is anomalous"):
            PixelScorer()(fitted["PatchCore"], test["path"], test["label"], masks=masks)


CONTAINERS = {
    "array of objects": lambda paths: paths,
    "array of str": lambda paths: paths.astype(str),
    "list": list,
    "tuple": tuple,
    "Series": pd.Series,
    "string Series": lambda paths: pd.Series(paths, dtype="string"),
    "arrays": lambda paths: np.stack([load_image(path, 0) for path in paths]),
    "list of arrays": lambda paths: [load_image(path, 0) for path in paths],
    "PIL": lambda paths: [Image.open(path) for path in paths],
}


@pytest.mark.parametrize("form", CONTAINERS.values(), ids=CONTAINERS)
def test_images_in_every_container_give_the_same_results(form, data, fitted):
    train, test = form(data.train_paths), form(data.test_paths)
    detector, known = made("PatchCore").fit(train), fitted["PatchCore"]
    np.testing.assert_allclose(detector.memory_bank_, known.memory_bank_)
    np.testing.assert_allclose(detector.score_samples(test), known.score_samples(data.test_paths))
    results = list(detector.iter_results(test))
    assert [result.label for result in results] == known.predict(data.test_paths).tolist()
    assert len(AnomalyMapDisplay.from_estimator(detector, test).axes_) == len(test)


def memory_mapped(detector, folder):
    """Return the detector read back from a new joblib file, with its arrays as memory maps."""
    path = folder / f"{len(list(folder.iterdir()))}.joblib"  # a mapped file must not be overwritten
    joblib.dump(detector, path)
    return joblib.load(path, mmap_mode="r")


def saved(detector, folder):
    """Return the detector read back from a model file."""
    save(detector, folder / "d.skops")
    return load(folder / "d.skops", trusted=[f"{Blocks.__module__}.Blocks"])


def from_joblib(detector, folder):
    """Return the detector read back from a compressed joblib file."""
    joblib.dump(detector, folder / "d.joblib", compress=3)
    return joblib.load(folder / "d.joblib")


FORMS = {
    "itself": lambda detector, folder: detector,
    "saved": saved,
    "pickled": lambda detector, folder: pickle.loads(pickle.dumps(detector)),
    "from joblib": from_joblib,
    "memory-mapped": memory_mapped,
    "copied": lambda detector, folder: copy.deepcopy(detector),
    "saved after a memory map": lambda detector, folder: saved(memory_mapped(detector, folder), folder),
    "memory-mapped after saving": lambda detector, folder: memory_mapped(saved(detector, folder), folder),
}


@pytest.mark.filterwarnings("ignore:.*To load the file, pass trusted")
@pytest.mark.filterwarnings("ignore:.*all channels are one level")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_copied_or_reloaded_detector_supports_every_method_and_function(name, form, data, fitted, tmp_path):
    known = fitted[name]
    detector = form(known, tmp_path)
    X = data.test_paths
    methods = ["score_samples", "decision_function", "predict", "p_values"]
    for method in methods if name in WITHOUT_MAPS else [*methods, "segment", "predict_mask"]:
        np.testing.assert_array_equal(getattr(detector, method)(X), getattr(known, method)(X))
    if name not in WITHOUT_MAPS:
        pd.testing.assert_frame_equal(detector.regions(X), known.regions(X))
    # A detector of every form can be written again, as a model file and with joblib.
    np.testing.assert_array_equal(saved(detector, tmp_path).score_samples(X), known.score_samples(X))
    np.testing.assert_array_equal(memory_mapped(detector, tmp_path).score_samples(X), known.score_samples(X))
    detector.__sklearn_tags__()
    assert detector._repr_html_()
    if name not in WITHOUT_MAPS:
        AnomalyMapDisplay.from_estimator(detector, X[:1])
    ScoreHistogramDisplay.from_estimator(detector, X)
    written = write_predictions(detector, X, tmp_path / "out")
    assert [p.score for p in written] == known.score_samples(X).tolist()
    write_prediction_report(written, detector, tmp_path / "out")
    if form is not FORMS["itself"]:
        detector.recalibrate(data.train_paths[:6])
        assert len(detector.calibration_scores_) == 6
        np.testing.assert_array_equal(saved(detector, tmp_path).predict(X), detector.predict(X))
    np.testing.assert_array_equal(clone(detector).fit(data.train_paths).score_samples(X), known.score_samples(X))


def scores_in_a_worker(detector, X, path):
    """Save the detector in a worker process; return its scores and the detector."""
    save(detector, path)
    return detector.score_samples(X), detector


@pytest.mark.filterwarnings("ignore:.*To load the file, pass trusted")
def test_worker_processes_receive_save_and_return_detectors(data, tmp_path):
    detector = PatchCoreDetector("precomputed", random_state=0).fit(Blocks().transform(data.train_paths))
    X = Blocks().transform(data.test_paths)
    work = joblib.delayed(scores_in_a_worker)
    given = joblib.Parallel(2, max_nbytes=100)(  # larger arrays become memory maps
        work(detector, X, tmp_path / f"{i}.skops") for i in range(2)
    )
    for i, (scores, back) in enumerate(given):
        for same in (scores, back.score_samples(X), load(tmp_path / f"{i}.skops").score_samples(X)):
            np.testing.assert_array_equal(same, detector.score_samples(X))


@pytest.mark.parametrize("sizes", ["one size", "several sizes"])
@pytest.mark.parametrize("kind", ["list", "as it is", "memory map", "joblib"])
def test_extractor_features_are_accepted_as_precomputed(sizes, kind, data, tmp_path):
    images = [load_image(path, 0)[: 40 - 8 * (sizes == "several sizes" and i % 2)]
              for i, path in enumerate(data.train_paths)]  # fmt: skip
    features = Blocks().transform(images)
    whole = PatchCoreDetector(Blocks(), random_state=0).fit(images)
    if kind == "list":
        features = list(features)
    elif kind == "memory map" and sizes == "one size":
        np.save(tmp_path / "X.npy", features)
        features = np.load(tmp_path / "X.npy", mmap_mode="r")
    elif kind == "joblib":
        joblib.dump(features, tmp_path / "X.joblib")
        features = joblib.load(tmp_path / "X.joblib", mmap_mode="r")
    detector = PatchCoreDetector("precomputed", random_state=0).fit(features)
    np.testing.assert_allclose(detector.score_samples(features), whole.score_samples(images), rtol=1e-6)
    assert saved(detector, tmp_path).offset_ == detector.offset_
    # Rows of the memory bank are rows of the features. Rows are also valid features of images with one patch each.
    rows = np.concatenate([grid.reshape(-1, 2) for grid in features])
    np.testing.assert_array_equal(rows[detector.sampler_.component_indices_], detector.memory_bank_)
    sampler = GreedyCoresetSampler(5, random_state=0).fit(rows)
    again = GreedyCoresetSampler(3, start=0, random_state=0).fit(sampler.components_)
    np.testing.assert_array_equal(sampler.components_[again.component_indices_], again.components_)
    distances, indices = ExactIndex().fit(sampler.components_).kneighbors(rows[:4], 2)
    assert distances.shape == indices.shape == (4, 2)
    assert np.isfinite(PatchCoreDetector("precomputed", random_state=0).fit(rows).score_samples(rows[:3])).all()
    CoresetDisplay.from_estimator(detector, features)


@pytest.mark.parametrize("same_size", [True, False])
def test_maps_and_masks_are_accepted_by_metrics_displays_and_scorers(same_size, data, fitted):
    images = [load_image(path, 0) for path in data.test_paths]
    if not same_size:
        images = [image[: 40 - 8 * (i % 2)] for i, image in enumerate(images)]
    detector = fitted["PatchCore"]
    maps, found = detector.segment(images), detector.predict_mask(images)
    masks = [read_mask(None if mask is None else mask, (40, 48))[: len(image)]
             for mask, image in zip(data.test_masks, images, strict=True)]  # fmt: skip
    assert isinstance(maps, np.ndarray) == same_size
    for these in (masks, list(found), [mask.astype(np.uint8) for mask in masks]):
        assert 0 <= pixel_roc_auc_score(these, maps) <= 1
        assert 0 <= aupro_score(these, maps) <= 1
        pixel_metrics(list(these), list(maps))
        PixelScorer()(detector, images, data.test_labels, masks=these)
        AnomalyMapDisplay.from_predictions(images, maps, masks=these, threshold=detector.pixel_offset_)
    for image, mask, anomaly_map in zip(images, found, maps, strict=True):
        outline_mask(image, mask)
        overlay_anomaly_map(image, anomaly_map, detector.pixel_offset_)
    results = list(detector.iter_results(iter(images)))
    assert pixel_roc_auc_score(masks, [result.anomaly_map for result in results]) == pixel_roc_auc_score(masks, maps)
    AnomalyMapDisplay.from_predictions([r.image for r in results], [r.anomaly_map for r in results])
    assert detector.predict([result.image for result in results]).tolist() == [result.label for result in results]


def test_regions_locate_peaks_in_maps_and_are_unchanged_by_a_csv_file(data, fitted):
    detector = fitted["PatchCore"]
    regions = detector.regions(data.test_paths)
    assert len(regions)
    again = through_csv(regions)
    pd.testing.assert_frame_equal(again, regions, check_exact=False)
    maps = detector.segment(data.test_paths[again["image"]])
    for anomaly_map, region in zip(maps, again.itertuples(), strict=True):
        assert anomaly_map[region.peak_row, region.peak_column] == pytest.approx(region.peak)
        assert (anomaly_map[region.top : region.bottom, region.left : region.right] > detector.pixel_offset_).any()


def test_written_predictions_are_accepted_by_reports_detectors_and_displays(data, fitted, tmp_path):
    detector = fitted["PatchCore"]
    written = write_predictions(detector, data.test_paths, tmp_path)
    read = read_predictions(tmp_path)
    assert [p._replace(inspected=InspectedPart()) for p in written] == read
    assert write_prediction_report(read, detector, tmp_path).is_file()
    table = pd.read_csv(tmp_path / "scores.csv")
    np.testing.assert_array_equal(detector.score_samples(table["path"]), table["score"])
    np.testing.assert_array_equal(detector.predict(table["path"]), table["label"])
    ScoreHistogramDisplay.from_predictions(
        table["score"], table["label"], offset=detector.offset_, calibration_scores=detector.calibration_scores_
    )
    assert roc_auc_score(data.test_labels, table["score"]) == 1
    assert [p.path for p in write_predictions(detector, table["path"], tmp_path)] == list(data.test_paths)
    with Image.open(tmp_path / table["map"][0]) as picture:
        assert np.isfinite(detector.score_samples([picture.copy()])).all()


@pytest.mark.filterwarnings("ignore:contamination")
def test_evaluation_results_are_accepted_by_reports_and_displays(data, tmp_path):
    first = run_evaluation(made("PatchCore"), data, tmp_path, draw=write_worst)
    again = run_evaluation(made("PatchCore"), data, tmp_path)
    pd.testing.assert_frame_equal(again.table, first.table)
    table = pd.read_csv(tmp_path / "results.csv", index_col="category")
    pd.testing.assert_frame_equal(table, first.table, check_dtype=False)
    assert with_mean(pd.concat([table, first.table.rename({"all": "other"})])).index[-1] == "mean"
    for finished in (*first.runs, *again.runs):
        result = finished.result
        assert all("<svg" in chart for chart in category_charts(result))
        ScoreHistogramDisplay.from_predictions(
            result.scores, result.labels, offset=result.offset, calibration_scores=result.calibration_scores
        )
        np.testing.assert_array_equal(
            made("PatchCore").fit(data.train_paths).score_samples(result.paths), result.scores
        )
    assert write_evaluation_report(again, "parts").is_file()
    result, detector = evaluate_category(made("PatchCore"), "all", data)
    assert write_worst(pickle.loads(pickle.dumps(result)), detector, data, tmp_path, n=1)


@pytest.mark.filterwarnings("ignore:contamination")
def test_texture_tasks_are_accepted_everywhere(tmp_path):
    task = make_textures("brick", n_views=2)
    detector = factories.detector("resnet18", sampler=GreedyCoresetSampler(0.05)).fit(
        task.train_images, groups=task.train_groups
    )
    maps = detector.segment(task.test_images[:20])
    assert np.isfinite(pixel_roc_auc_score(list(task.test_masks[:20]), list(maps)))
    PixelScorer()(detector, task.test_images[:20], task.test_labels[:20], masks=task.test_masks[:20])
    AnomalyMapDisplay.from_estimator(detector, task.test_images[:2], masks=task.test_masks[:2])
    assert pickle.loads(pickle.dumps(task)).test_labels.tolist() == task.test_labels.tolist()
    table = evaluate(PatchCoreDetector(Blocks(), random_state=0), {"brick": task})
    assert table.index.tolist() == ["brick"]


def test_recalibrate_without_images_keeps_the_thresholds(data, fitted):
    detector = copy.deepcopy(fitted["PatchCore"])
    before = detector.offset_, detector.pixel_offset_
    detector.recalibrate()
    assert (detector.offset_, detector.pixel_offset_) == before
    images = data.train_paths[detector.calibration_image_indices_]
    assert len(detector.recalibrate(images).calibration_scores_) == len(images)
