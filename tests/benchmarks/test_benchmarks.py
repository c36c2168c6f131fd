"""The benchmarks' references are right; no method is dropped and no error hidden."""

import dataclasses
import importlib
import json
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.linalg import expm

from benchmarks import __main__, _harness, _report
from benchmarks._harness import Method, Problem, Reference, Row

TURN = 0.7


def _turn(gradient_factor: float = 1.0, state_error: float = 0.0):
    """Build a program for exp(-i x): loss 1 - Re, off by what is asked."""

    def build(instance, tolerance):
        program = _harness.jax_program(
            lambda x: jnp.exp(-1j * x) + (state_error if tolerance is None else tolerance),
            lambda state: 1 - state.real.sum(),
            instance,
        )
        loss, gradient = np.sum(1 - np.cos(instance)), gradient_factor * np.sin(instance)
        return program._replace(gradient=lambda: _harness.Ready(lambda: (loss, gradient)))

    return build


def _problem(**methods: Method) -> Problem:
    return Problem(
        title="Turn",
        size_name="angles",
        sizes=(1,),
        quick_sizes=(1,),
        target=1e-8,
        instance=lambda size: np.full(size, TURN),
        reference=lambda x: Reference(np.sum(1 - np.cos(x)), np.exp(-1j * x), np.sin(x)),
        methods=methods,
    )


def _difference(loss, at, direction, step):
    """The derivative along a direction, by differences of fourth order."""
    ahead, behind, ahead2, behind2 = (loss(at + k * step * direction) for k in (1, -1, 2, -2))
    return (8 * (ahead - behind) - (ahead2 - behind2)) / (12 * step)


def test_reference_of_the_transmon():
    transmon = importlib.import_module("benchmarks.transmon")
    instance = transmon.instance(7)
    reference = transmon.reference(instance)

    def final_state(amplitudes):  # by eigenvectors: none of the reference's functions
        psi = instance.psi0
        for exponent in transmon.exponents(amplitudes):
            energies, vectors = np.linalg.eigh(1j * exponent)
            psi = vectors @ (np.exp(-1j * energies) * (vectors.conj().T @ psi))
        return psi

    def loss(amplitudes):
        return 1 - abs(np.vdot(instance.target, final_state(amplitudes))) ** 2

    np.testing.assert_allclose(
        reference.final_state, final_state(instance.amplitudes), rtol=0, atol=1e-13
    )
    np.testing.assert_allclose(reference.loss, loss(instance.amplitudes), rtol=0, atol=1e-13)
    direction = np.random.default_rng(1).standard_normal(instance.amplitudes.shape)
    # step**4 and rounding / step both stay below 1e-11
    difference = _difference(loss, instance.amplitudes, direction, 1e-3)
    np.testing.assert_allclose(np.sum(reference.gradient * direction), difference, rtol=1e-9)


def _solve(velocity, time, state, parameters):
    field = lambda t, z: velocity(np, z, parameters)
    return solve_ivp(field, (0, time), state, "DOP853", rtol=1e-13, atol=1e-14).y[:, -1]


def test_reference_of_the_lattice():
    lattice = importlib.import_module("benchmarks.lattice")
    instance = lattice.instance(5)
    reference = lattice.reference(instance)

    def loss(hopping):
        z = _solve(lattice.velocity, instance.time, instance.z0, hopping)
        return np.sum(np.abs(z - instance.target) ** 2) / 2

    np.testing.assert_allclose(reference.loss, loss(instance.hopping), rtol=1e-12)
    direction = np.random.default_rng(1).standard_normal((lattice.SITES, 2)) @ [1, 1j]
    difference = _difference(loss, instance.hopping, direction, 1e-3)
    slope = np.sum(reference.gradient * direction).real  # no conjugate: JAX's convention
    scale = np.linalg.norm(reference.gradient) * np.linalg.norm(direction)
    np.testing.assert_allclose(slope, difference, rtol=0, atol=1e-9 * scale)


