"""SettingsDisplay: rows, the chosen setting, and examples of defects."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from skpatchcore.display import SettingsDisplay
from skpatchcore.evaluation import SelectedSettings
from skpatchcore.evaluation._trials import DrawnImages, Trial
from skpatchcore.images.reading import PixelFormat


def made(n_settings, chosen=1, n_kinds=3):
    """Return a result with settings that find fewer and fewer defects; the given one is in the middle."""
    given = n_settings // 2
    found = np.linspace(0.8, 0.2, n_settings)
    table = pd.DataFrame(
        {
            "setting": [f"patch_size={i}" if i != given else "as given" for i in range(n_settings)],
            "chosen": np.arange(n_settings) == chosen,
            "found": found,
            "gain": found - found[given],
            "gain_se": 0.02,
            "n_changes": [int(i != given) for i in range(n_settings)],
            "fit_seconds": 1.0,
            "ms_per_image": 2.0,
            "model_mb": 0.5,
        }
    )
    kinds = {f"kind{k}": found + 0.1 * (k - 1) for k in range(n_kinds)}
    by_kind = pd.DataFrame({"setting": table["setting"], **kinds})
    trials = pd.DataFrame({"image": 0, "kind": [f"kind{k}" for k in range(n_kinds)], "size": 3.0, "contrast": 0.5})
    drawn = DrawnImages(
        [np.full((120, 130, 3), 0.5, np.float32)],
        [Trial(0, "blob", 3.0, 0.5, (0, k)) for k in range(n_kinds)],
        [None],
        PixelFormat("rgb", None),
    )
    return SelectedSettings(table, by_kind, {}, "reason", None, 10, n_kinds, 0.1, trials, drawn)


def names_of(display):
    return [text.get_text() for text in display.ax_.get_yticklabels()]


def test_rows_are_in_the_order_of_the_table_and_the_choice_is_named():
    display = SettingsDisplay.from_result(made(5))
    assert names_of(display) == [
        "patch_size=0", "patch_size=1  (chosen)", "as given", "patch_size=3", "patch_size=4",
    ]  # fmt: skip
    assert len(display.figure_.axes) == 1 + 2 * 3  # the gains and two examples of each kind
    gains = [line.get_xdata()[0] for line in display.ax_.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(gains, 100 * made(5).table["gain"])


def test_given_and_chosen_settings_are_drawn_even_if_many_others_are_better():
    display = SettingsDisplay.from_result(made(100, chosen=90), examples=False)
    names = names_of(display)
    assert len(names) == 30
    assert "as given" in names
    assert "patch_size=90  (chosen)" in names
    assert len(display.figure_.axes) == 1


def test_result_draws_itself_on_a_given_figure():
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    figure = Figure()
    assert made(3).plot(figure=figure, examples=False).figure_ is figure
