"""A wave packet in two dimensions, led through a wall by shaping the wall.

    i dpsi/dt = (p^2 / 2 + V(x, y)) psi

A packet runs at a barrier that is higher than its energy. The barrier's height along the wall, a sum of
bumps of a given total, is shaped by the gradient of the probability behind the wall: a gate opens. The
potential at every point has a gradient, by one run of the Schroedinger equation backward.

    python examples/wavepacket.py --output wavepacket.png
"""

import argparse
import time

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax

import cdiffeq as cd

matplotlib.use("Agg")
import matplotlib.pyplot as plt

jax.config.update("jax_enable_x64", True)

MOMENTUM, WALL, DURATION = 3.0, 8.0, 5.0


def problem(points: int, steps: int, bumps: int):
    """(heights, ts -> result), the barrier of some heights, and the grid."""
    grid = cd.linalg.Grid((32.0, 24.0), (points, 3 * points // 4))
    psi0 = np.exp(-((grid.x + 7) ** 2) / 4 - grid.y**2 / 18 + 1j * MOMENTUM * grid.x)
    psi0 = (psi0 / np.sqrt(np.sum(np.abs(psi0) ** 2) * grid.cell)).ravel()
    centers = np.linspace(-7.0, 7.0, bumps)
    width = centers[1] - centers[0]
    profiles = np.exp(-((grid.y[None] - centers[:, None, None]) ** 2) / (2 * (0.6 * width) ** 2))
    profiles = profiles / profiles.sum(0)  # one, where all bumps have the same height
    wall = np.exp(-(grid.x**2) / (2 * 0.4**2))

    def barrier(shape):
        heights = WALL * bumps * jax.nn.softmax(shape)  # whatever is dug here is piled up there
        return wall * jnp.tensordot(heights, profiles, axes=1)

    def solve(shape, ts):
        H = cd.linalg.KineticPotential(grid, barrier(shape))
        per_interval = max(1, steps // (len(ts) - 1))
        method = cd.SplitOperator(2, steps=per_interval)
        return cd.sesolve(H, psi0, ts, method=method)

    def behind(psi):
        return jnp.sum(jnp.abs(psi.reshape(grid.points)) ** 2 * (grid.x > 1.5)) * grid.cell

    return solve, behind, barrier, grid


def draw(path, grid, barriers, frames, ts, probabilities):
    figure, axes = plt.subplots(2, len(ts), figsize=(2.6 * len(ts), 4.4), layout="constrained")
    extent = (grid.x.min(), grid.x.max(), grid.y.min(), grid.y.max())
    for row, barrier, states, chance, name in zip(
        axes, barriers, frames, probabilities, ("flat wall", "shaped wall"), strict=True
    ):
        for axis, t, psi in zip(row, ts, states, strict=True):
            density = np.abs(psi.reshape(grid.points).T) ** 2
            axis.imshow(
                density**0.5, origin="lower", extent=extent, cmap="magma", vmin=0, vmax=0.25
            )
            levels = [0.5 * MOMENTUM**2]
            axis.contour(grid.x, grid.y, barrier, levels, colors="white", linewidths=0.8)
            axis.set(xlim=(-12, 13), ylim=(-9, 9), title=f"t = {t:.2g}", xlabel="x")
        row[0].set_ylabel(f"{name}\n{100 * chance:.1f} % behind it\ny")
    figure.savefig(path, dpi=150)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=128, help="of the grid along x")
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--quick", action="store_true", help="a coarse grid and a few iterations")
    parser.add_argument("--output", default="wavepacket.png")
    options = parser.parse_args(arguments)
    points, steps, iterations = options.points, 200, options.iterations
    if options.quick:
        points, steps, iterations = 64, 80, 5

    solve, behind, barrier, grid = problem(points, steps, bumps=15)
    ends = [0.0, DURATION]
    loss = lambda shape: 1 - behind(solve(shape, ends).final_state)
    value_and_gradient = jax.jit(jax.value_and_grad(loss))
    flat = shape = jnp.zeros(15)
    optimiser = optax.adam(0.15)
    state = optimiser.init(shape)
    start = time.perf_counter()
    for _ in range(iterations):
        _, gradient = value_and_gradient(shape)
        updates, state = optimiser.update(gradient, state)
        shape = optax.apply_updates(shape, updates)
    took = time.perf_counter() - start
    print(f"{grid.n} points, {steps} steps, {iterations} iterations in {took:.1f} s")

    ts = np.linspace(0.0, DURATION, 5)
    frames = [np.asarray(solve(s, ts).states) for s in (flat, shape)]
    chances = [float(behind(states[-1])) for states in frames]
    print(f"behind the flat wall: {chances[0]:.4f}; behind the shaped one: {chances[1]:.4f}")
    norm = np.sum(np.abs(frames[1][-1]) ** 2) * grid.cell
    print(f"probability in all, off from one by {abs(norm - 1):.1e}")
    barriers = [np.asarray(barrier(s)) for s in (flat, shape)]
    draw(options.output, grid, barriers, frames, ts, chances)
    print(f"figure in {options.output}")


if __name__ == "__main__":
    main()
