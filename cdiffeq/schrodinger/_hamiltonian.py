r"""Time-dependent Hamiltonians as sums of terms.

    H(t) = sum_j M_j  +  sum_j u_j(t) M_j  +  sum_j f_j(t, p_j) M_j  +  sum_j F_j(t, p_j)

constant matrices, piecewise constant controls u_j, smooth envelopes f_j, and functions F_j that return
the matrix. A matrix is an array or an operator of `cdiffeq.linalg`, of which nothing is asked but its product
with states. Everything numeric is a leaf of a pytree, so `jax.grad` reaches it.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.experimental.sparse as jsparse
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Inexact, PyTree

from cdiffeq._arrays import as_array, as_params, as_real, require_finite
from cdiffeq._errors import is_traced
from cdiffeq.linalg._operator import Operator, as_operator

# The largest sparse matrix that is made dense: beyond, its products with states are the cheaper way.
LARGEST_DENSE = 256

Matrix: TypeAlias = Inexact[Array, "n n"] | Operator


class Term(eqx.Module):
    """One term of a Hamiltonian."""

    @abc.abstractmethod
    def matrix_at(self, t: Any) -> Matrix: ...

    @abc.abstractmethod
    def scaled(self, factor: Any) -> Term: ...

    @abc.abstractmethod
    def __str__(self) -> str: ...


class Constant(Term):
    """A matrix that doesn't depend on time."""

    matrix: Matrix

    def matrix_at(self, t):
        return self.matrix

    def scaled(self, factor):
        return Constant(factor * self.matrix)

    def __str__(self):
        return f"constant({_form(self.matrix)})"


class Pwc(Term):
    """A matrix times an amplitude that is constant between edges, and zero outside them."""

    edges: Float[Array, " edges"]
    values: Inexact[Array, " k"]
    matrix: Matrix

    def matrix_at(self, t):
        return self.value_at(t) * self.matrix

    def value_at(self, t):
        """The amplitude at one time, zero outside the edges."""
        slice_ = jnp.searchsorted(self.edges, t, side="right")
        return self.padded_values()[slice_]

    def padded_values(self) -> Inexact[Array, " padded"]:
        """Amplitudes by the number of edges that lie at or before the time."""
        return jnp.pad(self.values, 1)

    def scaled(self, factor):
        return Pwc(self.edges, factor * self.values, self.matrix)

    def __str__(self):
        return f"pwc({_form(self.values)}, {_form(self.matrix)})"


class Modulated(Term):
    """A matrix times a function of time."""

    fn: Callable[..., Any]
    matrix: Matrix
    params: PyTree[Any]

    def matrix_at(self, t):
        return jnp.asarray(self.fn(t, self.params)) * self.matrix

    def scaled(self, factor):
        return Modulated(self.fn, factor * self.matrix, self.params)

    def __str__(self):
        return f"modulated({_name(self.fn)}, {_form(self.matrix)})"


class TimeCallable(Term):
    """A function of time that returns the matrix."""

    fn: Callable[..., Any]
    params: PyTree[Any]
    factor: Inexact[Array, ""]

    def matrix_at(self, t):
        matrix = self.fn(t, self.params)
        return self.factor * (matrix if isinstance(matrix, Operator) else jnp.asarray(matrix))

    def scaled(self, factor):
        return TimeCallable(self.fn, self.params, factor * self.factor)

    def __str__(self):
        return f"timecallable({_name(self.fn)})"


