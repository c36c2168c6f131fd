"""What every test and every docstring example runs under."""

import os
from collections.abc import Iterator
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest

if jax.__version_info__ < (0, 11):
    # Most of the tests' time goes into compiling; XLA's older way, which newer releases don't have, takes a
    # third less of it. CI runs the fast tests as users compile, too.
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")

jax.config.update("jax_enable_x64", True)
# Arrays of different rank meet only where the code says how: psi[:, None], never by chance.
jax.config.update("jax_numpy_rank_promotion", "raise")
# The dtype promotion stays standard. Under "strict" a real amplitude times a complex matrix is an
# error, and that product is what this package is made of; that complex64 stays complex64 is tested
# where it is promised.

# The docstring examples of optional packages run where these are installed.
collect_ignore = [
    f"cdiffeq/interop/{name}.py"
    for name in ("tensorflow", "torch", "xarray")
    if not find_spec(name)
]


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs() -> Iterator[None]:
    """Each file of tests begins with empty caches: the programs of all of them together take more
    memory maps than Linux gives one process (65,530), and the process dies of it."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def _docstring_names(doctest_namespace: dict) -> None:
    """The names that examples in docstrings use without importing them."""
    # Imported here, not above: the jaxtyping hook has to see the first import of the package.
    import cdiffeq as cd

    doctest_namespace.update(cd=cd, jax=jax, jnp=jnp, np=np)
