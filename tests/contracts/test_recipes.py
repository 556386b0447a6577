"""Test that the Python code of the documentation's task pages runs, and that the service and MLflow keep decisions."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import skpatchcore
from tests import factories

ROOT = Path(__file__).resolve().parents[2]
# The pages use a larger network and larger images. The recipes are the same.
SMALLER = {
    "efficientnet_lite2": "efficientnet_lite0",
    "image_size=256": "image_size=64",
    "lite2\"), ": "lite2\", image_size=64), ",
    "lite2\", memory": "lite2\", image_size=64, memory",
    '"extractor__patch_size": [1, 3, 5], "sampler__ratio": [0.01, 0.1], ': "",
    "OneClassSplit(5)": "OneClassSplit(2)",
    "test_size=0.2": "test_size=0.4",
    "contamination=0.05": "contamination=0.5",
}  # fmt: skip


def run_page(name: str, names: dict | None = None) -> dict:
    """Run the Python blocks of a page one after another, and return the names that they define."""
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    blocks = re.findall(r"^\.\. code-block:: python\n\n((?:(?: {4}.*)?\n)+)", text, re.MULTILINE)
    assert blocks
    code = "\n".join(re.sub(r"^ {4}", "", block, flags=re.MULTILINE) for block in blocks)
    for long, short in reversed(SMALLER.items()):
        code = code.replace(long, short)
    found = {} if names is None else names
    exec(compile(code, name, "exec"), found)
    return found


@pytest.fixture
def in_parts(tmp_path, monkeypatch):
    """Change to a folder with ``parts``, and return a function that adds a folder of images to it."""
    rng = np.random.default_rng(0)

    def add(folder: str, n_images: int, is_defective: bool = False) -> None:
        place = tmp_path / "parts" / folder
        place.mkdir(parents=True)
        for i in range(n_images):
            pixels = rng.normal(150, 8, (64, 80, 3)).clip(0, 255).astype(np.uint8)
            if is_defective:
                pixels[20:44, 20:44] = 20
            Image.fromarray(pixels).save(place / f"{i}.png")

    monkeypatch.chdir(tmp_path)
    return add


def test_start_page_runs(in_parts, monkeypatch):
    pytest.importorskip("matplotlib").use("Agg")
    in_parts("good", 6)
    in_parts("new", 2)
    names = run_page("start.rst")
    assert names["labels"].shape == (2,)
    assert Path("parts.skops").is_file()


def test_search_page_fits_the_best_setting_with_a_threshold(in_parts):
    in_parts("good", 6)
    in_parts("defective", 2, is_defective=True)
    names = {"names": ["good", "dent"], "is_defective": [False, True]}
    names = run_page("user_guide/searches.rst", names)
    assert np.isfinite(names["search"].cv_results_["mean_test_score"]).all()
    assert np.isfinite(names["detector"].offset_)
    assert names["y"].tolist() == [1, -1]


def test_two_folders_page_finds_the_defects(in_parts):
    in_parts("good", 8)
    in_parts("defective/dent", 2, is_defective=True)
    names = run_page("user_guide/two_folders.rst")
    assert names["table"]["image_auroc"].item() == 1
    assert len(names["detector"].calibration_scores_) == 8


def test_camera_page_reads_bgr_frames_and_rejects_the_dark_spot(in_parts, monkeypatch, capsys):
    in_parts("good", 6)
    frames = [np.asarray(Image.open(f"parts/good/{i}.png"))[..., ::-1].copy() for i in range(2)]
    frames[1][20:44, 20:44] = 20
    camera = SimpleNamespace(read=lambda: (True, frames.pop(0)) if frames else (False, None))
    monkeypatch.setitem(sys.modules, "cv2", SimpleNamespace(VideoCapture=lambda number: camera))
    names = run_page("user_guide/cameras.rst")
    assert "reject part 1 " in capsys.readouterr().out
    assert names["one_field"](np.zeros((6, 4, 3))).shape == (3, 4, 3)


def test_lights_page_finds_the_defect_under_one_light_and_splits_files(in_parts):
    for light in ("left", "right"):
        in_parts(f"good/{light}", 6)
        in_parts(f"new/{light}", 2, is_defective=light == "right")
    names = run_page("user_guide/lights.rst")
    assert names["labels"].tolist() == [-1, -1]
    assert names["anomaly_maps"].shape == (2, 64, 80)
    pixels = np.random.default_rng(0).integers(0, 255, (5, 7, 4), np.uint8)
    Image.fromarray(pixels).save("channels.png")
    pages = [Image.fromarray(pixels[:, :, light]) for light in range(4)]
    pages[0].save("pages.tif", save_all=True, append_images=pages[1:])
    for read in (names["lights_of_channels"]("channels.png"), names["lights_of_pages"]("pages.tif")):
        np.testing.assert_array_equal(np.stack(read, axis=2), pixels)


def test_dataset_page_fits_on_the_good_class(in_parts):
    in_parts("good", 6)
    in_parts("dent", 2, is_defective=True)
    names = run_page("user_guide/torch_datasets.rst")
    assert names["labels"][:2].tolist() == [-1, -1]  # dent comes before good
    assert names["scores"].shape == (2,)


def test_service_reports_defects_and_never_reports_a_broken_file_as_normal(in_parts, monkeypatch):
    pytest.importorskip("fastapi", reason="the example needs fastapi")
    testclient = pytest.importorskip("fastapi.testclient", reason="the test needs httpx", exc_type=ImportError)
    in_parts("good", 6)
    in_parts("bad", 1, is_defective=True)
    detector = factories.detector().fit(skpatchcore.list_images("parts/good"))
    skpatchcore.save(detector, "parts.skops")
    monkeypatch.setenv("PARTS_MODEL", "parts.skops")
    spec = importlib.util.spec_from_file_location("serve_fastapi", ROOT / "examples" / "serve_fastapi.py")
    service = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(service)
    with testclient.TestClient(service.app) as client:
        good = client.post("/inspect", content=Path("parts/good/0.png").read_bytes()).json()
        bad = client.post("/inspect", content=Path("parts/bad/0.png").read_bytes()).json()
        broken = client.post("/inspect", content=b"not an image")
    assert (good["label"], bad["label"]) == (1, -1)
    assert bad["score"] == pytest.approx(detector.score_samples(["parts/bad/0.png"])[0], rel=1e-5)
    assert bad["regions"][0]["area"] > 0
    assert broken.status_code == 422
    assert broken.json()["label"] == -1


def test_mlflow_loads_a_detector_with_the_published_trusted_types(in_parts, tmp_path):
    mlflow_sklearn = pytest.importorskip("mlflow.sklearn", reason="the recipe needs mlflow")
    pyfunc = pytest.importorskip("mlflow.pyfunc")
    in_parts("good", 6)
    paths = skpatchcore.list_images("parts/good")
    table = pd.DataFrame({"path": paths})
    for name, detector in {
        "patchcore": factories.detector(),
        "spade": skpatchcore.SPADEDetector(factories.extractor(), random_state=0),
    }.items():
        detector.fit(paths)
        mlflow_sklearn.save_model(
            detector, tmp_path / name, serialization_format="skops", skops_trusted_types=skpatchcore.TRUSTED_TYPES
        )
        same = mlflow_sklearn.load_model(str(tmp_path / name))
        np.testing.assert_array_equal(same.score_samples(paths), detector.score_samples(paths))
        np.testing.assert_array_equal(pyfunc.load_model(str(tmp_path / name)).predict(table), detector.predict(paths))
