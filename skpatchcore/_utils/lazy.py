"""Packages whose public names are imported on first use (PEP 562): `attach` and `attach_stub`.

A package assigns the returned functions to its names ``__getattr__`` and ``__dir__``. Importing the package then does
not import the modules of its public names.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def attach(
    package: str, submod_attrs: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return the functions ``__getattr__`` and ``__dir__`` of a package with names that are imported on first use.

    Parameters
    ----------
    package : str
        Name of the package, i.e. ``__name__``. The package defines ``__all__``.
    submod_attrs : mapping of str to sequence of str
        Public names by the module that defines them. The module is relative to the package, e.g. ``"images.views"``.

    Returns
    -------
    get : callable
        Function that imports the module of a name, and returns the value of the name. The value becomes an attribute of
        the package. An unknown name raises an AttributeError.
    names : callable
        Function that returns ``__all__`` of the package.
    """
    module_of = {name: module for module, names in submod_attrs.items() for name in names}

    def get(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{module_of[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return list(sys.modules[package].__all__)

    return get, names


def attach_stub(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__``, ``__dir__`` and the public names of a package whose names a type stub lists.

    Parameters
    ----------
    package : str
        Name of the package, i.e. ``__name__``. The package defines ``__all__``.
    file : str
        The file of the package, i.e. ``__file__``. The stub lies beside it and has the ending ``.pyi``.

    Returns
    -------
    get, names : callable
        As for :func:`attach`.
    public : list of str
        The names that the stub imports, sorted.

    Raises
    ------
    ValueError
        If an import of the stub does not have the form ``from .module import name as name``.
    """
    stub = Path(file).with_suffix(".pyi")
    submod_attrs: dict[str, list[str]] = {}
    for node in ast.parse(stub.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        is_of_package = isinstance(node, ast.ImportFrom) and node.level == 1 and node.module is not None
        if not is_of_package or any(
            alias.name == "*" or alias.asname not in (None, alias.name) for alias in node.names
        ):
            raise ValueError(
                f"{str(stub)!r}, line {node.lineno}: {ast.unparse(node)!r}: expected 'from .module import name'."
            )
        submod_attrs.setdefault(str(node.module), []).extend(alias.name for alias in node.names)  # type: ignore[union-attr]
    get, names = attach(package, submod_attrs)
    return get, names, sorted(name for some in submod_attrs.values() for name in some)
