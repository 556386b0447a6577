"""write_predictions and read_predictions: the scores of images as a table on disk, with a heat map of each image."""

from __future__ import annotations

import csv
import math
import os
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from itertools import count, takewhile
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np

from skpatchcore._utils.ahead import Beside, n_cores
from skpatchcore._utils.names import escape_name, file_name, unescape_name
from skpatchcore.detectors import ImageResult
from skpatchcore.images.containers import as_image_sequence
from skpatchcore.images.kept import KeptPath
from skpatchcore.protocols import pixel_format_of
from skpatchcore.reports.heat_maps import HeatMap, reason_of, write_heat_map, write_picture_layers
from skpatchcore.reports.inspection import InspectedPart, inspected_part
from skpatchcore.reports.layers import Layers
from skpatchcore.reports.pictures import PictureFolder, remove_pictures
from skpatchcore.reports.pipelines import as_image_detector, detector_of

TABLE, REPORT = "scores.csv", "report.html"
# Start of the title of a page of predictions. A later run recognises the page by it.
REPORT_TITLE = "skpatchcore predict:"
COLUMNS = ["path", "score", "decision", "label", "p_value", "map", "problem"]
# Additional column of the table of a detector of several products.
PRODUCT = "product"
# Maximum size of the images and anomaly maps that wait to be drawn, and maximum number of threads that draw.
_MAX_BYTES, _MAX_THREADS = 64 * 2**20, 4


class Prediction(NamedTuple):
    """Score, label and pictures of one image, as returned by `write_predictions` and `read_predictions`.

    All values except `inspected` and `layers` are also in the table ``scores.csv``, which has one row per image.

    Attributes
    ----------
    path : str
        File of the image.
    score, decision, p_value : float
        Results of the detector's methods `score_samples`, `decision_function` and `p_values`, bigger = more normal. NaN
        if the image could not be scored. If the detector has no threshold, `decision` and `p_value` are NaN.
    label : int or None
        +1 if the image is normal, -1 if the image is anomalous or could not be scored. None if the image was scored by
        a detector without a threshold.
    picture : str or None
        File name of the heat map; None if the image could not be scored, if the heat map could not be written, or if
        the detector has no anomaly maps.
    problem : str
        Why the image could not be scored, or why it has no heat map.
    inspected : InspectedPart
        The part of the image that is inspected. Defects in other pixels are not found.
    layers : Layers or None
        Pictures for the report page, and regions of the anomaly map. None if the pictures were not written, or if the
        prediction was read from ``scores.csv``.
    product : str or None
        Product of the image, if the detector is a :class:`~skpatchcore.MultiProductDetector`. None if the image shows
        none of the products, or if it could not be scored.
    """

    path: str
    score: float
    decision: float
    label: int | None
    p_value: float
    picture: str | None
    problem: str = ""
    inspected: InspectedPart = InspectedPart()
    layers: Layers | None = None
    product: str | None = None

    @property
    def is_scored(self) -> bool:
        """Whether the image could be scored."""
        return not math.isnan(self.score)


