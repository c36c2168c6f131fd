"""Solves an ensemble on one device and on all there are, and prints how the two compare, as JSON.

python ensembles.py CASE [PROCESS PROCESSES ADDRESS]
"""

import json
import re
import sys

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import cdiffeq as cd

X, Z = np.array([[0.0, 1.0], [1.0, 0.0]]), np.diag([1.0, -1.0])
LOWER, EXCITED = np.array([[0.0, 1.0], [0.0, 0.0]]), np.diag([0.0, 1.0])
EDGES = np.linspace(0.0, 2.0, 6)
ENDS = EDGES[[0, -1]]
U = np.array([0.3, 0.5, 0.4, 0.8, 0.2])


def held(u, d, x=X, z=Z):
    """A pulse in pieces, with a detuning and an error of the amplitude, both of them d."""
    # A complex d makes an H that is not Hermitian, and the solve fail.
    return cd.pwc(EDGES, u * (1 + jnp.real(d)), x) + d * cd.constant(z)


def smooth(u, d):
    wave = cd.modulated(lambda t, p: p[0] * jnp.sin(p[1] * t), X, u[:2])
    return wave + jnp.real(d) * cd.constant(Z)


def exponential(u, d):
    return jnp.abs(cd.sesolve(held(u, d), [1.0, 0.0], ENDS).final_state[1]) ** 2


def magnus(u, d):
    return jnp.abs(cd.sesolve(smooth(u, d), [1.0, 0.0], ENDS).final_state[1]) ** 2


def chebyshev(u, d):
    H = held(u, d, cd.spin_chain(4, {"X": 1.0}), cd.spin_chain(4, {"ZZ": 1.0}))
    return jnp.abs(cd.sesolve(H, np.eye(16)[0], ENDS).final_state[3]) ** 2


def decay(u, d):
    result = cd.mesolve(held(u, d), [0.3 * LOWER], [1.0, 0.0], ENDS, exp_ops=[EXCITED])
    return result.expects[0, -1].real


def runge_kutta(u, d):
    result = cd.mesolve(
        smooth(u, d), [0.3 * LOWER], [1.0, 0.0], ENDS, exp_ops=[EXCITED], method=diffrax.Tsit5()
    )
    return result.expects[0, -1].real


def trajectories(u, d):
    result = cd.mcsolve(
        held(u, d),
        [0.3 * LOWER],
        [1.0, 0.0],
        ENDS,
        key=jax.random.key(0),
        ntraj=8,
        exp_ops=[EXCITED],
    )
    return result.expects[0, -1].real


def split_steps(u, d):
    """A packet in a well that moves; each device transforms what it has."""
    grid = cd.linalg.Grid((12.0,), (32,))
    well = cd.constant(cd.linalg.KineticPotential(grid, grid.x**2 / 2))
    H = well + cd.pwc(EDGES, u * (1 + d), cd.linalg.diagonals(grid.x))
    psi = cd.sesolve(
        H, np.exp(-(grid.x**2) / 2), ENDS, method=cd.SplitOperator(2, steps=4)
    ).final_state
    return jnp.sum(jnp.abs(psi) ** 2 * grid.x**2) * grid.cell


def vector_field(u, d):
    f = lambda t, y, args: (
        1j * args[1] * jnp.abs(y) ** 2 * y - args[0][0] * y + args[0][1] * jnp.conj(y)
    )
    return jnp.sum(jnp.abs(cd.ode.solve(f, jnp.ones(2) + 0j, [0.0, 1.0], (u, d)).ys[-1]) ** 2)


CASES = exponential, magnus, chebyshev, split_steps, decay, runge_kutta, trajectories, vector_field


def value_and_gradients(member):
    """The sum over some members, its gradient by what they share, and by what they don't."""

    def of(u, d):
        total = lambda u, d: jnp.sum(jax.vmap(member, (None, 0))(u, d))
        value, (of_u, of_d) = jax.value_and_grad(total, (0, 1))(u, d)
        return value[None], of_u[None], of_d

    return of


def compare(member) -> dict:
    """How far value and gradients are apart, the collectives of the program, and what a failure says."""
    mesh = jax.make_mesh((jax.device_count(),), ("ensemble",))
    ds = np.linspace(-0.3, 0.3, 2 * jax.device_count()) + 0j
    if member in (magnus, split_steps, runge_kutta, vector_field):
        ds = ds.real
    expected = jax.jit(value_and_gradients(member))(jnp.asarray(U), jnp.asarray(ds))

    spread = lambda a: jax.make_array_from_callback(
        a.shape, NamedSharding(mesh, P("ensemble")), lambda part: a[part]
    )
    parts = jax.shard_map(
        value_and_gradients(member), mesh=mesh, in_specs=(P(), P("ensemble")),
        out_specs=P("ensemble"), check_vma=False,
    )  # fmt: skip
    u = jax.device_put(U, NamedSharding(mesh, P()))
    program = jax.jit(parts).lower(u, spread(ds)).compile()
    value, of_u, of_d = jax.block_until_ready(program(u, spread(ds)))
    found = (value.sum(0), of_u.sum(0))
    pairs = list(zip(found, (expected[0][0], expected[1][0]), strict=True))
    for shard in of_d.addressable_shards:
        pairs.append((shard.data, expected[2][shard.index]))
    difference = max(float(np.max(np.abs(np.asarray(a) - np.asarray(b)))) for a, b in pairs)
    collective = r"\b(all-\w+|collective-\w+|reduce-scatter)(?:-start)?\("
    report = {
        "devices": jax.device_count(),
        "value": float(found[0]),
        "gradient": float(jnp.linalg.norm(found[1])),
        "difference": difference,
        "collectives": re.findall(collective, program.as_text()),
    }
    if np.iscomplexobj(ds) and jax.process_count() == 1:
        ds[-1] += 1j
        try:
            jax.block_until_ready(program(u, spread(ds)))
            report["error"] = "none"
        except jax.errors.JaxRuntimeError as error:
            report["error"] = str(error)
    return report


def main(case: str, process: str = "0", processes: str = "1", address: str = "") -> None:
    jax.config.update("jax_enable_x64", True)
    if address:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(address, int(processes), int(process))
    print(json.dumps(compare({f.__name__: f for f in CASES}[case])))


if __name__ == "__main__":
    main(*sys.argv[1:])
