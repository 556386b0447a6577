"""digest_of_file, network_fingerprint and others: identify weights files and networks by content, to detect changes."""

from __future__ import annotations

import hashlib
import inspect
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

# Age in nanoseconds after which a further change of a file certainly changes its timestamps.
_SETTLED = 2 * 10**9
# Types of settings that are compared directly.
_SIMPLE = (
    bool, int, float, complex, str, bytes, type(None), type, torch.dtype, torch.device, types.FunctionType,
    types.BuiltinFunctionType,
)  # fmt: skip
# Number of levels of nested containers that are compared.
_DEPTH = 8
# Attributes that every module has. Submodules and tensors are compared separately, hooks are not compared.
_OF_TORCH = frozenset(vars(nn.Module()))
# Digest per path, with device, inode, size and timestamps of the file when it was read.
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
    """Return a hashable fingerprint of a network: its modules, their settings, and checksums of their tensors.

    The fingerprint is valid in this process only. Copies of a network have equal fingerprints. A changed weight or
    setting changes the fingerprint.
    """
    parts = tuple((name, _kind(part), *frozen_settings(part)) for name, part in module.named_modules())
    tensors = (*module.named_parameters(), *module.named_buffers())
    return parts, tuple((name, _checksum(tensor)) for name, tensor in tensors)


def _kind(part: nn.Module) -> Any:
    """Return the class of a module, or the code of a module that torch.fx has traced."""
    # torch.fx generates a new class for each traced module: equal modules have equal code, but different classes
    return part.code if isinstance(part, fx.GraphModule) else type(part)


def frozen_settings(part: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the names and hashable copies of a module's own attributes, without submodules and registered tensors."""
    for name, value in sorted(vars(part).items()):
        if name not in _OF_TORCH:
            yield name, _frozen(value)


def _frozen(value: Any, depth: int = _DEPTH) -> Any:
    """Return a hashable copy of a setting; copies are equal if the contents are equal.

    Later changes of the original do not change the copy.

    Parameters
    ----------
    value : object
        Value of the setting. Containers, arrays and tensors are compared by content. Other objects are compared by
        class only.
    depth : int, default=8
        Number of levels of nested containers that are compared by content.
    """
    kind = type(value).__name__
    if isinstance(value, torch.Tensor):
        return kind, _checksum(value)
    if isinstance(value, np.ndarray) and value.dtype != object:
        return kind, value.shape, str(value.dtype), zlib.crc32(np.ascontiguousarray(value).tobytes())
    if isinstance(value, float | complex | np.generic):
        return kind, repr(value)  # as a text, NaN equals NaN
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
    """Return shape, dtype and CRC-32 of a tensor."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return tuple(tensor.shape), tensor.dtype, zlib.crc32(flat.view(torch.uint8).numpy().data)


def weights_digest(module: nn.Module) -> str:
    """Return the SHA-256 of the names and values of a network's weights."""
    sha = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        sha.update(name.encode())
        sha.update(value.contiguous().cpu().numpy().tobytes())
    return sha.hexdigest()


def architecture_text(module: nn.Module) -> str | None:
    """Return a hash of a network's modules, their settings and their source code; None if a source is unavailable."""
    parts = [repr(module)]
    if isinstance(module, fx.GraphModule):
        parts.append(module.code)
    for part in module.modules():
        settings = {k: v for k, v in sorted(vars(part).items()) if isinstance(v, bool | int | float | str | tuple)}
        held = {k: _named(v) for k, v in frozen_settings(part) if k not in settings}
        parts.append(f"{type(part).__qualname__} {settings}{held or ''}")
    for kind in sorted({type(part) for part in module.modules()}, key=lambda kind: kind.__qualname__):
        if issubclass(kind, fx.GraphModule):  # torch.fx generates this class: its code was added above
            continue
        try:
            parts.append(inspect.getsource(kind))
        except (OSError, TypeError):  # the class was defined interactively, not in a file
            return None
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _named(value: Any) -> Any:
    """Return a text for a frozen setting that is the same in each process: no addresses, sets in sorted order."""
    if isinstance(value, frozenset):
        return sorted(map(str, map(_named, value)))
    if isinstance(value, tuple):
        return tuple(_named(item) for item in value)
    if isinstance(value, types.FunctionType):
        return f"{value.__qualname__} {value.__code__.co_code.hex()}"
    return getattr(value, "__qualname__", None) or str(value)
