"""Designs a two-qubit gate for a pair of superconducting qubits that decay, by gradient descent.

    python examples/cz_gate.py
    python examples/cz_gate.py --pair 4 3 --duration 260

Two transmons of fixed frequencies and a weak fixed coupling J, each driven through its own line, in the
frame that rotates at the second one's frequency (rotating-wave approximation; b lowers, n = b^+ b):

    H = Delta n_0 + sum_i (alpha_i/2) n_i (n_i - 1) + J (b_0^+ b_1 + b_0 b_1^+)
        + sum_i (Omega_i/2) (d_i(t) b_i^+ + conj(d_i(t)) b_i),        |d_i| <= 1

The gate is a controlled NOT, which is a CZ between two Hadamard gates on the second qubit. Rotations about
z are virtual: they cost nothing, and three of them are designed along. Qubit states are the eigenstates of
the idle pair.

1. *Closed*: the average gate error without decay, by `cd.sesolve` and its gradient.
2. *Open*: T1 and T2 come in as jump operators sqrt(1/T1) b and sqrt(2/T_phi) n, with
   1/T_phi = 1/T2 - 1/(2 T1). `cd.mesolve` verifies the pulse and its gradient refines it.

The calibration of ibmq_manila is in data/ibm_devices.json, with its source. What the model leaves out: the
other qubits, the dropped half of each drive, crosstalk, the lines' distortion of the pulse, and errors of
preparation; a device's reported error holds them all.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from scipy.optimize import minimize

import cdiffeq as cd

jax.config.update("jax_enable_x64", True)
matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

HARMONICS = 12
LEVELS = (4, 3)
HELD = 4  # samples of the generator for which an amplitude is held
CNOT = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]], complex)
PAULIS = np.array([[[1, 0], [0, 1]], [[0, 1], [1, 0]], [[0, -1j], [1j, 0]], [[1, 0], [0, -1]]])
PAIRS = np.einsum("aij,bkl->abikjl", PAULIS, PAULIS).reshape(16, 4, 4)


class Pair(NamedTuple):
    """Two coupled qubits: angular frequencies in rad/ns, times in ns."""

    names: tuple[int, int]
    detuning: float
    anharmonicity: np.ndarray
    drive: np.ndarray
    coupling: float
    T1: np.ndarray
    T2: np.ndarray
    dt: float
    gate_error: float
    gate_length: float


def fail(message: str) -> NoReturn:
    print(f"cz_gate.py: {message}", file=sys.stderr)
    sys.exit(2)


def read_pair(file: Path, name: str, first: int, second: int) -> Pair:
    """The calibration of two neighbours; `first` is the control."""
    device = json.loads(file.read_text())["devices"][name]
    coupling = device["coupling_J"].get("{}q{}".format(*sorted((first, second))))
    if coupling is None:
        fail(f"qubits {first} and {second} of {name} aren't coupled")
    gate = next(g for g in device["cx"] if g["qubits"] == [first, second])
    values = lambda key: np.array([device["qubits"][q][key] for q in (first, second)])
    frequencies = values("omega_q")
    return Pair(
        (first, second), frequencies[0] - frequencies[1], values("anharmonicity"), values("drive"),
        coupling, 1e3 * values("T1"), 1e3 * values("T2"), device["dt"], gate["gate_error"],
        gate["gate_length"],
    )  # fmt: skip


class Model(NamedTuple):
    """The pair's matrices: idle Hamiltonian, lowering and jump operators, eigenstates of the qubits."""

    idle: np.ndarray
    lower: tuple[np.ndarray, np.ndarray]
    jumps: list[np.ndarray]
    qubits: np.ndarray  # (n, 4): 00, 01, 10, 11


