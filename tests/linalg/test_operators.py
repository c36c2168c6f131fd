"""Operators without matrices: what they are as matrices, what they know, and their derivatives."""

import functools

import jax
import jax.experimental.sparse as jsparse
import jax.numpy as jnp
import numpy as np
import pytest
import qutip
import scipy.sparse

import cdiffeq as cd
from cdiffeq.linalg._bounds import disc
from cdiffeq.linalg._phase import phase_factor
from cdiffeq.testing import check_rule

PAULI = {
    "I": np.eye(2),
    "X": np.array([[0.0, 1.0], [1.0, 0.0]]),
    "Y": np.array([[0.0, -1j], [1j, 0.0]]),
    "Z": np.diag([1.0, -1.0]),
}
GRID = cd.linalg.Grid((6.0, 5.0), (4, 3))


def product(letters: str) -> np.ndarray:
    return functools.reduce(np.kron, [PAULI[s] for s in letters])


def random(rng, *shape):
    return rng.normal(size=shape) + 1j * rng.normal(size=shape)


def operators() -> dict:
    rng = np.random.default_rng(1)
    A, B = random(rng, 2, 2), random(rng, 3, 3)
    lower, middle = random(rng, 4), random(rng, 6)
    waves = np.fft.fftn(np.eye(12).reshape(12, 4, 3), axes=(1, 2))
    V = random(rng, 4, 3)
    kinetic = np.fft.ifftn(GRID.k_squared / 4 * waves, axes=(1, 2)).reshape(12, 12).T
    matrix = random(rng, 6, 6) * (rng.random((6, 6)) < 0.4)
    return {
        "kron": (
            cd.linalg.kron((2, 3), {0: A, 1: B}) - 2j * cd.linalg.kron((2, 3), {1: B}),
            np.kron(A, B) - 2j * np.kron(np.eye(2), B),
        ),
        "diagonals": (
            cd.linalg.diagonals([lower, middle], (-2, 0)),
            np.diag(lower, -2) + np.diag(middle),
        ),
        "kinetic": (cd.linalg.KineticPotential(GRID, V, mass=2.0), kinetic + np.diag(V.ravel())),
        "sparse": (cd.linalg.operator(scipy.sparse.csr_matrix(matrix)), matrix),
        "function": (
            1j * cd.linalg.operator(lambda x: matrix @ x, 6) + 0.5 * cd.linalg.operator(matrix),
            (0.5 + 1j) * matrix,
        ),
    }


OPERATORS = operators()


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATORS)
def test_the_family_is_that_of_matrices(name: str):
    A, matrix = OPERATORS[name]
    n = len(matrix)
    x = random(np.random.default_rng(2), 3, n)
    assert A.shape == matrix.shape
    actions = jax.jit(  # compiled once: one by one the operations take much longer
        lambda x: (
            A @ x,
            A @ x[0],
            A.adjoint() @ x[0],
            A.transpose() @ x[0],
            A.conj() @ x[0],
            (2 * A - (-A) / 4 + A.adjoint()) @ x[0],
            (A + matrix).to_dense(),
        )
    )
    expected = (
        x @ matrix.T,
        matrix @ x[0],
        matrix.conj().T @ x[0],
        matrix.T @ x[0],
        matrix.conj() @ x[0],
        (2.25 * matrix + matrix.conj().T) @ x[0],
        2 * matrix,
    )
    for got, value in zip(actions(x), expected, strict=True):
        np.testing.assert_allclose(got, value, rtol=0, atol=1e-12)
    assert not cd.linalg.is_hermitian(A)
    hermitian = A + A.adjoint()
    assert cd.linalg.is_hermitian(hermitian)
    eigenvalues = np.linalg.eigvalsh(matrix + matrix.conj().T)
    low, high = cd.linalg.spectral_bounds(hermitian)
    assert low <= eigenvalues[0] + 1e-9 and eigenvalues[-1] - 1e-9 <= high
    # Of any operator <x, A x> lies within the disc.
    center, radius = disc(A)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    values = np.sum(x.conj() * (x @ matrix.T), axis=1)
    assert np.all(np.abs(values - center) <= radius * (1 + 1e-12))


@pytest.mark.slow
def test_spin_chains():
    c = np.array([0.3, -0.7, 1.1])
    chain = cd.spin_chain(3, {"XIY": 0.5, "ZZ": c[:2], "Y": c, "+-": 1j})
    raising, lowering = PAULI["X"] + 1j * PAULI["Y"], PAULI["X"] - 1j * PAULI["Y"]
    pair = np.kron(raising, lowering) / 4
    expected = 0.5 * product("XIY") + c[0] * product("ZZI") + c[1] * product("IZZ")
    expected += c[0] * product("YII") + c[1] * product("IYI") + c[2] * product("IIY")
    expected += 1j * (np.kron(pair, np.eye(2)) + np.kron(np.eye(2), pair))
    np.testing.assert_allclose(chain.to_dense(), expected, rtol=0, atol=1e-14)
    ring = cd.spin_chain(3, {"XZ": c}, periodic=True).to_dense()
    expected = c[0] * product("XZI") + c[1] * product("IXZ") + c[2] * product("ZIX")
    np.testing.assert_allclose(ring, expected, rtol=0, atol=1e-14)
    # The gradient of an energy in the couplings, real for real couplings.
    psi = random(np.random.default_rng(3), 8)
    energy = lambda c: jnp.vdot(psi, cd.spin_chain(3, {"ZZ": c}) @ psi).real
    expected = [np.vdot(psi, product(s) @ psi).real for s in ("ZZI", "IZZ")]
    np.testing.assert_allclose(jax.grad(energy)(jnp.array([0.2, 0.5])), expected, rtol=1e-12)
    assert chain.dtype == jnp.complex128 and cd.spin_chain(2, {"X": 1.0}).dtype == jnp.float64
    single = cd.spin_chain(2, {"X": jnp.float32(1.0), "ZI": jnp.ones(1, jnp.float32)})
    assert single.dtype == jnp.float32
    assert cd.spin_chain(2, {"Y": jnp.float32(1.0)}).dtype == jnp.complex64


