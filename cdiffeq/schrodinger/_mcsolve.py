r"""The Lindblad equation by quantum jumps: kets that decay, and jump at random times.

    dpsi/dt = K psi,     K = -i H - sum_j L_j^H L_j / 2,

until ``|psi|^2`` has fallen to a random number, uniform in [0, 1]; then psi becomes ``L_j psi``, normalised,
with probability in proportion to ``|L_j psi|^2``. The mean of ``<psi|E|psi> / <psi|psi>`` is tr(E rho).

A *record* r is the list of a trajectory's jumps, times and channels. Without any normalising, the ket
``phi_r = ... K-evolution ... L_j ... psi0`` has the density ``|phi_r|^2`` of the record as its norm, and

    tr(E rho) = sum_r <phi_r|E|phi_r>,       d tr(E rho) = mean over records of  d<phi_r|E|phi_r> / |phi_r|^2

at fixed r: no jump moves in the derivative, which is smooth and without bias. It is the pathwise derivative
and that of the likelihood of the record in one. Since ``sum_r |phi_r|^2 = |psi0|^2``, E may be replaced by
E - b and ``b |psi0|^2`` be added, with b the mean of all other trajectories, which takes much of the variance
away and adds no bias.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Complex, Float, Inexact, Int, PRNGKeyArray, PyTree

from cdiffeq._arrays import as_array, as_times, is_qobj, require_finite
from cdiffeq._errors import is_traced, poison, raise_if
from cdiffeq.linalg._expm import expm
from cdiffeq.schrodinger._grid import Order, make_grid, order_pins
from cdiffeq.schrodinger._hamiltonian import Constant, Hamiltonian, Pwc
from cdiffeq.schrodinger._lindblad import (
    as_jumps,
    dense_hamiltonian,
    effective,
    joined,
    make_operators,
)
from cdiffeq.schrodinger._magnus import Exponential, Magnus
from cdiffeq.schrodinger._mesolve import as_observables, common_dtype, is_hermitian
from cdiffeq.schrodinger._steps import equal_steps, step_data
from cdiffeq.wirtinger._linear_map import pull_back
from cdiffeq.wirtinger._rule import adjoint_rule

# Times of jumps are found to this power of two of a step.
LEVELS = 24


class Trajectories(eqx.Module):
    """What came of a set of quantum trajectories.

    - `ts`: the saved times, (time,).
    - `expects`: the mean of <E> over the trajectories, (exp_op, time), complex.
    - `stderr`: the standard error of its real and, as imaginary part, of its imaginary part; no derivative.
    - `jumps`: how many jumps each trajectory took, (ntraj,).
    - `success`: whether all went well; if not (seen only with ``throw=False``) all numbers are NaN.
    """

    ts: Float[Array, " time"]
    expects: Complex[Array, "exp_op time"]
    stderr: Complex[Array, "exp_op time"]
    jumps: Int[Array, " ntraj"]
    success: Bool[Array, ""]

    def __repr__(self) -> str:
        shape = f"{self.expects.dtype}{list(self.expects.shape)}"
        return f"Trajectories(expects={shape}, ntraj={self.jumps.shape[0]}, success={self.success})"


def mcsolve(
    H: Any,
    jump_ops: Any,
    psi0: Any,
    ts: Any,
    *,
    key: PRNGKeyArray,
    ntraj: int,
    exp_ops: Sequence[Any],
    method: Exponential | Magnus | None = None,
    max_jumps: int = 100,
    throw: bool = True,
) -> Trajectories:
    r"""Expectation values of an open system as means over quantum-jump trajectories.

    >>> lower, n1 = np.array([[0.0, 1.0], [0.0, 0.0]]), np.diag([0.0, 1.0])
    >>> run = cd.mcsolve(0 * n1, [lower], [0, 1.0], [0, 1.0], key=jax.random.key(0), ntraj=400, exp_ops=[n1])
    >>> error = abs(run.expects[0, 1].real - np.exp(-1))
    >>> bool(error < 3 * run.stderr[0, 1].real), run.stderr[0, 1].real.round(3)
    (True, Array(0.024, dtype=float64))

    **Arguments**

    - `H`, `jump_ops`: as for `mesolve`.
    - `psi0`: the initial ket, (n,), of norm one.
    - `ts`: times at which expectation values are taken, (time,), ascending.
    - `key`: a random key of JAX. The same key gives the same trajectories, and trajectory i is the same
      whatever `ntraj`.
    - `ntraj`: the number of trajectories, at least 2, run side by side.
    - `exp_ops`: matrices (n, n) whose expectation values are wanted.
    - `method`: `Exponential()`, the default, takes one step for each piece of piecewise constant terms;
      smooth ones need ``Magnus(order=2, steps=...)``, so many equal steps between neighbouring pins (saved
      times and edges), in each of which H and the jump operators are those of its middle.
    - `max_jumps`: the most jumps of one trajectory.
    - `throw`: whether a failure raises; if not, `success` is False and the numbers are NaN.

    **Returns** `Trajectories`: `.expects` (exp_op, time), their `.stderr`, `.jumps`. complex64 in,
    complex64 out.

    **Raises** `ValueError` for what doesn't fit, a psi0 that isn't normalised, an H that isn't Hermitian,
    times that don't ascend, and smooth terms without a number of steps; `RuntimeError` when run if a
    trajectory jumps more than `max_jumps` times or a number isn't finite.

    **Derivatives** of `.expects`: jvp, vjp and second derivatives with respect to everything in H and the
    jump operators, psi0 and ts. They are estimates without bias of those of `mesolve` (for Magnus: of its
    steps), by the likelihood ratio and the pathwise derivative of the ket at a fixed record of jumps, with
    the mean of the other trajectories as baseline. **Their variance grows with the number of jumps** that
    the parameter has a part in. A rate that is exactly zero makes no jumps: its derivative misses what they
    would have done.

    **Cost**: 24 exponentials of n x n matrices for each step and for all trajectories, and a product with
    each ket; jumps take 24 more products. A derivative takes an exponential of n x n for each trajectory
    and each stretch between jumps and ends of steps, two for a gradient. **Memory**: ntraj kets; a gradient
    keeps the ket at each stretch, for up to 64 trajectories at a time.

    Source: J. Dalibard, Y. Castin and K. Molmer 1992, doi:10.1103/PhysRevLett.68.580; likelihood ratios:
    P. W. Glynn 1990, doi:10.1145/84537.84552.
    """
    H = dense_hamiltonian(H, "mcsolve")
    n = H.n
    jumps = as_jumps(jump_ops, n, "mcsolve")
    if not jumps:
        raise ValueError("mcsolve: there are no jump operators; use sesolve.")
    psi0 = _ket(psi0, n)
    operators = as_observables("mcsolve", exp_ops, n)
    _, dtype = common_dtype(H, jumps, psi0)
    ts = as_times(ts, jnp.finfo(dtype).dtype)
    if not is_traced(ts) and np.any(np.diff(ts) < 0):
        raise ValueError("mcsolve: ts must ascend.")
    for name, value, least in (("ntraj", ntraj, 2), ("max_jumps", max_jumps, 1)):
        if not isinstance(value, int) or value < least:
            raise ValueError(
                f"mcsolve: {name} must be an integer of at least {least}, got {value!r}."
            )
    whole = joined(H, jumps)
    smooth = [term for term in whole.terms if not isinstance(term, Constant | Pwc)]
    per_interval = 1
    if isinstance(method, Magnus) and method.order == 2 and method.steps is not None:
        per_interval = method.steps
    elif smooth or not (method is None or isinstance(method, Exponential)):
        raise ValueError(
            "mcsolve: method must be Exponential(), for piecewise constant terms, or Magnus(order=2, "
            f"steps=...) with a number of steps; got {method!r}"
            + (f" for {smooth[0]}." if smooth else ".")
        )

    trajectories, failure = _solve(
        H, jumps, jnp.asarray(psi0).astype(dtype), ts, order_pins(whole, ts), operators.astype(dtype), key,
        ntraj, per_interval, max_jumps,
    )  # fmt: skip
    if throw:
        return raise_if(trajectories, ~trajectories.success, _error, *failure)
    return poison(trajectories, ~trajectories.success)


class Path(NamedTuple):
    """What is fixed of many trajectories' records, one row of stretches for each.

    Stretch s lasts from `begin` to `end`, fractions of step `step`; a jump in `channel` may end it (-1:
    none), or the step's end, where a state may be saved in `slot`.
    """

    step: Int[Array, "ntraj s"]
    begin: Float[Array, "ntraj s"]
    end: Float[Array, "ntraj s"]
    channel: Int[Array, "ntraj s"]
    slot: Int[Array, "ntraj s"]


@eqx.filter_jit
def _solve(
    H: Hamiltonian,
    jumps: list[Hamiltonian],
    psi0: Complex[Array, " n"],
    ts: Float[Array, " time"],
    pins: Order,
    operators: Complex[Array, "exp_op n n"],
    key: PRNGKeyArray,
    ntraj: int,
    per_interval: int,
    max_jumps: int,
) -> tuple[Trajectories, tuple[Array, ...]]:
    """The trajectories, and what goes into the message if they failed: (code, max_jumps)."""
    grid = make_grid(joined(H, jumps), ts, pins)

    def middle(operators, t, h):
        H, L = operators(t + h / 2)
        return (h * effective(H, L)).astype(psi0.dtype), L.astype(psi0.dtype), h, is_hermitian(H)

    params, fixed, generator = make_operators(H, jumps, grid, middle)
    steps = equal_steps(grid, per_interval)
    xs, slots = step_data(grid, steps, len(ts))
    held = jax.lax.stop_gradient((params, xs, psi0, operators))
    sampled = _sample(generator, fixed, *held, slots, key, ntraj, len(ts), max_jumps)
    path = _path(sampled, slots, len(ts))
    replayed = Replay(generator, len(ts))
    values = sampled.values.reshape(ntraj, len(operators), len(ts))
    mean = _mean(params, xs, psi0, operators, fixed, values, path, replayed)

    spread = lambda a: jnp.std(a, axis=0, ddof=1) / np.sqrt(ntraj)
    stderr = jax.lax.complex(spread(values.real), spread(values.imag))
    norm = jnp.linalg.norm(held[2])
    checks = [
        ~jnp.all(jnp.diff(ts) >= 0),
        jnp.any(jnp.stack([jnp.any(jnp.diff(c.edges) <= 0) for c in joined(H, jumps).controls] or [False])),
        ~sampled.hermitian,
        ~(jnp.abs(norm - 1) <= _NORMALISED),
        ~jnp.all(jnp.isfinite(values)),  # before the next: a norm of NaN jumps without end
        jnp.any(sampled.number > max_jumps),
    ]  # fmt: skip
    code = jnp.select([jax.lax.stop_gradient(c) for c in checks], range(1, 7), 0)
    result = Trajectories(ts, mean, stderr, sampled.number, code == 0)
    return result, (code, jnp.asarray(max_jumps))


class Sampled(NamedTuple):
    """Records, and the values along them: `times` are units of 2^-LEVELS of the step."""

    values: Complex[Array, "ntraj rest"]
    number: Int[Array, " ntraj"]
    step: Int[Array, "ntraj max_jumps"]
    time: Int[Array, "ntraj max_jumps"]
    channel: Int[Array, "ntraj max_jumps"]
    hermitian: Bool[Array, ""]


def _sample(generator, fixed, params, xs, psi0, operators, slots, key, ntraj, saves, max_jumps):
    """Trajectories from random numbers, all in step."""
    whole = 2**LEVELS
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(ntraj))
    real = psi0.real.dtype

    def draw(count, which):
        one = lambda k, c: jax.random.uniform(jax.random.fold_in(k, 2 * c + which), dtype=real)
        return jax.vmap(one)(keys, count)

    def step(carry, given):
        m, x, slot = given
        psi, u, count, record, saved, hermitian = carry
        hK, L, h, good = generator(params, fixed, x)
        scales = jnp.exp2(-jnp.arange(LEVELS + 1, dtype=real))
        E = expm(scales[:, None, None] * hK[None])
        place = jnp.where(h > 0, 0, whole) * jnp.ones(ntraj, jnp.int32)

        def stretch(level, state):
            """Goes on by 2^-level of the step, where there is room and no jump comes."""
            psi, u, place = state
            size = whole >> level
            trial = psi @ E[level].T
            ok = (place + size <= whole) & (_square(trial) > u)
            return jnp.where(ok[:, None], trial, psi), u, place + jnp.where(ok, size, 0)

        def jump(psi, u, count, record, place):
            """The jump of all those that haven't come to the end of the step."""
            now = place < whole
            after = jnp.einsum("jab,tb->tja", L, psi)
            p = jnp.cumsum(_square(after), axis=1)
            chance = draw(count, 1)[:, None] * p[:, -1:]
            channel = jnp.minimum(jnp.sum(p <= chance, axis=1), L.shape[0] - 1)
            after = jnp.take_along_axis(after, channel[:, None, None], axis=1)[:, 0]
            after = after / jnp.sqrt(_square(after))[:, None]
            row, at = jnp.arange(ntraj), jnp.where(now, count, max_jumps)
            put = lambda a, v: a.at[row, at].set(jnp.asarray(v, a.dtype), mode="drop")
            record = [put(a, v) for a, v in zip(record, (m, place, channel), strict=True)]
            u = jnp.where(now, draw(count + 1, 0), u)
            return jnp.where(now[:, None], after, psi), u, count + now, record

        def again(state):
            psi, u, place, count, record = state
            psi, u, place = jax.lax.fori_loop(1, LEVELS + 1, stretch, (psi, u, place))
            psi, u, count, record = jump(psi, u, count, record, place)
            return psi, u, place, count, record

        def going(state):
            *_, place, count, _ = state
            return jnp.any((place < whole) & (count <= max_jumps))

        psi, u, place = stretch(0, (psi, u, place))
        psi, u, _, count, record = jax.lax.while_loop(going, again, (psi, u, place, count, record))
        values = jnp.einsum("ta,eab,tb->te", psi.conj(), operators, psi) / _square(psi)[:, None]
        saved = saved.at[:, :, slot].set(values, mode="drop")
        return (psi, u, count, record, saved, hermitian & (good | (h == 0))), None

    zeros = jnp.zeros(ntraj, jnp.int32)
    record = [jnp.full((ntraj, max_jumps), len(slots), jnp.int32) for _ in range(3)]
    saved = jnp.zeros((ntraj, len(operators), saves), psi0.dtype)
    psi = jnp.broadcast_to(psi0 / jnp.linalg.norm(psi0), (ntraj, *psi0.shape))
    start = (psi, draw(zeros, 0), zeros, record, saved, jnp.asarray(True))
    numbers = jnp.arange(len(slots), dtype=jnp.int32)
    done, _ = jax.lax.scan(step, start, (numbers, xs, slots))
    _, _, count, record, saved, hermitian = done
    steps, times, channels = record
    return Sampled(saved.reshape(ntraj, -1), count, steps, times, channels, hermitian)


