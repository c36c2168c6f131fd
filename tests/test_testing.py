"""check_rule passes right rules and reports wrong ones: which argument, which mode."""

import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdiffeq.testing import check_rule

# The rules under test are all of y = r z^2 + conj(z), entry by entry, z complex and r real:
#     dy = A dz + conj(dz) + z^2 dr,   A = 2 r z,
# for JAX     ct -> A ct + conj(ct),  Re(z^2 ct).
Z = np.array([0.3 + 0.5j, -1.1 + 0.2j, 0.4 - 0.9j])
R = np.array([0.7, -0.4, 1.2])


def _value(z, r):
    return r * z**2 + z.conj()


def _with_vjp(backward: Callable, forward: Callable = _value) -> Callable:
    """The function with the given backward map (z, r, ct) -> (gradient of z, gradient of r)."""
    f = jax.custom_vjp(lambda z, r: _value(z, r))
    f.defvjp(lambda z, r: (forward(z, r), (z, r)), lambda zr, ct: backward(*zr, ct))
    return f


def _with_jvp(tangent: Callable) -> Callable:
    """The function with the given tangent map (z, r, dz, dr) -> dy."""
    f = jax.custom_jvp(lambda z, r: _value(z, r))
    f.defjvp(lambda primals, tangents: (_value(*primals), tangent(*primals, *tangents)))
    return f


def _mistakes(f: Callable, *args, **kwargs) -> list[tuple]:
    """(mode, argument, text) of every line of the report."""
    with pytest.raises(AssertionError, match=r"^check_rule: ") as error:
        check_rule(f, *args, **kwargs)
    lines = str(error.value).splitlines()
    assert lines[0].startswith(f"check_rule: {len(lines) - 1} mistake")
    found = [re.fullmatch(r"  ([a-z ]+), (.*?), (output.*)", line) for line in lines[1:]]
    return [match.groups() for match in found if match]


def _gz(z, r, ct):
    return 2 * r * z * ct + ct.conj()


def _gr(z, r, ct):
    return (z**2 * ct).real


# A right rule first; then mistakes, each with the one argument that it is in.
def test_right_vjp():
    check_rule(_with_vjp(lambda *a: (_gz(*a), _gr(*a))), Z, R, modes=("vjp",))


WRONG_VJP = {
    "missing conjugate on B": (0, lambda z, r, ct: (2 * r * z * ct + ct, _gr(z, r, ct))),
    "conjugate on A": (0, lambda z, r, ct: (2 * r * z.conj() * ct + ct.conj(), _gr(z, r, ct))),
    "result conjugated": (0, lambda *a: (_gz(*a).conj(), _gr(*a))),
    "B dropped": (0, lambda z, r, ct: (2 * r * z * ct, _gr(z, r, ct))),
    "A dropped": (0, lambda z, r, ct: (ct.conj(), _gr(z, r, ct))),
    "factor of 2": (0, lambda *a: (2 * _gz(*a), _gr(*a))),
    "sign": (0, lambda z, r, ct: (2 * r * z * ct - ct.conj(), _gr(z, r, ct))),
    "real part only": (0, lambda *a: (_gz(*a).real + 0j, _gr(*a))),
    "imaginary part only": (0, lambda *a: (1j * _gz(*a).imag, _gr(*a))),
    "one entry, one part in a million": (
        0,
        lambda *a: (_gz(*a).at[1].multiply(1 + 1e-6), _gr(*a)),
    ),
    "NaN": (0, lambda *a: (_gz(*a).at[2].set(jnp.nan), _gr(*a))),
    "zero": (0, lambda *a: (jnp.zeros(3, complex), _gr(*a))),
    "real argument: factor of 2": (1, lambda *a: (_gz(*a), 2 * _gr(*a))),
    "real argument: sign": (1, lambda *a: (_gz(*a), -_gr(*a))),
    "real argument: conjugate": (1, lambda z, r, ct: (_gz(z, r, ct), (z**2 * ct.conj()).real)),
    "real argument: imaginary part": (1, lambda z, r, ct: (_gz(z, r, ct), (z**2 * ct).imag)),
}


