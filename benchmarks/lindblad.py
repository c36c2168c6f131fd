"""A decaying qubit in a cavity: the gradient of an open system's fidelity with respect to every sample.

    d rho/dt = -i [H0 + u_x(t) X + u_y(t) Y, rho] + sum_j (L_j rho L_j^H - {L_j^H L_j, rho} / 2)

Two modes of 2 and 4 levels, 8 in all, that exchange excitations, each with a T1 and a T2; the qubit is
driven by two piecewise-constant controls. Slices last 1 ns whatever their number. What is minimised is
1 - <target|rho(T)|target>.
"""

from typing import NamedTuple

import numpy as np
from scipy.linalg import expm, expm_frechet

from benchmarks._harness import Build, Method, Problem, Program, Reference, decades, jax_program
from benchmarks._qutip import options, piecewise, with_differences

CAVITY = 4
A = np.kron(np.diag([1.0], 1), np.eye(CAVITY))  # the qubit's lowering operator
B = np.kron(np.eye(2), np.diag(np.sqrt(np.arange(1.0, CAVITY)), 1))
N = 2 * CAVITY
X, Y = A + A.T, 1j * (A.T - A)
DETUNING, COUPLING, KERR, DRIVE = 2 * np.pi * np.array([0.05, 0.05, 0.1, 0.08])  # rad/ns
H0 = DETUNING * A.T @ A + COUPLING * (A.T @ B + B.T @ A) - KERR * B.T @ B.T @ B @ B
JUMPS = np.stack(  # T1 of 2 and 0.5 us, pure dephasing times of 3 and 4 us
    [A / np.sqrt(2e3), A.T @ A * np.sqrt(2 / 3e3), B / np.sqrt(5e2), B.T @ B * np.sqrt(2 / 4e3)]
)
DT = 1.0  # ns


class Instance(NamedTuple):
    amplitudes: np.ndarray  # (2, slices), rad/ns
    edges: np.ndarray  # (slices + 1,), ns
    psi0: np.ndarray
    target: np.ndarray


def instance(slices: int) -> Instance:
    rng = np.random.default_rng(3)
    amplitudes = DRIVE * (0.5 + 0.3 * rng.standard_normal((2, slices)))
    basis = np.eye(N, dtype=complex)
    target = (basis[1] + 1j * basis[CAVITY]) / np.sqrt(2)
    return Instance(amplitudes, DT * np.arange(slices + 1), basis[0], target)


def _commutator(H: np.ndarray) -> np.ndarray:
    """-i [H, .], acting on the rows of rho one after another."""
    one = np.eye(N)
    return -1j * (np.kron(H, one) - np.kron(one, H.T))


def reference(instance: Instance) -> Reference:
    """SciPy's exponential of each slice's Liouvillian, and its Frechet derivative along each control."""
    one, decay = np.eye(N), 0
    for L in JUMPS:
        LL = L.conj().T @ L
        decay = decay + np.kron(L, L.conj()) - (np.kron(LL, one) + np.kron(one, LL.T)) / 2
    controls = [DT * _commutator(control) for control in (X, Y)]
    drift = DT * (_commutator(H0) + decay)
    slices = [drift + x * controls[0] + y * controls[1] for x, y in instance.amplitudes.T]
    steps = [expm(S) for S in slices]
    states = [np.outer(instance.psi0, instance.psi0.conj()).reshape(-1)]
    for step in steps:
        states.append(step @ states[-1])
    costate = np.outer(instance.target, instance.target.conj()).reshape(-1)
    loss = 1 - np.vdot(costate, states[-1]).real
    gradient = np.empty_like(instance.amplitudes)
    for k in reversed(range(len(slices))):
        for j, control in enumerate(controls):
            derivative = expm_frechet(slices[k], control, compute_expm=False)
            gradient[j, k] = -np.vdot(costate, derivative @ states[k]).real
        costate = steps[k].conj().T @ costate
    return Reference(loss, states[-1].reshape(N, N), gradient)


# The methods import their library themselves: each is measured where no other is loaded.


def _jax(final_state, instance: Instance) -> Program:
    loss = lambda rho: 1 - (instance.target.conj() @ rho @ instance.target).real
    return jax_program(final_state, loss, instance.amplitudes)


def _cdiffeq(method: str | None) -> Build:
    def build(instance: Instance, tolerance: float | None) -> Program:
        import diffrax

        import cdiffeq as cd

        chosen = {"exponential": cd.Exponential(), "dopri8": diffrax.Dopri8(), None: None}[method]

        def final_state(u):
            H = cd.constant(H0) + cd.pwc(instance.edges, u[0], X) + cd.pwc(instance.edges, u[1], Y)
            ends = instance.edges[[0, -1]]
            result = cd.mesolve(
                H, list(JUMPS), instance.psi0, ends, method=chosen, rtol=tolerance, atol=tolerance
            )
            return result.final_state

        return _jax(final_state, instance)

    return build


