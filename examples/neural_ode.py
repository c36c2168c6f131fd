"""Teaches a complex neural network the equation of motion of an oscillator, from its trajectories.

    python examples/neural_ode.py

The oscillator is Stuart and Landau's, what every oscillator is close to where it sets in:

    dz/dt = (mu + i omega) z - (1 + i b) |z|^2 z,

a limit cycle of radius sqrt(mu), on which the frequency is omega - b mu. The network knows nothing
of this. It sees four trajectories z(t), and stands for the right-hand side: dz/dt = net(z). Its
weights are complex; between its layers acts the cardioid

    cardioid(x) = (1 + cos(arg x)) / 2 x,

which is max(x, 0) for a real x and isn't holomorphic (P. Virtue, S. X. Yu, M. Lustig 2017,
arXiv:1707.00070). The loss is the mean of |z - data|^2 over all times, with z solved for.

optax steps against the gradient that it is given, so it has to be the direction of steepest ascent,
the conjugate of what jax.grad returns for complex weights; Adam then works as usual. The gradient
is compared with finite differences once, and the trained network with a trajectory that it has not
seen. The script fails if the loss falls by less than a factor of 1000 (50 with --quick).
"""

import argparse
import sys
import time
from pathlib import Path
from typing import NoReturn

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax

import cdiffeq as cd

jax.config.update("jax_enable_x64", True)
matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.backend_bases import FigureCanvasBase  # noqa: E402

MU, OMEGA, B = 1.0, 2.0, 1.0
STARTS = np.array([0.2, 0.4j, -1.5, 0.9 - 0.9j])
UNSEEN = np.array([-0.2 - 0.5j])
TIMES = np.linspace(0, 6, 61)
WIDTH = 16


def oscillator(t, z, args):
    return (MU + 1j * OMEGA) * z - (1 + 1j * B) * jnp.abs(z) ** 2 * z


def cardioid(x):
    size = jnp.abs(x)
    return (1 + x.real / jnp.where(size > 0, size, 1)) / 2 * x


class Network(eqx.Module):
    """Two hidden layers, from one complex number to one."""

    weights: list[jax.Array]
    biases: list[jax.Array]

    def __init__(self, width, key):
        shapes = [(width, 1), (width, width), (1, width)]
        self.weights = [
            jax.random.normal(k, shape, dtype=complex) / np.sqrt(shape[1])
            for k, shape in zip(jax.random.split(key, 3), shapes, strict=True)
        ]
        self.biases = [jnp.zeros(m, dtype=complex) for m, _ in shapes]

    def __call__(self, z):
        x = jnp.reshape(z, 1)
        for w, b in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = cardioid(w @ x + b)
        return (self.weights[-1] @ x + self.biases[-1])[0]


def trajectories(net, starts, rtol=1e-5):
    """z at TIMES from each of the starts, (start, time), along the network's field."""
    field = lambda t, z, net: net(z)
    from_one = lambda z: cd.ode.solve(
        field, z, TIMES, net, rtol=rtol, atol=1e-2 * rtol, max_steps=512
    )
    return jax.vmap(lambda z: from_one(z).ys)(starts)


def measured(starts):
    """The same of the oscillator."""
    path = lambda z: cd.ode.solve(oscillator, z, TIMES, rtol=1e-9, atol=1e-11).ys
    return jax.vmap(path)(starts)


def loss(net, data, used, rtol=1e-5):
    """The mean of |z - data|^2 over the times where used is 1, not 0."""
    squares = jnp.abs(trajectories(net, STARTS, rtol) - data) ** 2
    return jnp.sum(used * jnp.mean(squares, axis=0)) / jnp.sum(used)


@jax.jit
def descent(net, data, used):
    """The loss and its direction of steepest ascent, as optax takes it."""
    value, gradient = jax.value_and_grad(loss)(net, data, used)
    return value, cd.wirtinger.convert_gradient(gradient, source="jax", target="steepest")


def train(net, data, iterations, report=lambda *_: None):
    """The trained network and the loss before each iteration.

    Adam with a rate that falls as a cosine. With all of the record at once a bad network goes
    wrong early and learns little from what follows: the first quarter goes first, then more.
    """
    # A short memory of the gradient's size, which falls by orders of magnitude.
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-2, iterations), b1=0.95, b2=0.98)

    @jax.jit
    def step(net, state, direction):
        updates, state = optimizer.update(direction, state, net)
        return optax.apply_updates(net, updates), state

    state, history = optimizer.init(net), []
    for i in range(iterations):
        share = min(1.0, 0.25 + 0.75 * i / (0.3 * iterations))
        end = share * TIMES[-1]
        value, direction = descent(net, data, np.where(end < TIMES, 0.0, 1.0))
        net, state = step(net, state, direction)
        history.append(float(value))
        report(i, share, value)
    return net, np.array(history)


