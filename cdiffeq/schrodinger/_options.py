"""What solves with matrices choose where the user doesn't."""

from __future__ import annotations

from typing import Any

import jax

from cdiffeq._errors import check_tolerance
from cdiffeq.schrodinger._hamiltonian import Constant, Hamiltonian, Pwc
from cdiffeq.schrodinger._magnus import Exponential, Magnus


def resolve_tolerances(
    rtol: float | None, atol: float | None, default: float, dtype: Any
) -> tuple[float, float]:
    """rtol and atol, where None is the default, checked against what the dtype of the data resolves."""
    rtol, atol = default if rtol is None else rtol, default if atol is None else atol
    if rtol == 0 and atol == 0:
        raise ValueError("rtol and atol are both 0; one of them may be.")
    for name, value in (("rtol", rtol), ("atol", atol)):
        if value != 0:
            check_tolerance(name, value, dtype)
    return rtol, atol


def matrix_method(H: Hamiltonian, method: Any, rtol: float) -> Exponential | Magnus:
    """The user's method of matrices, or the one that suits the kinds of terms; checked."""
    smooth = [term for term in H.terms if not isinstance(term, Constant | Pwc)]
    if method is None:
        return Magnus(order=4 if rtol >= 1e-5 else 6) if smooth else Exponential()
    if not isinstance(method, Exponential | Magnus):
        raise TypeError(f"method must be Exponential() or Magnus(...), got {method!r}.")
    if isinstance(method, Exponential) and smooth:
        raise ValueError(
            f"method=Exponential() is for piecewise constant H, but {smooth[0]} varies; use Magnus()."
        )
    return method


def block_size(rows: int, per_step: int, n: int) -> int:
    """Steps in a block: as many as fill the cache of a CPU core, or a part of a GPU's memory."""
    entries = 3200 if jax.default_backend() == "cpu" else 2**19
    most = max(1, entries // (per_step * n * n))
    return -(-rows // -(-rows // most))  # blocks of equal size
