"""Ensembles and states over several devices: what one device finds, and no data sent for nothing."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cdiffeq as cd

ROOT = Path(__file__).parents[1]
PROGRAMS = Path(__file__).parent / "scale_programs"


def _start(program: str, *arguments: object, devices: int) -> subprocess.Popen[str]:
    # The number of devices is fixed when JAX starts.
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, str(PROGRAMS / program), *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _report(process: subprocess.Popen[str]) -> dict:
    """What the program printed last."""
    try:
        out, err = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def _check_ensemble(report: dict, devices: int) -> None:
    assert report["devices"] == devices
    assert report["value"] > 0.1 and report["gradient"] > 0.1
    assert report["difference"] < 2e-14 * max(report["value"], report["gradient"])
    assert report["collectives"] == []


def test_an_ensemble_on_8_devices():
    report = _report(_start("ensembles.py", "decay", devices=8))
    _check_ensemble(report, 8)
    # One member of one device fails: the program says so, and doesn't wait for the others.
    assert "mesolve: H(t) is not Hermitian" in report["error"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        "exponential",
        "magnus",
        "chebyshev",
        "split_steps",
        "runge_kutta",
        "trajectories",
        "vector_field",
    ],
)
def test_other_ensembles_on_8_devices(case: str):
    report = _report(_start("ensembles.py", case, devices=8))
    _check_ensemble(report, 8)
    if "error" in report:
        assert "H(t) is not Hermitian" in report["error"]


@pytest.mark.slow
def test_an_ensemble_in_two_processes():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    both = [_start("ensembles.py", "exponential", i, 2, address, devices=2) for i in range(2)]
    try:
        reports = [_report(process) for process in both]
    finally:
        for process in both:
            process.kill()
    for report in reports:
        _check_ensemble(report, 4)
    assert reports[0]["value"] == reports[1]["value"]
    assert reports[0]["gradient"] == reports[1]["gradient"]


@pytest.mark.slow
def test_a_state_of_spins_spread_over_8_devices():
    report = _report(_start("spins.py", 10, devices=8))
    assert report["devices"] == 8
    assert report["difference"] < 1e-12
    assert report["state_stays_spread"]
    # Flips of the leading spins go to one neighbour each; else only numbers are summed.
    kinds = {kind for _, kind in report["collectives"]}
    assert kinds == {"collective-permute", "all-reduce"}
    for shape, kind in report["collectives"]:
        sizes = shape[shape.index("[") + 1 : shape.index("]")]
        count = np.prod([int(size) for size in sizes.split(",") if size])
        assert kind == "collective-permute" or count <= 2
    assert report["vectors_per_device"] < report["vectors"] / 4


def _temporaries(spins: int, slices: int) -> float:
    """Of a value with its gradient, in states."""
    edges = np.linspace(0.0, 0.1 * slices, slices + 1)

    def infidelity(u, couplings, psi0, target):
        zz, x = (cd.spin_chain(spins, {term: couplings[term]}) for term in ("ZZ", "X"))
        H = cd.constant(zz) + cd.pwc(edges, u, x)
        psi = cd.sesolve(H, psi0, edges[[0, -1]], method=cd.Chebyshev()).final_state
        return 1 - jnp.abs(jnp.vdot(target, psi)) ** 2

    state = jax.ShapeDtypeStruct((2**spins,), complex)
    number = jax.ShapeDtypeStruct((), float)
    u = jax.ShapeDtypeStruct((slices,), float)
    lowered = jax.jit(jax.value_and_grad(infidelity)).lower(
        u, {"ZZ": number, "X": number}, state, state
    )
    return lowered.compile().memory_analysis().temp_size_in_bytes / (16 * 2**spins)


@pytest.mark.slow
def test_memory_of_a_chain_in_states():
    """What the table in docs/scale.md is computed from; it doesn't depend on slices."""
    few = _temporaries(18, 2)
    assert few < 10
    assert _temporaries(18, 200) == pytest.approx(few, rel=0.01)