def test_modes():
    a = np.diag(np.sqrt(np.arange(1.0, 4)), 1)
    got = cd.modes((2, 4), {1: "+aa", 0: "a"}).to_dense()
    np.testing.assert_allclose(got, np.kron(np.diag([1.0], 1), a.T @ a @ a), rtol=0, atol=1e-14)


@pytest.mark.slow
def test_conversions():
    q = qutip.destroy(5) + 2 * qutip.qeye(5)
    dense = q.full()
    sparse = scipy.sparse.csr_array(dense)
    for A in (q, sparse, jsparse.BCOO.fromdense(dense), dense):
        np.testing.assert_allclose(cd.linalg.operator(A).to_dense(), dense)
    A = cd.linalg.operator(lambda x: 3 * x, 4, bounds=(2.5, 3.5))
    assert tuple(map(float, cd.linalg.spectral_bounds(A))) == (2.5, 3.5)


def test_products_have_derivatives():
    rng = np.random.default_rng(4)
    D, M, V, x = random(rng, 6), random(rng, 3, 3), random(rng, 4, 3), random(rng, 2, 6)

    def f(D, M, c, x):
        A = cd.linalg.diagonals(D) + c * cd.linalg.kron((2, 3), {1: M})
        return (A.adjoint() + A) @ x

    check_rule(f, D, M, 0.3 - 1j, x, key=jax.random.key(5))
    g = lambda V, m, y: cd.linalg.KineticPotential(GRID, V, m) @ y
    check_rule(g, V, 2.0, random(rng, 12), key=jax.random.key(6))


def test_phase_factors():
    phi = np.concatenate([np.linspace(-30, 30, 4001), [1e5, -123456.789]])
    np.testing.assert_allclose(
        phase_factor(jnp.asarray(phi)), np.exp(-1j * phi), rtol=0, atol=1e-15
    )
    single = phase_factor(jnp.float32(2.0))
    assert single.dtype == jnp.complex64 and abs(single - np.exp(-2j)) < 1e-6
    check_rule(phase_factor, phi[:5], modes=("jvp", "vjp", "hvp"), key=jax.random.key(7))
    assert np.isnan(phase_factor(jnp.inf))


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: cd.linalg.kron((2, 2), {2: np.eye(2)}), ValueError, "no site 2"),
        (lambda: cd.linalg.kron((2, 2), {0: np.eye(3)}), ValueError, r"factors\[0\].*\(2, 2\)"),
        (lambda: cd.linalg.kron((2,), {0: np.nan * np.eye(2)}), ValueError, "finite"),
        (lambda: cd.linalg.diagonals([np.ones(3), np.ones(3)], (0, 1)), ValueError, "one matrix"),
        (lambda: cd.spin_chain(3, {"ZQ": 1.0}), ValueError, "'ZQ'"),
        (lambda: cd.spin_chain(3, {"ZZ": np.ones(3)}), ValueError, r"2 places.*\(3,\)"),
        (lambda: cd.spin_chain(0, {"Z": 1.0}), ValueError, "n must be"),
        (lambda: cd.modes((2,), {0: "b"}), ValueError, "strings of a"),
        (lambda: cd.linalg.Grid((1.0,), (2, 3)), ValueError, "axes"),
        (lambda: cd.linalg.KineticPotential(GRID, np.ones(5)), ValueError, r"\(4, 3\).*\(5,\)"),
        (lambda: cd.linalg.operator(lambda x: x), TypeError, "what it acts on"),
        (lambda: cd.linalg.operator(np.eye(2), bounds=(1, 0)), ValueError, "bounds"),
        (lambda: cd.spin_chain(2, {"X": 1.0}) @ np.ones(3), ValueError, r"\(\.\.\., 4\)"),
        (lambda: cd.spin_chain(2, {"X": 1.0}) + np.eye(3), ValueError, "don't add"),
        (lambda: cd.spin_chain(2, {"X": 1.0}) * np.ones(2), TypeError, "numbers"),
        (lambda: cd.linalg.spectral_bounds(1j * np.eye(2)), ValueError, "isn't Hermitian"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_product_keeps_no_matrix():
    # 12 spins: the matrix would be 128 MiB; the product keeps less than four states.
    chain = cd.spin_chain(12, {"ZZ": 1.0, "X": 0.5})
    x = jax.ShapeDtypeStruct((2**12,), complex)
    compiled = jax.jit(lambda x: chain @ x).lower(x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 16 * 2**12
