"""A driven transmon: the gradient of a state transfer with respect to every sample of its pulse.

    i dpsi/dt = (H0 + u_x(t) X + u_y(t) Y) psi,        loss = 1 - |<target|psi(T)>|^2

with 10 levels and two piecewise-constant controls. Samples are `DT` long whatever their number,
so a pulse of 2,000 slices is ten times as long as one of 200, not sampled ten times as finely:
the norm of H, times the length of a slice, stays below 2.5 and is 2.4 in most. The target is what
a nearby pulse reaches.
"""

import itertools
from typing import NamedTuple

import numpy as np
from scipy.linalg import expm, expm_frechet

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

LEVELS = 10
DRIVE = 2 * np.pi * 0.08  # rad/ns
LOWER = np.diag(np.sqrt(np.arange(1, LEVELS)), 1).astype(complex)
RAISE = LOWER.T
X = LOWER + RAISE
Y = 1j * (RAISE - LOWER)
H0 = 2 * np.pi * (0.02 * RAISE @ LOWER - 0.15 * RAISE @ RAISE @ LOWER @ LOWER)
NORM = np.linalg.norm(H0, 2) + DRIVE * (np.linalg.norm(X, 2) + 0.3 * np.linalg.norm(Y, 2))
DT = 2.5 / NORM  # ns


class Instance(NamedTuple):
    amplitudes: np.ndarray  # (2, slices), rad/ns
    edges: np.ndarray  # (slices + 1,), ns
    psi0: np.ndarray
    target: np.ndarray


def instance(slices: int) -> Instance:
    rng = np.random.default_rng(7)
    phase = np.pi * (np.arange(slices) + 0.5) / slices
    envelope = np.stack([np.sin(phase), 0.3 * np.sin(2 * phase)])
    wanted = DRIVE * (envelope + 0.25 * rng.standard_normal((2, slices)))
    amplitudes = wanted + DRIVE * (0.15 * rng.standard_normal((2, slices)) + 0.06)
    psi0 = np.eye(LEVELS, dtype=complex)[0]
    target = psi0
    for exponent in exponents(wanted):
        target = expm(exponent) @ target
    return Instance(amplitudes, DT * np.arange(slices + 1), psi0, target)


def exponents(amplitudes: np.ndarray) -> np.ndarray:
    """-i H DT of each slice."""
    controls = np.multiply.outer(amplitudes[0], X) + np.multiply.outer(amplitudes[1], Y)
    return -1j * DT * (H0 + controls)


def reference(instance: Instance) -> Reference:
    """SciPy's exponential of each slice, and its Frechet derivative along each control.

    With costates lambda_k = E_k^H lambda_(k+1) from the target,
    d<target|psi(T)>/du_jk = <lambda_(k+1)| L(A_k, -i DT H_j) |psi_k>.
    """
    slices = exponents(instance.amplitudes)
    steps = expm(slices)
    states = [instance.psi0]
    for step in steps:
        states.append(step @ states[-1])
    overlap = np.vdot(instance.target, states[-1])
    gradient = np.empty_like(instance.amplitudes)
    costate = instance.target
    for k in reversed(range(len(slices))):
        for j, control in enumerate((X, Y)):
            derivative = expm_frechet(slices[k], -1j * DT * control, compute_expm=False)
            change = np.vdot(costate, derivative @ states[k])
            gradient[j, k] = -2 * np.real(np.conj(overlap) * change)
        costate = steps[k].conj().T @ costate
    return Reference(1 - abs(overlap) ** 2, states[-1], gradient)


# The methods import their library themselves: each is measured where no other is loaded.

# Steps allowed in a slice, a little above what 1e-13 takes over 20,000 slices (113 and 13): diffrax
# and dynamiqs make room for checkpoints by what is allowed, not by what is taken.
MAX_STEPS = {"Tsit5": 128, "Dopri8": 16}


def _jax(final_state, instance: Instance) -> Program:
    """`final_state(amplitudes)`, with the loss that all JAX methods share."""

    def loss(state):
        overlap = instance.target.conj() @ state
        return 1 - overlap.real**2 - overlap.imag**2

    return jax_program(final_state, loss, instance.amplitudes)


def _cdiffeq(instance: Instance, _: None) -> Program:
    import cdiffeq as cd

    def final_state(u):
        H = cd.constant(H0) + cd.pwc(instance.edges, u[0], X) + cd.pwc(instance.edges, u[1], Y)
        return cd.sesolve(H, instance.psi0, instance.edges[[0, -1]]).final_state

    return _jax(final_state, instance)


def _dynamiqs(method: str, gradient: str) -> Build:
    def build(instance: Instance, tolerance: float | None) -> Program:
        import dynamiqs as dq

        dq.set_precision("double")
        dq.set_progress_meter(False)
        drift, x, y = (dq.asqarray(matrix) for matrix in (H0, X, Y))
        psi0 = dq.asqarray(instance.psi0[:, None])
        options = {}
        if tolerance is not None:
            max_steps = MAX_STEPS[method] * instance.amplitudes.shape[1]
            options = {"rtol": tolerance, "atol": tolerance, "max_steps": max_steps}

        def final_state(u):
            H = dq.constant(drift)
            H += dq.pwc(instance.edges, u[0], x) + dq.pwc(instance.edges, u[1], y)
            result = dq.sesolve(
                H,
                psi0,
                instance.edges[[0, -1]],
                method=getattr(dq.method, method)(**options),
                gradient=getattr(dq.gradient, gradient)(),
                save_states=False,
            )
            return result.final_state.to_jax()[:, 0]

        return _jax(final_state, instance)

    return build


