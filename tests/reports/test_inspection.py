"""The sentence about pixels that are not inspected."""

from __future__ import annotations

import numpy as np
import pytest

from skpatchcore import PatchCoreDetector, PatchCoreEnsemble
from skpatchcore.reports.inspection import InspectedPart, describe_inspection, inspected_part
from tests import factories


def test_inspected_part_counts_pixels_and_margins():
    heat = np.zeros((20, 40))
    assert inspected_part(heat) == InspectedPart()
    heat[:3] = heat[-2:] = heat[:, :4] = heat[:, -1:] = np.nan
    assert inspected_part(heat) == (15 * 35 / 800, (3, 4, 2, 1), True)
    heat[10, 10] = np.nan
    assert inspected_part(heat) == ((15 * 35 - 1) / 800, (3, 4, 2, 1), False)
    assert inspected_part(np.full((2, 2), np.nan)).share == 0


def test_the_sentence_names_the_image_with_the_smallest_inspected_part():
    whole, part = InspectedPart(), InspectedPart(0.25, (1, 2, 3, 4))
    assert describe_inspection({}) is None
    assert describe_inspection({"a.png": whole}) is None
    text = describe_inspection({"a.png": whole, "b.png": part, "c.png": InspectedPart(0.5)})
    assert text.startswith("75.0 % of the image b.png is not inspected")
    assert "1 pixels at the top, 3 at the bottom, 2 at the left and 4 at the right. Defects there" in text
    assert "at the right, and parts in the middle. " in describe_inspection(
        {"b.png": part._replace(is_rectangle=False)}
    )


@pytest.mark.parametrize("is_ensemble", [False, True])
def test_maps_show_the_fitted_extractor_not_the_present_default(parts, is_ensemble):
    # as for a detector with extractor=None that was fitted when the default extractor had a crop
    detector = PatchCoreDetector(factories.extractor(image_size=48, crop_size=32), random_state=0)
    fitted = (PatchCoreEnsemble([("a", detector)]) if is_ensemble else detector).fit(parts[0])
    for member in fitted.estimators_ if is_ensemble else [fitted]:
        member.extractor = None
    assert inspected_part(fitted.segment(parts[0][:1])[0]) == (32 * 32 / (48 * 64), (8, 16, 8, 16), True)
