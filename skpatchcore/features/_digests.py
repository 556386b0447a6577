"""Weights files and networks by their content, so that a changed one is never taken for the one before."""

from __future__ import annotations

import hashlib
import os
import time
import types
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

# Nanoseconds after which a change of a file certainly shows in its times.
_SETTLED = 2 * 10**9
# Settings of modules that are compared.
_SIMPLE = (bool, int, float, str, tuple, type(None), torch.dtype, types.FunctionType, types.BuiltinFunctionType)
# Digests of files by path, with what the system said of the file when it was read.
_files: dict[str, tuple[tuple[int, ...], str]] = {}


def digest_of_file(file: Path) -> str:
    """Return the SHA-256 of a file's content.

    It is read again unless the system says that nothing has been written since: by the time of the last change of
    anything (which, unlike the time of the last write, can't be set), by its number, and only if that time was no
    longer young when the file was read. Windows has no such time, so files are read each time there.
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


def fingerprint(module: nn.Module) -> tuple[Any, ...]:
    """Return what a network does in this process: its modules, their settings, and checksums of their tensors.

    Equal for a copy, other if one weight or one setting is.
    """
    parts = tuple((name, _kind(part), *_settings(part)) for name, part in module.named_modules())
    tensors = (*module.named_parameters(), *module.named_buffers())
    return parts, tuple((name, _checksum(tensor)) for name, tensor in tensors)


def _kind(part: nn.Module) -> Any:
    # the class of a traced module is made for it alone; its code is what counts
    return part.code if isinstance(part, fx.GraphModule) else type(part)


def _settings(part: nn.Module) -> Iterator[Any]:
    for name, value in sorted(vars(part).items()):
        if isinstance(value, torch.Tensor):
            yield name, _checksum(value)
        elif name != "training" and isinstance(value, _SIMPLE):
            yield name, repr(value) if isinstance(value, tuple | float) else value


def _checksum(tensor: torch.Tensor) -> tuple[Any, ...]:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return tuple(tensor.shape), tensor.dtype, zlib.crc32(flat.view(torch.uint8).numpy().data)