def test_reference_of_the_ginzburg_landau_equation():
    module = importlib.import_module("benchmarks.ginzburg_landau")
    instance = module.instance(16)
    reference = module.reference(instance)

    def loss(gain):
        u = _solve(module.velocity, module.TIME, instance.u0, gain)
        return module.DX * np.sum((np.abs(u) ** 2 - 1) ** 2 / 4 + u.real)

    np.testing.assert_allclose(reference.loss, loss(instance.gain), rtol=1e-11)
    direction = np.random.default_rng(1).standard_normal(16)
    difference = _difference(loss, instance.gain, direction, 1e-3)
    np.testing.assert_allclose(reference.gradient @ direction, difference, rtol=1e-8)


def test_reference_of_the_helmholtz_equation():
    module = importlib.import_module("benchmarks.helmholtz")
    instance = module.instance(30)
    reference = module.reference(instance)
    cells = len(instance.source)

    def loss(permittivity):
        matrix = np.zeros((cells, cells), complex)
        values = np.concatenate(module.entries(instance, permittivity))
        np.add.at(matrix, (instance.rows, instance.columns), values)
        return abs(np.vdot(instance.probe, np.linalg.solve(matrix, instance.source))) ** 2

    np.testing.assert_allclose(reference.loss, loss(instance.permittivity), rtol=1e-10)
    direction = np.random.default_rng(1).standard_normal(cells)
    difference = _difference(loss, instance.permittivity, direction, 1e-4)
    np.testing.assert_allclose(reference.gradient @ direction, difference, rtol=1e-6)


def test_reference_of_the_dense_systems():
    module = importlib.import_module("benchmarks.dense_solves")
    instance = module.instance(3)
    reference = module.reference(instance)

    def loss(systems):
        x = np.linalg.solve(systems[..., :-1], systems[..., -1:])[..., 0]
        return np.sum(instance.weights * np.abs(x) ** 2)

    np.testing.assert_allclose(reference.loss, loss(instance.systems), rtol=1e-12)
    direction = np.random.default_rng(1).standard_normal((*instance.systems.shape, 2)) @ [1, 1j]
    difference = _difference(loss, instance.systems, direction, 1e-5)
    slope = np.sum(reference.gradient * direction).real  # no conjugate: JAX's convention
    scale = np.linalg.norm(reference.gradient) * np.linalg.norm(direction)
    np.testing.assert_allclose(slope, difference, rtol=0, atol=1e-7 * scale)


def test_reference_of_the_ising_chain():
    ising = importlib.import_module("benchmarks.ising")
    problem = ising.instance(2)
    reference = ising.reference(problem)
    X, Z, one = np.array([[0, 1], [1, 0]]), np.diag([1, -1]), np.eye(2)
    both = lambda A: np.kron(A, one) + np.kron(one, A)

    def loss(amplitudes):
        psi = problem.psi0
        for x, z in amplitudes.T:
            psi = expm(-1j * ising.DT * (np.kron(Z, Z) + x * both(X) + z * both(Z))) @ psi
        return 1 - abs(np.vdot(problem.target, psi)) ** 2

    np.testing.assert_allclose(reference.loss, loss(problem.amplitudes), rtol=0, atol=1e-12)
    direction = np.random.default_rng(1).standard_normal(problem.amplitudes.shape)
    difference = _difference(loss, problem.amplitudes, direction, 1e-3)
    np.testing.assert_allclose(np.sum(reference.gradient * direction), difference, rtol=1e-8)


def test_reference_of_the_wave_packet():
    wavepacket = importlib.import_module("benchmarks.wavepacket")
    problem = wavepacket.instance(16)
    reference = wavepacket.reference(problem)
    waves = np.fft.fft(np.eye(16))
    kinetic = np.conj(waves.T) @ (problem.k[:, None] ** 2 / 2 * waves) / 16

    def loss(c):
        def field(t, psi):
            pulse = c @ np.sin(wavepacket.K * np.pi * t / wavepacket.TIME)
            return -1j * (kinetic @ psi + (problem.potential + pulse * problem.x) * psi)

        ends = (0, wavepacket.TIME)
        psi = solve_ivp(field, ends, problem.psi0, "DOP853", rtol=1e-12, atol=1e-13).y[:, -1]
        return 1 - abs(np.vdot(problem.target, psi)) ** 2

    np.testing.assert_allclose(reference.loss, loss(problem.coefficients), rtol=0, atol=1e-9)
    direction = np.random.default_rng(1).standard_normal(len(problem.coefficients))
    difference = _difference(loss, problem.coefficients, direction, 1e-3)
    scale = np.linalg.norm(reference.gradient) * np.linalg.norm(direction)
    np.testing.assert_allclose(
        reference.gradient @ direction, difference, rtol=0, atol=1e-8 * scale
    )


