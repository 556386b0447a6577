"""SelectedSettings: the result of :func:`~skpatchcore.select_settings`, as a table, a sentence and a figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from skpatchcore.evaluation._trials import DrawnImages
from skpatchcore.images.reading import load_image


@dataclass(frozen=True, eq=False)
class SelectedSettings:
    """Result of :func:`~skpatchcore.select_settings`. ``print(result)`` shows the choice, the reason and the table.

    Attributes
    ----------
    table : DataFrame
        One row per setting, the one that finds most defects first. Columns: ``setting`` (the changed parameters as
        text), ``chosen`` (bool), ``found`` (fraction of the synthetic defects that is found, bigger = better),
        ``gain`` (difference from the given setting), ``gain_se`` (its standard error), ``n_changes`` (number of changed
        parameters), ``fit_seconds``, ``ms_per_image`` (scoring time of one image), ``model_mb`` (size of the memory
        bank in MB) and one column per parameter of the grid. Times exclude the network if its outputs are cached, and
        the memory bank has the ratio of the comparison.
    by_kind : DataFrame
        Fraction of the defects of each kind that is found: one row per setting, in the order of `table`.
    best_params : dict
        The chosen parameters. Empty if the given setting is kept.
    reason : str
        Why these settings are chosen, in words.
    detector : estimator
        The given detector with the chosen parameters, not fitted.
    n_good, n_defects : int
        Number of good images and of synthetic defects.
    largest_rate : float
        Largest false-alarm rate at which the settings are compared.
    trials : DataFrame
        The synthetic defects: ``image`` (index of the good image), ``kind``, ``size`` (pixels) and ``contrast``.
    """

    table: pd.DataFrame
    by_kind: pd.DataFrame
    best_params: Mapping[str, Any]
    reason: str
    detector: Any
    n_good: int
    n_defects: int
    largest_rate: float
    trials: pd.DataFrame
    _drawn: DrawnImages = field(repr=False)

    def draw(self, trial: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the image of a trial and the mask of its defect.

        Parameters
        ----------
        trial : int
            Row of `trials`.

        Returns
        -------
        image : array of shape (height, width, n_channels), float32 in [0, 1]
            The good image with the defect.
        mask : array of shape (height, width), bool
            True for the pixels of the defect.
        """
        image, mask = self._drawn.draw(trial)
        index = int(self.trials["image"].iloc[trial])
        return load_image(image, index, pixel_format=self._drawn.pixel_format), mask

    def plot(self, **options: Any) -> Any:
        """Plot the gains of the settings, and examples of the synthetic defects.

        Parameters
        ----------
        **options : dict
            Arguments of :meth:`SettingsDisplay.plot <skpatchcore.SettingsDisplay.plot>`.

        Returns
        -------
        SettingsDisplay
            The display, after its plot was drawn.
        """
        from skpatchcore.display import SettingsDisplay

        return SettingsDisplay.from_result(self, **options)

    def __str__(self) -> str:
        shown = self.table[["setting", "found", "gain", "gain_se", "fit_seconds", "ms_per_image", "model_mb"]]
        lines = shown.to_string(
            index=False,
            formatters={
                "found": "{:.1%}".format,
                "gain": "{:+.1%}".format,
                "gain_se": "{:.1%}".format,
                "fit_seconds": "{:.1f}".format,
                "ms_per_image": "{:.1f}".format,
                "model_mb": "{:.2f}".format,
            },
        )
        note = (
            "found: fraction of synthetic defects that the given setting just finds or just misses; it says nothing "
            "about real defects. Times exclude the network if its outputs are cached; memory banks are small."
        )
        return f"{self.reason}\n\n{lines}\n\n{note}"
