"""`available_bytes`: the memory that this process can still allocate, which is the smallest of several limits.

On Linux, the limits are the machine's free memory, the limits of the process's control group and of all groups above
it, and the resource limits of the process (``ulimit``). A limit that cannot be read is ignored. On other systems, the
only limit is the machine's free memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

# Files of a control group, by version: limit, use, and the key in memory.stat of the page cache that can be dropped.
_FILES = {
    "cgroup2": ("memory.max", "memory.current", "inactive_file"),
    "cgroup": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
# In version 2, a process that exceeds memory.high is not stopped, but it is slowed down until it hardly runs.
_SOFT_LIMIT = "memory.high"


def available_bytes(root: Path = Path("/")) -> int:
    """Return the number of bytes that this process can allocate without swapping or exceeding a limit.

    Parameters
    ----------
    root : path, default="/"
        Folder that contains ``proc`` and the mount points. Tests pass another folder.

    Returns
    -------
    int
        Number of bytes, at least 0.
    """
    import psutil

    left = [int(psutil.virtual_memory().available), *_left_in_cgroups(root), *_left_in_rlimits(root)]
    return max(0, min(left))


def cgroups_of(text: str) -> dict[str, str]:
    """Return the process's control groups that limit memory, from the text of ``/proc/self/cgroup``.

    Returns
    -------
    dict of str to str
        Path of the group in its hierarchy, by file system type (``"cgroup2"`` or ``"cgroup"``).
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
    """Return the mounted hierarchies that may limit memory, from the text of ``/proc/self/mountinfo``.

    Returns
    -------
    list of (str, str, str)
        File system type, path of the mounted group in its hierarchy, and mount point.
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
    """Return the folders of a control group and of its ancestors, up to the mount point.

    Parameters
    ----------
    path : str
        Path of the process's group in the hierarchy.
    mounted : str
        Path of the mounted group in the hierarchy. This is ``"/"``, or the container's own group in some containers.
    mount_point : str
        Folder where the group `mounted` is mounted.

    Returns
    -------
    list of PurePosixPath
        The group's folder first, the mount point last.
    """
    base = PurePosixPath(mount_point)
    group = PurePosixPath(path)
    if ".." in group.parts:  # the group lies outside the container's namespace: only the mounted group is visible
        return [base]
    try:
        below = group.relative_to(mounted)
    except ValueError:  # the path is given relative to another root: only the mounted group is known
        below = PurePosixPath()
    folder = base / below
    return [folder, *(parent for parent in folder.parents if parent == base or base in parent.parents)]


def left_in_group(folder: Path, kind: str) -> int | None:
    """Return the number of bytes left below the limit of one control group; None if the group has no limit.

    Page cache that the kernel can drop does not count as used.
    """
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
    """Yield the bytes left in each control group of the process that has a limit."""
    groups = cgroups_of(_text_of(root / "proc/self/cgroup") or "")
    for kind, mounted, mount_point in mounts_of(_text_of(root / "proc/self/mountinfo") or ""):
        if kind not in groups:
            continue
        for folder in folders_of(groups[kind], mounted, mount_point):
            left = left_in_group(root / folder.relative_to("/"), kind)
            if left is not None:
                yield left


def used_of(status: str) -> dict[str, int]:
    """Return the sizes of a process's address space and data segment, from the text of ``/proc/self/status``.

    Returns
    -------
    dict of str to int
        Bytes, by ``"VmSize"`` (address space) and ``"VmData"`` (data segment).
    """
    found = {}
    for name in ("VmSize", "VmData"):
        match = re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE)
        if match:
            found[name] = int(match[1]) * 1024
    return found


def _left_in_rlimits(root: Path) -> Iterator[int]:
    """Yield the bytes left below each resource limit of the process."""
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
    """Decode a path of mountinfo, which writes spaces and some other characters as octal escapes."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _text_of(path: Path) -> str | None:
    """Return the text of a file; None if the file cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return None


def _number_in(path: Path) -> int | None:
    """Return the number in a file; None if the file cannot be read or holds no number, such as "max"."""
    text = (_text_of(path) or "").strip()
    return int(text) if text.isdecimal() else None
