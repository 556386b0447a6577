"""Weights files and networks by their content, so that a changed one is never taken for the one before."""

from __future__ import annotations

import hashlib
import os
import time
import types
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Set
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import fx, nn

# Nanoseconds after which a change of a file certainly shows in its times.
_SETTLED = 2 * 10**9
# Settings of modules that are compared as they are.
_SIMPLE = (
    bool, int, float, complex, str, bytes, type(None), type, torch.dtype, torch.device, types.FunctionType,
    types.BuiltinFunctionType,
)  # fmt: skip
# Levels of containers that are followed.
_DEPTH = 8
# Attributes of every module: its parts and tensors are compared on their own, hooks are not.
_OF_TORCH = frozenset(vars(nn.Module()))
# Digests of files by path, with what the system said of the file when it was read.
_files: dict[str, tuple[tuple[int, ...], str]] = {}


def digest_of_file(file: Path) -> str:
    """Return the SHA-256 of a file's content.

    The digest is reused if device, inode, size, mtime and ctime are unchanged, and if the file was at least 2 seconds
    old when it was read. Windows has no ctime, so files are read each time there.
    """
    with file.open("rb") as content:
        stat = os.fstat(content.fileno())
        seen = stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
        known = _files.get(str(file))
        if known is not None and known[0] == seen:
            return known[1]
        now = time.time_ns()
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    _files.pop(str(file), None)
    if os.name == "posix" and now - max(stat.st_mtime_ns, stat.st_ctime_ns) > _SETTLED:
        _files[str(file)] = seen, digest
    return digest


def network_fingerprint(module: nn.Module) -> tuple[Any, ...]:
    """Return what a network does in this process: its modules, their settings, and checksums of their tensors.

    Copies have equal fingerprints. A changed weight or setting changes the fingerprint.
    """
    parts = tuple((name, _kind(part), *frozen_settings(part)) for name, part in module.named_modules())
    tensors = (*module.named_parameters(), *module.named_buffers())
    return parts, tuple((name, _checksum(tensor)) for name, tensor in tensors)


def _kind(part: nn.Module) -> Any:
    # the class of a traced module is made for it alone; its code is what counts
    return part.code if isinstance(part, fx.GraphModule) else type(part)


def frozen_settings(part: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield names and hashable copies of a module's own attributes: not of its parts and its tensors."""
    for name, value in sorted(vars(part).items()):
        if name not in _OF_TORCH:
            yield name, _frozen(value)


def _frozen(value: Any, depth: int = _DEPTH) -> Any:
    """Return a hashable copy of a module's setting: equal for equal content, whatever happens to the original later.

    Parameters
    ----------
    value : object
        Containers, arrays and tensors are followed; of objects of other classes, the class alone counts.
    depth : int, default=8
        Levels of containers that are followed.
    """
    kind = type(value).__name__
    if isinstance(value, torch.Tensor):
        return kind, _checksum(value)
    if isinstance(value, np.ndarray) and value.dtype != object:
        return kind, value.shape, str(value.dtype), zlib.crc32(np.ascontiguousarray(value).tobytes())
    if isinstance(value, float | complex | np.generic):
        return kind, repr(value)  # nan equals itself
    if isinstance(value, _SIMPLE):
        return kind, value
    if depth == 0 or not isinstance(value, np.ndarray | Mapping | Set | list | tuple | deque | partial | MethodType):
        return kind, type(value)
    if isinstance(value, Mapping):
        items = [(_frozen(key, depth - 1), _frozen(item, depth - 1)) for key, item in value.items()]
        return kind, tuple(items)
    if isinstance(value, Set):
        return kind, frozenset(_frozen(item, depth - 1) for item in value)
    if isinstance(value, partial):
        value = [value.func, value.args, value.keywords]
    elif isinstance(value, MethodType):
        value = [value.__func__]
    elif isinstance(value, np.ndarray):
        value = [value.shape, *value.ravel().tolist()]
    return kind, tuple(_frozen(item, depth - 1) for item in value)


def _checksum(tensor: torch.Tensor) -> tuple[Any, ...]:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return tuple(tensor.shape), tensor.dtype, zlib.crc32(flat.view(torch.uint8).numpy().data)
