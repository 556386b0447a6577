"""Who may import whom, what importing costs, how long modules are."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

import skpatchcore

ROOT = Path(skpatchcore.__file__).parent
MODULES = sorted(path for path in ROOT.rglob("*.py"))

PURE = {
    "features.images", "features.aggregation", "features.backbones", "features.efficientnet_lite", "features.stream",
    "features.prefetch", "features.cache", "features.views",
    "coreset.projection", "coreset.rows", "coreset.batches", "coreset.selection", "coreset.order_cache",
    "coreset.subset",
    "index.bounds", "index.bounded", "index.copies", "index.pairs", "index.device_bank",
    "scoring", "calibration", "regions", "persistence", "memory",
}  # fmt: skip
STAGES = {
    "features.extractor",
    "coreset.greedy",
    "coreset.random",
    "coreset.proxies",
    "index.exact",
    "index.pynndescent",
}
# Import nothing of ours but parts of their own room, and none of HEAVY.
LIGHT = {"metrics", "display.overlay", "datasets", "datasets.folders", "datasets.textures", "datasets.fetching"}
OUTSIDE = {
    "model_selection",
    "demo",
    "commands.fit",
    "commands.predict",
    "commands.evaluate",
    "evaluation.category",
    "evaluation.pictures",
    "commands.demo",
    "commands.predict_report",
}  # stand beside or around the detector, and may use these
HEAVY = {"torch", "torchvision", "pynndescent"}
OUTER = {"__init__", "features", "coreset", "index", "baselines", "evaluation", "commands"}  # hold no code of their own
LEVELS = {
    **dict.fromkeys(LIGHT, 0), **dict.fromkeys(PURE, 1), **dict.fromkeys(STAGES, 2),
    "display.score_histogram": 0, "display.anomaly_map": 2, "display.coreset": 2, "display": 3, "report": 0,
    "model_selection": 2, "decisions": 2, "stages": 3, "bank": 3, "patches": 3, "inference": 3, "nominal": 4,
    "baselines.base": 4, "baselines.padim": 5, "baselines.spade": 5, "detector": 5, "ensemble": 5,
    "evaluation.presets": 6, "evaluation.category": 6, "evaluation.studies": 7, "evaluation.pictures": 7,
    "evaluation.storage": 8, "demo": 6,
    "commands.options": 0, "commands.judged": 0, "commands.predict_report": 6, "commands.fit": 7,
    "commands.predict": 7, "commands.demo": 7, "commands.evaluate": 9, "cli": 10, "__main__": 11,
}  # fmt: skip


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> set[str]:
    """Modules that are imported anywhere in a file, but for those that only type checkers read."""
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
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def own_imports_of(path: Path) -> set[str]:
    """The project's modules among them; a public name counts as the module that it lives in."""
    names = {name_of(module) for module in MODULES}
    found = {
        skpatchcore._HOMES.get(i.removeprefix("skpatchcore."), i).removeprefix("skpatchcore.") for i in imports_of(path)
    }
    return found & names


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_rooms_import_only_rooms_below_them(path):
    name = name_of(path)
    imported = {n for n in own_imports_of(path) if not n.startswith("_")} - OUTER
    if name in OUTER or (name.startswith("_") and name != "__main__"):
        assert not imported
        return
    assert name in LEVELS, "a new room: say in LEVELS, and in the design, where it stands"
    if name in LIGHT | {"model_selection"}:
        assert not {i.split(".")[0] for i in imports_of(path)} & HEAVY
    for other in imported:
        # numerics of one stage may use each other; metrics, data sets and pictures are for the outer rooms
        same_room = other.split(".")[0] == name.split(".")[0]
        assert LEVELS[other] < LEVELS[name] or (LEVELS[other] == LEVELS[name] <= 1 and same_room), other
        assert other not in LIGHT or name in OUTSIDE or same_room, other


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_matplotlib_is_imported_in_methods_only(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = {a.name for n in tree.body if isinstance(n, ast.Import) for a in n.names}
    modules |= {n.module or "" for n in tree.body if isinstance(n, ast.ImportFrom)}
    assert not {m for m in modules if m.startswith("matplotlib")}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_stages_never_import_each_other(path):
    stages = {"features", "coreset", "index"}
    own = name_of(path).split(".")[0]
    if own in stages:
        assert not {i.split(".")[0] for i in own_imports_of(path)} & (stages - {own})


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_private_sklearn_is_imported_in_one_place(path):
    private = {i for i in imports_of(path) if i.startswith("sklearn.") and any(p.startswith("_") for p in i.split("."))}
    assert not private or name_of(path) == "_sklearn"


def test_modules_are_short():
    lengths = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert max(lengths.values()) <= 500, max(lengths, key=lengths.get)
    assert median(lengths.values()) < 200


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, skpatchcore; dir(skpatchcore); "
        "print([m for m in ('torch', 'torchvision', 'pynndescent', 'matplotlib', 'pandas') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_public_names_resolve():
    for name in skpatchcore.__all__:
        assert getattr(skpatchcore, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        skpatchcore.Nothing  # noqa: B018