def make_model(pair: Pair, levels: tuple[int, int] = LEVELS) -> Model:
    first, second = (np.diag(np.sqrt(np.arange(1.0, k)), 1) for k in levels)
    lower = np.kron(first, np.eye(levels[1])), np.kron(np.eye(levels[0]), second)
    idle = pair.detuning * lower[0].T @ lower[0]
    jumps = []
    for b, alpha, T1, T2 in zip(lower, pair.anharmonicity, pair.T1, pair.T2, strict=True):
        n = b.T @ b
        idle = idle + alpha / 2 * n @ (n - np.eye(len(n)))
        jumps += [b / np.sqrt(T1), n * np.sqrt(2 * (1 / T2 - 1 / (2 * T1)))]
    exchange = pair.coupling * lower[0].T @ lower[1]
    idle = idle + exchange + exchange.T
    _, states = np.linalg.eigh(idle)
    bare = [0, 1, levels[1], levels[1] + 1]
    nearest = np.argmax(np.abs(states[bare]), axis=1)
    qubits = states[:, nearest] * np.sign(np.diagonal(states[bare][:, nearest]))
    return Model(idle, lower, jumps, qubits)


def pulses(p: jax.Array, s: np.ndarray, turns: float) -> jax.Array:
    """Samples of d_0 and d_1 at s in (0, 1), smooth, zero at both ends, and below 1 for every p.

    Three envelopes: of the first qubit at the frequency of the second, and of both at their own; `turns` is
    by how much the first qubit turns against the second, in radians.
    """
    k = np.arange(1, HARMONICS + 1)
    waves = jnp.sin(np.pi * k[:, None] * s) * jnp.sin(np.pi * s) ** 0.5
    re, im = p[:-3].reshape(2, 3, HARMONICS)
    cross, second, first = (re + 1j * im) @ waves
    u = jnp.stack([cross + first * jnp.exp(-1j * turns * s), second])
    return u / jnp.sqrt(1 + jnp.abs(u) ** 2)


def hamiltonian(pair: Pair, model: Model, d: jax.Array, edges: np.ndarray):
    H = cd.constant(model.idle)
    for b, omega, samples in zip(model.lower, pair.drive, d, strict=True):
        H += cd.pwc(edges, omega / 2 * samples, b.T) + cd.pwc(edges, omega / 2 * samples.conj(), b)
    return H


