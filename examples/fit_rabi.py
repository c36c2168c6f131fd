"""Measures a transmon's frequency, anharmonicity and drive strength by a fit of Rabi oscillations.

    python examples/fit_rabi.py

The experiment starts in |0>, drives for a time t with amplitude a (1 is the generator's limit) at a
frequency f away from where the qubit is expected, and asks "0?" many times. In the frame of the
drive (hbar = 1; b lowers, n = b^+ b)

    H = (delta - f) n + (alpha/2) n (n - 1) + (a Omega/2) (b + b^+).

Unknown are delta, alpha and Omega. A weak drive shows the line 0-1, hence delta and Omega; a strong
one also the two-photon line 0-2 at f = delta + alpha/2, hence alpha. The estimate maximises the
likelihood of the counts, by Newton's method; its error bars are the roots of the diagonal of the
inverse Hessian. Gradient and Hessian both go through the Schrödinger solver.

The counts are simulated from published values, so the truth is known: (estimate - truth) / error
bar, the pull, should be a normal number of deviation 1. The script fails if one exceeds 3.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import NoReturn

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from scipy.optimize import minimize
from scipy.special import xlogy

import cdiffeq as cd

jax.config.update("jax_enable_x64", True)
matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.backend_bases import FigureCanvasBase  # noqa: E402

NAMES = ("frequency offset", "anharmonicity", "drive strength")
DETUNING = -12.4  # MHz: how far from its expected frequency the simulated qubit really is
START = np.array([45.0, -200.0, 90.0])  # MHz: delta, alpha and Omega guessed before measuring
MHZ = 2e-3 * np.pi  # rad/ns
LEVELS = 4
SHOTS = 1000
MISREAD = 0.02  # how often the readout takes 0 for 1, or 1 for 0
AMPLITUDES = np.array([0.12, 0.6])
SPANS = np.array([[-60.0, 80.0], [-260.0, 100.0]])  # MHz, of f, at each amplitude
DURATION = 60.0  # ns


def probability(theta, amplitude, f, times):
    """Of reading 0 at each of the times; theta = (delta, alpha, Omega) and f in MHz."""
    delta, alpha, omega = MHZ * theta
    b = np.diag(np.sqrt(np.arange(1.0, LEVELS)), 1)
    n = np.arange(LEVELS)
    H = (
        (delta - MHZ * f) * cd.constant(np.diag(n))
        + alpha * cd.constant(np.diag(n * (n - 1) / 2))
        + amplitude * omega / 2 * cd.constant(b + b.T)
    )
    psi = cd.sesolve(H, np.eye(LEVELS)[0], times).states
    return MISREAD + (1 - 2 * MISREAD) * jnp.abs(psi[:, 0]) ** 2


@jax.jit
def chevrons(theta, fs, times):
    """The probabilities of all experiments, (amplitude, f, time); fs is (amplitude, f)."""
    over_f = jax.vmap(probability, (None, None, 0, None))
    return jax.vmap(over_f, (None, 0, 0, None))(theta, AMPLITUDES, fs, times)[..., 1:]


def loss(theta, counts, used, fs, times):
    """The negative logarithm of the binomial likelihood of the counts where used is 1, not 0."""
    p = chevrons(theta, fs, times)
    return -jnp.sum(used * (counts * jnp.log(p) + (SHOTS - counts) * jnp.log1p(-p)))


gradient = jax.jit(jax.value_and_grad(loss))
hessian = jax.jit(jax.hessian(loss))


def fit(counts, fs, times, report=lambda *_: None):
    """The parameters of greatest likelihood, by Newton's method, and their covariance.

    With all of the record at once, a fit from far off settles on a wrong number of oscillations.
    The early part has too few for that: it goes first, then more and more.
    """
    theta = START
    for share in (0.1, 0.2, 0.4, 1.0):
        data = counts, 1.0 * (times[1:] <= share * times[-1]), fs, times
        result = minimize(
            lambda *x: [np.asarray(y) for y in gradient(*x)], theta, args=data, jac=True,
            hess=lambda *x: np.asarray(hessian(*x)), method="trust-exact",
            options=dict(initial_trust_radius=5.0, max_trust_radius=50.0),
        )  # fmt: skip
        theta = result.x
        report(share * times[-1], result.nit, theta)
    return theta, np.linalg.inv(hessian(theta, *data))


def deviance_per_point(counts, p):
    """About 1 if the model explains the counts, far more if it doesn't."""
    k, m = counts, SHOTS - counts
    saturated = xlogy(k, k / SHOTS) + xlogy(m, m / SHOTS)
    return 2 * np.mean(saturated - k * np.log(p) - m * np.log1p(-p))


