"""Values of sesolve and propagator: closed forms, SciPy, and everything that a call may look like."""

from collections.abc import Callable

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qutip
import scipy.sparse
from scipy.special import jv

import cdiffeq as cd
from tests.schrodinger.reference import (
    X,
    Z,
    amplitude,
    coherent,
    destroy,
    exact,
    hermitian,
    integrated,
    random,
)

RNG = np.random.default_rng(2)
H0, H1, H2 = (hermitian(RNG, 3) for _ in range(3))
RAISE = random(RNG, 3, 3)
EDGES, VALUES = np.array([0.2, 0.5, 0.9, 1.4]), np.array([0.7, -1.1, 0.4])
OTHER, OTHERS = np.array([-0.3, 0.5, 0.6]), np.array([0.4 - 0.9j, 1.0 + 0.2j])
PSI = 2 * random(RNG, 2, 3)  # not normalised


def controlled() -> cd.Hamiltonian:
    """Real and complex controls, the latter in a pair that is Hermitian as a whole."""
    H = cd.constant(H0) + cd.pwc(EDGES, VALUES, H1) + cd.pwc(OTHER, OTHERS, RAISE)
    return H + cd.pwc(OTHER, OTHERS.conj(), RAISE.conj().T)


def controlled_at(t: float) -> np.ndarray:
    u, v = amplitude(EDGES, VALUES, t), amplitude(OTHER, OTHERS, t)
    return H0 + u * H1 + v * RAISE + np.conj(v) * RAISE.conj().T


def chirp(t, p):
    return jnp.cos(p * t**2)


JUMPS = [*EDGES, *OTHER]

TIMES = {
    "inside slices": [0.1, 0.2001, 0.3, 0.55, 1.3],
    "on edges": [0.2, 0.5, 0.6, 0.9, 1.4],
    "from before to after": [-1.0, 0.0, 0.45, 1.45, 2.5],
    "outside": [2.0, 2.1, 2.5, 2.6, 3.0],
    "equal times": [0.1, 0.1, 0.5, 0.5, 1.0],
    "one slice": [0.91, 0.95, 1.0, 1.1, 1.3],
    "no time at all": [0.5, 0.5, 0.5, 0.5, 0.5],
}


# Closed forms and numbers with 15 digits: see each problem.


def test_rabi():
    # P1 = W^2 / (W^2 + D^2) sin^2(sqrt(W^2 + D^2) t / 2)
    W, D = 1.0, 0.5
    H = [[-D / 2, W / 2], [W / 2, D / 2]]
    result = cd.sesolve(H, [1.0, 0.0], [0.0, 3.0], exp_ops=[np.diag([0.0, 1.0])])
    np.testing.assert_allclose(result.expects[0, 1], 0.791001898019905, rtol=1e-14)


def sweep_and_pulse(t, p):
    return p[0] * t + p[1] / jnp.cosh(t)


