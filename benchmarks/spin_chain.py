"""A chain of spins: exp(-itH) v, and the gradient with respect to every coupling and every field.

    H = sum_j J_j (X_j X_(j+1) + Y_j Y_(j+1) + Z_j Z_(j+1)) + sum_j h_j X_j

H is real; with 12 spins it has 4,096 states and 19 entries in a row.
"""

import numpy as np

from benchmarks import _expm_action
from benchmarks._expm_action import Instance
from benchmarks._harness import Problem


def instance(spins: int) -> Instance:
    rng = np.random.default_rng(3)
    n = 2**spins
    states = np.arange(n)
    bit = lambda j: (states >> j) & 1
    rows, columns, coefficients, parameters = [], [], [], []
    for j in range(spins - 1):  # XX + YY swaps two spins that differ
        swapped = states[bit(j) != bit(j + 1)]
        rows.append(swapped)
        columns.append(swapped ^ (3 << j))
        coefficients.append(np.full(len(swapped), 2.0))
        parameters.append(np.full(len(swapped), j))
    for j in range(spins):
        rows.append(states)
        columns.append(states ^ (1 << j))
        coefficients.append(np.ones(n))
        parameters.append(np.full(n, spins - 1 + j))
    coefficient, parameter = np.concatenate(coefficients), np.concatenate(parameters)
    order = np.argsort(parameter, kind="stable")
    starts = np.searchsorted(parameter[order], np.arange(2 * spins - 1))
    aligned = np.stack([1.0 - 2 * (bit(j) != bit(j + 1)) for j in range(spins - 1)], axis=1)

    def entries(np, p):
        return np.concatenate([coefficient * p[parameter], aligned @ p[: spins - 1]])

    def pull(g):
        off, diagonal = np.split(g, [len(coefficient)])
        slope = np.add.reduceat((coefficient * off)[order], starts)
        slope[: spins - 1] += aligned.T @ diagonal
        return slope

    def state():
        v = rng.standard_normal((n, 2)) @ [1, 1j]
        return v / np.linalg.norm(v)

    return Instance(
        np.concatenate([*rows, states]),
        np.concatenate([*columns, states]),
        entries,
        pull,
        np.concatenate([1 + 0.2 * rng.standard_normal(spins - 1), 0.5 + 0.2 * rng.random(spins)]),
        -1j,
        state(),
        state(),
    )


PROBLEM = Problem(
    title="exp(-itH) of a Heisenberg chain: gradient in all couplings and fields",
    size_name="spins",
    sizes=(12,),
    quick_sizes=(3,),
    target=1e-11,
    instance=instance,
    reference=_expm_action.reference,
    methods=_expm_action.METHODS,
)
