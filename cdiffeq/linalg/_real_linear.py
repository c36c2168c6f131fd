r"""Systems that are linear over the real numbers only: ``A x + B conj(x) = c``.

In real and imaginary parts, x = u + i v and c = s + i t, it is one real system M z = f of twice the size,

    [Re(A + B)   -Im(A - B)] [u]   [s]
    [Im(A + B)    Re(A - B)] [v] = [t],

and everything else is that of `solve`, rule and algorithms. Its adjoint ``M^T w = h`` is, in complex numbers,

    A^H l + B^T conj(l) = g,        g_c = l,    g_A = - l x^H,    g_B = - l x^T.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cdiffeq._arrays import as_array, require_finite
from cdiffeq._errors import is_traced
from cdiffeq._flat import Layout
from cdiffeq.linalg._operator import (
    Function,
    Operator,
    Sparse,
    as_operator,
    from_real_parts,
    is_dense,
    is_function,
    real_parts,
    sparse,
)
from cdiffeq.linalg._solve import factorize, solve
from cdiffeq.linalg._solver import Solver
from cdiffeq.wirtinger._linear_map import hoist


def real_linear_solve(
    A: Any, B: Any, c: Any, solver: Solver | None = None, *, throw: bool = True
) -> Any:
    r"""x with A x + B conj(x) = c, an equation that is linear over the real numbers, not the complex ones.

    Such are the equations of adjoints and of Newton's method for functions that aren't holomorphic, with
    ``A = df/dz`` and ``B = df/dzbar``. Complex Krylov methods fail on them: they take it for granted that the
    image of i x is i times that of x.

    **Arguments**

    - `A`, `B`: real or complex, square; B may be None, for zero. Both dense, (..., n, n); or matrices of
      `scipy.sparse`, BCOO or BCSR matrices, operators of lineax, alone or mixed; or functions
      x -> A x and y -> B y. A function A need be linear over the reals only, and B None then. Functions may
      close over traced values.
    - `c`: of shape (n,), or (..., n, k) for k columns, as in `solve`. For a function A: a pytree of what it
      takes and returns, with real and complex leaves in one precision.
    - `solver`: as in `solve`, for the real system of size 2n in (Re x, Im x), of a pytree all real parts, all
      imaginary parts, real leaves; by default what suits its structure, `GMRES()` for functions. A
      preconditioner acts on vectors of that kind.
    - `throw`: as in `solve`.

    **Returns** x, shaped like c (broadcast against A): complex, in the common precision; for a function, of
    the dtypes of c. With ``throw=False``: (x, report). **Raises** what `solve` does.

    **Derivatives**: those of `solve`: one more solve with the real system or its transpose, which is
    ``A^H l + B^T conj(l) = g``, by the same factors. **Cost**: a real system of twice the size, dense 2 times
    the operations of a complex one of n, and as many numbers to keep.

    >>> A, B = np.array([[2.0, 1j], [0, 1]]), np.array([[0, 1.0], [1j, 0]])
    >>> x = real_linear_solve(A, B, np.array([1.0, 2j]))
    >>> (A @ x + B @ x.conj()).round(12) + 0.0
    Array([1.+0.j, 0.+2.j], dtype=complex128)
    >>> real_linear_solve(lambda x: 2 * x + jnp.conj(x), None, jnp.array([3.0 + 1j])).round(8)
    Array([1.+1.j], dtype=complex128)
    """
    if is_function(A):
        return _solve_of_pytrees(A, B, c, solver, throw)
    if is_function(B):
        raise TypeError("real_linear_solve: B is a function, so A has to be one, too.")
    c = as_array("c", c)
    if A is None:
        raise TypeError(
            "real_linear_solve: A must be a matrix, an operator or a function, got None."
        )
    given = {"A": A} if B is None else {"A": A, "B": B}
    if all(map(is_dense, given.values())):
        blocks = _dense_blocks({name: as_array(name, M) for name, M in given.items()}, c)
        axis = -1 if c.ndim == 1 else -2
        out = solve(blocks, real_parts(c, axis), solver, throw=throw)
    else:
        axis = 0
        operator, c = _operator_of({name: as_operator(name, M) for name, M in given.items()}, c)
        out = factorize(operator, solver)._apply(real_parts(c, axis), False, throw)
    return from_real_parts(out, axis) if throw else (from_real_parts(out[0], axis), out[1])


# The real system, from A and B with their signs: (A, 1), (B, -1). Its blocks are
#     [Re M    -sign Im M]
#     [Im M     sign Re M].


_SIGNS = {"A": 1, "B": -1}


def _dense_blocks(given: dict[str, Array], c: Array) -> Float[Array, "... m m"]:
    n = c.shape[0 if c.ndim == 1 else -2] if c.ndim else 0
    for name, M in given.items():
        if M.ndim < 2 or M.shape[-2:] != (n, n):
            raise _wrong_shape(name, M, c)
        require_finite(name, M)
    terms = [
        jnp.block([[M.real, -_SIGNS[name] * M.imag], [M.imag, _SIGNS[name] * M.real]])
        for name, M in given.items()
    ]
    return terms[0] if len(terms) == 1 else _add(*terms)


def _add(x: Array, y: Array) -> Array:
    """x + y, of batches that broadcast."""
    shape = jnp.broadcast_shapes(x.shape, y.shape)
    return jnp.broadcast_to(x, shape) + jnp.broadcast_to(y, shape)


def _operator_of(given: dict[str, Operator], c: Array) -> tuple[Operator, Array]:
    """The real operator, and c in the common precision."""
    for name, M in given.items():
        if c.ndim not in (1, 2) or M.shape != (c.shape[0], c.shape[0]):
            raise _wrong_shape(name, M, c)
    c = c.astype(jnp.result_type(jnp.complex64, c, *(M.dtype for M in given.values())))
    if all(isinstance(M, Sparse) for M in given.values()):
        return _sparse_blocks(given, c.shape[0]), c
    maps = {name: lambda x, M=M: M.mv(x).astype(x.dtype) for name, M in given.items()}
    return _as_real_operator(_sum(**maps), Layout.of(jax.ShapeDtypeStruct(c.shape[:1], c.dtype))), c


def _sparse_blocks(given: dict[str, Any], n: int) -> Sparse:
    parts = []
    for name, M in given.items():
        sign = _SIGNS[name]
        parts += [(M.data.real, M.row, M.column), (sign * M.data.real, M.row + n, M.column + n)]
        if jnp.iscomplexobj(M.data):
            parts += [
                (M.data.imag, M.row + n, M.column),
                (-sign * M.data.imag, M.row, M.column + n),
            ]
    data, row, column = zip(*parts, strict=True)
    join = jnp.concatenate if any(map(is_traced, (*row, *column))) else np.concatenate
    return sparse(jnp.concatenate(data), join(row), join(column), (2 * n, 2 * n))


def _sum(A: Callable[[Any], Any], B: Callable[[Any], Any] | None = None) -> Callable[[Any], Any]:
    """x -> A(x) + B(conj(x))."""
    if B is None:
        return A
    return lambda x: jax.tree.map(jnp.add, A(x), B(jax.tree.map(jnp.conj, x)))


# Functions of pytrees.


def _solve_of_pytrees(A: Any, B: Any, c: Any, solver: Solver | None, throw: bool) -> Any:
    c = jax.tree.map(lambda leaf: as_array("c", leaf), c)
    layout = Layout.of(c)
    widths = {jnp.finfo(dtype).dtype for dtype in layout.dtypes}
    if len(widths) != 1:
        got = ", ".join(str(dtype) for dtype in layout.dtypes) or "none"
        raise TypeError(f"real_linear_solve: the leaves of c must have one precision, got {got}.")
    M = _as_real_operator(_sum(A, B), layout)
    out = factorize(M, solver)._apply(layout.pack(c), False, throw)
    return layout.unpack(out) if throw else (layout.unpack(out[0]), out[1])


def _as_real_operator(fn: Callable[[Any], Any], layout: Layout) -> Function:
    """fn, of pytrees of this layout, as a map of real vectors."""
    flat = jnp.zeros(layout.size, layout.dtype)
    zeros = layout.unpack(flat)
    form = lambda tree: jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", tree)
    got, expected = form(jax.eval_shape(fn, zeros)), form(zeros)
    if got != expected:
        raise TypeError(
            f"real_linear_solve: A and B must return what they are given, {expected}; got {got}."
        )
    pure, _, consts = hoist(lambda z: layout.pack(fn(layout.unpack(z))), flat)
    size = flat.size, flat.size
    return Function(lambda consts, z: pure(consts, z), consts, size, flat.dtype)


def _wrong_shape(name: str, M: Any, c: Array) -> ValueError:
    return ValueError(
        f"real_linear_solve: A and B must be square, (..., n, n), and c of shape (n,) or (..., n, k); got "
        f"{name} of shape {M.shape} and c of shape {c.shape}."
    )
