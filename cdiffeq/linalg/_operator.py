r"""Linear operators: one face for what may stand as A in ``A x``, ``A x = b`` and ``exp(tA) x``.

An operator is a pytree. Its floating and complex arrays are its parameters, in which it can be
differentiated; whoever differentiates ``A x`` in them needs nothing else of A: with ``A = A(p)``,

    d(A x) = A dx + (dA) x,      g_x = A^H g,      g_p = the pull-back of g along  p -> A(p) x.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.experimental.sparse as jsparse
import jax.flatten_util
import jax.numpy as jnp
import lineax as lx
import numpy as np
import scipy.sparse
from jaxtyping import Array, Complex, Float, Inexact, Int, PyTree

from cdiffeq._arrays import as_array, is_qobj, require_finite
from cdiffeq._errors import is_traced
from cdiffeq.wirtinger._linear_map import hoist
from cdiffeq.wirtinger._rule import adjoint_rule


class Operator(eqx.Module):
    """A linear map of vectors of n entries to vectors of m entries, C-linear.

    A kind of operator says how to apply itself (`mv`), what its adjoint is, its shape and its dtype. `mm`,
    its action on several columns, may be given where it is faster than column by column. `disc` says what it
    knows of its spectrum.

    Operators are pytrees. ``A + B``, ``A - B``, ``-A``, ``c * A`` and ``A / c`` are operators, for real and
    complex numbers c; ``A @ x`` applies A to a state or a batch of states, (..., n); `transpose`, `conj` and
    `adjoint` are what they are for matrices.

    >>> X = cd.linalg.kron((2, 2), {0: [[0, 1], [1, 0]]})
    >>> ((X - 2 * X.adjoint()) @ jnp.array([1.0, 0.0, 0.0, 0.0])).astype(int)
    Array([ 0,  0, -1,  0], dtype=int64)
    """

    __array_ufunc__ = None  # so that NumPy numbers and arrays leave + - * to us

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(m, n)."""

    @property
    @abstractmethod
    def dtype(self) -> Any:
        """The dtype of the map; of A x it is the common one with x."""

    @abstractmethod
    def mv(self, x: Inexact[Array, " n"]) -> Inexact[Array, " m"]:
        """A x."""

    @abstractmethod
    def adjoint(self) -> Operator:
        """A^H, the conjugate transpose."""

    def mm(self, X: Inexact[Array, "n k"]) -> Inexact[Array, "m k"]:
        """A X."""
        return jax.vmap(self.mv, 1, 1)(X)

    def to_dense(self) -> Inexact[Array, "m n"]:
        """The matrix of the map."""
        return self.mm(jnp.eye(self.shape[1], dtype=self.dtype))

    def conj(self) -> Operator:
        """The complex conjugate of A, entry by entry."""
        return Conjugate(self)

    def transpose(self) -> Operator:
        """A^T."""
        return self.adjoint().conj()

    def disc(self) -> Disc | None:
        """A disc that holds <x, A x> of all x of norm 1, if A knows one; without derivatives."""
        return None

    def __add__(self, other: Any) -> Operator:
        # What is neither a matrix nor an operator may know how to add one: a Hamiltonian does.
        return NotImplemented if is_function(other) else add(self, other)

    def __radd__(self, other: Any) -> Operator:
        return self if isinstance(other, int) and other == 0 else add(other, self)

    def __sub__(self, other: Any) -> Operator:
        return self + -1 * other

    def __rsub__(self, other: Any) -> Operator:
        return add(other, -self)

    def __neg__(self) -> Operator:
        return self.scaled(jnp.asarray(-1.0, jnp.finfo(self.dtype).dtype))

    def __mul__(self, factor: Any) -> Operator:
        if jnp.ndim(factor) != 0:
            raise TypeError(
                f"An operator is multiplied by numbers, got an array of shape {jnp.shape(factor)}."
            )
        if isinstance(factor, int | float):  # as weak as a number is beside an array
            factor = jnp.asarray(factor, jnp.finfo(self.dtype).dtype)
        elif isinstance(factor, complex):
            factor = jnp.asarray(factor, jnp.result_type(self.dtype, jnp.complex64))
        return self.scaled(jnp.asarray(factor))

    __rmul__ = __mul__

    def __truediv__(self, divisor: Any) -> Operator:
        return self * (1 / divisor)

    def __matmul__(self, x: Any) -> Inexact[Array, "... m"]:
        x = as_array("x", x)
        if not x.shape or x.shape[-1] != self.shape[1]:
            raise ValueError(
                f"An operator of shape {self.shape} acts on states (..., {self.shape[1]}), got {x.shape}."
            )
        columns = self.mm(x.reshape(-1, x.shape[-1]).T)
        return columns.T.reshape(*x.shape[:-1], self.shape[0])

    def scaled(self, factor: Inexact[Array, ""]) -> Operator:
        """factor A."""
        return Sum((factor,), (self,))


