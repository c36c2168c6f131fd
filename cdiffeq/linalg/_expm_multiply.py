r"""``y = exp(tA) v``, for one time or a grid of times, by any method of `_action.py`.

y_j = exp((t_j - t_(j-1)) A) y_(j-1),     y_(-1) = v,  t_(-1) = 0
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact, PyTree

from cdiffeq._arrays import as_array, require_finite
from cdiffeq._errors import is_traced
from cdiffeq.linalg._action import Action, act
from cdiffeq.linalg._action_chebyshev import Chebyshev
from cdiffeq.linalg._action_taylor import Taylor
from cdiffeq.linalg._operator import Function, Operator, as_operator, flatten, is_function
from cdiffeq.linalg._padded import padded
from cdiffeq.linalg._spectrum import adjoint_sign


def expm_multiply(A: Any, v: Any, t: Any = 1.0, method: Action | None = None) -> Any:
    r"""exp(tA) v without forming exp(tA), for large or sparse A.

    **Arguments**

    - `A`: real or complex, (n, n): an array, a matrix of `scipy.sparse`, a BCOO or BCSR matrix of
      `jax.experimental.sparse`, an operator of lineax, or a function x -> A x, linear over the complex
      numbers, which may close over traced values.
    - `v`: of shape (n,), or (n, k) for k columns; for a function a pytree of what it acts on, of one dtype.
    - `t`: real or complex, a number or a vector of times in any order. The result then has time as its
      leading axis, and each state is computed from the one before.
    - `method`: `Chebyshev()` for Hermitian and anti-Hermitian A, `Krylov()` or `Taylor()` for any. By default
      `Chebyshev()` where A and t are known when the function is called, the entries of A too, and exp(tA) is
      unitary; and otherwise `Taylor()`. Inside of `jax.jit` and `jax.grad` an A that depends on their
      arguments isn't known: whoever knows that it is Hermitian passes `Chebyshev()`, which is faster.

    **Returns** exp(tA) v, shaped like v, or (times, ...) for a vector of times, in the common dtype of A and
    v, complex if t is, in which precision t is taken, too.
    **Raises** `ValueError` and `TypeError` for shapes and dtypes that don't fit; when run, an error where the
    method can't have the accuracy that it promises: see there.

    **Derivatives** with respect to A, v and t are those of the method's polynomial, to rounding, by a
    recurrence run backwards: nothing is kept whose size grows with its degree. A gradient in A exists on its
    entries alone: of a sparse matrix those that are stored.
    **Cost and memory**: see the methods. A real A with a complex v costs less than a complex one: for
    exp(-itH) with a real H pass H and -1j t.

    >>> H = jnp.array([[0.0, 1.0], [1.0, 0.0]])
    >>> expm_multiply(H, jnp.array([1.0, 0.0]), -1j * jnp.pi / 2).round(12) + 0.0
    Array([0.+0.j, 0.-1.j], dtype=complex128)
    >>> jax.grad(lambda t: jnp.abs(expm_multiply(-1j * H, jnp.array([1.0, 0.0]), t)[1]) ** 2)(0.5)
    Array(0.84147098, dtype=float64, weak_type=True)
    """
    if is_function(A):
        columns, unflatten = flatten("v", v)
        operator = as_operator("A", A, like=v)
        columns, back = columns[:, None], lambda y: unflatten(y[:, 0])
    else:
        operator = as_operator("A", A)
        columns, back = _columns(as_array("v", v), operator.shape)
    require_finite("v", columns)
    if operator.shape[0] != operator.shape[1]:
        raise ValueError(f"expm_multiply: A must be square, got shape {operator.shape}.")
    t = as_array("t", t)
    if t.ndim > 1:
        raise ValueError(f"expm_multiply: t must be a number or a vector, got shape {t.shape}.")
    require_finite("t", t)
    operator = padded(operator)
    method = _default(operator, t) if method is None else method
    if not isinstance(method, Action):
        raise TypeError(f"expm_multiply: method must be Taylor() or the like, got {method!r}.")

    dtype = jnp.result_type(operator.dtype, columns.dtype)
    real = jnp.finfo(dtype).dtype
    complexes = jnp.result_type(real, jnp.complex64)
    t = t.astype(complexes if jnp.iscomplexobj(t) else real)
    columns = columns.astype(jnp.result_type(dtype, t.dtype))
    known = not any(is_traced(leaf) for leaf in jax.tree.leaves((operator, method)))
    with jax.ensure_compile_time_eval() if known else contextlib.nullcontext():
        state = method.init(jax.lax.stop_gradient(operator))
    # Of a function there is nothing by which the same program could be found again.
    run = _run if isinstance(operator, Function) else _compiled_run
    ys = run(operator, columns, t, state, method)
    return back(ys) if t.ndim == 0 else jax.vmap(back)(ys)


def _run(
    operator: Operator,
    v: Inexact[Array, "n k"],
    t: Inexact[Array, "..."],
    state: PyTree[Any],
    method: Action,
) -> Inexact[Array, "... n k"]:
    params, fixed = eqx.partition(operator, eqx.is_inexact_array)
    step = lambda y, h: act(params, y, h, fixed, state, method)[0]
    if t.ndim == 0:
        return step(v, t)
    steps = jnp.diff(t, prepend=jnp.zeros((1,), t.dtype))
    return jax.lax.scan(lambda y, h: (step(y, h),) * 2, v, steps)[1]


_compiled_run = eqx.filter_jit(_run)


def _columns(
    v: Inexact[Array, "..."], shape: tuple[int, int]
) -> tuple[Inexact[Array, "n k"], Callable[[Array], Array]]:
    """v as a matrix, and the way back."""
    if v.ndim not in (1, 2) or v.shape[0] != shape[1]:
        raise ValueError(
            f"expm_multiply: with A of shape {shape}, v must be of shape ({shape[1]},) or "
            f"({shape[1]}, k), got {v.shape}."
        )
    return (v[:, None], lambda y: y[:, 0]) if v.ndim == 1 else (v, lambda y: y)


def _default(A: Operator, t: Array) -> Action:
    """Chebyshev's method where the exponentials are known to be unitary: there it loses no digits."""
    if isinstance(A, Function) or any(is_traced(leaf) for leaf in jax.tree.leaves((A, t))):
        return Taylor()
    with jax.ensure_compile_time_eval():
        sign = adjoint_sign(A)
        unitary = (sign == -1 and not np.any(np.imag(t))) or (sign == 1 and not np.any(np.real(t)))
    return Chebyshev() if unitary else Taylor()