def write_predictions(
    detector: Any,
    paths: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    *,
    on_prediction: Callable[[Prediction], Any] | None = None,
    layers: bool = False,
    products: str | Sequence[str | None] | None = None,
) -> list[Prediction]:
    r"""Score images, and write ``scores.csv`` and a heat map of each image.

    The heat maps are written by other threads while the network runs. Each row is written as soon as its heat map and
    the rows above it are written. An image that cannot be scored gets the score NaN and the label -1, and the table
    states the problem. An image without a heat map, because it could not be drawn or written, keeps its score, and the
    table states the problem.

    If the call is interrupted, e.g. by Ctrl-C, or if it raises an error, it first writes the heat maps and the rows of
    all images that wait to be drawn. Images of the batch that the detector scores at this time have no rows. A second
    interruption can lose rows.

    Parameters
    ----------
    detector : detector or Pipeline
        Fitted on images. The first steps of a pipeline get lists of paths.
    paths : sequence of paths
        The images, at least one.
    folder : path
        Folder of the files. It is created if it does not exist.
    on_prediction : callable or None, default=None
        Called with each prediction, e.g. to show progress.
    layers : bool, default=False
        Also write the pictures that :func:`write_prediction_report` shows, in the folder ``report_files``. If False,
        the report scores the images a second time to make these pictures.
    products : str, sequence of str, or None, default=None
        Products of the images, for a :class:`~skpatchcore.MultiProductDetector`. None recognises them.

    Returns
    -------
    list of Prediction
        In the order of `paths`.

    Raises
    ------
    ValueError
        If `paths` is empty, or a single path, or if `products` is given and the detector has no products.
    OSError
        If the folder or the table can't be written.

    See Also
    --------
    read_predictions : Reads the table.
    write_prediction_report : Writes a page of the predictions.

    Notes
    -----
    The table is UTF-8. In its texts, bytes of names that are not valid in the file system's encoding are written as
    ``\xe9``; :func:`read_predictions` returns the names as they were.

    Heat maps are named after their images, with as many folder names as are needed to distinguish the images of this
    call. Characters that a file system may refuse are written as ``%`` and two hexadecimal digits per byte. Names of
    more than 140 bytes are cut, and end in ``~`` and a hash. The columns ``path`` and ``map`` assign the maps to the
    images.

    Each image file is read and decoded once, unless the detector is a pipeline with its own first steps. Decoded images
    and anomaly maps that wait to be drawn take at most 64 MB, or the size of one image if it is larger. In addition,
    the decoded images of two batches are held: the batch that is scored, and the next batch, which is read meanwhile.
    These are 8 images with ``batch_size=4``. A :class:`~skpatchcore.MultiProductDetector` can hold a few more (up to 11
    were measured), and on CUDA, each thread that reads files holds one more.

    Files of an earlier call in the folder are removed first: the heat maps that its table lists, the report, and the
    pictures of the report. Other files are not removed.

    Examples
    --------
    >>> import csv, pathlib, tempfile
    >>> import numpy as np
    >>> from PIL import Image
    >>> from skpatchcore import PatchCoreDetector, TorchFeatureExtractor
    >>> from skpatchcore.reports import write_predictions
    >>> good = np.random.default_rng(0).integers(120, 130, (6, 64, 64, 3), dtype=np.uint8)
    >>> extractor = TorchFeatureExtractor("resnet18", weights=None, image_size=None)
    >>> detector = PatchCoreDetector(extractor, random_state=0).fit(good)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "part.png"
    ...     Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(path)
    ...     predictions = write_predictions(detector, [str(path)], pathlib.Path(folder) / "out")
    ...     sorted(file.name for file in (pathlib.Path(folder) / "out").iterdir())
    ['part.png', 'scores.csv']
    >>> predictions[0].label
    -1
    """
    has_products = hasattr(detector_of(detector), "for_product")
    if products is not None and not has_products:
        raise ValueError(f"products={products!r}: a {type(detector_of(detector)).__name__} has no products.")
    files = [os.fspath(path) for path in as_image_sequence(paths)]
    folder, pixel_format, detector = Path(folder), pixel_format_of(detector_of(detector)), as_image_detector(detector)
    folder.mkdir(parents=True, exist_ok=True)
    inputs = _files_in(folder, files)
    pictures = picture_names(files, taken=inputs)
    remove_earlier(folder, keep=inputs)
    layer_folder, threshold = PictureFolder(folder) if layers else None, detector.pixel_offset_
    predictions: list[Prediction] = []
    given = {} if products is None else {"products": products}
    with ExitStack() as stack:
        table = _Table(stack.enter_context((folder / TABLE).open("w", newline="", encoding="utf-8")), has_products)
        drawing = stack.enter_context(Beside(_n_threads(), _MAX_BYTES, table.write))

        def written(result: ImageResult, path: KeptPath, stem: str) -> Prediction:
            prediction = prediction_of(result, str(path))
            if result.anomaly_map is not None:
                target = folder / pictures[path]
                drawn = write_heat_map(result, target, threshold, pixel_format, layer_folder, stem)
                prediction = with_heat_map(prediction, drawn)
            elif layer_folder is not None and prediction.is_scored:
                layers = write_picture_layers(result, threshold, pixel_format, layer_folder, stem)
                prediction = prediction._replace(layers=layers)
            path.release()
            return prediction

        def finish(finished: Iterable[Prediction]) -> None:
            for prediction in finished:
                predictions.append(prediction)
                if on_prediction is not None:
                    on_prediction(prediction)

        kept = [KeptPath(path) for path in files]  # each file is read once, for the network and for its heat map
        for result in detector.iter_results(kept, on_error="flag", **given):
            path, has_map = kept[result.index], result.anomaly_map is not None
            stem = layer_folder.new_stem() if layer_folder is not None and result.error is None else ""
            n_bytes = path.n_bytes() + (np.asarray(result.anomaly_map).nbytes if has_map else 0)
            drawing.submit(partial(written, result, path, stem), n_bytes)
            del result
            finish(drawing.finished())
        finish(drawing.rest())
    return predictions