@pytest.mark.parametrize("name", WRONG_VJP)
def test_wrong_vjp(name: str):
    argument, backward = WRONG_VJP[name]
    found = _mistakes(_with_vjp(backward), Z, R, modes=("vjp",))
    assert [(mode, where) for mode, where, _ in found] == [("vjp", f"argument {argument}")]


@pytest.mark.parametrize(
    "backward, text",
    [
        # 1 + 1j for a real input, which JAX lets pass. The real part is right.
        (
            lambda z, r, ct: (_gz(z, r, ct), z**2 * ct),
            "the gradient is complex128, the argument float64",
        ),
        (
            lambda z, r, ct: (_gz(z, r, ct), _gr(z, r, ct).astype(jnp.float32)),
            "the gradient is float32, the argument float64",
        ),
    ],
)
def test_wrong_dtype(backward: Callable, text: str):
    found = _mistakes(_with_vjp(backward), Z, R, modes=("vjp",))
    assert found[0][:2] == ("vjp", "argument 1") and text in found[0][2]
    assert {where for _, where, _ in found} == {"argument 1"}


def test_complex64_gradient_of_a_complex128_argument():
    f = _with_vjp(lambda *a: (_gz(*a).astype(jnp.complex64), _gr(*a)))
    found = _mistakes(f, Z, R, modes=("vjp",))
    assert "the gradient is complex64, the argument complex128" in found[0][2]


def test_a_rule_in_the_convention_of_torch_is_recognised():
    f = _with_vjp(lambda z, r, ct: (2 * r * z.conj() * ct + ct.conj(), (z**2 * ct.conj()).real))
    found = _mistakes(f, Z, R, modes=("vjp",))
    assert {where for _, where, _ in found} == {"argument 0", "argument 1"}
    assert all("It would be right for PyTorch" in text for _, _, text in found)


def test_another_value_under_differentiation():
    f = _with_vjp(lambda *a: (_gz(*a), _gr(*a)), forward=lambda z, r: 1.001 * _value(z, r))
    found = _mistakes(f, Z, R, modes=("vjp",))
    assert found == [("vjp", "any argument", found[0][2])]
    assert "the value of f itself is another" in found[0][2]


def test_right_jvp():
    f = _with_jvp(lambda z, r, dz, dr: 2 * r * z * dz + dz.conj() + z**2 * dr)
    check_rule(f, Z, R, modes=("jvp", "vjp", "hvp"))


WRONG_JVP = {
    "missing conjugate": (0, lambda z, r, dz, dr: 2 * r * z * dz + dz + z**2 * dr),
    "conjugate on A": (0, lambda z, r, dz, dr: 2 * r * z.conj() * dz + dz.conj() + z**2 * dr),
    "B dropped": (0, lambda z, r, dz, dr: 2 * r * z * dz + z**2 * dr),
    "factor of 2": (0, lambda z, r, dz, dr: 2 * (2 * r * z * dz + dz.conj()) + z**2 * dr),
    "sign": (0, lambda z, r, dz, dr: 2 * r * z * dz - dz.conj() + z**2 * dr),
    "real part only": (0, lambda z, r, dz, dr: (2 * r * z + 1) * dz.real + z**2 * dr),
    "real argument dropped": (1, lambda z, r, dz, dr: 2 * r * z * dz + dz.conj()),
    "real argument: conjugate": (
        1,
        lambda z, r, dz, dr: 2 * r * z * dz + dz.conj() + z.conj() ** 2 * dr,
    ),
}


@pytest.mark.parametrize("name", WRONG_JVP)
def test_wrong_jvp(name: str):
    argument, tangent = WRONG_JVP[name]
    # JAX transposes the wrong tangent, so the vjp is as wrong, and agrees with it.
    found = _mistakes(_with_jvp(tangent), Z, R)
    assert sorted(line[:2] for line in found) == [
        ("jvp", f"argument {argument}"),
        ("vjp", f"argument {argument}"),
    ]


