"""The layers of the package: imports point down, at module scope, to declared dependencies."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the ground up. "_" stands for the private modules beside the rooms (_errors.py, _types.py).
LAYERS = (
    {"_"},
    {"wirtinger"},
    {"linalg"},
    {"implicit"},
    {"ode"},
    {"schrodinger"},
    {"fit", "nn", "interop", "plot"},
    {"testing"},
    {"__init__"},
)
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}


def _required_packages() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {re.split(r"\W", requirement)[0] for requirement in project["dependencies"]}


# What may be imported at module scope; an optional extra is imported where it is used.
ALWAYS_THERE = _required_packages() | sys.stdlib_module_names


def _room(module: list[str]) -> str:
    """The room of a module given by its path below the package: ["linalg", "_expm"] -> "linalg"."""
    name = module[0] if module else "__init__"
    return "_" if re.match("_[^_]", name) else name


def _targets(node: ast.Import | ast.ImportFrom, package: tuple[str, ...]) -> list[list[str]]:
    """The modules that a statement in `package` imports, as absolute paths."""
    if isinstance(node, ast.Import):
        return [alias.name.split(".") for alias in node.names]
    above = package[: len(package) + 1 - node.level] if node.level else ()
    base = [*above, *(node.module.split(".") if node.module else [])]
    if base == ["cdiffeq"]:
        # `from cdiffeq import linalg` reaches for the room, not for the whole package.
        return [[*base, alias.name] for alias in node.names]
    return [base]


def _imports(tree: ast.Module, package: tuple[str, ...]) -> Iterator[tuple[int, bool, list[str]]]:
    """Each import of a module in `package`: its line, whether in a function, what it imports."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    in_function = {inner for function in functions for inner in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for target in _targets(node, package):
                yield node.lineno, node in in_function, target


def _faults(sources: Mapping[str, str]) -> list[str]:
    """What is wrong with the imports of a package given as {path below the package: source}."""
    faults = []
    for path, source in sources.items():
        *folders, name = path.removesuffix(".py").split("/")
        here = _room([*folders, name])
        for line, in_function, target in _imports(ast.parse(source), ("cdiffeq", *folders)):
            reason = _fault(here, in_function, target)
            if reason:
                faults.append(f"{path}:{line} imports {'.'.join(target)}: {reason}")
    return faults


def _fault(here: str, in_function: bool, target: list[str]) -> str | None:
    if target[0] != "cdiffeq":
        declared = target[0] in ALWAYS_THERE
        if in_function and declared:
            return "belongs at module scope"
        if not in_function and not declared:
            return "is not a dependency, so it cannot be imported at module scope"
        return None
    there = _room(target[1:])
    unknown = {here, there} - RANK.keys()
    if unknown:
        return f"{', '.join(unknown)} has no place in LAYERS"
    if in_function:
        return "belongs at module scope"
    if here != there and RANK[here] <= RANK[there]:
        return f"{here} reaches up to {there}"
    return None


def test_imports_point_down():
    package = ROOT / "cdiffeq"
    files = sorted(package.rglob("*.py"))
    assert files
    assert not _faults({f.relative_to(package).as_posix(): f.read_text() for f in files})


@pytest.mark.parametrize(
    "path, source",
    [
        ("wirtinger/_rule.py", "from cdiffeq.linalg import expm"),
        ("wirtinger/_rule.py", "from ..linalg import expm"),
        ("wirtinger/_rule.py", "from .. import linalg"),
        ("wirtinger/_rule.py", "import cdiffeq.linalg._expm as e"),
        ("linalg/_expm.py", "import cdiffeq as cd"),
        ("linalg/_expm.py", "from cdiffeq import sesolve"),
        ("linalg/_expm.py", "from cdiffeq.testing import check_rule"),
        ("linalg/_expm.py", "if TYPE_CHECKING:\n    from cdiffeq.schrodinger import Result"),
        ("linalg/__init__.py", "from cdiffeq import schrodinger"),
        ("_errors.py", "from cdiffeq import wirtinger"),
        ("nn.py", "from cdiffeq import fit"),
        ("newroom/_a.py", "from cdiffeq import linalg"),
        ("linalg/_expm.py", "def f():\n    from cdiffeq import wirtinger"),
        ("linalg/_expm.py", "class A:\n    def f(self):\n        import jax"),
        ("linalg/_expm.py", "def f():\n    import functools"),
        ("linalg/_expm.py", "import qutip"),
        ("linalg/_expm.py", "from optax import adam"),
    ],
)
def test_a_planted_fault_is_found(path: str, source: str):
    (fault,) = _faults({path: source})
    assert fault.startswith(path)


@pytest.mark.parametrize(
    "path, source",
    [
        ("__init__.py", "from cdiffeq import schrodinger\nfrom cdiffeq.linalg import expm"),
        ("schrodinger/_sesolve.py", "from cdiffeq import linalg, wirtinger, _errors"),
        ("schrodinger/_sesolve.py", "from cdiffeq.schrodinger._step import step"),
        ("schrodinger/_sesolve.py", "from . import _step\nfrom ._step import step"),
        ("schrodinger/_sesolve.py", "from .._errors import raise_if"),
        ("testing.py", "from cdiffeq.schrodinger import sesolve"),
        ("linalg/_expm.py", "from jax import numpy\nimport functools, scipy.linalg"),
        ("plot.py", "def f():\n    import matplotlib.pyplot as plt"),
    ],
)
def test_a_sound_import_passes(path: str, source: str):
    assert not _faults({path: source})
