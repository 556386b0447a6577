"""Source files of the user's modules: what a function calls through a module counts by content, not by its name."""

from __future__ import annotations

import ast
import dis
import hashlib
import sys
import sysconfig
import types
from importlib.util import find_spec, resolve_name
from pathlib import Path

# Where packages are installed: what is in them is known by its name, their versions stand in the settings.
_INSTALLED = [Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib", "stdlib")]
_OF_PACKAGES = ("site-packages", "dist-packages")  # also those of the user and of the system


def is_installed(module: str | None) -> bool:
    """Return whether a module is of the standard library, of this package or of an installed one.

    Parameters
    ----------
    module : str or None
        Its full name. None counts as built in.
    """
    if module is None or module == "builtins":
        return True
    if module.split(".")[0] in {"skpatchcore", *sys.stdlib_module_names} - {"__main__"}:
        return True
    file = _file_of(module)
    if file is None:
        return False
    folders = file.resolve().parents
    return any(folder in _INSTALLED or folder.name in _OF_PACKAGES for folder in folders)


def source_digests(modules: set[str]) -> list[tuple[str, str]]:
    """Return digests of the source files of modules, and of those that they import, at the top or in functions.

    Parameters
    ----------
    modules : set of str
        Full names. Those that are installed or can't be found are left out.

    Returns
    -------
    list of (str, str)
        Name and SHA-256 of each file, sorted by name.
    """
    waiting, found, seen = sorted(modules), {}, set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        file = None if is_installed(name) else _file_of(name)
        if file is None:
            continue
        try:
            content = file.read_bytes()
        except OSError:
            continue
        found[name] = hashlib.sha256(content).hexdigest()
        waiting += sorted(_imported(content, name, file))
    return sorted(found.items())


def imported_in(code: types.CodeType) -> set[str]:
    """Return the names of modules that a function imports when it runs, without those of inner functions."""
    return {str(line.argval) for line in dis.get_instructions(code) if line.opname == "IMPORT_NAME"}


def _imported(content: bytes, name: str, file: Path) -> set[str]:
    """Return what a module may import: names of modules, and names in them that may be modules."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):  # a compiled module
        return set()
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                try:
                    base = resolve_name("." * node.level + base, package)
                except ImportError:
                    continue
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return names | {name.rpartition(".")[0] for name in names if "." in name}


def _file_of(module: str) -> Path | None:
    loaded = sys.modules.get(module)
    if loaded is not None:
        origin = getattr(loaded, "__file__", None)
        return None if origin is None else Path(origin)
    parent = module.rpartition(".")[0]
    if not module or (parent and not hasattr(sys.modules.get(parent), "__path__")):
        return None  # a class or a function in a module, or in a package that has not been imported
    try:
        spec = find_spec(module)
    except Exception:  # a user's finder or path raises anything
        return None
    return Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None
