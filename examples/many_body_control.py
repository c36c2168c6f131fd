"""Prepare a GHZ state of a chain of spins by two global fields, found by gradient descent.

    H(t) = -J sum_j Z_j Z_(j+1) + u_x(t) sum_j X_j + u_z(t) sum_j Z_j

All spins begin along x, the ground state of a strong transverse field. The fields are constant in 100 slices;
their gradient comes from the Schroedinger equation run backward, in the memory of a few dozen states, and
Adam follows it. No matrix of the chain is ever formed.

    python examples/many_body_control.py --spins 10 --output ghz.png
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


def problem(spins: int, slices: int, duration: float):
    """(fields -> result), the initial state and the target."""
    edges = np.linspace(0.0, duration, slices + 1)
    coupling, x, z = (cd.spin_chain(spins, {term: 1.0}) for term in ("ZZ", "X", "Z"))
    n = 2**spins
    psi0 = np.full(n, n**-0.5)  # all along +x
    ghz = np.zeros(n)
    ghz[[0, -1]] = 0.5**0.5

    def solve(u, ts, exp_ops=()):
        H = -cd.constant(coupling) - cd.pwc(edges, u[0], x) + cd.pwc(edges, u[1], z)
        return cd.sesolve(H, psi0, ts, exp_ops=exp_ops)

    return solve, edges, ghz, (coupling, x)


def guess(slices: int) -> np.ndarray:
    """A transverse field that is turned off slowly."""
    s = (np.arange(slices) + 0.5) / slices
    return np.stack([2.0 * (1 - s) ** 2, np.zeros(slices)])


def optimise(solve, edges, ghz, u, iterations: int, rate: float):
    """Adam with a rate that falls to zero. Returns the fields and the infidelity at each iteration."""

    @jax.jit
    def infidelity(u):
        overlap = jnp.vdot(ghz, solve(u, edges[[0, -1]]).final_state)
        return 1 - jnp.abs(overlap) ** 2

    optimiser = optax.adam(optax.cosine_decay_schedule(rate, iterations))
    value_and_gradient = jax.jit(jax.value_and_grad(infidelity))
    state, history = optimiser.init(u), []
    for _ in range(iterations):
        value, gradient = value_and_gradient(u)
        history.append(float(value))
        updates, state = optimiser.update(gradient, state)
        u = optax.apply_updates(u, updates)
    history.append(float(infidelity(u)))
    return u, history


def draw(path, edges, u, history, ts, expects, spins):
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    pulses, search, order = axes
    pulses.stairs(u[0], edges, label="$u_x$", color="#0072B2")
    pulses.stairs(u[1], edges, label="$u_z$", color="#D55E00", linestyle="--")
    pulses.set(xlabel="time (1/J)", ylabel="field (J)", title="Fields")
    pulses.legend(frameon=False)
    search.semilogy(history, color="black")
    search.set(xlabel="iteration", ylabel="infidelity", title="Search")
    order.plot(ts, expects[0] / (spins - 1), label=r"$\langle ZZ\rangle$ per bond", color="#0072B2")
    order.plot(ts, expects[1] / spins, "--", label=r"$\langle X\rangle$ per spin", color="#D55E00")
    order.set(xlabel="time (1/J)", ylabel="expectation", title="From paramagnet to GHZ state")
    order.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spins", type=int, default=10)
    parser.add_argument("--duration", type=float, default=10.0, help="in 1/J")
    parser.add_argument("--iterations", type=int, default=150)
    parser.add_argument("--quick", action="store_true", help="a small chain and a few iterations")
    parser.add_argument("--output", default="many_body_control.png")
    options = parser.parse_args(arguments)
    spins, slices, iterations = options.spins, 100, options.iterations
    if options.quick:
        spins, slices, iterations = 4, 20, 15

    solve, edges, ghz, ops = problem(spins, slices, options.duration)
    start = time.perf_counter()
    u, history = optimise(solve, edges, ghz, jnp.asarray(guess(slices)), iterations, 0.02)
    took = time.perf_counter() - start
    print(f"{spins} spins, {2 * slices} amplitudes, {iterations} iterations in {took:.1f} s")
    print(f"infidelity {history[0]:.3e} before, {history[-1]:.3e} after")
    result = solve(u, edges, exp_ops=ops)
    final = result.final_state
    print(f"weight on the two poles: {float(jnp.sum(jnp.abs(final[jnp.array([0, -1])]) ** 2)):.6f}")
    draw(options.output, edges, u, history, edges, result.expects.real, spins)
    print(f"figure in {options.output}")


if __name__ == "__main__":
    main()
