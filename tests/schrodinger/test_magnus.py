"""Magnus integrators: their order, and that the error of a solve is below its tolerance."""

import jax.numpy as jnp
import numpy as np
import pytest

import cdiffeq as cd
from tests.schrodinger.reference import amplitude, hermitian, integrated, random

RNG = np.random.default_rng(3)
H0, H1, H2 = (hermitian(RNG, 3) for _ in range(3))
PSI = np.stack(
    [s * v / np.linalg.norm(v) for s, v in zip([1.0, 3.0], random(RNG, 2, 3), strict=True)]
)

QUIET = dict(drive=0.0, frequency=1.0, chirp=0.0, pulse=0.0, centre=0.0, width=1.0, slope=0.0)


def envelope(t, p):
    """One function for all problems, so that one program solves them."""
    wave = p["drive"] * jnp.cos(p["frequency"] * t + p["chirp"] * t**2)
    pulse = p["pulse"] * jnp.exp(-(((t - p["centre"]) / p["width"]) ** 2))
    return wave + pulse + p["slope"] * t


def envelope_of(p):
    return lambda t: float(
        p["drive"] * np.cos(p["frequency"] * t + p["chirp"] * t**2)
        + p["pulse"] * np.exp(-(((t - p["centre"]) / p["width"]) ** 2))
        + p["slope"] * t
    )


# Parameters of the envelope, amplitudes of a control, times at which states are saved.
NO = [0.0, 0.0, 0.0]
JUMPS = [0.7, -1.5, 1.1]
EDGES = np.array([0.3, 0.7, 1.2, 2.0])
PROBLEMS = {
    "chirp": (dict(drive=1.0, frequency=2.0, chirp=1.5), NO, [0.0, 1.0, 3.0]),
    "sweep through a crossing": (dict(slope=1.0), NO, [-8.0, 0.5, 8.0]),
    "fast drive": (dict(drive=2.0, frequency=40.0), NO, [0.0, 1.0, 3.0]),
    "jumps on a drive": (dict(drive=1.0, frequency=5.0), JUMPS, [0.0, 1.0, 3.0]),
    "jumps, backward": (dict(drive=1.0, frequency=5.0), JUMPS, [3.0, 1.0, 0.0]),
    "narrow pulse": (dict(pulse=8.0, centre=1.7, width=0.05), NO, [0.0, 1.0, 3.0]),
    "constant": (dict(), NO, [0.0, 1.0, 3.0]),
}


def hamiltonian(name: str, dtype=np.float64) -> cd.Hamiltonian:
    p, values, _ = PROBLEMS[name]
    params = {key: np.asarray(x, dtype) for key, x in (QUIET | p).items()}
    complex_ = np.result_type(dtype, np.complex64)
    H = cd.constant(H0.astype(complex_)) + cd.modulated(envelope, H1.astype(complex_), params)
    return H + cd.pwc(EDGES.astype(dtype), np.array(values, dtype), H2.astype(complex_))


_references: dict[str, np.ndarray] = {}


def reference(name: str) -> np.ndarray:
    if name not in _references:
        p, values, ts = PROBLEMS[name]
        f = envelope_of(QUIET | p)
        at = lambda t: H0 + f(t) * H1 + amplitude(EDGES, values, t) * H2
        _references[name] = integrated(at, PSI, ts, EDGES)
    return _references[name]


def error(name: str, dtype=np.float64, **options) -> tuple[np.ndarray, cd.Result]:
    """The error of every saved state in units of its norm and one, norms (time, batch)."""
    ts = np.array(PROBLEMS[name][2], dtype)
    psi0 = PSI.astype(np.result_type(dtype, np.complex64))
    result = cd.sesolve(hamiltonian(name, dtype), psi0, ts, **options)
    assert result.states.dtype == psi0.dtype
    return np.linalg.norm(result.states - reference(name), axis=-1), result


@pytest.mark.slow
@pytest.mark.parametrize("order, steps", [(2, 64), (4, 16), (6, 8)])
def test_order(order: int, steps: int):
    coarse, _ = error("chirp", method=cd.Magnus(order, steps=steps))
    fine, result = error("chirp", method=cd.Magnus(order, steps=2 * steps))
    measured = np.log2(coarse[-1] / fine[-1])
    np.testing.assert_allclose(measured, order, rtol=0, atol=0.15)
    # Two of the six pins are edges, and the first has no length.
    per_step = {2: 1, 4: 3, 6: 5}[order]
    assert result.stats.exponentials == per_step * result.stats.steps
    assert result.stats.rejected_steps == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
