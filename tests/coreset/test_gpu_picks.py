"""The greedy loop on a GPU makes the picks of the CPU: in steps of torch, and as a Triton program.

Triton's interpreter runs the program without a GPU, in a process of its own because it is chosen at import.
"""

from __future__ import annotations

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
        gpu_picks._program, gpu_picks.pick_in_steps = lambda: None, loop
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


def test_program_that_fails_is_replaced_with_a_warning(monkeypatch):
    gpu_picks._program.cache_clear()
    monkeypatch.setattr(gpu_picks.torch, "zeros", lambda *args, **options: (_ for _ in ()).throw(RuntimeError("no cc")))
    try:
        if importlib.util.find_spec("triton") is None:
            assert gpu_picks._program() is None
        else:
            with pytest.warns(RuntimeWarning, match=r"Triton does not work on this machine \(no cc\)"):
                assert gpu_picks._program() is None
    finally:
        gpu_picks._program.cache_clear()


@pytest.mark.cuda
@pytest.mark.parametrize("with_triton", [True, False])
def test_selection_on_cuda_is_that_of_the_cpu(monkeypatch, with_triton):
    if not with_triton:
        monkeypatch.setattr(gpu_picks, "_program", lambda: None)
    rng = np.random.default_rng(0)
    for X in (rng.integers(-3, 4, (5000, 3)), rng.standard_normal((6000, 32))):
        left = torch.from_numpy(np.column_stack([X, np.ones(len(X))]).astype(np.float32))  # Rows changes it in place
        expected, found = (k_center_greedy(Rows(left.clone().to(device)), 3000, 7) for device in ("cpu", "cuda"))
        assert np.array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])
