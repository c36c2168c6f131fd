"""Complex programs computed with in pairs of real numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdiffeq.ode._real import Pair, realify, split


def arithmetic(z, A, x):
    """All that has a rule, zero parts of both kinds, and numbers beside arrays."""
    w = 1j * z - (2 - 1j) * jnp.conj(z) / 4 + 3
    w = w + z**2 - jnp.square(z) * x + (x + 1j) * (1j - x) + (x * 1j + 1) - (1j - x)
    return A @ w + A.real @ z + z.sum() * (x @ A) + (x + 0j) * z.real + z.imag


def shapes(z, A, x):
    w = jnp.roll(z, 1).at[1:2].set(1j * z[:1])
    w = jnp.where(x > 0, w, jnp.stack([z, w])[1][::-1]) + jnp.pad(z[:-1], (0, 1))
    w = w + (x + 0j + 1j)[::-1]  # a number fills what was zero
    zero = jnp.concatenate([jnp.zeros(2, z.dtype), x[2:] + 0j])
    return (
        jnp.cumsum(w)[None, :].T.reshape(-1)
        + zero
        + jnp.diagonal(A + jnp.eye(len(x), dtype=x.dtype))
    )


def others(z, A, x):
    """What has no rule is handed complex numbers."""
    w = jnp.exp(1j * x) * jnp.abs(z) / (1 + z) + jax.nn.silu(x) * z**3
    w = jax.lax.fori_loop(0, 3, lambda _, w: 1j * w + z, w)
    return jax.lax.cond(x[0] > 0, lambda w: w.conj(), lambda w: w, w) + jnp.fft.fft(z)


def whole(a):
    return jax.lax.complex(a.re, a.im) if isinstance(a, Pair) else a


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
@pytest.mark.parametrize("f", [arithmetic, shapes, others])
def test_values_and_derivatives_are_those_of_the_complex_program(f, dtype):
    rng = np.random.default_rng(3)
    real = np.finfo(dtype).dtype
    draw = lambda *shape: jnp.asarray(rng.standard_normal((*shape, 2)) @ [1, 1j], dtype)
    z, A, x = draw(4), draw(4, 4), jnp.asarray(rng.standard_normal(4), real)
    program = realify(f, z, A, x)
    in_pairs = lambda z, A, x: whole(program(*split((z, A, x))))
    tolerance = 100 * np.finfo(dtype).eps

    @jax.jit
    def both(z, A, x, g):
        values, pulls = zip(*(jax.vjp(fn, z, A, x) for fn in (in_pairs, f)), strict=True)
        return tuple((value, *pull(g)) for value, pull in zip(values, pulls, strict=True))

    for a, b in zip(*both(z, A, x, draw(4)), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=10 * tolerance)


def test_products_with_zero_parts_are_left_out():
    z, x = jnp.ones((2, 4), complex), jnp.ones(4)
    program = realify(lambda z, x: 1j * (x * z[0]) + 2 * z[1], z, x)
    jaxpr = jax.make_jaxpr(program)(*split((z, x)))
    assert sum(eqn.primitive.name == "mul" for eqn in jaxpr.eqns) == 6
