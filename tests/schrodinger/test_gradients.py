"""Derivatives with respect to everything, against finite differences, closed forms and plain autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import cdiffeq as cd
from cdiffeq.schrodinger import _sesolve
from cdiffeq.testing import check_rule
from tests.schrodinger.reference import X, Z, hermitian, integrated, random

RNG = np.random.default_rng(4)
EXACT = "exact"
N = 3


def hermitised(A):
    return (A + A.conj().T) / 2


# Everything that a solve may be differentiated with respect to. No time lies on an edge.
PROBLEM = dict(
    drift=random(RNG, N, N),
    control=random(RNG, N, N),
    ladder=random(RNG, N, N),
    drive=random(RNG, N, N),
    edges=np.array([0.2, 0.5, 0.9, 1.4]),
    u=np.array([0.7, -1.1, 0.4]),
    v=random(RNG, 3),
    frequency=np.array(2.0),
    phase=np.array(0.4),
    psi0=random(RNG, 2, N),
    ts=np.array([0.1, 0.3, 0.55, 1.7]),
)


def solve(p, method, is_hermitian=True, **options) -> cd.Result:
    """Real controls, complex ones in a Hermitian pair, and a drive whose phase is closed over."""
    part = hermitised if is_hermitian else (lambda A: A)
    H = cd.constant(part(p["drift"])) + cd.pwc(p["edges"], p["u"], part(p["control"]))
    raising = cd.pwc(p["edges"], p["v"], p["ladder"])
    H = H + raising + cd.pwc(p["edges"], jnp.conj(p["v"]), jnp.conj(p["ladder"]).T)
    if method != EXACT:
        fn = lambda t, w: jnp.cos(w * t + p["phase"])
        H = H + cd.modulated(fn, part(p["drive"]), p["frequency"])
    method = None if method == EXACT else method
    return cd.sesolve(
        H, p["psi0"], p["ts"], method=method, hermitian=is_hermitian, exp_ops=[X3], **options
    )


X3 = random(RNG, N, N)
WEIGHTS = random(RNG, 4, 2, N)


def loss(p, *args, **options):
    """Not holomorphic in the states, and not a function of their moduli alone."""
    result = solve(p, *args, **options)
    overlaps = jnp.sum(WEIGHTS * result.states, axis=-1)
    mixed = result.states**2 * jnp.conj(result.states[::-1]) * WEIGHTS
    return jnp.sum(jnp.abs(overlaps) ** 4) + jnp.sum(mixed.real + mixed.imag**2)


def only(p, method):
    """Without what an exact solve has no use for."""
    unused = ("drive", "frequency", "phase") if method == EXACT else ()
    return {key: jnp.asarray(x) for key, x in p.items() if key not in unused}


@pytest.mark.slow
@pytest.mark.parametrize(
    "method, is_hermitian",
    [
        pytest.param(EXACT, True, id="exact"),
        pytest.param(EXACT, False, id="exact, decay"),
        pytest.param(cd.Magnus(4, steps=2), True, id="magnus"),
        pytest.param(cd.Magnus(4, steps=2), False, id="magnus, decay", marks=pytest.mark.slow),
    ],
)
def test_states_and_expectation_values(method, is_hermitian: bool):
    def f(p):
        result = solve(p, method, is_hermitian)
        return result.states, result.expects

    check_rule(f, only(PROBLEM, method), modes=("jvp", "vjp"), rtol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method, is_hermitian",
    [
        pytest.param(cd.Magnus(4, steps=1), True, id="magnus"),
        pytest.param(EXACT, False, id="decay", marks=pytest.mark.slow),
    ],
)
def test_second_derivatives(method, is_hermitian: bool):
    f = lambda p: loss(p, method, is_hermitian)
    check_rule(f, only(PROBLEM, method), modes=("vjp", "hvp"), rtol=1e-7)


@pytest.mark.slow
def test_reverse_over_reverse_is_forward_over_reverse():
    p = only(PROBLEM, EXACT)
    direction = jax.tree.map(lambda x: _random_like(x), p)
    gradient = jax.grad(lambda p: loss(p, EXACT))

    def along(p):
        pairs = zip(jax.tree.leaves(gradient(p)), jax.tree.leaves(direction), strict=True)
        return sum(jnp.sum(g * d).real for g, d in pairs)

    forward, reverse = jax.jit(
        lambda p: (jax.jvp(gradient, (p,), (direction,))[1], jax.grad(along)(p))
    )(p)
    for key in p:
        scale = jnp.max(jnp.abs(forward[key]))
        np.testing.assert_allclose(reverse[key], forward[key], atol=1e-12 * scale, rtol=0)


def _random_like(x):
    return jnp.asarray(random(RNG, *x.shape) if jnp.iscomplexobj(x) else RNG.normal(size=x.shape))


# Closed forms.


@pytest.mark.slow
def test_amplitude_gradient_by_the_divided_difference():
    # dU/du_j = U_k ... U_{j+1} L(-i dt H_j, -i dt H1) U_{j-1} ... U_1, with SciPy's L.
    H0, H1 = hermitian(RNG, N), hermitian(RNG, N)
    u, dt = RNG.normal(size=5), 0.3
    edges = dt * np.arange(6)
    psi0, bra = random(RNG, N), random(RNG, N)

    def overlap(u):
        psi = cd.sesolve(H0 + cd.pwc(edges, u, H1), psi0, edges[[0, -1]]).final_state
        return jnp.sum(bra.conj() * psi)

    pairs = [scipy.linalg.expm_frechet(-1j * dt * (H0 + x * H1), -1j * dt * H1) for x in u]
    slopes = []
    for j in range(5):
        psi = psi0
        for i, (U, L) in enumerate(pairs):
            psi = (L if i == j else U) @ psi
        slopes.append(bra.conj() @ psi)
    expected = np.array(slopes)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(overlap))(u), expected, rtol=1e-12)
    backward = jax.jit(jax.grad(lambda u: jnp.abs(overlap(u)) ** 2))(u)
    value = bra.conj() @ np.linalg.multi_dot([*[U for U, _ in pairs][::-1], psi0])
    np.testing.assert_allclose(backward, 2 * (np.conj(value) * expected).real, rtol=1e-12)


@pytest.mark.slow
def test_driven_qubit_and_its_hessian():
    # H = eps cos(w t) sigma_x: <z> = cos(2 eps / w sin(w t))
    known = lambda p: jnp.cos(2 * p[0] / p[1] * jnp.sin(p[1] * p[2]))

    def z(p):
        H = cd.modulated(lambda t, w: jnp.cos(w * t), p[0] * X, p[1])
        ts = jnp.stack([0.0, p[2]])
        method = cd.Magnus(6, steps=20)
        result = cd.sesolve(H, [1.0, 0.0], ts, exp_ops=[Z], method=method)
        return result.expects[0, -1].real

    p = jnp.array([0.7, 1.9, 2.3])
    value, gradient, hessian = jax.jit(lambda p: (z(p), jax.grad(z)(p), jax.hessian(z)(p)))(p)
    np.testing.assert_allclose(value, known(p), rtol=0, atol=1e-9)
    np.testing.assert_allclose(gradient, jax.grad(known)(p), rtol=0, atol=1e-8)
    np.testing.assert_allclose(hessian, jax.hessian(known)(p), rtol=0, atol=1e-7)


@pytest.mark.slow
def test_rabi_in_single_precision():
    # P1 = W^2 / (W^2 + D^2) sin^2(sqrt(W^2 + D^2) t / 2)
    def known(p):
        W, D, t = p
        rate = jnp.sqrt(W**2 + D**2)
        return (W / rate * jnp.sin(rate * t / 2)) ** 2

    def P1(p):
        W, D, t = p
        H = W / 2 * cd.constant(X.astype(np.float32)) - D / 2 * cd.constant(Z.astype(np.float32))
        ts = jnp.stack([jnp.zeros_like(t), t])
        psi = cd.sesolve(H, np.array([1, 0], np.complex64), ts).final_state
        assert psi.dtype == jnp.complex64
        return jnp.abs(psi[1]) ** 2

    p = jnp.array([1.0, 0.5, 3.0], jnp.float32)
    gradient, hessian = jax.jit(lambda p: (jax.grad(P1)(p), jax.hessian(P1)(p)))(p)
    assert gradient.dtype == hessian.dtype == jnp.float32
    double = p.astype(jnp.float64)
    np.testing.assert_allclose(gradient, jax.grad(known)(double), rtol=0, atol=3e-6)
    np.testing.assert_allclose(hessian, jax.hessian(known)(double), rtol=0, atol=2e-5)


# Against autodiff through a scan of JAX's own exponential, in all the ways to run a product.


@pytest.mark.slow
@pytest.mark.parametrize(
    "slices, block, parallel, is_hermitian, n, batch",
    [(23, 5, False, True, 8, 1), (22, 7, True, True, 4, 2), (21, 2, False, False, 4, 2)],
    ids=["blocks", "parallel in time", "checkpoints"],
)
def test_products_in_blocks(monkeypatch, slices, block, parallel, is_hermitian, n, batch):
    # The numbers of slices differ so that no test meets the compiled program of another. One state of
    # eight levels: gradients from vectors, but from matrices in the block with the large amplitude.
    monkeypatch.setattr(_sesolve, "block_size", lambda rows, per_step, n: block)
    monkeypatch.setattr(_sesolve, "_in_parallel", lambda n, hermitian: parallel)
    part = hermitised if is_hermitian else (lambda A: A)
    edges = np.linspace(0.0, 2.0, slices + 1)
    saved = [0, 7, 8, slices]
    u = RNG.normal(size=slices)
    u[11] = 20.0
    p = (random(RNG, n, n), random(RNG, n, n), u, random(RNG, batch, n))
    weights = random(RNG, 4, batch, n)

    def score(states):
        return jnp.sum((weights * states).real ** 3) + jnp.sum(jnp.abs(states) ** 4)

    def ours(p):
        H = part(p[0]) + cd.pwc(edges, p[2], part(p[1]))
        return score(cd.sesolve(H, p[3], edges[saved], hermitian=is_hermitian).states)

    def plain(p):
        def step(psi, u):
            X = -1j * (edges[1] - edges[0]) * (part(p[0]) + u * part(p[1]))
            psi = psi @ jax.scipy.linalg.expm(X).T
            return psi, psi

        states = jnp.concatenate([p[3][None], jax.lax.scan(step, p[3], p[2])[1]])
        return score(states[np.array(saved)])

    p = jax.tree.map(jnp.asarray, p)
    value, gradient = jax.jit(jax.value_and_grad(ours))(p)
    known_value, known = jax.jit(jax.value_and_grad(plain))(p)
    np.testing.assert_allclose(value, known_value, rtol=1e-12)
    for g, k in zip(gradient, known, strict=True):
        assert g.dtype == k.dtype
        np.testing.assert_allclose(g, k, atol=1e-11 * np.max(np.abs(k)), rtol=0)
    if parallel:  # the others have their jvp checked above
        tangents = jax.tree.map(_random_like, p)
        _, tangent = jax.jit(lambda p, t: jax.jvp(ours, (p,), (t,)))(p, tangents)
        paired = sum(jnp.sum(g * t).real for g, t in zip(gradient, tangents, strict=True))
        np.testing.assert_allclose(tangent, paired, rtol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("slices, parallel, is_hermitian", [(19, True, True), (18, False, False)])
def test_second_derivatives_in_blocks(monkeypatch, slices, parallel, is_hermitian):
    monkeypatch.setattr(_sesolve, "block_size", lambda rows, per_step, n: 4)
    monkeypatch.setattr(_sesolve, "_in_parallel", lambda n, hermitian: parallel)
    edges = np.linspace(0.0, 2.0, slices + 1)
    drift, control = hermitian(RNG, 4), hermitian(RNG, 4)
    weights = random(RNG, 2, 2, 4)

    def f(u, psi0, scale):
        H = scale * drift + cd.pwc(edges, u, control)
        states = cd.sesolve(H, psi0, edges[[0, -1]], hermitian=is_hermitian).states
        return jnp.sum((weights * states).real ** 3)

    args = (jnp.asarray(RNG.normal(size=slices)), jnp.asarray(random(RNG, 2, 4)), jnp.asarray(0.7))
    check_rule(f, *args, modes=("vjp", "hvp"), rtol=1e-7)


# Adaptive steps.


@pytest.mark.slow
def test_adaptive_gradients_are_as_good_as_the_values():
    # The derivative of what was computed is that of the exact solution to about the tolerance.
    p = only(PROBLEM, "adaptive")
    f = lambda p: loss(p, None, rtol=1e-9, atol=1e-9)
    direction = jax.tree.map(_random_like, p)
    tangent, gradient = jax.jit(lambda p: (jax.jvp(f, (p,), (direction,))[1], jax.grad(f)(p)))(p)
    slopes = {key: jnp.sum(gradient[key] * direction[key]).real for key in p}
    np.testing.assert_allclose(tangent, sum(slopes.values()), rtol=1e-11)
    accurate = jax.jit(lambda p: loss(p, cd.Magnus(6, steps=24)))
    for key, x in p.items():
        h = 1e-3
        at = [accurate(p | {key: x + k * h * direction[key]}) for k in (-2, -1, 1, 2)]
        expected = (at[0] - 8 * at[1] + 8 * at[2] - at[3]) / (12 * h)
        np.testing.assert_allclose(slopes[key], expected, rtol=2e-6, err_msg=key)


# Where derivatives are known to go wrong.


@pytest.mark.slow
def test_degenerate_matrices():
    # Zero, a multiple of one, eigenvalues 0 and 2, and what underflows; with and without a control.
    drifts = [np.zeros((2, 2)), np.eye(2), np.ones((2, 2)), np.diag([1e-160, 0.0])]
    drift, u = jnp.asarray(np.array(drifts) + 0j), jnp.array([0.0, 0.0, 1.0, 0.0])

    def f(drift, u, psi0, ts):
        def states(drift, u):
            H = (drift + drift.conj().T) / 2 + cd.pwc([0.0, 1.0, 2.0], u * jnp.ones(2), X)
            return cd.sesolve(H, psi0, ts).states

        return jax.vmap(states)(drift, u)

    args = (drift, u, jnp.array([0.6, 0.8j]), jnp.array([0.1, 1.7]))
    check_rule(f, *args, modes=("jvp", "vjp", "hvp"), rtol=1e-7)


@pytest.mark.slow
def test_one_dimension_and_no_time():
    def f(drift, u, w, psi0, ts):
        H = drift.real * jnp.eye(1) + cd.pwc([0.0, 1.0], u, np.eye(1))
        H = H + cd.modulated(lambda t, w: jnp.cos(w * t), np.eye(1), w)
        return cd.sesolve(H, psi0, ts, method=cd.Magnus(2, steps=1)).states

    args = [jnp.asarray(0.5 + 0j), jnp.array([0.3]), jnp.asarray(0.7), jnp.array([0.6 - 1j])]
    check_rule(f, *args, jnp.array([0.1, 0.8]), rtol=1e-8)
    # At t0 = t1 only the times and psi0 matter: d psi(t1) / d t1 = -i H psi0.
    t = jnp.array([0.4, 0.4])
    states = lambda t: f(*args, t)
    second = jax.jacfwd(jax.grad(lambda t: jnp.sum(states(t).real)))
    slope, second = jax.jit(lambda t: (jax.jacfwd(states)(t), second(t)))(t)
    rate = -1j * (0.5 + 0.3 + np.cos(0.28)) * args[3]
    np.testing.assert_allclose(slope[1, :, 1], rate, rtol=1e-13)
    np.testing.assert_allclose(slope[1, :, 0], -rate, rtol=1e-13)
    np.testing.assert_array_equal(slope[0], 0)
    assert np.all(np.isfinite(second))


@pytest.mark.slow
def test_zero_states_have_finite_gradients():
    def f(psi0):
        H = cd.constant(Z) + cd.modulated(lambda t, p: jnp.cos(t), X)
        return jnp.sum(cd.sesolve(H, psi0, [0.0, 1.0]).final_state.real)

    gradient = jax.jit(jax.grad(f))
    ones = gradient(jnp.ones((2, 2), complex))
    np.testing.assert_allclose(gradient(jnp.zeros((2, 2), complex)), ones, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_saved_time_on_an_edge():
    H0, H1, psi0 = hermitian(RNG, N), hermitian(RNG, N), random(RNG, N)
    edges = jnp.array([0.0, 0.5, 1.0])

    def final(t, edge):
        H = H0 + cd.pwc(edges.at[1].set(edge), [1.0, -2.0], H1)
        return cd.sesolve(H, psi0, jnp.stack([0.0, t])).final_state

    push = jax.jit(lambda dt, de: jax.jvp(final, (0.5, 0.5), (dt, de)))
    psi, moved = push(1.0, 0.0)
    # One-sided, as the state has a kink there.
    left, right = (-1j * (H0 + u * H1) @ psi for u in (1.0, -2.0))
    distances = [np.linalg.norm(moved - side) for side in (left, right)]
    assert min(distances) < 1e-13 < 0.1 < max(distances)
    # Moved together, time and edge leave the state in the slice before them: nothing is kinked.
    np.testing.assert_allclose(push(1.0, 1.0)[1], left, rtol=1e-12)


@pytest.mark.slow
def test_backward_time():
    p = only(PROBLEM, EXACT) | {"ts": jnp.asarray(PROBLEM["ts"][::-1].copy())}
    check_rule(lambda p: solve(p, EXACT).states, p, modes=("jvp", "vjp"), rtol=1e-8)


# Transformations.


@pytest.mark.slow
def test_vmap_of_gradients():
    p = only(PROBLEM, EXACT)
    f = lambda u, v, drift, psi0: loss(p | dict(u=u, v=v, drift=drift, psi0=psi0), EXACT)
    gradient = jax.grad(f, argnums=(0, 1, 2, 3))
    u, v, psi0 = (jnp.stack([p[k], 0.5 * p[k], -p[k]]) for k in ("u", "v", "psi0"))
    many = jax.jit(jax.vmap(gradient, (0, 0, None, 0)))(u, v, p["drift"], psi0)
    jitted = jax.jit(gradient)
    for i in range(3):
        for g, m in zip(jitted(u[i], v[i], p["drift"], psi0[i]), many, strict=True):
            np.testing.assert_allclose(m[i], g, rtol=1e-11, atol=1e-11)


@pytest.mark.slow
def test_propagator_gradient():
    p = dict(u=jnp.array([0.3, -0.8]), ts=jnp.array([0.1, 0.3, 1.0]))
    f = lambda p: cd.propagator(Z + cd.pwc([0.0, 0.5, 1.2], p["u"], X), p["ts"])
    check_rule(f, p, rtol=1e-8)


@pytest.mark.slow
def test_gradient_of_a_hamiltonian_is_a_hamiltonian():
    H = cd.constant(Z) + cd.pwc([0.0, 0.5], [1.0], X)
    gradient = jax.grad(
        lambda H: jnp.abs(cd.sesolve(H, [1.0, 0.0], [0.0, 0.5]).final_state[1]) ** 2
    )(H)
    assert isinstance(gradient, cd.Hamiltonian)
    f = lambda u: abs((scipy.linalg.expm(-0.5j * (Z + u * X)) @ [1, 0])[1]) ** 2
    expected = (f(1 + 1e-5) - f(1 - 1e-5)) / 2e-5
    np.testing.assert_allclose(gradient.terms[1].values, [expected], rtol=1e-8)


@pytest.mark.slow
def test_a_fit_by_gradient_descent_of_the_exact_problem():
    # The loss and the gradient that one fits with, against DOP853.
    H0, H1 = hermitian(RNG, N), hermitian(RNG, N)
    psi0, ts = random(RNG, N), [0.0, 0.5, 2.0]

    def value(w):
        H = H0 + cd.modulated(lambda t, p: jnp.sin(p * t) / (1 + t), H1, w)
        states = cd.sesolve(H, psi0, ts, rtol=1e-11, atol=1e-11).states
        return jnp.sum(jnp.abs(states[:, 0]) ** 2)

    def known(w):
        states = integrated(lambda t: H0 + np.sin(w * t) / (1 + t) * H1, psi0, ts)
        return np.sum(np.abs(states[:, 0]) ** 2)

    h = 1e-3
    at = [known(1.3 + k * h) for k in (-2, -1, 1, 2)]
    expected = (at[0] - 8 * at[1] + 8 * at[2] - at[3]) / (12 * h)
    np.testing.assert_allclose(jax.grad(value)(1.3), expected, rtol=1e-8)
