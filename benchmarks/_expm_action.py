"""What the problems about exp(tA) v share: the methods, and the reference by quadrature.

y = exp(tA) v,    A = A(p) sparse with real entries, linear in the parameters p,
loss = sum |y_i - target_i|^2 / 2
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse
from scipy.sparse.linalg import expm_multiply

from benchmarks._harness import Build, Method, Program, Ready, Reference, jax_program

NODES = 64  # of Gauss and Legendre: exact to rounding for any |t| norm(A) below 60


class Instance(NamedTuple):
    row: np.ndarray  # where the entries of A are, (entries,)
    column: np.ndarray
    entries: Callable[[Any, Any], Any]  # of NumPy or what stands in for it, and p: (entries,)
    pull: Callable[[np.ndarray], np.ndarray]  # the transpose of p -> entries
    parameters: np.ndarray
    t: complex
    v: np.ndarray
    target: np.ndarray


def matrix(instance: Instance, parameters: np.ndarray) -> scipy.sparse.csr_matrix:
    n = len(instance.v)
    places = (instance.row, instance.column)
    return scipy.sparse.csr_matrix((instance.entries(np, parameters), places), shape=(n, n))


def loss_of(y: Any, target: np.ndarray) -> Any:
    off = y - target
    return (off.real**2 + off.imag**2).sum() / 2


def solve(instance: Instance, parameters: np.ndarray) -> np.ndarray:
    """SciPy's, which works in place on what it is given where it can."""
    return expm_multiply(instance.t * matrix(instance, parameters), instance.v.copy())


def reference(instance: Instance) -> Reference:
    """The state by SciPy, and the gradient from states y(s) and costates l(s), 0 <= s <= 1, at the nodes of a
    quadrature:

        dL/dA_ij = Re int conj(t) l_i(s) conj(y_j(s)) ds,    l(1) = y(1) - target,   l' = -(tA)^H l.
    """
    A = instance.t * matrix(instance, instance.parameters)
    y = expm_multiply(A, instance.v.copy())
    x, weights = np.polynomial.legendre.leggauss(NODES)
    states, costates = [instance.v], [y - instance.target]
    for step in np.diff((x + 1) / 2, prepend=0.0):  # the nodes are symmetric: one way serves both
        states.append(expm_multiply(step * A, states[-1]))
        costates.append(expm_multiply(step * A.conj().T, costates[-1]))
    gradient = np.zeros(len(instance.row))
    for weight, state, costate in zip(weights / 2, states[1:], costates[:0:-1], strict=True):
        product = costate[instance.row] * state[instance.column].conj()
        gradient += weight * (np.conj(instance.t) * product).real
    return Reference(loss_of(y, instance.target), y, instance.pull(gradient))


# The methods import their library themselves: each is measured where no other is loaded.


def _cdiffeq(method: str) -> Build:
    def build(instance: Instance, _: None) -> Program:
        import jax.experimental.sparse as jsparse
        import jax.numpy as jnp

        import cdiffeq as cd

        places = np.stack([instance.row, instance.column], axis=1)
        n = len(instance.v)

        def final_state(p):
            A = jsparse.BCOO((instance.entries(jnp, p), places), shape=(n, n))
            return cd.linalg.expm_multiply(A, instance.v, instance.t, getattr(cd.linalg, method)())

        loss = lambda y: loss_of(y, instance.target)
        return jax_program(final_state, loss, instance.parameters)

    return build


def _taylor_scan(instance: Instance, _: None) -> Program:
    """No library: Taylor's polynomial in steps of norm 9.9 and degree 55, as SciPy takes them at most."""
    import jax
    import jax.experimental.sparse as jsparse
    import jax.numpy as jnp

    n = len(instance.v)
    norm = abs(instance.t) * abs(matrix(instance, instance.parameters)).sum(axis=0).max()
    steps = int(np.ceil(norm / 9.9))
    places = jnp.asarray(np.stack([instance.row, instance.column], axis=1))
    v = jnp.asarray(instance.v + 0 * instance.t)

    def final_state(p):
        # With real entries and a complex vector the transpose of BCOO's product fails.
        A = jsparse.BCOO((instance.t / steps * instance.entries(jnp, p), places), shape=(n, n))

        def term(state, k):
            b, total = state
            b = (A @ b) / k
            return (b, total + b), None

        def step(y, _):
            return jax.lax.scan(term, (y, y), jnp.arange(1.0, 56.0))[0][1], None

        return jax.lax.scan(step, v, None, length=steps)[0]

    return jax_program(final_state, lambda y: loss_of(y, instance.target), instance.parameters)


def _scipy(instance: Instance, _: None) -> Program:
    """Forward, SciPy's `expm_multiply`. It has no gradient; this is the reference's, by quadrature."""

    def forward():
        y = solve(instance, instance.parameters)
        return loss_of(y, instance.target), y

    def gradient():
        loss, _, slope = reference(instance)
        return loss, slope

    return Program(lambda: Ready(forward), lambda: Ready(gradient))


METHODS = {
    "cdiffeq": Method(_cdiffeq("Chebyshev"), ("cdiffeq",)),
    "cdiffeq-taylor": Method(_cdiffeq("Taylor"), ("cdiffeq",)),
    "cdiffeq-krylov": Method(_cdiffeq("Krylov"), ("cdiffeq",)),
    "jax-taylor-scan": Method(_taylor_scan, ("jax",)),
    "scipy": Method(_scipy, ("scipy",)),
}
