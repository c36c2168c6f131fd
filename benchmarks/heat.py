"""Diffusion on a square grid: exp(t (Laplacian - V)) v, and the gradient with respect to V at every point."""

import numpy as np

from benchmarks import _expm_action
from benchmarks._expm_action import Instance
from benchmarks._harness import Problem

TIME = 4.0  # in units of the spacing squared over the diffusivity: the norm is 8 times as much


def instance(side: int) -> Instance:
    rng = np.random.default_rng(4)
    n = side**2
    points = np.arange(n).reshape(side, side)
    pairs = [(points[1:], points[:-1]), (points[:, 1:], points[:, :-1])]
    there = np.concatenate([a.ravel() for a, _ in pairs])
    back = np.concatenate([b.ravel() for _, b in pairs])
    links = 2 * len(there)

    def entries(np, potential):
        return np.concatenate([np.ones(links), -4.0 - potential])

    x, y = np.meshgrid(*[np.linspace(-1, 1, side)] * 2)
    bump = lambda a, b: np.exp(-20 * ((x - a) ** 2 + (y - b) ** 2)).ravel()
    return Instance(
        np.concatenate([there, back, points.ravel()]),
        np.concatenate([back, there, points.ravel()]),
        entries,
        lambda g: -g[links:],
        0.1 * rng.random(n),
        TIME,
        bump(0.3, 0.2),
        bump(-0.2, 0.1),
    )


PROBLEM = Problem(
    title="Diffusion on a square grid: gradient in the potential at every point",
    size_name="side",
    sizes=(100,),
    quick_sizes=(5,),
    target=1e-11,
    instance=instance,
    reference=_expm_action.reference,
    methods=_expm_action.METHODS,
)
