r"""The exponential of small dense matrices, batched, and its Fréchet derivative.

    exp(A) = e^(i mu) p(2^-s (A - i mu))^(2^s),     p = a polynomial of degree 18,

five matrix products and s squarings; p is Taylor's, or Chebyshev's where A is known to be anti-Hermitian.
The Fréchet derivative ``L(A, E) = d/dt exp(A + t E)`` at t = 0 is that of the polynomial, and since its
coefficients are real, ``L(A, .)* = L(A^H, .)``.

Complex matrices are multiplied as real ones: ``[Re C; Im C] = [[Re A, -Im A], [Im A, Re A]] [Re B; Im B]``.
On a CPU this takes half the time of the complex product, and only the left factor is ever doubled.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Inexact, Int

from cdiffeq.wirtinger._rule import adjoint_rule


def expm(A: Inexact[Array, "... n n"]) -> Inexact[Array, "... n n"]:
    r"""The matrix exponential of a batch of dense matrices.

    Scaling and squaring with the Taylor polynomial of degree 18 in five products (Bader, Blanes and
    Casas 2019, doi:10.3390/math7121174), after a shift by the mean of the diagonal's imaginary part.
    The number of squarings is chosen for each matrix from its norm.

    **Arguments**: `A`, real or complex, shape (..., n, n). **Returns** exp(A), same shape and dtype;
    NaN alone for a matrix that holds NaN or infinity, or whose norm nears 1 / eps.
    **Raises** `ValueError` where A isn't square, `TypeError` where it isn't floating or complex, in
    single or double precision.

    **Derivatives**: the Fréchet derivative L(A, dA), with the adjoint L(A^H, g); right for every A,
    defective and degenerate ones included. **Cost**: 5 + s products of n x n matrices, s about
    log2(norm(A)); a derivative takes 15 + 3 s. **Memory**: about ten matrices for each in the batch.

    >>> import jax, jax.numpy as jnp
    >>> expm(jnp.array([[0.0, -jnp.pi], [jnp.pi, 0.0]])).round(12) + 0.0
    Array([[-1.,  0.],
           [ 0., -1.]], dtype=float64)
    >>> jax.grad(lambda t: expm(t * jnp.array([[0j, 1.0], [1.0, 0j]]))[0, 1].real)(0.0)
    Array(1., dtype=float64, weak_type=True)
    """
    return expm_of(A, False)


@adjoint_rule(nondiff=("skew",))
def expm_of(A: Inexact[Array, "... n n"], skew: bool) -> Inexact[Array, "... n n"]:
    """`expm`, where the caller may promise that every A is anti-Hermitian (`skew`)."""
    return exponential(A, skew).value


@expm_of.def_tangent
def _tangent(args, U, dargs):
    A, skew = args
    return exponential(A, skew).frechet(dargs[0])


@expm_of.def_adjoint
def _adjoint(args, U, g):
    A, skew = args
    return (adjoint(exponential(A, skew).frechet(adjoint(g))),)  # L(A^H, g) = L(A, g^H)^H


def adjoint(A: Inexact[Array, "... m n"]) -> Inexact[Array, "... n m"]:
    """A^H, the conjugate transpose."""
    return jnp.conj(jnp.swapaxes(A, -1, -2))


class Exponential(NamedTuple):
    """exp(A), and what is had from the products that it has formed.

    - `value`: exp(A), (..., n, n).
    - `frechet`: E -> L(A, E).
    - `adjoint_outer`: (y, x) -> L(A^H, y x^H), of a matrix of low rank: y and x are (..., n, r).
    """

    value: Inexact[Array, "... n n"]
    frechet: Callable[[Array], Array]
    adjoint_outer: Callable[[Array, Array], Array]


def exponential(A: Inexact[Array, "... n n"], skew: bool) -> Exponential:
    """The exponential of A; `skew` is the promise that A is anti-Hermitian."""
    if A.ndim < 2 or A.shape[-1] != A.shape[-2]:
        raise ValueError(f"expm: A must be square, (..., n, n); got shape {A.shape}.")
    if jnp.finfo(A.dtype).bits < 32:
        raise TypeError(f"expm: A must be in single or double precision; got {A.dtype}.")
    # Any shift and any number of squarings give the same exponential: they have no derivative.
    mean = jax.lax.stop_gradient(jnp.trace(A, axis1=-2, axis2=-1)[..., None, None] / A.shape[-1])
    mean = mean - mean.real  # of a real mean the exponential may vanish where exp(A) doesn't
    shifted = A - mean * _eye(A)
    rows, theta = _polynomial(A.dtype, skew)
    polynomial = lambda A: _scaled(A, rows, theta, skew)
    X, d_polynomial, (squarings, powers) = jax.linearize(polynomial, _split(shifted), has_aux=True)
    # The most in a whole batch, also under vmap: a bound that isn't mapped keeps the loop one loop.
    most = eqxi.unvmap_max(jnp.max(squarings, initial=0))
    factor = jnp.exp(mean)

    def square(k, X):
        return jnp.where(k < squarings, _mul(X, X), X)

    def square_both(k, XL):
        X, L = XL
        squared = _mul(X, X), _mul(X, L) + _mul(L, X)
        return jax.tree.map(lambda new, old: jnp.where(k < squarings, new, old), squared, XL)

    def frechet(E):
        L = d_polynomial(_split(E.astype(A.dtype)))
        return factor * _join(jax.lax.fori_loop(0, most, square_both, (X, L))[1], A.dtype)

    def adjoint_outer(y, x):
        dense = lambda y, x: adjoint(frechet(x @ adjoint(y)))  # L(A^H, E) = L(A, E^H)^H
        # Vectors take 34 r columns of products, matrices ten times n of them.
        if not (skew and 8 * x.shape[-1] <= x.shape[-2]):
            return dense(y, x)
        sparse = lambda y, x: jnp.conj(factor) * _outer_of_powers(powers, rows, y, x)
        return jax.lax.cond(most > 0, dense, sparse, y, x)

    value = factor * _join(jax.lax.fori_loop(0, most, square, X), A.dtype)
    return Exponential(value, frechet, adjoint_outer)


def _scaled(
    A: Float[Array, "... m n"], rows: Rows, theta: float, skew: bool
) -> tuple[Float[Array, "... m n"], tuple[Int[Array, "... 1 1"], tuple[Array, Array, Array]]]:
    """p(B) of a split matrix, B = 2^-s A, in five products; and s with the powers 1, 3, 6 of B.

    The paper's equation 16. s is the least that brings a bound of the norm of B below theta, and -1 if
    the norm of A is hopeless: the condition number of exp is at least that, so that at 1 / eps no digit
    would be right. Then p(B) is NaN.
    """
    A2 = _mul(A, A)
    A3 = _mul(A, A2)  # A on the left, whose doubling is there already
    A6 = _mul(A3, A3)
    # What bounds the series of a normal matrix is its spectrum, which its powers show well.
    norm = jax.lax.stop_gradient(_frobenius(A3) ** (1 / 3) if skew else _norm(A))
    count = jnp.ceil(jnp.log2(jnp.maximum(norm / theta, 1)))
    squarings = jnp.where(count < jnp.finfo(A.dtype).nmant, count, -1).astype(jnp.int32)
    scale = jnp.where(squarings < 0, jnp.nan, jnp.exp2(-squarings.astype(A.dtype)))
    A, A2, A3, A6 = scale * A, scale**2 * A2, scale**3 * A3, scale**6 * A6

    powers = (_eye(A), A, A2, A3, A6)
    terms = [[c * P for c, P in zip(row, powers, strict=True) if c] for row in rows]
    b1, b2, b3, b4, b5 = (functools.reduce(jnp.add, row) for row in terms)
    A9 = _mul(b1, b5) + b4
    return b2 + _mul(b3 + A9, A9), (squarings, (A, A3, A6))


def _frobenius(A: Float[Array, "... m n"]) -> Float[Array, "... 1 1"]:
    return jnp.sqrt(jnp.sum(A**2, axis=(-2, -1), keepdims=True))


def _norm(A: Float[Array, "... m n"]) -> Float[Array, "... 1 1"]:
    """The smaller of the 1-norm and the Frobenius norm of a split matrix."""
    m, n = A.shape[-2:]
    squares = A**2 if m == n else A[..., :n, :] ** 2 + A[..., n:, :] ** 2
    columns = jnp.sum(jnp.sqrt(squares), axis=-2, keepdims=True)
    return jnp.minimum(jnp.max(columns, axis=-1, keepdims=True, initial=0), _frobenius(A))


def _outer_of_powers(
    powers: tuple[Array, Array, Array],
    rows: Rows,
    y: Complex[Array, "... n r"],
    x: Complex[Array, "... n r"],
) -> Complex[Array, "... n n"]:
    """L(A^H, y x^H) of the polynomial sum_k c_k A^k, where A^H = -A:

    sum_ab c_(a+b+1) (-1)^a (A^a y) (A^b x)^H, a + b <= 17, from 18 powers of A times y and x.
    """
    A, A3, A6 = powers
    r = x.shape[-1]
    V = _split(jnp.concatenate([y, x], axis=-1))
    AV = _mul(A, V)
    V = jnp.concatenate([V, AV, _mul(A, AV)], axis=-1)
    V = jnp.concatenate([V, _mul(A3, V)], axis=-1)
    A6V = _mul(A6, V)
    V = jnp.concatenate([V, A6V, _mul(A6, A6V)], axis=-1)
    V = V.reshape(*V.shape[:-1], 18, 2, r)
    y, x = (V[..., i, :].reshape(*V.shape[:-3], 18 * r) for i in (0, 1))
    y = y @ jnp.asarray(np.kron(_hankel(rows), np.eye(r)), y.dtype)
    n = y.shape[-2] // 2
    re, im = y[..., :n, :], y[..., n:, :]
    # (re + i im) (Re x - i Im x)^T, as a product of real matrices.
    y = jnp.concatenate(
        [jnp.concatenate([re, im], axis=-1), jnp.concatenate([im, -re], axis=-1)], axis=-2
    )
    x = jnp.concatenate([x[..., :n, :], x[..., n:, :]], axis=-1)
    product = jnp.matmul(y, jnp.swapaxes(x, -1, -2), precision=jax.lax.Precision.HIGHEST)
    return _join(product, jnp.result_type(product.dtype, jnp.complex64))


@functools.cache
def _hankel(rows: Rows) -> np.ndarray:
    """(-1)^a c_(a+b+1), with the coefficients of the polynomial that `rows` stand for."""
    degrees = (0, 1, 2, 3, 6)
    b1, b2, b3, b4, b5 = (
        [Fraction(row[degrees.index(k)]) if k in degrees else Fraction(0) for k in range(7)]
        for row in rows
    )
    add = lambda p, q: [a + b for a, b in itertools.zip_longest(p, q, fillvalue=Fraction(0))]

    def multiply(p, q):
        product = [Fraction(0)] * (len(p) + len(q) - 1)
        for (i, a), (j, b) in itertools.product(enumerate(p), enumerate(q)):
            product[i + j] += a * b
        return product

    b9 = add(multiply(b1, b5), b4)
    c = [float(k) for k in add(b2, multiply(add(b3, b9), b9))[:19]] + [0.0] * 18
    return np.array([[(-1) ** a * c[a + b + 1] for b in range(18)] for a in range(18)])


def _polynomial(dtype: np.dtype, skew: bool) -> tuple[Rows, float]:
    """The rows of the polynomial's scheme, and the norm up to which it is exp to rounding."""
    double = jnp.finfo(dtype).bits == 64
    if skew and double:
        return _CHEBYSHEV, 1.9
    return _TAYLOR, 1.09 if double else 3.01  # Bader, Blanes and Casas, table 5