def test_landau_zener_in_finite_time():
    # By parabolic cylinder functions, from t = -10 to 10.
    H = cd.constant(X / 2) + cd.modulated(sweep_and_pulse, Z / 2, np.array([1.0, 0.0]))
    result = cd.sesolve(H, [1.0, 0.0], [-10.0, 10.0], rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(result.final_state[0], 0.433541789218931, rtol=0, atol=2e-11)


def test_rosen_zener():
    # P = sech^2(pi D / 2) sin^2(pi W / 2)
    W, D = 1.0, 0.5
    H = cd.constant(D / 2 * Z) + cd.modulated(sweep_and_pulse, X / 2, np.array([0.0, W]))
    result = cd.sesolve(H, [1.0, 0.0], [-40.0, 40.0], rtol=1e-10, atol=1e-10)
    P = (np.sin(np.pi * W / 2) / np.cosh(np.pi * D / 2)) ** 2
    np.testing.assert_allclose(P, 0.569933963793377, rtol=1e-14)
    np.testing.assert_allclose(abs(result.final_state[1]) ** 2, P, rtol=0, atol=4e-10)


def test_jaynes_cummings():
    # P_e = 1/2 + 1/2 sum_n p_n cos(2 g t sqrt(n + 1)), g = 1, a coherent field of 10 photons
    n = 50
    a, lower = destroy(n), np.array([[0.0, 0.0], [1.0, 0.0]])  # from excited to ground
    H = np.kron(lower.T, a) + np.kron(lower, a.T)
    psi0 = np.kron([1.0, 0.0], coherent(np.sqrt(10), n))
    excited = np.kron(np.diag([1.0, 0.0]), np.eye(n))
    ts = [0.0, 0.5, 5.0, 2 * np.pi * np.sqrt(10)]
    expects = cd.sesolve(H, psi0, ts, exp_ops=[excited]).expects[0]
    known = [1.0, 0.0596369141696303, 0.499992649273064, 0.720515325342363]
    np.testing.assert_allclose(expects, known, rtol=0, atol=2e-13)


def test_kerr_cat():
    # Yurke and Stoler: after t = pi / (2 K) a coherent state is a superposition of two.
    n, alpha, K = 40, 2.0, 1.0
    psi = cd.sesolve(K * np.diag(np.arange(n) ** 2.0), coherent(alpha, n), [0.0, np.pi / (2 * K)])
    phase = np.exp(0.25j * np.pi)
    cat = (coherent(alpha, n) / phase + coherent(-alpha, n) * phase) / np.sqrt(2)
    np.testing.assert_allclose(psi.final_state, cat, rtol=0, atol=3e-13)


def test_kerr_oscillator():
    # <a> = alpha exp(|alpha|^2 (exp(-i chi t) - 1)), H = chi/2 a^+2 a^2
    n, chi = 40, 1.0
    k = np.arange(n)
    H = np.diag(chi / 2 * k * (k - 1))
    result = cd.sesolve(H, coherent(2.0, n), [0.0, 0.3], exp_ops=[destroy(n)])
    known = 0.633987660034393 - 1.54799464064508j
    np.testing.assert_allclose(result.expects[0, 1], known, rtol=0, atol=1e-13)


def test_tight_binding_walk():
    # psi_k = (-i)^k J_k(2 t)
    hopping = scipy.sparse.diags_array([np.ones(200), np.ones(200)], offsets=[1, -1])
    psi0 = np.zeros(201)
    psi0[100] = 1
    psi = np.asarray(cd.sesolve(hopping, psi0, [0.0, 20.0]).final_state[100:])
    k = np.arange(101)
    np.testing.assert_allclose(psi, (-1j) ** k * jv(k, 40.0), rtol=0, atol=1e-13)
    known = [0.00736689058423729, -0.119383362782261, 0.10408594976565, 0.130780545285167]
    np.testing.assert_allclose(psi[[0, 10, 30, 40]], known, rtol=0, atol=1e-13)


def test_free_gaussian_packet():
    # psi = (2 pi s^2)^(-1/4) (1 + i t/(2 s^2))^(-1/2) exp(-(x - p t)^2 / (4 s^2 (1 + i t/(2 s^2)))
    #       + i p (x - p t/2)) on a periodic grid
    n, length, s, p = 128, 40.0, 1.0, 2.0
    x = -14 + length / n * np.arange(n)
    k = 2 * np.pi * np.fft.fftfreq(n, length / n)
    F = np.fft.fft(np.eye(n), norm="ortho")

    def packet(t):
        spread = 1 + 1j * t / (2 * s**2)
        exponent = -((x - p * t) ** 2) / (4 * s**2 * spread) + 1j * p * (x - p * t / 2)
        return (2 * np.pi * s**2) ** -0.25 / np.sqrt(spread) * np.exp(exponent)

    kinetic = F.conj().T @ np.diag(k**2 / 2) @ F
    kinetic = (kinetic + kinetic.conj().T) / 2
    psi = cd.sesolve(kinetic, packet(0.0), [0.0, 3.0]).final_state
    np.testing.assert_allclose(psi, packet(3.0), rtol=0, atol=1e-12)


# Against SciPy.


@pytest.mark.parametrize("step", [1, -1], ids=["forward", "backward"])
@pytest.mark.parametrize("name", TIMES)
def test_piecewise_constant_is_exact(name: str, step: int):
    ts = TIMES[name][::step]
    result = cd.sesolve(controlled(), PSI, ts, exp_ops=[H1, RAISE])
    expected = exact(controlled_at, PSI, ts, JUMPS)
    np.testing.assert_allclose(result.states, expected, rtol=0, atol=1e-13)
    np.testing.assert_array_equal(result.ts, ts)
    np.testing.assert_array_equal(result.final_state, result.states[-1])
    expects = [np.einsum("tbi,ij,tbj->bt", expected.conj(), E, expected) for E in (H1, RAISE)]
    np.testing.assert_allclose(result.expects, expects, rtol=0, atol=1e-11)
    # One exponential for each stretch between neighbouring times or edges, and no other.
    lengths = np.diff(sorted({*ts, *(t for t in JUMPS if min(ts) < t < max(ts))}))
    pieces = int(np.sum(lengths > 0))
    assert vars(result.stats) == dict(
        steps=pieces, rejected_steps=0, exponentials=pieces, matvecs=2 * pieces
    )


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, -1], ids=["forward", "backward"])
@pytest.mark.parametrize("name", TIMES)
def test_smooth_and_piecewise_constant(name: str, step: int):
    ts = TIMES[name][::step]
    H = controlled() + cd.modulated(chirp, H2, 3.0)
    result = cd.sesolve(H, PSI, ts, rtol=1e-9, atol=1e-9)
    at = lambda t: controlled_at(t) + np.cos(3 * t**2) * H2
    expected = integrated(at, PSI, ts, JUMPS)
    error = np.linalg.norm(result.states - expected, axis=-1)
    assert np.all(error <= 1e-9 + 1e-9 * np.linalg.norm(PSI, axis=-1))
    assert result.success