def test_tangent_and_adjoint_that_disagree():
    # Off by 1e-10 from each other: too little for finite differences.
    def f(z, r):
        return jax.custom_derivatives.linear_call(
            lambda r, z: r * z, lambda r, ct: r * ct * (1 + 1e-10), r, z
        )

    found = _mistakes(lambda z: f(z, jnp.asarray(R)), Z)
    assert [line[:2] for line in found] == [("jvp and vjp", "argument 0")]
    check_rule(lambda z: f(z, jnp.asarray(R)), Z, pairing_rtol=1e-9)


def test_a_wrong_second_derivative():
    def tangent(z, r, dz, dr):
        A = jax.lax.stop_gradient(2 * r * z)  # right to first order, constant to second
        return A * dz + dz.conj() + z**2 * dr

    f = _with_jvp(tangent)
    check_rule(f, Z, R)
    with pytest.raises(AssertionError) as error:
        check_rule(f, Z, R, modes=("hvp",))
    # d(gradient of z) lacks z and r; d(gradient of r) is that of z^2 and right.
    lines = str(error.value).splitlines()[1:]
    starts = [re.sub(r"\[.*", "", line) for line in lines]
    assert sorted(starts) == [
        "  hvp, argument 0, gradient of argument 0",
        "  hvp, argument 1, gradient of argument 0",
    ]


def test_the_report_gives_path_entry_and_figures():
    @jax.custom_jvp
    def f(params, n):
        return {"y": n * params["a"][0] ** 2, "w": params["b"] * 1j}

    @f.defjvp
    def _(primals, tangents):
        (params, n), (d, _) = primals, tangents
        dy = n * 2 * params["a"][0] * d["a"][0] * jnp.array([1.0, 1.0, 3.0])
        return f(params, n), {"y": dy, "w": d["b"] * 1j}

    params = {"a": [jnp.asarray(Z)], "b": jnp.asarray(R)}
    with pytest.raises(AssertionError) as error:
        check_rule(f, params, 2, modes=("jvp",))
    pattern = (
        r"check_rule: 1 mistake\n  jvp, argument 0\['a'\]\[0\], output\['y'\]\[2\]: "
        r"expected (\S+), got (\S+), relative error (\S+); "
        r"the finite difference itself is good to \de-1\d"
    )
    match = re.fullmatch(pattern, str(error.value))
    assert match
    assert complex(match[2]) == pytest.approx(3 * complex(match[1]), rel=1e-5)
    assert float(match[3]) > 0.1


class _Unsorted(NamedTuple):
    second: jax.Array
    first: jax.Array


def test_outputs_keep_their_names():
    # Neither by name nor by index is the order of the leaves the alphabet's.
    def f(x):
        return _Unsorted(x**2, x**3), [k * x for k in range(12)]

    check_rule(f, 0.7)
    wrong = jax.custom_jvp(f)

    @wrong.defjvp
    def _(primals, tangents):
        (pair, many), (dpair, dmany) = jax.jvp(f, primals, tangents)
        dmany = [*dmany[:10], 2 * dmany[10], dmany[11]]
        return (pair, many), (_Unsorted(2 * dpair.second, dpair.first), dmany)

    found = _mistakes(wrong, 0.7, modes=("jvp",))
    outputs = sorted(text.split(":")[0] for _, _, text in found)
    assert outputs == ["output[0].second", "output[1][10]"]


def _network(params: dict, x: jax.Array, depth: int, flag: bool) -> tuple:
    z = x
    for _ in range(depth):
        z = jnp.tanh(params["W"] @ z) * jnp.abs(z) + params["b"] * z.conj()
    return {"z": z if flag else 0 * z, "count": jnp.int32(depth)}, jnp.sum(jnp.abs(z) ** 2)


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_right_rules_of_mixed_trees_pass(dtype):
    real = np.finfo(dtype).dtype
    rng = np.random.default_rng(4)
    W = (rng.normal(size=(3, 3)) + 1j * rng.normal(size=(3, 3))).astype(dtype)
    params = {"W": W, "b": R.astype(real)}
    check_rule(_network, params, Z.astype(dtype), 2, True, modes=("jvp", "vjp", "hvp"))


def test_single_precision_finds_a_percent():
    f = _with_vjp(lambda *a: (jnp.complex64(1.01) * _gz(*a), _gr(*a)))
    found = _mistakes(f, Z.astype(np.complex64), R.astype(np.float32), modes=("vjp",))
    assert [line[:2] for line in found] == [("vjp", "argument 0")]


