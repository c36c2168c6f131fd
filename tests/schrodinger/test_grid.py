"""Pins and slices: every interval gets the slice of every control that holds there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cdiffeq as cd
from cdiffeq.schrodinger._grid import make_grid, order_pins
from tests.schrodinger.reference import X, Z, amplitude

EDGES, VALUES = np.array([0.0, 0.4, 0.9, 1.3]), np.array([1.0, 2.0, 3.0])
OTHER, OTHERS = np.array([-1.0, 0.4, 0.7]), np.array([5.0, 6.0])

TIMES = {
    "inside slices": [0.1, 0.2, 0.95, 1.1],
    "on edges": [0.0, 0.4, 0.7, 0.9],
    "on the first and the last edge": [0.0, 0.1, 0.2, 1.3],
    "in one slice": [0.42, 0.43, 0.44, 0.45],
    "from before to after": [-2.0, 0.3, 1.0, 5.0],
    "outside": [2.0, 3.0, 4.0, 5.0],
    "ends on an edge": [-0.5, 0.0, 0.1, 0.4],
    "equal times": [0.1, 0.4, 0.4, 0.4],
    "no time at all": [0.4, 0.4, 0.4, 0.4],
    "rounded edges": [0.1, 0.4 - 1e-16, 0.4 + 6e-17, 0.9],
}


def _grid(ts, edges, other):
    H = cd.pwc(edges, VALUES, X) + cd.pwc(other, OTHERS, Z) + cd.pwc(edges, 10 * VALUES, Z)
    return make_grid(H, ts, order_pins(H, ts))


def _amplitudes(grid):
    """The amplitude of each control in each interval."""
    return [a[s] for a, s in zip(grid.amplitudes, grid.slices, strict=True)]


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("name", TIMES)
def test_each_interval_has_its_slice(name: str, backward: bool):
    ts = np.array(TIMES[name])[:: -1 if backward else 1]
    grid = jax.tree.map(np.asarray, _grid(jnp.asarray(ts), EDGES, OTHER))
    assert grid.lengths[0] == 0 and grid.starts[0] == ts[0]
    ends = grid.starts + grid.lengths
    np.testing.assert_allclose(grid.starts[1:], ends[:-1], rtol=0, atol=1e-15)
    np.testing.assert_allclose(ends[-1], ts[-1], rtol=0, atol=1e-15)
    assert np.all(grid.lengths <= 0 if backward else grid.lengths >= 0)
    for start, length, *got in zip(grid.starts, grid.lengths, *_amplitudes(grid), strict=True):
        if abs(length) > 1e-15:
            middle = start + length / 2
            first = amplitude(EDGES, VALUES, middle)
            assert got == [first, amplitude(OTHER, OTHERS, middle), 10 * first]
            assert not any(start < e < start + length for e in [*EDGES, *OTHER])
    saved = grid.slots[grid.slots < len(ts)]
    np.testing.assert_array_equal(saved, np.arange(len(ts)))
    np.testing.assert_allclose(ends[grid.slots < len(ts)], ts, rtol=0, atol=1e-15)


def test_traced_and_known_times_give_the_same_grid():
    traced = jax.jit(_grid)
    for times in TIMES.values():
        for ts in (jnp.asarray(times), jnp.asarray(times[::-1])):
            known = _grid(ts, EDGES, OTHER)
            # Traced controls have other sources, so the pins differ in number: compare what counts.
            found = traced(ts, EDGES, OTHER)
            for f, g in zip(_nonempty(known), _nonempty(found), strict=True):
                np.testing.assert_allclose(f, g, rtol=0, atol=1e-15)


def _nonempty(grid):
    keep = np.abs(grid.lengths) > 0
    return [np.asarray(a)[keep] for a in (grid.starts, grid.lengths, *_amplitudes(grid))]


def test_controls_with_the_same_edges_share_their_pins():
    ts = jnp.array([0.0, 1.0])
    H = sum(cd.pwc(EDGES.copy(), VALUES + k, X) for k in range(5))
    assert order_pins(H, ts).order.shape == (len(ts) + len(EDGES),)

    def pins(edges):
        H = cd.pwc(edges, VALUES, X) + cd.pwc(edges, VALUES, Z)
        return order_pins(H, ts).order

    assert jax.eval_shape(pins, EDGES).shape == (len(ts) + len(EDGES),)