@pytest.mark.slow
def test_shapes_of_batches():
    ts = [0.0, 0.5, 1.0]
    single = cd.sesolve(controlled(), PSI[0], ts, exp_ops=[H1])
    assert single.states.shape == (3, 3) and single.expects.shape == (1, 3)
    assert single.final_state.shape == (3,)
    psi0 = np.broadcast_to(PSI, (4, 2, 3))
    many = cd.sesolve(controlled(), psi0, ts, exp_ops=[H1, H0])
    assert many.states.shape == (3, 4, 2, 3) and many.expects.shape == (2, 4, 2, 3)
    assert many.final_state.shape == (4, 2, 3)
    np.testing.assert_allclose(many.states[:, 3, 0], single.states, rtol=0, atol=1e-14)
    np.testing.assert_allclose(many.expects[0, 1, 0], single.expects[0], rtol=0, atol=1e-13)
    none = cd.sesolve(H0, np.zeros((0, 3)), ts)
    assert none.states.shape == (3, 0, 3) and none.expects.shape == (0, 0, 3)


def test_a_batch_is_not_changed_by_its_neighbours():
    # Vectors of very different norm: the tolerance holds for each.
    psi0 = np.stack([PSI[0], 1e-6 * PSI[0], 0 * PSI[0]])
    H = cd.constant(H0) + cd.modulated(chirp, H2, 3.0)
    states = cd.sesolve(H, psi0, [0.0, 1.0], rtol=1e-8, atol=1e-14).final_state
    expected = integrated(lambda t: H0 + np.cos(3 * t**2) * H2, psi0, [0.0, 1.0])[-1]
    error = np.linalg.norm(states - expected, axis=-1)
    assert np.all(error <= 1e-8 * np.linalg.norm(psi0, axis=-1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "H, psi0",
    [
        (X, [1, 0]),
        (X.tolist(), np.array([1.0, 0.0])),
        (jnp.asarray(X), jnp.array([1.0 + 0j, 0.0])),
        (scipy.sparse.csr_matrix(X), (1.0, 0.0)),
        (qutip.sigmax(), qutip.basis(2, 0)),
        (cd.constant(X), np.array([1.0, 0.0], np.float32)),
        (cd.pwc([-1.0, 9.0], [1.0], X), [1, 0]),
        (cd.timecallable(lambda t, p: jnp.asarray(X)), [1, 0]),
    ],
    ids=lambda a: type(a).__name__,
)
def test_inputs(H, psi0):
    result = cd.sesolve(H, psi0, [0, 1], exp_ops=[qutip.sigmaz(), scipy.sparse.csr_array(Z)])
    expected = [np.cos(1.0), -1j * np.sin(1.0)]
    np.testing.assert_allclose(result.final_state, expected, rtol=0, atol=2e-8)
    np.testing.assert_allclose(result.expects[:, -1], [np.cos(2.0)] * 2, rtol=0, atol=4e-8)
    assert result.states.dtype == jnp.complex128


@pytest.mark.slow
def test_against_qutip():
    H = [qutip.Qobj(H0), [qutip.Qobj(H2), lambda t: np.cos(3 * t**2)]]
    psi0 = qutip.Qobj(PSI[0]).unit()
    options = {"atol": 1e-12, "rtol": 1e-12, "method": "vern9", "nsteps": 10**5}
    ts = [0.0, 0.4, 1.0]
    expected = qutip.sesolve(H, psi0, ts, e_ops=[qutip.Qobj(H1)], options=options).expect[0]
    ours = cd.constant(H0) + cd.modulated(chirp, H2, 3.0)
    result = cd.sesolve(ours, psi0, ts, exp_ops=[H1], rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(result.expects[0], expected, rtol=0, atol=1e-9)


@pytest.mark.slow
def test_dtype_follows_the_data():
    for psi, H, dtype in [
        (np.complex64, np.float32, jnp.complex64),
        (np.float64, np.float32, jnp.complex128),
        (np.complex64, np.float64, jnp.complex128),
    ]:
        result = cd.sesolve(X.astype(H), np.ones(2, psi), [0.0, 1.0], exp_ops=[Z])
        assert result.states.dtype == result.expects.dtype == dtype
        assert result.ts.dtype == jnp.finfo(dtype).dtype
    # A Python number is weak, as everywhere in JAX.
    H = cd.modulated(lambda t, p: 0.5 * jnp.cos(p * t), X.astype(np.float32), 2.0)
    assert cd.sesolve(H, np.ones(2, np.complex64), [0, 1]).states.dtype == jnp.complex64
    assert cd.propagator(X.astype(np.float32), [0.0, 1.0]).dtype == jnp.complex64


# The propagator.


@pytest.mark.parametrize("step", [1, -1], ids=["forward", "backward"])
def test_propagator(step: int):
    ts = TIMES["from before to after"][::step]
    U = cd.propagator(controlled(), ts)
    assert U.shape == (5, 3, 3)
    np.testing.assert_array_equal(U[0], np.eye(3))
    expected = exact(controlled_at, np.eye(3), ts, JUMPS).swapaxes(1, 2)
    np.testing.assert_allclose(U, expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(
        U @ U.conj().swapaxes(1, 2), np.stack([np.eye(3)] * 5), rtol=0, atol=1e-13
    )


def test_forward_then_backward_returns():
    H = controlled() + cd.modulated(chirp, H2, 3.0)
    ts = np.array(TIMES["from before to after"])
    there = cd.sesolve(H, PSI, ts, method=cd.Magnus(6, steps=3))
    back = cd.sesolve(H, there.final_state, ts[::-1], method=cd.Magnus(6, steps=3))
    # Steps are symmetric in time, so that this is not a matter of tolerance.
    np.testing.assert_allclose(back.states[::-1], there.states, rtol=0, atol=2e-13)


# Special cases.


@pytest.mark.slow
@pytest.mark.parametrize(
    "H, at",
    [
        (cd.constant(np.zeros((3, 3))), lambda t: 0 * H0),
        (cd.constant(2.0 * np.eye(3)), lambda t: 2.0 * np.eye(3)),
        (cd.constant(np.ones((3, 3))), lambda t: np.ones((3, 3))),  # eigenvalues 0, 0, 3
        (cd.constant(1e-200 * H0), lambda t: 0 * H0),
        (cd.constant(300.0 * H0), lambda t: 300.0 * H0),
        (cd.constant(1e9 * np.eye(3)), lambda t: 1e9 * np.eye(3)),
        (H0 + cd.pwc([0.0, 1.0], [0.0], H1), lambda t: H0),
    ],
    ids=["zero", "multiple of one", "degenerate", "tiny", "large", "large shift", "zero control"],
)
def test_special_matrices(H: cd.Hamiltonian, at: Callable):
    states = cd.sesolve(H, PSI, [0.0, 0.4, 1.0]).states
    expected = exact(at, PSI, [0.0, 0.4, 1.0])
    # A phase of 1e9 is known to 1e9 eps.
    size = max(1.0, np.linalg.norm(at(0.0), 2))
    np.testing.assert_allclose(states, expected, rtol=0, atol=1e-13 * size)


@pytest.mark.slow
def test_one_dimension():
    H = cd.constant([[0.5]]) + cd.modulated(lambda t, p: jnp.cos(t), [[1.0]])
    psi = cd.sesolve(H, [2.0], [0.0, 1.5], rtol=1e-11, atol=1e-11).final_state
    np.testing.assert_allclose(psi, 2 * np.exp(-1j * (0.75 + np.sin([1.5]))), rtol=0, atol=3e-11)
    psi = cd.sesolve([[0.5]], [[2.0], [1.0]], [0.0, 1.5]).final_state
    np.testing.assert_allclose(psi, np.exp(-0.75j) * np.array([[2.0], [1.0]]), rtol=0, atol=1e-15)


@pytest.mark.slow
def test_no_time():
    result = cd.sesolve(controlled(), PSI, [0.3])
    np.testing.assert_array_equal(result.states, PSI[None])
    assert result.stats.steps == 0 and result.stats.exponentials == 0
    result = cd.sesolve(controlled() + cd.modulated(chirp, H2, 3.0), PSI, [0.3] * 5)
    np.testing.assert_array_equal(result.states, np.stack([PSI] * 5))
    assert result.stats.steps == 0 and result.stats.exponentials == 0


# Matrices that are not Hermitian.


@pytest.mark.slow
def test_decay():
    decay = H0 - 0.3j * np.diag([0.0, 1.0, 4.0])
    H = decay + cd.pwc(EDGES, VALUES, H1)
    ts = TIMES["from before to after"]
    states = cd.sesolve(H, PSI, ts, hermitian=False).states
    expected = exact(lambda t: decay + amplitude(EDGES, VALUES, t) * H1, PSI, ts, EDGES)
    np.testing.assert_allclose(states, expected, rtol=0, atol=2e-13)
    with_drive = H + cd.modulated(chirp, H2, 3.0)
    states = cd.sesolve(with_drive, PSI, ts, hermitian=False, rtol=1e-9, atol=1e-9).states
    at = lambda t: decay + amplitude(EDGES, VALUES, t) * H1 + np.cos(3 * t**2) * H2
    expected = integrated(at, PSI, ts, EDGES)
    # Where states shrink, errors do too; before t = 0 and after, here, some grow: see max |psi|.
    largest = np.max(np.linalg.norm(expected, axis=-1))
    error = np.linalg.norm(states - expected, axis=-1)
    assert np.all(error <= 1e-9 + 1e-9 * largest)


@pytest.mark.slow
def test_hermitian_or_not_makes_no_difference_to_the_value():
    ts = TIMES["inside slices"]
    one = cd.sesolve(controlled(), PSI, ts).states
    other = cd.sesolve(controlled(), PSI, ts, hermitian=False).states
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-14)


# Transformations of the value, and the progress meter.


@pytest.mark.slow
def test_jit_and_vmap():
    ts = jnp.array(TIMES["inside slices"])

    def states(u, psi0, t):
        H = cd.constant(H0) + cd.pwc(EDGES, u, H1)
        return cd.sesolve(H, psi0, ts.at[-1].set(t)).states

    us, ends = jnp.stack([VALUES, -VALUES]), jnp.array([1.3, 0.8])
    psi0 = jnp.asarray(PSI)
    jitted = jax.jit(states)
    one = jnp.stack([jitted(us[i], psi0, ends[i]) for i in range(2)])
    for u, end, got in zip(us, ends, one, strict=True):
        at = lambda t, u=u: H0 + amplitude(EDGES, u, t) * H1
        expected = exact(at, PSI, [*TIMES["inside slices"][:-1], float(end)], EDGES)
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-13)
    many = jax.jit(jax.vmap(jax.vmap(states, (None, 0, None), 1), (0, None, 0)))(us, psi0, ends)
    np.testing.assert_allclose(many, one, rtol=0, atol=1e-14)


@pytest.mark.slow
def test_vmap_over_adaptive_solves():
    def final(w):
        H = H0 + cd.modulated(chirp, H2, w)
        return cd.sesolve(H, PSI, [0.0, 1.0], rtol=1e-8, atol=1e-8).final_state

    ws = jnp.array([1.0, 9.0])
    many = jax.vmap(final)(ws)
    for w, got in zip(ws, many, strict=True):
        expected = integrated(lambda t, w=w: H0 + np.cos(w * t**2) * H2, PSI, [0.0, 1.0])[-1]
        assert np.all(np.linalg.norm(got - expected, axis=-1) <= 1e-8 * 20)


@pytest.mark.slow
def test_progress_meter(capsys):
    H = cd.constant(H0) + cd.pwc(np.linspace(0, 1, 501), np.ones(500), H1)
    meter = diffrax.TextProgressMeter(minimum_increase=0.1)
    shown = cd.sesolve(H, PSI, [0.0, 1.0], progress=meter)
    shown.states.block_until_ready()
    jax.effects_barrier()
    text = capsys.readouterr().out
    assert "%" in text and "100.00%" in text
    silent = cd.sesolve(H, PSI, [0.0, 1.0])
    jax.effects_barrier()
    assert capsys.readouterr().out == ""
    np.testing.assert_array_equal(shown.states, silent.states)


@pytest.mark.slow
def test_nothing_is_called_back_without_a_meter():
    def states(u, **kwargs):
        H = cd.constant(H0) + cd.pwc(EDGES, u, H1)
        return cd.sesolve(H, PSI, [0.0, 1.0], throw=False, **kwargs).states

    program = jax.jit(states).lower(VALUES).as_text()
    assert "callback" not in program
    meter = diffrax.TextProgressMeter()
    program = jax.jit(lambda u: states(u, progress=meter)).lower(VALUES).as_text()
    assert "callback" in program


@pytest.mark.slow
def test_result_prints_shapes_and_counts():
    text = repr(cd.sesolve(H0, PSI, [0.0, 1.0], exp_ops=[H1]))
    for part in ("complex128[2, 2, 3]", "complex128[1, 2, 2]", "steps=1", "exponentials=1"):
        assert part in text
