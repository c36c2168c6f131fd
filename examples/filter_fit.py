"""Fits equivalent circuits to the measured reflection of a ring-slot aperture, 75 to 110 GHz.

    python examples/filter_fit.py

A metal screen with a ring-shaped slot, across a waveguide, passes what is near the slot's resonance
and reflects the rest. Two circuits that could act alike:

    port -- L1 --+---+---+           port -- L1 --+---+-- L2 -- C2 --+
                 |   |   |                        |   |              |
                 L   C   R                        L   C              R
                 |   |   |                        |   |              |
    -------------+---+---+           -------------+---+--------------+
         one resonance                        two resonances

L and C are the slot, R is what absorbs behind it, L1 the short way from the port to the slot. On the
right, what is behind has a resonance of its own (L2, C2). The nodes' voltages v obey

    Y(f) v = i,        Y = sum over elements of y (e_a - e_b)(e_a - e_b)^T,

with y = 1/R, j 2 pi f C or 1 / (j 2 pi f L) between the nodes a and b, and without ground's row and
column. A source of 1 V behind Z0 = 50 Ohm feeds the port, so i = e_1 / Z0, and the reflection is
S = 2 v_1 - 1. All frequencies are one batched solve; the Jacobian goes through it in forward mode.
`cd.fit.least_squares` finds the logarithms of the elements, so that these stay positive.

No circuit of a few elements fits to the noise. What is left over is smooth in part, neighbours resemble
each other (correlation rho): the error bars come from it, and are wider by ((1 + rho) / (1 - rho))^1/2
than if it were independent noise. The script fails if its root mean square exceeds 0.03.
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import NoReturn

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

import cdiffeq as cd

jax.config.update("jax_enable_x64", True)
matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.backend_bases import FigureCanvasBase  # noqa: E402

DATA = Path(__file__).parent / "data" / "ring_slot_measured.s1p"
Z0 = 50.0  # Ohm
UNITS = {"L": (1e-12, "pH"), "C": (1e-15, "fF"), "R": (1.0, "Ohm")}

# Of each element: its nodes (0 is ground, 1 the port), and where the fit starts.
CIRCUITS = {
    "one resonance": {
        "L1": (1, 2, 20.0),
        "L": (2, 0, 20.0),
        "C": (2, 0, 200.0),
        "R": (2, 0, 50.0),
    },
    "two resonances": {
        "L1": (1, 2, 20.0),
        "L": (2, 0, 20.0),
        "C": (2, 0, 200.0),
        "L2": (2, 3, 100.0),
        "C2": (3, 4, 30.0),
        "R": (4, 0, 50.0),
    },
}


def read_touchstone(file):
    """Frequencies in GHz and complex reflections."""
    rows = np.loadtxt(file, comments=("!", "#"))
    return rows[:, 0], rows[:, 1] + 1j * rows[:, 2]


def admittance(name, value, f):
    """y of one element, complex (frequency,); f in GHz."""
    kind = name[0]
    x = UNITS[kind][0] * value
    jw = 2e9j * np.pi * f
    return {"L": 1 / (jw * x), "C": jw * x, "R": jnp.full(f.shape, 1 / x, complex)}[kind]


def nodal_matrix(circuit, values, f):
    """Y of a circuit with its source, complex (frequency, node, node)."""
    n = max(max(a, b) for a, b, _ in circuit.values())
    unit = np.eye(n + 1)[:, 1:]  # without ground
    Y = np.outer(unit[1], unit[1])[None] / Z0 + jnp.zeros((len(f), n, n), complex)
    for (name, (a, b, _)), value in zip(circuit.items(), values, strict=True):
        e = unit[a] - unit[b]
        Y += admittance(name, value, f)[:, None, None] * np.outer(e, e)[None]
    return Y


@partial(jax.jit, static_argnames="name")
def reflection(name, logs, f):
    """S, complex (frequency,), of the circuit of this name whose elements have these logarithms."""
    Y = nodal_matrix(CIRCUITS[name], jnp.exp(logs), f)
    i = np.zeros(Y.shape[:-1])
    i[:, 0] = 1 / Z0
    v = cd.linalg.solve(Y, i[..., None])[..., 0]
    return 2 * v[:, 0] - 1


def fit(name, f, measured):
    """Estimate of the logarithms, their error bars, what is left over (frequency,), and its rho."""
    start = np.log([value for *_, value in CIRCUITS[name].values()])
    found = cd.fit.least_squares(lambda logs, S: reflection(name, logs, f) - S, start, measured)
    left = np.asarray(found.residuals)
    rho = np.vdot(left[1:], left[:-1]).real / np.vdot(left, left).real
    return found.params, found.stderr * np.sqrt((1 + rho) / (1 - rho)), left, rho


def draw(file, f, measured, fits):
    """Magnitude and phase of S, S in the complex plane, and what is left over."""
    plt.rcParams.update({"font.size": 9, "axes.titlesize": 9, "legend.fontsize": 8})
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    blue = "#0072B2"  # Okabe and Ito's colours, for colour-blind readers too
    styles = dict(
        zip(CIRCUITS, (dict(color="#E69F00", ls="--"), dict(color="#D55E00")), strict=True)
    )
    figure, axes = plt.subplots(1, 4, figsize=(12.5, 3.2), layout="constrained")
    decibels = lambda S: 20 * np.log10(np.abs(S))
    degrees = lambda S: np.unwrap(np.angle(S)) * 180 / np.pi

    fine = np.linspace(f[0], f[-1], 400)
    dots = dict(marker="o", ls="", ms=2.5, color=blue, label="measured")
    axes[0].plot(f, decibels(measured), **dots)
    axes[1].plot(f, degrees(measured), **dots)
    turn = np.exp(1j * np.linspace(0, 2 * np.pi, 200))
    axes[2].plot(turn.real, turn.imag, color="0.7", lw=0.8)
    for r in (0.2, 1.0, 5.0):  # circles of equal resistance, arcs of equal reactance
        circle = (r + turn) / (1 + r)
        axes[2].plot(circle.real, circle.imag, color="0.88", lw=0.6)
        for x in (r, -r):
            z = np.geomspace(1e-3, 1e3, 200) + 1j * x
            arc = (z - 1) / (z + 1)
            axes[2].plot(arc.real, arc.imag, color="0.88", lw=0.6)
    axes[2].plot(measured.real, measured.imag, **dots)
    for name, (logs, _, left, _) in fits.items():
        S = np.asarray(reflection(name, logs, fine))
        style = dict(lw=1.2, label=name, **styles[name])
        axes[0].plot(fine, decibels(S), **style)
        axes[1].plot(fine, degrees(S), **style)
        axes[2].plot(S.real, S.imag, **style)
        axes[3].plot(f, np.abs(left), **style)
    axes[0].set(title="(a) magnitude", ylabel="$|S|$ (dB)")
    axes[1].set(title="(b) phase", ylabel="phase of $S$ (degrees)")
    axes[2].set(title="(c) Smith chart", xlabel="Re $S$", ylabel="Im $S$", aspect="equal")
    axes[2].set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05))
    axes[3].set(title="(d) left over", ylabel="|fit - measured|", ylim=(0, None))
    for axis in axes[[0, 1, 3]]:
        axis.set(xlabel="frequency (GHz)")
    axes[1].legend(frameon=False)
    figure.savefig(file, dpi=200)


def fail(message: str) -> NoReturn:
    print(f"filter_fit.py: {message}", file=sys.stderr)
    sys.exit(2)


def main() -> int:
    began = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    option = parser.add_argument
    option("--output", type=Path, default=Path("filter_fit.png"), metavar="FILE",
           help="the figure (default: filter_fit.png)")  # fmt: skip
    option("--quick", action="store_true", help="the circuit with one resonance only")
    parser.error = fail  # type: ignore[method-assign]
    given = parser.parse_args()
    if not given.output.parent.is_dir():
        fail(f"{given.output.parent} is not a folder")
    if given.output.suffix[1:] not in FigureCanvasBase.get_supported_filetypes():
        fail(f"a figure can't be written as {given.output.suffix or 'a file without an ending'}")

    f, measured = read_touchstone(DATA)
    fits, rms = {}, {}
    for name in list(CIRCUITS)[: 1 if given.quick else None]:
        fits[name] = logs, bars, left, rho = fit(name, f, measured)
        rms[name] = np.sqrt(np.mean(np.abs(left) ** 2))
        print(f"{name}: {rms[name]:.4f} left over (rms of |fit - measured|), rho {rho:.2f}")
        for element, log, bar in zip(CIRCUITS[name], logs, bars, strict=True):
            value, unit = np.exp(log), UNITS[element[0]][1]
            print(f"  {element:4}{value:9.2f} +- {value * bar:5.2f} {unit}")
        estimates = dict(zip(CIRCUITS[name], np.exp(logs), strict=True))
        L, C = 1e-12 * estimates["L"], 1e-15 * estimates["C"]
        print(
            f"  the slot resonates at {1e-9 / (2 * np.pi * np.sqrt(L * C)):.2f} GHz\n", flush=True
        )
    try:
        draw(given.output, f, measured, fits)
    except OSError as problem:
        fail(f"can't write {problem.filename}: {problem.strerror}")
    print(f"Figure in {given.output}; {time.perf_counter() - began:.1f} s after the imports.")
    if min(rms.values()) > 0.03:
        print("The circuits don't fit.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
