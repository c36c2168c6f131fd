"""QuTiP's objects, in and out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qutip
import scipy.sparse

import cdiffeq as cd
from cdiffeq.interop.qutip import from_qobj, to_qobj


def test_there_and_back():
    ket = qutip.rand_ket([2, 3], seed=1)
    rho = qutip.rand_dm([2, 3], seed=2)
    assert from_qobj(ket).shape == from_qobj(ket.dag()).shape == (6,)
    np.testing.assert_array_equal(from_qobj(ket.dag()), from_qobj(ket).conj())
    for q in (ket, rho):
        back = to_qobj(from_qobj(q), [2, 3])
        assert back == q and back.dims == q.dims
    assert to_qobj(from_qobj(rho), rho.dims).dims == rho.dims
    assert to_qobj(np.eye(3)).dims == [[3], [3]]


def test_superoperators_act_on_stacked_columns():
    L, rho = qutip.liouvillian(qutip.sigmax(), [qutip.sigmam()]), qutip.rand_dm(2, seed=3)
    product = from_qobj(L) @ np.asarray(from_qobj(rho)).ravel(order="F")
    np.testing.assert_allclose(product, L(rho).full().ravel(order="F"), rtol=0, atol=1e-14)


def test_a_whole_result_beside_sesolve_of_qutip():
    H, psi0 = qutip.rand_herm(4, seed=4), qutip.basis(4, 1)
    ts = np.linspace(0, 1, 5)
    kets = to_qobj(cd.sesolve(H, psi0, ts).states, kind="ket")
    expected = qutip.sesolve(H, psi0, ts, options={"atol": 1e-10, "rtol": 1e-10}).states
    for ket, other in zip(kets, expected, strict=True):
        assert (ket - other).norm() < 1e-7
    grid = to_qobj(np.zeros((2, 3, 4, 4)), kind="oper")
    assert len(grid) == 2 and len(grid[0]) == 3 and grid[1][2].isoper


def test_sparse():
    A = from_qobj(qutip.num(40) + 1, sparse=True)
    assert scipy.sparse.issparse(A) and A.nnz == 40
    np.testing.assert_allclose(cd.linalg.solve(A, np.ones(40)), 1 / np.arange(1, 41))
    dense = qutip.Qobj(np.arange(4.0).reshape(2, 2))
    np.testing.assert_array_equal(from_qobj(dense, sparse=True).toarray(), dense.full())


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: from_qobj(np.eye(2)), TypeError, "must be a qutip.Qobj, got ndarray"),
        (lambda: from_qobj(qutip.basis(2), sparse=True), ValueError, "for operators, got a ket"),
        (lambda: to_qobj(np.ones((3, 2, 2))), ValueError, 'needs kind="ket" or kind="oper"'),
        (lambda: to_qobj(np.ones((3, 2))), ValueError, 'Kets need kind="ket"'),
        (lambda: to_qobj(np.ones(2), kind="bra"), ValueError, "kind must be"),
        (lambda: to_qobj(np.ones(4), [2, 3]), ValueError, "multiply to 6, not to n = 4"),
        (lambda: jax.jit(to_qobj)(jnp.ones(2)), TypeError, "a is traced"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.slow
def test_linear_algebra_takes_operators_of_qutip():
    H = qutip.sigmax() + 2 * qutip.qeye(2)
    b = np.array([1.0, 2.0j])
    np.testing.assert_allclose(cd.linalg.solve(H, b), np.linalg.solve(H.full(), b), rtol=1e-14)
    np.testing.assert_allclose(cd.linalg.expm_multiply(H, b, -1j), (-1j * H).expm().full() @ b)


def test_time_dependent_operators_are_named():
    X, Z = qutip.sigmax(), qutip.sigmaz()
    with pytest.raises(TypeError, match=r"time-dependent operator of QuTiP.*cd\.modulated"):
        cd.sesolve([Z, [X, lambda t: t]], [1, 0], [0, 1])
    with pytest.raises(TypeError, match=r"H1 must be.*time-dependent operator of QuTiP"):
        cd.pwc([0, 1], [1.0], qutip.QobjEvo([X, [Z, lambda t: t]]))
    with pytest.raises(TypeError, match=r"jump_ops\[0\]: the operator.*time-dependent"):
        cd.mesolve(Z, [qutip.QobjEvo([X, [Z, lambda t: t]])], [1, 0], [0, 1])
