"""Sparse LU for circuits, by KLU."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact

from cdiffeq._errors import is_traced
from cdiffeq.linalg._condition import SINGULAR_FROM, probe, scales
from cdiffeq.linalg._operator import Operator, apply
from cdiffeq.linalg._solver import Code, Report, Solver, direct_report, first_code
from cdiffeq.linalg._sparse_direct import analyse, entries


class KLU(Solver):
    """Sparse LU for the matrices of circuits, by way of klujax: ``pip install "cdiffeq[klu]"``.

    KLU permutes A to block triangular form and factors the blocks one by one (T. A. Davis, E. Palamadai
    Natarajan 2010, doi:10.1145/1824801.1824814). Reads the entries of a sparse operator, whose pattern has
    to be known when a program is traced; another one is made dense. Batches run without the host's Python.
    It computes in double precision, whatever the precision of A, so that it needs `jax_enable_x64`, and on
    the CPU. klujax keeps no factors in a traced program: each solve factors anew.

    Says that A is singular where an estimate of its condition number, with rows and columns scaled, is
    1 / eps or more. Where a pivot is zero klujax raises an error of its own, also with ``throw=False``.
    **Raises** `ImportError` without klujax, `RuntimeError` without `jax_enable_x64` and off the CPU,
    `TypeError` for a pattern that is traced.

    >>> A = np.array([[0.0, 2.0], [1.0, 0.0]])
    >>> cd.linalg.solve(A, np.array([2.0, 3.0]), cd.linalg.KLU())  # doctest: +SKIP
    Array([3., 1.], dtype=float64)
    """

    def init(self, A: Operator) -> Any:
        _klujax()
        data, row, column = entries(A)
        if is_traced(row) or is_traced(column):
            raise TypeError(
                "solve: KLU() needs a pattern that is known when the program is traced; make the indices "
                "of A outside of the function that is traced."
            )
        pattern = analyse(np.asarray(row), np.asarray(column), A.shape[0])
        if pattern.order is not None:
            data = data[pattern.order]
        if pattern.starts is not None:
            place = np.repeat(
                np.arange(len(pattern.starts)), np.diff(np.append(pattern.starts, len(data)))
            )
            data = jax.ops.segment_sum(data, place, len(pattern.starts), indices_are_sorted=True)
        column = np.repeat(np.arange(pattern.n, dtype=np.int32), np.diff(pattern.indptr))
        double = jnp.result_type(data.dtype, jnp.float64)
        return data.astype(double), jnp.asarray(pattern.indices), jnp.asarray(column)

    def compute(
        self,
        A: Operator,
        state: Any,
        b: Inexact[Array, "n k"],
        guess: Inexact[Array, "n k"] | None,
        adjoint: bool,
    ) -> tuple[Inexact[Array, "n k"], Report]:
        data, row, column = state
        n, dtype = A.shape[0], data.dtype
        if adjoint:
            data, row, column = jnp.conj(data), column, row
        # One more column tells of the condition, as in `_condition`.
        v = jnp.asarray(probe(n), jnp.finfo(dtype).dtype)
        rows, weights = scales(jnp.abs(data), row, column, n)
        test = (rows * v).astype(dtype)[:, None]
        x = _klujax().solve(row, column, data, jnp.concatenate([b.astype(dtype), test], axis=1))
        estimate = jnp.sum(jnp.abs(x[:, -1] / weights)) / jnp.sum(jnp.abs(v))
        known = jnp.isfinite(jnp.sum(rows))
        singular = known & ~(estimate * jnp.finfo(A.dtype).eps < SINGULAR_FROM)
        x = x[:, :-1].astype(b.dtype)
        return x, direct_report(
            lambda x: apply(A, x, adjoint), x, b, first_code((singular, Code.SINGULAR))
        )


def _klujax() -> ModuleType:
    """klujax, with JAX's configuration as it was before."""
    names = "jax_enable_x64", "jax_platform_name"
    before = {name: jax.config.values[name] for name in names}
    try:
        import klujax
    except ImportError as error:
        raise ImportError('KLU() needs klujax: pip install "cdiffeq[klu]"') from error
    finally:
        for name, value in before.items():
            if jax.config.values[name] != value:
                jax.config.update(name, value)
    if not jax.config.jax_enable_x64:
        raise RuntimeError('KLU() needs jax.config.update("jax_enable_x64", True).')
    if jax.default_backend() != "cpu":
        raise RuntimeError(f"KLU() runs on the CPU, not on {jax.default_backend()}.")
    return klujax
