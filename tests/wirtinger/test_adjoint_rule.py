"""Rules made of a primal, a tangent and an adjoint, against JAX's derivatives of closed forms."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cdiffeq as cd
from cdiffeq.wirtinger import adjoint_rule

RNG = np.random.default_rng(0)


def _complex(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.normal(size=shape) + 1j * RNG.normal(size=shape))


def _close(got: Any, expected: Any, rtol: float = 1e-11) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for g, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert (g.shape, g.dtype) == (e.shape, e.dtype)
        np.testing.assert_allclose(g, e, rtol=rtol, atol=rtol * float(jnp.max(jnp.abs(e))))


# x^2 = z + t conj(z), with z complex and t real. Everything is found by iterations that stop when
# they have converged: loops that JAX cannot reverse, in the primal, the tangent and the adjoint.


def _iterate(step: Callable, x: jax.Array) -> jax.Array:
    """x <- step(x) until it stays the same, and once more."""
    far = lambda x, y: jnp.any(jnp.abs(x - y) > 8 * jnp.finfo(x.dtype).eps * jnp.abs(x))
    start = (x, step(x), 0)
    go_on = lambda s: (s[2] < 50) & far(s[0], s[1])
    return step(jax.lax.while_loop(go_on, lambda s: (s[1], step(s[1]), s[2] + 1), start)[1])


def _divide(a: jax.Array, b: jax.Array) -> jax.Array:
    return a * _iterate(lambda r: r * (2 - b * r), 0.9 * jnp.conj(b) / jnp.abs(b) ** 2)


@adjoint_rule
def root(z, t):
    c = z + t * jnp.conj(z)
    return _iterate(lambda x: (x + c / x) / 2, c)


@root.def_tangent
def _(args, x, dargs):
    (z, t), (dz, dt) = args, dargs
    return _divide(dz + t * jnp.conj(dz) + dt * jnp.conj(z), 2 * x)


@root.def_adjoint
def _(args, x, g):
    z, t = args
    q = _divide(g, 2 * jnp.conj(x))
    return q + t * jnp.conj(q), jnp.sum(q * z)  # the second is complex: its real part counts


def closed_form(z, t):
    return jnp.sqrt(z + t * jnp.conj(z))


Z, T = jnp.array([1.0 + 0.4j, 0.6 - 0.9j]), jnp.asarray(0.3)
P, D = {"z": Z, "t": T}, {"z": _complex(2) / 4, "t": jnp.asarray(0.2)}
W = _complex(2)


def _loss(f: Callable) -> Callable:
    def L(p):
        x = f(p["z"], p["t"])
        return jnp.sum(jnp.abs(x) ** 4) + jnp.real(jnp.sum(W * x**3 * jnp.conj(p["z"])))

    return L


def test_every_derivative(transform: Callable):
    _close(transform(_loss(root), P, D), transform(_loss(closed_form), P, D))


@pytest.mark.parametrize("dtype", [jnp.complex128, jnp.complex64, jnp.float64])
def test_against_finite_differences(dtype: Any):
    z = Z.astype(dtype) if jnp.issubdtype(dtype, jnp.complexfloating) else Z.real
    t = T.astype(jnp.finfo(dtype).dtype)
    cd.testing.check_rule(root, z, t)
    assert root(z, t).dtype == dtype
    gz, gt = jax.vjp(root, z, t)[1](root(z, t))
    assert (gz.dtype, gt.dtype) == (z.dtype, t.dtype)


def test_second_derivatives_against_finite_differences():
    cd.testing.check_rule(root, Z, T, modes=("hvp",))


def test_jax_cannot_reverse_the_primal():
    with pytest.raises(ValueError, match="Reverse-mode"):
        jax.grad(lambda t: jnp.sum(jnp.abs(root.primal(Z, t))))(T)


def test_a_point_and_a_direction_may_be_mapped_apart():
    Zs = jnp.stack([Z, 1.1 * Z, Z + 0.2])

    def run(f):
        L = _loss(f)
        at = lambda z, t, d: jax.jvp(jax.grad(L), ({"z": z, "t": t},), (d,))[1]
        twice = lambda z, t: sum(
            jnp.sum(jnp.abs(g) ** 2) for g in jax.tree.leaves(jax.grad(L)({"z": z, "t": t}))
        )
        total = lambda Zs, t: jnp.sum(jax.vmap(twice, (0, None))(Zs, t))
        return jax.vmap(at, (0, None, None))(Zs, T, D), jax.grad(total, (0, 1))(Zs, T)

    _close(jax.jit(lambda: run(root))(), jax.jit(lambda: run(closed_form))())


def test_the_adjoint_keeps_the_arguments_and_the_output_only():
    kept = jax.tree.leaves(jax.vjp(root, Z, T)[1])
    arrays = [k for k in kept if isinstance(k, jax.Array)]
    for array in arrays:
        assert any(
            array.shape == one.shape and bool(jnp.all(array == one))
            for one in (Z, T, root(Z, T), jnp.conj(Z), jnp.conj(root(Z, T)))
        )
    assert len(arrays) <= 3


# Programs that JAX knows nothing of.


@adjoint_rule
def on_the_host(A, b):
    solve = lambda A, b: np.linalg.solve(A, b)
    return jax.pure_callback(solve, b, A, b, vmap_method="sequential")


@on_the_host.def_tangent
def _(args, x, dargs):
    (A, _), (dA, db) = args, dargs
    return jnp.linalg.solve(A, db - dA @ x)


@on_the_host.def_adjoint
def _(args, x, g):
    gb = jnp.linalg.solve(args[0].conj().T, g)
    return -jnp.outer(gb, x.conj()), gb


HOST = ["vjp", "jvp", "forward over reverse", "reverse over reverse", "reverse over forward"]
HOST += ["vmap of points", "reverse over vmap over reverse", "scan, reverse twice"]


@pytest.mark.parametrize("transform", HOST, indirect=True)
def test_a_primal_on_the_host(transform: Callable):
    L = lambda f: lambda p: _loss(lambda z, t: f(*p["system"]))({"z": p["system"][1], "t": 0.0})
    p = {"system": (jnp.array([[2.0, 1j], [0.3 - 1j, 1.0]]), Z)}
    d = {"system": (_complex(2, 2), _complex(2))}
    _close(transform(L(on_the_host), p, d), transform(L(jnp.linalg.solve), p, d))


# Pytrees, and arguments without a derivative.


@adjoint_rule(nondiff=("rows", "fn", "conjugate"))
def gather(weights, rows, fn, x, *, conjugate=False):
    """{"y": scale * x[rows]} or its conjugate, after `fn`."""
    y = weights["scale"] * x[rows]
    return {"y": fn(jnp.conj(y) if conjugate else y), "r": weights["shift"][0]}


@gather.def_tangent
def _(args, out, dargs):
    weights, rows, fn, x, conjugate = args
    dweights, drows, dfn, dx, dconjugate = dargs
    assert drows is dfn is dconjugate is None
    dy = dweights["scale"] * x[rows] + weights["scale"] * dx[rows]
    return {"y": fn(jnp.conj(dy) if conjugate else dy), "r": dweights["shift"][0]}


@gather.def_adjoint
def _(args, out, g):
    weights, rows, fn, x, conjugate = args
    gy = fn(jnp.conj(g["y"]) if conjugate else g["y"])
    gweights = {"scale": jnp.sum(jnp.conj(x[rows]) * gy), "shift": (g["r"],)}
    return gweights, jnp.zeros_like(x).at[rows].add(weights["scale"] * gy)


ROWS = jnp.array([2, 0, 2])
WEIGHTS = {"scale": jnp.asarray(0.7), "shift": (jnp.array([1 + 1j, 2.0]),)}
X = _complex(3)
triple = lambda y: 3 * y


@pytest.mark.parametrize("conjugate", [False, True])
def test_pytrees_and_arguments_without_a_derivative(conjugate: bool):
    def run(f):
        def L(weights, x, rows):
            out = f(weights, rows, fn=triple, x=x, conjugate=conjugate)
            y = jnp.sum(jnp.abs(out["y"]) ** 4) + jnp.real(jnp.sum(W[0] * out["y"] ** 2))
            return y + jnp.sum(jnp.abs(out["r"]) ** 4)

        grad = jax.grad(L, (0, 1))
        product = lambda rows: jax.jvp(
            lambda w, x: grad(w, x, rows), (WEIGHTS, X), (WEIGHTS, 1j * X)
        )[1]
        reverse_twice = jax.grad(lambda x: jnp.sum(jnp.abs(grad(WEIGHTS, x, ROWS)[1]) ** 2))
        return (
            grad(WEIGHTS, X, ROWS),
            jax.vmap(product)(jnp.stack([ROWS, ROWS - 2])),
            reverse_twice(X),
        )

    _close(jax.jit(lambda: run(gather))(), jax.jit(lambda: run(gather.primal))())


def test_defaults_and_names_are_those_of_the_primal():
    expected = gather.primal(WEIGHTS, ROWS, triple, X)
    _close(gather(WEIGHTS, ROWS, triple, X), expected)
    _close(gather(x=X, fn=triple, rows=ROWS, weights=WEIGHTS), expected)
    assert gather.__name__ == "gather"
    assert gather.__doc__ == gather.primal.__doc__
    with pytest.raises(TypeError, match="missing a required argument: 'x'"):
        gather(WEIGHTS, ROWS, triple)


def test_any_number_of_arguments():
    @adjoint_rule
    def total(*xs, **scaled):
        return sum(xs) + 2 * scaled["a"]

    total.def_tangent(lambda args, out, dargs: sum(dargs[0]) + 2 * dargs[1]["a"])
    total.def_adjoint(lambda args, out, g: ((g,) * len(args[0]), {"a": 2 * g}))
    got = jax.grad(lambda x: jnp.sum(jnp.abs(total(x, 1j * x, a=1j * x)) ** 2))(Z)
    _close(got, jax.grad(lambda x: jnp.sum(jnp.abs(x + 3j * x) ** 2))(Z), 1e-14)


@adjoint_rule(nondiff=("k",))
def times(x, k):
    return k * x


times.def_tangent(lambda args, out, dargs: args[1] * dargs[0])
times.def_adjoint(lambda args, out, g: (jnp.conj(args[1]) * g,))


@pytest.mark.parametrize(
    "derivative",
    [
        lambda f: jax.grad(f)(1.5),
        lambda f: jax.jvp(f, (1.5,), (1.0,)),
        lambda f: jax.jit(jax.grad(f))(1.5),
        lambda f: jax.vmap(jax.grad(f))(jnp.ones(2)),
        lambda f: jax.grad(
            lambda k: jnp.sum(jnp.abs(jax.grad(lambda z: jnp.sum(jnp.abs(times(z, k))))(Z)))
        )(1.5),
    ],
)
def test_no_derivative_where_none_was_promised(derivative: Callable):
    with pytest.raises(TypeError, match="times: derivative in the non-differentiable argument 'k'"):
        derivative(lambda k: jnp.sum(jnp.abs(times(Z, jnp.asarray(k)))))


# What is refused.


def test_an_unknown_name():
    with pytest.raises(TypeError, match="nondiff names 'tol', but f has the arguments x, steps"):
        adjoint_rule(nondiff=("tol",))(_named_f())


def _named_f():
    def f(x, steps):
        return x

    return f


@pytest.mark.parametrize(
    "x, message",
    [
        (jnp.arange(2), r"f: argument x is an array of int64"),
        ({"a": jnp.ones(2, bool)}, r"f: argument x\['a'\] is an array of bool"),
        (3, "f: argument x is int"),
        ("word", "f: argument x is str"),
        (np.sin, "f: argument x is ufunc"),
    ],
)
def test_arguments_without_a_derivative_must_be_named(x: Any, message: str):
    with pytest.raises(
        TypeError, match=message + ".*which has no derivative.*name it in `nondiff`"
    ):
        adjoint_rule(nondiff=("steps",))(_named_f())(x, 3)


def _rule(**programs: Callable) -> Callable:
    @adjoint_rule
    def f(a, b):
        return a * b

    if "tangent" in programs:
        f.def_tangent(programs["tangent"])
    if "adjoint" in programs:
        f.def_adjoint(programs["adjoint"])
    return lambda a, b: jnp.sum(jnp.abs(f(a, b)))


def _tangent(args, out, dargs):
    return dargs[0] * args[1] + args[0] * dargs[1]


def _adjoint(args, out, g):
    a, b = args
    return b.conj() * g, a.conj() * g


@pytest.mark.parametrize(
    "programs, message",
    [
        (dict(adjoint=_adjoint), "f has no tangent: use `@f.def_tangent`"),
        (dict(tangent=_tangent), "f has no adjoint: use `@f.def_adjoint`"),
        (
            dict(tangent=lambda *a: _tangent(*a)[:1], adjoint=_adjoint),
            r"f: the tangent is complex128\[1\], the output complex128\[2\]",
        ),
        (
            dict(tangent=lambda *a: _tangent(*a).real, adjoint=_adjoint),
            r"f: the tangent is float64\[2\], the output complex128\[2\]",
        ),
        (
            dict(tangent=lambda *a: (_tangent(*a),), adjoint=_adjoint),
            r"f: the tangent is \(.*\), the output complex128\[2\]",
        ),
        (
            dict(tangent=_tangent, adjoint=lambda *a: _adjoint(*a)[:1]),
            "f: the adjoint must return a tuple with one entry for each of the 2 .*, got 1 entries",
        ),
        (
            dict(tangent=_tangent, adjoint=lambda *a: _adjoint(*a)[0]),
            "f: the adjoint must return a tuple",
        ),
        (
            dict(tangent=_tangent, adjoint=lambda *a: (_adjoint(*a)[0], jnp.ones(3))),
            r"\[1\] is float64\[3\], but .*\[1\] is complex128\[2\]",
        ),
        (
            dict(tangent=_tangent, adjoint=lambda *a: (_adjoint(*a)[0], {"b": Z})),
            "structure .*'b'.*, but .* has .*",
        ),
    ],
)
def test_a_derivative_without_a_right_program(programs: dict, message: str):
    loss = _rule(**programs)
    loss(Z, W)  # the value needs neither
    with pytest.raises(TypeError, match=message):
        jax.grad(loss)(Z, W)


def test_a_primal_that_closes_over_a_traced_value():
    def loss(c):
        f = adjoint_rule(lambda x: c * x)
        return jnp.sum(jnp.abs(f(Z)))

    for run in (jax.grad(loss), jax.jit(loss), lambda c: jax.jvp(loss, (c,), (c,))):
        with pytest.raises(TypeError, match=r"closes over a traced value.*pass it as an argument"):
            run(0.5)
    np.testing.assert_allclose(loss(0.5), np.sum(np.abs(0.5 * Z)))  # a number is no trouble


def test_a_tangent_that_closes_over_a_value_being_differentiated():
    # To first order that is right; a second derivative would miss how the tangent depends on c.
    def loss(c, x):
        f = adjoint_rule(lambda x, c: c * x)
        f.def_tangent(lambda args, out, dargs: c * dargs[0] + dargs[1] * args[0])
        f.def_adjoint(lambda args, out, g: (c * g, jnp.sum(jnp.conj(args[0]) * g)))
        return jnp.sum(jnp.abs(f(x, c)) ** 2)

    np.testing.assert_allclose(jax.grad(loss, 1)(0.5, Z), 0.5 * jnp.conj(Z), rtol=1e-14)
    with pytest.raises(TypeError, match="closes over a value that is being differentiated"):
        jax.grad(lambda c: jnp.sum(jnp.abs(jax.grad(loss, 1)(c, Z))))(0.5)
