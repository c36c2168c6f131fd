"""Sparse matrices laid out for many products: each row's entries in slots, padded to one length.

    (A x)_i = sum_w values[w, i] x[column[w, i]]

A `Sparse` operator keeps its entries as the user gave them, and finds their places in each product. Here they
stand in the order in which the product reads them; in a loop of products this is arranged once, before it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact, Int

from cdiffeq.linalg._operator import Operator, Sparse
from cdiffeq.wirtinger._linear_map import linear_map
from cdiffeq.wirtinger._rule import adjoint_rule


class Padded(Operator):
    """A sparse matrix in slots.

    `flat` says where the entries of each column stand in `values`, ravelled, one beyond its end where there
    is none, and `row` in which row: the layout of the adjoint.
    """

    values: Inexact[Array, "w m"]
    column: Int[Array, "w m"]
    flat: Int[Array, "u n"]
    row: Int[Array, "u n"]

    @property
    def shape(self) -> tuple[int, int]:
        return self.column.shape[1], self.row.shape[1]

    @property
    def dtype(self) -> Any:
        return self.values.dtype

    def mv(self, x: Inexact[Array, " n"]) -> Inexact[Array, " m"]:
        return _product(self.values, x, self.column, self.flat, self.row)

    def mm(self, X: Inexact[Array, "n k"]) -> Inexact[Array, "m k"]:
        if X.shape[1] == 1:
            return self.mv(X[:, 0])[:, None]
        # One column after the other: XLA gathers pairs many times slower than single numbers.
        return jax.lax.map(self.mv, X.T).T

    def adjoint(self) -> Padded:
        return Padded(_adjoint_values(self.values, self.flat), self.row, self._back(), self.column)

    def _back(self) -> Int[Array, "w m"]:
        """`flat` of the adjoint: where each slot stands among the slots of the columns."""
        size = self.values.size
        place = jnp.arange(self.flat.size, dtype=self.flat.dtype)
        back = jnp.full((size + 1,), self.flat.size, self.flat.dtype)
        back = back.at[self.flat.reshape(-1)].set(place)
        return back[:size].reshape(self.values.shape)


def padded(A: Operator) -> Operator:
    """A `Sparse` operator whose slots are known as `Padded`; any other operator as it is."""
    if not isinstance(A, Sparse) or A.by_row is None or A.by_column is None:
        return A
    entries = A.data.shape[0]
    by_row, by_column = A.by_row.T, A.by_column.T
    column, row = _take(A.column, by_row), _take(A.row, by_column)
    # Where in `values` each entry is.
    place = jnp.full((entries + 1,), by_row.size, jnp.int32)
    place = place.at[by_row.reshape(-1)].set(jnp.arange(by_row.size, dtype=jnp.int32))
    flat = place.at[entries].set(by_row.size)[by_column]
    # The adjoint of taking is taking back: JAX's would add up one by one what has only one place.
    take_back = lambda places, g: _take(g.reshape(-1), places[1])
    values = linear_map(
        lambda places, data: _take(data, places[0]), take_back, (by_row, place[:entries]), A.data
    )
    return Padded(values, column, flat, row)


def _take(a: Array, places: Int[Array, "..."]) -> Array:
    """The entries of `a` at these places, zero where the place is beyond its end."""
    return jnp.append(a, jnp.zeros((), a.dtype)).at[places].get(mode="promise_in_bounds")


def _adjoint_values(
    values: Inexact[Array, "w m"], flat: Int[Array, "u n"]
) -> Inexact[Array, "u n"]:
    return jnp.conj(_take(values.reshape(-1), flat))


@adjoint_rule(nondiff=("column", "flat", "row"))
def _product(
    values: Inexact[Array, "w m"],
    x: Inexact[Array, " n"],
    column: Int[Array, "w m"],
    flat: Int[Array, "u n"],
    row: Int[Array, "u n"],
) -> Inexact[Array, " m"]:
    # Slot by slot: XLA makes one loop over the rows of it, and keeps no product.
    split = jnp.iscomplexobj(x) and not jnp.iscomplexobj(values)
    parts = []
    for part in (x.real, x.imag) if split else (x,):
        y = jnp.zeros(column.shape[1], jnp.result_type(values, part))
        for w in range(column.shape[0]):
            y = y + values[w] * part.at[column[w]].get(mode="promise_in_bounds")
        parts.append(y)
    return jax.lax.complex(*parts) if split else parts[0]


@_product.def_tangent
def _tangent(args, y, dargs):
    values, x, *places = args
    return _product(dargs[0], x, *places) + _product(values, dargs[1], *places)


@_product.def_adjoint
def _adjoint(args, y, g):
    values, x, column, flat, row = args
    at = lambda part: part.at[column].get(mode="promise_in_bounds")
    if jnp.iscomplexobj(values) or not jnp.iscomplexobj(g):
        g_values = g[None] * jnp.conj(at(x))
    else:
        g_values = g.real[None] * at(x.real) + g.imag[None] * at(x.imag)
    # Real where x is; the rule takes the real part.
    g_x = _gather(_adjoint_values(values, flat), g, row)
    return g_values, g_x


def _gather(values: Array, x: Array, column: Array) -> Array:
    return jnp.sum(values * x.at[column].get(mode="promise_in_bounds"), axis=0)