Rows = tuple[tuple[float, float, float, float, float], ...]

# sum_k x^k / k!
_TAYLOR: Rows = (
    (0.0, -1.00365581030144618291e-01, -8.02924648241156932449e-03, -8.92138498045729985177e-04, 0.0),
    (0.0, 3.97849749499645077844e-01, 1.36783778460411720168e00, 4.98289622525382669416e-01,
     -6.37898194594723280150e-04),
    (-1.09676396052962061844e01, 1.68015813878906206114e00, 5.71779846478865511061e-02,
     -6.98210122488052056106e-03, 3.34975017086070470649e-05),
    (-9.04316832390810593223e-02, -6.76404519071381882256e-02, 6.75961301770459654925e-02,
     2.95552570429315521194e-02, -1.39180257516060693404e-05),
    (0.0, 0.0, -9.23364619367118555360e-02, -1.69364939002081722752e-02, -1.40086798182036094347e-05),
)  # fmt: skip

# The Chebyshev expansion of exp on the segment from -1.9 i to 1.9 i, where the spectrum of an
# anti-Hermitian matrix lies: right to 6e-18 there. The coefficients in the scheme of the Taylor
# polynomial were found from those by Newton's method with 60 digits.
_CHEBYSHEV: Rows = (
    (0.0, -0.10713481218569677, -0.008015158134602109, -0.0008929351043947852, 0.0),
    (0.0, 0.13713735836656782, 1.125301272402321, 0.31647297908849525, -0.000572663198393668),
    (-4.948137833784207, 1.7102132498369007, 0.0722982557328, -0.003696750855371915,
     3.38953367029818e-05),
    (-0.19445445859698263, -0.22398552776341266, 0.05215413439465051, 0.02395074324191557,
     -1.0638152003230043e-05),
    (0.0, 0.0, -0.12650996682427734, -0.01325658908737689, -1.366730270843909e-05),
)  # fmt: skip


