"""steadystate: QuTiP, a closed form, its derivatives, and systems whose steady state isn't unique."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qutip

import cdiffeq as cd
from cdiffeq.testing import check_rule
from tests.schrodinger.reference import destroy, hermitian, random

RNG = np.random.default_rng(23)
N = 4
H, L, M = hermitian(RNG, N), random(RNG, N, N), random(RNG, N, N)
GMRES = cd.linalg.GMRES(rtol=1e-11, restart=N * N)


@pytest.mark.slow
@pytest.mark.parametrize("solver", [None, GMRES])
def test_against_qutip(solver):
    rho = cd.steadystate(H, [L, M], solver=solver)
    known = qutip.steadystate(qutip.Qobj(H), [qutip.Qobj(L), qutip.Qobj(M)]).full()
    np.testing.assert_allclose(rho, known, rtol=0, atol=1e-9 if solver else 1e-12)
    np.testing.assert_array_equal(rho, rho.conj().T)
    np.testing.assert_allclose(jnp.trace(rho), 1, rtol=1e-10)


@pytest.mark.slow
def test_driven_cavity_is_coherent():
    # <a> = -i E / (k/2 + i d)
    n, E, d, k = 11, 0.3, 0.5, 1.0
    a = destroy(n)
    H = d * a.T @ a + E * (a + a.T)
    rho = cd.steadystate(cd.constant(d * a.T @ a) + E * (a + a.T), [np.sqrt(k) * a])
    np.testing.assert_allclose(jnp.trace(a @ rho), -1j * E / (k / 2 + 1j * d), rtol=0, atol=1e-8)
    later = cd.mesolve(H, [np.sqrt(k) * a], rho, [0.0, 2.0]).final_state
    np.testing.assert_allclose(later, rho, rtol=0, atol=1e-10)


@pytest.mark.slow
def test_large_ones_are_solved_by_iteration():
    n, d, k = 44, 0.4, 1.0
    a = destroy(n)
    H = d * a.T @ a + 0.2 * (a @ a + a.T @ a.T) + 0.6 * (a + a.T)
    rho = cd.steadystate(H, [np.sqrt(k) * a])
    direct = cd.steadystate(H, [np.sqrt(k) * a], solver=cd.linalg.LU())
    np.testing.assert_allclose(rho, direct, rtol=0, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("solver", [None, pytest.param(GMRES, marks=pytest.mark.slow)])
def test_derivatives(solver):
    def f(H, L):
        return cd.steadystate(H + H.conj().T, [L, M], solver=solver)

    rtol = None if solver is None else 1e-6
    modes = ("jvp", "vjp") if solver else ("jvp", "vjp", "hvp")
    check_rule(jax.jit(f), H, L, key=jax.random.key(3), rtol=rtol, pairing_rtol=rtol, modes=modes)


@pytest.mark.parametrize("unit", [1e-9, 1e9])
def test_units_make_no_difference(unit: float):
    rho = cd.steadystate(unit * H, [np.sqrt(unit) * L, np.sqrt(unit) * M])
    np.testing.assert_allclose(rho, cd.steadystate(H, [L, M]), rtol=0, atol=1e-13)


@pytest.mark.slow
def test_vmap_and_single_precision():
    f = lambda x: cd.steadystate(x * H, [L, M])
    mapped = jax.vmap(f)(jnp.array([0.5, 2.0]))
    np.testing.assert_allclose(mapped[1], f(2.0), rtol=0, atol=1e-13)
    single = cd.steadystate(H.astype(np.complex64), [L.astype(np.complex64)])
    assert single.dtype == jnp.complex64


@pytest.mark.slow
@pytest.mark.parametrize("solver", [None, GMRES])
def test_a_state_that_isnt_unique_raises(solver):
    # Populations of a dephased system stay; so do both halves of a system in two parts.
    with pytest.raises(RuntimeError, match=r"singular|unique"):
        cd.steadystate(np.diag(np.arange(4.0)), [np.diag(RNG.normal(size=4))], solver=solver)
    split = np.kron(np.eye(2), random(RNG, 2, 2))
    with pytest.raises(RuntimeError, match=r"singular|unique"):
        cd.steadystate(np.kron(np.eye(2), hermitian(RNG, 2)), [split], solver=solver)


def test_bad_input():
    drive = cd.modulated(lambda t, p: jnp.sin(t), H)
    for bad in ((drive, [L]), (H, [L, cd.pwc([0, 1], [1.0], M)])):
        with pytest.raises(ValueError, match="must not depend on time"):
            cd.steadystate(*bad)
    with pytest.raises(ValueError, match="without jump operators"):
        cd.steadystate(H, [])
    with pytest.raises(ValueError, match="H must be Hermitian"):
        cd.steadystate(L, [M])
    with pytest.raises(ValueError, match=r"jump_ops\[0\] must have shape"):
        cd.steadystate(H, [np.eye(2)])
