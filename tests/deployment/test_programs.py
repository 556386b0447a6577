"""Test the programs in examples/deployment, which run an exported file without skpatchcore."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import skpatchcore
from skpatchcore import GreedyCoresetSampler, PatchCoreDetector, TorchFeatureExtractor

onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")
pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the package onnxruntime is not installed")

PROGRAMS = Path(__file__).resolve().parents[2] / "examples" / "deployment"
COLUMNS = ["image", "score", "decision", "label", "p_value"]


def pictures(n: int, height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    base = 120 + 40 * np.sin(np.linspace(0, 9, width)[None, :, None] + np.array([0, 1, 2]))
    return np.clip(base + rng.normal(0, 6, (n, height, width, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def detector():
    """Return a detector that sees the centre of an image only."""
    extractor = TorchFeatureExtractor("resnet18", weights=None, image_size=48, crop_size=40)
    sampler = GreedyCoresetSampler(0.3)
    made = PatchCoreDetector(extractor, sampler=sampler, random_state=0, calibration="leave-one-out")
    return made.fit(pictures(12))


@pytest.fixture(scope="module")
def exported(detector, tmp_path_factory):
    """Return the path of the exported file."""
    path = tmp_path_factory.mktemp("exported") / "parts.onnx"
    skpatchcore.export(detector, path, map_size="image")
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Return a good and a defective image of different sizes, each in a folder of PNG and of PPM files."""
    folder = tmp_path_factory.mktemp("images")
    pixels = {"good": pictures(1)[0], "defective": pictures(1, 60, 50, seed=1)[0]}
    pixels["defective"][20:40, 10:40] = 255
    for name, values in pixels.items():
        for suffix in ("png", "ppm"):
            Image.fromarray(values).save(folder / f"{name}.{suffix}")
    return folder, pixels


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Return a folder that holds numpy, pillow and onnxruntime, and no other package."""
    folder = tmp_path_factory.mktemp("site")
    for name in ("numpy", "PIL", "onnxruntime"):
        place = Path(importlib.util.find_spec(name).submodule_search_locations[0])
        (folder / name).symlink_to(place, target_is_directory=True)
    return folder


def run_python(site: Path, *arguments: object) -> subprocess.CompletedProcess:
    """Run score_image.py in an interpreter that imports the standard library and the packages of `site` only."""
    code = (
        "import importlib.util, runpy, sys\n"
        f"sys.path.append({str(site)!r})\n"
        "missing = ('skpatchcore', 'torch', 'torchvision', 'sklearn', 'scipy', 'onnx')\n"
        "assert not [name for name in missing if importlib.util.find_spec(name)]\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    command = [sys.executable, "-I", "-S", "-c", code, PROGRAMS / "score_image.py", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)


def compiler_settings() -> list[str]:
    """Return the C++ compiler and its arguments for a program that uses ONNX Runtime, or skip the test.

    The compiler is the environment variable CXX, or c++, g++ or clang++. ONNX Runtime's headers are searched for in the
    folder that the environment variable ONNXRUNTIME_INCLUDE names, in the compiler's own folders (CPATH adds to them),
    and in the folders of system packages. The library is the one of the Python package onnxruntime. OpenSSL's headers
    are searched for in the compiler's own folders.
    """
    names = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    compiler = next(filter(None, map(shutil.which, filter(None, names))), None)
    if compiler is None:
        pytest.skip("no C++ compiler was found. Install one, or set CXX.")
    if not list(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*")):
        pytest.skip("the Python package onnxruntime has no shared library for Linux")
    named = os.environ.get("ONNXRUNTIME_INCLUDE")
    folders = [f"{root}/include/onnxruntime{end}" for root in ("/usr", "/usr/local") for end in ("", "/core/session")]
    includes = [["-I", named]] if named else [[], *(["-I", folder] for folder in folders if Path(folder).is_dir())]
    for include in includes:
        command = [compiler, "-std=c++17", *include]
        source = "#include <onnxruntime_cxx_api.h>\n#include <openssl/sha.h>\n"
        check = [*command, "-fsyntax-only", "-x", "c++", "-"]
        found = subprocess.run(check, input=source, capture_output=True, text=True, timeout=300)
        if found.returncode == 0:
            return command
    first = next((line for line in found.stderr.splitlines() if "error" in line), "")
    pytest.skip(f"ONNX Runtime's or OpenSSL's headers were not found. Set ONNXRUNTIME_INCLUDE. {first}")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Compile score_image.cpp with ONNX Runtime's library of the Python package, and return the program's path."""
    command = compiler_settings()
    folder = tmp_path_factory.mktemp("program")
    (library,) = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*")
    # The library names itself libonnxruntime.so.1. The wheel has it only under its full version.
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / name).symlink_to(library)
    path = folder / "score_image"
    links = [f"-L{folder}", "-lonnxruntime", "-lcrypto", f"-Wl,-rpath,{folder}", "-Wall", "-Wextra", "-Werror"]
    built = subprocess.run(
        [*command, str(PROGRAMS / "score_image.cpp"), *links, "-o", str(path)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    return path


def run_program(program: Path, *arguments: object) -> subprocess.CompletedProcess:
    """Run the compiled program."""
    return subprocess.run([str(program), *map(str, arguments)], capture_output=True, text=True, timeout=300)


@pytest.fixture(params=["python", "c++"])
def run(request):
    """Return a function that runs one of the two programs, and the suffix of the images that it reads."""
    if request.param == "python":
        site = request.getfixturevalue("site")
        return lambda *arguments: run_python(site, *arguments), "png"
    program = request.getfixturevalue("program")
    return lambda *arguments: run_program(program, *arguments), "ppm"


def test_programs_print_the_results_of_the_detector(run, detector, exported, images):
    call, suffix = run
    folder, pixels = images
    paths = [folder / f"{name}.{suffix}" for name in pixels]
    done = call(exported, *paths)
    assert done.returncode == 0, done.stderr
    head, *lines = (line.split("\t") for line in done.stdout.splitlines())
    assert head == COLUMNS
    session = onnxruntime.InferenceSession(exported.read_bytes(), providers=["CPUExecutionProvider"])
    for path, values, (shown, *numbers) in zip(paths, pixels.values(), lines, strict=True):
        assert shown == str(path)
        expected = [output[0] for output in session.run(COLUMNS[1:], {"images": values[None]})]
        assert [np.float32(number) for number in numbers] == expected
        assert np.isclose(float(numbers[0]), detector.score_samples([values])[0], rtol=1e-4)
        assert int(numbers[2]) == detector.predict([values])[0]
    assert [line[3] for line in lines] == ["1", "-1"]


@pytest.mark.parametrize("damage", ["changed", "truncated", "foreign", "empty", "missing"])
def test_programs_refuse_a_file_without_valid_digest(run, exported, images, tmp_path, damage):
    call, suffix = run
    content = exported.read_bytes()
    foreign = onnx.load_from_string(content)
    del foreign.metadata_props[:]
    other = {
        "changed": content[:300] + bytes([content[300] ^ 1]) + content[301:],
        "truncated": content[:-10],
        "foreign": foreign.SerializeToString(),
        "empty": b"",
    }
    path = tmp_path / "parts.onnx"
    if damage != "missing":
        path.write_bytes(other[damage])
    done = call(path, images[0] / f"good.{suffix}")
    assert done.returncode == 1
    assert done.stdout == ""
    assert str(path) in done.stderr


def test_programs_fail_on_a_truncated_image(run, exported, images, tmp_path):
    call, suffix = run
    path = tmp_path / f"half.{suffix}"
    content = (images[0] / f"good.{suffix}").read_bytes()
    path.write_bytes(content[: len(content) // 2])
    done = call(exported, path)
    assert done.returncode == 1
    assert done.stdout.splitlines() == ["\t".join(COLUMNS)]


def check_heat(heat, anomaly_map, threshold, picture):
    """Check a heat map. Return whether it has pixels above the threshold, and pixels below."""
    assert heat.shape == picture.shape
    ratio = anomaly_map / threshold
    clear = ~(np.abs(ratio - 1) < 1e-3)  # rounding decides near the threshold
    assert (heat[np.isnan(ratio)] == (0, 0, 153)).all()
    above = (ratio > 1) & clear
    assert (heat[above][:, [0, 2]] == (255, 0)).all()
    np.testing.assert_allclose(heat[above][:, 1], 255 * (ratio[above] - 1).clip(0, 1), atol=2)
    below = (ratio < 1) & clear
    np.testing.assert_allclose(heat[below], picture[below].mean(axis=-1)[:, None].repeat(3, axis=1), atol=2)
    return bool(above.any()), bool(below.any())


@pytest.mark.parametrize("map_size", ["input", "image"])
def test_python_program_colours_only_pixels_above_the_threshold(site, detector, images, tmp_path, map_size):
    skpatchcore.export(detector, tmp_path / "parts.onnx", map_size=map_size)
    session = onnxruntime.InferenceSession(tmp_path / "parts.onnx", providers=["CPUExecutionProvider"])
    found = {}
    for name, picture in images[1].items():
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
        assert run_python(site, tmp_path / "parts.onnx", tmp_path / f"{name}.png").returncode == 0
        heat = np.asarray(Image.open(tmp_path / f"{name}.png.heat.png"))
        seen, anomaly_map = (some[0] for some in session.run(["pixels", "anomaly_map"], {"images": picture[None]}))
        below = picture if map_size == "image" else 255 * seen
        found[name] = check_heat(heat, anomaly_map, detector.pixel_offset_, below)
    assert found["good"][1]
    assert found["defective"][0]


def test_python_program_without_arguments_prints_the_usage(site, exported):
    for arguments in ([], [exported]):
        done = run_python(site, *arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "usage: python score_image.py MODEL.onnx IMAGE ...\n"


def test_python_program_names_an_image_that_is_missing_or_no_image_in_one_line(site, exported, tmp_path):
    (tmp_path / "text.png").write_text("text", encoding="utf-8")
    for name in ("nowhere.png", "text.png"):
        done = run_python(site, exported, tmp_path / name)
        assert done.returncode == 1
        assert done.stderr.startswith(f"{tmp_path / name}: ")
        assert done.stderr.count("\n") == 1


def test_python_program_names_an_image_of_a_wrong_size_in_one_line(site, detector, images, tmp_path):
    skpatchcore.export(detector, tmp_path / "parts.onnx", image_size=(48, 64))
    done = run_python(site, tmp_path / "parts.onnx", images[0] / "good.png", images[0] / "defective.png")
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 2
    path = images[0] / "defective.png"
    expected = f"{path}: RGB, (60, 50). Expected one picture, 8 bits, size [48, 64].\n"
    assert done.stderr == expected


def test_python_program_refuses_images_with_16_bits(site, exported, tmp_path):
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(path)
    done = run_python(site, exported, path)
    assert done.returncode == 1
    assert done.stderr == f"{path}: I;16, (8, 8). Expected one picture, 8 bits, size any.\n"


def test_python_program_has_at_most_40_lines():
    assert len((PROGRAMS / "score_image.py").read_text(encoding="utf-8").splitlines()) <= 40
