"""What README shows runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_example_runs_on_a_users_own_folder(tmp_path, monkeypatch, capsys):
    (example,) = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
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
    exec(compile(example, str(README), "exec"), names)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "anomalous" in lines[1]
    assert [m.shape for m in names["anomaly_maps"]] == [(240, 320)] * 2
