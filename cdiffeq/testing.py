"""Conformance checks. Of derivative rules: what is wrong, in which argument and mode, and how far off.

With dy = A dx + B conj(dx) = J dx to first order, a rule owes

    jvp    J v                      compared with finite differences of f along v
    vjp    ct -> g                  Re sum(g v) compared with Re sum(ct J v), J v from the same
    both                            Re sum(ct jvp(v)) = Re sum(vjp(ct) v), to rounding

for random complex v and ct (real ones where the argument or the output is real). Of linear solvers: that
each solves what the rule of `cd.linalg.solve` asks it to.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import PRNGKeyArray

from cdiffeq.linalg import _operator
from cdiffeq.linalg._solve import factorize, solve
from cdiffeq.linalg._solver import Solver

# Central differences: df/dt = sum_k c_k (f(k h) - f(-k h)) / h, k = 1, 2, ..., of order 8, and of
# order 6 on the same values, to see how far the first has converged.
_ORDER_8 = (4 / 5, -1 / 5, 4 / 105, -1 / 280)
_ORDER_6 = (3 / 4, -3 / 20, 1 / 60, 0.0)

# Values of f are taken to be right to so many eps of their largest entry. Of such an error twice
# the sum of |c_k|, 2.1, arrives in the difference.
_NOISE_IN_EPS = 16
_NOISE_GAIN = 2 * sum(abs(c) for c in _ORDER_8)

# A finite difference judges a derivative only if its noise is below this fraction of it.
_RESOLVED = 1e-2

_MODES = ("jvp", "vjp", "hvp")
_BOTH = "jvp and vjp"


def check_rule(
    f: Callable[..., Any],
    *args: Any,
    modes: Sequence[str] = ("jvp", "vjp"),
    rtol: float | None = None,
    atol: float = 0.0,
    pairing_rtol: float | None = None,
    key: PRNGKeyArray | None = None,
) -> None:
    r"""Raises `AssertionError` if the derivatives of `f` at `args` are wrong, and names the worst.

    **What is checked**, for each floating-point array in `args` by itself (any pytrees, real and
    complex; integers, booleans and whatever isn't an array are held fixed) and each output:

    - `"jvp"`: `jax.jvp` along a random direction against central differences of order 8;
    - `"vjp"`: `jax.vjp` of a random cotangent against the same differences, and that the gradient
      of each argument has that argument's shape and dtype. A real input gets a real gradient: JAX
      does not check this of a `custom_vjp`;
    - both given: the pairing identity `Re sum(ct * jvp(v)) = Re sum(vjp(ct) * v)`;
    - `"hvp"`: the second derivative, `jax.jvp` of the gradient of `Re sum(ct * f)` against central
      differences of that gradient;
    - that the function returns the same value under differentiation, and that nothing is NaN or
      infinite.

    Directions are complex for complex arguments, with nothing assumed holomorphic. They move each
    real and imaginary part on its own: if `f` wants a Hermitian matrix, check
    `lambda A: f(A + A.conj().T)`.

    **Step sizes.** Up to four are tried, relative to the norm of the argument and absolute; one
    that fits the rule settles it, so that a bad step does not condemn a right rule. A step whose
    rounding noise hides the derivative settles nothing, unless none does better (the derivative
    is then zero to rounding).

    **Tolerances.** Errors are measured against the largest entry of the finite difference, or for
    `"vjp"` against norm(ct) norm(J v). `rtol` is sqrt(eps) of the coarsest dtype in play by
    default (1.5e-8 for complex128, 3.5e-4 for complex64), where order 8 leaves eps^(8/9) on
    functions of scale one; `atol` adds to the noise of the finite differences, which is known from
    eps, the size of f and the step. `pairing_rtol` is 1000 eps by default: pass your solver's
    tolerance if the tangent and the adjoint are themselves solved to one.

    **Modes.** A function whose rule is a `custom_vjp` has no jvp: check it with `modes=("vjp",)`.
    `key`, a JAX random key, changes the directions; without it they are always the same.

    **Errors**: `AssertionError` for a wrong rule, with a line for each mistake, worst first, and
    for a mode that `f` cannot be differentiated in. `ValueError` for unknown modes, for arguments
    or outputs without floating-point arrays, and where f itself isn't finite at `args`.
    **Cost**: for each argument 8 evaluations of f if the first step settles it, a jvp, and a vjp
    per output; f is compiled by `jax.jit`.

    For `"vjp"` the two figures shown are Re sum(ct J v) and Re sum(g v).

    >>> @jax.custom_vjp
    ... def times(a, b):
    ...     return a * b
    >>> times.defvjp(lambda a, b: (a * b, (a, b)), lambda ab, ct: (ct * ab[1], -ct * ab[0]))
    >>> check_rule(times, 1 + 2j, 3 - 1j, modes=("vjp",))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    AssertionError: check_rule: 1 mistake
      vjp, argument 1, output: expected -1.74469, got 1.74469, relative error 1.6e+00; ...
    """
    if not modes or isinstance(modes, str) or set(modes) - set(_MODES):
        raise ValueError(f"check_rule: modes={modes!r} should be a tuple with some of {_MODES}")
    rule = _Rule(f, args, key)
    rtol = rule.eps**0.5 if rtol is None else rtol
    pairing_rtol = 1000 * rule.eps if pairing_rtol is None else pairing_rtol

    mistakes: list[_Mistake] = []
    tangents: list[list[np.ndarray]] = []
    gradients: list[list[np.ndarray]] = []
    differences = _differences(rule, rule.f, rule.y)
    if "jvp" in modes:
        values, tangents = _tangents("jvp", rule, rule.f)
        mistakes += _value_mistakes("jvp", rule, values, pairing_rtol)
        mistakes += _tangent_mistakes("jvp", rule, rule.y_names, tangents, differences, rtol, atol)
    if "vjp" in modes:
        values, gradients = _gradients(rule)
        mistakes += _value_mistakes("vjp", rule, values, pairing_rtol)
        mistakes += _dtype_mistakes(rule, gradients)
        mistakes += _gradient_mistakes(rule, gradients, differences, rtol, atol)
    if tangents and gradients:
        mistakes += _pairing_mistakes(rule, tangents, gradients, pairing_rtol)
    if "hvp" in modes:
        mistakes += _second_mistakes(rule, rtol, atol)
    if mistakes:
        mistakes.sort(key=lambda m: np.nan_to_num(m.error, nan=np.inf), reverse=True)
        lines = [f"{m.mode}, {m.argument}, {m.output}: {m.text}" for m in mistakes]
        count = "1 mistake" if len(lines) == 1 else f"{len(lines)} mistakes, worst first"
        raise AssertionError("\n  ".join([f"check_rule: {count}", *lines]))


class _Rule:
    """The function under test as one of a list of arrays, with random directions in and out.

    x, y: its arguments and outputs; v, ct: a random direction of norm 1 for each.
    """

    def __init__(self, f: Callable[..., Any], args: tuple, key: PRNGKeyArray | None):
        paths_and_leaves, tree = jax.tree_util.tree_flatten_with_path(args)
        leaves = [leaf for _, leaf in paths_and_leaves]
        moved = [i for i, leaf in enumerate(leaves) if _is_inexact(leaf)]

        self.y_names: list[str] = []

        def outputs(x: list) -> list:
            full = list(leaves)
            for i, value in zip(moved, x, strict=True):
                full[i] = value
            out = jax.tree_util.tree_leaves_with_path(f(*tree.unflatten(full)))
            out = [(path, leaf) for path, leaf in out if _is_inexact(leaf)]
            # Known once f has been traced.
            self.y_names[:] = [_name("output", path) for path, _ in out]
            return [leaf for _, leaf in out]

        paths = [paths_and_leaves[i][0] for i in moved]
        self.x_names = [_name(f"argument {path[0].idx}", path[1:]) for path in paths]
        self.x = [np.asarray(jnp.asarray(leaves[i])) for i in moved]
        self.f = jax.jit(outputs)
        self.y = [np.asarray(y) for y in self.f(self.x)]
        self.pull = jax.jit(lambda x, ct: _pull(self.f, x, ct))
        for what, arrays in (("arguments", self.x), ("outputs", self.y)):
            if not any(array.size for array in arrays):
                raise ValueError(f"check_rule: the {what} hold no floating-point numbers")
        for name, y in zip(self.y_names, self.y, strict=True):
            if not np.isfinite(y).all():
                raise ValueError(f"check_rule: {name} of f is not finite at these arguments")

        rng = np.random.default_rng(0 if key is None else np.asarray(jax.random.key_data(key)))
        self.v = [_random_like(x, rng) for x in self.x]
        self.ct = [_random_like(y, rng) for y in self.y]
        # The coarsest dtype in play decides what can be asked.
        self.eps = max(float(jnp.finfo(a.dtype).eps) for a in self.x + self.y)


def _pull(f: Callable[[list], list], x: list, ct: list) -> tuple[list, list]:
    y, pull = jax.vjp(f, x)
    return y, pull(ct)[0]


def _name(start: str, path: tuple) -> str:
    return start + jax.tree_util.keystr(path)


def _is_inexact(leaf: Any) -> bool:
    if isinstance(leaf, jax.Array | np.ndarray | np.generic):
        return jnp.issubdtype(leaf.dtype, jnp.inexact)
    return isinstance(leaf, float | complex)


def _random_like(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random array of norm 1 and the dtype of `array`."""
    random = np.asarray(rng.normal(size=array.shape))
    if np.iscomplexobj(array):
        random = random + 1j * np.asarray(rng.normal(size=array.shape))
    return np.asarray(random / (_norm(random) or 1.0), array.dtype)


def _alone(arrays: list[np.ndarray], index: int) -> list[np.ndarray]:
    return [a if i == index else np.zeros_like(a) for i, a in enumerate(arrays)]


def _norm(array: ArrayLike) -> float:
    return float(np.linalg.norm(np.ravel(array)))


def _largest(array: ArrayLike) -> float:
    return float(np.max(np.abs(array), initial=0.0))


def _pairing(ct: ArrayLike, v: ArrayLike) -> np.floating:
    """JAX's pairing of a cotangent with a tangent: nothing is conjugated."""
    return np.sum(np.multiply(ct, v)).real


# The derivatives that the rule gives.


def _run(mode: str, function: Callable, *args: Any) -> Any:
    """The result in NumPy arrays; whatever goes wrong is a fault of the mode."""
    try:
        return jax.tree.map(np.asarray, function(*args))
    except Exception as error:
        message = f"check_rule: f has no {mode}, or one that fails. {type(error).__name__}: {error}"
        if mode != "vjp":
            message += "\nA function whose rule is a custom_vjp has no jvp: leave it out of `modes`"
        raise AssertionError(message) from error


def _tangents(mode: str, rule: _Rule, f: Callable[[list], list]) -> tuple[list, list]:
    """For the direction of each argument: f(x) and J v, lists of arrays."""
    push = jax.jit(lambda x, v: jax.jvp(f, (x,), (v,)))
    pairs = [_run(mode, push, rule.x, _alone(rule.v, j)) for j in range(len(rule.v))]
    return [value for value, _ in pairs], [tangent for _, tangent in pairs]


def _gradients(rule: _Rule) -> tuple[list, list]:
    """For the cotangent of each output: f(x) and the gradients, lists of arrays."""
    pairs = [_run("vjp", rule.pull, rule.x, _alone(rule.ct, o)) for o in range(len(rule.ct))]
    return [value for value, _ in pairs], [gradient for _, gradient in pairs]


# The derivatives that finite differences give.


class _Difference(NamedTuple):
    """A finite difference of one output along one direction."""

    value: ArrayLike
    noise: float  # its error from rounding
    spread: float  # how far the orders 6 and 8 lie apart


# From an argument's index: the differences of all outputs, for one step size after another.
_Differences = Callable[[int], Iterator[list[_Difference]]]


def _differences(rule: _Rule, f: Callable[[list], list], y: list[np.ndarray]) -> _Differences:
    """Central differences of f, whose value at x is y.

    Each is computed when first asked for, and kept: most rules need no second step.
    """

    def values(j: int, t: float) -> list[np.ndarray]:
        point = list(rule.x)
        point[j] = np.asarray(point[j] + t * rule.v[j], point[j].dtype)
        # In double precision, where the difference of two single-precision numbers is exact.
        return [np.asarray(y, np.result_type(y.dtype, np.float64)) for y in f(point)]

    @functools.cache
    def at_step(j: int, h: float) -> list[_Difference]:
        pairs = [(values(j, k * h), values(j, -k * h)) for k in range(1, 5)]
        found = []
        with np.errstate(all="ignore"):  # a step may leave the domain of f; another may not
            for o, value in enumerate(y):
                jumps = [(plus[o] - minus[o]) / h for plus, minus in pairs]
                eighth, sixth = (np.tensordot(c, jumps, 1) for c in (_ORDER_8, _ORDER_6))
                # What rounding does to the values of f, and through f to the points.
                rounding = _NOISE_IN_EPS * _largest(value) + _norm(rule.x[j]) * _largest(eighth)
                noise = _NOISE_GAIN * rule.eps * rounding / h
                found.append(_Difference(eighth, noise, _largest(eighth - sixth)))
        return found

    return lambda j: (at_step(j, h) for h in _steps(rule, j))


def _steps(rule: _Rule, j: int) -> list[float]:
    """Step sizes along the direction of argument j, which has norm 1."""
    # Truncation, h^8, meets rounding, eps / h.
    h = rule.eps ** (1 / 9)
    size = _norm(rule.x[j]) or 1.0
    relative = [h * size, h * size / 16]
    return relative if 1 / 4 < size < 4 else [*relative, h, h / 16]


# The two compared.


class _Mistake(NamedTuple):
    mode: str
    argument: str
    output: str
    text: str
    error: float = np.inf


class _Comparison(NamedTuple):
    """What the rule gave, and what a finite difference makes of it."""

    got: ArrayLike
    expected: ArrayLike
    scale: float
    noise: float
    spread: float

    @property
    def error(self) -> float:
        return _largest(np.subtract(self.got, self.expected))

    @property
    def uncertainty(self) -> float:
        return self.noise + self.spread

    @property
    def resolved(self) -> bool:
        return self.noise <= _RESOLVED * self.scale

    def fits(self, rtol: float, atol: float) -> bool:
        return self.error <= rtol * self.scale + self.noise + atol

    def mistake(self, mode: str, argument: str, output: str, note: str = "") -> _Mistake:
        got, expected = np.asarray(self.got), np.asarray(self.expected)
        worst = np.unravel_index(np.argmax(np.abs(got - expected)), got.shape)
        if worst:
            output += f"[{', '.join(str(i) for i in worst)}]"
        scale = self.scale or 1.0
        error = self.error / scale
        text = (
            f"expected {expected[worst]:.6g}, got {got[worst]:.6g}, relative error "
            f"{error:.1e}; the finite difference itself is good to {self.uncertainty / scale:.0e}"
        )
        return _Mistake(mode, argument, output, text + note, error)


def _judge(comparisons: Iterable[_Comparison], rtol: float, atol: float) -> _Comparison | None:
    """None for a right rule; for a wrong one the comparison with the best finite difference."""
    seen = []
    for comparison in comparisons:
        if comparison.resolved and comparison.fits(rtol, atol):
            return None
        seen.append(comparison)
    # Where no step tells the derivative from its own noise, it has to vanish to within that noise.
    candidates = [c for c in seen if c.resolved] or seen
    best = min(candidates, key=lambda c: np.nan_to_num(c.uncertainty, nan=np.inf))
    return None if not best.resolved and best.fits(rtol, atol) else best


def _tangent_mistakes(
    mode: str,
    rule: _Rule,
    y_names: list[str],
    tangents: list[list[np.ndarray]],
    differences: _Differences,
    rtol: float,
    atol: float,
) -> Iterator[_Mistake]:
    """J v against its finite difference, entry by entry."""
    for j, tangent in enumerate(tangents):
        for o, y_name in enumerate(y_names):
            wrong = _judge(
                (
                    _Comparison(
                        tangent[o], d[o].value, _largest(d[o].value), d[o].noise, d[o].spread
                    )
                    for d in differences(j)
                ),
                rtol,
                atol,
            )
            if wrong:
                yield wrong.mistake(mode, rule.x_names[j], y_name)


def _gradient_mistakes(
    rule: _Rule,
    gradients: list[list[np.ndarray]],
    differences: _Differences,
    rtol: float,
    atol: float,
) -> Iterator[_Mistake]:
    """Re sum(g v) against Re sum(ct J v), for ct and v of norm 1."""

    def comparisons(o: int, j: int, ct: ArrayLike, g: ArrayLike) -> Iterator[_Comparison]:
        got = _pairing(g, rule.v[j])
        for d in differences(j):
            difference = d[o]
            expected, scale = _pairing(ct, difference.value), _norm(difference.value)
            yield _Comparison(got, expected, scale, difference.noise, difference.spread)

    for o, gradient in enumerate(gradients):
        for j, g in enumerate(gradient):
            ct = rule.ct[o]
            wrong = _judge(comparisons(o, j, ct, g), rtol, atol)
            if wrong:
                other = _judge(comparisons(o, j, ct.conj(), g.conj()), rtol, atol)
                note = "" if other else _OTHER_PAIRING
                yield wrong.mistake("vjp", rule.x_names[j], rule.y_names[o], note)


_OTHER_PAIRING = (
    ". It would be right for PyTorch, whose pairing is Re sum(conj(ct) J v): for JAX conjugate "
    "the cotangent that comes in and the gradient that goes out"
)


def _pairing_mistakes(
    rule: _Rule, tangents: list[list[np.ndarray]], gradients: list[list[np.ndarray]], rtol: float
) -> Iterator[_Mistake]:
    """Re sum(ct J v), with J v from the jvp, against Re sum(g v)."""
    for o, gradient in enumerate(gradients):
        for j, g in enumerate(gradient):
            forward, reverse = _pairing(rule.ct[o], tangents[j][o]), _pairing(g, rule.v[j])
            scale = max(_norm(tangents[j][o]), _norm(g))
            # A derivative that vanishes is left with the rounding of f's own value.
            floor = _largest(rule.y[o]) / (_norm(rule.x[j]) or 1.0)
            error = float(abs(forward - reverse))
            if not error <= rtol * (scale + floor):
                text = (
                    f"Re sum(ct jvp(v)) = {forward:.6g}, but Re sum(vjp(ct) v) = {reverse:.6g}, "
                    f"relative error {error / scale:.1e}"
                )
                yield _Mistake(_BOTH, rule.x_names[j], rule.y_names[o], text, error / scale)


def _dtype_mistakes(rule: _Rule, gradients: list[list[np.ndarray]]) -> Iterator[_Mistake]:
    for j, (name, x) in enumerate(zip(rule.x_names, rule.x, strict=True)):
        for y_name, gradient in zip(rule.y_names, gradients, strict=True):
            if gradient[j].dtype != x.dtype:
                text = f"the gradient is {gradient[j].dtype}, the argument {x.dtype}"
                yield _Mistake("vjp", name, y_name, text)


def _value_mistakes(
    mode: str, rule: _Rule, values: list[list[np.ndarray]], rtol: float
) -> Iterator[_Mistake]:
    """The function returns under differentiation what it returns without."""
    for o, (name, y) in enumerate(zip(rule.y_names, rule.y, strict=True)):
        error, scale = max(_largest(value[o] - y) for value in values), _largest(y)
        if not error <= rtol * scale:
            text = f"under {mode} the value of f itself is another, by {error:.1e}"
            yield _Mistake(mode, "any argument", name, text, error / (scale or 1.0))


def _second_mistakes(rule: _Rule, rtol: float, atol: float) -> Iterator[_Mistake]:
    """The jvp of x -> g, the gradient of Re sum(ct f(x)), against finite differences of g."""

    def gradient(x: list) -> list:
        return rule.pull(x, rule.ct)[1]

    g = _run("hvp", gradient, rule.x)
    _, tangents = _tangents("hvp", rule, gradient)
    names = [f"gradient of {name}" for name in rule.x_names]
    differences = _differences(rule, gradient, g)
    return _tangent_mistakes("hvp", rule, names, tangents, differences, rtol, atol)


def check_linear_solver(solver: Solver, A: Any, *, rtol: float | None = None) -> None:
    r"""Raises `AssertionError` if `solver` doesn't do with `A` what `cd.linalg.solve` asks of a solver.

    **What is checked**, with random right sides: `norm(b - M x) <= rtol norm(b)` for M = A, A^T and A^H,
    from one `factorize` that was passed through `jax.jit`; for a complex vector and for several columns of
    the dtype of A; with a guess that is wrong; the dtype of x; x = 0 for b = 0; that no number comes of a
    NaN in b, or of a matrix of zeros. Derivatives need no check: their rule belongs to `solve`, and all that
    it asks of a solver is these solves.

    **Arguments**: `A`, a regular matrix or operator that the solver is meant for, as in `cd.linalg.solve`.
    `rtol`: 1000 n eps by default, n the size of A; pass an iterative solver's tolerance.

    >>> check_linear_solver(cd.linalg.LU(), np.array([[0.0, 2j], [1.0, 1.0]]))
    """
    operator = _operator.as_operator("A", A)
    matrix = np.asarray(operator.to_dense())
    n, dtype = len(matrix), matrix.dtype
    rtol = 1000 * n * float(jnp.finfo(dtype).eps) if rtol is None else rtol
    factors = jax.jit(lambda A: factorize(A, solver))(operator)
    kinds = {"A": matrix, "A^T": matrix.T, "A^H": matrix.conj().T}
    all_kinds = jax.jit(
        lambda F, b: (F.solve(b), F.solve_transposed(b), F.solve_conjugate_transposed(b))
    )
    rng = np.random.default_rng(0)
    vector = _random_like(np.zeros(n, np.result_type(dtype, np.complex64)), rng)
    columns = _random_like(np.zeros((n, 2), dtype), rng)
    for b in (vector, columns):
        for (name, M), x in zip(kinds.items(), all_kinds(factors, b), strict=True):
            _require_solution(f"{name} x = b, b {b.dtype}{list(b.shape)}", M, x, b, rtol)

    guess = jnp.ones(n, dtype)
    guessed = jax.jit(lambda A, b: solve(A, b, solver, guess=guess, throw=False)[0])
    b = columns[:, 0]
    _require_solution("A x = b with a guess of ones", matrix, guessed(operator, b), b, rtol)
    zeros = jax.tree.map(lambda a: a * 0 if _is_inexact(a) else a, operator)
    for what, x, expected in (
        ("b = 0", guessed(operator, 0 * b), 0.0),
        ("b = NaN", guessed(operator, np.nan * b), np.nan),
        ("A = 0", guessed(zeros, b), np.nan),
    ):
        if not np.array_equal(x.real, np.full(n, expected), equal_nan=True):
            raise AssertionError(f"check_linear_solver: {what}, and x is {x}, not {expected}")


def _require_solution(what: str, M: np.ndarray, x: Any, b: np.ndarray, rtol: float) -> None:
    form, expected = f"{x.dtype}{list(x.shape)}", f"{np.result_type(M, b)}{list(b.shape)}"
    if form != expected:
        raise AssertionError(f"check_linear_solver: {what}: x is {form}, not {expected}")
    left = np.linalg.norm(b - M @ np.asarray(x), axis=0) / np.linalg.norm(b, axis=0)
    if not np.all(left <= rtol):
        raise AssertionError(
            f"check_linear_solver: {what}: the relative residual is {np.max(left):.1e}, not {rtol:.1e}"
        )
