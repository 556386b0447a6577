"""Test that the first recipe of the page on Dask runs as a program, with the result of a fit on one machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("distributed", reason="needs the extra dask")

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "user_guide" / "dask.rst"
# The page uses a larger network and larger images. The recipe is the same.
SMALLER = {"efficientnet_lite2": "efficientnet_lite0", "image_size=256": "image_size=64"}
# The program after the recipe, in the same process: a fit on one machine with the same parameters.
LOCAL = """
    from skpatchcore import PatchCoreDetector

    fitted = detector.to_local()
    local = PatchCoreDetector(detector.extractor, random_state=0).fit(list_images("parts/good"))
    assert (fitted.memory_bank_ == local.memory_bank_).all()
    assert (fitted.bank_image_indices_ == local.bank_image_indices_).all()
    assert fitted.offset_ == local.offset_
    print("the same bank")
"""


def test_recipe_for_one_machine_runs_and_equals_a_local_fit(tmp_path):
    rng = np.random.default_rng(0)
    for folder, n_images in {"good": 10, "new": 3}.items():
        (tmp_path / "parts" / folder).mkdir(parents=True)
        for i in range(n_images):
            pixels = rng.normal(150, 8, (64, 80, 3)).clip(0, 255).astype(np.uint8)
            if (folder, i) == ("new", 2):
                pixels[20:44, 20:44] = 20
            Image.fromarray(pixels).save(tmp_path / "parts" / folder / f"{i}.png")
    text = PAGE.read_text(encoding="utf-8")
    recipe = re.search(r"^\.\. code-block:: python\n\n((?:(?: {4}.*)?\n)+)", text, re.MULTILINE)
    assert recipe is not None
    code = textwrap.dedent(recipe[1])
    for long, short in SMALLER.items():
        assert long in code
        code = code.replace(long, short)
    (tmp_path / "recipe.py").write_text(code + LOCAL)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "recipe.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    labels = dict(re.findall(r"'[^']*(\d)\.png': np\.int64\((-?\d+)\)", done.stdout))
    assert labels["2"] == "-1"
    assert "the same bank" in done.stdout
    assert (tmp_path / "parts.skops").is_file()
