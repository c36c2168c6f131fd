r"""The Lindblad equation, and its generator in real coordinates.

    d rho/dt = -i [H, rho] + sum_j (L_j rho L_j^H - (L_j^H L_j rho + rho L_j^H L_j) / 2)
             = K rho + rho K^H + sum_j L_j rho L_j^H,        K = -i H - sum_j L_j^H L_j / 2

A Hermitian matrix is given by the real one ``R = Re rho + Im rho``, of which Re rho is the symmetric and
Im rho the antisymmetric part, and ``<rho, sigma> = <R, S>``. In these coordinates the equation is
``dR/dt = G R`` with a real matrix G of n^2 x n^2: from ``rho' = S rho``, with S_ijkl complex,

    G_ijkl = Re S_ijkl + Im S_ijlk.

Whatever is done with G keeps rho Hermitian, in a quarter of the operations that S takes; and since
``sum_i G_iikl = 0``, any polynomial of G with p(0) = 1 keeps the trace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float, Inexact, PyTree

from cdiffeq.linalg._bounds import disc
from cdiffeq.linalg._diagonals import Diagonals, product
from cdiffeq.linalg._expm import adjoint
from cdiffeq.linalg._operator import Operator, Sum, as_operator
from cdiffeq.schrodinger._grid import Grid
from cdiffeq.schrodinger._hamiltonian import Constant, Hamiltonian, Pwc, as_hamiltonian
from cdiffeq.schrodinger._magnus import Scheme
from cdiffeq.schrodinger._steps import hoist_step


def to_real(rho: Complex[Array, "... n n"]) -> Float[Array, "... n n"]:
    """The real coordinates R of a Hermitian matrix."""
    return rho.real + rho.imag


def to_density(R: Float[Array, "... n n"]) -> Complex[Array, "... n n"]:
    """The Hermitian matrix of real coordinates R."""
    Rt = jnp.swapaxes(R, -1, -2)
    return jax.lax.complex((R + Rt) / 2, (R - Rt) / 2)


def effective(H: Inexact[Array, "n n"], L: Inexact[Array, "j n n"]) -> Complex[Array, "n n"]:
    """K = -i H - sum_j L_j^H L_j / 2."""
    n = H.shape[-1]
    stacked = L.reshape(-1, n)
    return -1j * H - (adjoint(stacked) @ stacked) / 2


def real_generator(
    H: Inexact[Array, "n n"], L: Inexact[Array, "j n n"]
) -> Float[Array, "n_squared n_squared"]:
    """The matrix G, of the rows of R one after another."""
    n = H.shape[-1]
    K = effective(H, L)[None]
    one = jnp.eye(n, dtype=K.dtype)[None]
    left = jnp.concatenate([K, one, L.astype(K.dtype)])
    right = jnp.concatenate([one, K, L.astype(K.dtype)]).conj()
    S = jnp.einsum("aik,ajl->ijkl", left, right)
    G = S.real + jnp.swapaxes(S.imag, -1, -2)
    return G.reshape(n * n, n * n)


class Stacked(NamedTuple):
    """A generator of which no matrix is formed: K and L_j stacked, times a time h, and the L_j^H stacked."""

    left: Complex[Array, "k n"]
    right: Complex[Array, "m n"]


class Products(NamedTuple):
    """A generator of operators of which little is known but their products, times a time h.

    `decay` is sum_j L_j^H L_j / 2, where that is an operator as good as the L_j, else None.
    """

    h: Any
    H: Operator
    jumps: tuple[Operator, ...]
    decay: Operator | None


Unformed: TypeAlias = Stacked | Products


def unformed(H: Any, L: Any, h: Any = 1) -> Unformed:
    """The generator, times h, from what `gathered` gives."""
    if isinstance(H, Operator):
        return Products(h, H, L, _decay(L))
    n = H.shape[-1]
    K = effective(H, L)
    L = L.astype(K.dtype)
    return Stacked(h * jnp.concatenate([K, L.reshape(-1, n)]), adjoint(L).reshape(-1, n))


def apply_unformed(G: Unformed, R: Float[Array, "... n n"]) -> Float[Array, "... n n"]:
    """G R: two matrix products of the stacked operators; or of operators 1 + 3 J, of diagonals 2 + 2 J."""
    *batch, n, _ = R.shape
    rho = to_density(R)
    if isinstance(G, Products):
        half = _half(G, rho.reshape(-1, n, n)).reshape(rho.shape)
    else:
        # All of K rho, L_1 rho, L_2 rho ... at once; and then the sum over j as one inner product.
        products = (G.left @ rho).reshape(*batch, -1, n, n)
        drift, jumped = products[..., 0, :, :], products[..., 1:, :, :]
        jumped = jnp.swapaxes(jumped, -3, -2).reshape(*batch, n, -1)
        half = drift + jumped @ G.right / 2
    return to_real(half + adjoint(half)).astype(R.dtype)


def _half(G: Products, rho: Complex[Array, "b n n"]) -> Complex[Array, "b n n"]:
    """What makes G rho together with its adjoint.

    L rho L^H is the product of L with the adjoint of X = L rho, since rho is Hermitian.
    """
    b, n, _ = rho.shape
    of = lambda A, Y: jnp.moveaxis(
        A.mm(jnp.moveaxis(Y, 0, 1).reshape(n, -1)).reshape(n, b, n), 1, 0
    )
    half = -1j * of(G.H, rho)
    if G.decay is not None:
        half = half - of(G.decay, rho)
    for L in G.jumps:
        X = of(L, rho)
        gain = of(L, adjoint(X))
        half = half + (gain if G.decay is not None else gain - of(L.adjoint(), X)) / 2
    return G.h * half


def _decay(L: Sequence[Operator]) -> Operator | None:
    """sum_j L_j^H L_j / 2 of diagonals of the same sites, which is one of them."""
    if not L or len({A.dims if isinstance(A, Diagonals) else None for A in L}) > 1:
        return None
    terms = [product(A.adjoint(), A) for A in L if isinstance(A, Diagonals)]
    return sum(terms[1:], terms[0]) / 2 if terms else None


def bound_unformed(G: Unformed) -> Float[Array, ""]:
    """A bound of the Frobenius norm that G gives a matrix of norm 1."""
    if isinstance(G, Products):
        # A shift of H drops out of the equation: the radius of the disc around its spectrum is what counts.
        return jnp.abs(G.h) * (2 * disc(G.H).radius + 2 * sum(_norm_bound(L) ** 2 for L in G.jumps))
    n = G.right.shape[-1]
    size = lambda A: jnp.sqrt(jnp.max(jnp.sum(A, -1), -1) * jnp.max(jnp.sum(A, -2), -1))
    # K may be shifted by any i c, which drops out of the equation.
    K = G.left[:n]
    shift = jnp.diagonal(K).imag
    K = K - 0.5j * (jnp.max(shift) + jnp.min(shift)) * jnp.eye(n, dtype=K.dtype)
    hL, L = jnp.abs(G.left[n:].reshape(-1, n, n)), jnp.abs(G.right.reshape(-1, n, n))
    return 2 * size(jnp.abs(K)) + jnp.sum(size(hL) * size(L))


def _norm_bound(A: Operator) -> Array:
    """A bound of the 2-norm."""
    if isinstance(A, Sum):
        return sum(jnp.abs(c) * _norm_bound(B) for c, B in zip(A.factors, A.operators, strict=True))  # type: ignore[return-value]
    if isinstance(A, Diagonals):
        return sum(jnp.max(jnp.abs(D)) for D in A.tensors)  # type: ignore[return-value]
    center, radius = disc(A)
    # The norm is at most twice the largest <x, A x> of a vector of norm 1.
    return 2 * (jnp.abs(center) + radius)


def bound_formed(G: Float[Array, "m m"]) -> Float[Array, ""]:
    """A bound of the 2-norm of a matrix."""
    A = jnp.abs(G)
    return jnp.sqrt(jnp.max(jnp.sum(A, 0)) * jnp.max(jnp.sum(A, 1)))


def dense_hamiltonian(H: Any, name: str) -> Hamiltonian:
    """A Hamiltonian of matrices: operators are made dense, as the density matrix is."""
    is_operator = lambda a: isinstance(a, Operator)
    dense = lambda a: a.to_dense() if is_operator(a) else a
    H = jax.tree.map(dense, as_hamiltonian(H), is_leaf=is_operator)
    if H.matrix_free:
        raise TypeError(f"{name}: a function of time must return an array here, not an operator.")
    return H


def as_jumps(jump_ops: Any, n: int, name: str, dense: bool = True) -> list[Hamiltonian]:
    """Jump operators as sums of terms; arrays become constant ones, and operators arrays where `dense`."""
    if (hasattr(jump_ops, "ndim") and jump_ops.ndim == 2) or isinstance(
        jump_ops, Hamiltonian | Operator
    ):
        raise TypeError(f"{name}: jump_ops must be a sequence of operators; put the one in a list.")
    jumps = []
    for i, op in enumerate(jump_ops):
        try:
            jump = as_hamiltonian(op, "the operator")
            jump = dense_hamiltonian(jump, f"{name}: jump_ops[{i}]") if dense else jump
        except (TypeError, ValueError) as error:
            raise type(error)(f"{name}: jump_ops[{i}]: {error}") from error
        if jump.n != n:
            raise ValueError(
                f"{name}: jump_ops[{i}] must have shape ({n}, {n}) as H has; got ({jump.n}, {jump.n})."
            )
        jumps.append(jump)
    return jumps


def joined(H: Hamiltonian, jumps: Sequence[Hamiltonian]) -> Hamiltonian:
    """All terms of H and of the jump operators in one list, for what needs their edges alone."""
    return Hamiltonian(sum((jump.terms for jump in jumps), H.terms))


def stack(matrices: Sequence[Array], n: int) -> Inexact[Array, "j n n"]:
    """Matrices (n, n), perhaps none, as one array of their common dtype."""
    if not matrices:
        return jnp.zeros((0, n, n), jnp.float32)
    dtype = jnp.result_type(*matrices)
    return jnp.stack([matrix.astype(dtype) for matrix in matrices])


def gathered(H: Any, jumps: Sequence[Any], n: int) -> tuple[Any, Any]:
    """A Hamiltonian and jump operators at one time: an array and the stack of arrays, or if one of them is an
    operator all as operators."""
    if not any(isinstance(A, Operator) for A in (H, *jumps)):
        return H, stack(jumps, n)
    return as_operator("H", H), tuple(as_operator("jump_ops", L) for L in jumps)


def make_operators(
    H: Hamiltonian, jumps: Sequence[Hamiltonian], grid: Grid, then: Callable[..., Any]
) -> tuple[PyTree[Array], PyTree[Array], Callable[..., Any]]:
    """A function (params, fixed, x) of one step's data, with its params and fixed arrays.

    The data of a step is x = (time, size, amplitudes of the controls). What is computed from it is
    ``then(operators, t, h)``, where ``operators(t)`` is (H, jump operators) at a time in the step. `params`
    are matrices, the parameters of the terms' functions, and whatever real or complex arrays these close
    over.
    """
    sums = [H, *jumps]
    n = H.n
    # The amplitudes of controls are data of the steps; of their terms only the matrix is left.
    controlled = [[isinstance(term, Pwc) for term in h.terms] for h in sums]
    bare = [[Constant(t.matrix) if isinstance(t, Pwc) else t for t in h.terms] for h in sums]
    arrays, static = eqx.partition(bare, eqx.is_inexact_array)

    def compute(arrays, x):
        t, h, amplitudes = x
        terms = eqx.combine(arrays, static)

        def operators(t):
            values = iter(amplitudes)
            matrices = []
            for group, controls in zip(terms, controlled, strict=True):
                parts = [
                    next(values) * term.matrix_at(t) if control else term.matrix_at(t)
                    for term, control in zip(group, controls, strict=True)
                ]
                matrices.append(sum(parts[1:], parts[0]))
            return gathered(matrices[0], matrices[1:], n)

        return then(operators, t, h)

    moving, fixed, pure = hoist_step(compute, arrays, grid)

    def function(params, fixed, x):
        arrays, moving = params
        return pure(moving, fixed, arrays, x)

    return (arrays, moving), fixed, function


def exponents(scheme: Scheme, dtype: Any) -> Callable[..., Float[Array, "s n_squared n_squared"]]:
    """For `make_operators`: h sum_i a_si G(t + c_i h), for each s."""

    def then(operators, t, h):
        nodes = jnp.asarray(scheme.nodes, h.dtype)
        weights = jnp.asarray(scheme.weights, h.dtype)
        if len(nodes) == 1:
            G = real_generator(*operators(t + nodes[0] * h))[None]
        else:
            G = jax.vmap(lambda c: real_generator(*operators(t + c * h)))(nodes)
        return (h * jnp.tensordot(weights, G, axes=1)).astype(dtype)

    return then
