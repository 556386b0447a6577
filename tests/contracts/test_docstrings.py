"""Test that the docstring of every public object follows the numpydoc standard."""

from __future__ import annotations

import importlib
import inspect
from dataclasses import is_dataclass

import pytest

import skpatchcore

validate = pytest.importorskip("numpydoc.validate", reason="needs numpydoc: pip install numpydoc").validate

# Public modules, each with the names that are tested. None means all public classes and functions of the module.
PUBLIC = {
    "skpatchcore": [name for name in skpatchcore.__all__ if not name.startswith("_")],
    "skpatchcore.metrics": importlib.import_module("skpatchcore.metrics").__all__,
    "skpatchcore.datasets": importlib.import_module("skpatchcore.datasets").__all__,
    "skpatchcore.model_selection": None,
    "skpatchcore.display": importlib.import_module("skpatchcore.display").__all__,
    "skpatchcore.detectors": ["ImageResult"],
    "skpatchcore.dask": importlib.import_module("skpatchcore.dask").__all__,
    "skpatchcore.evaluation": importlib.import_module("skpatchcore.evaluation").__all__,
    "skpatchcore.reports": importlib.import_module("skpatchcore.reports").__all__,
    "skpatchcore.watching": importlib.import_module("skpatchcore.watching").__all__,
}
# numpydoc errors that are ignored, with the reason.
NOT_ASKED = {
    "ES01": "an extended summary is not needed if the first line is complete",
    "SA01": "the API reference already lists related objects together",
    "EX01": "the class's example shows the methods, and the gallery shows the rest",
    "PR04": "a parameter taken over from another object refers to that object and does not repeat the type",
}
# Dataclasses and named tuples document their fields as attributes, not as parameters.
FIELDS = {"PR01"}


def public_objects():
    """Yield name and object of every public function, class and method."""
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
    """Return whether a callable is defined in the module, not imported by it."""
    return callable(found) and getattr(found, "__module__", "") == module.__name__


OBJECTS = dict(public_objects())


@pytest.mark.parametrize("name", OBJECTS)
def test_docstring_passes_numpydoc_validation(name):
    skipped = set(NOT_ASKED)
    if is_dataclass(OBJECTS[name]) or hasattr(OBJECTS[name], "_fields"):
        skipped |= FIELDS
    errors = [f"{code}: {text}" for code, text in validate(name)["errors"] if code not in skipped]
    assert not errors


@pytest.mark.parametrize("name", [name for name in OBJECTS if name.count(".") == 1])
def test_docstring_of_public_class_or_function_has_an_example(name):
    found = OBJECTS[name]
    if inspect.isclass(found) and issubclass(found, Exception):
        return
    assert ">>>" in (found.__doc__ or "")