class Hamiltonian(eqx.Module):
    """A sum of terms: made by `constant`, `pwc`, `modulated` and `timecallable`, and by ``+ - *``.

    `H(t)` is the matrix at time t, complex or real (n, n), on which a piecewise constant control jumps
    at its edges and counts as the slice to the right; an operator, where one of the terms is. `H.n` is the
    dimension. ``H1 + H2``, ``H1 - H2``,
    ``-H`` and ``c * H`` (a real or complex number or scalar array c) are Hamiltonians; matrices add, too.

    >>> H = cd.constant([[1.0, 0.0], [0.0, -1.0]]) + 0.5 * cd.pwc([0, 1, 2], [0.1, 0.3], jnp.eye(2)[::-1])
    >>> print(H(1.5))
    [[ 1.    0.15]
     [ 0.15 -1.  ]]
    >>> H
    Hamiltonian(n=2): constant(float64[2, 2]) + pwc(float64[2], float64[2, 2])
    """

    terms: tuple[Term, ...]

    @property
    def n(self) -> int:
        """The dimension of the state space."""
        shapes = [form.shape for form in self._forms()]
        for shape, term in zip(shapes, self.terms, strict=True):
            if len(shape) != 2 or shape[0] != shape[1]:
                raise ValueError(f"{term} gives a matrix of shape {shape}; expected a square one.")
        if len(set(shapes)) > 1:
            listed = ", ".join(
                f"{term} is {s[0]}" for s, term in zip(shapes, self.terms, strict=True)
            )
            raise ValueError(f"The terms of a Hamiltonian differ in dimension: {listed}.")
        return shapes[0][0]

    def _forms(self) -> list[Any]:
        """What `matrix_at` gives for each term, without values."""
        t = jnp.zeros((), jnp.result_type(float))
        return [jax.eval_shape(lambda t, term=term: term.matrix_at(t), t) for term in self.terms]

    @property
    def matrix_free(self) -> bool:
        """Whether one of the terms is an operator rather than an array."""
        return any(isinstance(form, Operator) for form in self._forms())

    @property
    def controls(self) -> list[Pwc]:
        """The piecewise constant terms, in their order."""
        return [term for term in self.terms if isinstance(term, Pwc)]

    def __call__(self, t: ArrayLike) -> Matrix:
        matrices = [term.matrix_at(jnp.asarray(t)) for term in self.terms]
        return sum(matrices[1:], matrices[0])

    def __add__(self, other: Any) -> Hamiltonian:
        return Hamiltonian(self.terms + as_hamiltonian(other).terms)

    def __radd__(self, other: Any) -> Hamiltonian:
        if isinstance(other, int) and other == 0:  # sum() starts with 0
            return self
        return as_hamiltonian(other) + self

    def __neg__(self) -> Hamiltonian:
        return -1 * self

    def __sub__(self, other: Any) -> Hamiltonian:
        return self + -as_hamiltonian(other)

    def __rsub__(self, other: Any) -> Hamiltonian:
        return as_hamiltonian(other) + -self

    def __mul__(self, factor: ArrayLike) -> Hamiltonian:
        if jnp.ndim(factor) != 0:
            raise TypeError(
                f"A Hamiltonian is multiplied by numbers, got an array of shape {jnp.shape(factor)}."
            )
        return Hamiltonian(tuple(term.scaled(factor) for term in self.terms))

    __rmul__ = __mul__
    __array_ufunc__ = None  # so that NumPy numbers and arrays leave + - * to us

    def __truediv__(self, divisor: ArrayLike) -> Hamiltonian:
        return (1 / divisor) * self

    def __repr__(self) -> str:
        try:
            n: int | str = self.n
        except Exception:  # a repr must not raise, whatever a user's function does
            n = "?"
        return f"Hamiltonian(n={n}): " + " + ".join(str(term) for term in self.terms)


def constant(H0: Any) -> Hamiltonian:
    """The Hamiltonian that doesn't depend on time.

    `H0` is a square matrix (n, n), real or complex, of angular frequencies (hbar = 1): a JAX or NumPy
    array, or anything with `__array__`; an operator of `cdiffeq.linalg`, which stays one (see
    `cd.spin_chain`, `cd.linalg.kron`, `cd.linalg.KineticPotential`, `cd.linalg.operator`); a
    `scipy.sparse`, BCOO or BCSR matrix or a QuTiP `Qobj`, which become dense arrays up to n = 256 and
    operators beyond. Raises `ValueError` if it isn't square or, where its values are known, not finite.

    >>> cd.constant(np.diag([0.0, 1.0]))
    Hamiltonian(n=2): constant(float64[2, 2])
    """
    return Hamiltonian((Constant(as_matrix("H0", H0)),))


def pwc(edges: Any, values: Any, H1: Any) -> Hamiltonian:
    """A piecewise constant control: ``values[j] * H1`` on ``[edges[j], edges[j + 1])``, zero outside.

    `edges`: (k + 1,), increasing times. `values`: (k,), real or complex. `H1`: a square matrix as for
    `constant`; only the whole Hamiltonian needs to be Hermitian (``u a + conj(u) a^H`` is two terms).
    Raises `ValueError` for edges that don't increase, values of another length, or numbers that aren't
    finite, where they are known; where they are traced, the solve raises.

    >>> H = cd.pwc([0.0, 1.0, 3.0], [2.0, -1.0], [[0.0, 1.0], [1.0, 0.0]])
    >>> [float(H(t)[0, 1]) for t in (-0.5, 0.0, 1.0, 2.9, 3.0)]
    [0.0, 2.0, -1.0, -1.0, 0.0]
    """
    edges, values, H1 = as_real("edges", edges), as_array("values", values), as_matrix("H1", H1)
    if edges.ndim != 1 or len(edges) < 2:
        raise ValueError(
            f"pwc: edges must be a vector of at least 2 times, got shape {edges.shape}."
        )
    if values.shape != (len(edges) - 1,):
        raise ValueError(
            f"pwc: {len(edges)} edges bound {len(edges) - 1} slices, so values must have shape "
            f"({len(edges) - 1},); got {values.shape}."
        )
    require_finite("pwc: edges", edges)
    require_finite("pwc: values", values)
    if not is_traced(edges) and not np.all(np.diff(edges) > 0):
        j = int(np.argmax(np.diff(edges) <= 0))
        raise ValueError(
            f"pwc: edges must increase, but edges[{j}] = {edges[j]} and edges[{j + 1}] = {edges[j + 1]}."
        )
    return Hamiltonian((Pwc(edges, values, H1),))


