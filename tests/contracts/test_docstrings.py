"""Every public object says what it is, as numpydoc has it."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import is_dataclass

import pytest

import skpatchcore

validate = pytest.importorskip("numpydoc.validate", reason="needs numpydoc: pip install 'skpatchcore[docs]'").validate

# Public modules, and of those with helpers beside them the names that the documentation lists.
PUBLIC = {
    "skpatchcore": [name for name in skpatchcore.__all__ if not name.startswith("_")],
    "skpatchcore.metrics": None,
    "skpatchcore.datasets": importlib.import_module("skpatchcore.datasets").__all__,
    "skpatchcore.model_selection": None,
    "skpatchcore.display": importlib.import_module("skpatchcore.display").__all__,
    "skpatchcore.detectors": ["ImageResult"],
    "skpatchcore.evaluation": importlib.import_module("skpatchcore.evaluation").__all__,
    "skpatchcore.reports": importlib.import_module("skpatchcore.reports").__all__,
}
NOT_ASKED = {
    "ES01": "a first line that says it all needs no second one",
    "SA01": "the reference lists neighbours side by side",
    "EX01": "methods are shown in their class's example, and the gallery shows the rest",
    "PR04": "parameters that are another object's are listed with a reference to it",
}
# Dataclasses and named tuples document their fields as attributes.
FIELDS = {"PR01"}


def public_objects():
    for module_name, names in PUBLIC.items():
        module = importlib.import_module(module_name)
        for name in names or [n for n, o in vars(module).items() if not n.startswith("_") and is_own(o, module)]:
            found = getattr(module, name)
            if not callable(found):
                continue
            yield f"{module_name}.{name}", found
            if inspect.isclass(found):
                for method, value in vars(found).items():
                    if not method.startswith("_") and callable(value):
                        yield f"{module_name}.{name}.{method}", value


def is_own(found, module):
    return callable(found) and getattr(found, "__module__", "") == module.__name__


OBJECTS = dict(public_objects())


@pytest.mark.parametrize("name", OBJECTS)
def test_numpydoc_finds_nothing_missing(name):
    skipped = set(NOT_ASKED)
    if is_dataclass(OBJECTS[name]) or hasattr(OBJECTS[name], "_fields"):
        skipped |= FIELDS
    errors = [f"{code}: {text}" for code, text in validate(name)["errors"] if code not in skipped]
    assert not errors


@pytest.mark.parametrize("name", [name for name in OBJECTS if name.count(".") == 1])
def test_what_is_imported_from_the_top_has_an_example(name):
    found = OBJECTS[name]
    if inspect.isclass(found) and issubclass(found, Exception):
        return
    assert ">>>" in (found.__doc__ or "")