def _eye(A: Inexact[Array, "... m n"]) -> Inexact[Array, "... m n"]:
    """The identity, to go with `A`; split, if A is."""
    m, n = A.shape[-2:]
    return jnp.asarray(np.eye(m, n).reshape((1,) * (A.ndim - 2) + (m, n)), A.dtype)


def _split(A: Inexact[Array, "... n r"]) -> Float[Array, "... m r"]:
    """A complex matrix as [Re A; Im A], a real one as it is."""
    return jnp.concatenate([A.real, A.imag], axis=-2) if jnp.iscomplexobj(A) else A


def _join(A: Float[Array, "... m n"], dtype: np.dtype) -> Inexact[Array, "... n n"]:
    n = A.shape[-1]
    if A.shape[-2] == n:
        return A
    return jax.lax.complex(A[..., :n, :], A[..., n:, :])


def _mul(A: Float[Array, "... m n"], B: Float[Array, "... m r"]) -> Float[Array, "... m r"]:
    """The product of two split matrices."""
    n = A.shape[-1]
    if A.shape[-2] != n:
        A = jnp.concatenate([A, jnp.concatenate([-A[..., n:, :], A[..., :n, :]], axis=-2)], axis=-1)
    return jnp.matmul(A, B, precision=jax.lax.Precision.HIGHEST)
