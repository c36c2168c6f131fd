"""A discrete nonlinear Schroedinger lattice: the gradient with respect to every complex hopping.

    i dz_n/dt = -(c_n z_(n+1) + conj(c_(n-1)) z_(n-1)) - |z_n|^2 z_n,
    loss = sum |z_n(T) - target_n|^2 / 2

on a ring of 64 sites. Neither the equation nor the loss is holomorphic. The norm is conserved, so
that the equation can be solved backward in time, too. Sites are filled thinly enough for the
chaos of the lattice to stay within what double precision can follow over the longest time.
"""

from typing import NamedTuple

import numpy as np
from scipy.integrate import solve_ivp

from benchmarks._harness import (
    Build,
    Method,
    Problem,
    Program,
    Ready,
    Reference,
    decades,
    jax_program,
)

SITES = 64
MAX_STEPS = 16  # per unit of time, a little above what 1e-11 takes


class Instance(NamedTuple):
    hopping: np.ndarray  # (SITES,), complex
    time: float
    z0: np.ndarray
    target: np.ndarray


def instance(time: int) -> Instance:
    rng = np.random.default_rng(11)

    def state():
        return rng.standard_normal((SITES, 2)) @ [1, 1j]

    hopping = np.exp(0.2j * np.pi * rng.standard_normal(SITES)) + 0.1 * state()
    return Instance(hopping, float(time), 0.2 * state(), 0.2 * state())


def velocity(np, z, c):
    """dz/dt; the first argument is NumPy or what stands in for it."""
    hops = c * np.roll(z, -1) + np.roll(c.conj() * z, 1)
    return 1j * (hops + (z.real**2 + z.imag**2) * z)


def real_velocity(np, z, c):
    """The same of real and imaginary parts, stacked: no complex number anywhere."""
    x, y = z
    a, b = c
    right_x, right_y = np.roll(x, -1), np.roll(y, -1)
    density = x**2 + y**2
    hops_x = a * right_x - b * right_y + np.roll(a * x + b * y, 1)
    hops_y = a * right_y + b * right_x + np.roll(a * y - b * x, 1)
    return np.stack([-(hops_y + density * y), hops_x + density * x])


def reference(instance: Instance) -> Reference:
    """SciPy's DOP853 for the state, then backward for the state, its costate and the gradient.

    The costate mu = dL/dx + i dL/dy of the final state is z - target, and with the Hermitian
    matrix H of the hops

        dmu/dt = i H mu + 2i |z|^2 mu - i z^2 conj(mu),
        dL/dRe c_n + i dL/dIm c_n = integral of i (z_n conj(mu_(n+1)) - mu_n conj(z_(n+1))).

    JAX's gradient is the conjugate of that.
    """
    c, time, z0, target = instance
    options = {"method": "DOP853", "rtol": 1e-13, "atol": 1e-14}
    forward = solve_ivp(lambda t, z: velocity(np, z, c), (0, time), z0, **options)
    final_state = forward.y[:, -1]

    def backward(t, state):
        z, mu, _ = state.reshape(3, SITES)
        hops = c * np.roll(mu, -1) + np.roll(c.conj() * mu, 1)
        slope = 1j * (hops + 2 * np.abs(z) ** 2 * mu - z**2 * mu.conj())
        density = 1j * (z * np.roll(mu, -1).conj() - mu * np.roll(z, -1).conj())
        return np.concatenate([velocity(np, z, c), slope, -density])

    end = np.concatenate([final_state, final_state - target, np.zeros(SITES)])
    gradient = solve_ivp(backward, (time, 0), end, **options).y[2 * SITES :, -1]
    loss = np.sum(np.abs(final_state - target) ** 2) / 2
    return Reference(loss, final_state, gradient.conj())


# The methods import their library themselves: each is measured where no other is loaded.


def _max_steps(instance: Instance) -> int:
    return int(MAX_STEPS * instance.time) + 64


def _jax(final_state, instance: Instance) -> Program:
    """`final_state(hopping)`, with the loss that all JAX methods share."""

    def loss(z):
        off = z - instance.target
        return (off.real**2 + off.imag**2).sum() / 2

    return jax_program(final_state, loss, instance.hopping)


