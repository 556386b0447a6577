"""Digests of what a result depends on: of content, not of names, times or addresses."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import os
import sys
import sysconfig
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from sklearn.base import BaseEstimator

from skpatchcore._utils.missing import is_missing

# Where packages are installed: their functions are known by their names, their versions stand in the settings.
_INSTALLED = tuple(str(Path(sysconfig.get_path(name)).resolve()) for name in ("purelib", "platlib", "stdlib"))
# Sides of values that are followed: closures, globals and defaults of functions, items of containers.
_DEPTH = 12


def fingerprint(dataset: Any, known: dict[str, str] | None = None) -> str:
    """Return a hash of a data set: of the content of its images and masks, of its labels and groups.

    Parameters
    ----------
    dataset : ImageFolder or TextureTask
        Files count with the last three parts of their paths and with their bytes.
    known : dict or None, default=None
        Digests of files by their paths: those in it are not read again, others are added.

    Returns
    -------
    str
        Hexadecimal SHA-256.
    """
    digest, known = hashlib.sha256(), {} if known is None else known
    if dataclasses.is_dataclass(dataset):
        values = {field.name: getattr(dataset, field.name) for field in dataclasses.fields(dataset)}
    else:
        values = dict(vars(dataset))
    for name, column in values.items():
        digest.update(f"{name}:".encode())
        holds_images = name.endswith(("paths", "masks", "images"))
        if column is None or (isinstance(column, np.ndarray) and column.dtype != object):
            digest.update(content_digest(column).encode())
            continue
        for item in column if hasattr(column, "__iter__") and not isinstance(column, str) else [column]:
            is_file = holds_images and isinstance(item, str | os.PathLike) and not is_missing(item)
            text = _file(os.fspath(item), known) if is_file else "" if is_missing(item) else content_digest(item)
            digest.update(f"{text}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _file(path: str, known: dict[str, str]) -> str:
    if path not in known:
        try:
            with open(path, "rb") as content:
                known[path] = hashlib.file_digest(content, "sha256").hexdigest()
        except (OSError, ValueError) as error:  # reading the image says what is wrong with it
            known[path] = type(error).__name__
    return f"{'/'.join(Path(path).parts[-3:])} {known[path]}"


def content_digest(value: Any) -> str:
    """Return a hash of what a value is: the code of a function and what it refers to, the weights of a network.

    Parameters
    ----------
    value : object
        A parameter of an estimator.

    Returns
    -------
    str
        Hexadecimal SHA-256. The same in another process, if the value can be pickled or is made of functions, classes
        and arrays.
    """
    digest = hashlib.sha256()
    _feed(digest, value, (), _DEPTH)
    return digest.hexdigest()


def has_hidden_content(value: Any) -> bool:
    """Return whether JSON can't tell a parameter's value from others of the same name."""
    if isinstance(value, list | tuple):
        return any(has_hidden_content(item) for item in value)
    if isinstance(value, Mapping):
        return any(has_hidden_content(item) for item in value.values())
    plain = value is None or isinstance(value, str | int | float | bool | os.PathLike | np.ndarray | np.generic)
    return not plain


def _feed(digest: Any, value: Any, above: tuple[int, ...], depth: int) -> None:
    """Add a value to a digest; `above` has the ids of what it is part of, so that circles end."""
    if id(value) in above or depth == 0:
        digest.update(b"again")
        return
    digest.update(f"<{type(value).__name__}>".encode())
    parts = _parts_of(value)
    if isinstance(parts, bytes):
        digest.update(parts)
        return
    for part in parts:
        _feed(digest, part, (*above, id(value)), depth - 1)


def _parts_of(value: Any) -> bytes | list[Any]:
    """Return the bytes of a simple value, or the values that another one is made of."""
    if value is None or isinstance(value, str | bytes | int | float | complex | bool | np.generic):
        return repr(value).encode("utf-8", "surrogatepass")
    if isinstance(value, np.ndarray):
        if value.dtype == object:
            return [value.shape, *value.ravel().tolist()]
        return f"{value.dtype} {value.shape}".encode() + np.ascontiguousarray(value).tobytes()
    if isinstance(value, torch.Tensor):
        flat = value.detach().cpu().contiguous().reshape(-1)
        return f"{value.dtype} {tuple(value.shape)}".encode() + flat.view(torch.uint8).numpy().tobytes()
    if isinstance(value, torch.nn.Module):
        return [repr(value), type(value), dict(value.named_parameters()), dict(value.named_buffers())]
    if isinstance(value, os.PathLike):
        return os.fsencode(value)
    if isinstance(value, Mapping):
        return [item for key in sorted(value, key=repr) for item in (repr(key), value[key])]
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, types.CodeType):
        return [value.co_code, value.co_consts, value.co_names]
    if isinstance(value, types.ModuleType):
        return value.__name__.encode()
    if isinstance(value, types.FunctionType):
        return _parts_of_function(value)
    if isinstance(value, type):
        return _parts_of_class(value)
    if isinstance(value, BaseEstimator):
        return [type(value)]  # its parameters are settings of their own
    try:
        return str(joblib.hash(value)).encode()
    except Exception:  # what can't be pickled is known by its attributes
        return [type(value), dict(getattr(value, "__dict__", {}))]


def _parts_of_function(function: types.FunctionType) -> bytes | list[Any]:
    if _is_installed(function.__module__):
        return f"{function.__module__}.{function.__qualname__}".encode()
    closure = [_cell(cell) for cell in function.__closure__ or ()]
    used = {name: function.__globals__[name] for name in _names_in(function.__code__) if name in function.__globals__}
    return [function.__code__, function.__defaults__, function.__kwdefaults__, closure, used]


def _parts_of_class(kind: type) -> bytes | list[Any]:
    name = f"{kind.__module__}.{kind.__qualname__}"
    if _is_installed(kind.__module__) or kind.__module__.split(".")[0] == "skpatchcore":
        return name.encode()
    try:
        return [name, inspect.getsource(kind), *kind.__bases__]
    except (OSError, TypeError):  # typed in by hand
        own = {key: item for key, item in vars(kind).items() if isinstance(item, types.FunctionType)}
        return [name, own, *kind.__bases__]


def _names_in(code: types.CodeType) -> set[str]:
    """Return the names that a function and the functions in it refer to."""
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return set(code.co_names).union(*(_names_in(const) for const in inner))


def _cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not set yet
        return None


def _is_installed(module: str | None) -> bool:
    if module is None or module == "builtins" or module.split(".")[0] in sys.stdlib_module_names - {"__main__"}:
        return True
    file = getattr(sys.modules.get(module), "__file__", None)
    return file is not None and str(Path(file).resolve()).startswith(_INSTALLED)
