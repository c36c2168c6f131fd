"""QuTiP, which has no gradients of these solves: central differences of its loss in each parameter."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks._harness import Program, Ready

# The error of a difference is about h^2 and tolerance / h.
STEP = 1e-4


def options(tolerance: float, slice_length: float) -> dict[str, Any]:
    """The options of a solve: no step is longer than a slice, or pulses would be overlooked."""
    return {
        "method": "dop853",
        "rtol": tolerance,
        "atol": tolerance,
        "max_step": slice_length,
        "nsteps": 10**6,
        "progress_bar": "",
        "store_final_state": True,
        "store_states": False,
    }


def piecewise(drift: Any, controls: Sequence[Any], values: np.ndarray, edges: np.ndarray) -> Any:
    """The `QobjEvo` of a drift and of controls, each with its row of values on the slices."""
    import qutip

    # Of the samples at all edges, each holds until the next.
    samples = np.concatenate([values, values[:, -1:]], axis=1)
    terms = [[control, row] for control, row in zip(controls, samples, strict=True)]
    return qutip.QobjEvo([drift, *terms], tlist=edges, order=0)


def with_differences(
    final_state: Callable[[np.ndarray], np.ndarray],
    loss: Callable[[np.ndarray], float],
    parameters: np.ndarray,
) -> Program:
    """The `Program` of a NumPy function, whose gradient takes two solves for each parameter."""

    def forward():
        state = final_state(parameters)
        return loss(state), state

    def gradient():
        slope = np.empty_like(parameters)
        for place in np.ndindex(parameters.shape):
            values = []
            for sign in (1, -1):
                moved = parameters.copy()
                moved[place] += sign * STEP
                values.append(loss(final_state(moved)))
            slope[place] = (values[0] - values[1]) / (2 * STEP)
        return loss(final_state(parameters)), slope

    return Program(lambda: Ready(forward), lambda: Ready(gradient))
