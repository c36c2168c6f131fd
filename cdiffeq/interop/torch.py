r"""JAX functions inside PyTorch, with gradients in PyTorch's convention, g = dL/dx + i dL/dy.

    forward    y = f(x)
    backward   J(x)* g,    the adjoint of f's derivative under <x, y> = Re sum(conj(x) y)

which is the library's own pairing (see `cdiffeq.interop._program`). Tensors reach JAX by DLPack.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cdiffeq.interop import _program


def wrap(fn: Any) -> Callable[..., Any]:
    r"""The JAX function `fn` as a PyTorch function: tensors in, tensors out, differentiable to any order.

    - `fn`: a pure JAX function of arrays, or of pytrees of arrays, that returns an array or a pytree of
      arrays: real, complex, integer. It needn't be holomorphic. It is compiled once for each set of shapes.
      Constants belong in a closure.

    The function that is returned takes tensors, or tuples, lists and dicts of them, where `fn` takes arrays.
    Their dtypes are kept: complex64 in, complex64 in JAX. On a CPU and on a CUDA device that JAX sees as well
    (``pip install "jax[cuda]"``) inputs are shared and not copied; outputs are copied once, so that a change
    in place doesn't reach into JAX.

    **Derivatives** are those of JAX, with whatever rules `fn` uses, in PyTorch's convention: `backward` and
    `torch.autograd.grad` with ``create_graph``, forward mode (`torch.autograd.forward_ad`), and `torch.func`
    (`grad`, `jvp`, `vmap` and their compositions; PyTorch's older ``is_grads_batched`` can't go through a
    function of one's own). A real tensor gets a real gradient.

    **Raises** `ImportError` without PyTorch. The returned function raises `TypeError` for arguments that
    aren't tensors, 64-bit tensors where JAX's `jax_enable_x64` is off, and results that aren't arrays;
    `ValueError` for a tensor on a device that JAX doesn't see. What `fn` raises is passed on.

    **Cost**: that of `fn`, of one backward sweep for a gradient (which computes `fn` anew), and a call from
    Python. **Memory**: the inputs are kept for the backward pass, nothing else.

    Source: DLPack, https://dmlc.github.io/dlpack/latest/; PyTorch's convention:
    https://docs.pytorch.org/docs/stable/notes/autograd.html#autograd-for-complex-numbers.

    >>> import torch
    >>> rotate = cd.interop.torch.wrap(lambda H, psi: cd.linalg.expm(-1j * H) @ psi)
    >>> H = torch.tensor([[0.0, 0.3], [0.3, 0.0]], dtype=torch.float64, requires_grad=True)
    >>> psi = torch.tensor([1.0, 0.0], dtype=torch.complex128)
    >>> excited = rotate(H, psi)[1].abs() ** 2
    >>> excited.backward()
    >>> print(f"{excited.item():.4f} {H.grad.sum().item():.4f}")  # sin^2 and, by H[0, 1] + H[1, 0], 2 sin cos
    0.0873 0.5646
    """
    torch = _torch()
    programs = _program.Programs(fn)

    @functools.wraps(fn)
    def wrapped(*args: Any) -> Any:
        leaves, tree = jax.tree.flatten(args)
        for path, leaf in jax.tree_util.tree_leaves_with_path(args):
            if not isinstance(leaf, torch.Tensor):
                where = f"argument {path[0].idx}{jax.tree_util.keystr(path[1:])}"
                raise TypeError(
                    f"{_name(fn)}: {where} is {type(leaf).__name__}, expected a torch.Tensor. Leave "
                    "constants to a closure."
                )
        program = programs.of(tree)
        outs = _function().apply(program, *leaves)
        form = program.form(*map(_form, leaves))
        return jax.tree.unflatten(jax.tree.structure(form), outs)

    return wrapped


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            "cdiffeq.interop.torch needs PyTorch: pip install torch (for a CPU alone, smaller: pip install "
            "torch --index-url https://download.pytorch.org/whl/cpu)."
        ) from error
    return torch


@functools.cache
def _function() -> Any:
    """The one `torch.autograd.Function`, of a program and its tensors; here, as it needs PyTorch."""
    torch = _torch()
    base: Any = torch.autograd.Function

    class Function(base):
        @staticmethod
        def forward(program, *tensors):
            outs = program(*map(_to_jax, tensors))
            return tuple(_to_torch(torch, out) for out in outs)

        @staticmethod
        def setup_context(ctx, inputs, output):
            ctx.program, *tensors = inputs
            ctx.save_for_backward(*tensors)
            ctx.save_for_forward(*tensors)
            ctx.inexact = [is_floating(out) for out in output]
            ctx.mark_non_differentiable(*(out for out in output if not is_floating(out)))

        @staticmethod
        def backward(ctx, *gs):
            argnums = tuple(i for i, needed in enumerate(ctx.needs_input_grad[1:]) if needed)
            inexact = [g for g, used in zip(gs, ctx.inexact, strict=True) if used]
            adjoint = ctx.program.adjoint(argnums, len(inexact))
            gradients = Function.apply(adjoint, *ctx.saved_tensors, *inexact)
            found = dict(zip(argnums, gradients, strict=True))
            return None, *(found.get(i) for i in range(ctx.program.count))

        @staticmethod
        def jvp(ctx, _, *tangents):
            argnums = tuple(i for i, t in enumerate(tangents) if t is not None)
            moving = (tangents[i] for i in argnums)
            found = Function.apply(ctx.program.tangent(argnums), *ctx.saved_tensors, *moving)
            found = iter(found)
            return tuple(next(found) if inexact else None for inexact in ctx.inexact)

        @staticmethod
        def vmap(info, in_dims, program, *tensors):
            outs = Function.apply(program.mapped(in_dims[1:]), *tensors)
            return outs, tuple(0 for _ in outs)

    is_floating = lambda t: t.is_floating_point() or t.is_complex()
    return Function


def _form(tensor: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tuple(tensor.shape), _dtype(tensor))


def _dtype(tensor: Any) -> np.dtype:
    """JAX's dtype for that of a tensor."""
    name = str(tensor.dtype).removeprefix("torch.")
    dtype = jnp.dtype(name)
    _program.require_dtype("a tensor", dtype)
    return dtype


def _to_jax(tensor: Any) -> jax.Array:
    """The tensor's memory as a JAX array."""
    _dtype(tensor)
    tensor = tensor.detach().resolve_conj().resolve_neg().contiguous()
    try:
        return jnp.from_dlpack(tensor)
    except (RuntimeError, ValueError, BufferError) as error:
        seen = ", ".join(sorted({device.platform for device in jax.devices()}))
        raise ValueError(
            f"JAX can't take a tensor of {tensor.dtype} on {tensor.device}: {error}. It sees {seen} devices "
            'here; for CUDA devices: pip install "jax[cuda]".'
        ) from error


def _to_torch(torch: Any, array: jax.Array) -> Any:
    # A copy, as the array may be a constant of fn or one of its inputs.
    return torch.from_dlpack(jnp.copy(array))


def _name(fn: Any) -> str:
    return getattr(fn, "__name__", type(fn).__name__)
