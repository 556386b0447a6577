"""Test that detectors move between machines with and without a GPU; with a CUDA device, also test the CUDA code."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from skpatchcore import (
    ExactIndex,
    ImageError,
    LearnedProxySampler,
    PaDiMDetector,
    SPADEDetector,
    load,
    save,
)
from skpatchcore.features._forward import ForwardPass
from tests.factories import detector, extractor

# Relative tolerance: convolutions on a GPU use TF32, which rounds more coarsely than float32 on a CPU.
ROUNDING = 5e-3


def to_device(model, device):
    """Set `device` in the detector and its fitted stages, which hold the device's name and no torch object."""
    for part in (model, model.extractor_, model.sampler_, model.index_):
        part.set_params(device=device)
    return model


def test_file_saved_with_device_cuda_scores_on_the_cpu_with_a_warning(parts, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device; the tests marked 'cuda' test both directions")
    on_cpu = detector(device="cpu").fit(parts[0])
    expected = [on_cpu.score_samples(X) for X in parts]
    save(to_device(on_cpu, "cuda"), tmp_path / "cuda.skops")
    loaded = load(tmp_path / "cuda.skops")
    assert loaded.index_.device == "cuda"
    for X, scores in zip(parts, expected, strict=True):
        with pytest.warns(RuntimeWarning, match=r"device='cuda' is not available.*The CPU is used instead"):
            np.testing.assert_array_equal(loaded.score_samples(X), scores)
    with pytest.raises(ValueError, match="no such device"):
        loaded.fit(parts[0])


def run_of_little_memory(failures):
    """Return a replacement for `ForwardPass._run` that fails as if out of memory at the batch sizes in `failures`."""
    run = ForwardPass._run

    def scarce(self, batch, checks):
        if len(batch) in failures:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
            )
        return run(self, batch, checks)

    return scarce


@pytest.mark.parametrize("failures", [[4], [4, 2]])
def test_batch_that_does_not_fit_in_memory_is_halved_with_a_warning(monkeypatch, parts, failures):
    model = extractor(device="cpu", batch_size=4).fit()
    expected = model.transform(parts[0])
    monkeypatch.setattr(ForwardPass, "_run", run_of_little_memory(failures))
    with pytest.warns(RuntimeWarning, match="images at 48×64 pixels take more memory than cpu has left"):
        found = model.transform(parts[0])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*go through the network in halves:RuntimeWarning")
def test_single_image_that_does_not_fit_in_memory_raises_with_its_index(monkeypatch, parts):
    model = extractor(device="cpu", batch_size=4).fit()
    monkeypatch.setattr(ForwardPass, "_run", run_of_little_memory([4, 2, 1]))
    with pytest.raises(MemoryError, match=r"image 0 at 48×64 pixels.*smaller image_size"):
        model.transform(parts[0])


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("n_channels", [None, 100])
def test_features_on_cuda_equal_features_on_cpu(parts, dtype, n_channels):
    on_cpu, on_cuda = (
        extractor(device=device, dtype=dtype, n_channels=n_channels).transform(parts[0]) for device in ("cpu", "cuda")
    )
    error = np.linalg.norm(on_cuda - on_cpu, axis=-1) / np.linalg.norm(on_cpu, axis=-1)
    assert error.max() < (ROUNDING if dtype == "float32" else 0.1)


@pytest.mark.cuda
def test_detectors_fitted_on_cuda_and_cpu_score_alike_and_move_as_files(parts, tmp_path):
    fitted = {device: detector(device=device, contamination=0.1).fit(parts[0]) for device in ("cpu", "cuda")}
    X = np.concatenate(parts[1:])
    np.testing.assert_allclose(
        fitted["cuda"].sampler_.selection_distances_, fitted["cpu"].sampler_.selection_distances_, rtol=2 * ROUNDING
    )
    np.testing.assert_allclose(fitted["cuda"].score_samples(X), fitted["cpu"].score_samples(X), rtol=4 * ROUNDING)
    for here, there in (("cuda", "cpu"), ("cpu", "cuda")):
        save(fitted[here], tmp_path / "a.skops")
        moved = to_device(load(tmp_path / "a.skops"), there)
        np.testing.assert_allclose(moved.score_samples(X), fitted[here].score_samples(X), rtol=ROUNDING)
        np.testing.assert_allclose(np.stack(moved.segment(X)), fitted[here].segment(X), rtol=ROUNDING, atol=ROUNDING)
        np.testing.assert_array_equal(moved.predict(X), fitted[here].predict(X))


