"""Crank-Nicolson steps: against dense Cayley transforms and exponentials, their order, and the rule."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

import cdiffeq as cd
from cdiffeq.linalg._band import Band, as_band, bandwidth, solve_band
from cdiffeq.linalg._operator import Dense
from cdiffeq.testing import check_rule
from tests.schrodinger.reference import integrated, random

RNG = np.random.default_rng(21)
N = 9
TS, EDGES = [0.1, 0.8, 1.0], np.array([0.0, 0.3, 1.5])
PSI = random(RNG, N)


def banded(width: int) -> np.ndarray:
    """A Hermitian matrix of this bandwidth."""
    A = sum(np.diag(random(RNG, N - o), o) for o in range(width + 1))
    return (A + A.conj().T) / 2


A1, B1, A2, B2 = banded(1), banded(1), banded(2), banded(2)


def driven(A, B, u, w):
    H = cd.constant(A) + cd.pwc(EDGES, u, B)
    return H + cd.modulated(lambda t, w: jnp.sin(w * t), B, w)


U, W = np.array([0.4, -0.7]), 1.3


@pytest.mark.parametrize("A, B", [(A1, B1), (A2, B2)])
def test_steps_are_cayley_transforms(A, B):
    psi0 = np.stack([PSI, PSI[::-1]])
    got = cd.sesolve(driven(A, B, U, W), psi0, TS, method=cd.CrankNicolson(steps=2)).states
    psi = psi0.T
    for a, b in itertools.pairwise([0.1, 0.3, 0.8, 1.0]):
        for i in range(2):
            h = (b - a) / 2
            t = a + (i + 0.5) * h
            M = 0.5j * h * (A + (U[int(t > 0.3)] + np.sin(W * t)) * B)
            psi = np.linalg.solve(np.eye(N) + M, (np.eye(N) - M) @ psi)
    np.testing.assert_allclose(got[-1], psi.T, rtol=0, atol=1e-13)
    np.testing.assert_allclose(
        np.linalg.norm(got, axis=-1), np.linalg.norm(psi0, axis=-1)[None].repeat(3, 0), rtol=1e-14
    )


@pytest.mark.parametrize("width", [1, 2])
def test_rule_of_banded_systems(width: int):
    rows = random(RNG, 2 * width + 1, N) + 4 * (np.arange(2 * width + 1)[:, None] == width)
    A = Band(jnp.asarray(rows)).to_dense()
    b = random(RNG, N, 2)
    np.testing.assert_allclose(A @ solve_band(rows, b), b, rtol=0, atol=1e-13)
    check_rule(jax.jit(lambda *args: solve_band(*args)), rows, b, key=jax.random.key(7))


@pytest.mark.slow
def test_order_and_tolerance():
    H = driven(A1, B1, U, W)
    known = integrated(lambda t: np.asarray(H(t)), PSI, TS, EDGES)
    error = lambda method, **more: np.linalg.norm(
        cd.sesolve(H, PSI, TS, method=method, **more).states - known, axis=-1
    ).max()
    few, many = (error(cd.CrankNicolson(steps=n)) for n in (20, 40))
    assert abs(np.log2(few / many) - 2) < 0.1
    scale = np.linalg.norm(PSI)
    assert 1e-7 * scale < error(cd.CrankNicolson(), rtol=1e-5, atol=0.0) < 1e-5 * scale


@pytest.mark.slow
def test_rule():
    def f(A, B, u, w, ts, psi):
        result = cd.sesolve(driven(A, B, u, w), psi, ts, method=cd.CrankNicolson(2, bandwidth=1))
        return result.states[1:]

    psi = np.stack([PSI, 1j * PSI[::-1]])
    tri = lambda x: cd.linalg.diagonals([x, 2 * jnp.ones(N), x.conj()], (-1, 0, 1))
    g = lambda x, y, *rest: f(tri(x), tri(y), *rest)
    x, y = random(RNG, N - 1), random(RNG, N - 1)
    check_rule(g, x, y, U, W, np.array(TS), psi, key=jax.random.key(1))


@pytest.mark.slow
def test_second_derivatives_of_wider_bands():
    half = np.triu(A2) - np.diag(np.diag(A2)) / 2

    def f(A, u):
        method = cd.CrankNicolson(2, bandwidth=2)
        A = jnp.where(half != 0, A, 0)
        return cd.sesolve(driven(A + A.conj().T, B2, u, W), PSI, TS, method=method).final_state

    check_rule(f, half, U, modes=("jvp", "vjp", "hvp"), key=jax.random.key(2))


@pytest.mark.slow
def test_absorbing_potentials_take_checkpoints():
    decay = cd.linalg.diagonals(np.where(np.arange(N) > 6, -0.8j, 0.0))

    def f(u, w, psi):
        H = driven(A2, B1, u, w) + decay
        method = cd.CrankNicolson(steps=3)
        return cd.sesolve(H, psi, TS, method=method, hermitian=False).states[1:]

    norm = jnp.linalg.norm(f(U, W, PSI), axis=-1)
    assert norm[1] < 0.99 * norm[0]
    check_rule(f, U, W, PSI, key=jax.random.key(3))


def test_operators_that_depend_on_time():
    def ladder(t, p):
        return cd.linalg.diagonals([jnp.sin(p * t) * jnp.ones(N - 1)] * 2, (-1, 1))

    solve = lambda H, **more: (
        cd.sesolve(H, PSI, TS, method=cd.CrankNicolson(steps=4, **more)).final_state
    )
    one = cd.linalg.diagonals([np.ones(N - 1)] * 2, (-1, 1))
    known = solve(cd.modulated(lambda t, p: jnp.sin(p * t), one, W))
    np.testing.assert_allclose(
        solve(cd.timecallable(ladder, W), bandwidth=1), known, rtol=0, atol=1e-14
    )


def test_bandwidths_are_found():
    far = [(-2, 0, 2), (0, 1)]
    for A in (
        Dense(jnp.asarray(A2)),
        cd.linalg.operator(scipy.sparse.csr_matrix(A2)),
        cd.linalg.diagonals([np.diag(A2, o) for o in far[0]], far[0]),
        cd.linalg.diagonals([np.diag(A2, o) for o in far[1]], far[1]) + 2 * Dense(jnp.asarray(A2)),
        cd.linalg.kron((2, 3), {1: banded(2)[:3, :3]}),
    ):
        assert bandwidth(A) == 2
        forms = lambda A=A: (
            A.to_dense(),
            as_band("A", A, 2).to_dense(),
            as_band("A", A, 5).adjoint().to_dense().conj().T,
        )
        known, *got = jax.jit(forms)()
        for dense in got:
            np.testing.assert_array_equal(dense, known)
    traced = lambda x: jnp.asarray(bandwidth(cd.linalg.diagonals([x, x], (-1, 1))))
    assert jax.jit(traced)(np.ones(4)) == 1


def test_vmap_and_single_precision():
    single = lambda a: jnp.asarray(a, jnp.complex64 if np.iscomplexobj(a) else jnp.float32)
    A, B, edges, ts = map(single, (A2, B2, EDGES, np.array(TS)))
    solve = lambda u, psi: (
        cd.sesolve(
            cd.constant(A) + cd.pwc(edges, u, B), psi, ts, method=cd.CrankNicolson(steps=2)
        ).final_state
    )
    us = single(np.stack([U, 2 * U]))
    got = jax.jit(jax.vmap(solve, (0, None)))(us, single(PSI))
    assert got.dtype == jnp.complex64
    for u, value in zip(us, got, strict=True):
        H = cd.constant(A2) + cd.pwc(EDGES, np.asarray(u, float), B2)
        known = cd.sesolve(H, PSI, TS, method=cd.CrankNicolson(steps=2)).final_state
        np.testing.assert_allclose(value, known, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_memory_is_flat_in_the_steps():
    n = 64

    def temporary(steps):
        def loss(u):
            x = np.linspace(-1, 1, n)
            hop = cd.linalg.diagonals([np.ones(n - 1)] * 2, (-1, 1))
            H = cd.constant(hop) + cd.modulated(
                lambda t, p: p[0] * jnp.sin(p[1] * t), cd.linalg.diagonals(x), u
            )
            psi = cd.sesolve(H, np.ones(n), [0.0, 1.0], method=cd.CrankNicolson(steps)).final_state
            return jnp.abs(psi[0]) ** 2

        u = jax.ShapeDtypeStruct((2,), float)
        return jax.jit(jax.grad(loss)).lower(u).compile().memory_analysis().temp_size_in_bytes

    few, many = temporary(100), temporary(5000)
    # A step has a time, a length, a slot and their gradients.
    assert many - few < 100 * 4900
    assert few < 100 * 100 + 40 * 16 * n


RING = cd.linalg.kron((N,), {0: np.roll(np.eye(N), 1, 0) + np.roll(np.eye(N), -1, 0)})


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: cd.CrankNicolson(steps=0), ValueError, "steps"),
        (lambda: cd.CrankNicolson(bandwidth=-1), ValueError, "bandwidth"),
        (lambda: solve(A2, bandwidth=1), ValueError, "has entries 2 away"),
        (lambda: solve(cd.linalg.operator(lambda x: x, N)), ValueError, "nothing says"),
        (lambda: solve(cd.timecallable(lambda t, p: A1)), ValueError, "nothing says"),
        (lambda: solve(np.triu(A1)), ValueError, "not Hermitian at t = 0.1"),
        (
            lambda: solve(cd.linalg.operator(lambda x: RING @ x, N), bandwidth=2),
            Exception,
            "further than 2 from",
        ),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()


def solve(H, **more):
    return cd.sesolve(H, PSI, TS, method=cd.CrankNicolson(steps=1, **more))
