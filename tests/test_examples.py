"""The examples reach what they say, checked with SciPy alone, and refuse what they can't use."""

import json
import sys
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from scipy.integrate import solve_ivp

from tests.running import EXAMPLES, load, run

DEVICES = json.loads((EXAMPLES / "data" / "ibm_devices.json").read_text())
MANILA = DEVICES["devices"]["ibmq_manila"]
PAULI_X = np.array([[0, 1], [1, 0]])


@pytest.fixture(scope="module")
def transmon_gate() -> ModuleType:
    return load("transmon_gate.py")


@pytest.fixture(scope="module")
def designed(tmp_path_factory: pytest.TempPathFactory):
    """What the quick design printed, its samples and its figure."""
    folder = tmp_path_factory.mktemp("transmon_gate")
    done = run("transmon_gate.py", "--quick", "--samples", "pulse.txt", cwd=folder)
    assert done.returncode == 0, done.stderr
    start, real, imag = np.loadtxt(folder / "pulse.txt", unpack=True)
    return done.stdout, start, real + 1j * imag, folder / "transmon_gate.png"


def _x_gate(samples: np.ndarray, levels: int, carrier: float | None = None, parts: int = 1):
    """(infidelity, leakage) on qubit 0 of ibmq_manila; with a carrier, nothing is dropped."""
    qubit, dt = MANILA["qubits"][0], MANILA["dt"]
    b = np.diag(np.sqrt(np.arange(1, levels)), 1)
    n = b.T @ b
    d = np.repeat(samples, parts)
    drive = d / 2
    if carrier is not None:
        turn = np.exp(-1j * carrier * dt / parts * (np.arange(len(d)) + 0.5))
        drive = (d * turn).real * turn.conj()
    H = qubit["anharmonicity"] / 2 * (n @ n - n) + qubit["drive"] * (
        drive[:, None, None] * b.T + drive.conj()[:, None, None] * b
    )
    U = np.eye(levels)
    for step in scipy.linalg.expm(-1j * dt / parts * H):
        U = step @ U
    M = U[:2, :2]
    kept = np.sum(np.abs(M) ** 2)
    return 1 - (np.abs(np.trace(PAULI_X @ M)) ** 2 + kept) / 6, 1 - kept / 2


def _table(printed: str) -> dict[str, list[float]]:
    """The rows of the table by the pulse: time, error, leakage, error with decay."""
    rows = [line.split() for line in printed[printed.index("pulse ") :].splitlines()]
    names = ("Gaussian", "DRAG", "designed")
    return {row[0]: [float(x) for x in row[-4:]] for row in rows if row[1:] and row[0] in names}


@pytest.mark.slow
def test_designed_gate(designed):
    printed, start, samples, figure = designed
    time, error, leakage, with_decay = _table(printed)["designed"]
    assert time == pytest.approx(len(samples) * MANILA["dt"], abs=0.01)
    assert len(samples) * MANILA["dt"] < MANILA["qubits"][0]["x"]["gate_length"] / 2 + 1e-9
    np.testing.assert_allclose(np.diff(start), MANILA["dt"])
    # With more levels than it was designed with, and to the rounding of 80 products and 1 - F.
    assert error < 1e-8
    infidelity, leaked = _x_gate(samples, levels=7)
    assert infidelity == pytest.approx(error, abs=2e-12)
    assert leaked == pytest.approx(leakage, abs=2e-12)
    # Better than the usual pulses, and in all than the device's own gate.
    assert error < 1e-3 * min(_table(printed)[name][1] for name in ("Gaussian", "DRAG"))
    assert error < with_decay < MANILA["qubits"][0]["x"]["gate_error"]
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert "iteration  10   error" in printed


@pytest.mark.slow
def test_designed_pulse_can_be_played(designed):
    _, _, samples, _ = designed
    peak = np.max(np.abs(samples))
    assert peak <= 1
    assert np.max(np.abs(samples[[0, -1]])) < 1e-3
    assert np.max(np.abs(np.diff(samples))) < 0.1 * peak


@pytest.mark.slow
def test_what_the_rotating_frame_leaves_out(designed):
    _, _, samples, _ = designed
    infidelity, _ = _x_gate(samples, 5, carrier=MANILA["qubits"][0]["omega_q"], parts=60)
    assert infidelity == pytest.approx(2e-8, abs=1e-8)