@pytest.mark.cuda
def test_same_seed_gives_the_same_bank_on_cuda(parts):
    banks = [detector(device="cuda").fit(parts[0]).memory_bank_ for _ in range(2)]
    np.testing.assert_array_equal(*banks)


@pytest.mark.cuda
@pytest.mark.parametrize("storage", [None, "float16"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_search_on_cuda_equals_search_on_cpu(storage, dtype):
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(size=(5000, 60)).astype(dtype), rng.normal(size=(99, 60)).astype(dtype)
    queries[:3] = bank[:3]
    on_cpu, on_cuda = (ExactIndex(device=device, storage=storage).fit(bank) for device in ("cpu", "cuda"))
    for exclude in (None, np.arange(0, 5000, 3)):
        found, expected = (index.kneighbors(queries, 9, exclude=exclude) for index in (on_cuda, on_cpu))
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found[1], expected[1])
        starts = np.array([0, 1, 40, 99])
        for a, b in zip(on_cuda.farthest(queries, starts), on_cpu.farthest(queries, starts), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.cuda
def test_threads_share_one_detector_on_cuda(parts):
    model = detector(device="cuda").fit(parts[0])
    expected = model.score_samples(parts[1])
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda _: model.score_samples(parts[1]), range(40)):
            np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.cuda
@pytest.mark.parametrize(
    "make", [lambda e: SPADEDetector(e), lambda e: PaDiMDetector(e, n_channels=20, random_state=0)]
)
def test_baselines_on_cuda_score_as_on_cpu(parts, make):
    X = np.concatenate(parts[1:])
    on_cpu, on_cuda = (make(extractor(device=device)).fit(parts[0]).score_samples(X) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(on_cuda, on_cpu, rtol=4 * ROUNDING)


@pytest.mark.cuda
def test_learned_proxies_on_cuda_are_finite():
    X = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)
    on_cpu, on_cuda = (LearnedProxySampler(20, device=d, random_state=0).fit(X) for d in ("cpu", "cuda"))
    assert on_cuda.components_.shape == on_cpu.components_.shape
    assert np.isfinite(on_cuda.components_).all()


@pytest.mark.cuda
def test_batch_that_does_not_fit_on_cuda_is_halved_with_a_warning():
    X = np.random.default_rng(0).random((16, 512, 512, 3), np.float32)
    expected = extractor(device="cuda", batch_size=1).transform(X)
    _, total = torch.cuda.mem_get_info()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + 450e6) / total)
    try:
        with pytest.warns(RuntimeWarning, match="in halves"):
            found = extractor(device="cuda", batch_size=16).transform(X)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    error = np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert error.max() < ROUNDING


@pytest.mark.cuda
def test_unusable_features_on_cuda_raise_with_the_index_of_the_image():
    X = np.random.default_rng(0).random((5, 64, 64, 3), np.float32)
    broken = extractor(device="cuda", batch_size=2, mean=[0.0, 0.0, 0.0], std=[1e-30, 1e-30, 1e-30])
    with pytest.raises(ImageError, match=r"image 0: .*NaN or infinite"):
        broken.transform(X)


@pytest.mark.cuda
def test_files_read_by_several_threads_for_cuda_have_the_features_of_arrays(tmp_path):
    X = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), np.uint8)
    paths = [str(tmp_path / f"{i}.png") for i in range(len(X))]
    for path, image in zip(paths, X, strict=True):
        Image.fromarray(image).save(path)
    found, expected = (extractor(device="cuda", batch_size=2).transform(images) for images in (paths, X))
    assert np.array_equal(found, expected)


@pytest.mark.cuda
def test_cuda_device_that_does_not_exist_is_refused(parts):
    name = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(ValueError, match="no such device"):
        extractor(name).fit()
