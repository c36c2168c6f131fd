"""A complex Ginzburg-Landau equation: the gradient with respect to the gain in every cell.

    du/dt = r(x) u + (1 + i C1) d2u/dx2 - (1 + i C2) |u|^2 u,
    loss = integral of (|u(x, T)|^2 - 1)^2 / 4 + Re u(x, T)

by central differences on a ring of cells `DX` wide, whatever their number: more cells make a
longer ring. Diffusion limits the steps of an explicit solver, for stability rather than accuracy:
it needs several hundred. Tsit5 throughout: Dopri8 takes fewer steps, and longer over them.

Two peers are left out, since diffusion can't be solved backward: diffrax's `BacksolveAdjoint` ends
at `max_steps`, torchdiffeq's `odeint_adjoint` with a step size of zero.
"""

from typing import NamedTuple

import numpy as np
from scipy.integrate import solve_ivp

from benchmarks._harness import (
    Build,
    Method,
    Problem,
    Program,
    Reference,
    decades,
    jax_program,
)

DX = 0.1
TIME = 4.0
C1, C2 = 0.5, -1.2
MAX_STEPS = 2048


class Instance(NamedTuple):
    gain: np.ndarray  # (cells,), real
    u0: np.ndarray


def instance(cells: int) -> Instance:
    rng = np.random.default_rng(5)
    smooth = np.exp(-((np.fft.fftfreq(cells, 1 / cells) / max(2, cells / 100)) ** 2))

    def field():  # of unit size, with some fifty cells to a wavelength
        values = np.fft.ifft(np.fft.fft(rng.standard_normal((cells, 2)) @ [1, 1j]) * smooth)
        return values / np.sqrt(np.mean(np.abs(values) ** 2))

    return Instance(1 + 0.5 * field().real + 0.1 * rng.standard_normal(cells), 0.3 * field())


def velocity(np, u, r):
    """du/dt; the first argument is NumPy or what stands in for it."""
    curvature = (np.roll(u, -1) + np.roll(u, 1) - 2 * u) / DX**2
    return (r - (1 + 1j * C2) * (u.real**2 + u.imag**2)) * u + (1 + 1j * C1) * curvature


def real_velocity(np, u, r):
    """The same of real and imaginary parts, stacked: no complex number anywhere."""
    curvature_x, curvature_y = (np.roll(u, -1, -1) + np.roll(u, 1, -1) - 2 * u) / DX**2
    x, y = u
    density = x**2 + y**2
    growth = r - density
    return np.stack(
        [
            growth * x + C2 * density * y + curvature_x - C1 * curvature_y,
            growth * y - C2 * density * x + curvature_y + C1 * curvature_x,
        ]
    )


def reference(instance: Instance) -> Reference:
    """SciPy's DOP853 for the state, kept as its dense output, and backward for the costate.

    The costate mu = dL/dx + i dL/dy of the final state is DX ((|u|^2 - 1) u + 1), and

        dmu/dt = -(r mu + (1 - i C1) mu_xx - 2 (1 - i C2) |u|^2 mu - (1 + i C2) u^2 conj(mu)),
        dL/dr_n = integral of Re(conj(mu_n) u_n).
    """
    r, u0 = instance
    options = {"method": "DOP853", "rtol": 1e-12, "atol": 1e-13}
    forward = solve_ivp(
        lambda t, u: velocity(np, u, r), (0, TIME), u0, dense_output=True, **options
    )
    final_state = forward.y[:, -1]

    def backward(t, state):
        u, mu = forward.sol(t), state[: len(r)]
        curvature = (np.roll(mu, -1) + np.roll(mu, 1) - 2 * mu) / DX**2
        turned = 2 * (1 - 1j * C2) * np.abs(u) ** 2 * mu + (1 + 1j * C2) * u**2 * mu.conj()
        slope = r * mu + (1 - 1j * C1) * curvature - turned
        return -np.concatenate([slope, (mu.conj() * u).real])

    density = np.abs(final_state) ** 2
    end = np.concatenate([DX * ((density - 1) * final_state + 1), np.zeros(len(r))])
    gradient = solve_ivp(backward, (TIME, 0), end, **options).y[len(r) :, -1].real
    loss = DX * np.sum((density - 1) ** 2 / 4 + final_state.real)
    return Reference(loss, final_state, gradient)


# The methods import their library themselves: each is measured where no other is loaded.


def _jax(final_state, instance: Instance) -> Program:
    """`final_state(gain)`, with the loss that all JAX methods share."""

    def loss(u):
        density = u.real**2 + u.imag**2
        return DX * ((density - 1) ** 2 / 4 + u.real).sum()

    return jax_program(final_state, loss, instance.gain)


def _cdiffeq(adjoint: str) -> Build:
    def build(instance: Instance, tolerance: float) -> Program:
        import diffrax
        import jax.numpy as jnp

        import cdiffeq as cd

        def final_state(r):
            solution = cd.ode.solve(
                lambda t, u, r: velocity(jnp, u, r),
                instance.u0,
                [0.0, TIME],
                r,
                solver=diffrax.Tsit5(),
                rtol=tolerance,
                atol=tolerance,
                adjoint=getattr(cd.ode, adjoint)(),
                max_steps=MAX_STEPS,
            )
            return solution.ys[-1]

        return _jax(final_state, instance)

    return build


def _diffrax(real: bool) -> Build:
    def build(instance: Instance, tolerance: float) -> Program:
        import diffrax
        import jax.numpy as jnp

        field = real_velocity if real else velocity
        u0 = np.stack([instance.u0.real, instance.u0.imag]) if real else instance.u0

        def final_state(r):
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(lambda t, u, r: field(jnp, u, r)),
                diffrax.Tsit5(),
                t0=0.0,
                t1=TIME,
                dt0=None,
                y0=jnp.asarray(u0),
                args=r,
                stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
                adjoint=diffrax.RecursiveCheckpointAdjoint(),
                max_steps=MAX_STEPS,
            )
            u = solution.ys[-1]
            return u[0] + 1j * u[1] if real else u

        return _jax(final_state, instance)

    return build


TOLERANCES = decades(-5, -9)

PROBLEM = Problem(
    title="Complex Ginzburg-Landau equation by differences: gradient in the gain of every cell",
    size_name="cells",
    sizes=(2_000,),
    quick_sizes=(16,),
    target=1e-6,
    calibrate_on="gradient",
    fields=("velocity", "real_velocity"),
    instance=instance,
    reference=reference,
    methods={
        "cdiffeq": Method(_cdiffeq("Discrete"), ("cdiffeq",), TOLERANCES),
        "cdiffeq-interpolated": Method(_cdiffeq("Interpolated"), ("cdiffeq",), TOLERANCES),
        "diffrax-tsit5": Method(_diffrax(real=False), ("diffrax",), TOLERANCES),
        "diffrax-tsit5-real": Method(_diffrax(real=True), ("diffrax",), TOLERANCES),
    },
)