def modulated(fn: Callable[..., Any], H1: Any, params: PyTree[Any] = None) -> Hamiltonian:
    """A smooth envelope times a matrix: ``fn(t, params) * H1``.

    `fn` is a JAX function of a scalar time and a pytree, and returns a real or complex number. Gradients
    reach `params` and, through closures, whatever `fn` uses. Where the envelope jumps or has a kink, put
    the time among the solve's `ts`: steps end there. `H1`: a square matrix as for `constant`. Raises
    `TypeError` if fn isn't callable or returns something else than a number.

    >>> H = cd.modulated(lambda t, p: p["a"] * jnp.cos(p["w"] * t), np.eye(2), {"a": 2.0, "w": 0.0})
    >>> print(H(0.3))
    [[2. 0.]
     [0. 2.]]
    """
    _require_callable("modulated", fn)
    params = as_params(params)
    out = jax.eval_shape(fn, jnp.zeros((), jnp.result_type(float)), params)
    if getattr(out, "shape", None) != ():
        raise TypeError(f"modulated: fn(t, params) must return a number; got {out}.")
    return Hamiltonian((Modulated(fn, as_matrix("H1", H1), params),))


def timecallable(fn: Callable[..., Any], params: PyTree[Any] = None) -> Hamiltonian:
    """A Hamiltonian given as a function: ``fn(t, params)`` returns the matrix (n, n).

    `fn` is a JAX function of a scalar time and a pytree; the matrix may be an operator of `cdiffeq.linalg`.
    It is smooth in between the solve's `ts` and the edges of other terms. Gradients as for `modulated`.
    Raises `TypeError` if fn isn't callable.

    >>> H = cd.timecallable(lambda t, w: jnp.array([[0.0, jnp.sin(w * t)], [jnp.sin(w * t), 0.0]]), 1.0)
    >>> H
    Hamiltonian(n=2): timecallable(<lambda>)
    """
    _require_callable("timecallable", fn)
    one = jnp.ones((), jnp.result_type(float))
    return Hamiltonian((TimeCallable(fn, as_params(params), one),))


def as_hamiltonian(H: Any, name: str = "H") -> Hamiltonian:
    """`H` itself, or the constant Hamiltonian of a matrix."""
    return H if isinstance(H, Hamiltonian) else Hamiltonian((Constant(as_matrix(name, H)),))


def as_dense(name: str, A: Any) -> Inexact[Array, "..."]:
    """A dense array of `A`: an array, anything with `__array__`, a sparse matrix, a Qobj or an operator."""
    if isinstance(A, Operator):
        return A.to_dense()
    if hasattr(A, "toarray"):  # scipy.sparse
        A = A.toarray()
    elif hasattr(A, "todense"):  # BCOO and the like
        A = A.todense()
    return as_array(name, A)


def as_matrix(name: str, A: Any) -> Matrix:
    """A square array of finite numbers, or an operator."""
    if type(A).__name__ == "QobjEvo" or (isinstance(A, list) and any(map(_with_coefficient, A))):
        raise TypeError(
            f"{name} must be a matrix or an operator, got a time-dependent operator of QuTiP. Its "
            "[H0, [H1, f]] is cd.constant(H0) + cd.modulated(f, H1, params) here."
        )
    A = as_operator(name, A) if _is_sparse(A) else A
    if isinstance(A, Operator):
        m, n = A.shape
        if m != n or n == 0:
            raise ValueError(f"{name} must be a square matrix (n, n), got shape {A.shape}.")
        return A
    A = as_dense(name, A)
    if A.ndim != 2 or A.shape[0] != A.shape[1] or A.shape[0] == 0:
        raise ValueError(f"{name} must be a square matrix (n, n), got shape {A.shape}.")
    require_finite(name, A)
    return A


def _with_coefficient(part: Any) -> bool:
    return isinstance(part, list) and any(map(callable, part))


def _is_sparse(A: Any) -> bool:
    """Whether A is a sparse matrix that is too large to be made dense."""
    sparse = (hasattr(A, "full") and hasattr(A, "dims")) or isinstance(A, jsparse.JAXSparse)
    return (sparse or hasattr(A, "toarray")) and A.shape[0] > LARGEST_DENSE


def _require_callable(name: str, fn: Any) -> None:
    if not callable(fn):
        raise TypeError(f"{name}: fn must be a function (t, params), got {type(fn).__name__}.")


def _form(a: Any) -> str:
    if isinstance(a, Operator):
        return f"{type(a).__name__}{list(a.shape)}"
    return f"{a.dtype}{list(a.shape)}" if hasattr(a, "dtype") else str(a)  # None where filtered out


def _name(fn: Any) -> str:
    return getattr(fn, "__name__", type(fn).__name__)
