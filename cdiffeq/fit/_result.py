"""What a fit found, with error bars."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy  # its submodules are loaded when they are used
from jaxtyping import Float, PyTree

from cdiffeq._flat import Layout


@dataclasses.dataclass(frozen=True)
class Fit:
    """What `least_squares` found. ``print(fit)`` shows a summary.

    - `params`: the parameters, in the structure they were given in.
    - `covariance`: theirs, real, of shape (N, N), in the order of `labels`: all real parts of complex
      parameters, all imaginary ones, real parameters, as `to_real` has them.
    - `labels`: names of those N numbers, such as "Re gain[2]".
    - `stderr`: standard errors, in the structure of params; a complex parameter's is that of its real part,
      plus i times that of its imaginary part. Infinite where the data don't determine a parameter, NaN where
      it ended at a bound.
    - `residuals`: as the function returned them at the end, not divided by sigma.
    - `chi2`: the sum of their squares, divided by those of sigma if that was given.
    - `dof`: degrees of freedom: real residuals, less the parameters that aren't at a bound.
    - `at_bound`: labels of parameters that ended at one.
    - `evaluations`: how often the residuals were evaluated.
    - `scaled`: whether the covariance was scaled by chi2 / dof, as no sigma was given.
    """

    params: PyTree[Any]
    covariance: Float[np.ndarray, "N N"]
    labels: tuple[str, ...]
    stderr: PyTree[Any]
    residuals: PyTree[Any]
    chi2: float
    dof: int
    at_bound: tuple[str, ...]
    evaluations: int
    scaled: bool

    def confidence_intervals(self, level: float = 0.95) -> tuple[PyTree[Any], PyTree[Any]]:
        """Lower and upper ends, in the structure of params, of intervals that hold the true values with
        probability `level`, each by itself, where the model is linear over them and the noise is normal:
        Student's t where the noise was estimated, normal where sigma was given.

        Of a complex parameter they hold for the real and the imaginary part. Raises `ValueError` unless
        0 < level < 1.
        """
        if not 0 < level < 1:
            raise ValueError(f"confidence_intervals: level must be between 0 and 1, got {level}.")
        tail = (1 + level) / 2
        width = scipy.stats.t.ppf(tail, self.dof) if self.scaled else scipy.stats.norm.ppf(tail)
        layout = Layout.of(self.params)
        x = layout.pack(self.params)
        reach = jnp.asarray(width * np.sqrt(np.diag(self.covariance)), layout.dtype)
        return layout.unpack(x - reach), layout.unpack(x + reach)

    def __str__(self) -> str:
        layout = Layout.of(self.params)
        values = np.asarray(layout.pack(self.params))
        bars = np.sqrt(np.diag(self.covariance))
        # Real and imaginary parts side by side, leaf by leaf.
        places = layout.unpack(jnp.arange(layout.size, dtype=layout.dtype))
        order = [
            int(i)
            for leaf in jax.tree.leaves(places)
            for entry in np.ravel(leaf)
            for i in ((entry.real, entry.imag) if np.iscomplexobj(entry) else (entry,))
        ]
        wide = max(map(len, self.labels))
        reduced = f" ({self.chi2 / self.dof:.4g} each)" if self.dof else ""
        lines = [
            f"chi2 = {self.chi2:.6g} for {self.dof} degrees of freedom{reduced}, "
            f"{self.evaluations} evaluations"
        ]
        for i in order:
            name, bar = self.labels[i], f"+- {bars[i]:.2g}"
            if name in self.at_bound:
                bar = "at its bound"
            elif np.isinf(bars[i]):
                bar = "not determined by the data"
            lines.append(f"  {name:{wide}}  {values[i]:12.6g}  {bar}")
        return "\n".join([*lines, *self._strongest_correlation(bars)])

    def _strongest_correlation(self, bars: np.ndarray) -> list[str]:
        known = np.flatnonzero(np.isfinite(bars) & (bars > 0))
        if len(known) < 2:
            return []
        C = self.covariance[np.ix_(known, known)] / np.outer(bars[known], bars[known])
        i, j = np.unravel_index(np.argmax(np.abs(np.triu(C, 1))), C.shape)
        a, b = self.labels[known[i]], self.labels[known[j]]
        return [f"  strongest correlation: {C[i, j]:+.2f}, of {a} and {b}"]
