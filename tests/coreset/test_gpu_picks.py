"""The greedy loop on a GPU makes the picks of the CPU: in steps of torch, and as a Triton program.

Triton's interpreter runs the program without a GPU, in a process of its own because it is chosen at import.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skpatchcore.coreset import _gpu_picks as gpu_picks
from skpatchcore.coreset._farthest import Candidates
from skpatchcore.coreset._k_center import k_center_greedy, pick_among
from skpatchcore.coreset._rows import Rows

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed; it comes with torch on Linux"
)


@st.composite
def problems(draw, n_most=24):
    """Candidates on a small grid, so that ties and duplicates are common, with a bound of the other rows."""
    n = draw(st.integers(1, n_most))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    width = draw(st.sampled_from([1, 2, 40, 2**20]))
    points = torch.from_numpy(rng.integers(-width, width + 1, (n, draw(st.integers(1, 3)))).astype(np.float64))
    rows = torch.from_numpy(np.sort(rng.choice(10 * n, n, replace=False)))
    squares = torch.from_numpy(rng.integers(0, 6 * width * width, n).astype(np.float64))
    floor = draw(st.sampled_from([-math.inf, 0.0, float(width * width), float(squares.max()), float(squares.min())]))
    first_tie = draw(st.sampled_from([math.inf, -1.0, float(rows[n // 2])]))
    return points, Candidates(rows, squares, floor, first_tie), draw(st.integers(1, n + 3))


def check_loop(loop, n_examples):
    """Compare a loop for GPUs, which gets tensors on the CPU, with the loop of the CPU."""

    @settings(max_examples=n_examples, deadline=None, database=None)
    @given(problem=problems())
    def check(problem):
        points, found, n_wanted = problem
        expected = pick_among(points, found, n_wanted)
        before = gpu_picks._program, gpu_picks.pick_in_steps
        gpu_picks._program, gpu_picks.pick_in_steps = lambda device: None, loop
        try:
            result = gpu_picks.pick_on_device(points, found, n_wanted)
        finally:
            gpu_picks._program, gpu_picks.pick_in_steps = before
        assert [part.tolist() for part in result] == [part.tolist() for part in expected]

    check()


@pytest.mark.parametrize("n_unasked", [1, 3, 128])
def test_picks_in_steps_are_those_of_the_cpu(monkeypatch, n_unasked):
    monkeypatch.setattr(gpu_picks, "_N_UNASKED", n_unasked)
    check_loop(gpu_picks.pick_in_steps, 100)


def run_with_triton(code, tmp_path, **variables):
    """Run code in a process with its own cache of Triton."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), **variables}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300, env=environment)


@needs_triton
def test_picks_of_the_interpreted_triton_program_are_those_of_the_cpu(tmp_path):
    code = (
        "from tests.coreset.test_gpu_picks import check_loop; "
        "from skpatchcore.coreset._pick_kernel import pick_in_program; check_loop(pick_in_program, 40)"
    )
    run_with_triton(code, tmp_path, TRITON_INTERPRET="1")


@needs_triton
def test_triton_program_compiles_for_gpus_without_a_gpu(tmp_path):
    code = (
        "import triton; from triton.backends.compiler import GPUTarget; from triton.compiler import ASTSource; "
        "from skpatchcore.coreset._pick_kernel import _greedy; "
        "signature = dict(squares='*fp64', least='*fp64', matrix='*fp64', order='*i64', made='*fp64', n_made='*i32', "
        "n='i32', n_wanted='i32', BLOCK='constexpr'); "
        "source = ASTSource(fn=_greedy, signature=signature, constexprs={(8,): 1024}); "
        "compiled = triton.compile(source, target=GPUTarget('cuda', 90, 32), options={'num_warps': 8}); "
        "assert 'f64' in compiled.asm['ptx'], 'the distances must stay in float64'"
    )
    run_with_triton(code, tmp_path, TRITON_INTERPRET="0")


@pytest.fixture
def fresh_program():
    gpu_picks._program.cache_clear()
    yield
    gpu_picks._program.cache_clear()


@needs_triton
def test_program_that_fails_is_replaced_with_a_warning(fresh_program, monkeypatch):
    monkeypatch.setattr(gpu_picks.torch, "zeros", lambda *args, **options: (_ for _ in ()).throw(RuntimeError("no cc")))
    with pytest.warns(RuntimeWarning, match=r"Triton does not work on 'cuda:0' \(no cc\)"):
        assert gpu_picks._program(torch.device("cuda", 0)) is None


@pytest.mark.parametrize("error", [ImportError, AttributeError, OSError])
def test_damaged_installation_of_triton_is_replaced_with_one_warning(fresh_program, monkeypatch, error):
    class Damaged(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name.startswith("skpatchcore.coreset._pick_kernel"):
                raise error("damaged")

    monkeypatch.delitem(sys.modules, "skpatchcore.coreset._pick_kernel", raising=False)
    monkeypatch.setattr(gpu_picks.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(sys, "meta_path", [Damaged(), *sys.meta_path])
    with pytest.warns(RuntimeWarning, match=r"\(damaged\)") as found:
        assert [gpu_picks._program(torch.device("cuda", 0)) for _ in range(2)] == [None, None]
    assert len(found) == 1


def test_missing_triton_is_replaced_without_a_warning(fresh_program, monkeypatch, recwarn):
    monkeypatch.setattr(gpu_picks.importlib.util, "find_spec", lambda name: None)
    assert gpu_picks._program(torch.device("cuda", 0)) is None
    assert not recwarn.list


@needs_triton
def test_device_that_fails_leaves_the_program_to_other_devices(fresh_program, monkeypatch):
    from skpatchcore.coreset import _pick_kernel as kernel

    real, tried = torch.zeros, []

    def zeros(*shape, device, **options):
        tried.append(device)
        if device.index == 0:
            raise RuntimeError("broken device")
        return real(*shape, **options)

    monkeypatch.setattr(gpu_picks.torch, "zeros", zeros)
    monkeypatch.setattr(kernel, "pick_in_program", lambda *given: None)
    with pytest.warns(RuntimeWarning, match=r"'cuda:0' \(broken device\)"):
        assert gpu_picks._program(torch.device("cuda", 0)) is None
    assert gpu_picks._program(torch.device("cuda", 1)) is kernel.pick_in_program
    assert gpu_picks._program(torch.device("cuda", 1)) is kernel.pick_in_program
    assert [device.index for device in tried] == [0, 1]


@pytest.mark.cuda
@pytest.mark.parametrize("with_triton", [True, False])
def test_selection_on_cuda_is_that_of_the_cpu(monkeypatch, with_triton):
    if not with_triton:
        monkeypatch.setattr(gpu_picks, "_program", lambda device: None)
    rng = np.random.default_rng(0)
    for X in (rng.integers(-3, 4, (5000, 3)), rng.standard_normal((6000, 32))):
        left = torch.from_numpy(np.column_stack([X, np.ones(len(X))]).astype(np.float32))  # Rows changes it in place
        expected, found = (k_center_greedy(Rows(left.clone().to(device)), 3000, 7) for device in ("cpu", "cuda"))
        assert np.array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])