def multiplied(a: Inexact[Array, "..."], Y: Inexact[Array, "..."]) -> Inexact[Array, "..."]:
    """a Y. JAX makes a real factor complex, and the product twice the work."""
    if jnp.iscomplexobj(Y) and not jnp.iscomplexobj(a):
        return jax.lax.complex(a * Y.real, a * Y.imag)
    return a * Y


@adjoint_rule
def times(c: Inexact[Array, ""], Y: Inexact[Array, "n k"]) -> Inexact[Array, "n k"]:
    """c Y, with g_c = sum conj(Y) g by columns first: XLA sums all at once one number after the other."""
    return multiplied(c, Y)


@times.def_tangent
def _tangent(args, out, dargs):
    (c, Y), (dc, dY) = args, dargs
    return multiplied(dc, Y) + multiplied(c, dY)


@times.def_adjoint
def _adjoint(args, out, g):
    c, Y = args
    total = lambda a: jnp.sum(jnp.sum(a, axis=0))
    g_c = total(Y.real * g.real + jnp.imag(Y) * jnp.imag(g))
    if jnp.iscomplexobj(c):
        g_c = jax.lax.complex(g_c, total(Y.real * jnp.imag(g) - jnp.imag(Y) * g.real))
    return g_c, jnp.conj(c) * g


class Disc(NamedTuple):
    """A disc of the complex plane; the center of a Hermitian operator's is real."""

    center: Inexact[Array, ""]
    radius: Float[Array, ""]


class Conjugate(Operator):
    """The complex conjugate of an operator that can't conjugate itself."""

    A: Operator

    @property
    def shape(self) -> tuple[int, int]:
        return self.A.shape

    @property
    def dtype(self) -> Any:
        return self.A.dtype

    def mv(self, x: Inexact[Array, " n"]) -> Inexact[Array, " m"]:
        return jnp.conj(self.A.mv(jnp.conj(x)))

    def mm(self, X: Inexact[Array, "n k"]) -> Inexact[Array, "m k"]:
        return jnp.conj(self.A.mm(jnp.conj(X)))

    def adjoint(self) -> Operator:
        return Conjugate(self.A.adjoint())

    def conj(self) -> Operator:
        return self.A

    def disc(self) -> Disc | None:
        disc = self.A.disc()
        return disc and Disc(jnp.conj(disc.center), disc.radius)


