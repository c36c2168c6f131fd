"""What the frameworks call the gradient of a real function of complex variables.

Of a real loss L(z), z = x + i y, with `dL = Re(conj(g) dz)`:

    steepest, PyTorch, TensorFlow    g       = dL/dx + i dL/dy = 2 dL/dzbar     add it to go up
    JAX                              conj(g) = dL/dx - i dL/dy = 2 dL/dz

With respect to a real variable all of them return dL/dx.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from cdiffeq.wirtinger._arguments import pick_arguments

# Whether the convention's gradient is the conjugate of dL/dx + i dL/dy.
_CONJUGATED = {"jax": True, "torch": False, "tensorflow": False, "steepest": False}


def grad(
    f: Callable[..., Any],
    argnums: int | tuple[int, ...] = 0,
    convention: str = "jax",
    has_aux: bool = False,
) -> Callable[..., Any]:
    """The function that returns the gradient of a real `f` in the chosen convention.

    `grad(f)(*args)` has the tree, shapes and dtypes of the arguments `argnums` (an integer: that
    argument; a tuple: a tuple): a real argument gets a real gradient, complex64 gets complex64.
    With `z = x + i y`:

    | convention     | returns                                    | to descend          |
    |----------------|--------------------------------------------|---------------------|
    | `"jax"`        | `dL/dx - i dL/dy` = 2 dL/dz, as `jax.grad` | `z - eta * conj(g)` |
    | `"torch"`      | `dL/dx + i dL/dy` = 2 dL/dzbar             | `z - eta * g`       |
    | `"tensorflow"` | the same; see below for a complex f        | `z - eta * g`       |
    | `"steepest"`   | the same: add it to go up                  | `z - eta * g`       |

    `f` must return one number, of shape (). With `has_aux=True` it returns `(number, aux)`, and
    the result is `(gradient, aux)`. A complex-valued f has no gradient, and is a `TypeError`,
    except under `"tensorflow"`, which does as TensorFlow's tape does: it uses 1 as the cotangent
    without a word, so what comes back is `conj(df/dz) + df/dzbar`, the gradient of Re f. (For an
    f that returns an array TensorFlow differentiates its sum; write that sum yourself.)

    Errors: `ValueError` for an unknown convention or position, `TypeError` for an argument or a
    value that isn't of floating-point type or a value that isn't a single number.

    Cost: one reverse sweep, a small multiple of f's own cost, as `jax.grad`.

    Source: K. Kreutz-Delgado (2009), arXiv:0906.4835, section 4.

    >>> loss = lambda z: jnp.abs(z - 1j) ** 2
    >>> print(cd.wirtinger.grad(loss)(3 + 5j))
    (6-8j)
    >>> print(cd.wirtinger.grad(loss, convention="steepest")(3 + 5j))
    (6+8j)
    """
    _check_convention("convention", convention)

    def gradient(*args: Any, **kwargs: Any) -> Any:
        of_picked, picked = pick_arguments(f, argnums, args, kwargs)
        value, pull, aux = jax.vjp(
            lambda p: of_picked(p) if has_aux else (of_picked(p), None), picked, has_aux=True
        )
        _check_value(value, complex_allowed=convention == "tensorflow")
        # conj(1) = 1: the cotangent 1 means the same in both pairings, also for a complex value.
        (g,) = pull(jnp.ones_like(value))
        g = convert_gradient(g, source="jax", target=convention)
        return (g, aux) if has_aux else g

    return gradient


def convert_gradient(g: PyTree, *, source: str, target: str) -> PyTree:
    """The gradient `g` of convention `source`, in convention `target`.

    The conventions are those of `grad`: "jax", "torch", "tensorflow" and "steepest". Between JAX
    and the others complex leaves are conjugated; all other leaves, and conversions among the
    others, hand `g` on as it is. `g` is any pytree of arrays (JAX or NumPy, of any shape) or
    numbers; the tree, shapes and dtypes stay. A NumPy array stays one, so complex128 isn't cut
    down where `jax_enable_x64` is off. Raises `ValueError` for an unknown convention.

    >>> g = {"amplitude": np.array([1.0 + 2.0j]), "frequency": 3.0}
    >>> cd.wirtinger.convert_gradient(g, source="torch", target="jax")
    {'amplitude': array([1.-2.j]), 'frequency': 3.0}
    """
    _check_convention("source", source)
    _check_convention("target", target)
    if _CONJUGATED[source] == _CONJUGATED[target]:
        return g
    return jax.tree.map(lambda leaf: leaf.conjugate() if jnp.iscomplexobj(leaf) else leaf, g)


def _check_convention(argument: str, convention: str) -> None:
    if convention not in _CONJUGATED:
        known = ", ".join(repr(name) for name in _CONJUGATED)
        raise ValueError(f"{argument}={convention!r} is unknown: use one of {known}")


def _check_value(value: Any, complex_allowed: bool) -> None:
    if jax.tree.structure(value) != jax.tree.structure(0) or jnp.shape(value) != ():
        shapes = jax.tree.map(jnp.shape, value)
        raise TypeError(f"grad needs a function that returns one number; got the shape {shapes}")
    dtype = jnp.result_type(value)
    if jnp.issubdtype(dtype, jnp.complexfloating) and not complex_allowed:
        raise TypeError(
            f"grad needs a real value, but f returned {dtype}: a complex-valued function "
            "has no gradient. Take a real loss of it (its real part, its absolute value), or use "
            "cdiffeq.wirtinger.derivatives for df/dz and df/dzbar"
        )
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(f"grad needs a floating-point value, but f returned {dtype}")