def check_gradient(net, data, seed=1):
    """(from the gradient, by central differences): the slope of the loss in a random direction."""
    leaves, tree = jax.tree.flatten(net)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    way = [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    used = np.ones(len(TIMES))
    h = 1e-5
    moved = lambda h: jax.tree.unflatten(
        tree, [x + h * d for x, d in zip(leaves, way, strict=True)]
    )
    # Tolerances so tight that the error of the solver doesn't show in the difference.
    value = jax.jit(lambda net: loss(net, data, used, rtol=1e-10))
    differences = (value(moved(h)) - value(moved(-h))) / (2 * h)
    _, ascent = descent(net, data, used)
    slope = sum(
        jnp.sum((g.conj() * d).real) for g, d in zip(jax.tree.leaves(ascent), way, strict=True)
    )
    return float(slope), float(differences)


def draw(file, net, data, history, truth, predicted):
    """Trajectories in the phase plane, in time, and the loss."""
    plt.rcParams.update({"font.size": 9, "axes.titlesize": 9, "legend.fontsize": 8})
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
    # Okabe and Ito's colours, for colour-blind readers too.
    colors = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
    figure, (plane, path, falls) = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")

    x = np.linspace(-1.7, 1.7, 14)
    grid = x + 1j * x[:, None]
    arrows = np.asarray(jax.vmap(jax.vmap(net))(grid))
    arrows = arrows / np.abs(arrows)
    plane.quiver(
        grid.real, grid.imag, arrows.real, arrows.imag, color="0.8", pivot="mid", width=0.004
    )
    learnt = np.asarray(trajectories(net, STARTS))
    for z, points, color in zip(learnt, data, colors, strict=True):
        plane.plot(points.real, points.imag, "o", ms=2.5, color=color)
        plane.plot(z.real, z.imag, color=color, lw=1)
        plane.plot(points[0].real, points[0].imag, "s", ms=6, color=color)
    plane.plot(predicted.real, predicted.imag, "k--", lw=1)
    plane.set(title="(a) dots: data, lines: network, dashed: unseen", aspect="equal")
    plane.set(xlabel="Re $z$", ylabel="Im $z$")

    for part, color, marker in (("real", colors[0], "o"), ("imag", colors[1], "s")):
        name = "Re" if part == "real" else "Im"
        path.plot(TIMES, getattr(truth, part), marker, ms=3, color=color, label=f"{name} $z$")
        path.plot(TIMES, getattr(predicted, part), color=color, lw=1.2)
    path.set(title="(b) a start not trained on; lines: network", ylim=(None, 1.6))
    path.set(xlabel="time $t$ (dimensionless)", ylabel="$z$")
    path.legend(frameon=False, loc="upper left", ncols=2)

    falls.semilogy(history, color=colors[0], lw=1)
    falls.axvspan(0, 0.3 * len(history), color="0.93", label="record not yet used in full")
    falls.set(
        title="(c) training", xlabel="iteration of Adam", ylabel=r"mean $|z - \mathrm{data}|^2$"
    )
    falls.legend(frameon=False, loc="upper right")
    figure.savefig(file, dpi=200)


def fail(message: str) -> NoReturn:
    print(f"neural_ode.py: {message}", file=sys.stderr)
    sys.exit(2)


def main() -> int:
    began = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    option = parser.add_argument
    option("--seed", type=int, default=0, help="of the network's first weights (default: 0)")
    option("--output", type=Path, default=Path("neural_ode.png"), metavar="FILE",
           help="the figure (default: neural_ode.png)")  # fmt: skip
    option("--quick", action="store_true", help="fewer iterations")
    parser.error = fail  # type: ignore[method-assign]
    given = parser.parse_args()
    if given.seed < 0:
        fail(f"--seed can't be negative, not {given.seed}")
    if not given.output.parent.is_dir():
        fail(f"{given.output.parent} is not a folder")
    if given.output.suffix[1:] not in FigureCanvasBase.get_supported_filetypes():
        fail(f"a figure can't be written as {given.output.suffix or 'a file without an ending'}")

    data = np.asarray(measured(STARTS))
    net = Network(WIDTH, jax.random.key(given.seed))
    size = sum(x.size for x in jax.tree.leaves(net))
    print(f"{size} complex weights, {len(STARTS)} trajectories at {len(TIMES)} times.")
    slope, differences = check_gradient(net, data)
    error = abs(slope / differences - 1)
    print(f"Slope of the loss in a random direction: {slope:.8f}; by differences {differences:.8f}; "
          f"off by {error:.0e} of it.", flush=True)  # fmt: skip

    iterations = 200 if given.quick else 800
    before = float(jax.jit(loss)(net, data, np.ones(len(TIMES))))

    def report(i, share, value):
        if i % 100 == 99:
            print(f"  iteration {i + 1:4d}, loss {value:.2e} over {share:4.0%} of the record",
                  flush=True)  # fmt: skip

    net, history = train(net, data, iterations, report)
    after = float(jax.jit(loss)(net, data, np.ones(len(TIMES))))
    print(f"Loss over the full record: {before:.3g} before, {after:.2e} after: "
          f"{before / after:.0f} times less.")  # fmt: skip
    truth, predicted = (np.asarray(z[0]) for z in (measured(UNSEEN), trajectories(net, UNSEEN)))
    apart = np.sqrt(np.mean(np.abs(predicted - truth) ** 2))
    print(f"Unseen trajectory: {apart:.3f} off in the root mean square.")
    try:
        draw(given.output, net, data, history, truth, predicted)
    except OSError as problem:
        fail(f"can't write {problem.filename}: {problem.strerror}")
    print(f"Figure in {given.output}; {time.perf_counter() - began:.1f} s after the imports.")
    if error > 1e-3 or not before > (50 if given.quick else 1000) * after:
        print("The network has not learnt enough, or its gradient is wrong.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
