"""Work in other threads: results in order, errors in their place, bounded numbers of unfinished tasks."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skpatchcore._utils.ahead import Beside, mapped_ahead, prefetched


def failing_at(bad, value):
    if value == bad:
        raise ValueError(str(value))
    return value * value


@given(n_items=st.integers(0, 20), n_threads=st.integers(1, 4), bad=st.integers(0, 25))
def test_mapped_ahead_yields_results_in_order_up_to_the_first_error(n_items, n_threads, bad):
    found = []
    if bad < n_items:
        with pytest.raises(ValueError, match=str(bad)):
            found.extend(mapped_ahead(partial(failing_at, bad), range(n_items), n_threads))
        # list.extend keeps what it got before the error
    else:
        found.extend(mapped_ahead(partial(failing_at, bad), range(n_items), n_threads))
    assert found == [i * i for i in range(min(n_items, bad))]


@pytest.mark.parametrize("n_threads", [1, 3])
def test_mapped_ahead_computes_few_results_ahead_and_stops_when_closed(n_threads):
    started = []
    results = mapped_ahead(lambda i: started.append(i) or i, range(100), n_threads)
    assert [next(results) for _ in range(5)] == list(range(5))
    results.close()
    assert len(started) <= 5 + n_threads


def test_prefetched_raises_an_error_in_its_place():
    def items():
        yield 1
        raise ValueError("second")

    found = prefetched(items())
    assert next(found) == 1
    with pytest.raises(ValueError, match="second"):
        next(found)


@pytest.mark.parametrize("n_threads", [1, 4])
def test_beside_returns_results_in_order_and_limits_pending_data(n_threads):
    unfinished, lock, most = set(), threading.Lock(), 0
    found = []

    def task(i):
        time.sleep(0.002 * (i % 3))
        with lock:
            unfinished.discard(i)
        return i

    used = []
    with Beside(n_threads, 30, used.append) as beside:
        for i in range(40):
            with lock:
                unfinished.add(i)
                most = max(most, len(unfinished))
            beside.submit(partial(task, i), 10)
            found.extend(beside.finished())
        found.extend(beside.rest())
    assert found == used == list(range(40))
    assert most <= 4  # three that wait, and the new one


def test_beside_accepts_a_task_that_is_larger_than_the_limit_and_raises_its_error():
    with Beside(1, 0, lambda result: None) as beside:
        beside.submit(lambda: 1, 10**12)
        assert list(beside.finished()) == [1]
        beside.submit(partial(failing_at, 2, 2), 1)
        with pytest.raises(ValueError, match="2"):
            list(beside.rest())


@given(
    n_items=st.integers(0, 12), n_threads=st.integers(1, 3), bad=st.sets(st.integers(0, 12)), n_taken=st.integers(0, 12)
)
def test_beside_uses_all_other_results_if_tasks_or_the_caller_fail(n_items, n_threads, bad, n_taken):
    def task(i):
        if i in bad:
            raise ValueError(str(i))
        return i

    used, found, failed = [], [], []
    with suppress(KeyboardInterrupt), Beside(n_threads, 10**9, used.append) as beside:
        for i in range(n_items):
            beside.submit(partial(task, i), 1)
        for _ in range(min(n_items, n_taken)):
            try:
                found.append(next(beside.rest()))
            except ValueError as error:
                failed.append(int(str(error)))
        raise KeyboardInterrupt
    assert used == [i for i in range(n_items) if i not in bad]
    assert found == [i for i in range(min(n_items, n_taken)) if i not in bad]
    assert failed == [i for i in range(min(n_items, n_taken)) if i in bad]