def _square(psi):
    return jnp.sum(psi.real**2 + psi.imag**2, axis=-1)


def _path(sampled, slots, saves):
    """The stretches of each trajectory in their order."""
    steps = len(slots)
    jumps = sampled.step.shape[1]

    def single(count, step, time, channel):
        used = jnp.arange(jumps) < count
        before = jnp.searchsorted(jnp.where(used, step, steps), jnp.arange(steps), side="right")
        # A jump comes after all ends of the steps before it and after the jumps before it.
        at_jumps = jnp.where(used, step + jnp.arange(jumps), steps + jumps)
        at_ends = jnp.arange(steps) + before

        def put(jump, end, fill):
            a = jnp.full(steps + jumps, fill, jnp.int32)
            int32 = lambda v: jnp.asarray(v, jnp.int32)
            return a.at[at_jumps].set(int32(jump), mode="drop").at[at_ends].set(int32(end))

        number = put(step, jnp.arange(steps), steps - 1)
        end = put(time, 2**LEVELS, 2**LEVELS)
        last = jnp.concatenate([jnp.full(1, 2**LEVELS), end[:-1]])
        begin = jnp.where(last == 2**LEVELS, 0, last)
        # What is left over at the end of a row has no length.
        beyond = jnp.arange(steps + jumps) >= steps + count
        begin = jnp.where(beyond, end, begin)
        return (
            number,
            begin,
            end,
            put(channel, -1, -1),
            put(saves, slots, saves),
        )

    real = jnp.finfo(sampled.values.dtype).dtype
    number, begin, end, channel, slot = jax.vmap(single)(
        jnp.minimum(sampled.number, jumps), sampled.step, sampled.time, sampled.channel
    )
    fraction = lambda a: a.astype(real) / 2**LEVELS
    return Path(number, fraction(begin), fraction(end), channel, slot)


