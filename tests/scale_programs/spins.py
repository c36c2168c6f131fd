"""Steers a chain of spins whose state is spread over all devices, and on one, and compares, as JSON.

python spins.py SPINS
"""

import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import cdiffeq as cd

SLICES = 3
EDGES = np.linspace(0.0, 0.3, SLICES + 1)


def infidelity(u, couplings, psi0, target):
    """Of a chain under two fields in slices, u (2, SLICES)."""
    spins = psi0.size.bit_length() - 1
    # Made here, of traced numbers: an operator from outside would be a constant, whole on each device.
    zz, x, z = (cd.spin_chain(spins, {term: couplings[term]}) for term in ("ZZ", "X", "Z"))
    H = cd.constant(zz) + cd.pwc(EDGES, u[0], x) + cd.pwc(EDGES, u[1], z)
    psi = cd.sesolve(H, psi0, EDGES[[0, -1]], method=cd.Chebyshev()).final_state
    return 1 - jnp.abs(jnp.vdot(target, psi)) ** 2


def main(spins: str) -> None:
    jax.config.update("jax_enable_x64", True)
    n = 2 ** int(spins)
    rng = np.random.default_rng(1)
    random = rng.normal(size=(4, n))
    states = (random[:2] + 1j * random[2:]) / np.sqrt(2 * n)
    u = rng.normal(size=(2, SLICES))
    couplings = {"ZZ": -1.0, "X": 0.9, "Z": 0.8}
    program = jax.jit(jax.value_and_grad(infidelity, (0, 1, 2)))
    one = program.lower(u, couplings, *states).compile()
    expected = one(u, couplings, *states)

    mesh = jax.make_mesh((jax.device_count(),), ("amplitudes",), axis_types=(AxisType.Auto,))
    whole, spread = NamedSharding(mesh, P()), NamedSharding(mesh, P("amplitudes"))
    u, couplings = jax.device_put((u, couplings), whole)
    psi0, target = jax.device_put(tuple(states), spread)
    many = program.lower(u, couplings, psi0, target).compile()
    found = many(u, couplings, psi0, target)

    leaves = lambda tree: [np.asarray(a) for a in jax.tree.leaves(tree)]
    differences = [
        float(np.max(np.abs(a - b)) / np.max(np.abs(b)))
        for a, b in zip(leaves(found), leaves(expected), strict=True)
    ]
    memory = lambda program: program.memory_analysis().temp_size_in_bytes / (16 * n)
    report = {
        "devices": jax.device_count(),
        "difference": max(differences),
        "collectives": re.findall(
            r"= (\S+) (all-\w+|collective-\w+|reduce-scatter)", many.as_text()
        ),
        "vectors": memory(one),
        "vectors_per_device": memory(many),
        "state_stays_spread": found[1][2].sharding.is_equivalent_to(spread, 1),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
