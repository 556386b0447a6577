"""Which room may import which, what importing costs, how long modules are."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

import skpatchcore

ROOT = Path(skpatchcore.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))

# The rooms, low to high: a room imports only rooms on lines above its own, and itself.
ROOMS = [
    {"_version"},
    {"_utils"},
    {"images"},
    {"protocols"},
    {"features"},
    {"patches"},
    {"coreset", "index"},
    {"bank", "maps"},
    {"calibration"},
    {"detectors"},
    {"persistence"},
    {"datasets", "metrics"},
    {"display", "model_selection"},
    {"evaluation"},
    {"reports"},
    {"cli"},
    {"__main__"},
]
LEVELS = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
# Need numpy, scipy, scikit-learn, scikit-image, pandas and decoders of images only: neither torch nor a detector.
LIGHT = {"datasets", "metrics", "model_selection"}
HEAVY = {"torch", "torchvision", "pynndescent"}


OWN = {".".join(("skpatchcore", *path.relative_to(ROOT).with_suffix("").parts)) for path in MODULES}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(name: str) -> str:
    return name.split(".")[0]


def imports_of(path: Path) -> set[str]:
    """Modules that are imported anywhere in a file, except those that only type checkers read."""
    found = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            within = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= within if within <= OWN else within | {node.module}
    return found


def homes() -> dict[str, str]:
    """The module of each public name, as ``__init__.pyi`` says."""
    stub = ast.parse((ROOT / "__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def own_imports_of(path: Path) -> set[str]:
    """The package's modules among the imports of a file; a public name counts as the module it lives in."""
    names, public = {name_of(module) for module in MODULES}, homes()
    found = set()
    for imported in imports_of(path):
        if imported.split(".")[0] == "skpatchcore":
            short = imported.removeprefix("skpatchcore").removeprefix(".")
            found.add(public.get(short, short))
    return found & names - {""}


def test_every_room_stands_in_the_one_ordered_list():
    rooms = {room_of(name_of(path)) for path in MODULES} - {"__init__"}
    assert rooms == set(LEVELS)
    entries = {path.relative_to(ROOT).parts[0] for path in MODULES}
    assert len(entries) <= 23, sorted(entries)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_rooms_import_only_rooms_below_them(path):
    room = room_of(name_of(path))
    for imported in own_imports_of(path):
        other = room_of(imported)
        assert room == "__init__" or other == room or LEVELS[other] < LEVELS[room], imported
        assert room not in LIGHT or other in LIGHT | {"_utils", "images"}, imported


@pytest.mark.parametrize("path", [path for path in MODULES if room_of(name_of(path)) in LIGHT], ids=name_of)
def test_light_rooms_reach_no_heavy_library(path):
    files = {name_of(module): module for module in MODULES}
    waiting, reached = [name_of(path)], set()
    while waiting and len(reached) <= len(files):
        name = waiting.pop()
        packages = {name.rsplit(".", i)[0] for i in range(1, name.count(".") + 1)}
        reached.add(name)
        waiting += [n for n in own_imports_of(files[name]) | packages if n not in reached]
    for name in reached:
        assert not {i.split(".")[0] for i in imports_of(files[name])} & HEAVY, name


def test_no_module_imports_itself_through_others():
    imports = {name_of(path): own_imports_of(path) for path in MODULES}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way, name))
        if name not in done:
            for imported in imports[name] - {name}:
                visit(imported, (*way, name))
            done.add(name)

    for name in imports:
        visit(name, ())


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_matplotlib_is_imported_in_methods_only(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = {a.name for n in tree.body if isinstance(n, ast.Import) for a in n.names}
    modules |= {n.module or "" for n in tree.body if isinstance(n, ast.ImportFrom)}
    assert not {m for m in modules if m.startswith("matplotlib")}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_stages_never_import_each_other(path):
    stages = {"features", "coreset", "index"}
    own = room_of(name_of(path))
    if own in stages:
        assert not {room_of(i) for i in own_imports_of(path)} & (stages - {own})


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_private_sklearn_is_imported_in_one_place(path):
    private = {i for i in imports_of(path) if i.startswith("sklearn.") and any(p.startswith("_") for p in i.split("."))}
    assert not private or name_of(path) == "_utils.sklearn"


def test_modules_are_short():
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert max(lengths.values()) <= 500, max(lengths, key=lengths.get)
    assert median(lengths.values()) < 200


def test_no_module_is_named_after_one_of_the_standard_library():
    assert not {path.stem for path in MODULES} & set(sys.stdlib_module_names)


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, skpatchcore; dir(skpatchcore); "
        "print([m for m in ('torch', 'torchvision', 'pynndescent', 'matplotlib', 'pandas') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True, timeout=300).strip() == "[]"


def test_public_names_resolve():
    for name in skpatchcore.__all__:
        assert getattr(skpatchcore, name) is not None
    with pytest.raises(AttributeError, match="Nothing"):
        skpatchcore.Nothing  # noqa: B018