class Sum(Operator):
    """sum_j c_j A_j."""

    factors: tuple[Inexact[Array, ""], ...]
    operators: tuple[Operator, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return self.operators[0].shape

    @property
    def dtype(self) -> Any:
        return jnp.result_type(*self.factors, *(A.dtype for A in self.operators))

    def mv(self, x: Inexact[Array, " n"]) -> Inexact[Array, " m"]:
        return self.mm(x[:, None])[:, 0]

    def mm(self, X: Inexact[Array, "n k"]) -> Inexact[Array, "m k"]:
        terms = [times(c, A.mm(X)) for c, A in zip(self.factors, self.operators, strict=True)]
        return sum(terms[1:], terms[0])

    def adjoint(self) -> Sum:
        return Sum(tuple(map(jnp.conj, self.factors)), tuple(A.adjoint() for A in self.operators))

    def conj(self) -> Sum:
        return Sum(tuple(map(jnp.conj, self.factors)), tuple(A.conj() for A in self.operators))

    def scaled(self, factor: Inexact[Array, ""]) -> Sum:
        return Sum(tuple(factor * c for c in self.factors), self.operators)

    def disc(self) -> Disc | None:
        discs = [A.disc() for A in self.operators]
        known = [d for d in discs if d is not None]
        return combined(self.factors, known) if len(known) == len(discs) else None


def combined(factors: Sequence[Inexact[Array, ""]], discs: Sequence[Disc]) -> Disc:
    """The disc of sum_j c_j A_j from those of the A_j."""
    factors = jax.lax.stop_gradient(list(factors))
    center = sum(c * d.center for c, d in zip(factors, discs, strict=True))
    radius = sum(jnp.abs(c) * d.radius for c, d in zip(factors, discs, strict=True))
    return Disc(jnp.asarray(center), jnp.asarray(radius))


def add(A: Any, B: Any) -> Sum:
    """A + B, in one flat sum."""
    A, B = as_operator("an operator", A), as_operator("an operator", B)
    if A.shape != B.shape:
        raise ValueError(f"Operators of shapes {A.shape} and {B.shape} don't add.")
    factors: list[Array] = []
    operators: list[Operator] = []
    for term in (A, B):
        one = jnp.ones((), jnp.finfo(term.dtype).dtype)
        part = term if isinstance(term, Sum) else Sum((one,), (term,))
        factors.extend(part.factors)
        operators.extend(part.operators)
    return Sum(tuple(factors), tuple(operators))


def apply(A: Operator, X: Inexact[Array, "n k"], adjoint: bool) -> Inexact[Array, "m k"]:
    """A X, or A^H X."""
    return (A.adjoint() if adjoint else A).mm(X)


class Dense(Operator):
    """A matrix (m, n)."""

    matrix: Inexact[Array, "m n"]

    @property
    def shape(self) -> tuple[int, int]:
        m, n = self.matrix.shape
        return m, n

    @property
    def dtype(self) -> Any:
        return self.matrix.dtype

    def mv(self, x: Inexact[Array, " n"]) -> Inexact[Array, " m"]:
        return jnp.matmul(self.matrix, x, precision=jax.lax.Precision.HIGHEST)

    def mm(self, X: Inexact[Array, "n k"]) -> Inexact[Array, "m k"]:
        return jnp.matmul(self.matrix, X, precision=jax.lax.Precision.HIGHEST)

    def adjoint(self) -> Dense:
        return Dense(jnp.conj(self.matrix.T))

    def conj(self) -> Dense:
        return Dense(jnp.conj(self.matrix))

    def scaled(self, factor: Inexact[Array, ""]) -> Dense:
        return Dense(factor * self.matrix)

    def disc(self) -> Disc:
        A = jax.lax.stop_gradient(self.matrix)
        d = jnp.diagonal(A)
        off = jnp.abs(A - jnp.diag(d))
        return gershgorin(d, jnp.sum(off, axis=1), jnp.sum(off, axis=0))

    def to_dense(self) -> Inexact[Array, "m n"]:
        return self.matrix


class Sparse(Operator):
    """A sparse matrix, of the entries ``A[row, column] = data``; several at one place add up.

    `by_row` and `by_column` say, where the pattern was known when the operator was made, which entries each
    row (each column) has, padded to one length with the number of entries: then A x and A^H x gather, and
    nothing is scattered. They are None where the pattern is traced, or one row is far longer than the others.
    """

    data: Inexact[Array, " entries"]
    row: Int[Array, " entries"]
    column: Int[Array, " entries"]
    by_row: Int[Array, "m w"] | None
    by_column: Int[Array, "n v"] | None
    size: tuple[int, int] = eqx.field(static=True)

    @property
    def shape(self) -> tuple[int, int]:
        return self.size

    @property
    def dtype(self) -> Any:
        return self.data.dtype

    def mv(self, x: Inexact[Array, " n"]) -> Inexact[Array, " m"]:
        return self.mm(x[:, None])[:, 0]

    def mm(self, X: Inexact[Array, "n k"]) -> Inexact[Array, "m k"]:
        if self.by_row is None:
            terms = self.data[:, None] * X[self.column]
            return jax.ops.segment_sum(terms, self.row, num_segments=self.shape[0])
        # Slot by slot: XLA makes one loop over the rows of it, and keeps no product.
        data = jnp.append(self.data, jnp.zeros((), self.dtype))[self.by_row]
        column = jnp.append(self.column, 0)[self.by_row]
        Y = jnp.zeros((self.size[0], X.shape[1]), jnp.result_type(data, X))
        for w in range(data.shape[1]):
            Y = Y + data[:, w, None] * X[column[:, w]]
        return Y

    def adjoint(self) -> Sparse:
        return Sparse(
            jnp.conj(self.data),
            self.column,
            self.row,
            self.by_column,
            self.by_row,
            self.shape[::-1],
        )

    def conj(self) -> Sparse:
        return dataclasses.replace(self, data=jnp.conj(self.data))

    def scaled(self, factor: Inexact[Array, ""]) -> Sparse:
        return dataclasses.replace(self, data=factor * self.data)

    def disc(self) -> Disc:
        data, on = jax.lax.stop_gradient(self.data), self.row == self.column
        total = lambda x, places: jax.ops.segment_sum(x, places, num_segments=self.shape[0])
        off = jnp.where(on, 0, jnp.abs(data))
        diagonal = total(jnp.where(on, data, 0), self.row)
        return gershgorin(diagonal, total(off, self.row), total(off, self.column))


def gershgorin(
    diagonal: Inexact[Array, " n"], rows: Float[Array, " n"], columns: Float[Array, " n"]
) -> Disc:
    """A disc around <x, A x>, from A's diagonal and the sums of moduli of the other entries of rows and
    columns.

    The sums of the rows and columns are averaged: those of the Hermitian part of exp(i phi) A for each phi.
    """
    low, high = bounding_box(diagonal)
    center = (low + high) / 2
    return Disc(center, jnp.max(jnp.abs(diagonal - center) + (rows + columns) / 2, initial=0))


def bounding_box(x: Inexact[Array, "..."]) -> tuple[Array, Array]:
    """The corners of the rectangle that holds the numbers x."""
    if not jnp.iscomplexobj(x):
        return jnp.min(x), jnp.max(x)
    low = jax.lax.complex(jnp.min(x.real), jnp.min(x.imag))
    return low, jax.lax.complex(jnp.max(x.real), jnp.max(x.imag))


class Bounded(Operator):
    """An operator with the bounds [low, high] of its spectrum, as the user knows them; it is Hermitian."""

    A: Operator
    low: Float[Array, ""]
    high: Float[Array, ""]

    @property
    def shape(self) -> tuple[int, int]:
        return self.A.shape

    @property
    def dtype(self) -> Any:
        return self.A.dtype

    def mv(self, x: Inexact[Array, " n"]) -> Inexact[Array, " m"]:
        return self.A.mv(x)

    def mm(self, X: Inexact[Array, "n k"]) -> Inexact[Array, "m k"]:
        return self.A.mm(X)

    def adjoint(self) -> Bounded:
        return Bounded(self.A.adjoint(), self.low, self.high)

    def conj(self) -> Bounded:
        return Bounded(self.A.conj(), self.low, self.high)

    def disc(self) -> Disc:
        low, high = jax.lax.stop_gradient((self.low, self.high))
        return Disc((low + high) / 2, (high - low) / 2)


def sparse(data: Any, row: Any, column: Any, shape: tuple[int, ...]) -> Sparse:
    """The `Sparse` operator of these entries."""
    data = jnp.asarray(data)
    m, n = shape
    if is_traced(row) or is_traced(column):
        return Sparse(data, row, column, None, None, (m, n))
    row, column = np.asarray(row), np.asarray(column)
    index = np.int32 if max(m, n, len(row)) < 2**31 - 1 else np.int64
    with jax.ensure_compile_time_eval():
        by_row, by_column = _padded(row, m, index), _padded(column, n, index)
        row, column = (jnp.asarray(a.astype(index)) for a in (row, column))
    return Sparse(data, row, column, by_row, by_column, (m, n))


def _padded(place: np.ndarray, size: int, index: Any) -> Array | None:
    """For each of `size` rows its entries, padded with their number; None where that would be wasteful."""
    count = np.bincount(place, minlength=size)
    width = int(count.max(initial=0))
    if size * width > 3 * len(place) + 64 or width > 64:
        return None
    order = np.argsort(place, kind="stable")
    table = np.full((size, width), len(place), index)
    slot = np.arange(len(place)) - np.repeat(np.cumsum(count) - count, count)
    table[place[order], slot] = order
    return jnp.asarray(table)


class Function(Operator):
    """A function ``(params, x) -> A x`` of one flat vector, linear in x, traced in the dtype `traced_in`.

    Its adjoint is the transpose of its program by JAX. A real one acts on the two parts of a complex vector.
    """

    fn: Callable[[Any, Array], Array] = eqx.field(static=True)
    params: PyTree[Any]
    size: tuple[int, int] = eqx.field(static=True)
    traced_in: Any = eqx.field(static=True)
    adjointed: bool = eqx.field(static=True, default=False)

    @property
    def shape(self) -> tuple[int, int]:
        return self.size

    @property
    def dtype(self) -> Any:
        return self.traced_in

    def mv(self, x: Inexact[Array, " n"]) -> Inexact[Array, " m"]:
        if jnp.iscomplexobj(x) and not jnp.issubdtype(self.dtype, jnp.complexfloating):
            return jax.lax.complex(self.mv(x.real), self.mv(x.imag))
        x = x.astype(self.dtype)
        apply = lambda x: self.fn(self.params, x)
        if not self.adjointed:
            return apply(x)
        form = jax.ShapeDtypeStruct((self.shape[0],), self.dtype)
        return jnp.conj(jax.linear_transpose(apply, form)(jnp.conj(x))[0])

    def adjoint(self) -> Function:
        m, n = self.size
        return Function(self.fn, self.params, (n, m), self.traced_in, not self.adjointed)


def is_function(A: Any) -> bool:
    """Whether A is a plain function, which says nothing of what it acts on."""
    other = isinstance(A, Operator | lx.AbstractLinearOperator) or is_qobj(A)
    return callable(A) and not other


def is_dense(A: Any) -> bool:
    """Whether A isn't sparse, nor an operator: an array, if it is anything at all."""
    known = isinstance(A, Operator | lx.AbstractLinearOperator | jsparse.JAXSparse)
    return not (known or scipy.sparse.issparse(A) or is_qobj(A))


def hold(A: Operator) -> Operator:
    """A without derivatives; what is known of it stays so, for whoever looks at it."""
    still = lambda a: jax.lax.stop_gradient(a) if is_traced(a) else a
    return jax.tree.map(still, A)


def real_parts(x: Inexact[Array, "..."], axis: int) -> Float[Array, "..."]:
    """[Re x; Im x]."""
    return jnp.concatenate([x.real, jnp.imag(x)], axis)


def from_real_parts(z: Float[Array, "..."], axis: int) -> Complex[Array, "..."]:
    """The x of `real_parts`."""
    return jax.lax.complex(*jnp.split(z, 2, axis))


def as_operator(name: str, A: Any, like: PyTree[Any] = None) -> Operator:
    """The operator that `A` stands for: an array (m, n), a matrix of `scipy.sparse`, a BCOO or BCSR matrix of
    JAX, a `Qobj` of QuTiP, an operator of lineax, or a function of vectors that look like `like`.

    What a function closes over becomes a parameter. Raises `TypeError` for anything else, for a function
    where nothing says what it acts on, and for one whose result isn't what it is given; `ValueError` for
    arrays that aren't matrices, and NaN or infinity in a sparse one.
    """
    if isinstance(A, Operator):
        return A
    if is_qobj(A):
        A = A.to("CSR").data.as_scipy()
    if scipy.sparse.issparse(A):
        A = A.tocoo()
        A.sum_duplicates()
        require_finite(f"{name}.data", np.asarray(A.data))
        return sparse(as_array(f"{name}.data", A.data), A.row, A.col, A.shape)
    if isinstance(A, jsparse.BCSR):
        A = _as_bcoo(A)
    if isinstance(A, jsparse.BCOO):
        if A.n_batch or A.n_dense or A.ndim != 2:
            raise ValueError(f"{name} must be one sparse matrix, got {A}.")
        data = as_array(f"{name}.data", A.data)
        indices: Any = A.indices if is_traced(A.indices) else np.asarray(A.indices)
        row, column = indices[:, 0], indices[:, 1]
        if not is_traced(indices):
            # Entries beyond the matrix are JAX's way to fill up to a number of entries.
            inside = (row < A.shape[0]) & (column < A.shape[1])
            if not inside.all():
                data, row, column = data[inside], row[inside], column[inside]
        return sparse(data, row, column, A.shape)
    if isinstance(A, lx.AbstractLinearOperator):
        return _of_lineax(name, A)
    if callable(A):
        if like is None:
            raise TypeError(f"{name} is a function, and nothing says what it acts on.")
        return _of_function(name, A, like)
    matrix = as_array(name, A)
    if matrix.ndim != 2:
        raise ValueError(f"{name} must be a matrix, got shape {matrix.shape}.")
    return Dense(matrix)


def flatten(name: str, x: PyTree[Any]) -> tuple[Inexact[Array, " n"], Callable[[Array], Any]]:
    """The leaves of x as one vector, and the way back, which keeps whatever dtype the vector has."""
    leaves, tree = jax.tree.flatten(x)
    leaves = [as_array(name, leaf) for leaf in leaves]
    dtypes = {leaf.dtype for leaf in leaves}
    if len(dtypes) != 1:
        got = ", ".join(sorted(str(d) for d in dtypes)) or "none"
        raise TypeError(f"the leaves of {name} must have one dtype, got {got}.")
    shapes = [leaf.shape for leaf in leaves]
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]

    def unflatten(flat):
        parts = jnp.split(flat, ends)
        return tree.unflatten([p.reshape(s) for p, s in zip(parts, shapes, strict=True)])

    return jnp.concatenate([leaf.reshape(-1) for leaf in leaves]), unflatten