def test_errors_are_below_the_tolerance(name: str):
    norms = np.linalg.norm(PSI, axis=-1)
    counts = []
    for rtol in (1e-4, 1e-6, 1e-8, 1e-10, 1e-11):
        got, result = error(name, rtol=rtol, atol=rtol)
        assert np.all(got <= rtol + rtol * norms), (rtol, got)
        counts.append(int(result.stats.exponentials))
    assert name == "constant" or (counts[0] < counts[1] and sorted(counts[1:]) == counts[1:])


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
def test_single_precision(name: str):
    norms = np.linalg.norm(PSI, axis=-1)
    for rtol in (1e-2, 1e-4, 3e-5):
        got, _ = error(name, np.float32, rtol=rtol, atol=rtol)
        assert np.all(got <= rtol + rtol * norms), (rtol, got)


@pytest.mark.slow
@pytest.mark.parametrize("order", [2, 4, 6])
@pytest.mark.parametrize("name", PROBLEMS)
def test_every_order_keeps_to_the_tolerance(name: str, order: int):
    norms = np.linalg.norm(PSI, axis=-1)
    for rtol in (1e-2, 1e-3, 1e-5) if order == 2 else (1e-2, 1e-3, 1e-5, 1e-7, 1e-9):
        got, _ = error(name, method=cd.Magnus(order), rtol=rtol, atol=rtol, max_steps=10**6)
        assert np.all(got <= rtol + rtol * norms), (rtol, got)


@pytest.mark.slow
def test_no_more_steps_than_it_takes():
    # Five intervals have a length, and there are two halves to a step: a quarter of the steps, spread
    # evenly, do not reach the tolerance.
    got, result = error("chirp", rtol=1e-11, atol=1e-11)
    fewer, _ = error("chirp", method=cd.Magnus(6, steps=int(result.stats.steps) // 5 // 4))
    assert np.max(fewer[:, 0]) > 2e-11 > np.max(got[:, 0])


@pytest.mark.slow
@pytest.mark.parametrize("quiet", [0.0, 1.0])
def test_a_pulse_in_the_quiet_is_not_overlooked(quiet: float):
    # A fiftieth of the time is the longest step, so that a pulse as long is seen.
    norms = np.linalg.norm(PSI, axis=-1)
    p = QUIET | dict(pulse=40.0, centre=2.0 + quiet / 7, width=0.02)
    H = cd.constant(0.01 * H0) + cd.modulated(
        envelope, H1, {k: np.asarray(x) for k, x in p.items()}
    )
    H = H + cd.pwc(EDGES, np.array(NO), H2)
    f = envelope_of(p)
    ts = [0.0, 1.7, 3.0]
    expected = integrated(
        lambda t: 0.01 * H0 + f(t) * H1, PSI, ts, [p["centre"] - 0.1, p["centre"]]
    )
    for rtol in (1e-3, 1e-6, 1e-9):
        states = cd.sesolve(H, PSI, ts, rtol=rtol, atol=rtol).states
        got = np.linalg.norm(states - expected, axis=-1)
        assert np.all(got <= rtol + rtol * norms)


def test_stats_of_adaptive_steps():
    _, result = error("narrow pulse", rtol=1e-8, atol=1e-8)
    stats = result.stats
    assert stats.rejected_steps > 0
    # Each attempt takes three steps of five exponentials; accepted halves are done once more.
    attempts = stats.steps // 2 + stats.rejected_steps
    assert stats.exponentials == 5 * (3 * attempts + stats.steps)
    assert stats.matvecs == 2 * stats.exponentials


@pytest.mark.slow
def test_piecewise_constant_by_magnus_is_exact():
    # Jumps are pins: any method is exact in between.
    H = cd.constant(H0) + cd.pwc(EDGES, np.array(JUMPS), H2)
    one = cd.sesolve(H, PSI, [0.0, 1.0, 3.0]).states
    other = cd.sesolve(H, PSI, [0.0, 1.0, 3.0], method=cd.Magnus(6, steps=2)).states
    np.testing.assert_allclose(one, other, rtol=0, atol=2e-14)


@pytest.mark.parametrize("order", [0, 3, 8, "4", None])
def test_refuses_other_orders(order):
    with pytest.raises((ValueError, TypeError), match="order"):
        cd.Magnus(order)


@pytest.mark.parametrize("steps", [0, -1, 2.5])
def test_refuses_other_numbers_of_steps(steps):
    with pytest.raises((ValueError, TypeError), match="steps"):
        cd.Magnus(4, steps=steps)
