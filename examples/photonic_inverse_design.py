"""Designs a sharp bend of an optical waveguide by the gradient in thousands of permittivity pixels.

    python examples/photonic_inverse_design.py

Light of wavelength 1.55 um, its electric field E out of the plane, in silicon and silica:

    div grad E + k0^2 eps E = source,        k0 = 2 pi / wavelength,

on a grid (finite differences in the frequency domain). Perfectly matched layers surround it: there x
becomes complex, dx -> s_x dx with s_x = 1 + j sigma / k0, and waves that leave fade; so does y. After
multiplication by s_x s_y,

    d/dx (s_y / s_x) dE/dx + d/dy (s_x / s_y) dE/dy + k0^2 s_x s_y eps E = s_x s_y source,

a sparse matrix A(eps) acts on E: complex symmetric, of constant pattern, with eps on its diagonal
alone. A line of current, shaped like the guide's fundamental mode, sends light in from the left.
Transmission is what arrives below in that mode, relative to a straight guide:

    T = |<mode, E>|^2 / |<mode, E_straight>|^2.

A design x in [0, 1], one number a pixel, is averaged over cones of radius 0.16 um, since nothing much
finer can be made, and projected towards two materials by tanh functions of rising steepness beta. Adam
climbs T. A step costs one sparse factorization, for the field and for the gradient in all pixels.

The script fails unless T is above 90 % for two materials alone: each density rounded to 0 or 1.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from jax.experimental.sparse import BCOO

import cdiffeq as cd

jax.config.update("jax_enable_x64", True)
matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.backend_bases import FigureCanvasBase  # noqa: E402

WAVELENGTH = 1.55  # um
SILICON, SILICA = 12.1, 2.1  # permittivities
STEP = 0.04  # um, of the grid
N = 120  # cells each way
LAYER = 15  # cells of matched layer on each side
DESIGN = slice(30, 90)  # the cells that are designed, each way
GUIDE = slice(55, 65)  # the guide's cells across
SOURCE, BEFORE = 18, 24  # x of the source, and of where reflection is measured
AFTER = 98  # x of where a straight guide's transmission is measured, and N - 1 - y for the bend
RADIUS = 4  # cells, of the filter
STAGES = {4: 10, 8: 15, 16: 15, 32: 20}  # beta: steps of Adam
QUICK = {8: 8, 32: 8}


class Setup(NamedTuple):
    """What the wavelength determines."""

    indices: Any  # of A's entries, int (entry, 2): first those off the diagonal, then the diagonal
    links: Any  # the values off the diagonal, complex
    vacancy: Any  # the diagonal for eps = 0, complex (N N,)
    weight: Any  # k0^2 s_x s_y, complex (N N,)
    mode: Any  # the guide's fundamental mode, real (N,), normalised


def setup(wavelength=WAVELENGTH):
    k0 = 2 * np.pi / wavelength

    def stretch(place):
        """s; place in cells. In the layers sigma rises as a cube: a wave comes back weaker by e^-20."""
        depth = np.maximum(LAYER - place, place - (N - 1 - LAYER)).clip(0) / LAYER
        return 1 + 40 / (LAYER * STEP) * depth**3 * 1j / k0

    s, s_between = stretch(np.arange(N)), stretch(np.arange(-0.5, N))
    in_x = np.outer(1 / s_between, s) / STEP**2  # (N + 1, N), with the walls, where E = 0
    in_y = in_x.T
    cell = np.arange(N * N).reshape(N, N)
    here = np.concatenate([cell[:-1].ravel(), cell[:, :-1].ravel()])
    there = np.concatenate([cell[1:].ravel(), cell[:, 1:].ravel()])
    links = np.concatenate([in_x[1:-1].ravel(), in_y[:, 1:-1].ravel()])
    rows = np.concatenate([here, there, cell.ravel()])
    columns = np.concatenate([there, here, cell.ravel()])
    vacancy = -(in_x[1:] + in_x[:-1] + in_y[:, 1:] + in_y[:, :-1])

    across = np.full(N, SILICA)
    across[GUIDE] = SILICON
    second = (np.eye(N, k=1) + np.eye(N, k=-1) - 2 * np.eye(N)) / STEP**2
    _, modes = np.linalg.eigh(second + k0**2 * np.diag(across))
    fundamental = modes[:, -1]  # the fastest along the guide, squared wavenumbers being sorted
    return Setup(
        np.stack([rows, columns], axis=1),
        np.concatenate([links, links]),
        vacancy.ravel(),
        k0**2 * np.outer(s, s).ravel(),
        fundamental,
    )


def field(at, eps):
    """E, complex (N, N) for x and y, with the guide's mode sent in from the left."""
    data = jnp.concatenate([at.links, at.vacancy + at.weight * eps.ravel()])
    A = BCOO((data, at.indices), shape=(N * N, N * N))
    current = np.zeros((N, N))
    current[SOURCE] = at.mode
    return cd.linalg.solve(A, current.ravel(), cd.linalg.Sparse()).reshape(N, N)