class _Table:
    """The table of predictions; each row is in the file when `write` returns."""

    def __init__(self, file: TextIO, has_products: bool):
        self._file, self._rows, self._has_products = file, csv.writer(file), has_products
        self._rows.writerow(columns_of(has_products))

    def write(self, prediction: Prediction) -> None:
        self._rows.writerow(cells_of(prediction, self._has_products))
        self._file.flush()


def _n_threads() -> int:
    """Return the number of threads that draw: few, because the network runs at the same time."""
    return max(1, min(_MAX_THREADS, n_cores() // 2))


def read_predictions(folder: str | os.PathLike[str]) -> list[Prediction]:
    """Read the table that :func:`write_predictions` wrote.

    Parameters
    ----------
    folder : path
        Folder of ``scores.csv``.

    Returns
    -------
    list of Prediction
        In the order of the table, with the paths as they were given. `inspected` is the whole image, and `layers` is
        None.

    Raises
    ------
    FileNotFoundError
        If there is no table.
    ValueError
        If the table was not written by :func:`write_predictions`, or is damaged.
    """
    file = Path(folder) / TABLE
    try:
        with file.open(newline="", encoding="utf-8") as content:
            return [
                Prediction(
                    unescape_name(row["path"]),
                    float(row["score"]),
                    float(row["decision"]),
                    int(row["label"]) if row["label"] else None,
                    float(row["p_value"] or "nan"),
                    row["map"] or None,
                    unescape_name(row["problem"]),
                    product=unescape_name(row.get(PRODUCT) or "") or None,
                )
                for row in csv.DictReader(content)
            ]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(f"{str(file)!r} is no table of predictions, or is damaged: {reason_of(error)}") from error


def remove_earlier(folder: Path, keep: Iterable[str] = ()) -> None:
    """Remove the files of an earlier run: the heat maps that its table lists, the report and the report's pictures.

    Parameters
    ----------
    folder : path
        Folder of the table. Other files in the folder are not removed.
    keep : iterable of str
        File names in the folder that are not removed.
    """
    report = folder / REPORT
    with suppress(OSError):
        with report.open(encoding="utf-8", errors="replace") as content:
            is_ours = f"<title>{REPORT_TITLE}" in content.read(500)
        if is_ours:
            report.unlink()
    remove_pictures(folder)
    kept = {_key(name) for name in keep}
    for name in _listed_maps(folder / TABLE):
        if name == os.path.basename(name) and name.endswith(".png") and _key(name) not in kept:
            with suppress(OSError):  # otherwise the file is replaced, or its replacement fails with a reason
                (folder / name).unlink()


def _listed_maps(table: Path) -> list[str]:
    """Return the heat maps that a table lists, up to a damaged row; none if the table has other columns."""
    names: list[str] = []
    with suppress(OSError, csv.Error), table.open(newline="", encoding="utf-8", errors="replace") as content:
        rows = csv.reader(content)
        columns = next(rows, None)
        if columns not in (COLUMNS, [*COLUMNS, PRODUCT]):
            return []
        for row in rows:
            if len(row) == len(columns) and row[5]:
                names.append(row[5])
    return names


def _files_in(folder: Path, files: Sequence[str]) -> list[str]:
    """Return the names of the files that are in a folder, with and without following links."""
    here = {os.path.abspath(folder), os.path.realpath(folder)}
    places = {where(file) for file in files for where in (os.path.abspath, os.path.realpath)}
    return sorted(os.path.basename(place) for place in places if os.path.dirname(place) in here)


def prediction_of(result: ImageResult, path: str) -> Prediction:
    """Return the prediction of an image. An image that could not be scored is anomalous, even without a threshold."""
    if result.error is not None:
        return Prediction(path, math.nan, math.nan, -1, math.nan, None, result.error.message)
    inspected = InspectedPart() if result.anomaly_map is None else inspected_part(result.anomaly_map)
    product = getattr(result, "product", None)
    decided = result.score, result.decision, result.label, result.p_value
    return Prediction(path, *decided, None, inspected=inspected, product=product)


def with_heat_map(prediction: Prediction, drawn: HeatMap) -> Prediction:
    """Return a prediction with what was written for it."""
    return prediction._replace(picture=drawn.picture, problem=drawn.problem, layers=drawn.layers)


def columns_of(has_products: bool) -> list[str]:
    """Return the columns of the table of a detector, with or without the product of each image."""
    return [*COLUMNS, PRODUCT] if has_products else COLUMNS


def cells_of(prediction: Prediction, has_products: bool) -> list[Any]:
    """Return the values of a prediction in the columns of :func:`columns_of`."""
    product = [escape_name(prediction.product or "")] if has_products else []
    return [*_cells(prediction), *product]


def _cells(prediction: Prediction) -> list[Any]:
    path, problem = escape_name(prediction.path), escape_name(prediction.problem)
    if not prediction.is_scored:
        return [path, "nan", "nan", -1, "nan", "", problem]
    has_label = prediction.label is not None
    decided = [prediction.label, repr(prediction.p_value)] if has_label else ["", ""]
    return [path, repr(prediction.score), repr(prediction.decision), *decided, prediction.picture or "", problem]


def picture_names(paths: Sequence[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """Return a file name for the heat map of each path.

    Parameters
    ----------
    paths : sequence of str
        The images.
    taken : iterable of str
        Names that are not given to a heat map.

    Returns
    -------
    dict of str to str
        The folders below the folder that all images share, and the stem of the image, as
        :func:`~skpatchcore._utils.names.file_name` writes them. Names that a file system that ignores case would
        confuse are numbered.
    """
    places = {path: place_of(path) for path in paths}
    n_shared = len(common_start([place[:-1] for place in places.values()]))
    names: dict[str, str] = {}
    used = {_key(name) for name in taken}
    for path, place in places.items():
        base = "_".join(place[n_shared:])
        for i in count(1):
            name = file_name(base if i == 1 else f"{base}-{i}", ".png")
            if _key(name) not in used:
                break
        used.add(_key(name))
        names[path] = name
    return names


def place_of(path: str) -> list[str]:
    """Return the folders of a path, starting with the drive or network share, and the stem."""
    try:
        place = Path(path).resolve()
    except (OSError, RuntimeError, ValueError):  # links in a circle; a zero byte in the path
        place = Path(os.path.abspath(path))
    anchor = [part for part in place.anchor.replace("\\", "/").replace(":", "/").split("/") if part]
    *folders, name = (place.parts[1:] if place.anchor else place.parts) or ("",)
    return [*anchor, *folders, Path(name).stem]


def common_start(rows: Sequence[list[str]]) -> list[str]:
    """Return the first items that all rows have in common."""
    columns = zip(*rows, strict=False)
    return [items[0] for items in takewhile(lambda items: len(set(items)) == 1, columns)]


def _key(name: str) -> str:
    """Return a name in the form in which file systems that ignore case and forms of accents compare it."""
    return unicodedata.normalize("NFC", name).casefold()
