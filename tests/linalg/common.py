"""What the tests of linear algebra share."""

import functools
from typing import Any

import jax
import numpy as np

DTYPES = [np.float32, np.float64, np.complex64, np.complex128]

# Nearly all the time goes into compiling programs that run once: they needn't be fast ones.
quick_jit = functools.partial(
    jax.jit,
    compiler_options={"xla_backend_optimization_level": 0},
)


def random_array(rng: np.random.Generator, *shape: int, dtype: Any = np.complex128) -> np.ndarray:
    """Normally distributed entries, in both parts of complex ones."""
    A = rng.normal(size=shape)
    if np.issubdtype(dtype, np.complexfloating):
        A = A + 1j * rng.normal(size=shape)
    return A.astype(dtype)
