"""dataset_digest and content_digest: digests of data sets and of parameters by content."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from sklearn.base import BaseEstimator

from skpatchcore._utils.missing import is_missing
from skpatchcore.datasets import ImageFolder
from skpatchcore.evaluation.sources import imported_in, is_installed, source_digests

# Maximum depth of nested containers and attributes. Functions and classes are followed without a limit, each once.
_DEPTH = 12
# Entries of a class that do not affect its behaviour, or that differ between processes.
_NO_CONTENT = ("__dict__", "__weakref__", "__doc__", "__module__", "__firstlineno__", "__static_attributes__",
               "__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__", "_abc_impl",
               "__abstractmethods__")  # fmt: skip


def dataset_digest(dataset: Any, known: dict[str, str] | None = None) -> str:
    """Return a digest of the content of the images and masks of a data set, and of its labels and groups.

    Parameters
    ----------
    dataset : ImageFolder or TextureTask
        Data set. Files are hashed by the last three parts of their paths and by their content.
    known : dict or None, default=None
        Digests of files by path. These files are not read again. Digests of other files are added.

    Returns
    -------
    str
        Hexadecimal SHA-256.
    """
    digest, known = hashlib.sha256(), {} if known is None else known
    if dataclasses.is_dataclass(dataset):
        values = {field.name: getattr(dataset, field.name) for field in dataclasses.fields(dataset)}
        if isinstance(dataset, ImageFolder):
            del values["split"]  # the settings contain it
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
        except (OSError, ValueError) as error:  # reading the image raises an error with the reason
            known[path] = type(error).__name__
    return f"{'/'.join(Path(path).parts[-3:])} {known[path]}"


def content_digest(value: Any) -> str:
    """Return a digest of the content of a value, e.g. of the code of a function or the weights of a network.

    Parameters
    ----------
    value : object
        A parameter of an estimator.

    Returns
    -------
    str
        Hexadecimal SHA-256. It is equal in another process if the value can be pickled or consists of functions,
        classes and arrays.
    """
    state = _State()
    _feed(state, value, (), _DEPTH)
    while state.waiting:
        _feed(state, _Named(state.waiting.pop(0)), (), _DEPTH)
    return state.digest.hexdigest()


class _State:
    """Digest that is being computed, and the functions, classes and modules that must still be added."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.numbers: dict[int, int] = {}
        self.waiting: list[Any] = []

    def number_of(self, value: Any) -> int:
        """Return the number of a function, class or module in the order of the first reference."""
        if id(value) not in self.numbers:
            self.numbers[id(value)] = len(self.numbers)
            self.waiting.append(value)
        return self.numbers[id(value)]


class _Named:
    """Marker of a function, class or module: add its content, not only a reference."""

    def __init__(self, value: Any):
        self.value = value


def has_hidden_content(value: Any) -> bool:
    """Return whether the JSON form of a value is only a name. Its content must be hashed then."""
    if isinstance(value, list | tuple):
        return any(has_hidden_content(item) for item in value)
    if isinstance(value, Mapping):
        return any(has_hidden_content(item) for item in value.values())
    plain = value is None or isinstance(value, str | int | float | bool | os.PathLike | np.ndarray | np.generic)
    return not plain


def _feed(state: _State, value: Any, above: tuple[int, ...], depth: int) -> None:
    """Add a value to a digest. `above` contains the ids of the containers of the value, which ends cycles."""
    if id(value) in above or depth == 0:
        state.digest.update(b"again")
        return
    state.digest.update(f"<{type(value).__name__}>".encode())
    if isinstance(value, types.FunctionType | type | types.ModuleType):
        state.digest.update(f"{state.number_of(value)}".encode())
        return
    parts = _parts_of(value)
    if isinstance(parts, bytes):
        state.digest.update(parts)
        return
    state.digest.update(f"{len(parts)}".encode())
    for part in parts:
        _feed(state, part, (*above, id(value)), depth - 1)


def _parts_of(value: Any) -> bytes | list[Any]:
    """Return the bytes of a simple value, or the parts of another value."""
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
        modules = [[name, *_parts_of_module(part)] for name, part in value.named_modules()]
        return [repr(value), modules, dict(value.named_parameters()), dict(value.named_buffers())]
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
    if isinstance(value, _Named):
        return _parts_of_named(value.value)
    if isinstance(value, staticmethod | classmethod):
        return [value.__func__]
    if isinstance(value, property):
        return [value.fget, value.fset, value.fdel]
    if isinstance(value, functools.cached_property):
        return [value.func]
    if "__wrapped__" in getattr(value, "__dict__", {}):  # functions of functools.lru_cache are pickled by name
        return [type(value), dict(value.__dict__)]
    if isinstance(value, BaseEstimator):
        return [type(value)]  # its parameters are separate settings
    own = [type(value), {} if is_installed(type(value).__module__) else dict(getattr(value, "__dict__", {}))]
    try:
        return [*own, str(joblib.hash(value))]
    except Exception:  # a value that cannot be pickled is hashed by its attributes
        return [type(value), dict(getattr(value, "__dict__", {}))]


def _parts_of_module(part: torch.nn.Module) -> list[Any]:
    """Return the parts of a network module other than tensors: its class, its own attributes and its hooks."""
    if isinstance(part, torch.fx.GraphModule):  # each GraphModule has a class of its own
        return [part.code]
    of_torch = vars(torch.nn.Module())
    own = {name: value for name, value in vars(part).items() if name not in of_torch}
    hooks = [*part._forward_pre_hooks.values(), *part._forward_hooks.values()]
    return [type(part), own, hooks]


def _parts_of_named(value: Any) -> bytes | list[Any]:
    module = value.__name__ if isinstance(value, types.ModuleType) else value.__module__
    name = module if isinstance(value, types.ModuleType) else f"{module}.{value.__qualname__}"
    if is_installed(module):
        return str(name).encode()
    if isinstance(value, types.ModuleType):
        return [name, source_digests({module})]
    return _parts_of_class(value, name) if isinstance(value, type) else _parts_of_function(value)


def _parts_of_function(function: types.FunctionType) -> list[Any]:
    codes = _codes_in(function.__code__)
    names = {name for code in codes for name in code.co_names}
    used = {name: function.__globals__[name] for name in names if name in function.__globals__}
    for module in [value for value in used.values() if isinstance(value, types.ModuleType)]:
        if not is_installed(module.__name__):  # as imported, because the file may have changed since
            used |= {f"{module.__name__}.{name}": vars(module)[name] for name in names if name in vars(module)}
    imported = set().union(*(imported_in(code) for code in codes))
    # the module of the function is included because of relative imports
    sources = source_digests({*imported, str(function.__module__)}) if imported else []
    closure = [_cell(cell) for cell in function.__closure__ or ()]
    return [function.__code__, function.__defaults__, function.__kwdefaults__, closure, used, sources]


def _parts_of_class(kind: type, name: str) -> list[Any]:
    return [name, {key: item for key, item in vars(kind).items() if key not in _NO_CONTENT}, *kind.__bases__]


def _codes_in(code: types.CodeType) -> list[types.CodeType]:
    """Return the code of a function and of the functions in it."""
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return [code, *(deeper for const in inner for deeper in _codes_in(const))]


def _cell(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # the cell is empty
        return None