@pytest.mark.parametrize("name", ["lattice", "ginzburg_landau"])
def test_real_and_complex_velocities_are_the_same(name):
    module = importlib.import_module(f"benchmarks.{name}")
    rng = np.random.default_rng(2)
    z = rng.standard_normal((2, 9))
    p = rng.standard_normal((2, 9)) if name == "lattice" else rng.standard_normal(9)
    x, y = module.real_velocity(np, z, p)
    expected = module.velocity(np, z[0] + 1j * z[1], p[0] + 1j * p[1] if p.ndim == 2 else p)
    np.testing.assert_allclose(x + 1j * y, expected, rtol=1e-12)


def test_tolerances_between_powers_of_ten():
    assert _harness.decades(-6, -7) == (1e-6, 1e-7)
    assert _harness.decades(-6, -7, (5, 2, 1)) == (5e-6, 2e-6, 1e-6, 5e-7, 2e-7, 1e-7)


def test_the_loosest_sufficient_tolerance_is_taken():
    problem = _problem()
    instance = problem.instance(1)
    method = Method(_turn(), (), _harness.decades(-6, -12))
    reference = problem.reference(instance)

    def calibrate(**changes):
        changed = dataclasses.replace(problem, **changes)
        return _harness.calibrate(changed, method, instance, reference)

    # The state is off by the tolerance itself; 1e-8 is the target but for rounding.
    assert calibrate(target=2e-8) == 1e-8
    assert calibrate(target=1e-15) == 1e-12
    assert calibrate(target=2e-8, calibrate_on="gradient") == 1e-6  # that is exact


def test_accuracy_may_be_that_of_the_gradient():
    errors = {"state_error": 1e-3, "gradient_error": 1e-9}
    on_state = _problem()
    on_gradient = dataclasses.replace(on_state, calibrate_on="gradient")
    assert on_gradient.accurate(errors) and not on_state.accurate(errors)
    summary = dict.fromkeys((key for _, key, _ in _report.COLUMNS), 1.0)
    table = _report.table(on_gradient, 1, [Row("cdiffeq", summary=summary)])
    assert "| cdiffeq* |" in table and "gradient not within 1e-08" in table


@pytest.mark.parametrize(("calibrated", "tolerance"), [(True, 1e-8), (False, 1e-6)])
def test_the_loosest_tolerance_is_taken_without_calibration(calibrated, tolerance, monkeypatch):
    problem = _problem(turn=Method(_turn(), (), (1e-6, 1e-8)))
    monkeypatch.setattr(_harness, "find_problem", lambda name: problem)
    errors = {"forward_cpu_s": 1.0, "gradient_cpu_s": 1.0}
    answers = {"calibrate": 1e-8, "measure": errors}
    monkeypatch.setattr(_harness, "_ask", lambda job, limit: answers[job["task"]])
    (row,) = _harness.run("turn", 1, ["turn"], 1, 60.0, calibrated)
    assert row.tolerance == tolerance


def test_errors_are_measured():
    problem = _problem()
    instance = problem.instance(4)
    program = _turn(gradient_factor=1.01, state_error=1e-3)(instance, None)
    figures = _harness.measure(program, problem.reference(instance))
    assert figures["gradient_error"] == pytest.approx(0.01)
    assert figures["state_error"] == pytest.approx(2e-3)  # 2-norm over 4 entries
    assert figures["loss_error"] < 1e-15
    assert figures["forward_cpu_s"] > 0 and figures["gradient_wall_s"] > 0


def test_evaluations_and_vjps_are_counted():
    def velocity(np, y, a):
        return a * np.sin(y)

    module = types.SimpleNamespace(velocity=velocity)
    tally = _harness.watch(module, ["velocity"])

    def euler(a):
        step = lambda _, y: y + 0.1 * module.velocity(jnp, y, a)
        return jax.lax.fori_loop(0, 5, step, jnp.ones(3))

    program = _harness.jax_program(euler, lambda y: y.sum(), np.array(0.5))
    assert _harness.count(program, tally) == {
        "forward_evaluations": 5,
        "gradient_evaluations": 5,
        "gradient_vjps": 5,
    }