def draw(file, fs, times, counts, estimate, pulls):
    """Both chevrons as measured, two cuts through them with the fit, and the pulls."""
    plt.rcParams.update({"font.size": 9, "axes.titlesize": 9, "legend.fontsize": 8})
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    blue, red = cd.plot.COLORS[:2]
    figure, axes = plt.subplots(1, 4, figsize=(12, 3.2), layout="constrained")
    delta, alpha, _ = estimate
    cuts = [np.argmin(np.abs(fs[0] - delta)), np.argmin(np.abs(fs[1] - delta - alpha / 2))]

    for axis, letter, a, f, k, cut in zip(axes, "ab", AMPLITUDES, fs, counts, cuts, strict=False):
        image = axis.pcolormesh(f, times[1:], k.T / SHOTS, cmap="cividis", vmin=0, vmax=1)
        axis.axvline(f[cut], color="white", ls="--", lw=1)
        axis.set(title=f"({letter}) measured, $a = {a:g}$", ylabel="time $t$ (ns)")
        axis.set(xlabel="drive offset $f$ (MHz)")
    figure.colorbar(image, ax=axes[1], label="share of zeros")

    fine = np.linspace(0, times[-1], 301)
    for a, f, k, cut, color, marker in zip(
        AMPLITUDES, fs, counts, cuts, (blue, red), "os", strict=True
    ):
        share = k[cut] / SHOTS
        bars = np.sqrt(share * (1 - share) / SHOTS)
        label = f"$a = {a:g}$, $f = {f[cut]:.0f}$ MHz"
        axes[2].errorbar(times[1:], share, bars, fmt=marker, ms=3, color=color, label=label)
        axes[2].plot(fine, probability(estimate, a, f[cut], fine), color=color, lw=1.2)
        axes[2].plot(fine, probability(START, a, f[cut], fine), color=color, lw=0.8, ls=":")
    axes[2].set(title="(c) cuts; lines: fit, dots: start", xlabel="time $t$ (ns)")
    axes[2].set(ylabel="share of zeros", ylim=(0, 1.35))
    axes[2].legend(frameon=False, loc="upper left")

    axes[3].axhspan(-1, 1, color="0.9")
    for i, values in enumerate(np.transpose(pulls)):
        spread = np.linspace(-0.25, 0.25, len(values)) if len(values) > 1 else [0.0]
        axes[3].plot(i + np.array(spread), values, "o", ms=3.5, color=blue)
    axes[3].set(title="(d) pulls", ylabel="(estimate - truth) / error bar", ylim=(-4, 4))
    axes[3].set_xticks(range(3), [name.replace(" ", "\n") for name in NAMES], fontsize=8)
    figure.savefig(file, dpi=200)


def fail(message: str) -> NoReturn:
    print(f"fit_rabi.py: {message}", file=sys.stderr)
    sys.exit(2)


def main() -> int:
    began = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    option = parser.add_argument
    option("--seed", type=int, default=0, help="of the simulated counts (default: 0)")
    option("--output", type=Path, default=Path("fit_rabi.png"), metavar="FILE",
           help="the figure (default: fit_rabi.png)")  # fmt: skip
    option("--quick", action="store_true", help="fewer experiments, one set of counts")
    parser.error = fail  # type: ignore[method-assign]
    given = parser.parse_args()
    if given.seed < 0:
        fail(f"--seed can't be negative, not {given.seed}")
    if not given.output.parent.is_dir():
        fail(f"{given.output.parent} is not a folder")
    if given.output.suffix[1:] not in FigureCanvasBase.get_supported_filetypes():
        fail(f"a figure can't be written as {given.output.suffix or 'a file without an ending'}")

    calibrations = json.loads((Path(__file__).parent / "data" / "ibm_devices.json").read_text())
    qubit = calibrations["devices"]["ibmq_manila"]["qubits"][0]
    truth = np.array([DETUNING, qubit["anharmonicity"] / MHZ, qubit["drive"] / MHZ])
    fs = np.linspace(*SPANS.T, 9 if given.quick else 21, axis=1)
    times = np.linspace(0, DURATION, 13 if given.quick else 25)
    repeats = 1 if given.quick else 12
    p = chevrons(truth, fs, times)
    data = np.random.default_rng(given.seed).binomial(SHOTS, p, (repeats, *p.shape))
    print(f"{p.size} populations from {SHOTS} shots each, in MHz:")

    def report(until, iterations, theta):
        values = ", ".join(f"{name} {x:.2f}" for name, x in zip(NAMES, theta, strict=True))
        print(f"  first {until:2.0f} ns, {iterations:2d} iterations: {values}", flush=True)

    estimate, covariance = fit(data[0], fs, times, report)
    bars = np.sqrt(np.diag(covariance))
    pulls = [(estimate - truth) / bars]
    print(f"\n{'':18}{'start':>10}{'truth':>10}{'estimate':>12}{'error bar':>11}{'pull':>7}")
    for row in zip(NAMES, START, truth, estimate, bars, pulls[0], strict=True):
        print("{:18}{:10.3f}{:10.3f}{:12.3f}{:11.3f}{:+7.2f}".format(*row))
    deviance = deviance_per_point(data[0], chevrons(estimate, fs, times))
    print(f"Deviance {deviance:.2f} a point (1 if the model is right).", flush=True)

    if repeats > 1:
        for counts in data[1:]:
            theta, covariance = fit(counts, fs, times)
            pulls.append((theta - truth) / np.sqrt(np.diag(covariance)))
        print(f"\nPulls of {repeats} sets of counts (means 0 +- {1 / np.sqrt(repeats):.2f}, "
              f"deviations about 1):")  # fmt: skip
        for name, x in zip(NAMES, np.transpose(pulls), strict=True):
            print(f"{name:18} mean {x.mean():+.2f}, deviation {np.sqrt(np.mean(x**2)):.2f}")
    try:
        draw(given.output, fs, times, data[0], estimate, pulls)
    except OSError as problem:
        fail(f"can't write {problem.filename}: {problem.strerror}")
    print(f"Figure in {given.output}; {time.perf_counter() - began:.1f} s after the imports.")
    if np.max(np.abs(pulls[0])) > 3 or not 0.5 < deviance < 1.5:
        print("The fit is off by more than its error bars allow.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