@dataclasses.dataclass(frozen=True, eq=False)
class Replay:
    """What is fixed of a replay: the operators of a step, and the number of saved times."""

    generator: Callable[..., Any]
    saves: int


@adjoint_rule(nondiff=("fixed", "values", "path", "replay"))
def _mean(
    params: PyTree[Inexact[Array, "..."]],
    xs: PyTree[Inexact[Array, "steps ..."]],
    psi0: Complex[Array, " n"],
    operators: Complex[Array, "exp_op n n"],
    fixed: PyTree[Array],
    values: Complex[Array, "ntraj exp_op time"],
    path: Path,
    replay: Replay,
) -> Complex[Array, "exp_op time"]:
    """The mean of the values that were sampled; its derivative is that along the records."""
    return jnp.mean(values, axis=0)


def _along_records(args):
    """What the mean moves with, a function of a chunk of trajectories, and all the chunks."""
    _, _, _, _, fixed, values, path, replay = args
    ntraj = len(values)
    size = max(d for d in range(1, min(64, ntraj) + 1) if ntraj % d == 0)
    baseline = (jnp.sum(values, axis=0, keepdims=True) - values) / (ntraj - 1)
    chunk = lambda a: a.reshape(ntraj // size, size, *a.shape[1:])
    chunks = jax.tree.map(chunk, (path, baseline))

    def total(diff, chunk):
        """The sum of <phi|E - b|phi> / |phi|^2 over a chunk, (exp_op, time)."""
        # Of all records together |phi_r|^2 is |psi0|^2, which may move.
        weight = _square(diff[2]) / jax.lax.stop_gradient(_square(diff[2]))
        centre = weight * jnp.sum(chunk[1], axis=0)
        return (_replay(replay, fixed, *diff, *chunk) + centre) / ntraj

    return total, chunks


@_mean.def_tangent
def _tangent(args, out, dargs):
    total, chunks = _along_records(args)

    def add(moved, chunk):
        return moved + jax.jvp(lambda *diff: total(diff, chunk), args[:4], dargs[:4])[1], None

    return jax.lax.scan(add, jnp.zeros_like(out), chunks)[0]


@_mean.def_adjoint
def _adjoint(args, out, g):
    total, chunks = _along_records(args)

    def add(gradients, chunk):
        back = pull_back(lambda *diff: total(diff, chunk), *args[:4])[1](g)
        return jax.tree.map(jnp.add, gradients, back), None

    return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, args[:4]), chunks)[0]