def _dynamiqs(method: str, gradient: str) -> Build:
    def build(instance: Instance, tolerance: float | None) -> Program:
        import dynamiqs as dq

        dq.set_precision("double")
        dq.set_progress_meter(False)
        drift, x, y = (dq.asqarray(matrix) for matrix in (H0, X, Y))
        jumps = [dq.asqarray(L) for L in JUMPS]
        rho0 = dq.asqarray(np.outer(instance.psi0, instance.psi0.conj()))
        options = {}
        if tolerance is not None:
            # It makes room for checkpoints by what is allowed: a little above what 1e-13 takes.
            steps = {"Tsit5": 128, "Dopri8": 16}[method] * instance.amplitudes.shape[1]
            options = {"rtol": tolerance, "atol": tolerance, "max_steps": steps}

        def final_state(u):
            H = dq.constant(drift)
            H += dq.pwc(instance.edges, u[0], x) + dq.pwc(instance.edges, u[1], y)
            result = dq.mesolve(
                H,
                jumps,
                rho0,
                instance.edges[[0, -1]],
                method=getattr(dq.method, method)(**options),
                gradient=getattr(dq.gradient, gradient)(),
                save_states=False,
            )
            return result.final_state.to_jax()

        return _jax(final_state, instance)

    return build


def _diffrax(instance: Instance, tolerance: float | None) -> Program:
    """One solve for each slice, in a scan: the fastest way for the transmon's pulse."""
    import diffrax
    import jax
    import jax.numpy as jnp

    K0 = -1j * H0 - sum(L.conj().T @ L for L in JUMPS) / 2
    L, Lh = jnp.asarray(JUMPS), jnp.asarray(JUMPS.conj().swapaxes(1, 2))

    def field(t, rho, K):
        half = K @ rho + jnp.sum(L @ rho @ Lh, axis=0) / 2
        return half + half.conj().T

    def step(rho, amplitudes):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Dopri8(),
            t0=0.0,
            t1=DT,
            dt0=DT / 2,
            y0=rho,
            args=K0 - 1j * (amplitudes[0] * X + amplitudes[1] * Y),
            stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
            adjoint=diffrax.RecursiveCheckpointAdjoint(),
            max_steps=32,
        )
        return solution.ys[-1], None

    def final_state(u):
        rho0 = jnp.asarray(np.outer(instance.psi0, instance.psi0.conj()))
        return jax.lax.scan(step, rho0, u.T)[0]

    return _jax(final_state, instance)


def _qutip(instance: Instance, tolerance: float) -> Program:
    import qutip

    drift, x, y = (qutip.Qobj(matrix) for matrix in (H0, X, Y))
    jumps = [qutip.Qobj(L) for L in JUMPS]
    rho0 = qutip.Qobj(np.outer(instance.psi0, instance.psi0.conj()))

    def final_state(u):
        H = piecewise(drift, (x, y), u, instance.edges)
        ends, how = instance.edges[[0, -1]], options(tolerance, DT)
        return qutip.mesolve(H, rho0, ends, jumps, options=how).final_state.full()

    loss = lambda rho: 1 - (instance.target.conj() @ rho @ instance.target).real
    return with_differences(final_state, loss, instance.amplitudes)


TOLERANCES = decades(-6, -13)

PROBLEM = Problem(
    title="Qubit and cavity, 8 levels, T1 and T2: gradient of a fidelity, 2 amplitudes per slice",
    size_name="slices",
    sizes=(100, 400),
    quick_sizes=(3,),
    target=1e-8,
    instance=instance,
    reference=reference,
    methods={
        "cdiffeq": Method(_cdiffeq(None), ("cdiffeq",)),
        "cdiffeq-exponential": Method(_cdiffeq("exponential"), ("cdiffeq",)),
        "cdiffeq-dopri8": Method(_cdiffeq("dopri8"), ("cdiffeq",), TOLERANCES),
        "dynamiqs-tsit5": Method(
            _dynamiqs("Tsit5", "BackwardCheckpointed"), ("dynamiqs",), TOLERANCES
        ),
        "dynamiqs-dopri8": Method(
            _dynamiqs("Dopri8", "BackwardCheckpointed"), ("dynamiqs",), TOLERANCES
        ),
        "diffrax-dopri8-slices": Method(_diffrax, ("diffrax",), TOLERANCES),
        "qutip-differences": Method(_qutip, ("qutip",), TOLERANCES),
    },
)
