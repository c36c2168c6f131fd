"""A chain of spins: the gradient of a state transfer with respect to every sample of two global fields.

    i dpsi/dt = (sum_j Z_j Z_(j+1) + u_x(t) sum_j X_j + u_z(t) sum_j Z_j) psi,    loss = 1 -
    |<target|psi(T)>|^2

in 100 slices of length 0.2, from all spins up. The target is what a nearby pulse reaches.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import jv

from benchmarks._harness import (
    Build,
    Method,
    Problem,
    Program,
    Reference,
    decades,
    jax_program,
)
from benchmarks._qutip import options, piecewise, with_differences

SLICES = 100
DT = 0.2
EDGES = DT * np.arange(SLICES + 1)


class Instance(NamedTuple):
    spins: int
    zz: np.ndarray  # the diagonals of sum Z Z and sum Z
    z: np.ndarray
    amplitudes: np.ndarray  # (2, slices)
    psi0: np.ndarray
    target: np.ndarray


def instance(spins: int) -> Instance:
    rng = np.random.default_rng(11)
    t = (np.arange(SLICES) + 0.5) / SLICES
    smooth = np.stack([1 + 0.3 * np.sin(2 * np.pi * t), 0.5 * np.cos(np.pi * t)])
    wanted = smooth + 0.1 * rng.standard_normal((2, SLICES))
    amplitudes = wanted + 0.05 * rng.standard_normal((2, SLICES))
    states = np.arange(2**spins)
    z = 1.0 - 2 * ((states[None] >> np.arange(spins)[:, None]) & 1)
    psi0 = np.eye(1, 2**spins, dtype=complex)[0]
    problem = Instance(spins, (z[:-1] * z[1:]).sum(0), z.sum(0), amplitudes, psi0, psi0)
    target = psi0
    for u in wanted.T:
        (target,) = exponentials(problem, u, target, [DT])
    return problem._replace(target=target)


def sum_x(psi: np.ndarray, spins: int) -> np.ndarray:
    """sum_j X_j psi."""
    views = [psi.reshape(2 ** (spins - 1 - j), 2, 2**j) for j in range(spins)]
    return sum(view[:, ::-1].reshape(-1) for view in views)


def exponentials(problem: Instance, u: np.ndarray, psi: np.ndarray, times: list) -> list:
    """exp(-itH) psi for each of some times, by a Chebyshev sum."""
    diagonal = problem.zz + u[1] * problem.z
    radius = problem.spins * (1 + abs(u).sum())
    terms = int(radius * max(abs(t) for t in times)) + 40
    k = np.arange(terms)
    factors = (-1j) ** k * np.where(k == 0, 1, 2)
    coefficients = np.array([factors * jv(k, radius * t) for t in times])
    apply = lambda v: (diagonal * v + u[0] * sum_x(v, problem.spins)) / radius
    before, last = psi, apply(psi)
    sums = np.multiply.outer(coefficients[:, 0], before) + np.multiply.outer(
        coefficients[:, 1], last
    )
    for j in range(2, terms):
        before, last = last, 2 * apply(last) - before
        sums += np.multiply.outer(coefficients[:, j], last)
    return list(sums)


def reference(problem: Instance) -> Reference:
    """With costates from the target, by Gauss quadrature in each slice of

    d<target|psi(T)>/du_j = -i int <lambda(t)| H_j |psi(t)> dt.
    """
    psis = [problem.psi0]
    for u in problem.amplitudes.T:
        psis += exponentials(problem, u, psis[-1], [DT])
    overlap = np.vdot(problem.target, psis[-1])
    nodes, weights = np.polynomial.legendre.leggauss(16)
    times, weights = DT * (nodes + 1) / 2, DT * weights / 2
    gradient, costate = np.empty((2, SLICES)), problem.target
    for k in reversed(range(SLICES)):
        u = problem.amplitudes[:, k]
        states = exponentials(problem, u, psis[k], list(times))
        costates = exponentials(problem, u, costate, list(times - DT))
        for j, control in enumerate((lambda v: sum_x(v, problem.spins), lambda v: problem.z * v)):
            both = zip(weights, costates, states, strict=True)
            change = sum(w * np.vdot(b, -1j * control(a)) for w, b, a in both)
            gradient[j, k] = -2 * np.real(np.conj(overlap) * change)
        (costate,) = exponentials(problem, u, costate, [-DT])
    return Reference(1 - abs(overlap) ** 2, psis[-1], gradient)


# The methods import their library themselves: each is measured where no other is loaded.


def _jax(final_state, problem: Instance) -> Program:
    """`final_state(amplitudes)`, with the loss that all JAX methods share."""

    def loss(state):
        overlap = problem.target.conj() @ state
        return 1 - overlap.real**2 - overlap.imag**2

    return jax_program(final_state, loss, problem.amplitudes)


def _cdiffeq(problem: Instance, _: None) -> Program:
    import cdiffeq as cd

    drift, x, z = (cd.spin_chain(problem.spins, {term: 1.0}) for term in ("ZZ", "X", "Z"))

    def final_state(u):
        H = cd.constant(drift) + cd.pwc(EDGES, u[0], x) + cd.pwc(EDGES, u[1], z)
        return cd.sesolve(H, problem.psi0, EDGES[[0, -1]]).final_state

    return _jax(final_state, problem)


def _field(problem: Instance):
    """H psi, from the diagonal and the amplitude of X."""
    import jax.numpy as jnp

    n = problem.spins

    def apply(psi, u):
        # One axis for each spin: of the ways to write it the one that JAX runs fastest.
        cube = psi.reshape((2,) * n)
        flips = sum(jnp.flip(cube, j) for j in range(n)).reshape(-1)
        return (problem.zz + u[1] * problem.z) * psi + u[0] * flips

    return apply


def _diffrax_slices(solver: str) -> Build:
    """One solve for each slice, in a scan: no searching, and no gradient of all amplitudes summed up over
    all steps."""

    def build(problem: Instance, tolerance: float) -> Program:
        import diffrax
        import jax
        import jax.numpy as jnp

        apply = _field(problem)

        def step(psi, u):
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(lambda t, psi, u: -1j * apply(psi, u)),
                getattr(diffrax, solver)(),
                t0=0.0,
                t1=DT,
                dt0=DT / 4,
                y0=psi,
                args=u,
                stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
                adjoint=diffrax.RecursiveCheckpointAdjoint(),
                max_steps=256,
            )
            return solution.ys[-1], None

        def final_state(u):
            return jax.lax.scan(step, jnp.asarray(problem.psi0), u.T)[0]

        return _jax(final_state, problem)

    return build


def _diffrax(solver: str) -> Build:
    def build(problem: Instance, tolerance: float) -> Program:
        import diffrax
        import jax.numpy as jnp

        apply = _field(problem)
        jumps = jnp.asarray(EDGES[1:-1])

        def field(t, psi, u):
            return -1j * apply(psi, u[:, jnp.searchsorted(jumps, t, side="right")])

        def final_state(u):
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(field),
                getattr(diffrax, solver)(),
                t0=0.0,
                t1=EDGES[-1],
                dt0=None,
                y0=jnp.asarray(problem.psi0),
                args=u,
                stepsize_controller=diffrax.ClipStepSizeController(
                    diffrax.PIDController(rtol=tolerance, atol=tolerance), jump_ts=jumps
                ),
                adjoint=diffrax.RecursiveCheckpointAdjoint(),
                max_steps=20_000,
            )
            return solution.ys[-1]

        return _jax(final_state, problem)

    return build


def _dynamiqs(problem: Instance, tolerance: float) -> Program:
    """Its default method and gradient, with matrices stored by diagonals."""
    import dynamiqs as dq

    dq.set_precision("double")
    dq.set_progress_meter(False)
    n = problem.spins
    flips = np.stack([sum_x(row, n) for row in np.eye(2**n, dtype=complex)])
    matrices = np.diag(problem.zz), flips, np.diag(problem.z)
    drift, x, z = (dq.asqarray(np.asarray(m, complex), layout=dq.dia) for m in matrices)
    psi0 = dq.asqarray(problem.psi0[:, None])

    def final_state(u):
        H = dq.constant(drift) + dq.pwc(EDGES, u[0], x) + dq.pwc(EDGES, u[1], z)
        method = dq.method.Tsit5(rtol=tolerance, atol=tolerance, max_steps=20_000)
        gradient = dq.gradient.BackwardCheckpointed()
        result = dq.sesolve(
            H, psi0, EDGES[[0, -1]], method=method, gradient=gradient, save_states=False
        )
        return result.final_state.to_jax()[:, 0]

    return _jax(final_state, problem)


def _scan_chebyshev(problem: Instance, _: None) -> Program:
    """No library: `jax.grad` through the Chebyshev sums of a scan over the slices."""
    import jax
    import jax.numpy as jnp

    apply = _field(problem)
    radius = problem.spins * (1 + np.abs(problem.amplitudes).sum(0).max())
    k = np.arange(int(radius * DT) + 25)
    coefficients = jnp.asarray((-1j) ** k * jv(k, radius * DT) * np.where(k == 0, 1, 2))

    def step(psi, u):
        first = apply(psi, u) / radius

        def term(state, c):
            before, last, y = state
            new = 2 * apply(last, u) / radius - before
            return (last, new, y + c * new), None

        start = psi, first, coefficients[0] * psi + coefficients[1] * first
        return jax.lax.scan(term, start, coefficients[2:])[0][2], None

    return _jax(lambda u: jax.lax.scan(step, jnp.asarray(problem.psi0), u.T)[0], problem)


def _qutip(problem: Instance, tolerance: float) -> Program:
    import qutip

    n = problem.spins
    flips = np.stack([sum_x(row, n) for row in np.eye(2**n, dtype=complex)])
    drift, x, z = (
        qutip.Qobj(m).to("CSR") for m in (np.diag(problem.zz), flips, np.diag(problem.z))
    )
    psi0 = qutip.Qobj(problem.psi0[:, None])

    def final_state(u):
        H = piecewise(drift, (x, z), u, EDGES)
        result = qutip.sesolve(H, psi0, EDGES[[0, -1]], options=options(tolerance, DT))
        return result.final_state.full()[:, 0]

    loss = lambda state: 1 - abs(np.vdot(problem.target, state)) ** 2
    return with_differences(final_state, loss, problem.amplitudes)


TOLERANCES = decades(-7, -13)

PROBLEM = Problem(
    title="Ising chain under two global fields, 100 slices: gradient of a state transfer",
    size_name="chain",
    sizes=(6, 10),
    quick_sizes=(2,),
    target=1e-8,
    instance=instance,
    reference=reference,
    methods={
        "cdiffeq": Method(_cdiffeq, ("cdiffeq",)),
        "diffrax-dopri8": Method(_diffrax("Dopri8"), ("diffrax",), TOLERANCES),
        "diffrax-dopri8-slices": Method(_diffrax_slices("Dopri8"), ("diffrax",), TOLERANCES),
        "diffrax-tsit5-slices": Method(_diffrax_slices("Tsit5"), ("diffrax",), TOLERANCES),
        "dynamiqs-tsit5": Method(_dynamiqs, ("dynamiqs",), TOLERANCES),
        "jax-scan-chebyshev": Method(_scan_chebyshev, ("jax",)),
        "qutip-differences": Method(_qutip, ("qutip",), TOLERANCES),
    },
)
