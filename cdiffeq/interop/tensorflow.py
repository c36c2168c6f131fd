r"""JAX functions inside TensorFlow, with gradients in TensorFlow's convention, g = dL/dx + i dL/dy.

    forward    y = f(x)
    backward   J(x)* g,    the adjoint of f's derivative under <x, y> = Re sum(conj(x) y)

which is the library's own pairing (see `cdiffeq.interop._program`). Eager tensors reach JAX by DLPack.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cdiffeq.interop import _program


def wrap(fn: Any) -> Callable[..., Any]:
    r"""The JAX function `fn` as a TensorFlow function: tensors in, tensors out, differentiable to any order.

    - `fn`: a pure JAX function of arrays, or of pytrees of arrays, that returns an array or a pytree of
      arrays: real, complex, integer. It needn't be holomorphic. It is compiled once for each set of shapes.
      Constants belong in a closure.

    The function that is returned takes tensors and variables, or tuples, lists and dicts of them, where `fn`
    takes arrays, eagerly or inside of `tf.function` (there by `tf.py_function`, with all shapes known).
    Their dtypes are kept: complex64 in, complex64 in JAX.

    **Derivatives** are those of JAX, with whatever rules `fn` uses, by `tf.GradientTape`, nested tapes too,
    in TensorFlow's convention; of a complex result the tape takes the gradient of the real part, as it
    always does. Inside of `tf.function` a second derivative needs all its tapes there. A real tensor gets a
    real gradient. There is no forward mode.

    **Raises** `ImportError` without TensorFlow. The returned function raises `TypeError` for arguments that
    aren't tensors, 64-bit tensors where JAX's `jax_enable_x64` is off, and results that aren't arrays;
    `ValueError` for unknown shapes. What `fn` raises is passed on.

    **Cost**: that of `fn`, of one backward sweep for a gradient (which computes `fn` anew), and a call from
    Python; outputs are copied once. **Memory**: the inputs are kept for the backward pass, nothing else.

    Source: DLPack, https://dmlc.github.io/dlpack/latest/; https://www.tensorflow.org/api_docs/python/tf/custom_gradient.

    >>> import tensorflow as tf
    >>> rotate = cd.interop.tensorflow.wrap(lambda H, psi: cd.linalg.expm(-1j * H) @ psi)
    >>> H, psi = tf.constant([[0.0, 0.3], [0.3, 0.0]], tf.float64), tf.constant([1.0, 0.0], tf.complex128)
    >>> with tf.GradientTape() as tape:
    ...     tape.watch(H)
    ...     excited = tf.abs(rotate(H, psi)[1]) ** 2
    >>> gradient = tape.gradient(excited, H)
    >>> print(f"{float(excited):.4f} {float(tf.reduce_sum(gradient)):.4f}")
    0.0873 0.5646
    """
    tf = _tensorflow()
    programs = _program.Programs(fn)

    @functools.wraps(fn)
    def wrapped(*args: Any) -> Any:
        leaves, tree = jax.tree.flatten(args)
        for path, leaf in jax.tree_util.tree_leaves_with_path(args):
            if not isinstance(leaf, tf.Tensor | tf.Variable):
                where = f"argument {path[0].idx}{jax.tree_util.keystr(path[1:])}"
                name = getattr(fn, "__name__", type(fn).__name__)
                raise TypeError(
                    f"{name}: {where} is {type(leaf).__name__}, expected a tf.Tensor. Leave constants to a "
                    "closure."
                )
        tensors = [tf.convert_to_tensor(leaf) for leaf in leaves]
        program = programs.of(tree)
        form = program.form(*map(_form, tensors))
        return jax.tree.unflatten(jax.tree.structure(form), _apply(tf, program, tensors))

    return wrapped


def _tensorflow() -> Any:
    try:
        import tensorflow
    except ImportError as error:
        raise ImportError(
            "cdiffeq.interop.tensorflow needs TensorFlow: pip install tensorflow (or tensorflow-cpu)."
        ) from error
    return tensorflow


def _apply(tf: Any, program: _program.Program, tensors: list[Any]) -> list[Any]:
    """The program of these tensors, with its gradient."""
    if not tensors:
        return _evaluate(tf, program, [])

    @tf.custom_gradient
    def call(*tensors):
        outs = _evaluate(tf, program, tensors)

        def gradient(*gs):
            argnums = tuple(i for i, t in enumerate(tensors) if _is_inexact(t))
            inexact = [g for g, out in zip(gs, outs, strict=True) if _is_inexact(out)]
            adjoint = program.adjoint(argnums, len(inexact))
            found = dict(zip(argnums, _apply(tf, adjoint, [*tensors, *inexact]), strict=True))
            return [found.get(i) for i in range(len(tensors))]

        return outs, gradient

    return call(*tensors)


def _evaluate(tf: Any, program: _program.Program, tensors: Any) -> list[Any]:
    if tf.executing_eagerly():
        return [_to_tensorflow(tf, out) for out in program(*map(_to_jax, tensors))]
    forms = jax.tree.leaves(program.form(*map(_form, tensors)))
    dtypes = [tf.as_dtype(form.dtype.name) for form in forms]
    outs = tf.py_function(lambda *t: _evaluate(tf, program, t), list(tensors), dtypes)
    return [tf.ensure_shape(out, form.shape) for out, form in zip(outs, forms, strict=True)]


def _is_inexact(tensor: Any) -> bool:
    return tensor.dtype.is_floating or tensor.dtype.is_complex


def _form(tensor: Any) -> jax.ShapeDtypeStruct:
    dtype = jnp.dtype(tensor.dtype.name)
    _program.require_dtype("a tensor", dtype)
    if not tensor.shape.is_fully_defined():
        raise ValueError(
            f"a tensor has the shape {tensor.shape}; JAX needs all of it known: give tf.function an "
            "input_signature, or the batch a fixed size."
        )
    return jax.ShapeDtypeStruct(tuple(tensor.shape), dtype)


def _to_jax(tensor: Any) -> jax.Array:
    """The tensor's memory as a JAX array."""
    _form(tensor)
    return jnp.from_dlpack(tensor)


def _to_tensorflow(tf: Any, array: jax.Array) -> Any:
    # A copy, as the array may be a constant of fn or one of its inputs.
    return tf.experimental.dlpack.from_dlpack(jnp.copy(array).__dlpack__())
