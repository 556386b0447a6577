"""``skpatchcore demo``: inspect three surfaces with synthetic defects, without data or downloads."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from skpatchcore._utils.names import shown_name
from skpatchcore._utils.progress import Progress, follow_progress, progress_bar, record_seconds
from skpatchcore.cli.advice import in_options
from skpatchcore.cli.options import Formatter, add_debug, require_folder

if TYPE_CHECKING:
    from skpatchcore.datasets import TextureTask
    from skpatchcore.reports import Card

# Phases with a column of seconds, and their explanations.
_PHASES = {
    "network": "the network computes patch features",
    "selection": "the coreset is selected for the memory bank",
    "calibration": "good images set the threshold",
    "search": "the nearest patches in the memory bank are searched",
}
# Pieces of each surface in the test images.
_N_TEST_PIECES = 4
_IMAGES, _PAGE = "images", "report.html"
# Names of the image files of the demonstration.
_OWN_NAME = re.compile(r"(piece-\d\d-view-\d|(good|scratch|blob|stain|foreign)-\d\d)\.png")


@dataclass
class _Surface:
    """Results of one surface.

    Attributes
    ----------
    name : str
        Name of the texture.
    image_auroc, pixel_auroc : float
        Area under the ROC curve of the image scores and of the anomaly maps.
    good_flagged, defects_found, n_good, n_defective : int
        Numbers of flagged images, and of images.
    seconds : dict of str to float
        Seconds by phase.
    cards : list of Card
        Cards of the test images.
    """

    name: str
    image_auroc: float
    pixel_auroc: float
    good_flagged: int
    defects_found: int
    n_good: int
    n_defective: int
    seconds: dict[str, float] = field(default_factory=dict)
    cards: list[Card] = field(default_factory=list)


def add_parser(commands: Any) -> None:
    """Add the command to the parser."""
    demo = commands.add_parser(
        "demo",
        help="inspect synthetic defects, without data or downloads",
        description="Fit a detector on good pieces of three real surfaces, find synthetic defects on other pieces, and "
        "write one page with all images: OUT/report.html. Takes one to two minutes.",
        formatter_class=Formatter,
    )
    demo.add_argument("-o", "--output", metavar="OUT", default="skpatchcore-demo", help="folder for page and images")
    demo.add_argument("--backbone", default="efficientnet_lite2", help="network, as for 'fit'")
    demo.add_argument("--seed", type=int, default=0, help="seed of the defects and of the detectors")
    demo.add_argument("--quiet", action="store_true", help="write the page, and print nothing")
    add_debug(demo)
    demo.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> int:
    tell = (lambda text: None) if options.quiet else print
    stream = sys.stderr
    is_terminal = stream is not None and stream.isatty()
    run_demo(
        require_folder(options.output),
        options.backbone,
        options.seed,
        tell,
        show_progress=is_terminal and not options.quiet,
    )
    return 0


def run_demo(
    folder: Path,
    backbone: str = "efficientnet_lite2",
    random_state: int = 0,
    tell: Callable[[str], None] = print,
    show_progress: bool = False,
) -> Path:
    """Fit a detector per surface, explain its results, and write the page of all test images.

    Parameters
    ----------
    folder : path
        Folder for ``report.html``, its pictures, and the folder ``images``. It is created if it does not exist.
    backbone : str, default="efficientnet_lite2"
        As for :class:`~skpatchcore.TorchFeatureExtractor`.
    random_state : int, default=0
        Seed of the defects and of the detectors.
    tell : callable, default=print
        Called with each text.
    show_progress : bool, default=False
        Whether to show a progress bar on standard error.

    Returns
    -------
    Path
        File of the page.
    """
    from skpatchcore.datasets import TEXTURES, make_textures
    from skpatchcore.reports import write_card_page

    begin = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    tasks = {name: make_textures(name, random_state=random_state) for name in TEXTURES}
    n_images = sum(len(task.train_images) + 2 * len(task.test_images) for task in tasks.values())
    first = next(iter(tasks.values()))
    text = (
        f"Three real surfaces with synthetic defects: {', '.join(tasks)}. Per surface, a detector is fitted on "
        f"{len(first.train_images)} photographs of {len(np.unique(first.train_groups))} good pieces, and tested on "
        f"{len(first.test_images)} photographs of {_N_TEST_PIECES} other pieces. No two spots of grass or gravel are "
        f"alike, so that these surfaces are harder than brick. Network: {backbone}."
    )
    tell(f"{textwrap.fill(text, 100)}\n")
    remove_images(folder / _IMAGES)
    with (
        progress_bar(n_images, "demo", "image", show_progress) as bar,
        tempfile.TemporaryDirectory() as cache,  # the network processes each image once
    ):
        surfaces = [_inspect(name, task, folder, backbone, random_state, cache, bar) for name, task in tasks.items()]
    page = write_card_page(
        [card for surface in surfaces for card in surface.cards],
        folder / _PAGE,
        title="skpatchcore demo",
        about={"Task": "three real surfaces with synthetic defects; one detector per surface"},
        noun="image",
    )
    for text in (_table(surfaces), _LEGEND, _conclusions(surfaces)):
        tell(text + "\n")
    tell(f"{time.perf_counter() - begin:.0f} s in total. Open this page in a web browser, e.g. with a double click:")
    tell(shown_name(str(page.resolve())))
    return page


def _inspect(
    name: str, task: TextureTask, folder: Path, backbone: str, random_state: int, cache: str, bar: Progress
) -> _Surface:
    """Fit a detector on one surface, and score its test images."""
    from sklearn.metrics import roc_auc_score

    from skpatchcore import PatchCoreDetector, TorchFeatureExtractor
    from skpatchcore.metrics import pixel_roc_auc_score
    from skpatchcore.reports import make_cards
    from skpatchcore.reports.layers import write_layers
    from skpatchcore.reports.pictures import PictureFolder
    from skpatchcore.reports.predictions import prediction_of

    train, test = _write_images(folder / _IMAGES / name, task)
    extractor = TorchFeatureExtractor(backbone, image_size=None, memory=cache)
    detector = PatchCoreDetector(extractor, random_state=random_state)
    pictures, predictions, maps = PictureFolder(folder), [], []
    with record_seconds() as seconds:
        with _shown(bar, name, len(train)):
            detector.fit(train, groups=task.train_groups)
        bar.describe(f"{name}: scoring images")
        for result in detector.iter_results(test):
            anomaly_map = np.asarray(result.anomaly_map)
            i = result.index
            truth = task.test_masks[i] if task.test_masks[i].any() else None
            layers = write_layers(
                task.test_images[i] / 255.0, anomaly_map, detector.pixel_offset_, pictures, truth=truth
            )
            predictions.append(prediction_of(result, test[i])._replace(layers=layers))
            maps.append(anomaly_map)
            bar.update(1)
    bar.describe(f"{name}: searching the nearest good patches")
    done = [0]

    def explained(n: int, total: int) -> None:
        bar.update(n - done[0])
        done[0] = n

    notes = ["Known: good" if kind == "good" else f"Known: defective ({kind})" for kind in task.test_defects]
    cards = make_cards(predictions, detector, folder, group=name, notes=notes, on_explained=explained)
    scores = np.array([prediction.score for prediction in predictions])
    good, flagged = task.test_labels == 1, scores < detector.offset_
    return _Surface(
        name,
        float(roc_auc_score(good, scores)),
        float(pixel_roc_auc_score(list(task.test_masks), maps)),
        int(flagged[good].sum()),
        int(flagged[~good].sum()),
        int(good.sum()),
        int((~good).sum()),
        seconds,
        cards,
    )


@contextmanager
def _shown(bar: Progress, name: str, n_images: int) -> Iterator[None]:
    """Show a fit on a bar: its images as units, and its other work as titles."""
    start = bar.n

    def follow(description: str, n: int) -> None:
        bar.describe(f"{name}: {description}")
        if description == "extracting features":
            bar.update(min(n, start + n_images - bar.n))

    with follow_progress(follow):
        yield
    bar.update(start + n_images - bar.n)


def _write_images(folder: Path, task: TextureTask) -> tuple[list[str], list[str]]:
    """Write the training images and the test images of a surface as PNG files, and return their paths."""
    from PIL import Image

    views: dict[int, int] = {}
    names = []
    for piece in task.train_groups.tolist():
        views[piece] = views.get(piece, 0) + 1
        names.append(f"train/piece-{piece:02d}-view-{views[piece]}.png")
    counts: dict[str, int] = {}
    for kind in task.test_defects:
        counts[kind] = counts.get(kind, 0) + 1
        names.append(f"test/{kind}-{counts[kind]:02d}.png")
    paths = [folder / name for name in names]
    for path, image in zip(paths, [*task.train_images, *task.test_images], strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(path)
    texts, n_train = [str(path) for path in paths], len(task.train_images)
    return texts[:n_train], texts[n_train:]


def remove_images(folder: Path) -> None:
    """Remove the image files of an earlier demonstration. Other files stay.

    Parameters
    ----------
    folder : path
        The folder ``images``. It may not exist.
    """
    for path in sorted(folder.glob("*/t*/*.png")):
        if path.parent.name in ("train", "test") and _OWN_NAME.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _table(surfaces: list[_Surface]) -> str:
    titles = ("defects found", "good flagged", "image AUROC", "pixel AUROC", *(f"{name} s" for name in _PHASES))
    lines = ["  ".join(["surface", *titles])]
    for surface in surfaces:
        cells = (
            f"{surface.defects_found} of {surface.n_defective}",
            f"{surface.good_flagged} of {surface.n_good}",
            f"{surface.image_auroc:.3f}",
            f"{surface.pixel_auroc:.3f}",
            *(f"{surface.seconds.get(name, 0.0):.1f}" for name in _PHASES),
        )
        row = [f"{cell:>{len(title)}}" for cell, title in zip(cells, titles, strict=True)]
        lines.append("  ".join([f"{surface.name:<7}", *row]))
    return "\n".join(lines)


_LEGEND = "\n".join(
    [
        "defects found  defective images that are flagged, because their score is beyond the threshold: more is better",
        "good flagged   good images that are flagged by mistake (false alarms): fewer is better",
        "image AUROC    how well the scores separate good from defective images, whatever the threshold:",
        "               1 is perfect, 0.5 is chance",
        "pixel AUROC    the same for pixels: how well the anomaly maps mark the defects",
        *(f"{f'{name} s':<14} seconds in which {text}" for name, text in _PHASES.items()),
    ]
)


def _conclusions(surfaces: list[_Surface]) -> str:
    """Return what the results of each surface mean, and what could improve them."""
    from skpatchcore.evaluation.summary import advice

    lines = ["What this means:"]
    for one in surfaces:
        text = advice(one.image_auroc, one.defects_found / one.n_defective, one.good_flagged / one.n_good)
        text = in_options(text, "predict") or "An easy surface: new good pieces look like the images of the fit."
        lines.append(textwrap.fill(f"{one.name}: {text}", 100, initial_indent="- ", subsequent_indent="  "))
    return "\n".join(lines)
