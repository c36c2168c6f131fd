"""Batches of small dense systems A x = b: the gradient with respect to every entry of A and b.

    loss = sum w |x|^2

of complex random matrices, in batches which keep the work at about the same (n^3 times their size, 1e7)
but for the smallest.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from benchmarks._harness import Method, Problem, Program, Reference, jax_program


class Instance(NamedTuple):
    systems: np.ndarray  # (batch, n, n + 1), complex: A, and b as the last column
    weights: np.ndarray  # (batch, n), real


def instance(n: int) -> Instance:
    rng = np.random.default_rng(3)
    batch = max(1, min(2000, int(1e7 / n**3)))
    systems = rng.standard_normal((batch, n, n + 1, 2)) @ [1, 1j]
    systems[:, range(n), range(n)] += np.sqrt(n)
    return Instance(systems, rng.random((batch, n)))


def reference(instance: Instance) -> Reference:
    """NumPy; with A^H y = 2 w x the gradients are y for b and -y x^H for A, conjugated for JAX."""
    A, b = instance.systems[..., :-1], instance.systems[..., -1:]
    x = np.linalg.solve(A, b)
    g = 2 * instance.weights[..., None] * x
    y = np.linalg.solve(np.conj(np.swapaxes(A, 1, 2)), g)
    of_A = -y * np.conj(np.swapaxes(x, 1, 2))
    loss = np.sum(instance.weights * np.abs(x[..., 0]) ** 2)
    return Reference(loss, x[..., 0], np.conj(np.concatenate([of_A, y], axis=-1)))


# The methods import their library themselves: each is measured where no other is loaded.


def _jax(solve: Callable, instance: Instance) -> Program:
    """`solve(A, b)` with b of shape (batch, n, 1), with the loss that all methods share."""

    def state(systems):
        return solve(systems[..., :-1], systems[..., -1:])[..., 0]

    def loss(x):
        return (instance.weights * (x.real**2 + x.imag**2)).sum()

    return jax_program(state, loss, instance.systems)


def _cdiffeq(instance: Instance, _: None) -> Program:
    import cdiffeq as cd

    return _jax(cd.linalg.solve, instance)


def _jnp(instance: Instance, _: None) -> Program:
    import jax.numpy as jnp

    return _jax(jnp.linalg.solve, instance)


def _lineax(instance: Instance, _: None) -> Program:
    import jax
    import lineax as lx

    def single(A, b):
        return lx.linear_solve(lx.MatrixLinearOperator(A), b[:, 0], lx.LU()).value[:, None]

    return _jax(jax.vmap(single), instance)


PROBLEM = Problem(
    title="Dense systems in a batch: gradient in every entry",
    size_name="order",
    sizes=(4, 16, 64, 256),
    quick_sizes=(3,),
    target=1e-8,
    instance=instance,
    reference=reference,
    methods={
        "cdiffeq": Method(_cdiffeq, ("cdiffeq",)),
        "jnp-linalg-solve": Method(_jnp, ("jax",)),
        "lineax": Method(_lineax, ("lineax",)),
    },
)