def _diffrax(solver: str) -> Build:
    def build(instance: Instance, tolerance: float) -> Program:
        import diffrax
        import jax.numpy as jnp

        jumps = jnp.asarray(instance.edges[1:-1])

        def field(t, psi, u):
            # Not floor(t / DT), which rounding may put on the wrong side of an edge.
            k = jnp.searchsorted(jumps, t, side="right")
            return -1j * ((H0 + u[0, k] * X + u[1, k] * Y) @ psi)

        def final_state(u):
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(field),
                getattr(diffrax, solver)(),
                t0=0.0,
                t1=instance.edges[-1],
                dt0=None,
                y0=jnp.asarray(instance.psi0),
                args=u,
                stepsize_controller=diffrax.ClipStepSizeController(
                    diffrax.PIDController(rtol=tolerance, atol=tolerance), jump_ts=jumps
                ),
                adjoint=diffrax.RecursiveCheckpointAdjoint(),
                max_steps=MAX_STEPS[solver] * instance.amplitudes.shape[1],
            )
            return solution.ys[-1]

        return _jax(final_state, instance)

    return build


def _diffrax_slices(instance: Instance, tolerance: float) -> Program:
    """One solve for each slice, in a scan: no searching, and no gradient of all amplitudes summed
    up over all steps, whose cost is quadratic in the number of slices."""
    import diffrax
    import jax
    import jax.numpy as jnp

    def step(psi, amplitudes):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, psi, A: A @ psi),
            diffrax.Dopri8(),
            t0=0.0,
            t1=DT,
            dt0=DT,
            y0=psi,
            args=-1j * (H0 + amplitudes[0] * X + amplitudes[1] * Y),
            stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
            adjoint=diffrax.RecursiveCheckpointAdjoint(),
            max_steps=MAX_STEPS["Dopri8"],
        )
        return solution.ys[-1], None

    def final_state(u):
        return jax.lax.scan(step, jnp.asarray(instance.psi0), u.T)[0]

    return _jax(final_state, instance)


def _scan_expm(instance: Instance, _: None) -> Program:
    import jax
    import jax.numpy as jnp

    def final_state(u):
        def step(psi, amplitudes):
            H = H0 + amplitudes[0] * X + amplitudes[1] * Y
            return jax.scipy.linalg.expm(-1j * DT * H) @ psi, None

        return jax.lax.scan(step, jnp.asarray(instance.psi0), u.T)[0]

    return _jax(final_state, instance)


def _qutip_qtrl(instance: Instance, _: None) -> Program:
    import qutip
    from qutip_qtrl import pulseoptim

    amplitudes = instance.amplitudes.T.copy()
    # Amplitudes that haven't changed aren't computed again: alternate between these and others
    # one unit in the last place away.
    updates = itertools.cycle([amplitudes, np.nextafter(amplitudes, np.inf)])

    def dynamics():
        optimizer = pulseoptim.create_pulse_optimizer(
            qutip.Qobj(H0),
            [qutip.Qobj(X), qutip.Qobj(Y)],
            qutip.Qobj(instance.psi0[:, None]),
            qutip.Qobj(instance.target[:, None]),
            num_tslots=len(amplitudes),
            evo_time=instance.edges[-1],
            dyn_type="UNIT",
            fid_params={"phase_option": "PSU"},
            init_pulse_type="ZERO",
        )
        optimizer.dynamics.initialize_controls(np.zeros_like(amplitudes))
        return optimizer.dynamics

    def forward() -> Ready:
        solver = dynamics()

        def call():
            solver.update_ctrl_amps(next(updates))
            error = solver.fid_computer.get_fid_err()  # 1 - |<target|psi(T)>|
            return 1 - (1 - error) ** 2, solver._fwd_evo[-1]  # the public list copies every slice

        return Ready(call)

    def gradient() -> Ready:
        solver = dynamics()

        def call():
            solver.update_ctrl_amps(next(updates))
            overlap = 1 - solver.fid_computer.get_fid_err()
            return 1 - overlap**2, 2 * overlap * solver.fid_computer.get_fid_err_gradient().T

        return Ready(call)

    return Program(forward, gradient)


TOLERANCES = decades(-6, -14)

PROBLEM = Problem(
    title="Driven transmon, 10 levels: gradient of a state transfer, 2 amplitudes per slice",
    size_name="slices",
    sizes=(200, 2_000, 20_000),
    quick_sizes=(4,),
    target=1e-8,
    instance=instance,
    reference=reference,
    methods={
        "cdiffeq": Method(_cdiffeq, ("cdiffeq",)),
        "dynamiqs-expm": Method(_dynamiqs("Expm", "Direct"), ("dynamiqs",)),
        "dynamiqs-tsit5": Method(
            _dynamiqs("Tsit5", "BackwardCheckpointed"), ("dynamiqs",), TOLERANCES
        ),
        "dynamiqs-dopri8": Method(
            _dynamiqs("Dopri8", "BackwardCheckpointed"), ("dynamiqs",), TOLERANCES
        ),
        "diffrax-tsit5": Method(_diffrax("Tsit5"), ("diffrax",), TOLERANCES),
        "diffrax-dopri8": Method(_diffrax("Dopri8"), ("diffrax",), TOLERANCES),
        "diffrax-dopri8-slices": Method(_diffrax_slices, ("diffrax",), TOLERANCES),
        "jax-scan-expm": Method(_scan_expm, ("jax",)),
        "qutip-qtrl": Method(_qutip_qtrl, ("qutip", "qutip-qtrl")),
    },
)