def test_gate_error_is_the_average_infidelity(transmon_gate: ModuleType):
    rng = np.random.default_rng(0)
    U, _ = np.linalg.qr(rng.normal(size=(5, 5)) + 1j * rng.normal(size=(5, 5)))
    error, leakage = transmon_gate.gate_error(jnp.asarray(U[:, :2]))
    M = U[:2, :2]
    kept = np.trace(M.conj().T @ M).real
    # Over the qubit's six cardinal states, by definition.
    states = [np.array(c) / np.linalg.norm(c) for c in ([1, 0], [0, 1], [1, 1], [1, -1])]
    states += [np.array([1, 1j]) / np.sqrt(2), np.array([1, -1j]) / np.sqrt(2)]
    fidelity = np.mean([np.abs(np.vdot(PAULI_X @ psi, M @ psi)) ** 2 for psi in states])
    assert error == pytest.approx(1 - fidelity, abs=1e-14)
    assert leakage == pytest.approx(1 - kept / 2, abs=1e-14)
    exact = np.zeros((5, 2), complex)
    exact[:2] = np.exp(0.7j) * PAULI_X
    assert transmon_gate.gate_error(jnp.asarray(exact))[0] < 1e-30


def test_any_designed_pulse_is_within_the_limit(transmon_gate: ModuleType):
    p = np.random.default_rng(0).normal(size=16) * 100
    s = (np.arange(400) + 0.5) / 400
    with jax.numpy_rank_promotion("allow"):
        samples = np.abs(transmon_gate.designed(p, s))
    assert np.max(samples) < 1
    assert samples[0] < 0.01 * np.linalg.norm(p)


def _device(**changes: object) -> dict:
    qubit = MANILA["qubits"][0] | changes
    return {"devices": {"mine": {"dt": MANILA["dt"], "qubits": [qubit]}}}


def test_another_device(transmon_gate: ModuleType, tmp_path: Path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(_device(drive=0.5)))
    qubit = transmon_gate.read_qubit(file, None, 0)
    assert (qubit.device, qubit.drive, qubit.dt) == ("mine", 0.5, MANILA["dt"])
    assert transmon_gate.read_qubit(EXAMPLES / "data/ibm_devices.json", None, 3).number == 3


def _refused(module: ModuleType, arguments: list[str], capsys, monkeypatch) -> str:
    """The one line that a script says before it exits with 2."""
    monkeypatch.setattr(sys, "argv", [module.__file__, *arguments])
    with pytest.raises(SystemExit) as exit:
        module.main()
    out, err = capsys.readouterr()
    assert exit.value.code == 2
    assert out == "" and err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("--qubit 5", "has qubits 0 to 4, not 5"),
        ("--qubit -1", "has qubits 0 to 4, not -1"),
        ("--qubit two", "invalid int value: 'two'"),
        ("--name ibmq_nowhere", "no device 'ibmq_nowhere'; it has ibmq_armonk, ibmq_manila"),
        ("--device nowhere.json", "can't read nowhere.json: No such file"),
        (f"--device {EXAMPLES}", "can't read"),
        (f"--device {__file__}", "isn't a calibration file"),
        ("--duration -3", "between 3.29 ns"),
        ("--duration 0", "between 3.29 ns"),
        ("--duration nan", "not nan"),
        ("--duration 1e9", "not 1e+09"),
        ("--duration soon", "invalid float value: 'soon'"),
        ("--output nowhere/gate.png", "nowhere is not a folder"),
        ("--output gate.xyz", "can't be written as .xyz"),
        ("--samples nowhere/pulse.txt", "nowhere is not a folder"),
        ("--turbo", "unrecognized arguments: --turbo"),
    ],
)
def test_transmon_gate_refuses(transmon_gate, arguments, reason, capsys, monkeypatch):
    assert reason in _refused(transmon_gate, arguments.split(), capsys, monkeypatch)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[]", "isn't a calibration file"),
        ("{}", "lacks 'devices'"),
        ('{"devices": {"mine": {"qubits": [{}]}}}', "lacks 'x'"),
        (json.dumps(_device(drive=-0.5)), "drive of qubit 0 of mine can't be -0.5"),
        (json.dumps(_device(anharmonicity=0.0)), "anharmonicity of qubit 0 of mine can't be 0.0"),
        (json.dumps(_device(T1=float("nan"))), "T1 of qubit 0 of mine can't be nan"),
        (json.dumps(_device(T2="long")), "could not convert string to float: 'long'"),
        (json.dumps(_device(T2=None)), "isn't a calibration file"),
    ],
)
def test_transmon_gate_refuses_files(transmon_gate, content, reason, tmp_path, capsys, monkeypatch):
    file = tmp_path / "mine.json"
    file.write_text(content)
    assert reason in _refused(transmon_gate, ["--device", str(file)], capsys, monkeypatch)