def _doubled(f: Callable) -> Callable:
    wrong = jax.custom_jvp(f)
    wrong.defjvp(lambda p, t: (f(*p), 2 * jax.jvp(f, p, t)[1]))
    return wrong


# Arguments for which one or another choice of step is hopeless.
@pytest.mark.parametrize(
    "f, x",
    [
        (lambda t: jnp.exp(1e9j * t), 3e-9),
        (jnp.exp, 1e-22),
        (jnp.exp, 0.0),
        (lambda T: jnp.exp(-1j * T), 500.0),
        (lambda T: jnp.exp(-1j * T) + 1e6, 500.0),
        (jnp.log, 0.01 + 0.001j),
        (lambda w: jnp.exp(1e-9j * w), 5e9),
        (lambda x: 1e-9 * x**3 + 1.0, 0.5),
    ],
)
def test_step_sizes(f: Callable, x: complex):
    check_rule(f, x)
    found = _mistakes(_doubled(f), x)
    assert [line[0] for line in found] == ["jvp", "vjp"] or [line[0] for line in found] == [
        "vjp",
        "jvp",
    ]


@pytest.mark.slow
def test_derivatives_that_vanish_pass():
    def norm_after_a_rotation(H, n):
        U = jax.scipy.linalg.expm(-1j * (H + H.conj().T))
        return jnp.linalg.norm(U @ n)

    rng = np.random.default_rng(5)
    H = rng.normal(size=(2, 2)) + 1j * rng.normal(size=(2, 2))
    check_rule(norm_after_a_rotation, H, Z[:2])
    check_rule(lambda x, y: 3 * y, 2.0, 1j)


def test_other_directions_with_another_key():
    f = _with_vjp(lambda *a: (2 * _gz(*a), _gr(*a)))
    texts = {
        _mistakes(f, Z, R, modes=("vjp",), key=key)[0][2]
        for key in (None, None, jax.random.key(1), jax.random.PRNGKey(2))
    }
    assert len(texts) == 3


def test_modes_that_cannot_be():
    only_vjp = _with_vjp(lambda *a: (_gz(*a), _gr(*a)))
    check_rule(only_vjp, Z, R, modes=("vjp", "hvp"))
    with pytest.raises(AssertionError, match=r"f has no jvp, .*TypeError.*custom_vjp") as error:
        check_rule(only_vjp, Z, R)
    assert str(error.value).endswith("has no jvp: leave it out of `modes`")

    def loop(x):
        return jax.lax.while_loop(lambda y: y < 3, lambda y: 2 * y, x)

    check_rule(loop, 1.0, modes=("jvp",))
    with pytest.raises(AssertionError, match=r"f has no vjp, or one that fails. ValueError"):
        check_rule(loop, 1.0)


def test_a_nan_derivative_is_a_mistake():
    found = _mistakes(jnp.linalg.norm, jnp.zeros(2, complex))
    assert {line[0] for line in found} == {"jvp", "vjp", "jvp and vjp"}
    assert all("nan" in text for _, _, text in found)


def test_a_jump_is_not_taken_for_a_derivative():
    found = _mistakes(lambda x: jnp.where(x > 1, 2 * x, x), 1.0)
    assert {line[0] for line in found} == {"jvp", "vjp"}


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: check_rule(jnp.abs, 1.0, modes=("jvp", "grad")), r"modes=\('jvp', 'grad'\)"),
        (lambda: check_rule(jnp.abs, 1.0, modes=()), "should be a tuple with some of"),
        (lambda: check_rule(jnp.abs, 1.0, modes="jvp"), "modes='jvp'"),
        (lambda: check_rule(jnp.abs, 1), "the arguments hold no floating-point numbers"),
        (lambda: check_rule(lambda x: x > 0, 1.0), "the outputs hold no floating-point"),
        (lambda: check_rule(jnp.log, 0.0), "output of f is not finite"),
    ],
)
def test_errors(call: Callable, message: str):
    with pytest.raises(ValueError, match=message):
        call()
