"""Measures a semiconductor laser's parameters by a fit of its complex field as it switches on.

    python examples/laser_fit.py

A laser of class B: its field E (complex, |E|^2 in photons, scaled) and its carriers n (real) obey

    dE/dt = (1 + i alpha) / (2 tau_p) (G - 1) E,        dn/dt = (J(t) - n - G |E|^2) / tau_n,

with the gain G = n / (1 + s |E|^2), in units of the cavity's loss. Photons live for tau_p = 2 ps,
carriers for tau_n = 2 ns. The gain saturates (s), which damps the relaxation oscillation within
picoseconds, and the carriers' refraction ties the phase to the intensity (alpha, Henry's factor).
A weak seed pulse falls into the laser at t = 0, the pump J rises from threshold (1) to 2 and is
modulated slowly. The field beats with a local oscillator: a heterodyne receiver records its real
and imaginary part, each with Gaussian noise.

Unknown are alpha, tau_p, tau_n and s. `cd.fit.least_squares` minimises chi^2 within bounds; its
Jacobian goes through the solver in forward mode, and its covariance gives the error bars. Photons
follow a thousand times faster than carriers, and for most of the record nothing fast happens: a
stiff problem, for an implicit solver. The field isn't holomorphic: |E|^2 couples E to n.

The record is simulated, so the truth is known: (estimate - truth) / error bar, the pull, should be
a normal number of deviation 1. The script fails if one exceeds 4.
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import NoReturn

import diffrax
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optimistix

import cdiffeq as cd

jax.config.update("jax_enable_x64", True)
matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.backend_bases import FigureCanvasBase  # noqa: E402

NAMES = ("alpha", "tau_p (ps)", "tau_n (ns)", "s")
TRUTH = np.array([3.0, 2.0, 2.0, 0.3])
START = np.array([2.2, 2.6, 1.5, 0.2])
SEED_FIELD = 0.1
PERIOD = 5.0  # ns, of the pump's modulation
NOISE = 0.02  # of each quadrature; the field is about 1
RTOL, ATOL = 1e-6, 1e-8
# Kvaerno's method of order 5, as with stiff=True. Newton's iteration takes a fresh Jacobian each
# time: dearer than to keep one for the step, but then far longer steps succeed.
IMPLICIT = diffrax.Kvaerno5(root_finder=optimistix.Newton(rtol=RTOL, atol=ATOL))


def rates(t, y, theta):
    """d/dt of the field and the carriers; t in ns."""
    alpha, tau_p, tau_n, s = theta
    E, n = y["field"], y["carriers"]
    photons = jnp.abs(E) ** 2
    gain = n / (1 + s * photons)
    pump = 2 + 0.5 * jnp.sin(2 * jnp.pi * t / PERIOD)
    return {
        "field": 1e3 * (1 + 1j * alpha) / (2 * tau_p) * (gain - 1) * E,
        "carriers": (pump - n - gain * photons) / tau_n,
    }


@partial(jax.jit, static_argnames="solver")
def simulate(theta, times, solver=IMPLICIT):
    y0 = {"field": SEED_FIELD + 0j, "carriers": 1.0}
    return cd.ode.solve(
        rates, y0, times, theta, solver=solver, rtol=RTOL, atol=ATOL, max_steps=20_000
    )


def quadratures(theta, times):
    """Real and imaginary part of the field, (2, time)."""
    E = simulate(theta, times).ys["field"]
    return jnp.stack([E.real, E.imag])


def misfit(theta, data):
    """What the fit makes small."""
    times, record = data
    return quadratures(theta, times) - record


def fit(record, times, share=1.0, start=START):
    """The fit to the first share of times.

    No parameter is trusted by more than a factor of two from where the fit starts: far off, the
    solver would be asked for lasers that blow up.
    """
    sigma = np.where(times <= share * times[-1], NOISE, np.inf)
    bounds = START / 2, 2 * START
    return cd.fit.least_squares(
        misfit, start, (times, record), sigma=sigma, bounds=bounds, rtol=1e-8
    )


def draw(file, times, record, estimate, pulls):
    """Intensity, phase and residuals of the record, and the pulls."""
    plt.rcParams.update({"font.size": 9, "axes.titlesize": 9, "legend.fontsize": 8})
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    blue, red, gray = "#0072B2", "#D55E00", "0.55"  # Okabe and Ito's, for colour-blind readers too
    figure, axes = plt.subplots(1, 4, figsize=(12, 3.2), layout="constrained")
    edge = np.searchsorted(times, 0.3, side="right")

    measured = record[0] + 1j * record[1]
    fine = np.unique(np.concatenate([np.geomspace(1e-4, times[-1], 400), times]))
    fitted, first = (np.asarray(simulate(x, fine).ys["field"]) for x in (estimate, START))
    phases = [np.unwrap(np.angle(E)) / np.pi for E in (fitted, first)]
    # The measured phase is known up to a turn: the one nearest to the fit.
    near = np.interp(times, fine, phases[0])
    wound = np.angle(measured) / np.pi
    wound += 2 * np.round((near - wound) / 2)

    panels = (
        (axes[0], 1e3, slice(0, edge), np.abs(measured) ** 2, [np.abs(fitted) ** 2, np.abs(first) ** 2]),
        (axes[1], 1, slice(None), np.abs(measured) ** 2, [np.abs(fitted) ** 2, np.abs(first) ** 2]),
        (axes[2], 1, slice(None), wound, phases),
    )  # fmt: skip
    for axis, unit, shown, points, (line, guess) in panels:
        end = times[shown][-1]
        axis.plot(unit * times[shown], points[shown], "o", ms=2.5, color=blue, label="measured")
        for x, style in ((guess, dict(color=gray, ls=":")), (line, dict(color=red, lw=1.2))):
            label = "fit" if x is line else "start of the fit"
            axis.plot(unit * fine[fine <= end], x[fine <= end], label=label, **style)
        axis.set(xlabel=f"time $t$ ({'ps' if unit == 1e3 else 'ns'})")
    axes[0].set(title="(a) switching on", ylabel="intensity $|E|^2$ (scaled)")
    axes[1].set(title="(b) modulated pump", ylabel="intensity $|E|^2$ (scaled)")
    axes[2].set(title="(c) phase", ylabel=r"phase of $E$ ($\pi$ rad)")
    axes[1].set(ylim=(None, 1.75))
    axes[1].legend(frameon=False, loc="upper left")

    axes[3].axhspan(-1, 1, color="0.9")
    for i, values in enumerate(np.transpose(pulls)):
        spread = np.linspace(-0.25, 0.25, len(values)) if len(values) > 1 else [0.0]
        axes[3].plot(i + np.array(spread), values, "o", ms=3.5, color=blue)
    axes[3].set(title="(d) pulls", ylabel="(estimate - truth) / error bar", ylim=(-4, 4))
    axes[3].set_xticks(range(4), [r"$\alpha$", r"$\tau_p$", r"$\tau_n$", "$s$"])
    figure.savefig(file, dpi=200)


def fail(message: str) -> NoReturn:
    print(f"laser_fit.py: {message}", file=sys.stderr)
    sys.exit(2)


def main() -> int:
    began = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    option = parser.add_argument
    option("--seed", type=int, default=0, help="of the noise (default: 0)")
    option("--output", type=Path, default=Path("laser_fit.png"), metavar="FILE",
           help="the figure (default: laser_fit.png)")  # fmt: skip
    option("--quick", action="store_true", help="a shorter record, one only")
    parser.error = fail  # type: ignore[method-assign]
    given = parser.parse_args()
    if given.seed < 0:
        fail(f"--seed can't be negative, not {given.seed}")
    if not given.output.parent.is_dir():
        fail(f"{given.output.parent} is not a folder")
    if given.output.suffix[1:] not in FigureCanvasBase.get_supported_filetypes():
        fail(f"a figure can't be written as {given.output.suffix or 'a file without an ending'}")

    # Every 5 ps while the laser switches on, every 0.1 ns afterwards.
    end = 5.0 if given.quick else 15.0
    times = np.concatenate([np.arange(0, 0.3, 0.005), np.arange(0.3, end + 0.05, 0.1)])
    exact = np.asarray(quadratures(TRUTH, times))
    repeats = 1 if given.quick else 12
    noise = np.random.default_rng(given.seed).normal(size=(repeats, *exact.shape))
    records = exact + NOISE * noise
    for name, solver in (("Kvaerno5", IMPLICIT), ("Tsit5", diffrax.Tsit5())):
        stats = simulate(TRUTH, times[[0, -1]], solver).stats
        print(f"{name:8} takes {int(stats.steps):5d} steps for {end:g} ns, and "
              f"{int(stats.rejected_steps)} in vain.", flush=True)  # fmt: skip

    # The phase winds by more than a turn. While the laser switches on, a fit can't lose count of them.
    first = fit(records[0], times, share=0.3 / end).params
    found = fit(records[0], times, start=np.clip(first, 0.6 * START, 1.8 * START))
    estimate, bars, chi2 = found.params, found.stderr, found.chi2 / found.dof
    pulls = [(estimate - TRUTH) / bars]
    print(f"\n{'':12}{'start':>10}{'truth':>10}{'estimate':>12}{'error bar':>11}{'pull':>7}")
    for row in zip(NAMES, START, TRUTH, estimate, bars, pulls[0], strict=True):
        print("{:12}{:10.4f}{:10.4f}{:12.4f}{:11.4f}{:+7.2f}".format(*row))
    print(f"chi^2 {chi2:.3f} a degree of freedom (1 if the model is right).", flush=True)

    if repeats > 1:
        for record in records[1:]:
            found = fit(record, times, start=estimate)
            pulls.append((found.params - TRUTH) / found.stderr)
        print(f"\nPulls of {repeats} records (means 0 +- {1 / np.sqrt(repeats):.2f}, "
              f"deviations about 1):")  # fmt: skip
        for name, x in zip(NAMES, np.transpose(pulls), strict=True):
            print(f"{name:12} mean {x.mean():+.2f}, deviation {np.sqrt(np.mean(x**2)):.2f}")
    try:
        draw(given.output, times, records[0], estimate, pulls)
    except OSError as problem:
        fail(f"can't write {problem.filename}: {problem.strerror}")
    print(f"Figure in {given.output}; {time.perf_counter() - began:.1f} s after the imports.")
    if np.max(np.abs(pulls[0])) > 4 or not 0.5 < chi2 < 1.5:
        print("The fit is off by more than its error bars allow.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
