"""States and operators from QuTiP and to it.

`cd.constant`, `cd.pwc`, `cd.modulated`, `cd.sesolve` and their like take a `Qobj` as it is; these are for all
other places, and for the way back.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import scipy.sparse

from cdiffeq import _errors


def from_qobj(q: Any, *, sparse: bool = False) -> Any:
    """The array of a QuTiP object: (n,) for a ket or a bra, (n, n) for an operator or a superoperator.

    Complex128, or complex64 where JAX's `jax_enable_x64` is off. With ``sparse=True`` an operator comes as
    `scipy.sparse.csr_array`, which `cd.linalg` takes. A superoperator acts on columns stacked, QuTiP's order.
    Raises `TypeError` for what isn't a `Qobj`, `ValueError` for a sparse ket.

    >>> import qutip
    >>> cd.interop.qutip.from_qobj(qutip.sigmay())
    Array([[0.+0.j, 0.-1.j],
           [0.+1.j, 0.+0.j]], dtype=complex128)
    """
    qutip = _qutip()
    if not isinstance(q, qutip.Qobj):
        raise TypeError(f"from_qobj: q must be a qutip.Qobj, got {type(q).__name__}.")
    vector = q.isket or q.isbra
    if sparse and vector:
        raise ValueError(f"from_qobj: sparse=True is for operators, got a {q.type}.")
    if sparse:
        return scipy.sparse.csr_array(q.to("csr").data_as("csr_matrix"))
    array = jnp.asarray(q.full())
    return array.reshape(-1) if vector else array


def to_qobj(a: Any, dims: Any = None, *, kind: str | None = None) -> Any:
    """The QuTiP object of an array, or nested lists of them for leading axes.

    - `a`: kets (..., n) or operators (..., n, n), of any library whose arrays NumPy reads, such as the
      ``.states`` of a `Result`.
    - `dims`: the dimensions of the factors, as ``[2, 3]`` for a qubit and a qutrit; or QuTiP's own nested
      lists; [n] by default.
    - `kind`: ``"ket"`` or ``"oper"``, which is plain only where `a` is one vector or one square matrix.

    Raises `ValueError` for shapes and dims that don't fit, and where `kind` is needed; `TypeError` for a
    traced array.

    >>> result = cd.sesolve([[0.0, 1.0], [1.0, 0.0]], [1.0, 0.0], [0.0, np.pi / 2])
    >>> kets = cd.interop.qutip.to_qobj(result.states, kind="ket")
    >>> len(kets), kets[1].isket, bool(abs(kets[1].overlap(kets[0])) < 1e-8)
    (2, True, True)
    """
    qutip = _qutip()
    if _errors.is_traced(a):
        raise TypeError("to_qobj: a is traced: convert outside of jax.jit, grad and vmap.")
    array = np.asarray(a)
    if kind is None:
        kind = {1: "ket", 2: "oper"}.get(array.ndim)
        if kind is None:
            raise ValueError(
                f'to_qobj: an array of shape {array.shape} needs kind="ket" or kind="oper".'
            )
    if kind not in ("ket", "oper"):
        raise ValueError(f'to_qobj: kind must be "ket" or "oper", got {kind!r}.')
    axes = 1 if kind == "ket" else 2
    if array.ndim < axes or (axes == 2 and array.shape[-1] != array.shape[-2]):
        raise ValueError(
            f"to_qobj: {kind} must have shape {'(..., n)' if axes == 1 else '(..., n, n)'}, got {array.shape}"
            + ('. Kets need kind="ket".' if kind == "oper" else ".")
        )
    n = array.shape[-1]
    factors = [n] if dims is None else dims
    if not any(isinstance(factor, list | tuple) for factor in factors):
        factors = list(map(int, factors))
        if np.prod(factors) != n:
            raise ValueError(
                f"to_qobj: dims={dims} multiply to {np.prod(factors)}, not to n = {n}."
            )
        factors = [factors, [1] if kind == "ket" else factors]

    def convert(part: np.ndarray) -> Any:
        if part.ndim > axes:
            return [convert(inner) for inner in part]
        return qutip.Qobj(part, dims=factors)

    return convert(array)


def _qutip() -> Any:
    try:
        import qutip
    except ImportError as error:
        raise ImportError("cdiffeq.interop.qutip needs QuTiP: pip install qutip.") from error
    return qutip