def test_a_method_that_is_not_installed_is_reported(monkeypatch):
    problem = _problem(cdiffeq=Method(_turn(), ("no-such-distribution",)))
    monkeypatch.setattr(_harness, "find_problem", lambda name: problem)
    rows = _harness.run("turn", 1, ["cdiffeq"], repeats=2, limit=60)
    assert [row.status for row in rows] == ["not installed: no-such-distribution"]
    assert "| cdiffeq | not installed: no-such-distribution |" in _report.table(problem, 1, rows)
    assert _harness.versions(problem)["no-such-distribution"] == "not installed"


def test_a_method_that_takes_too_long_is_reported():
    rows = _harness.run("transmon", 1, ["jax-scan-expm"], repeats=2, limit=0.05)
    assert [row.status for row in rows] == ["over 0.05 s"]


def test_a_method_that_fails_is_reported(tmp_path: Path, capsys, monkeypatch):
    job = {"problem": "transmon", "size": 1, "method": "nonesuch", "folder": str(tmp_path)}
    with pytest.raises(_harness.NoFigures, match="failed: KeyError: 'nonesuch'"):
        _harness._ask(job, limit=60)
    monkeypatch.setattr(_harness, "run", lambda *_: [Row("cdiffeq", "failed: why")])
    assert __main__.main(["transmon", "--quick"]) == 1
    assert "| cdiffeq | failed: why |" in capsys.readouterr().out


def test_summary_and_table():
    def run(seconds, error):
        return {"forward_cpu_s": 1.0, "gradient_cpu_s": seconds, "state_error": error}

    ours = Row("cdiffeq", runs=[run(2.0, 1e-9), run(9.0, 2e-9), run(3.0, 1e-9)])
    other = Row("other", runs=[run(30.0, 1e-7)])
    late = Row("late", "over 5 s", runs=[run(1.0, 0.0)])
    _harness._summarise([ours, other, late])
    assert ours.summary["gradient_cpu_s"] == 3.0  # the median
    assert ours.summary["state_error"] == 2e-9  # the largest
    assert ours.summary["gradient_over_forward"] == 3.0
    assert other.summary["gradient_over_ours"] == 10.0
    assert late.summary == {}
    for row in (ours, other):
        row.summary = {key: row.summary.get(key) for _, key, _ in _report.COLUMNS}
    lines = _report.table(_problem(), 1, [ours, other, late]).splitlines()
    assert any(line.startswith("| cdiffeq | - | 1 | 3 |") for line in lines)
    assert any(line.startswith("| other* |") for line in lines)  # outside the target
    assert any(line.startswith("| late | over 5 s |") for line in lines)


def test_results_are_kept_but_for_the_quick_form(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(_report, "RESULTS", tmp_path)
    monkeypatch.setattr(_harness, "run", lambda *_: [Row("cdiffeq", "over 1 s")])
    assert __main__.main(["transmon", "--quick"]) == 0
    assert __main__.main(["transmon", "--no-save"]) == 0
    assert list(tmp_path.iterdir()) == []
    assert __main__.main(["transmon", "--slices", "3", "4"]) == 0
    (file,) = tmp_path.iterdir()
    record = json.loads(file.read_text())
    assert list(record["slices"]) == ["3", "4"]
    assert record["slices"]["4"][0]["status"] == "over 1 s"
    assert record["command"] == "python -m benchmarks transmon --slices 3 4"
    assert {"jax", "dynamiqs", "diffrax", "qutip-qtrl"} <= set(record["versions"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["transmon", "--methods", "nonesuch"], "has no method 'nonesuch'"),
        (["transmon", "--slices", "0"], "0 is not positive"),
        (["nonesuch"], "invalid choice"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit):
        __main__.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_from_end_to_end():
    methods = ["jax-scan-expm", "diffrax-dopri8"]
    rows = _harness.run("transmon", 2, methods, repeats=2, limit=300)
    assert [row.status for row in rows] == ["ok", "ok"]
    assert [row.tolerance is None for row in rows] == [True, False]
    assert all(len(row.runs) == 2 for row in rows)
    assert all(row.summary["gradient_error"] < 1e-8 for row in rows)