def _replay(replay, fixed, params, xs, psi0, operators, path, baseline):
    """The sum of <phi|E - b|phi> / |phi|^2 over trajectories, (exp_op, time); the divisor doesn't move.

    In a derivative backward only the kets between stretches are kept.
    """
    held = jax.lax.stop_gradient

    def single(psi, given, baseline):
        """One stretch of one trajectory: the ket after it, and what is saved there."""
        step, begin, end, channel, slot = given
        hK, L, h, _ = replay.generator(params, fixed, jax.tree.map(lambda a: a[step], xs))
        psi = expm((end - begin).astype(h.dtype) * hK) @ psi
        # The density of a jump's time, as a fraction of the step, has a factor h.
        rate = jnp.where(h > 0, h, 1)
        jumped = jnp.sqrt(rate / held(rate)) * L[channel] @ psi
        psi = jnp.where(channel >= 0, jumped, psi)
        psi = psi / held(jnp.linalg.norm(psi))
        b = baseline.at[:, slot].get(mode="fill", fill_value=0)
        return psi, jnp.einsum("a,eab,b->e", psi.conj(), operators, psi) - b * jnp.vdot(psi, psi)

    def stretch(psi, given):
        # Beyond the last stretch of the longest trajectory nothing is left to do.
        busy = jnp.any(
            (given.end > given.begin) | (given.slot < replay.saves) | (given.channel >= 0)
        )
        rest = lambda psi, _: (psi, jnp.zeros((len(psi), len(operators)), psi.dtype))
        work = lambda psi, given: jax.vmap(single)(psi, given, baseline)
        return jax.lax.cond(busy, work, rest, psi, given)

    ntraj = len(path.step)
    psi = jnp.broadcast_to(psi0 / held(jnp.linalg.norm(psi0)), (ntraj, *psi0.shape))
    turned = jax.tree.map(lambda a: a.T, path)
    _, values = jax.lax.scan(jax.checkpoint(stretch), psi, turned)
    saved = jnp.zeros((replay.saves, len(operators)), values.dtype)
    return saved.at[turned.slot].add(values, mode="drop").T


