"""Designs an X gate that holds for a whole ensemble of transmons, spread over all devices there are.

    python examples/ensemble.py
    XLA_FLAGS=--xla_force_host_platform_device_count=8 python examples/ensemble.py

The transmon is that of transmon_gate.py, in the frame of its drive (hbar = 1; b lowers, n = b^+ b):

    H = delta n + (alpha/2) n (n - 1) + (1 + epsilon) (Omega/2) (d b^+ + conj(d) b).

Its frequency drifts by delta and its line's gain by epsilon, from day to day and from chip to chip. A
pulse d(t) that is best for delta = epsilon = 0 is not good elsewhere. What is minimised here is the mean
of the average gate error over normally distributed delta and epsilon, on a grid of them.

Each device solves for its share of the grid, forward and for the gradient, and nothing is sent between
devices until the shares are added up. The script is the same on one CPU, on many, and on a node of GPUs.
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
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from scipy.optimize import minimize

import cdiffeq as cd

jax.config.update("jax_enable_x64", True)
matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.backend_bases import FigureCanvasBase  # noqa: E402

CALIBRATION = Path(__file__).parent / "data" / "ibm_devices.json"
DEVICE, QUBIT = "ibmq_manila", 0
DURATION = 60.0  # ns
HELD = 4  # of the generator's samples, for each of ours
HARMONICS = 8
LEVELS = 4
MHZ = 2e-3 * np.pi  # rad/ns
DETUNING, GAIN = 1.0 * MHZ, 0.02  # standard deviations of delta and epsilon
ENOUGH = 1e-6  # an error far below that of decay
REACH = 2.5  # how many of them the grid goes to either side


def fail(message: str) -> NoReturn:
    print(f"ensemble.py: {message}", file=sys.stderr)
    sys.exit(2)


class Gate:
    """The pulse and the errors of a gate on a transmon."""

    def __init__(self, levels: int):
        device = json.loads(CALIBRATION.read_text())["devices"][DEVICE]
        qubit = device["qubits"][QUBIT]
        self.drive = qubit["drive"]
        count = round(DURATION / (HELD * device["dt"]))
        self.edges = HELD * device["dt"] * np.arange(count + 1)
        self.s = (np.arange(count) + 0.5) / count
        self.levels = levels
        n = np.arange(levels)
        self.b = np.diag(np.sqrt(np.arange(1.0, levels)), 1)
        self.number = np.diag(n.astype(float))
        self.anharmonic = np.diag(qubit["anharmonicity"] / 2 * n * (n - 1))

    def pulse(self, p):
        """d from 2 x HARMONICS amplitudes: it starts and ends at zero, and stays below 1."""
        k = np.arange(1, HARMONICS + 1)
        waves = np.sin(np.pi * k[:, None] * self.s) * np.sin(np.pi * self.s)
        u = (p[:HARMONICS] + 1j * p[HARMONICS:]) @ waves
        return u / jnp.sqrt(1 + jnp.abs(u) ** 2)

    def error(self, p, delta, epsilon):
        """The average infidelity of one member, 1 - F = leakage + |A - (tr A / 2) 1|^2 / 3 (A = X^+ U)."""
        d = (1 + epsilon) * self.drive / 2 * self.pulse(p)
        H = (
            delta * cd.constant(self.number)
            + cd.constant(self.anharmonic)
            + cd.pwc(self.edges, d, self.b.T)
            + cd.pwc(self.edges, d.conj(), self.b)
        )
        starts = jnp.eye(self.levels)[:2]
        U = cd.sesolve(H, starts, self.edges[[0, -1]]).final_state.T
        A = U[1::-1]
        wrong = A - jnp.trace(A) / 2 * jnp.eye(2)
        return jnp.sum(jnp.abs(U[2:]) ** 2) / 2 + jnp.sum(jnp.abs(wrong) ** 2) / 3


class Ensemble:
    """Members spread over all devices: `errors` of each, and `mean` with its gradient."""

    def __init__(self, gate: Gate):
        self.mesh = jax.make_mesh((jax.device_count(),), ("members",))
        errors = jax.vmap(gate.error, (None, 0, 0))

        def weighted(p, delta, epsilon, weight):
            """The value and the gradient of one device's share; they are added up outside."""
            share = lambda p: jnp.sum(weight * errors(p, delta, epsilon))
            value, gradient = jax.value_and_grad(share)(p)
            return value[None], gradient[None]

        # A program without a collective: no device waits for one whose solve has failed.
        on_all = lambda f, count: jax.jit(
            jax.shard_map(
                f,
                mesh=self.mesh,
                in_specs=(P(), *[P("members")] * count),
                out_specs=P("members"),
                check_vma=False,
            )
        )
        self._weighted, self._errors = on_all(weighted, 3), on_all(errors, 2)

    def _put(self, a, spec):
        return jax.device_put(a, NamedSharding(self.mesh, spec))

    def spread(self, members, weights=None):
        """Members (2, count) and their weights on the devices, which all get equally many.

        What is lacking is filled up by members without errors and without weight.
        """
        lacking = -members.shape[1] % jax.device_count()
        rows = members if weights is None else np.vstack([members, weights])
        return [self._put(row, P("members")) for row in np.pad(rows, [(0, 0), (0, lacking)])]

    def errors(self, p, members):
        """The error of each member."""
        return np.asarray(self._errors(self._put(p, P()), *self.spread(members)))[
            : members.shape[1]
        ]

    def mean(self, p, members):
        """The weighted mean of the errors and its gradient; `members` as `spread` has them."""
        shares = jax.block_until_ready(self._weighted(self._put(p, P()), *members))
        value, gradient = (np.asarray(a).sum(axis=0) for a in shares)
        return float(value), gradient


