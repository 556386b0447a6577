"""Test that the Python examples of README.md run as printed."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image
from scipy.spatial.distance import cdist

from skpatchcore import PatchCoreDetector

README = Path(__file__).resolve().parents[2] / "README.md"

# The README has exactly two Python blocks: the example on the user's images, and the recipe for another index.
EXAMPLE, RECIPE = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_readme_example_finds_the_defect_in_a_folder_of_images(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    for name, count in [("good", 6), ("new", 2)]:
        (tmp_path / "parts" / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.normal(150, 8, (240, 320, 3)).clip(0, 255).astype(np.uint8)
            if (name, i) == ("new", 1):
                pixels[90:150, 120:180] = 20
            Image.fromarray(pixels).save(tmp_path / "parts" / name / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(EXAMPLE, str(README), "exec"), names)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "anomalous" in lines[1]
    assert [m.shape for m in names["anomaly_maps"]] == [(240, 320)] * 2


def test_readme_recipe_for_a_faiss_index_gives_the_same_scores(monkeypatch):
    class IndexFlatL2:
        """A replacement for the parts of faiss that the recipe uses."""

        def __init__(self, n_features):
            self.n_features = n_features

        def add(self, rows):
            self.rows = rows

        def search(self, queries, k):
            squares = cdist(queries, self.rows, "sqeuclidean").astype(np.float32)
            indices = np.argsort(squares, axis=1)[:, :k]
            return np.take_along_axis(squares, indices, axis=1), indices

    monkeypatch.setitem(sys.modules, "faiss", SimpleNamespace(IndexFlatL2=IndexFlatL2))
    names: dict = {}
    exec(compile(RECIPE, str(README), "exec"), names)
    features = np.random.default_rng(0).normal(size=(8, 4, 4, 10)).astype(np.float32)
    theirs, ours = (
        PatchCoreDetector("precomputed", index=index, calibration=5, random_state=0).fit(features)
        for index in (names["FaissIndex"](), "exact")
    )
    np.testing.assert_allclose(theirs.score_samples(features + 1), ours.score_samples(features + 1), rtol=1e-5)
    np.testing.assert_allclose(theirs.calibration_scores_, ours.calibration_scores_, rtol=1e-5)
