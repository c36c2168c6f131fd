"""The gate for an ensemble, on one device and on several."""

import re
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg

from tests.running import load, run


def _numbers(text: str, pattern: str) -> list[float]:
    found = re.search(pattern, text)
    assert found, text
    return [float(number) for number in found.groups()]


@pytest.mark.slow
def test_ensemble_runs_unchanged_on_three_devices(tmp_path: Path, monkeypatch):
    # 25 members: on three devices, two without weight are added.
    start = r"mean error ([.\d]+), slope ([.\d]+)"
    mean = r"designed for {}: .* errors, (\S+) in the mean"
    outputs = []
    for devices in (1, 3):
        monkeypatch.setenv("JAX_PLATFORMS", "cpu")
        monkeypatch.setenv("XLA_FLAGS", f"--xla_force_host_platform_device_count={devices}")
        done = run("ensemble.py", "--quick", "--output", f"{devices}.png", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"25 members on {devices} device" in done.stdout
        assert (tmp_path / f"{devices}.png").stat().st_size > 10_000
        outputs.append(done.stdout)
    one, three = (_numbers(output, start) for output in outputs)
    np.testing.assert_allclose(one, three, rtol=0, atol=2e-12)
    for output in outputs:
        (single,), (robust,) = (
            _numbers(output, mean.format(n)) for n in ("one qubit", "the ensemble")
        )
        assert robust < single / 3


@pytest.mark.slow
def test_ensemble_solves_its_model():
    """The error of one member, by SciPy's exponentials."""
    gate = load("ensemble.py").Gate(3)
    p = np.random.default_rng(5).normal(size=16) / 3
    delta, epsilon = 0.007, -0.03
    U = np.eye(3, dtype=complex)
    for d in np.asarray(gate.pulse(p)):
        raising = (1 + epsilon) * gate.drive / 2 * d * gate.b.T
        H = delta * np.diag([0, 1, 2]) + gate.anharmonic + raising + raising.conj().T
        U = scipy.linalg.expm(-1j * gate.edges[1] * H) @ U
    A = U[1::-1, :2]
    kept = np.trace(A.conj().T @ A).real
    expected = 1 - (abs(np.trace(A)) ** 2 + kept) / 6
    assert float(gate.error(p, delta, epsilon)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--points", 2), "--points must be at least 3"),
        (("--output", "nowhere/gate.png"), "nowhere is not a folder"),
        (("--output", "gate.xyz"), "can't be written as .xyz"),
    ],
)
def test_ensemble_refuses(arguments, reason, tmp_path: Path):
    done = run("ensemble.py", *arguments, cwd=tmp_path)
    assert done.returncode == 2 and reason in done.stderr