def grid(points: int):
    """(delta and epsilon of each member, (2, points^2); their weights; one axis in deviations)."""
    x = np.linspace(-REACH, REACH, points)
    density = np.exp(-(x**2) / 2)
    weights = np.outer(density, density).ravel()
    members = np.stack(np.meshgrid(DETUNING * x, GAIN * x, indexing="ij")).reshape(2, -1)
    return members, weights / weights.sum(), x


def design(ensemble: Ensemble, members, weights, start, iterations: int):
    """The best amplitudes by L-BFGS, which stops at ENOUGH."""
    spread, tried, done = ensemble.spread(members, weights), [], []

    def logarithm(p):
        value, gradient = ensemble.mean(p, spread)
        tried.append(value)
        return np.log10(value), gradient / (value * np.log(10))

    def after_iteration(_):
        done.append(tried[-1])  # a line search ends with the point that it accepts
        if len(done) % 20 == 0 or tried[-1] < ENOUGH:
            print(f"  iteration {len(done):3d}   mean error {tried[-1]:.2e}", flush=True)
        if tried[-1] < ENOUGH:
            raise StopIteration

    options = dict(maxiter=iterations, maxfun=4 * iterations, maxcor=20, ftol=1e-7, gtol=1e-5)
    return minimize(
        logarithm, start, jac=True, method="L-BFGS-B", callback=after_iteration, options=options
    ).x


