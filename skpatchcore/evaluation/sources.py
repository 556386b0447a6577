"""source_digests: digests of the source files of the user's modules, which functions may call."""

from __future__ import annotations

import ast
import dis
import hashlib
import sys
import sysconfig
import types
from importlib.util import find_spec, resolve_name
from pathlib import Path

# Folders of installed packages. Their modules are identified by name, because the settings contain versions.
_INSTALLED = [Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib", "stdlib")]
_OF_PACKAGES = ("site-packages", "dist-packages")  # including the folders of the user and of the system


def is_installed(module: str | None) -> bool:
    """Return whether a module belongs to the standard library, to this package or to an installed package.

    Parameters
    ----------
    module : str or None
        Full name of the module. None means built-in.
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
    """Return digests of the source files of modules and of the modules that they import.

    Parameters
    ----------
    modules : set of str
        Full names. Installed modules and modules that cannot be found are left out.

    Returns
    -------
    list of (str, str)
        Name and SHA-256 of each module, sorted by name.
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
    """Return the names of the modules that a function imports when it runs, without its inner functions."""
    return {str(line.argval) for line in dis.get_instructions(code) if line.opname == "IMPORT_NAME"}


def _imported(content: bytes, name: str, file: Path) -> set[str]:
    """Return the names that a module imports. Some of the names may be functions or classes."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):  # e.g. a compiled module
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
        return None  # a class, a function, or a module of a package that has not been imported
    try:
        spec = find_spec(module)
    except Exception:  # finders of the user can raise any exception
        return None
    return Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None
