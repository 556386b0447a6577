"""Tests of the package's structure: import order of its subpackages ("rooms"), cost of an import, module length."""

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

# The import order, low to high. A room is a subpackage or a top-level module. A room imports only itself and rooms that
# are listed above it.
ROOMS = [
    {"_utils"},
    {"images"},
    {"protocols"},
    {"features"},
    {"patches"},
    {"coreset", "index"},
    {"bank", "maps"},
    {"calibration"},
    {"detectors"},
    {"deployment"},
    {"dask"},
    {"datasets", "metrics"},
    {"display", "model_selection"},
    {"evaluation"},
    {"reports"},
    {"watching"},
    {"cli"},
    {"__main__"},
]
LEVELS = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
# These rooms need numpy, scipy, scikit-learn, scikit-image, pandas and image decoders. They need neither torch nor a
# detector.
LIGHT = {"datasets", "metrics", "model_selection"}
HEAVY = {"torch", "torchvision", "pynndescent"}


# Full names of all modules of the package.
OWN = {".".join(("skpatchcore", *path.relative_to(ROOT).with_suffix("").parts)) for path in MODULES}


def name_of(path: Path) -> str:
    """Return the dotted name of a module file without the leading ``skpatchcore.``."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(name: str) -> str:
    """Return the first part of a dotted module name."""
    return name.split(".")[0]


def imports_of(path: Path) -> set[str]:
    """Return all modules that a file imports at any level, except the imports under ``TYPE_CHECKING``."""
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
    """Return a dict from each public name to the module that ``__init__.pyi`` imports the name from."""
    stub = ast.parse((ROOT / "__init__.pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: str(node.module) for node in imports for alias in node.names}


def own_imports_of(path: Path) -> set[str]:
    """Return the package's own modules that a file imports; a public name counts as the module that defines it."""
    names, public = {name_of(module) for module in MODULES}, homes()
    found = set()
    for imported in imports_of(path):
        if imported.split(".")[0] == "skpatchcore":
            short = imported.removeprefix("skpatchcore").removeprefix(".")
            found.add(public.get(short, short))
    return found & names - {""}


def test_every_room_is_listed_in_import_order():
    rooms = {room_of(name_of(path)) for path in MODULES} - {"__init__"}
    assert rooms == set(LEVELS)
    entries = {path.relative_to(ROOT).parts[0] for path in MODULES}
    assert len(entries) <= 23, sorted(entries)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_imports_only_lower_rooms(path):
    room = room_of(name_of(path))
    for imported in own_imports_of(path):
        other = room_of(imported)
        assert room == "__init__" or other == room or LEVELS[other] < LEVELS[room], imported
        assert room not in LIGHT or other in LIGHT | {"_utils", "images"}, imported


@pytest.mark.parametrize("path", [path for path in MODULES if room_of(name_of(path)) in LIGHT], ids=name_of)
def test_light_module_never_imports_heavy_libraries(path):
    files = {name_of(module): module for module in MODULES}
    waiting, reached = [name_of(path)], set()
    while waiting and len(reached) <= len(files):
        name = waiting.pop()
        packages = {name.rsplit(".", i)[0] for i in range(1, name.count(".") + 1)}
        reached.add(name)
        waiting += [n for n in own_imports_of(files[name]) | packages if n not in reached]
    for name in reached:
        assert not {i.split(".")[0] for i in imports_of(files[name])} & HEAVY, name


def test_package_has_no_import_cycles():
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
def test_stage_never_imports_another_stage(path):
    stages = {"features", "coreset", "index"}
    own = room_of(name_of(path))
    if own in stages:
        assert not {room_of(i) for i in own_imports_of(path)} & (stages - {own})


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_private_sklearn_is_imported_in_one_module_only(path):
    private = {i for i in imports_of(path) if i.startswith("sklearn.") and any(p.startswith("_") for p in i.split("."))}
    assert not private or name_of(path) == "_utils.sklearn"


def test_modules_have_at_most_500_lines_and_median_below_200():
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert max(lengths.values()) <= 500, max(lengths, key=lengths.get)
    assert median(lengths.values()) < 200


def test_no_module_has_the_name_of_a_standard_library_module():
    assert not {path.stem for path in MODULES} & set(sys.stdlib_module_names)


def test_importing_the_package_loads_no_heavy_library():
    code = (
        "import sys, skpatchcore; dir(skpatchcore); "
        "print([m for m in ('torch', 'torchvision', 'pynndescent', 'matplotlib', 'pandas') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True, timeout=300).strip() == "[]"


def test_first_score_with_an_embedded_backbone_imports_no_library_in_vain():
    code = (
        "import sys, numpy as np; from skpatchcore import PatchCoreDetector, TorchFeatureExtractor; "
        "images = np.random.default_rng(0).integers(0, 255, (4, 64, 64), np.uint8)[..., None]; "
        "extractor = TorchFeatureExtractor('efficientnet_lite0', weights=None, image_size=64); "
        "detector = PatchCoreDetector(extractor, calibration=None); "
        "detector.fit(images).score_samples(images); "
        "print([m for m in ('torchvision', 'timm', 'pynndescent', 'matplotlib', 'skimage') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True, timeout=300).strip() == "[]"


@pytest.mark.parametrize(
    "modules",
    [
        "images.reading, skpatchcore.images.containers, skpatchcore.images.views, skpatchcore.images.roi",
        "maps",
        "_utils.progress",
        "_utils.files",
        "_utils.bytes",
    ],
)
def test_modules_for_reading_and_drawing_load_no_large_library(modules):
    code = f"import sys; before = {{*sys.modules}}; import skpatchcore.{modules}; print({{*sys.modules}} - before)"
    loaded = ast.literal_eval(subprocess.check_output([sys.executable, "-c", code], text=True, timeout=300))
    installed = {name.split(".")[0] for name in loaded} - set(sys.stdlib_module_names)
    assert installed <= {"skpatchcore", "numpy", "PIL"}


def test_public_names_resolve_and_unknown_names_raise():
    for name in skpatchcore.__all__:
        assert getattr(skpatchcore, name) is not None
    with pytest.raises(AttributeError, match="Nothing"):
        skpatchcore.Nothing  # noqa: B018
