"""Designs an X gate for a superconducting qubit, by gradient descent through the solver.

    python examples/transmon_gate.py
    python examples/transmon_gate.py --device FILE --name NAME --qubit N --duration NS

The qubit is a transmon: an oscillator whose levels are not quite evenly spaced, driven through one
line. In the laboratory (hbar = 1; b lowers, n = b^+ b)

    H = omega n + (alpha/2) n (n - 1) + Omega D(t) (b + b^+),    D(t) = Re(d(t) exp(-i omega t)),

where the generator holds a complex amplitude d for dt, then the next, and can't exceed |d| = 1. In
the frame that rotates at omega, b turns as exp(-i omega t): one half of the cosine stands still in
front of b^+, the other turns at 2 omega and is dropped (the rotating-wave approximation), so that

    H = (alpha/2) n (n - 1) + (Omega/2) (d b^+ + conj(d) b).

Re d and Im d are the two quadratures. The half is the cosine's: a resonant d turns the qubit by the
angle Omega int |d| dt. What is minimised is the average gate error over the two lowest levels, with
the leakage to the others, in this frame as it stands: no virtual Z is used, only a global phase is
free. The calibration is in data/ibm_devices.json, with its source.

What the model leaves out: decay, which the table adds; the dropped half, which adds 2e-8 to the
default pulse; neighbouring qubits; and whatever the line does to the pulse on its way.
"""

import argparse
import itertools
import json
import math
import sys
import time
from functools import partial
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
from matplotlib.backend_bases import FigureCanvasBase  # noqa: E402

GOAL = 1e-8  # the gate error that the design has to reach
STOP = 1e-12  # and where it stops: four decades of margin, far below what the model leaves out
LEVELS = 5
HARMONICS = 8
PAULI_X = np.array([[0.0, 1.0], [1.0, 0.0]])


class Qubit(NamedTuple):
    """One qubit's calibration: angular frequencies in rad/ns, dt and gate_length in ns, T in us."""

    device: str
    number: int
    anharmonicity: float
    drive: float
    dt: float
    T1: float
    T2: float
    gate_error: float
    gate_length: float


def fail(message: str) -> NoReturn:
    print(f"transmon_gate.py: {message}", file=sys.stderr)
    sys.exit(2)


def read_qubit(file: Path, name: str | None, number: int) -> Qubit:
    """The calibration of one qubit, if the file holds it."""
    try:
        devices = json.loads(file.read_text())["devices"]
        name = name or (next(iter(devices)) if len(devices) == 1 else "ibmq_manila")
        if name not in devices:
            fail(f"{file} has no device {name!r}; it has {', '.join(devices)}")
        qubits = devices[name]["qubits"]
        if not 0 <= number < len(qubits):
            fail(f"{name} has qubits 0 to {len(qubits) - 1}, not {number}")
        values = qubits[number] | qubits[number]["x"] | {"dt": devices[name]["dt"]}
        qubit = Qubit(name, number, *(float(values[field]) for field in Qubit._fields[2:]))
    except OSError as error:
        fail(f"can't read {file}: {error.strerror}")
    except KeyError as error:
        fail(f"{file} lacks {error}")
    except (AttributeError, TypeError, ValueError) as error:
        fail(f"{file} isn't a calibration file: {error}")
    for field, value in zip(Qubit._fields[2:], qubit[2:], strict=True):
        size = -value if field == "anharmonicity" else value
        if not (math.isfinite(size) and size > 0):
            fail(f"{file}: {field} of qubit {number} of {name} can't be {value}")
    return qubit


def hamiltonian(qubit: Qubit, samples: jax.Array, levels: int):
    """H(t) under the given samples of d."""
    b = np.diag(np.sqrt(np.arange(1.0, levels)), 1)
    n = np.arange(levels)
    edges = qubit.dt * np.arange(len(samples) + 1)
    half = qubit.drive / 2
    return (
        cd.constant(np.diag(qubit.anharmonicity / 2 * n * (n - 1)))
        + cd.pwc(edges, half * samples, b.T)
        + cd.pwc(edges, half * samples.conj(), b)
    )


