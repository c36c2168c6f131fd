"""Every public name explains itself, and every example in a docstring is really run."""

import ast
import doctest
import importlib
import inspect
import pkgutil
from types import ModuleType

import pytest

import cdiffeq

MODULES = ["cdiffeq"] + [m.name for m in pkgutil.walk_packages(cdiffeq.__path__, "cdiffeq.")]
PUBLIC_MODULES = [name for name in MODULES if "._" not in name]


def _public(module: ModuleType) -> dict[str, object]:
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and str(getattr(value, "__module__", "")).startswith("cdiffeq")
    }


@pytest.mark.parametrize("name", PUBLIC_MODULES)
def test_public_names_have_docstrings(name: str):
    module = importlib.import_module(name)
    assert module.__doc__
    for public, value in _public(module).items():
        doc = inspect.getdoc(value)
        assert doc, f"{name}.{public} has no docstring"
        if not isinstance(value, type):
            assert ">>>" in doc, f"{name}.{public} has no example"


@pytest.mark.parametrize("name", MODULES)
def test_every_example_is_collected(name: str):
    # doctest passes over objects that are neither functions nor classes, so a decorator that
    # returns something else would silently take its examples out of the tests.
    module = importlib.import_module(name)
    written = sum(
        ">>>" in (ast.get_docstring(node) or "")
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
    )
    found = [test.name for test in doctest.DocTestFinder().find(module) if test.examples]
    assert len(found) == written, found
