"""Packages with names that are imported on first use."""

from __future__ import annotations

import importlib
import sys

import pytest

import skpatchcore

INIT = """
from skpatchcore._utils.lazy import {function}
__all__ = ["area", "slow"]
{names} = {function}(__name__, {argument})
"""


@pytest.fixture
def write_package(tmp_path, monkeypatch):
    """Return a function that writes a package with two modules. Its argument is the content of __init__.py."""

    def write(init: str, stub: str = "") -> None:
        folder = tmp_path / "shapes_for_test"
        folder.mkdir()
        (folder / "__init__.py").write_text(init, encoding="utf-8")
        (folder / "__init__.pyi").write_text(stub, encoding="utf-8")
        (folder / "squares.py").write_text("area = 4\n", encoding="utf-8")
        (folder / "_slow.py").write_text("slow = object()\n", encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        importlib.invalidate_caches()

    yield write
    for name in [name for name in sys.modules if name.startswith("shapes_for_test")]:
        del sys.modules[name]


@pytest.mark.parametrize("function", ["attach", "attach_stub"])
def test_a_name_imports_its_module_on_first_use(write_package, function):
    if function == "attach":
        names, argument = "__getattr__, __dir__", {"squares": ["area"], "_slow": ["slow"]}
    else:
        names, argument = "__getattr__, __dir__, __all__", "__file__"
    init = INIT.format(function=function, names=names, argument=argument)
    write_package(init, "from .squares import area as area\nfrom ._slow import slow\n\n__version__: str\n")
    package = importlib.import_module("shapes_for_test")
    assert package.__all__ == dir(package) == ["area", "slow"]
    assert not {"shapes_for_test.squares", "shapes_for_test._slow"} & {*sys.modules}
    assert package.area == 4
    assert "shapes_for_test._slow" not in sys.modules
    assert package.slow is package.slow
    assert "slow" in vars(package)
    with pytest.raises(AttributeError, match="module 'shapes_for_test' has no attribute 'nothing'"):
        package.nothing  # noqa: B018
    with pytest.raises(ImportError, match="nothing"):
        exec("from shapes_for_test import nothing")


@pytest.mark.parametrize(
    "line",
    [
        "import os", "from os import path", "from ..squares import area", "from .squares import *",
        "from . import squares", "from .squares import area as size",
    ],
)  # fmt: skip
def test_attach_stub_refuses_other_imports(write_package, line):
    init = INIT.format(function="attach_stub", names="__getattr__, __dir__, __all__", argument="__file__")
    write_package(init, f"from .squares import area\n{line}\n")
    with pytest.raises(ValueError, match=r"__init__\.pyi', line 2: .* expected 'from \.module import name'") as info:
        importlib.import_module("shapes_for_test")
    assert line in str(info.value)


def test_public_names_of_the_package_are_those_of_the_stub_and_the_version():
    assert dir(skpatchcore) == sorted(skpatchcore.__all__)
    assert {"PatchCoreDetector", "OnnxDetector", "__version__"} <= {*skpatchcore.__all__}
