"""part_of: the part in front of a uniform background."""

from __future__ import annotations

import numpy as np
import pytest

from skpatchcore.evaluation._part import part_of

ROWS, COLUMNS = np.mgrid[:200, :260]
DISC = np.hypot(ROWS - 90, COLUMNS - 120) < 55


def made(part, background, noise=0.01):
    image = np.where(DISC[..., None], part, background).astype(float)
    return (image + np.random.default_rng(0).normal(0, noise, image.shape)).clip(0, 1)


@pytest.mark.parametrize(
    ("part", "background"),
    [([0.8, 0.7, 0.4], [0.1, 0.1, 0.1]), ([0.2, 0.2, 0.2], [0.9, 0.9, 0.9]), ([0.5, 0.3, 0.2], [0.5, 0.6, 0.2])],
)
def test_part_is_found_in_front_of_a_uniform_background(part, background):
    found = part_of(made(part, background))
    assert (found & DISC).sum() / (found | DISC).sum() > 0.93


def test_hole_of_a_part_belongs_to_it():
    image = made([0.8, 0.8, 0.8], [0.1, 0.1, 0.1])
    image[80:100, 110:130] = 0.1
    assert part_of(image)[90, 120]


def test_textures_and_parts_that_fill_the_image_have_no_background():
    rng = np.random.default_rng(0)
    assert part_of(rng.normal(0.5, 0.1, (100, 100, 1)).clip(0, 1)) is None
    assert part_of(np.full((60, 80, 3), 0.5)) is None
    halves = np.zeros((100, 100, 3))
    halves[:, 50:] = 1  # a border of two colours is no background
    assert part_of(halves) is None
    assert part_of(np.zeros((5, 5, 3))) is None


def test_faint_difference_is_not_taken_as_a_part():
    assert part_of(made([0.52] * 3, [0.5] * 3, noise=0.001)) is None
