"""exp(-iB) of a Hermitian B and its way back, by both ways to go."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from cdiffeq.linalg._unitary import exponential_action, exponential_back, make_plan, make_table
from cdiffeq.linalg._unitary_march import exponential_march, make_march

RNG = np.random.default_rng(3)
random = lambda *shape: RNG.normal(size=shape) + 1j * RNG.normal(size=shape)
A, PSI, LAM = random(6, 6), random(6, 2), random(6, 2)
A = A + A.conj().T
LOW, *_, HIGH = np.linalg.eigvalsh(A)
A = (2 * A - (LOW + HIGH) * np.eye(6)) / (HIGH - LOW)  # as far as its bounds, -1 and 1


# Radii below and at a table's entry, and one that is taken in parts.
@pytest.mark.parametrize("radius", [0.3, 4.0, 21.0])
@pytest.mark.parametrize(("real", "tolerance"), [(np.float64, 1e-13), (np.float32, 1e-5)])
def test_state_costate_and_gradient(radius: float, real: type, tolerance: float):
    B = radius * A + 0.7 * np.eye(6)
    U = scipy.linalg.expm(-1j * B)
    # The gradient of B: the adjoint of the Frechet derivative, by the block matrix.
    block = np.block([[1j * B, LAM @ PSI.conj().T], [np.zeros((6, 6)), 1j * B]])
    expected = 1j * scipy.linalg.expm(block)[:6, 6:]
    kind = np.result_type(real, np.complex64)
    table, march = make_table(kind), make_march(kind)

    @jax.jit
    def run(B, psi, lam):
        apply, pull = (lambda v: B @ v), (lambda L, P: L @ P.conj().T)
        plan = lambda back: make_plan(
            jnp.asarray(0.7, real), jnp.asarray(radius, real), table, back
        )
        after = exponential_action(apply, psi, plan(False), table)
        args = apply, pull, jnp.zeros_like(B), after, lam, plan(True)
        return after, exponential_back(*args, table), exponential_march(*args, march)

    after, *ways = run(*(jnp.asarray(a, kind) for a in (B, PSI, LAM)))
    close = lambda got, wanted: np.testing.assert_allclose(
        got, wanted, rtol=0, atol=tolerance * (1 + radius) * np.linalg.norm(wanted)
    )
    close(after, U @ PSI)
    for psi, lam, gradient in ways:
        close(psi, PSI)
        close(lam, U.conj().T @ LAM)
        close(gradient, expected)
        assert gradient.dtype == kind
