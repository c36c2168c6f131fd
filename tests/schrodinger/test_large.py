"""Hamiltonians without matrices: against the same with matrices, where both can be had."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cdiffeq as cd
from cdiffeq.linalg._operator import Operator
from cdiffeq.schrodinger import _matrix_free
from cdiffeq.testing import check_rule
from tests.schrodinger.reference import exact, integrated

SPINS = 3
EDGES = np.array([0.0, 0.5, 1.2, 2.0])
TS = [0.0, 0.9, 2.0]
X, Z = (cd.spin_chain(SPINS, {s: 1.0}) for s in "XZ")
RNG = np.random.default_rng(8)
U = RNG.normal(size=3)
J = RNG.normal(size=2)
PSI = RNG.normal(size=8) + 1j * RNG.normal(size=8)
PSI = PSI / np.linalg.norm(PSI)


def piecewise(J, u):
    drift = cd.spin_chain(SPINS, {"ZZ": J, "Y": 0.4})
    return cd.constant(drift) + cd.pwc(EDGES, u, X)


def smooth(J, w):
    return cd.constant(cd.spin_chain(SPINS, {"ZZ": J, "Y": 0.4})) + cd.modulated(
        lambda t, w: jnp.cos(w * t), X, w
    )


def dense(H):
    return lambda t: np.asarray(H(t).to_dense())


@pytest.mark.slow
@pytest.mark.parametrize("method", [None, cd.Krylov(dimension=6)])
def test_piecewise_constant(method):
    H = piecewise(J, U)
    result = cd.sesolve(H, np.stack([PSI, PSI[::-1]]), TS, exp_ops=[Z, np.eye(8)], method=method)
    expected = exact(dense(H), np.stack([PSI, PSI[::-1]]), TS, EDGES)
    np.testing.assert_allclose(result.states, expected, rtol=0, atol=1e-10 if method else 1e-13)
    values = np.einsum("tbi,ij,tbj->bt", expected.conj(), Z.to_dense(), expected)
    np.testing.assert_allclose(result.expects[0], values, rtol=0, atol=1e-9)
    np.testing.assert_allclose(result.expects[1], 1, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_adaptive_steps_keep_the_tolerance():
    H = smooth(J, 1.3)
    result = cd.sesolve(H, PSI, TS, rtol=1e-9, atol=0.0)
    expected = integrated(dense(H), PSI, TS)
    assert np.max(np.linalg.norm(result.states - expected, axis=-1)) < 2e-9
    assert result.stats.steps > 10


@pytest.mark.slow
@pytest.mark.parametrize("marched", [False, True])
def test_long_steps_and_exact_gradients(marched: bool, monkeypatch):
    # |H| dt = 90: cut in parts, there and back, by both ways to go back.
    monkeypatch.setattr(_matrix_free, "_LARGE", 0 if marched else 8)
    jax.clear_caches()  # what is traced knows the limit

    def probability(u, psi, as_matrix):
        matrix = (lambda A: A.to_dense()) if as_matrix else (lambda A: A)
        drift = cd.constant(matrix(cd.spin_chain(SPINS, {"ZZ": 1.0, "Y": 0.4})))
        H = drift + cd.pwc([0.0, 1.0, 3.0], u, matrix(X))
        return jnp.sum(jnp.abs(cd.sesolve(H, psi, [0.0, 3.0]).final_state[:3]) ** 2)

    u = jnp.array([12.0, 5.0])
    got, expected = (
        jax.value_and_grad(probability, (0, 1))(u, PSI, as_matrix) for as_matrix in (False, True)
    )
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-11)


@pytest.mark.slow
def test_rule_of_chebyshev():
    def f(J, u, w, ts, psi):
        H = piecewise(J, u) + cd.modulated(lambda t, w: jnp.sin(w * t), Z, w)
        return cd.sesolve(H, psi, ts, method=cd.Chebyshev(4, steps=2)).states[1:]

    check_rule(f, J, U, 1.3, np.array([0.1, 0.9, 1.8]), PSI, key=jax.random.key(3))


@pytest.mark.slow
@pytest.mark.parametrize("method", [cd.Chebyshev(), cd.Krylov(dimension=8)])
def test_second_derivatives(method):
    def f(u, psi):
        return cd.sesolve(piecewise(J, u), psi, TS, method=method).states[1:]

    rtol = dict(rtol=1e-6, pairing_rtol=1e-9) if isinstance(method, cd.Krylov) else {}
    check_rule(f, U, PSI, modes=("jvp", "vjp", "hvp"), key=jax.random.key(4), **rtol)


@pytest.mark.slow
def test_operators_that_depend_on_time():
    def chain(t, p):
        return cd.spin_chain(SPINS, {"ZZ": jnp.sin(p[0] * t), "X": p[1]})

    def f(p, psi):
        H = cd.timecallable(chain, p)
        return cd.sesolve(H, psi, TS, method=cd.Chebyshev(4, steps=3)).states[1:]

    p = jnp.array([1.0, 0.6])
    as_matrix = cd.timecallable(lambda t, p: chain(t, p).to_dense(), p)
    expected = cd.sesolve(as_matrix, PSI, TS, method=cd.Magnus(4, steps=3)).states[1:]
    np.testing.assert_allclose(f(p, PSI), expected, rtol=0, atol=1e-12)
    halves = 0.5 * cd.timecallable(chain, p) + 0.5 * cd.timecallable(chain, p)
    method = cd.Chebyshev(4, steps=3)
    np.testing.assert_allclose(
        cd.sesolve(halves, PSI, TS, method=method).states[1:], expected, rtol=0, atol=1e-12
    )
    check_rule(f, p, PSI, key=jax.random.key(5))


@pytest.mark.slow
def test_decay_takes_checkpoints():
    decay = cd.linalg.diagonals(-0.3j * np.arange(8.0))

    def f(J, u, psi):
        H = piecewise(J, u) + decay
        return cd.sesolve(H, psi, TS, hermitian=False).states[1:]

    expected = exact(dense(piecewise(J, U) + decay), PSI, TS, EDGES)[1:]
    np.testing.assert_allclose(f(J, U, PSI), expected, rtol=0, atol=1e-10)
    tolerances = dict(rtol=1e-6, pairing_rtol=1e-9)
    check_rule(f, J, U, PSI, key=jax.random.key(6), **tolerances)


@pytest.mark.slow
def test_vmap_jit_and_single_precision():
    single = lambda a: jnp.asarray(a, jnp.complex64 if np.iscomplexobj(a) else jnp.float32)
    x, zz = (cd.spin_chain(SPINS, {s: 1.0}) for s in ("X", "ZZ"))
    cast = lambda A: jax.tree.map(single, A)

    @jax.jit
    @jax.vmap
    def population(u):
        H = cd.constant(cast(zz)) + cd.pwc(single(EDGES), u, cast(x))
        return jnp.abs(cd.sesolve(H, single(PSI), single(np.array(TS))).final_state[0]) ** 2

    us = np.stack([U, 2 * U])
    got = population(single(us))
    assert got.dtype == jnp.float32
    for u, value in zip(us, got, strict=True):
        H = cd.constant(zz) + cd.pwc(EDGES, u, x)
        expected = exact(dense(H), PSI, TS, EDGES)[-1]
        assert abs(value - abs(expected[0]) ** 2) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_gradients_by_krylov_through_the_exponentials_of_a_step(decay: float):
    # Three in a step, whose states are taken back, or computed again where they decay.
    def score(w, as_matrix):
        H = smooth(J, w) + cd.linalg.diagonals(-1j * decay * np.arange(8.0))
        method = cd.Krylov(dimension=8, order=4, steps=1)
        if as_matrix:
            is_operator = lambda A: isinstance(A, Operator)
            form = lambda A: A.to_dense() if is_operator(A) else A
            H, method = jax.tree.map(form, H, is_leaf=is_operator), cd.Magnus(4, steps=1)
        psi = cd.sesolve(H, PSI, [0.0, 1.2], method=method, hermitian=not decay).final_state
        return jnp.sum(jnp.abs(psi[:3]) ** 2)

    got, expected = (jax.value_and_grad(score)(1.3, as_matrix) for as_matrix in (False, True))
    np.testing.assert_allclose(got, expected, rtol=1e-9)


LOPSIDED = cd.linalg.diagonals([np.ones(3), 0.5 * np.ones(3)], (1, -1))


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: cd.sesolve(LOPSIDED, PSI[:4], TS), ValueError, "not Hermitian at t = 0"),
        (
            lambda: cd.sesolve(LOPSIDED, PSI[:4], TS, method=cd.Krylov(4)),
            ValueError,
            "not Hermitian at t = 0",
        ),
        (lambda: cd.sesolve(Z, PSI, TS, method=cd.Magnus()), TypeError, "forms matrices"),
        (
            lambda: cd.sesolve(Z, PSI, TS, method=cd.Chebyshev(), hermitian=False),
            ValueError,
            "hermitian=False use Krylov",
        ),
        (lambda: cd.sesolve(Z, PSI, TS, method="fast"), TypeError, "'fast'"),
        (lambda: cd.Chebyshev(order=3), ValueError, "order"),
        (lambda: cd.Krylov(steps=0), ValueError, "steps"),
        (lambda: cd.Krylov(dimension=0), ValueError, "dimension"),
        (lambda: cd.sesolve(Z, PSI[:4], TS), ValueError, r"\(\.\.\., 8\)"),
        (
            lambda: cd.sesolve(cd.linalg.operator(lambda x: 3 * x, 4, bounds=(0, 1)), PSI[:4], TS),
            Exception,
            "not Hermitian at t = 0|isn't within",
        ),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_slices():
    def temporary(slices):
        def loss(u):
            H = cd.constant(cd.spin_chain(8, {"ZZ": 1.0})) + cd.pwc(
                np.linspace(0, 1, slices + 1), u, cd.spin_chain(8, {"X": 1.0})
            )
            psi0 = np.zeros(2**8)
            psi0[0] = 1
            return jnp.abs(cd.sesolve(H, psi0, [0.0, 1.0]).final_state[-1]) ** 2

        u = jax.ShapeDtypeStruct((slices,), float)
        return jax.jit(jax.grad(loss)).lower(u).compile().memory_analysis().temp_size_in_bytes

    state = 16 * 2**8
    few, many = temporary(50), temporary(5000)
    # A slice has a time, a length, an amplitude, a slot and their gradients.
    assert many - few < 120 * 4950 < 0.2 * state * 4950
    assert few < 50 * state


@pytest.mark.slow
def test_memory_of_large_systems(monkeypatch):
    spins = 14
    state = 16 * 2**spins

    # Made in what is traced, they would have gradients of their own.
    drift, x, z = (cd.spin_chain(spins, {s: 1.0}) for s in ("ZZ", "X", "Z"))

    def loss(u, c, psi0, operators):
        edges = np.linspace(0, 1, 11)
        drift, x, z = operators(c)
        H = cd.constant(drift) + cd.pwc(edges, u[0], x) + cd.pwc(edges, u[1], z)
        return jnp.abs(cd.sesolve(H, psi0, [0.0, 1.0]).final_state[-1]) ** 2

    def temporary(operators):
        jax.clear_caches()  # what is traced knows the limit
        f = lambda u, c, psi0: loss(u, c, psi0, operators)
        shapes = [jax.ShapeDtypeStruct(*a) for a in (((2, 10), float), ((3,), float))]
        shapes.append(jax.ShapeDtypeStruct((2**spins,), complex))
        compiled = jax.jit(jax.value_and_grad(f)).lower(*shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    known = lambda c: (drift, x, z)
    traced = lambda c: [cd.spin_chain(spins, {s: c[i]}) for i, s in enumerate(("ZZ", "X", "Z"))]
    assert temporary(known) < 45 * state
    monkeypatch.setattr(_matrix_free, "_LARGE", 0)
    assert temporary(known) < 8.5 * state
    assert temporary(traced) < 10.5 * state
