"""``skpatchcore fit --tune``: choose the settings of a detector from the good images before the fit."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skpatchcore._utils.files import require_writable
from skpatchcore._utils.names import shown_name
from skpatchcore.cli.options import CommandError

if TYPE_CHECKING:
    from skpatchcore import PatchCoreDetector

_TABLE, _KINDS, _FIGURE = "settings.csv", "kinds.csv", "settings.png"


def require_output_folder(folder: str) -> None:
    """Create the folder of the results. Raise a CommandError before the work if results cannot be written."""
    if find_spec("matplotlib") is None:
        raise CommandError("--tune-output draws a figure, which needs matplotlib. Run: pip install matplotlib")
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name in (_TABLE, _KINDS, _FIGURE):
            require_writable(Path(folder) / name)
    except OSError as error:
        raise CommandError(
            f"cannot write to the folder {folder!r}: {error.strerror}: {str(error.filename)!r}."
        ) from error


def tuned(detector: PatchCoreDetector, images: Any, output: str | None, seed: int, is_quiet: bool) -> PatchCoreDetector:
    """Return the detector with the settings that are chosen from the good images, not fitted.

    Parameters
    ----------
    detector : PatchCoreDetector
        The detector with the settings of the options.
    images : sequence of paths
        The good images.
    output : str or None
        Folder in which ``settings.csv``, ``kinds.csv`` and ``settings.png`` are written; None writes nothing.
    seed : int
        Seed of the defects.
    is_quiet : bool
        If False, the choice, the reason and the table are printed.
    """
    from skpatchcore import select_settings

    result = select_settings(detector, None, images, random_state=seed, verbose=0 if is_quiet else 1)
    if not is_quiet:
        print(result)
    if output is not None:
        folder = Path(output)
        result.table.to_csv(folder / _TABLE, index=False)
        result.by_kind.to_csv(folder / _KINDS, index=False)
        _draw(result, folder / _FIGURE)
        if not is_quiet:
            print(f"table and figure of the settings: {shown_name(output)}")
    chosen: PatchCoreDetector = result.detector
    return chosen


def _draw(result: Any, path: Path) -> None:
    from matplotlib.figure import Figure

    result.plot(figure=Figure(figsize=(11, 4.1 + 0.33 * min(len(result.table), 30)))).figure_.savefig(path, dpi=120)