def _of_function(name: str, fn: Callable[[Any], Any], like: PyTree[Any]) -> Operator:
    flat, unflatten = flatten("b", like)
    with_flat = lambda x: flatten(f"the result of {name}", fn(unflatten(x)))[0]
    form = jax.ShapeDtypeStruct(flat.shape, flat.dtype)
    dtype = jnp.result_type(flat.dtype, jax.eval_shape(with_flat, form).dtype)
    form = jax.ShapeDtypeStruct(flat.shape, dtype)
    given, got = (jax.eval_shape(f, form) for f in (unflatten, lambda x: fn(unflatten(x))))
    if jax.tree.structure(given) != jax.tree.structure(got) or given != got:
        raise TypeError(f"{name} must return what it is given, {given}; it returned {got}.")
    pure, _, consts = hoist(with_flat, form)
    return Function(lambda consts, x: pure(consts, x), consts, (flat.size, flat.size), dtype)


def _as_bcoo(A: jsparse.BCSR) -> jsparse.BCOO:
    """The same in coordinates, which stay known where those of A are."""
    if is_traced(A.indptr) or is_traced(A.indices) or A.ndim != 2 or A.n_dense:
        return A.to_bcoo()
    indptr = np.asarray(A.indptr)
    row = np.repeat(np.arange(A.shape[0]), np.diff(indptr))
    with jax.ensure_compile_time_eval():
        indices = jnp.asarray(np.stack([row, np.asarray(A.indices)[: len(row)]], axis=1))
    return jsparse.BCOO((A.data[: len(row)], indices), shape=A.shape)