def _cdiffeq(adjoint: str) -> Build:
    def build(instance: Instance, tolerance: float) -> Program:
        import diffrax
        import jax.numpy as jnp

        import cdiffeq as cd

        def final_state(c):
            solution = cd.ode.solve(
                lambda t, z, c: velocity(jnp, z, c),
                instance.z0,
                [0.0, instance.time],
                c,
                solver=diffrax.Dopri8(),
                rtol=tolerance,
                atol=tolerance,
                adjoint=getattr(cd.ode, adjoint)(),
                max_steps=_max_steps(instance),
            )
            return solution.ys[-1]

        return _jax(final_state, instance)

    return build


def _diffrax(adjoint: str = "RecursiveCheckpointAdjoint", real: bool = False) -> Build:
    def build(instance: Instance, tolerance: float) -> Program:
        import diffrax
        import jax.numpy as jnp

        field = real_velocity if real else velocity

        def final_state(c):
            z0 = instance.z0
            if real:
                z0, c = np.stack([z0.real, z0.imag]), jnp.stack([c.real, c.imag])
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(lambda t, z, c: field(jnp, z, c)),
                diffrax.Dopri8(),
                t0=0.0,
                t1=instance.time,
                dt0=None,
                y0=jnp.asarray(z0),
                args=c,
                stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
                adjoint=getattr(diffrax, adjoint)(),
                max_steps=_max_steps(instance),
            )
            z = solution.ys[-1]
            return z[0] + 1j * z[1] if real else z

        return _jax(final_state, instance)

    return build


def _torchdiffeq(instance: Instance, tolerance: float) -> Program:
    """On real and imaginary parts: for complex states its adjoint refuses real parameters."""
    import torch
    from torchdiffeq import odeint_adjoint

    torch.set_num_threads(1)
    stack = lambda z: torch.tensor(np.stack([z.real, z.imag]))
    z0, target, c = (stack(z) for z in (instance.z0, instance.target, instance.hopping))
    times = torch.tensor([0.0, instance.time], dtype=torch.float64)

    def loss_and_state(c):
        z = odeint_adjoint(
            lambda t, z: real_velocity(torch, z, c),
            z0,
            times,
            rtol=tolerance,
            atol=tolerance,
            method="dopri8",
            adjoint_params=(c,),
        )[-1]
        return ((z - target) ** 2).sum() / 2, z

    def forward():
        with torch.no_grad():
            loss, z = loss_and_state(c)
        return loss.item(), z[0].numpy() + 1j * z[1].numpy()

    def gradient():
        parameters = c.clone().requires_grad_()
        loss, _ = loss_and_state(parameters)
        (slope,) = torch.autograd.grad(loss, parameters)
        return loss.item(), slope[0].numpy() - 1j * slope[1].numpy()  # in JAX's convention

    return Program(lambda: Ready(forward), lambda: Ready(gradient))


# Finer than powers of ten: 1e-8 is just enough for some methods, and just not for others.
TOLERANCES = decades(-7, -11, (7, 5, 3, 2, 1))

PROBLEM = Problem(
    title="Nonlinear Schroedinger lattice, 64 sites: gradient in 64 complex hoppings",
    size_name="time",
    sizes=(20, 100),
    quick_sizes=(2,),
    target=1e-6,
    calibrate_on="gradient",
    fields=("velocity", "real_velocity"),
    instance=instance,
    reference=reference,
    methods={
        "cdiffeq": Method(_cdiffeq("Discrete"), ("cdiffeq",), TOLERANCES),
        "cdiffeq-interpolated": Method(_cdiffeq("Interpolated"), ("cdiffeq",), TOLERANCES),
        "cdiffeq-backsolve": Method(_cdiffeq("Backsolve"), ("cdiffeq",), TOLERANCES),
        "cdiffeq-reversible": Method(_cdiffeq("Reversible"), ("cdiffeq",), TOLERANCES),
        "diffrax-dopri8": Method(_diffrax(), ("diffrax",), TOLERANCES),
        "diffrax-dopri8-real": Method(_diffrax(real=True), ("diffrax",), TOLERANCES),
        "diffrax-backsolve-real": Method(
            _diffrax("BacksolveAdjoint", real=True), ("diffrax",), TOLERANCES
        ),
        "torchdiffeq": Method(_torchdiffeq, ("torchdiffeq",), TOLERANCES),
    },
)
