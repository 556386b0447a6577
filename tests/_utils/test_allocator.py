from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from skpatchcore._utils.allocator import FreedMemory, resident_bytes

# Print whether an array that is freed and allocated again is made of new pages of the system.
SCRIPT = """
import resource
import numpy as np
from skpatchcore._utils.allocator import keep_freed_memory
print(keep_freed_memory())
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(16_000_000)
before = faults()
for _ in range(5):
    np.ones(16_000_000)
print(faults() - before)
"""


def run(**variables):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    text = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={**kept, **variables},
    ).stdout
    is_changed, n_faults = text.split()
    return is_changed == "True", int(n_faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator of the GNU C library is needed")
def test_freed_memory_is_used_again_without_new_pages():
    is_changed, n_faults = run()
    assert is_changed
    assert n_faults < 1000  # 128 MB have 31,250 pages of 4 KB


def test_allocator_is_left_alone_if_the_user_has_set_it():
    is_changed, _ = run(MALLOC_ARENA_MAX="2")
    assert not is_changed


def test_freed_memory_is_given_back_after_growth_beyond_the_first_batch(monkeypatch):
    memory, trims = iter([10, 100, 300, 400, 300, 500, 559, 561]), []
    megabytes = 1_000_000
    monkeypatch.setattr("skpatchcore._utils.allocator.resident_bytes", lambda: next(memory) * megabytes)
    monkeypatch.setattr("skpatchcore._utils.allocator._function", lambda name: trims.append)
    freed, n_trims = FreedMemory(), []
    for _ in range(8):
        freed.after_batch()
        n_trims.append(len(trims))
    # 256 MB more than after the first batch (10, then 300) are given back; a new first batch follows each time.
    assert n_trims == [0, 0, 1, 1, 1, 1, 1, 1]
    assert trims == [0]


def test_freed_memory_does_nothing_without_the_gnu_c_library(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    freed = FreedMemory()
    for _ in range(2):
        freed.after_batch()


def test_resident_memory_grows_with_an_array():
    before = resident_bytes()
    if before is None:
        pytest.skip("the system does not state the memory of a process")
    held = bytearray(os.urandom(1) * 50_000_000)
    assert resident_bytes() > before + 0.8 * len(held)
