"""``skpatchcore demo``: an inspection task that needs no data and no download, from images to figures and pictures."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from skpatchcore._utils.names import shown_name
from skpatchcore.cli.options import Formatter, add_debug, require_folder

# Phases whose seconds are shown.
_PHASES = ("network", "selection", "calibration", "search", "maps")


def add_parser(commands: Any) -> None:
    """Add the command to argparse's."""
    demo = commands.add_parser("demo", help="show what it does, without data or download", formatter_class=Formatter)
    demo.add_argument("-o", "--output", metavar="OUT", default="skpatchcore-demo", help="folder for heat maps")
    demo.add_argument("--backbone", default="efficientnet_lite2", help="any that 'fit' takes")
    demo.add_argument("--seed", type=int, default=0, help="of defects and detector")
    demo.add_argument("--quiet", action="store_true", help="pictures only, no table")
    add_debug(demo)
    demo.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> int:
    tell = (lambda text: None) if options.quiet else print
    run_demo(require_folder(options.output), options.backbone, options.seed, tell)
    return 0


def run_demo(
    folder: Path, backbone: str = "efficientnet_lite2", random_state: int = 0, tell: Callable[[str], None] = print
) -> None:
    """Fit a detector to each texture, say how well it does, and write pictures.

    Parameters
    ----------
    folder : path
        Where the pictures go; made if need be.
    backbone : str, default="efficientnet_lite2"
        As in :class:`~skpatchcore.TorchFeatureExtractor`.
    random_state : int, default=0
        Seed of the task and of the detector.
    tell : callable
        Takes a line of text.
    """
    from sklearn.metrics import roc_auc_score

    from skpatchcore import PatchCoreDetector, TorchFeatureExtractor
    from skpatchcore._utils.progress import record_seconds
    from skpatchcore.datasets import TEXTURES, make_textures
    from skpatchcore.metrics import pixel_roc_auc_score

    begin = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    tell(
        f"Three real surfaces with synthetic defects, seen by {backbone}.\n"
        "A detector learns from 12 small pieces of good surface and judges 4 others.\n"
        "Bricks repeat themselves; no two spots of grass or gravel are alike: the hard case.\n"
    )
    titles = ("image AUROC", "pixel AUROC", "good flagged", "defects found", *(f"{name} s" for name in _PHASES))
    tell("  ".join(["surface", *titles]))
    for texture in TEXTURES:
        task = make_textures(texture, random_state=random_state)
        detector = PatchCoreDetector(
            TorchFeatureExtractor(backbone, image_size=None, crop_size=None), random_state=random_state
        )
        with record_seconds() as seconds:
            detector.fit(task.train_images, groups=task.train_groups)
            scores, maps = detector.score_and_segment(task.test_images)
        good = task.test_labels == 1
        flagged = scores < detector.offset_
        cells = (
            f"{roc_auc_score(good, scores):.3f}",
            f"{pixel_roc_auc_score(list(task.test_masks), list(maps)):.3f}",
            f"{flagged[good].sum()} of {good.sum()}",
            f"{flagged[~good].sum()} of {(~good).sum()}",
            *(f"{seconds[name]:.1f}" for name in _PHASES),
        )
        tell("  ".join([f"{texture:<7}", *(f"{c:>{len(title)}}" for c, title in zip(cells, titles, strict=True))]))
        _write_pictures(folder, texture, task.test_images, task.test_defects, maps, detector.pixel_offset_)
    tell(f"\n{time.perf_counter() - begin:.0f} s in all. Heat maps: {shown_name(str(folder.resolve()))}")
    tell(
        "In each picture: the surface as it is, and with its anomaly map; cyan lines enclose what is beyond the "
        "threshold."
    )


def _write_pictures(
    folder: Path,
    texture: str,
    images: np.ndarray,
    defects: np.ndarray,
    maps: np.ndarray | list[np.ndarray],
    threshold: float,
) -> None:
    """Write one PNG for each test image: the image beside its overlay, at twice its size."""
    from PIL import Image

    from skpatchcore.display import overlay_anomaly_map

    counts: dict[str, int] = {}
    for image, defect, anomaly_map in zip(images, defects, maps, strict=True):
        counts[defect] = counts.get(defect, 0) + 1
        overlay = overlay_anomaly_map(image / 255.0, anomaly_map, threshold)
        pair = np.concatenate([np.broadcast_to(image, overlay.shape), overlay], axis=1)
        picture = Image.fromarray(pair).resize((2 * pair.shape[1], 2 * pair.shape[0]), Image.Resampling.BICUBIC)
        picture.save(folder / f"{texture}-{defect}-{counts[defect]:02d}.png")
