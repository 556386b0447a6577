"""available_bytes: the memory that this process may still take, the smallest of all limits that it is under.

On Linux: the machine's free memory; the limits of the control groups that the process is in, from its own up to the
root; and its resource limits (``ulimit``). A limit that can't be read is no limit. On other systems: the machine's free
memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

# Files of a control group, by version: limit, use, and the line of memory.stat that says what could be dropped at once.
_FILES = {
    "cgroup2": ("memory.max", "memory.current", "inactive_file"),
    "cgroup": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
# In version 2, use above memory.high is not refused, but slowed down until hardly anything runs.
_SOFT_LIMIT = "memory.high"


def available_bytes(root: Path = Path("/")) -> int:
    """Return the bytes that this process may take without swapping or breaking a limit; at least 0.

    Parameters
    ----------
    root : path, default="/"
        Where ``proc`` and the mount points are.
    """
    left = [int(psutil.virtual_memory().available), *_left_in_cgroups(root), *_left_in_rlimits(root)]
    return max(0, min(left))


def cgroups_of(text: str) -> dict[str, str]:
    """Return the process's control groups that limit memory, from ``/proc/self/cgroup``.

    Returns
    -------
    dict of str to str
        Path in the hierarchy by file system type: ``"cgroup2"``, ``"cgroup"``.
    """
    found = {}
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            found["cgroup2"] = path
        elif "memory" in controllers.split(","):
            found["cgroup"] = path
    return found


def mounts_of(text: str) -> list[tuple[str, str, str]]:
    """Return the mount points of hierarchies that may limit memory, from ``/proc/self/mountinfo``.

    Returns
    -------
    list of (str, str, str)
        File system type, the path in the hierarchy that is mounted, and the mount point.
    """
    found = []
    for line in text.splitlines():
        fields, separator, rest = line.partition(" - ")
        before, after = fields.split(" "), rest.split(" ")
        if not separator or len(before) < 6 or len(after) < 3:
            continue
        kind, options = after[0], after[2].split(",")
        if kind == "cgroup2" or (kind == "cgroup" and "memory" in options):
            found.append((kind, _unescaped(before[3]), _unescaped(before[4])))
    return found


def folders_of(path: str, mounted: str, mount_point: str) -> list[PurePosixPath]:
    """Return the folders of a control group and its ancestors, up to the mount point.

    Parameters
    ----------
    path : str
        The group's path in the hierarchy.
    mounted : str
        The path in the hierarchy that is mounted: ``"/"``, or in some containers the container's own group.
    mount_point : str
        Where it is mounted.
    """
    base = PurePosixPath(mount_point)
    group = PurePosixPath(path)
    if ".." in group.parts:  # outside of what a container's namespace shows
        return [base]
    try:
        below = group.relative_to(mounted)
    except ValueError:  # the process sees its path from elsewhere: only the mounted group is known
        below = PurePosixPath()
    folder = base / below
    return [folder, *(parent for parent in folder.parents if parent == base or base in parent.parents)]


def left_in_group(folder: Path, kind: str) -> int | None:
    """Return the bytes left below the limit of one control group; None if it has no limit."""
    limit_file, use_file, droppable = _FILES[kind]
    limits = [_number_in(folder / limit_file)]
    if kind == "cgroup2":
        limits.append(_number_in(folder / _SOFT_LIMIT))
    use, known = _number_in(folder / use_file), [limit for limit in limits if limit is not None]
    if not known or use is None:
        return min(known, default=None)
    text = _text_of(folder / "memory.stat") or ""
    match = re.search(rf"^{droppable} (\d+)$", text, re.MULTILINE)
    return max(0, min(known) - max(0, use - (int(match[1]) if match else 0)))


def _left_in_cgroups(root: Path) -> Iterator[int]:
    groups = cgroups_of(_text_of(root / "proc/self/cgroup") or "")
    for kind, mounted, mount_point in mounts_of(_text_of(root / "proc/self/mountinfo") or ""):
        if kind not in groups:
            continue
        for folder in folders_of(groups[kind], mounted, mount_point):
            left = left_in_group(root / folder.relative_to("/"), kind)
            if left is not None:
                yield left


def used_of(status: str) -> dict[str, int]:
    """Return the address space and the data segment that a process uses, in bytes, from ``/proc/self/status``."""
    found = {}
    for name in ("VmSize", "VmData"):
        match = re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
        if match:
            found[name] = int(match[1]) * 1024
    return found


def _left_in_rlimits(root: Path) -> Iterator[int]:
    if resource is None:
        return
    used = used_of(_text_of(root / "proc/self/status") or "")
    for name, used_name in (("RLIMIT_AS", "VmSize"), ("RLIMIT_DATA", "VmData")):
        if not hasattr(resource, name) or used_name not in used:
            continue
        limit, _ = resource.getrlimit(getattr(resource, name))
        if limit != resource.RLIM_INFINITY:
            yield max(0, limit - used[used_name])


def _unescaped(text: str) -> str:
    """Return a path of mountinfo, in which spaces and the like are octal."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _text_of(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None


def _number_in(path: Path) -> int | None:
    """Return the number in a file; None if there is no such file, or it says "max"."""
    text = (_text_of(path) or "").strip()
    return int(text) if text.isdecimal() else None
