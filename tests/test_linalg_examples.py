"""The examples of linear algebra reach what they say, checked with NumPy and SciPy alone."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest
from scipy.optimize import least_squares

EXAMPLES = Path(__file__).parents[1] / "examples"


def _run(script: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs an example as a user would, elsewhere, with the package of this working tree."""
    return subprocess.run(
        [sys.executable, EXAMPLES / script, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(EXAMPLES.parent)},
        capture_output=True,
        text=True,
    )


def _load(script: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(script).stem, EXAMPLES / script)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def filter_fit() -> ModuleType:
    return _load("filter_fit.py")


def _ladder(x: np.ndarray, f: np.ndarray) -> np.ndarray:
    """filter_fit's reflections once more, by impedances in series and in parallel."""
    w = 2e9 * np.pi * f
    L1, L, C, *rest = x
    behind = rest[-1] + 0j
    if len(rest) > 1:
        behind = behind + 1e-12j * w * rest[0] + 1 / (1e-15j * w * rest[1])
    z = 1e-12j * w * L1 + 1 / (1 / (1e-12j * w * L) + 1e-15j * w * C + 1 / behind)
    return (z - 50) / (z + 50)


def _measured() -> tuple[np.ndarray, np.ndarray]:
    lines = (EXAMPLES / "data" / "ring_slot_measured.s1p").read_text().splitlines()
    rows = np.array([line.split() for line in lines if line[0] not in "!#"], float)
    return rows[:, 0], rows[:, 1] + 1j * rows[:, 2]


def test_the_measurement_has_its_source(filter_fit: ModuleType):
    folder = EXAMPLES / "data"
    assert "scikit-rf" in (folder / "ring_slot_measured.s1p").read_text().splitlines()[0]
    assert "Alexander Arsenovic" in (folder / "ring_slot_measured.txt").read_text()
    f, measured = filter_fit.read_touchstone(filter_fit.DATA)
    assert len(f) == 101 and f[0] == 75 and f[-1] == pytest.approx(110)
    assert measured[0] == -0.067684517179 + 0.659208635995j
    np.testing.assert_array_equal(measured, _measured()[1])


@pytest.mark.parametrize("name", ["one resonance", "two resonances"])
def test_nodal_equations_are_the_ladder(filter_fit: ModuleType, name: str):
    circuit = filter_fit.CIRCUITS[name]
    x = np.array([25.0, 15.0, 220.0, 80.0, 40.0, 60.0])
    x = x if len(circuit) == 6 else x[[0, 1, 2, 5]]
    f = np.linspace(75, 110, 7)
    S = filter_fit.reflection(circuit, np.log(x), f)
    dS = jax.jacfwd(lambda logs: filter_fit.reflection(circuit, logs, f))(np.log(x))
    np.testing.assert_allclose(S, _ladder(x, f), atol=1e-12)
    for k, step in enumerate(1e-5 * np.eye(len(x))):
        slope = (_ladder(x * np.exp(step), f) - _ladder(x * np.exp(-step), f)) / 2e-5
        np.testing.assert_allclose(dS[:, k], slope, atol=1e-8)


@pytest.mark.slow
def test_filter_fit(tmp_path: Path):
    done = _run("filter_fit.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    rows = np.array([[float(w[1]), float(w[3])] for w in lines if w[2:3] == ["+-"]])
    rms = [float(w[2]) for w in lines if w[1:2] in (["resonance:"], ["resonances:"])]
    f, measured = _measured()
    for found, left_over, start in (
        (rows[:4], rms[0], [30.0, 15.0, 230.0, 60.0]),
        (rows[4:], rms[1], [30.0, 15.0, 250.0, 90.0, 35.0, 60.0]),
    ):

        def residuals(x):
            left = _ladder(x, f) - measured
            return np.concatenate([left.real, left.imag])

        fitted = least_squares(residuals, start, jac="3-point", x_scale="jac", xtol=1e-12)
        np.testing.assert_allclose(found[:, 0], fitted.x, rtol=2e-3)
        left = fitted.fun.reshape(2, -1)
        assert left_over == pytest.approx(np.sqrt(np.sum(left**2) / len(f)), abs=1e-4)
        rho = np.sum(left[:, 1:] * left[:, :-1]) / np.sum(left**2)
        variance = np.sum(left**2) / (2 * len(f) - len(start)) * (1 + rho) / (1 - rho)
        bars = np.sqrt(variance * np.diag(np.linalg.inv(fitted.jac.T @ fitted.jac)))
        np.testing.assert_allclose(found[:, 1], bars, rtol=1e-3, atol=0.005)  # as printed
    assert rms[1] < rms[0] < 0.025
    assert (tmp_path / "filter_fit.png").read_bytes().startswith(b"\x89PNG")


def _refused(module: ModuleType, arguments: list[str], capsys, monkeypatch) -> str:
    """The one line that a script says before it exits with 2."""
    monkeypatch.setattr(sys, "argv", [module.__file__, *arguments])
    with pytest.raises(SystemExit) as exit:
        module.main()
    out, err = capsys.readouterr()
    assert exit.value.code == 2
    assert out == "" and err.count("\n") == 1
    return err


@pytest.mark.parametrize("script", ["filter_fit.py"])
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("--output nowhere/fit.png", "nowhere is not a folder"),
        ("--output fit", "can't be written as a file without an ending"),
        ("--turbo", "unrecognized arguments: --turbo"),
    ],
)
def test_linalg_examples_refuse(script, arguments, reason, capsys, monkeypatch):
    assert reason in _refused(_load(script), arguments.split(), capsys, monkeypatch)
