"""Tests of `available_bytes` with artificial files of control groups and with real limits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from skpatchcore._utils import limits
from skpatchcore._utils.limits import (
    available_bytes,
    cgroups_of,
    folders_of,
    left_in_group,
    mounts_of,
    used_of,
)

FREE = 10**6
V1 = "31 23 0:28 / /sys rw - tmpfs tmpfs rw,mode=755\n35 31 0:32 {root} {point} rw - cgroup cgroup rw,{which}\n"
V2 = "29 23 0:26 {root} {point} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


class System:
    """Artificial ``/proc`` and ``/sys`` files of a Linux system."""

    def __init__(self, root: Path):
        self.root = root
        self.write("/proc/self/status", "Name:\tpython\nVmSize:\t    100 kB\nVmData:\t     40 kB\n")

    def write(self, path, text):
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def process_in(self, groups, mounts):
        self.write("/proc/self/cgroup", groups)
        self.write("/proc/self/mountinfo", "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n" + mounts)

    def group_v2(self, folder, limit="max", use=0, inactive=0, high="max"):
        for name, value in (("memory.max", limit), ("memory.current", use), ("memory.high", high)):
            self.write(f"{folder}/{name}", f"{value}\n")
        self.write(f"{folder}/memory.stat", f"anon 5\ninactive_file {inactive}\nactive_file 9\n")

    def group_v1(self, folder, limit, use=0, inactive=0):
        self.write(f"{folder}/memory.limit_in_bytes", f"{limit}\n")
        self.write(f"{folder}/memory.usage_in_bytes", f"{use}\n")
        self.write(f"{folder}/memory.stat", f"inactive_file 1\ntotal_inactive_file {inactive}\n")


@pytest.fixture
def system(tmp_path, monkeypatch):
    memory = type("Memory", (), {"available": FREE})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(limits, "resource", None)
    return System(tmp_path)


def test_available_bytes_without_known_limits_is_the_free_memory(system):
    assert available_bytes(system.root) == FREE
    assert available_bytes(system.root / "nowhere") == FREE


def test_available_bytes_respects_the_limit_of_its_own_version_2_group(system):
    system.process_in("0::/user.slice/job.scope\n", V2.format(root="/", point="/sys/fs/cgroup"))
    system.group_v2("/sys/fs/cgroup/user.slice/job.scope", limit=1000, use=400, inactive=100)
    assert available_bytes(system.root) == 700


@pytest.mark.parametrize("group", ["", "/a", "/a/b", "/a/b/c"])
def test_available_bytes_respects_the_limits_of_all_parent_groups(system, group):
    system.process_in("0::/a/b/c\n", V2.format(root="/", point="/sys/fs/cgroup"))
    for other in ("/a", "/a/b", "/a/b/c"):
        system.group_v2(f"/sys/fs/cgroup{other}", limit=5000, use=10)
    system.group_v2(f"/sys/fs/cgroup{group}", limit=3000, use=1000)
    assert available_bytes(system.root) == 2000
    system.group_v2(f"/sys/fs/cgroup{group}", limit="max", use=1000)
    assert available_bytes(system.root) == (4990)


def test_available_bytes_respects_the_smaller_of_memory_max_and_memory_high(system):
    system.process_in("0::/job\n", V2.format(root="/", point="/sys/fs/cgroup"))
    system.group_v2("/sys/fs/cgroup/job", limit=5000, use=1000, high=3000)
    assert available_bytes(system.root) == 2000
    system.group_v2("/sys/fs/cgroup/job", use=1000, high=3000)
    assert available_bytes(system.root) == 2000


def test_available_bytes_is_never_negative(system):
    system.process_in("0::/job\n", V2.format(root="/", point="/sys/fs/cgroup"))
    system.group_v2("/sys/fs/cgroup/job", limit=1000, use=4000)
    assert available_bytes(system.root) == 0


@pytest.mark.parametrize("point", ["/sys/fs/cgroup/memory", "/mnt/c groups"])
def test_available_bytes_respects_version_1_groups_at_any_mount_point(system, point):
    groups = "9:name=systemd:/\n4:cpuset,memory:/jobs/7\n0::/\n"
    mounts = V1.format(root="/", point=point.replace(" ", r"\040"), which="cpuset,memory")
    system.process_in(groups, mounts + V2.format(root="/", point="/sys/fs/cgroup/unified"))
    system.group_v1(f"{point}/jobs/7", 2**63 - 4096, use=10)
    system.group_v1(f"{point}/jobs", 4000, use=1000, inactive=200)
    assert available_bytes(system.root) == 3200
    # a hierarchy without the memory controller is ignored
    system.process_in(groups.replace(",memory", ""), mounts)
    assert available_bytes(system.root) == FREE


def test_available_bytes_respects_a_group_that_is_mounted_as_root_of_a_container(system):
    """Check a container without its own namespace: it sees the complete group path, but only its group is mounted."""
    system.process_in("0::/docker/abc/inner\n", V2.format(root="/docker/abc", point="/sys/fs/cgroup"))
    system.group_v2("/sys/fs/cgroup", limit=900)
    system.group_v2("/sys/fs/cgroup/inner", limit=1000)
    assert available_bytes(system.root) == 900


@pytest.mark.parametrize("path", ["/../other", "/elsewhere/x"])
def test_available_bytes_respects_the_mounted_group_if_its_own_group_is_not_visible(system, path):
    system.process_in(f"0::{path}\n", V2.format(root="/docker/abc", point="/sys/fs/cgroup"))
    system.group_v2("/sys/fs/cgroup", limit=900)
    assert available_bytes(system.root) == 900


class Limits:
    RLIM_INFINITY, RLIMIT_AS, RLIMIT_DATA = -1, 9, 2

    def __init__(self, address_space, data):
        self.values = {9: address_space, 2: data}

    def getrlimit(self, which):
        return self.values[which], -1


@pytest.mark.parametrize(
    ("address_space", "data", "expected"),
    [
        (-1, -1, FREE),
        (300 * 1024, -1, 200 * 1024),
        (-1, 90 * 1024, 50 * 1024),
        (5, -1, 0),
        (300 * 1024, 41 * 1024, 1024),
    ],
)
def test_available_bytes_respects_resource_limits(system, monkeypatch, address_space, data, expected):
    monkeypatch.setattr(limits, "resource", Limits(address_space, data))
    assert available_bytes(system.root) == expected


def test_parsers_ignore_unknown_lines_and_missing_files(tmp_path):
    assert cgroups_of("") == {}
    assert cgroups_of("no such line\n1:cpu:/a\n3:memory:/x:y\n") == {"cgroup": "/x:y"}
    assert mounts_of("short - line\n\n1 2 3\n") == []
    assert [str(f) for f in folders_of("/a/b", "/", "/m")] == ["/m/a/b", "/m/a", "/m"]
    assert [str(f) for f in folders_of("/", "/", "/m")] == ["/m"]
    assert used_of("Name: x\n") == {}
    assert left_in_group(tmp_path, "cgroup2") is None
    (tmp_path / "memory.max").write_text("77")
    assert left_in_group(tmp_path, "cgroup2") == 77


LIMITED = """
import resource
from skpatchcore._utils.limits import available_bytes
resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))
print(available_bytes())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_available_bytes_respects_ulimit_of_a_real_process():
    limit = 3 * 2**30
    said = subprocess.run(
        [sys.executable, "-c", LIMITED.format(limit=limit)], capture_output=True, text=True, check=True, timeout=300
    ).stdout
    assert 0 < int(said) < limit
    assert 0 < available_bytes() <= psutil.virtual_memory().total