@pytest.mark.slow
def test_too_little_time_is_no_success(tmp_path: Path):
    done = run("transmon_gate.py", "--quick", "--duration", 3.4, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == "The error isn't below 1e-08: the gate needs more time.\n"


def _shares_of_zeros(theta: np.ndarray, fs: np.ndarray, times: np.ndarray) -> np.ndarray:
    """fit_rabi's model once more; theta and fs in MHz, the readout wrong in 2 of 100 cases."""
    delta, alpha, omega = 2e-3 * np.pi * theta
    b = np.diag(np.sqrt(np.arange(1, 4)), 1)
    n = b.T @ b
    p = np.zeros((2, fs.shape[1], len(times)))
    for i, a in enumerate((0.12, 0.6)):
        for j, f in enumerate(2e-3 * np.pi * fs[i]):
            H = (delta - f) * n + alpha / 2 * (n @ n - n) + a * omega / 2 * (b + b.T)
            p[i, j] = np.abs(scipy.linalg.expm(-1j * times[:, None, None] * H)[:, 0, 0]) ** 2
    return 0.02 + 0.96 * p


@pytest.mark.slow
def test_fit_rabi(tmp_path: Path):
    done = run("fit_rabi.py", "--quick", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [
        line.split() for line in done.stdout.splitlines() if line.endswith(tuple("0123456789"))
    ]
    rows = np.array(
        [
            [float(x) for x in row[-5:]]
            for row in lines
            if row[0] in ("frequency", "anharmonicity", "drive")
        ]
    )
    start, truth, estimate, bars, pulls = rows.T
    np.testing.assert_allclose(truth[1:], [-344.625, 151.788], rtol=0, atol=2e-3)
    assert np.all(np.abs(start - truth) > 300 * bars)
    np.testing.assert_allclose(pulls, (estimate - truth) / bars, rtol=0, atol=0.03)
    assert np.all(np.abs(pulls) < 3)
    # The inverse of the Fisher information at the truth, by finite differences.
    fs = np.linspace([-60, -260], [80, 100], 9, axis=1)
    times = np.linspace(0, 60, 13)[1:]
    p = _shares_of_zeros(truth, fs, times)
    slopes = np.array(
        [
            (_shares_of_zeros(truth + h, fs, times) - _shares_of_zeros(truth - h, fs, times)) / 2e-3
            for h in 1e-3 * np.eye(3)
        ]
    )
    information = np.einsum("iabt,jabt,abt->ij", slopes, slopes, 1000 / (p * (1 - p)))
    np.testing.assert_allclose(bars, np.sqrt(np.diag(np.linalg.inv(information))), rtol=0.05)
    assert (tmp_path / "fit_rabi.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("--seed -1", "--seed can't be negative"),
        ("--seed x", "invalid int value: 'x'"),
        ("--output nowhere/fit.png", "nowhere is not a folder"),
        ("--output fit", "can't be written as a file without an ending"),
    ],
)
def test_fit_rabi_refuses(arguments, reason, capsys, monkeypatch):
    assert reason in _refused(load("fit_rabi.py"), arguments.split(), capsys, monkeypatch)


@pytest.fixture(scope="module")
def neural_ode() -> ModuleType:
    return load("neural_ode.py")


def _network(net, z: complex) -> complex:
    """neural_ode's network once more."""
    x = np.array([z])
    for i, (w, b) in enumerate(zip(net.weights, net.biases, strict=True)):
        x = np.asarray(w) @ x + np.asarray(b)
        if i < len(net.weights) - 1:
            x = (1 + np.cos(np.angle(x))) / 2 * x
    return x[0]


def _path(field, z: complex, times: np.ndarray) -> np.ndarray:
    """By SciPy, from z along a field of the real and the imaginary part."""

    def rates(t, v):
        slope = field(v[0] + 1j * v[1])
        return [slope.real, slope.imag]

    solved = solve_ivp(
        rates, times[[0, -1]], [z.real, z.imag], "DOP853", times, rtol=1e-9, atol=1e-11
    )
    return solved.y[0] + 1j * solved.y[1]


@pytest.mark.slow
def test_neural_ode_solves_for_its_trajectories(neural_ode: ModuleType):
    times = neural_ode.TIMES
    net = neural_ode.Network(3, jax.random.key(1))
    paths = neural_ode.trajectories(net, neural_ode.STARTS[:2])
    data = neural_ode.measured(neural_ode.STARTS[:2])
    for i, z in enumerate(neural_ode.STARTS[:2]):
        expected = _path(lambda z: _network(net, z), z, times)
        np.testing.assert_allclose(paths[i], expected, rtol=0, atol=1e-3 * np.max(np.abs(expected)))
        expected = _path(lambda z: (1 + 2j) * z - (1 + 1j) * abs(z) ** 2 * z, z, times)
        np.testing.assert_allclose(data[i], expected, rtol=0, atol=1e-6)


def test_cardioid(neural_ode: ModuleType):
    assert neural_ode.cardioid(jnp.array(2.0 + 0j)) == 2
    assert neural_ode.cardioid(jnp.array(-2.0 + 0j)) == 0
    assert neural_ode.cardioid(jnp.array(0j)) == 0
    assert neural_ode.cardioid(jnp.array(2j)) == pytest.approx(1j)


@pytest.mark.slow
def test_neural_ode(tmp_path: Path):
    done = run("neural_ode.py", "--quick", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    slope, off = next(line for line in done.stdout.splitlines() if "Slope" in line).split(";")[1:]
    assert abs(float(slope.split()[-1])) > 1e-3  # a direction that tells something
    assert float(off.split()[2]) < 1e-5
    words = next(line for line in done.stdout.splitlines() if "Loss over" in line).split()
    before, after = float(words[5]), float(words[7])
    assert after < before / 50
    assert (tmp_path / "neural_ode.png").read_bytes().startswith(b"\x89PNG")


def _laser_field(theta: np.ndarray, times: np.ndarray) -> np.ndarray:
    """laser_fit's model once more, in real and imaginary part, by SciPy's Radau."""
    alpha, tau_p, tau_n, s = theta

    def rates(t, v):
        E, n = v[0] + 1j * v[1], v[2]
        G = n / (1 + s * abs(E) ** 2)
        slope = (1 + 1j * alpha) * (G - 1) * E / (2e-3 * tau_p)
        J = 2 + 0.5 * np.sin(2 * np.pi * t / 5)
        return [slope.real, slope.imag, (J - n - G * abs(E) ** 2) / tau_n]

    solved = solve_ivp(
        rates, times[[0, -1]], [0.1, 0.0, 1.0], "Radau", times, rtol=1e-8, atol=1e-10
    )
    return solved.y[:2]


@pytest.mark.slow
def test_laser_fit(tmp_path: Path):
    done = run("laser_fit.py", "--quick", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    names = ("alpha ", "tau_p ", "tau_n ", "s ")
    lines = [line for line in done.stdout.splitlines() if line.startswith(names)]
    rows = np.array([[float(x) for x in line.split()[-5:]] for line in lines])
    start, truth, estimate, bars, pulls = rows.T
    np.testing.assert_array_equal(truth, [3, 2, 2, 0.3])
    assert np.all(np.abs(start - truth) > 5 * bars)
    assert np.all(np.abs(pulls) < 4)
    np.testing.assert_allclose(pulls, (estimate - truth) / bars, rtol=0, atol=0.1)
    # The inverse of the Fisher information at the truth, by finite differences.
    times = np.concatenate([np.arange(0, 0.3, 0.005), np.arange(0.3, 5.05, 0.1)])
    slopes = np.array(
        [
            np.ravel(_laser_field(truth + h, times) - _laser_field(truth - h, times))
            / (2 * h.sum())
            for h in np.diag(1e-3 * truth)
        ]
    )
    covariance = np.linalg.inv(slopes @ slopes.T / 0.02**2)
    np.testing.assert_allclose(bars, np.sqrt(np.diag(covariance)), rtol=0.15)
    steps = {
        w[0]: int(w[2]) for w in map(str.split, done.stdout.splitlines()) if w[1:2] == ["takes"]
    }
    assert steps["Kvaerno5"] < steps["Tsit5"]
    assert (tmp_path / "laser_fit.png").read_bytes().startswith(b"\x89PNG")


def test_laser_fit_solves_the_rate_equations():
    laser_fit = load("laser_fit.py")
    times = np.linspace(0, 1.5, 16)
    theta = np.array([2.5, 1.8, 2.2, 0.25])
    found = laser_fit.quadratures(theta, times)
    np.testing.assert_allclose(found, _laser_field(theta, times), rtol=0, atol=3e-4)


@pytest.mark.parametrize("script", ["neural_ode.py", "laser_fit.py"])
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("--seed -1", "--seed can't be negative"),
        ("--seed x", "invalid int value: 'x'"),
        ("--output nowhere/fit.png", "nowhere is not a folder"),
        ("--output fit", "can't be written as a file without an ending"),
    ],
)
def test_ode_examples_refuse(script, arguments, reason, capsys, monkeypatch):
    assert reason in _refused(load(script), arguments.split(), capsys, monkeypatch)


def test_the_calibration_has_its_source():
    assert "qiskit-ibm-runtime" in DEVICES["source"] and "Apache-2.0" in DEVICES["source"]
