"""A Helmholtz equation in two dimensions: the gradient with respect to the material in every cell.

    -(Laplacian + k^2 eps) u = source,        loss = sum_probe |<probe, u>|^2

by differences on a square of cells, ten for a wavelength, with absorbing layers of twelve cells around it:
complex symmetric but for the layers, not Hermitian, and sparse. `eps` is real, one number for each cell.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from benchmarks._harness import Method, Problem, Program, Ready, Reference, jax_program

WAVENUMBER = 2 * np.pi / 10  # per cell
LAYER = 12  # cells
ABSORPTION = 5.0

# Twice as fast on these matrices as the defaults, which exchange rows.
DIAGONAL_PIVOTS = dict(
    permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options=dict(SymmetricMode=True)
)


class Instance(NamedTuple):
    permittivity: np.ndarray  # (cells,), real
    rows: np.ndarray  # of the entries of the matrix: those of the Laplacian, then the diagonal
    columns: np.ndarray
    laplacian: np.ndarray  # the entries of the first kind, complex
    source: np.ndarray
    probe: np.ndarray


def instance(side: int) -> Instance:
    rng = np.random.default_rng(5)
    cells = side * side
    one = -_second_derivative(side)
    eye = scipy.sparse.eye_array(side)
    both = (scipy.sparse.kron(one, eye) + scipy.sparse.kron(eye, one)).tocoo()
    place = np.arange(cells)
    source = np.zeros(cells, complex)
    source[cells // 2 + side // 3] = 1
    return Instance(
        1 + 0.5 * rng.random(cells),
        np.concatenate([both.row, place]),
        np.concatenate([both.col, place]),
        both.data.astype(complex),
        source,
        rng.standard_normal((cells, 2)) @ [1, 1j] / side,
    )


def _second_derivative(side: int) -> scipy.sparse.dia_array:
    """In coordinates that turn complex in the layers."""
    cell = np.arange(side)

    def stretch(x):
        deep = np.clip((LAYER - x) / LAYER, 0, 1), np.clip((x - side + 1 + LAYER) / LAYER, 0, 1)
        return 1 + 1j * ABSORPTION * (deep[0] ** 2 + deep[1] ** 2) / WAVENUMBER

    right = 1 / (stretch(cell) * stretch(cell + 0.5))
    left = 1 / (stretch(cell) * stretch(cell - 0.5))
    return scipy.sparse.diags_array([left[1:], -(left + right), right[:-1]], offsets=[-1, 0, 1])


def entries(instance: Instance, permittivity):
    """The values of the matrix, as a list of two parts."""
    return [instance.laplacian, -(WAVENUMBER**2) * permittivity + 0j]


def by_hand(factor: Callable, instance: Instance) -> Callable:
    """permittivity -> (loss, field, a function that returns the gradient), with SciPy.

    With g = 2 probe <probe, u> and A^H w = g the gradient is k^2 Re(conj(w) u).
    """
    cells = len(instance.source)
    # Compressed once: only the values change.
    count = np.arange(1, len(instance.rows) + 1)
    pattern = scipy.sparse.coo_array((count, (instance.rows, instance.columns)), (cells, cells))
    key = instance.columns.astype(np.int64) * cells + instance.rows
    order = np.argsort(key, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(key[order]) > 0))
    pattern = pattern.tocsc()

    def solve(permittivity):
        data = np.add.reduceat(np.concatenate(entries(instance, permittivity))[order], starts)
        matrix = scipy.sparse.csc_array((data, pattern.indices, pattern.indptr), pattern.shape)
        lu = factor(matrix)
        u = lu.solve(instance.source)
        amplitude = np.vdot(instance.probe, u)

        def gradient():
            w = lu.solve(2 * amplitude * instance.probe, trans="H")
            return WAVENUMBER**2 * np.real(np.conj(w) * u)

        return abs(amplitude) ** 2, u, gradient

    return solve


def reference(instance: Instance) -> Reference:
    """SciPy's LU with its defaults, and one step of refinement of both solves."""

    class Refined:
        def __init__(self, matrix):
            self.matrix, self.lu = matrix, scipy.sparse.linalg.splu(matrix)

        def solve(self, b, trans="N"):
            matrix = self.matrix.conj().T if trans == "H" else self.matrix
            x = self.lu.solve(b, trans)
            return x + self.lu.solve(b - matrix @ x, trans)

    loss, field, gradient = by_hand(Refined, instance)(instance.permittivity)
    return Reference(loss, field, gradient())