def draw(file: Path, gate: Gate, pulses, maps, x) -> None:
    """The robust pulse, and the errors of both over the ensemble."""
    plt.rcParams.update({"font.size": 9, "axes.titlesize": 9, "legend.fontsize": 8})
    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.2), layout="constrained")
    cd.plot.pulse(gate.edges, pulses[1], axes[0], name="d", time_unit="ns", lw=1.5)
    axes[0].set(title="(a) pulse for the ensemble", ylabel="drive amplitude / limit")
    low, high = axes[0].get_ylim()
    axes[0].set_ylim(low, high + 0.25 * (high - low))  # room for the legend
    axes[0].legend(frameon=False, loc="upper center", ncols=2)
    names = "(b) designed for one qubit", "(c) designed for the ensemble"
    logs = np.log10(np.stack(maps))
    for ax, name, values in zip(axes[1:], names, logs, strict=True):
        image = ax.pcolormesh(
            DETUNING / MHZ * x, 100 * GAIN * x, values.T, cmap="cividis", shading="gouraud",
            vmin=max(logs.min(), -6), vmax=logs.max(), rasterized=True,
        )  # fmt: skip
        lines = ax.contour(
            DETUNING / MHZ * x, 100 * GAIN * x, values.T, [-5, -4, -3, -2], linewidths=0.8,
            colors=["white", "white", "black", "black"], linestyles="solid",
        )  # fmt: skip
        ax.clabel(lines, fmt=lambda v: f"$10^{{{v:.0f}}}$", fontsize=7)
        ax.set(title=name, xlabel="detuning (MHz)", ylabel="error of the gain (%)")
    figure.colorbar(image, ax=axes[1:], label="log$_{10}$ of the gate error", extend="min")
    figure.savefig(file, dpi=200)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    option = parser.add_argument
    option("--points", type=int, default=15, metavar="N", help="N x N members (default: 15)")
    option("--iterations", type=int, default=200, metavar="N", help="at most (default: 200)")
    option("--output", type=Path, default=Path("ensemble.png"), metavar="FILE",
           help="the figure (default: ensemble.png)")  # fmt: skip
    option("--quick", action="store_true", help="fewer levels, members and iterations")
    parser.error = fail  # type: ignore[method-assign]
    given = parser.parse_args()
    if given.points < 3 or given.iterations < 1:
        fail("--points must be at least 3 and --iterations at least 1")
    if not given.output.parent.is_dir():
        fail(f"{given.output.parent} is not a folder")
    if given.output.suffix[1:] not in FigureCanvasBase.get_supported_filetypes():
        fail(f"a figure can't be written as {given.output.suffix or 'a file without an ending'}")
    points, iterations, levels = given.points, given.iterations, LEVELS
    if given.quick:
        points, iterations, levels = min(points, 5), min(iterations, 30), 3

    gate = Gate(levels)
    ensemble = Ensemble(gate)
    members, weights, _ = grid(points)
    devices, kind = jax.device_count(), jax.devices()[0].platform
    count, duration = len(gate.s), gate.edges[-1]
    print(f"X on qubit {QUBIT} of {DEVICE} in {duration:.1f} ns, {count} samples, {levels} levels")
    print(f"{members.shape[1]} members on {devices} device{'s' * (devices > 1)} ({kind}), up to "
          f"{-(-members.shape[1] // devices)} on each")  # fmt: skip

    start = np.zeros(2 * HARMONICS)
    start[0] = 2 * np.pi / (gate.drive * gate.edges[-1])  # about pi, the mean of sin^2 being a half
    start[1:] = 0.05 * np.random.default_rng(0).normal(size=2 * HARMONICS - 1)
    spread = ensemble.spread(members, weights)
    value, gradient = ensemble.mean(start, spread)
    began = time.perf_counter()
    ensemble.mean(start, spread)
    took = time.perf_counter() - began
    print(f"start: mean error {value:.12f}, slope {np.linalg.norm(gradient):.12f}")
    print(f"mean error with its gradient: {1e3 * took:.0f} ms")

    print("for one qubit, without errors")
    # The same program: all the weight is on a member without errors.
    one = design(ensemble, 0 * members, weights, start, iterations)
    print("for the ensemble")
    robust = design(ensemble, members, weights, one, iterations)

    between, between_weights, x = grid(2 * points + 1)  # points that were not designed for
    maps = [ensemble.errors(p, between) for p in (one, robust)]
    for name, errors in zip(("one qubit", "the ensemble"), maps, strict=True):
        mean, worst = between_weights @ errors, errors.max()
        middle = errors[len(errors) // 2]
        print(
            f"designed for {name}: error {middle:.1e} without errors, "
            f"{mean:.1e} in the mean, at most {worst:.1e}"
        )
    shape = len(x), len(x)
    pulses = [np.asarray(gate.pulse(p)) for p in (one, robust)]
    draw(given.output, gate, pulses, [errors.reshape(shape) for errors in maps], x)
    print(f"figure in {given.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
