"""mesolve: closed forms, SciPy's expm of the Liouvillian, QuTiP, and the derivatives of every method."""

import re

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qutip
import scipy.sparse
from scipy.linalg import expm

import cdiffeq as cd
from cdiffeq.testing import check_rule
from tests.schrodinger.reference import (
    Z,
    amplitude,
    coherent,
    destroy,
    hermitian,
    random,
    stretches,
)

RNG = np.random.default_rng(11)
EDGES, VALUES = np.array([0.2, 0.5, 0.9, 1.4]), np.array([0.7, -1.1, 0.4])
RATES = np.array([0.3, 0.8, 0.5])
TS = [0.0, 0.35, 0.5, 1.1, 2.0]
METHODS = {
    "exponential": cd.Exponential(),
    "taylor": cd.linalg.Taylor(),
    "runge-kutta": diffrax.Tsit5(),
}
SLOW = pytest.mark.slow
MOSTLY_SLOW = [pytest.param(m, marks=() if m == "taylor" else SLOW) for m in METHODS]
SLOW_RUNGE_KUTTA = [pytest.param(m, marks=SLOW if m == "runge-kutta" else ()) for m in METHODS]


def matrices(n: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(n)
    return (hermitian(rng, n), hermitian(rng, n), 0.6 * random(rng, n, n), 0.4 * random(rng, n, n))


def density(rng: np.random.Generator, n: int) -> np.ndarray:
    A = random(rng, n, n)
    return A @ A.conj().T / np.linalg.norm(A) ** 2


def liouvillian(H: np.ndarray, Ls: list[np.ndarray]) -> np.ndarray:
    """Of the rows of rho one after another, written out."""
    one = np.eye(len(H))
    S = -1j * (np.kron(H, one) - np.kron(one, H.T))
    for L in Ls:
        LL = L.conj().T @ L
        S = S + np.kron(L, L.conj()) - np.kron(LL, one) / 2 - np.kron(one, LL.T) / 2
    return S


def exact(n: int, rho0: np.ndarray, ts=TS) -> np.ndarray:
    H0, H1, L, M = matrices(n)
    rhos = {ts[0]: rho0.reshape(-1)}
    for a, b in stretches(ts, EDGES):
        t = (a + b) / 2
        S = liouvillian(H0 + amplitude(EDGES, VALUES, t) * H1, [L, amplitude(EDGES, RATES, t) * M])
        rhos[b] = expm((b - a) * S) @ rhos[a]
    return np.stack([rhos[t].reshape(n, n) for t in ts])


def problem(n: int, values=VALUES, rates=RATES, edges=EDGES):
    H0, H1, L, M = matrices(n)
    return cd.constant(H0) + cd.pwc(edges, values, H1), [L, cd.pwc(edges, rates, M)]


def sech(t, p):
    return p / jnp.cosh(2 * t - 1)


# Values


@pytest.mark.slow
def test_damped_cavity():
    # Stays coherent: <a> = alpha exp(-(i d + k/2) t); with its derivatives in d, k and alpha.
    n, d, k, alpha, t = 20, 0.7, 0.4, 1.1, 1.3
    a = destroy(n)

    def mean(d, k, alpha):
        rho = alpha * jnp.asarray(coherent(1.1, n) / 1.1)
        H = d * jnp.asarray(a.T @ a)
        result = cd.mesolve(
            H, [jnp.sqrt(k) * a], rho, [0.0, t], exp_ops=[a], method=diffrax.Dopri8(), rtol=1e-10
        )
        return result.expects[0, -1]

    value = alpha * np.exp(-(1j * d + k / 2) * t)
    got = mean(d, k, alpha)
    np.testing.assert_allclose(got, value, rtol=0, atol=1e-8)
    slope = jax.jacfwd(mean, argnums=1)(d, k, alpha)
    np.testing.assert_allclose(slope, -t / 2 * value, rtol=0, atol=1e-7)


@pytest.mark.slow
def test_bloch_equations():
    # A qubit with T1 and T2, free: populations decay with T1, coherence with T2 in any rotation.
    T1, T2, w, t = 3.0, 2.0, 1.7, 0.9
    lower = np.array([[0.0, 1.0], [0.0, 0.0]])
    phi = 1 / T2 - 1 / (2 * T1)
    jumps = [lower / np.sqrt(T1), lower.T @ lower * np.sqrt(2 * phi)]
    rho0 = np.array([[0.3, 0.2 - 0.4j], [0.2 + 0.4j, 0.7]])
    rho = cd.mesolve(-w / 2 * Z, jumps, rho0, [0.0, t]).final_state
    known = rho0[0, 1] * np.exp((1j * w - 1 / T2) * t)
    np.testing.assert_allclose(rho[1, 1], 0.7 * np.exp(-t / T1), rtol=1e-13)
    np.testing.assert_allclose(rho[0, 1], known, rtol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("method", SLOW_RUNGE_KUTTA)
def test_against_expm(method: str):
    rho0 = np.stack([density(RNG, 3), density(RNG, 3)])
    E = random(RNG, 3, 3)
    H, jumps = problem(3)
    result = cd.mesolve(H, jumps, rho0, TS, exp_ops=[E], method=METHODS[method], rtol=1e-9)
    known = np.stack([exact(3, rho) for rho in rho0], axis=1)
    tolerance = 3e-8 if method == "runge-kutta" else 1e-13
    np.testing.assert_allclose(result.states, known, rtol=0, atol=tolerance)
    expects = np.einsum("ij,tbji->bt", E, known)
    np.testing.assert_allclose(result.expects[0], expects, rtol=0, atol=10 * tolerance)
    assert result.final_state.shape == (2, 3, 3) and result.success


@pytest.mark.slow
def test_methods_agree_without_the_matrix(monkeypatch):
    monkeypatch.setattr("cdiffeq.schrodinger._mesolve.LARGEST_FORMED", 2)
    H, jumps = problem(5)
    rho0 = density(RNG, 5)
    batch = cd.mesolve(H, jumps, np.stack([rho0, rho0.T]), TS, method=cd.linalg.Taylor()).states
    np.testing.assert_allclose(batch[:, 0], exact(5, rho0), rtol=0, atol=1e-13)
    np.testing.assert_allclose(batch[:, 1], exact(5, rho0.T), rtol=0, atol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("n", [5, 13])
def test_long_pieces_take_many_steps(n: int):
    # With 13 levels the generator isn't formed. Its norm is that of H, and no coherence has died out.
    H0, _, L, _ = matrices(n)
    rho0, L = density(RNG, n), 0.1 * L
    result = cd.mesolve(40 * H0, [L], rho0, [0.0, 2.0], method=cd.linalg.Taylor())
    known = expm(2.0 * liouvillian(40 * H0, [L])) @ rho0.reshape(-1)
    np.testing.assert_allclose(result.final_state.reshape(-1), known, rtol=0, atol=1e-11)
    assert result.stats.steps > 30


@pytest.mark.slow
@pytest.mark.parametrize("method", [None, diffrax.Dopri8()])
def test_smooth_drive_against_qutip(method):
    H0, H1, L, M = matrices(3)
    H = cd.constant(H0) + cd.modulated(sech, H1, 0.8)
    jumps = [L, cd.modulated(sech, M, 0.5)]
    rho0, ts = density(RNG, 3), [0.0, 0.7, 1.5]
    states = cd.mesolve(H, jumps, rho0, ts, method=method, rtol=1e-9, atol=1e-10).states
    q = qutip.Qobj
    drive = lambda p: lambda t: p / np.cosh(2 * t - 1)
    known = qutip.mesolve(
        [q(H0), [q(H1), drive(0.8)]], q(rho0), ts,
        [q(L), qutip.QobjEvo([[q(M), drive(0.5)]])],
        options={"atol": 1e-12, "rtol": 1e-11, "method": "dop853", "nsteps": 100000},
    )  # fmt: skip
    np.testing.assert_allclose(states, [s.full() for s in known.states], rtol=0, atol=2e-8)


@pytest.mark.slow
@pytest.mark.parametrize("method", SLOW_RUNGE_KUTTA)
def test_states_are_density_matrices(method: str):
    H, jumps = problem(4)
    psi = coherent(0.5, 4)
    rtol = 1e-8
    states = np.asarray(
        cd.mesolve(H, jumps, psi, np.linspace(0, 3, 20), method=METHODS[method]).states
    )
    np.testing.assert_array_equal(states, states.conj().swapaxes(1, 2))
    traces = np.einsum("tii->t", states).real
    np.testing.assert_allclose(traces, np.linalg.norm(psi) ** 2, rtol=1e-13)
    assert np.linalg.eigvalsh(states).min() > -10 * rtol
    purity = np.einsum("tij,tji->t", states, states).real
    assert purity[-1] < 0.9  # it isn't all empty


@pytest.mark.slow
def test_kets_qobjs_and_dtypes():
    H, jumps = problem(3)
    ket = np.array([0.6, 0.8j, 0.0])
    rho = np.outer(ket, ket.conj())
    known = cd.mesolve(H, jumps, rho, TS).states
    for same in (ket, qutip.Qobj(ket[:, None]), qutip.Qobj(rho)):
        np.testing.assert_allclose(cd.mesolve(H, jumps, same, TS).states, known, rtol=0, atol=1e-15)
    single = jax.tree.map(
        lambda a: a.astype(np.float32 if a.dtype == np.float64 else np.complex64), (H, jumps, rho)
    )
    for method in METHODS.values():
        states = cd.mesolve(*single, TS, method=method).states
        assert states.dtype == jnp.complex64
        np.testing.assert_allclose(states, known, rtol=0, atol=5e-4)


# Derivatives


@pytest.mark.slow
@pytest.mark.parametrize("method", MOSTLY_SLOW)
def test_derivatives(method: str):
    H0, H1, L, M = matrices(3)
    E = hermitian(RNG, 3)

    def f(H0, H1, values, edges, L, rates, rho0, ts):
        herm = lambda A: (A + A.conj().T) / 2
        H = cd.constant(herm(H0)) + cd.pwc(edges, values, herm(H1))
        jumps = [L, cd.pwc(edges, rates, M)]
        result = cd.mesolve(H, jumps, herm(rho0), ts, exp_ops=[E], method=METHODS[method])
        return result.expects, result.final_state

    args = (H0, H1, VALUES, EDGES, L, RATES, density(RNG, 3), np.array(TS[:2] + TS[3:]))
    rtol = 3e-5 if method == "runge-kutta" else None
    check_rule(jax.jit(f), *args, key=jax.random.key(4), rtol=rtol)


@pytest.mark.slow
def test_derivative_without_the_matrix(monkeypatch):
    monkeypatch.setattr("cdiffeq.schrodinger._mesolve.LARGEST_FORMED", 2)

    def f(values, L, ts):
        H, jumps = problem(3, values)
        return cd.mesolve(H, [L, *jumps], np.eye(3), ts, method=cd.linalg.Taylor()).states

    check_rule(jax.jit(f), VALUES, matrices(3)[2], np.array([0.0, 0.7, 2.0]), key=jax.random.key(5))


@pytest.mark.slow
@pytest.mark.parametrize("method", [cd.Magnus(order=4, steps=3), cd.Magnus(order=6)])
def test_derivatives_of_magnus(method):
    H0, H1, L, M = matrices(2)

    def f(p, q, L):
        H = cd.constant(H0) + cd.modulated(sech, H1, p)
        jumps = [L, cd.modulated(sech, M, q)]
        return cd.mesolve(H, jumps, np.eye(2), [0.0, 1.2], method=method).final_state

    rtol = None if method.steps else 1e-5
    check_rule(jax.jit(f), jnp.array(0.7), jnp.array(0.4), L, key=jax.random.key(6), rtol=rtol)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_second_derivatives(method: str):
    def f(values, rates):
        H, jumps = problem(2, values, rates)
        return cd.mesolve(H, jumps, np.diag([0.7, 0.3]), TS[:3], method=METHODS[method]).final_state

    rtol = 1e-4 if method == "runge-kutta" else None
    check_rule(f, VALUES, RATES, modes=("hvp",), key=jax.random.key(7), rtol=rtol)


@pytest.mark.slow
def test_gradients_through_many_stretches_of_steps():
    # Of sixteen steps at most a state is kept at every fourth; forward mode keeps none.
    H0, H1, L, _ = matrices(8)
    weights = hermitian(RNG, 8)

    def f(values):
        H, method = H0 + cd.pwc(EDGES, values, H1), cd.linalg.Taylor()
        result = cd.mesolve(H, [L], np.eye(8), [0.3, 0.7, 1.1], method=method, max_steps=16)
        return jnp.sum(weights[None] * result.states[1:]).real, result.stats.steps

    direction = jnp.array([0.3, 1.0, -0.6])
    _, moved, steps = jax.jvp(f, (VALUES,), (direction,), has_aux=True)
    assert steps > 8
    gradient = jax.grad(f, has_aux=True)(VALUES)[0]
    np.testing.assert_allclose(gradient @ direction, moved, rtol=1e-11)


@pytest.mark.slow
def test_the_gradient_of_rho0_is_hermitian():
    # The states are linear in rho0, so that the gradient times a Hermitian matrix is their change.
    E = random(RNG, 3, 3)

    def f(rho0):
        return jnp.sum(E * cd.mesolve(H3, [L3], rho0, [0.0, 1.0]).final_state).real

    gradient = jax.grad(f)(jnp.asarray(density(RNG, 3)))
    np.testing.assert_allclose(gradient, gradient.conj().T, rtol=0, atol=1e-15)
    change = hermitian(RNG, 3)
    np.testing.assert_allclose(jnp.sum(gradient * change).real, f(change), rtol=1e-12)


@pytest.mark.slow
def test_vmap_and_jit():
    def population(value):
        H, jumps = problem(3, value * VALUES)
        return cd.mesolve(H, jumps, np.diag([1.0, 0, 0]), [0.0, 1.0], method=cd.linalg.Taylor())

    scales = jnp.array([0.0, 1.0, 30.0])  # of different degrees
    mapped = jax.vmap(jax.value_and_grad(lambda v: population(v).final_state[1, 1].real))(scales)
    for i, scale in enumerate(scales):
        alone = jax.value_and_grad(lambda v: population(v).final_state[1, 1].real)(scale)
        np.testing.assert_allclose([m[i] for m in mapped], alone, rtol=0, atol=1e-12)


@pytest.mark.slow
def test_memory_is_flat_in_slices():
    def temporary(slices):
        edges = np.linspace(0, 1, slices + 1)

        def loss(values):
            H, jumps = problem(6, values, values, edges)
            return (
                cd.mesolve(H, jumps, np.eye(6), [0.0, 1.0], max_steps=2048).final_state[0, 0].real
            )

        compiled = jax.jit(jax.grad(loss)).lower(np.ones(slices)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, many = temporary(16), temporary(1024)
    # Nine numbers for each slice, not a matrix.
    assert many - few < 1024 * 8 * 36 / 4


@pytest.mark.slow
def test_memory_of_a_gradient():
    # Some generators of 8 levels: one step's, its gradient, and what these are made of.
    edges = np.linspace(0, 1, 101)

    def loss(values):
        H, jumps = problem(8, values, values, edges)
        return cd.mesolve(H, jumps, np.eye(8), [0.0, 1.0]).final_state[0, 0].real

    compiled = jax.jit(jax.grad(loss)).lower(np.ones(100)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 16 * 8 * 8**4


# Operators


def ladder(p, q):
    """A mode in a Kerr cavity, driven, with loss and dephasing: as operators or as arrays."""
    a, number = (cd.modes((5,), {0: s}) for s in ("a", "n"))
    kerr = cd.linalg.operator(scipy.sparse.csr_matrix(np.diag(np.arange(5.0) ** 2)))
    H = cd.constant(0.2 * kerr + 0.5 * number) + cd.pwc(EDGES, p, a + a.adjoint())
    return H, [0.7 * a, cd.pwc(EDGES, q, number)]


@pytest.fixture
def unformed(monkeypatch):
    monkeypatch.setattr("cdiffeq.schrodinger._mesolve.LARGEST_FORMED", 2)
    monkeypatch.setattr("cdiffeq.schrodinger._lindblad_action._FEW", 0)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["taylor", "runge-kutta"])
def test_operators(method: str, unformed):
    rho0, ts = np.stack([density(RNG, 5), density(RNG, 5)]), [0.3, 1.2]
    H, jumps = ladder(VALUES, RATES)
    sparse = cd.linalg.operator(scipy.sparse.csr_matrix(random(RNG, 5, 5)))
    function = cd.linalg.operator(lambda x: 0.3j * jnp.roll(x, 1), 5)
    more = [sparse, function] if method == "taylor" else []
    got = cd.mesolve(H, [*jumps, *more], rho0, ts, method=METHODS[method], rtol=1e-9).final_state
    rho, dense = rho0.reshape(2, -1).T, lambda A: np.asarray(A.to_dense())
    for a, b in stretches(ts, EDGES):
        t = (a + b) / 2
        Ls = [jumps[0], jumps[1](t), *more]
        rho = expm((b - a) * liouvillian(dense(H(t)), [dense(L) for L in Ls])) @ rho
    tolerance = 3e-8 if method == "runge-kutta" else 1e-12
    np.testing.assert_allclose(got, rho.T.reshape(2, 5, 5), rtol=0, atol=tolerance)


@pytest.mark.slow
def test_derivatives_with_operators(unformed):
    def f(values, rates, c, rho0, ts):
        H, jumps = ladder(values, rates)
        hops = cd.linalg.diagonals([c, c.conj()], (1, -1))
        jumps = [*jumps, cd.linalg.diagonals([c], (1,))]
        rho0 = (rho0 + rho0.conj().T) / 2
        return cd.mesolve(H + hops, jumps, rho0, ts, method=cd.linalg.Taylor()).states[1:]

    args = VALUES, RATES, random(RNG, 4), density(RNG, 5), np.array([0.0, 0.7, 2.0])
    check_rule(jax.jit(f), *args, key=jax.random.key(8))


@pytest.mark.slow
@pytest.mark.parametrize("as_matrix", [False, True])
def test_operators_are_not_made_dense(as_matrix: bool):
    n = 40
    form = lambda A: A.to_dense() if as_matrix else A
    a, number = (form(cd.modes((n,), {0: s})) for s in ("a", "n"))

    def loss(u):
        H = cd.constant(number) + cd.pwc(EDGES, u, number)
        return cd.mesolve(H, [a], np.eye(n), [0.0, 1.0], method=cd.linalg.Taylor()).final_state[0]

    program = jax.jit(lambda u: jnp.sum(jnp.abs(loss(u)))).lower(VALUES).compile().as_text()
    # Products of matrices are calls of a library, or `dot`.
    assert bool(re.search(r"\bdot\(|__onednn|gemm", program, re.IGNORECASE)) == as_matrix


# Errors


H3, L3 = matrices(3)[0], matrices(3)[2]


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(jump_ops=[np.eye(2)]), r"jump_ops\[0\] must have shape \(3, 3\)"),
        (dict(rho0=np.eye(2)), r"rho0 must have shape \(..., 3, 3\), or \(3,\)"),
        (dict(rho0=np.diag([1.0, 1.0j, 0.0])), "rho0 must be Hermitian"),
        (dict(rho0=np.diag([1.0, np.nan, 0.0])), "rho0 must be finite"),
        (dict(ts=[1.0, 0.0]), "ts must ascend"),
        (dict(exp_ops=[np.eye(2)]), r"exp_ops\[0\] must have shape"),
        (dict(method=cd.linalg.Taylor(), H=cd.modulated(sech, H3, 1.0)), "piecewise constant"),
        (dict(rtol=1e-20), "rtol=1e-20"),
        (dict(max_steps=0), "max_steps must be a positive integer"),
    ],
)
def test_bad_input(change, message):
    given = dict(H=H3, jump_ops=[L3], rho0=np.eye(3), ts=[0.0, 1.0]) | change
    with pytest.raises(ValueError, match=message):
        cd.mesolve(**given)


def test_one_jump_operator_goes_into_a_list():
    with pytest.raises(TypeError, match="put the one in a list"):
        cd.mesolve(H3, cd.constant(L3), np.eye(3), [0.0, 1.0])


@pytest.mark.slow
def test_failures_at_run_time():
    with pytest.raises(ValueError, match=r"not Hermitian at t = 0\.5"):
        cd.mesolve(H3 + 1j * np.eye(3), [L3], np.eye(3), [0.0, 1.0])
    with pytest.raises(RuntimeError, match="max_steps = 3"):
        cd.mesolve(H3, [L3], np.eye(3), [0.0, 9.0], method=diffrax.Tsit5(), max_steps=3)
    with pytest.raises(RuntimeError, match="max_steps = 4"):
        driven = cd.constant(H3) + cd.modulated(sech, H3, 1.0)
        cd.mesolve(driven, [L3], np.eye(3), [0.0, 9.0], method=cd.Magnus(4), max_steps=4)
    failed = cd.mesolve(
        40 * H3, [L3], np.eye(3), [0.0, 9.0], method=cd.linalg.Taylor(), max_steps=3, throw=False
    )
    assert not failed.success and np.isnan(failed.states).all()
    slope = jax.grad(
        lambda L: cd.mesolve(
            H3, [L], np.eye(3), [0.0, 1.0], method=cd.linalg.Taylor(), throw=False
        ).final_state[0, 0].real
    )(L3 * np.nan)  # fmt: skip
    assert np.isnan(slope).all()


def test_failures_of_what_is_traced():
    one, lower = np.eye(2) + 0j, np.diag([1.0], 1)

    @jax.jit
    def final(H, edges, rho0, ts):
        return cd.mesolve(H + cd.pwc(edges, [1.0], Z), [lower], rho0, ts).final_state

    good = dict(H=Z + 0j, edges=np.array([0.0, 1.0]), rho0=0.5 * one, ts=np.array([0.0, 0.5]))
    assert np.all(np.isfinite(final(**good)))
    for bad, message in [
        (dict(ts=np.array([0.5, 0.0])), "ts must ascend"),
        (dict(edges=np.array([1.0, 1.0])), "edges of a pwc term must increase"),
        (dict(rho0=one + lower), "rho0 must be Hermitian"),
        (dict(H=Z + lower + 0j), "not Hermitian at t = "),
        (dict(H=np.nan * Z + 0j), "is not finite"),
    ]:
        with pytest.raises(Exception, match=message):
            jax.block_until_ready(final(**(good | bad)))
