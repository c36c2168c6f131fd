"""Programs that run once needn't be fast ones: nearly all the time goes into compiling them."""

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def _compile_quickly(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.path.name == "test_memory.py":  # which looks at programs as users get them
        yield
        return
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
