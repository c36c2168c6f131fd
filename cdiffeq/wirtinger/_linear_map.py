r"""An R-linear map that carries its own adjoint, as one JAX primitive.

With the pairing ``<x, y> = Re sum(conj(x) * y)`` the map ``T`` and its adjoint ``T*`` satisfy

    <y, T x> = <T* y, x>        for all x and y,

whether ``T`` is linear over the complex numbers or, like ``dz -> A dz + B conj(dz)``, over the
reals alone. Whoever knows both as programs hands them to `linear_map`, and JAX never transposes the
program of either: forward mode runs ``T``, reverse mode runs ``T*``.

JAX pairs bilinearly, ``Re sum(ct * x)``, so its transpose is ``ct -> conj(T* conj(ct))``. The two
conjugates stand in `_transpose` and `pull_back` below and nowhere else in the library.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np
from jax.interpreters import ad, batching, mlir
from jax.typing import ArrayLike
from jaxtyping import Array, Inexact, PyTree


def linear_map(
    forward: Callable[[Any, Any], Any],
    adjoint: Callable[[Any, Any], Any],
    residuals: PyTree[ArrayLike],
    x: PyTree[ArrayLike],
) -> PyTree[Inexact[Array, "..."]]:
    r"""The R-linear map ``T: x -> forward(residuals, x)``, whose adjoint is ``adjoint``.

    The promise is ``<y, forward(r, x)> = <adjoint(r, y), x>`` under the pairing
    ``<x, y> = Re sum(conj(x) * y)``, summed over all leaves; `cdiffeq.testing.check_rule` checks
    it. From this pair come jvp, vjp, vmap, jit, scan, checkpoint and second derivatives. A map
    ``x -> A x + B conj(x)`` has the adjoint ``y -> A^H y + B^T conj(y)``; nothing needs to be
    holomorphic.

    Derivatives with respect to ``residuals``, and to traced values that the two functions close
    over, are those of the program ``forward`` (of ``adjoint``, where that is what runs).

    **Arguments**

    - `forward`: ``(residuals, x) -> T x``, linear over the reals in ``x``.
    - `adjoint`: ``(residuals, y) -> T* y``, with ``y`` shaped as ``T x`` and the result as ``x``.
      Where a leaf of ``x`` is real the real part is taken, which is the projection that the pairing
      asks for.
    - `residuals`: any pytree of arrays that both functions read.
    - `x`: pytree of real or complex floating arrays, any shapes and mixture of dtypes.

    **Returns** ``T x``. **Raises** `TypeError` for an integer leaf in ``x``, for a result of
    ``forward`` that isn't floating or complex, and for a result of ``adjoint`` that isn't shaped
    like ``x``. **Cost**: ``forward`` once; in reverse mode ``adjoint`` once. Written as
    ``conj(A.T @ conj(y))``, ``A^H y`` costs what JAX's own transpose does: the conjugates cancel.

    >>> import jax, jax.numpy as jnp
    >>> A, B = jnp.array([[1.0, 2j]]), jnp.array([[0.5j, 0.0]])
    >>> def f(z):  # a map that isn't holomorphic, from C^2 to C
    ...     forward = lambda r, z: r[0] @ z + r[1] @ jnp.conj(z)
    ...     adjoint = lambda r, y: r[0].conj().T @ y + r[1].T @ jnp.conj(y)
    ...     return linear_map(forward, adjoint, (A, B), z)
    >>> z = jnp.array([1.0 + 1j, 2.0])
    >>> f(z)
    Array([1.5+5.5j], dtype=complex128)
    >>> jax.grad(lambda z: jnp.sum(jnp.abs(f(z)) ** 2))(z)
    Array([ 8.5-12.5j, 22.  +6.j ], dtype=complex128)
    """
    return bind_linear_map(forward, adjoint, residuals, x, derivative=None)


@dataclasses.dataclass(frozen=True, eq=False)
class Derivative:
    """Says that a map is the derivative ``T = Df`` of a function f at a point among its residuals.

    Then second derivatives are symmetric, ``D^2 f [u, v] = D^2 f [v, u]``, and every one of them is
    a forward-mode derivative of T or T*: at second order, too, JAX transposes no program.

    `point` and `value` are the positions, in the flat residuals, of the leaves of the point and of
    f there; `transposed` tells T* from T. A mapped derivative keeps what it was mapped from: the
    primitive's parameters and the axes of the residuals.
    """

    point: range
    value: range
    transposed: bool = False
    mapped: tuple[dict[str, Any], tuple[int | None, ...]] | None = None

    def move(self, n: int) -> Derivative:
        """The same, where `n` residuals have been put in front."""
        shift = lambda r: range(r.start + n, r.stop + n)
        return dataclasses.replace(self, point=shift(self.point), value=shift(self.value))


def bind_linear_map(
    forward: Callable[[Any, Any], Any],
    adjoint: Callable[[Any, Any], Any],
    residuals: PyTree[ArrayLike],
    x: PyTree[ArrayLike],
    *,
    derivative: Derivative | None,
) -> PyTree[Inexact[Array, "..."]]:
    """`linear_map`, where the library may add that the map is a `Derivative`."""
    residuals = jax.tree.map(jnp.asarray, residuals)
    x = jax.tree.map(jnp.asarray, x)
    _require_inexact("x", x)
    forward, out, forward_consts = hoist(forward, residuals, x)
    _require_inexact("the result of `forward`", out)
    adjoint, back, adjoint_consts = hoist(adjoint, residuals, out)
    _require_like("the result of `adjoint`", back, "x", x)

    # Everything below is flat: operands = (values closed over, residuals, x).
    consts = [*forward_consts, *adjoint_consts]
    flat_residuals, _ = jax.tree.flatten(residuals)
    flat_x, x_tree = jax.tree.flatten(x)
    x_dtypes = [leaf.dtype for leaf in flat_x]
    out_tree = jax.tree.structure(out)
    k, c = len(forward_consts), len(consts)
    n = c + len(flat_residuals)
    residuals_tree = jax.tree.structure(residuals)

    def flat_forward(*args):
        y = forward(args[:k], residuals_tree.unflatten(args[c:n]), x_tree.unflatten(args[n:]))
        return jax.tree.leaves(y)

    def flat_adjoint(*args):
        y = adjoint(args[k:c], residuals_tree.unflatten(args[c:n]), out_tree.unflatten(args[n:]))
        return [_project(*leaf) for leaf in zip(jax.tree.leaves(y), x_dtypes, strict=True)]

    outs = linear_map_p.bind(
        *consts,
        *flat_residuals,
        *flat_x,
        forward=Program(flat_forward),
        adjoint=Program(flat_adjoint),
        n=n,
        derivative=None if derivative is None else derivative.move(c),
    )
    return out_tree.unflatten(outs)


def hoist(
    fn: Callable[..., Any], *args: PyTree[Any]
) -> tuple[Callable[..., Any], PyTree[Any], list[Any]]:
    """`fn` without the arrays it closes over: ``(pure, out, consts)``, fn(*a) = pure(consts, *a).

    `fn` is traced once, at the shapes of `args`, so that tracers which it closes over become
    arguments and can be differentiated, mapped and hoisted. `out` is the shape of the result.
    """
    tree = jax.tree.structure(args)
    closed, out = jax.make_jaxpr(fn, return_shape=True)(*args)
    out_tree = jax.tree.structure(out)
    # Traced once more with those values as arguments: a program that held them would keep tracers.
    evaluate = lambda consts, *leaves: jax.core.eval_jaxpr(closed.jaxpr, consts, *leaves)
    program = jax.make_jaxpr(evaluate)(list(closed.consts), *jax.tree.leaves(args))

    def pure(consts, *args):
        if jax.tree.structure(args) != tree:
            got = jax.tree.structure(args)
            raise TypeError(f"expected arguments of structure {tree}, got {got}")
        leaves = (*consts, *jax.tree.leaves(args))
        return out_tree.unflatten(_evaluate(program.jaxpr, program.consts, *leaves))

    return pure, out, list(closed.consts)


def pull_back(
    f: Callable[..., Any], *args: PyTree[Inexact[Array, "..."]]
) -> tuple[Any, Callable[[Any], tuple[Any, ...]]]:
    """``f(*args)`` and the adjoint of its derivative under ``<x, y> = Re sum(conj(x) * y)``.

    `jax.vjp` in the library's own convention: gradients are ``dL/dx + i dL/dy`` on both sides.
    """
    out, vjp = jax.vjp(f, *args)
    conj = lambda tree: jax.tree.map(jnp.conj, tree)
    return out, lambda g: conj(vjp(conj(g)))


class Program:
    """A flat function of arrays that closes over none, traced once for each set of shapes."""

    def __init__(self, fn: Callable[..., list[Array]]):
        self.fn = fn
        self.traced: dict[Any, Any] = {}

    def jaxpr(self, avals: tuple[Any, ...]) -> Any:
        key = tuple((a.shape, a.dtype, a.weak_type) for a in avals)
        if key not in self.traced:
            shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=a.weak_type) for a in avals]
            self.traced[key] = jax.make_jaxpr(self.fn)(*shapes)
        return self.traced[key]

    def __call__(self, *args: Any) -> list[Array]:
        closed = self.jaxpr(tuple(jax.typeof(a) for a in args))
        return _evaluate(closed.jaxpr, closed.consts, *args)


def _evaluate(jaxpr: Any, consts: Sequence[Any], *args: Any) -> list[Array]:
    # Literals come back as NumPy arrays of JAX's own.
    return [jnp.asarray(y) for y in jax.core.eval_jaxpr(jaxpr, consts, *args)]


def _require_inexact(name: str, tree: PyTree[Any]) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            where = name + jax.tree_util.keystr(path)
            raise TypeError(
                f"linear_map: {where} has dtype {leaf.dtype}; a linear map acts on floating or "
                "complex arrays. Pass integers among the residuals."
            )


def _require_like(name: str, got: PyTree[Any], like_name: str, like: PyTree[Any]) -> None:
    if jax.tree.structure(got) != jax.tree.structure(like):
        raise TypeError(
            f"linear_map: {name} has structure {jax.tree.structure(got)}, but {like_name} has "
            f"{jax.tree.structure(like)}."
        )
    leaves = zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(like), strict=True)
    for (path, g), x in leaves:
        width = lambda dtype: jnp.finfo(dtype).bits if jnp.issubdtype(dtype, jnp.inexact) else None
        if g.shape != x.shape or width(g.dtype) != width(x.dtype):
            raise TypeError(
                f"linear_map: {name}{jax.tree_util.keystr(path)} is {g.dtype}{list(g.shape)}, but "
                f"{like_name}{jax.tree_util.keystr(path)} is {x.dtype}{list(x.shape)}."
            )


def _project(y: Array, dtype: np.dtype) -> Array:
    """The real part where the space is real: the adjoint of the inclusion of R in C."""
    if not jnp.issubdtype(dtype, jnp.complexfloating):
        y = jnp.real(y)
    return y.astype(dtype)


def primitive(name: str, program: str) -> jex.core.Primitive:
    """A primitive that runs the `Program` in its parameter `program`."""
    p = jex.core.Primitive(name)
    p.multiple_results = True
    run = lambda *args, **params: params[program](*args)
    p.def_impl(run)
    p.def_abstract_eval(lambda *avals, **params: params[program].jaxpr(avals).out_avals)
    mlir.register_lowering(p, mlir.lower_fun(run, multiple_results=True))
    return p


linear_map_p = primitive("linear_map", "forward")


def _batch(args, dims, *, forward, adjoint, n, derivative):
    size = next(a.shape[d] for a, d in zip(args, dims, strict=True) if d is not None)
    # Residuals that aren't mapped stay single. x is mapped as a whole, so that T* y always is too.
    x = [
        jnp.broadcast_to(a, (size, *a.shape)) if d is None else jnp.moveaxis(a, d, 0)
        for a, d in zip(args[n:], dims[n:], strict=True)
    ]
    mapped = lambda fn: Program(lambda *a: jax.vmap(fn, (*dims[:n], *[0] * (len(a) - n)))(*a))
    if derivative is not None:
        single = dict(forward=forward, adjoint=adjoint, n=n, derivative=derivative)
        derivative = dataclasses.replace(derivative, mapped=(single, tuple(dims[:n])))
    params = dict(forward=mapped(forward), adjoint=mapped(adjoint), n=n, derivative=derivative)
    out = linear_map_p.bind(*args[:n], *x, **params)
    return out, [0] * len(out)


batching.primitive_batchers[linear_map_p] = _batch


def _jvp(primals, tangents, *, forward, adjoint, n, derivative):
    params = dict(forward=forward, adjoint=adjoint, n=n, derivative=derivative)
    out = linear_map_p.bind(*primals, **params)
    still = [type(t) is ad.Zero for t in tangents]
    dense = [instantiate(p, t) for p, t in zip(primals, tangents, strict=True)]
    terms = []
    if not all(still[n:]):  # linear in x: the same map
        terms.append(linear_map_p.bind(*primals[:n], *dense[n:], **params))
    if not all(still[:n]):  # the residuals move
        if derivative is None:
            move = lambda *r: forward(*r, *primals[n:])
            terms.append(jax.jvp(move, tuple(primals[:n]), tuple(dense[:n]))[1])
        else:
            known = [*derivative.point, *derivative.value]
            if not all(s for i, s in enumerate(still[:n]) if i not in known):
                raise TypeError(
                    "a rule's tangent or adjoint closes over a value that is being differentiated; "
                    "pass it as an argument of the function."
                )
            moving = [dense[i] for i in known]
            terms.append(_move_point(primals[:n], primals[n:], moving, **params))
    if not terms:
        return out, [ad.Zero.from_primal_value(o) for o in out]
    return out, [sum(t[1:], t[0]) for t in zip(*terms, strict=True)]


ad.primitive_jvps[linear_map_p] = _jvp


def _move_point(residuals, x, moving, *, forward, adjoint, n, derivative):
    r"""The term of the jvp in which the point of a `Derivative` moves, itself a linear map.

    For T = Df(p): dp -> D^2 f [x, dp], with the adjoint y -> D_x (T* y), the derivative of T* y as
    the point moves along x. For T* = Df(p)*: dp -> D_dp (T* y), which is self-adjoint. The value
    f(p) moves with the point, along T dp; its cotangent is accounted for in the point's, so it is
    returned as zero.
    """
    if derivative.mapped is not None:  # a point that isn't mapped may be shared by many x
        single, dims = derivative.mapped
        axes = [dims[i] for i in (*derivative.point, *derivative.value)]
        move = lambda *args: _move_point(*args, **single)
        return jax.vmap(move, (list(dims), 0, axes))(list(residuals), list(x), moving)

    known = [*derivative.point, *derivative.value]
    # T and T* as such, whichever of the two runs here.
    tangent, pull_back = (adjoint, forward) if derivative.transposed else (forward, adjoint)

    def along(fn, residuals, y, moving):
        """The derivative of fn(., y) as the point and the value move, and nothing else does."""

        def of_known(*values):
            full = list(residuals)
            for i, value in zip(known, values, strict=True):
                full[i] = value
            return fn(*full, *y)

        return jax.jvp(of_known, tuple(residuals[i] for i in known), tuple(moving))[1]

    def second(state, moving):
        residuals, x = state
        return along(forward, residuals, x, moving)

    def second_adjoint(state, y):
        residuals, x = state
        direction, y = (y, x) if derivative.transposed else (x, y)
        moving = [*direction, *tangent(*residuals, *direction)]
        point = along(pull_back, residuals, y, moving)
        return [*point, *[jnp.zeros_like(residuals[i]) for i in derivative.value]]

    # Literals of a program are NumPy arrays of JAX's own.
    state, moving = jax.tree.map(jnp.asarray, ((list(residuals), list(x)), moving))
    return linear_map(second, second_adjoint, state, moving)


def _transpose(cts, *args, forward, adjoint, n, derivative):
    unknown = [ad.is_undefined_primal(a) for a in args]
    assert not any(unknown[:n]), "linear_map is linear in x, not in its residuals"
    conj = lambda leaves: [jnp.conj(y) for y in leaves]
    y = [jnp.zeros(c.aval.shape, c.aval.dtype) if type(c) is ad.Zero else c for c in cts]
    params = _swap(dict(forward=forward, adjoint=adjoint, n=n, derivative=derivative))
    out = conj(linear_map_p.bind(*args[:n], *conj(y), **params))
    return [*[None] * n, *[o if u else None for o, u in zip(out, unknown[n:], strict=True)]]


ad.primitive_transposes[linear_map_p] = _transpose


def _swap(params):
    """The parameters of the adjoint map."""
    derivative = params["derivative"]
    if derivative is not None:
        mapped = derivative.mapped and (_swap(derivative.mapped[0]), derivative.mapped[1])
        derivative = dataclasses.replace(
            derivative, transposed=not derivative.transposed, mapped=mapped
        )
    return dict(
        forward=params["adjoint"], adjoint=params["forward"], n=params["n"], derivative=derivative
    )


def instantiate(primal, tangent):
    """`tangent`, or zeros if it is a symbolic zero."""
    return _zero(primal) if type(tangent) is ad.Zero else tangent


def _zero(primal):
    """The zero tangent of `primal`; integers have tangents of the empty dtype float0."""
    if jnp.issubdtype(primal.dtype, jnp.inexact):
        return jnp.zeros_like(primal)
    return np.zeros(primal.shape, jax.dtypes.float0)