def straight():
    """eps of a straight guide along x."""
    eps = np.full((N, N), SILICA)
    eps[:, GUIDE] = SILICON
    return eps


def surroundings():
    """Densities around the design, 1 for silicon: guides from the left and to below."""
    rho = np.zeros((N, N))
    rho[: N // 2, GUIDE] = 1
    rho[GUIDE, : N // 2] = 1
    return rho


def filtered(x):
    """Densities of a design x: averages over cones, at its edges with what is around it."""
    offsets = np.arange(1 - RADIUS, RADIUS)
    cone = np.maximum(0, 1 - np.hypot(offsets[:, None], offsets[None]) / RADIUS)
    reach = RADIUS - 1
    wider = slice(DESIGN.start - reach, DESIGN.stop + reach)
    padded = jnp.asarray(surroundings()[wider, wider]).at[reach:-reach, reach:-reach].set(x)
    return jax.scipy.signal.convolve(padded, cone / cone.sum(), mode="valid")


def projected(rho, beta):
    """Densities pushed towards 0 and 1."""
    return 0.5 + jnp.tanh(beta * (rho - 0.5)) / (2 * jnp.tanh(beta / 2))


def rounded(rho):
    """Densities of two materials alone."""
    return jnp.where(rho > 0.5, 1.0, 0.0)


def permittivity(rho):
    """eps of the whole grid, with these densities in the design's cells."""
    rho = jnp.asarray(surroundings()).at[DESIGN, DESIGN].set(rho)
    return SILICA + (SILICON - SILICA) * rho


def transmission(at, E, E_straight):
    """T of the bend."""
    power = lambda profile: jnp.abs(profile @ at.mode) ** 2
    return power(E[:, N - 1 - AFTER]) / power(E_straight[AFTER])


def reflection(at, E, E_straight):
    """The share of power that comes back in the guide's fundamental mode."""
    power = lambda profile: jnp.abs(profile @ at.mode) ** 2
    return power((E - E_straight)[BEFORE]) / power(E_straight[AFTER])


def design(at, stages, report):
    """The design x by Adam, and T at every step."""
    E_straight = field(at, straight())

    @jax.jit
    @jax.value_and_grad
    def loss(x, beta):
        E = field(at, permittivity(projected(filtered(x), beta)))
        return -transmission(at, E, E_straight)

    n = DESIGN.stop - DESIGN.start
    x = jnp.full((n, n), 0.5)
    adam = optax.adam(0.05)
    state = adam.init(x)
    history = []
    for beta, steps in stages.items():
        for _ in range(steps):
            value, slope = loss(x, float(beta))
            update, state = adam.update(slope, state)
            x = jnp.clip(x + update, 0, 1)
            history.append(-float(value))
        report(beta, history)
    return x, np.array(history)


def spectrum(eps, wavelengths):
    """T at each of these wavelengths."""
    found = []
    for at in map(setup, wavelengths):
        found.append(transmission(at, field(at, eps), field(at, straight())))
    return np.array(found)


def draw(file, eps, E, history, stages, wavelengths, T):
    """Structure, field, progress and spectrum."""
    plt.rcParams.update({"font.size": 9, "axes.titlesize": 9, "legend.fontsize": 8})
    blue = "#0072B2"
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.2), layout="constrained")
    shown = slice(LAYER, N - LAYER)
    ends = [-STEP * (N / 2 - LAYER), STEP * (N / 2 - LAYER)] * 2
    image = dict(origin="lower", extent=ends)
    middles = STEP * (np.arange(N)[shown] - (N - 1) / 2)

    axes[0].imshow(eps[shown, shown].T, cmap="Greys", vmin=SILICA, vmax=1.4 * SILICON, **image)
    corner = STEP * (DESIGN.start - N / 2)
    side = STEP * (DESIGN.stop - DESIGN.start)
    box = dict(fill=False, edgecolor="#D55E00", ls="--", lw=1)
    axes[0].add_patch(plt.Rectangle((corner, corner), side, side, **box))
    axes[0].set(title="(a) structure (dark: silicon; framed: designed)")
    real = (E * np.exp(-1j * np.angle(E[BEFORE, N // 2]))).real[shown, shown]
    limit = np.max(np.abs(real))
    axes[1].imshow(real.T, cmap="RdBu", vmin=-limit, vmax=limit, **image)
    axes[1].contour(
        middles,
        middles,
        eps[shown, shown].T,
        [(SILICON + SILICA) / 2],
        colors="0.2",
        linewidths=0.5,
    )
    axes[1].set(title="(b) field at one moment")
    for axis in axes[:2]:
        axis.set(xlabel=r"$x$ ($\mu$m)", ylabel=r"$y$ ($\mu$m)")

    axes[2].semilogy(1 + np.arange(len(history)), 1 - history, color=blue, lw=1.2)
    first = 0
    for beta, steps in stages.items():
        axes[2].axvline(first + 0.5, color="0.7", lw=0.7)
        axes[2].text(first + 1, 1.1, rf"$\beta={beta}$", fontsize=7, color="0.4", va="bottom")
        first += steps
    axes[2].set(title="(c) progress", xlabel="step", ylabel="$1 - T$")
    axes[3].plot(1e3 * wavelengths, 100 * T, "o-", ms=3, color=blue, lw=1.2)
    axes[3].axvline(1e3 * WAVELENGTH, color="0.7", lw=0.7)
    axes[3].set(title="(d) two materials alone", xlabel="wavelength (nm)", ylabel="$T$ (%)")
    for axis in axes[2:]:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=200)


def fail(message: str) -> NoReturn:
    print(f"photonic_inverse_design.py: {message}", file=sys.stderr)
    sys.exit(2)


def main() -> int:
    began = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    option = parser.add_argument
    option("--output", type=Path, default=Path("photonic_inverse_design.png"), metavar="FILE",
           help="the figure (default: photonic_inverse_design.png)")  # fmt: skip
    option("--quick", action="store_true", help="fewer steps, and a coarse spectrum")
    parser.error = fail  # type: ignore[method-assign]
    given = parser.parse_args()
    if not given.output.parent.is_dir():
        fail(f"{given.output.parent} is not a folder")
    if given.output.suffix[1:] not in FigureCanvasBase.get_supported_filetypes():
        fail(f"a figure can't be written as {given.output.suffix or 'a file without an ending'}")

    at = setup()
    stages = QUICK if given.quick else STAGES
    pixels = (DESIGN.stop - DESIGN.start) ** 2
    print(f"{pixels} pixels, {N * N} unknowns", flush=True)

    def report(beta, history):
        print(f"  beta {beta:3}, step {len(history):3}: T {100 * history[-1]:6.2f} %", flush=True)

    x, history = design(at, stages, report)
    E_straight = field(at, straight())
    rho = filtered(x)
    structures = {
        f"projected (beta {max(stages)})": permittivity(projected(rho, max(stages))),
        "two materials alone": permittivity(rounded(rho)),
    }
    print(f"\n{'':24}{'transmitted':>12}{'reflected':>11}{'elsewhere':>11}")
    for name, eps in structures.items():
        E = field(at, eps)
        T, R = transmission(at, E, E_straight), reflection(at, E, E_straight)
        print(f"{name:24}{100 * T:10.2f} %{100 * R:9.2f} %{100 * (1 - T - R):9.2f} %", flush=True)

    wavelengths = np.linspace(1.5, 1.6, 3 if given.quick else 11)
    over = spectrum(eps, wavelengths)
    print(f"At least {100 * np.min(over):.2f} % from {1e3 * wavelengths[0]:.0f} "
          f"to {1e3 * wavelengths[-1]:.0f} nm.")  # fmt: skip
    try:
        draw(given.output, np.asarray(eps), np.asarray(E), history, stages, wavelengths, over)
    except OSError as problem:
        fail(f"can't write {problem.filename}: {problem.strerror}")
    print(f"Figure in {given.output}; {time.perf_counter() - began:.1f} s after the imports.")
    if not T > 0.9:
        print("The bend transmits 90 % or less.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