def _of_lineax(name: str, A: lx.AbstractLinearOperator) -> Operator:
    while isinstance(A, lx.TaggedLinearOperator):
        A = A.operator
    if isinstance(A, lx.MatrixLinearOperator | lx.PyTreeLinearOperator):
        return Dense(as_array(name, A.as_matrix()))
    if isinstance(A, lx.DiagonalLinearOperator | lx.IdentityLinearOperator):
        diagonal = as_array(name, lx.diagonal(A))
        place = np.arange(diagonal.size)
        return sparse(diagonal, place, place, (diagonal.size, diagonal.size))
    if isinstance(A, lx.TridiagonalLinearOperator):
        n, place = A.diagonal.size, np.arange(A.diagonal.size)
        data = jnp.concatenate([A.lower_diagonal, A.diagonal, A.upper_diagonal])
        row = np.concatenate([place[1:], place, place[:-1]])
        column = np.concatenate([place[:-1], place, place[1:]])
        return sparse(data, row, column, (n, n))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), A.in_structure())
    _, unflatten = flatten(f"the input of {name}", zeros)
    dtypes = {s.dtype for s in jax.tree.leaves((A.in_structure(), A.out_structure()))}
    fn = lambda A, x: flatten(f"the output of {name}", A.mv(unflatten(x)))[0]
    return Function(fn, A, (A.out_size(), A.in_size()), jnp.result_type(*dtypes))