# The methods import their library themselves: each is measured where no other is loaded.


def _scipy(**options) -> Callable[[Instance, None], Program]:
    """One factorization and two solves by hand."""

    def build(instance: Instance, _: None) -> Program:
        solve = by_hand(lambda matrix: scipy.sparse.linalg.splu(matrix, **options), instance)

        def gradient():
            loss, _, gradient = solve(instance.permittivity)
            return loss, gradient()

        return Program(
            forward=lambda: Ready(lambda: solve(instance.permittivity)[:2]),
            gradient=lambda: Ready(gradient),
        )

    return build


def _jax(field: Callable, instance: Instance) -> Program:
    """`field(entries, rows, columns, source)`, with the loss that all JAX methods share."""
    import jax.numpy as jnp

    rows, columns = (jnp.asarray(a.astype(np.int32)) for a in (instance.rows, instance.columns))
    probe, source = jnp.asarray(instance.probe), jnp.asarray(instance.source)

    def loss(u):
        amplitude = jnp.vdot(probe, u)
        return amplitude.real**2 + amplitude.imag**2

    def of_permittivity(permittivity):
        return field(jnp.concatenate(entries(instance, permittivity)), rows, columns, source)

    return jax_program(of_permittivity, loss, instance.permittivity)


def _cdiffeq(instance: Instance, _: None) -> Program:
    import jax.numpy as jnp
    from jax.experimental.sparse import BCOO

    import cdiffeq as cd

    cells = len(instance.source)
    indices = jnp.asarray(np.stack([instance.rows, instance.columns], axis=1))

    def field(data, rows, columns, source):
        return cd.linalg.solve(BCOO((data, indices), shape=(cells, cells)), source)

    return _jax(field, instance)


def _klujax(instance: Instance, _: None) -> Program:
    import klujax

    cells = len(instance.source)
    # Without two entries at one place, which it refuses.
    keep, add = _merged(instance)

    def field(data, rows, columns, source):
        return klujax.solve(rows[keep], columns[keep], add(data), source)

    assert cells == len(instance.permittivity)
    return _jax(field, instance)


def _merged(instance: Instance):
    """Positions of one entry for each place, by rows, and the function that adds up the others."""
    cells = len(instance.source)
    key = instance.rows.astype(np.int64) * cells + instance.columns
    _, keep, group = np.unique(key, return_index=True, return_inverse=True)

    def add(data):
        import jax

        return jax.ops.segment_sum(data, group, len(keep))

    return keep, add


def _spsolve(instance: Instance, _: None) -> Program:
    import jax.numpy as jnp
    from jax.experimental.sparse.linalg import spsolve

    keep, add = _merged(instance)
    indptr, indices = _compressed(instance, keep)

    def field(data, rows, columns, source):
        return spsolve(add(data), jnp.asarray(indices), jnp.asarray(indptr), source, tol=0)

    return _jax(field, instance)


def _compressed(instance: Instance, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    counts = np.bincount(instance.rows[keep], minlength=len(instance.source))
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return indptr, instance.columns[keep].astype(np.int32)


def _solvax(instance: Instance, _: None) -> Program:
    """Its store of factors would find those of the call before, of the same values: it is emptied."""
    import solvax

    keep, add = _merged(instance)
    indptr, indices = _compressed(instance, keep)
    pattern = solvax.CsrPattern(indptr, indices, (len(indptr) - 1,) * 2)

    def field(data, rows, columns, source):
        return solvax.sparse_solve(pattern, add(data), source)

    program = _jax(field, instance)

    def emptied(ready: Ready) -> Ready:
        def call():
            solvax.clear_factor_cache()
            return ready.call()

        return ready._replace(call=call)

    return Program(
        forward=lambda: emptied(program.forward()),
        gradient=lambda: emptied(program.gradient()),
    )


PROBLEM = Problem(
    title="Helmholtz equation with absorbing layers: gradient in the permittivity of every cell",
    size_name="side",
    sizes=(200, 400),
    quick_sizes=(30,),
    target=1e-8,
    instance=instance,
    reference=reference,
    methods={
        "cdiffeq": Method(_cdiffeq, ("cdiffeq",)),
        "scipy": Method(_scipy(**DIAGONAL_PIVOTS), ("scipy",)),
        "scipy-defaults": Method(_scipy(), ("scipy",)),
        "klujax": Method(_klujax, ("klujax",)),
        "jax-spsolve": Method(_spsolve, ("jax",)),
        "solvax": Method(_solvax, ("solvax",)),
    },
)