def turned(p: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The phases of virtual z rotations, before the pulse (second qubit) and after it (both)."""
    a, b, c = p[-3:]
    before = jnp.exp(1j * jnp.stack([0 * c, c, 0 * c, c]))
    after = jnp.exp(1j * jnp.stack([0 * a, b, a, a + b]))
    return before, after


def closed_error(U: jax.Array, p: jax.Array) -> jax.Array:
    """1 - F of the propagator's 4 x 4 block U, leakage included: F = (|tr M|^2 + tr M^+ M) / 20."""
    before, after = turned(p)
    M = CNOT @ (after[:, None] * U * before[None, :])
    return 1 - (jnp.abs(jnp.trace(M)) ** 2 + jnp.sum(jnp.abs(M) ** 2)) / 20


def open_error(rhos: jax.Array, p: jax.Array) -> jax.Array:
    """1 - F of a channel from what it makes of the 16 products of Pauli matrices, 4 x 4 blocks.

    F = (4 F_e + 1 - leakage) / 5 with the entanglement fidelity F_e = sum_P tr(U P U^+ E(P)) / 64.
    """
    before, after = turned(p)
    ideal = after.conj()[:, None] * CNOT * before.conj()[None, :]  # of the pulse alone
    wanted = jnp.einsum("ij,ajk,lk->ail", ideal, PAIRS, ideal.conj())
    fidelity = jnp.einsum("aij,aji->", wanted, rhos).real / 64
    kept = jnp.trace(rhos[0]).real / 4
    return 1 - (4 * fidelity + kept) / 5


def descend(loss, p: np.ndarray, steps: int, report) -> tuple[np.ndarray, list[float]]:
    """L-BFGS, and the loss after each iteration."""
    both = jax.jit(jax.value_and_grad(loss))
    history = [float(both(p)[0])]

    def note(intermediate_result):
        history.append(float(intermediate_result.fun))
        report(len(history) - 1, history[-1])
        if history[-1] < 1e-7:
            raise StopIteration

    def fun(p):
        value, slope = both(p)
        return float(value), np.asarray(slope)

    options = dict(maxiter=steps, maxcor=30, ftol=1e-15, gtol=1e-10)
    found = minimize(fun, p, jac=True, method="L-BFGS-B", callback=note, options=options)
    return found.x, history


def draw(file: Path, pair: Pair, edges, d, times, populations, closed, opened, decay) -> None:
    plt.rcParams.update({"font.size": 9, "axes.titlesize": 9, "legend.fontsize": 8})
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    # Okabe and Ito's colours, which colour-blind readers can tell apart, and a dash for each.
    blue, red, green, black = "#0072B2", "#D55E00", "#009E73", "#000000"
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
    for i, (samples, colors) in enumerate(zip(d, ((blue, red), (green, black)), strict=True)):
        for part, color, dash in zip(("Re", "Im"), colors, ("-", "--"), strict=True):
            y = samples.real if part == "Re" else samples.imag
            left.stairs(y, edges, baseline=None, lw=1.2, color=color, ls=dash,
                        label=f"{part} $d$, qubit {pair.names[i]}")  # fmt: skip
    top = 1.9 * np.max(np.abs(np.stack([d.real, d.imag])))
    left.set(title="(a) pulses", xlabel="time (ns)", ylabel="drive amplitude / limit")
    left.set(xlim=edges[[0, -1]], ylim=(None, top))
    left.legend(frameon=False, ncols=2, columnspacing=1, handlelength=1.6, loc="upper left")

    for row, color, dash, start in zip(populations, (blue, red), ("-", "--"), "01", strict=True):
        middle.plot(times, row, color=color, ls=dash, label=rf"control in $|{start}\rangle$")
    middle.set(title=r"(b) target, from $|0\rangle$, with decay", xlabel="time (ns)")
    middle.set(ylabel=r"population of $|1\rangle$", xlim=edges[[0, -1]], ylim=(-0.02, 1.3))
    middle.legend(frameon=False, loc="upper left")

    right.semilogy(closed, color=blue, label="closed (sesolve)")
    after = len(closed) - 1 + np.arange(len(opened))
    right.semilogy(after, opened, color=red, ls="--", lw=2, marker=".", label="open (mesolve)")
    for value, label in ((pair.gate_error, "device, reported"), (decay, "decay of idle qubits")):
        right.axhline(value, color="0.5", lw=0.8, ls=":", zorder=0)
        place = dict(ha="right", va="bottom", fontsize=7, color="0.3")
        right.text(0.72, value * 1.05, label, transform=right.get_yaxis_transform(), **place)
    right.set(title="(c) convergence", xlabel="L-BFGS iteration", ylabel="average gate error")
    right.legend(frameon=False, loc="lower left")
    figure.savefig(file, dpi=200)


def main() -> int:
    began = time.perf_counter()
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    option = parser.add_argument
    option("--name", default="ibmq_manila", help="the device (default: ibmq_manila)")
    option("--pair", type=int, nargs=2, default=(0, 1), metavar=("CONTROL", "TARGET"))
    option("--duration", type=float, default=220.0, metavar="NS", help="(default: 220)")
    option("--output", type=Path, default=Path("cz_gate.png"), metavar="FILE", help="the figure")
    option("--pulse", type=Path, metavar="FILE", help="write the pulses here, as text")
    option("--quick", action="store_true", help="few iterations: a design that isn't finished")
    given = parser.parse_args()
    if not 20 <= given.duration <= 1000:
        fail(f"--duration must lie between 20 and 1000 ns, not {given.duration:g}")

    pair = read_pair(here / "data" / "ibm_devices.json", given.name, *given.pair)
    model = make_model(pair)
    length = HELD * pair.dt
    count = int(given.duration / length + 1e-9)
    edges, s = length * np.arange(count + 1), (np.arange(count) + 0.5) / count
    ends, V = edges[[0, -1]], model.qubits
    turns = pair.detuning * ends[1]
    print(f"CNOT on qubits {pair.names} of {given.name}: {count} amplitudes of {length:.3f} ns, "
          f"{ends[1]:.1f} ns in place of the device's {pair.gate_length:.1f} ns")  # fmt: skip

    def closed(p, model=model):
        H = hamiltonian(pair, model, pulses(p, s, turns), edges)
        V = model.qubits
        U = V.T @ cd.sesolve(H, V.T, ends).final_state.T
        return closed_error(U, p)

    inputs = V @ PAIRS @ V.T

    def decayed(p, jumps=model.jumps):
        H = hamiltonian(pair, model, pulses(p, s, turns), edges)
        rhos = cd.mesolve(H, jumps, inputs, ends).final_state
        return open_error(V.T @ rhos @ V, p)

    def report(iteration, error):
        if iteration % 25 == 0:
            print(f"  iteration {iteration:3d}   error {error:.2e}", flush=True)

    # Cross resonance: the control, driven at the target's frequency, turns the target at a rate
    # J Omega d / Delta * alpha / (alpha + Delta), one way or the other.
    alpha, delta = pair.anharmonicity[0], pair.detuning
    rate = pair.coupling * pair.drive[0] / delta * alpha / (alpha + delta)
    p = np.zeros(6 * HARMONICS + 3)
    p[0] = 1.35 * (np.pi / 2) / (rate * ends[1])  # of a mean amplitude that turns by pi / 2
    p[HARMONICS] = (
        1.35 * (np.pi / 2) / (pair.drive[1] * ends[1])
    )  # and the target by as much, always
    p[-3:] = np.random.default_rng(1).uniform(-1, 1, 3)
    p, first = descend(closed, p, 20 if given.quick else 300, report)
    print(f"closed: error {first[-1]:.2e} after {len(first) - 1} iterations, "
          f"{time.perf_counter() - began:.0f} s", flush=True)  # fmt: skip
    p, second = descend(decayed, p, 2 if given.quick else 15, lambda *_: None)

    # The average error of waiting as long, from T1 and T2: F_e of two qubits is a product.
    ratio = np.exp(-ends[1] / pair.T1), np.exp(-ends[1] / pair.T2)
    idle = 1 - (4 * np.prod((1 + ratio[0] + 2 * ratio[1]) / 4) + 1) / 5
    print(f"open:   error {second[0]:.2e} as designed, {second[-1]:.2e} refined")
    more = float(closed(p, make_model(pair, (6, 5))))
    print(f"        of which without decay {float(closed(p)):.1e}, {more:.1e} with 6 and 5 levels; "
          f"idle qubits decay by {idle:.2e}")  # fmt: skip
    print(
        f"device: error {pair.gate_error:.2e}, as reported: {pair.gate_error / second[-1]:.1f} times ours"
    )

    d = np.asarray(pulses(p, s, turns))
    times = np.linspace(*ends, 201)
    starts = np.einsum("ia,ja->aij", V[:, [0, 2]], V[:, [0, 2]])
    excited = V[:, [1, 3]] @ V[:, [1, 3]].T
    H = hamiltonian(pair, model, d, edges)
    populations = cd.mesolve(H, model.jumps, starts, times, exp_ops=[excited]).expects[0].real
    print(f"target from 0, control in 1: {populations[1, -1]:.7f} in 1 at the end")
    if given.pulse is not None:
        columns = np.column_stack([edges[:-1], *d.real, *d.imag])
        np.savetxt(given.pulse, columns, header="start (ns), Re d_0, Re d_1, Im d_0, Im d_1")
    draw(given.output, pair, edges, d, times, populations, first, second, idle)
    print(f"Figure in {given.output}; {time.perf_counter() - began:.0f} s after the imports.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