@jax.jit
def gate_error(U: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(average gate infidelity, leakage) against X; U has the columns that start in 0 and 1.

    With A the block of X^+ U over levels 0 and 1, 1 - F = 1 - (|tr A|^2 + tr A^+ A) / 6 and the
    leakage is 1 - tr A^+ A / 2. The columns being normalised, 1 - F is also leakage +
    |A - (tr A / 2) 1|^2 / 3: sums of squares, so that errors near the rounding of 1 - F keep their
    digits and their gradients.
    """
    A = PAULI_X @ U[:2]
    leakage = jnp.sum(jnp.abs(U[2:]) ** 2) / 2
    turned_wrong = A - jnp.trace(A) / 2 * jnp.eye(2)
    return leakage + jnp.sum(jnp.abs(turned_wrong) ** 2) / 3, leakage


def designed(p: jax.Array, s: jax.Array) -> jax.Array:
    """Samples at s in (0, 1) from the 2 x HARMONICS Fourier amplitudes p.

    The factor sin(pi s) starts and ends them at zero with zero slope; u / sqrt(1 + |u|^2) keeps
    them below 1. Limit and smoothness hold for every p, so the search needs no constraint.
    """
    k = np.arange(1, HARMONICS + 1)
    waves = jnp.sin(np.pi * k[:, None] * s) * jnp.sin(np.pi * s)
    u = (p[:HARMONICS] + 1j * p[HARMONICS:]) @ waves
    return u / jnp.sqrt(1 + jnp.abs(u) ** 2)


def drag(p: jax.Array, s: jax.Array) -> jax.Array:
    """The pulse that devices use: p = amplitude, width, detuning, beta; a Gaussian has beta = 0.

    A Gaussian lowered to be zero one sample before and after, with its derivative in the other
    quadrature (Motzoi et al. 2009, doi:10.1103/PhysRevLett.103.110501), cut at the drive's limit.
    """
    amplitude, width, detuning, beta = p
    x = s - 0.5
    gauss = lambda x: jnp.exp(-((x / width) ** 2) / 2)
    end = gauss(0.5 + 0.5 / len(s))
    d = amplitude * (gauss(x) - end) / (1 - end) * (1 - 1j * beta * x / width**2)
    return d * jnp.exp(-1j * detuning * x) / jnp.maximum(1, jnp.abs(d))


@partial(jax.jit, static_argnums=0)
def sampled(shape, p: jax.Array, s: jax.Array) -> jax.Array:
    return shape(p, s)


@partial(jax.jit, static_argnums=0)
def chained(shape, p: jax.Array, s: jax.Array, gradient: jax.Array) -> jax.Array:
    """The gradient with respect to p, from the one with respect to the samples."""
    return jax.vjp(lambda p: shape(p, s), p)[1](gradient)[0]


def minimiser(qubit: Qubit, s: np.ndarray, levels: int):
    """A function that tunes the parameters of a pulse shape until the error is least."""

    @jax.jit
    def by_samples(samples):
        """log10 of the error, as it falls through ten decades, and its gradient."""

        def objective(samples):
            ends = jnp.array([0.0, qubit.dt * len(samples)])
            psi = cd.sesolve(hamiltonian(qubit, samples, levels), jnp.eye(levels)[:2], ends)
            error, leakage = gate_error(psi.final_state.T)
            return jnp.log10(error), (error, leakage)

        return jax.value_and_grad(objective, has_aux=True)(samples)

    def minimise_error(shape, start, bounds=None, target=0.0, report=lambda *_: None):
        """(parameters, [(error, leakage) at the start and after each iteration]), by L-BFGS."""
        tried, history = [], []

        def value_and_gradient(p):
            # The chain rule by hand, so that the solve, the same for every shape, compiles once.
            (value, errors), gradient = by_samples(sampled(shape, p, s))
            tried.append(tuple(float(x) for x in errors))
            return float(value), np.asarray(chained(shape, p, s, gradient))

        def after_iteration(_):
            history.append(tried[-1])  # a line search ends with the point that it accepts
            report(len(history), *tried[-1])
            if tried[-1][0] < target:
                raise StopIteration

        options = dict(maxiter=500, maxfun=2000, maxcor=30, ftol=1e-6, gtol=1e-6)
        p = minimize(
            value_and_gradient, start, jac=True, method="L-BFGS-B", bounds=bounds,
            callback=after_iteration, options=options,
        ).x  # fmt: skip
        return p, [tried[0], *history]

    return minimise_error


def usual_pulses(minimise_error, s: np.ndarray, mean: float, quick: bool):
    """Yields (name, what was tuned, error, leakage, samples): Gaussian and DRAG at their best.

    "At their best" is the lowest error from several starts. Where the width isn't tuned it is a
    quarter of the pulse, as in the device's own pulses; the frequency, then, is the qubit's.
    """
    cases = (
        ("Gaussian", "amplitude"),
        ("DRAG", "amplitude, beta"),
        ("Gaussian", "amplitude, frequency, width"),
        ("DRAG", "amplitude, frequency, width, beta"),
    )
    for name, tuned in cases[:2] if quick else cases:
        free = [word in tuned for word in ("amplitude", "width", "frequency", "beta")]
        widths = (1 / 4, 1 / 6, 1 / 8) if "width" in tuned else (1 / 4,)
        betas = (-0.1, 0.0, 0.1) if "beta" in tuned else (0.0,)
        found = []
        for width, beta in itertools.product(widths, betas):
            start = np.array([min(1.0, mean / (2.3 * width)), width, 0.0, beta])
            # Equal bounds hold what isn't tuned.
            low = np.where(free, [0.0, 0.05, -30.0, -2.0], start)
            high = np.where(free, [1.0, 1.0, 30.0, 2.0], start)
            found.append(minimise_error(drag, start, list(zip(low, high, strict=True))))
        p, history = min(found, key=lambda best: best[1][-1])
        yield name, tuned, *history[-1], np.asarray(drag(p, s))


def draw(file: Path, qubit: Qubit, samples, times, states, history, rows) -> None:
    """The pulse, the populations that it drives and the convergence, side by side."""
    plt.rcParams.update({"font.size": 9, "axes.titlesize": 9, "legend.fontsize": 8})
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3.2), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)

    edges = qubit.dt * np.arange(len(samples) + 1)
    cd.plot.pulse(edges, samples, left, name="d", time_unit="ns", lw=1.5)
    name, tuned, *_, usual = rows[1]
    left.stairs(usual.real, edges, color="0.6", baseline=None, label=f"Re $d$ of {name} ({tuned})")
    left.set(title="(a) designed pulse", ylabel="drive amplitude / limit")
    peak = max(np.max(np.abs(samples)), np.max(np.abs(usual)))
    left.set(ylim=(None, 1.5 * peak))  # room for the legend
    left.legend(frameon=False, loc="upper left", borderaxespad=0)
    full = 1e3 * qubit.drive / (2 * np.pi)  # MHz
    rabi = left.secondary_yaxis("right", functions=(lambda d: d * full, lambda f: f / full))
    rabi.set_ylabel(r"Rabi frequency $\Omega d / 2\pi$ (MHz)")
    rabi.spines["right"].set_visible(True)

    cd.plot.populations(times, states, middle, time_unit="ns", log=True)
    middle.set(title=r"(b) starting in $|0\rangle$", ylim=(1e-13, 3))
    middle.legend(ncols=2, loc="lower center", handlelength=1.6, columnspacing=1, edgecolor="none")

    error, leakage = np.array(history).T
    blue, red = cd.plot.COLORS[:2]
    right.semilogy(error, color=blue, marker="o", ms=2.5, label="gate error")
    right.semilogy(leakage, color=red, ls="--", label="of which leakage")
    references = [(f"{qubit.device}, reported", qubit.gate_error)]
    for name, tuned, value, *_ in rows:
        references.append((f"{name}, all tuned" if "width" in tuned else name, value))
    for i, (label, value) in enumerate(references):
        right.axhline(value, color="0.5", lw=0.8, ls=":", zorder=0)
        # The curve falls from upper left to lower right: labels stand on the other sides.
        x, side = (len(error) - 1, "right") if i < 3 else (0, "left")
        place = "top" if label.startswith("Gaussian") else "bottom"
        right.text(x, value, label, fontsize=7, color="0.3", ha=side, va=place)
    right.set(title="(c) convergence", xlabel="L-BFGS iteration", ylabel="average gate error")
    right.legend(frameon=False, loc="lower left")
    figure.savefig(file, dpi=200)


def print_row(pulse, tuned, duration, error, leakage, total) -> None:
    columns = f"{duration:8.2f}{error:10.1e}{leakage:10.1e}{total:12.1e}"
    print(f"{pulse:10}{tuned:36}{columns}", flush=True)


def main() -> int:
    began = time.perf_counter()
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    option = parser.add_argument
    option("--device", type=Path, default=here / "data" / "ibm_devices.json", metavar="FILE",
           help="calibrations (default: data/ibm_devices.json)")  # fmt: skip
    option("--name", help="the device in FILE (default: ibmq_manila, or the only one)")
    option("--qubit", type=int, default=0, metavar="N", help="(default: 0)")
    option("--duration", type=float, metavar="NS", help="(default: half of the device's own gate)")
    option("--output", type=Path, default=Path("transmon_gate.png"), metavar="FILE",
           help="the figure (default: transmon_gate.png)")  # fmt: skip
    option("--samples", type=Path, metavar="FILE", help="write the pulse here, as text")
    option("--quick", action="store_true", help="fewer levels and comparisons")
    parser.error = fail  # type: ignore[method-assign]
    given = parser.parse_args()

    qubit = read_qubit(given.device, given.name, given.qubit)
    duration = qubit.gate_length / 2 if given.duration is None else given.duration
    shortest = np.pi / qubit.drive
    if not shortest < duration <= 10 * qubit.gate_length:
        fail(f"--duration must lie between {shortest:.2f} ns, in which the full drive turns this "
             f"qubit by pi, and {10 * qubit.gate_length:.0f} ns, not {duration:g}")  # fmt: skip
    for file in (given.output, given.samples):
        if file is not None and not file.parent.is_dir():
            fail(f"{file.parent} is not a folder")
    if given.output.suffix[1:] not in FigureCanvasBase.get_supported_filetypes():
        fail(f"a figure can't be written as {given.output.suffix or 'a file without an ending'}")

    levels = 4 if given.quick else LEVELS
    count = int(duration / qubit.dt + 1e-9)
    duration = count * qubit.dt
    s = (np.arange(count) + 0.5) / count
    print(
        f"X on qubit {qubit.number} of {qubit.device}: {count} samples of {qubit.dt:.4f} ns, "
        f"{duration:.2f} ns in place of the device's {qubit.gate_length:.2f} ns; {levels} levels"
    )

    def report(iteration, error, leakage):
        if iteration % 5 == 0 or error < STOP:
            line = f"  iteration {iteration:3d}   error {error:.1e}   leakage {leakage:.1e}"
            print(line, flush=True)

    minimise_error = minimiser(qubit, s, levels)
    mean = np.pi / (qubit.drive * duration)  # of an amplitude that turns a two-level qubit by pi
    start = np.zeros(2 * HARMONICS)
    start[0] = 2 * mean  # a sine squared
    p, history = minimise_error(designed, start, None, STOP, report)
    samples = np.asarray(designed(p, s))
    error, leakage = history[-1]
    print(f"  designed in {time.perf_counter() - began:.1f} s\n", flush=True)

    # What the qubit's decay adds to an average gate error, from its T1 and T2.
    decay = (3 - np.exp(-1e-3 * duration / qubit.T1) - 2 * np.exp(-1e-3 * duration / qubit.T2)) / 6
    print(f"{'pulse':10}{'tuned':36}{'time/ns':>8}{'error':>10}{'leakage':>10}{'with decay':>12}")
    rows = []
    for row in usual_pulses(minimise_error, s, mean, given.quick):
        rows.append(row)
        print_row(*row[:2], duration, *row[2:4], row[2] + decay)
    tuned = f"{2 * HARMONICS} Fourier amplitudes"
    print_row("designed", tuned, duration, error, leakage, error + decay)
    print(f"{'device':10}{'as reported':36}{qubit.gate_length:8.2f}{qubit.gate_error:32.1e}")

    # Once more at finer times and with more levels, to see whether those left out matter.
    times = np.linspace(0, duration, 4 * count + 1)
    more = levels + 3
    states = cd.sesolve(hamiltonian(qubit, samples, more), np.eye(more)[:2], times).states
    print(f"\nLargest amplitude {np.max(np.abs(samples)):.3f} of the limit. "
          f"Designed error with {more} levels: {gate_error(states[-1].T)[0]:.1e}.")  # fmt: skip
    try:
        if given.samples is not None:
            columns = np.column_stack([qubit.dt * np.arange(count), samples.real, samples.imag])
            np.savetxt(given.samples, columns, header="start of the sample (ns), Re d, Im d")
        draw(given.output, qubit, samples, times, states[:, 0, :levels], history, rows)
    except OSError as problem:
        fail(f"can't write {problem.filename}: {problem.strerror}")
    print(f"Figure in {given.output}; {time.perf_counter() - began:.1f} s after the imports.")
    if not error < GOAL:
        print(f"The error isn't below {GOAL:.0e}: the gate needs more time.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