_NORMALISED = 1e-4


def _error(code: Any, max_jumps: Any) -> Exception:
    match int(code):
        case 1:
            return ValueError("mcsolve: ts must ascend.")
        case 2:
            return ValueError("mcsolve: the edges of a pwc term must increase.")
        case 3:
            return ValueError("mcsolve: H(t) is not Hermitian. Decay belongs into jump_ops.")
        case 4:
            return ValueError("mcsolve: psi0 must be of norm one.")
        case 5:
            return RuntimeError("mcsolve: a number isn't finite: H, jump_ops or exp_ops hold NaN.")
        case _:
            return RuntimeError(
                f"mcsolve: a trajectory jumped more than max_jumps = {int(max_jumps)} times."
            )


def _ket(psi: Any, n: int) -> Any:
    if is_qobj(psi):
        psi = psi.full()[:, 0]
    psi = psi if isinstance(psi, np.ndarray) or is_traced(psi) else as_array("psi0", psi)
    if jnp.shape(psi) != (n,):
        raise ValueError(f"mcsolve: psi0 must have shape ({n},) as H has; got {jnp.shape(psi)}.")
    require_finite("psi0", psi)
    if not is_traced(psi) and not abs(np.linalg.norm(psi) - 1) <= _NORMALISED:
        raise ValueError(
            f"mcsolve: psi0 must be of norm one; its norm is {np.linalg.norm(psi):.6g}."
        )
    return psi
