"""Tests of `one_thread`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from threadpoolctl import ThreadpoolController

from skpatchcore import ExactIndex, GreedyCoresetSampler
from skpatchcore._utils.threads import one_thread
from skpatchcore.coreset import greedy
from skpatchcore.features._forward import ForwardPass
from skpatchcore.index._bounded import BoundedBank
from tests.factories import extractor


@pytest.fixture(autouse=True)
def _two_threads():
    """Use two OpenMP threads in this test only. torch.set_num_threads would change the rounding in later tests."""
    with ThreadpoolController().select(user_api="openmp").limit(limits=2):
        yield


def test_one_thread_limits_small_work_only_and_restores_the_number_of_threads():
    with one_thread(True):
        assert torch.get_num_threads() == 1
        with one_thread(True), one_thread(False):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
    with one_thread(False):
        assert torch.get_num_threads() == 2
    with pytest.raises(ZeroDivisionError), one_thread(True):
        _ = 1 / 0
    assert torch.get_num_threads() == 2


def test_one_thread_limits_the_calling_thread_only():
    with ThreadPoolExecutor(1) as pool:
        elsewhere = pool.submit(torch.get_num_threads).result(timeout=60)
        with one_thread(True):
            assert pool.submit(torch.get_num_threads).result(timeout=60) == elsewhere

        def within():
            with one_thread(True):  # in a new thread, where torch has not computed anything yet
                return torch.ones(1000).sum().item(), torch.get_num_threads()

        with ThreadPoolExecutor(1) as other:
            assert other.submit(within).result(timeout=60) == (1000, 1)
    assert torch.get_num_threads() == 2


def watched(monkeypatch, owner, name):
    """Record the number of threads at each call of a function. Return the list, which grows with each call."""
    seen, original = [], getattr(owner, name)

    def watch(*args, **kwargs):
        seen.append(torch.get_num_threads())
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, watch)
    return seen


def test_small_selections_and_searches_use_one_thread_and_large_ones_use_all(monkeypatch):
    selections, searches = (
        watched(monkeypatch, greedy, "k_center_greedy"),
        watched(monkeypatch, BoundedBank, "kneighbors"),
    )
    rows = np.random.default_rng(0).normal(size=(20_000, 100)).astype(np.float32)
    GreedyCoresetSampler(20).fit(rows[:1000])
    GreedyCoresetSampler(200).fit(rows)
    assert selections == [1, 2]
    index = ExactIndex().fit(rows)
    index.kneighbors(rows[:10])
    index.kneighbors(rows[:1000])
    assert searches == [1, 2]


def test_network_uses_one_thread_for_small_images_at_any_batch_size(monkeypatch):
    seen = watched(monkeypatch, ForwardPass, "_run")
    rng = np.random.default_rng(0)
    for batch_size in (1, 4):
        extractor(batch_size=batch_size).transform(rng.random((4, 48, 48, 3)))
    assert set(seen) == {1}
    seen.clear()
    extractor().transform(rng.random((1, 160, 160, 3)))
    assert seen == [2]
