"""A wave packet in a well, shaken by a pulse: the gradient with respect to the pulse's Fourier coefficients.

    i dpsi/dt = (p^2 / 2 + V(x) + eps(t) x) psi,    eps(t) = sum_k c_k sin(k pi t / T),    V = 8 (1 -
    exp(-x^2 / 16))

on a periodic grid of length 80, over a time of 10, with 20 coefficients; loss = 1 - |<target|psi(T)>|^2,
where the target is what nearby coefficients reach.
"""

from typing import NamedTuple

import numpy as np

from benchmarks._harness import Build, Method, Problem, Program, Reference, decades, jax_program

TIME = 10.0
LENGTH = 80.0
K = np.arange(1, 21)

# The splitting of Blanes and Moan 2002, of order 4: kicks a and drifts b.
A1, A2, A3 = 0.0792036964311957, 0.353172906049774, -0.0420650803577195
B1, B2 = 0.209515106613362, -0.143851773179818
KICKS = [A1, A2, A3, 1 - 2 * (A1 + A2 + A3), A3, A2, A1]
DRIFTS = [B1, B2, 0.5 - B1 - B2, 0.5 - B1 - B2, B2, B1]


class Instance(NamedTuple):
    x: np.ndarray
    k: np.ndarray
    potential: np.ndarray
    coefficients: np.ndarray
    psi0: np.ndarray
    target: np.ndarray


def instance(points: int) -> Instance:
    rng = np.random.default_rng(3)
    x = (np.arange(points) - points // 2) * (LENGTH / points)
    wanted = 0.6 * rng.standard_normal(len(K)) / np.sqrt(K)
    coefficients = wanted + 0.05 * rng.standard_normal(len(K))
    psi0 = np.exp(-((x + 1) ** 2) / 2).astype(complex)
    k = 2 * np.pi * np.fft.fftfreq(points, LENGTH / points)
    potential = 8 * (1 - np.exp(-(x**2) / 16))
    problem = Instance(x, k, potential, coefficients, psi0 / np.linalg.norm(psi0), psi0)
    return problem._replace(target=solve(problem, wanted, 2000, slopes=False)[0])


def solve(
    problem: Instance, c: np.ndarray, steps: int, slopes: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """The final state and, if asked for, its derivatives in c as rows, by the splitting."""
    h = TIME / steps
    drifts = [np.exp(-0.5j * problem.k**2 * b * h) for b in DRIFTS]
    psi, moved = problem.psi0, np.zeros((len(K) * slopes, len(problem.x)), complex)
    for step in range(steps):
        t = step * h
        for i, a in enumerate(KICKS):
            sines = np.sin(K * np.pi * t / TIME)
            kick = np.exp(-1j * a * h * (problem.potential + sines @ c * problem.x))
            moved = kick * (moved - 1j * a * h * np.outer(sines[: len(moved)], problem.x * psi))
            psi = kick * psi
            if i < len(drifts):
                psi = np.fft.ifft(drifts[i] * np.fft.fft(psi))
                moved = np.fft.ifft(drifts[i] * np.fft.fft(moved))
                t += DRIFTS[i] * h
    return psi, moved


def reference(problem: Instance) -> Reference:
    """The splitting in 2,000 steps, with a 256th of the error of 500, and its derivatives in forward mode."""
    psi, slopes = solve(problem, problem.coefficients, 2000)
    overlap = np.vdot(problem.target, psi)
    gradient = -2 * np.real(np.conj(overlap) * (slopes @ problem.target.conj()))
    return Reference(1 - abs(overlap) ** 2, psi, gradient)


# The methods import their library themselves: each is measured where no other is loaded.


def _jax(final_state, problem: Instance) -> Program:
    """`final_state(coefficients)`, with the loss that all JAX methods share."""

    def loss(state):
        overlap = problem.target.conj() @ state
        return 1 - overlap.real**2 - overlap.imag**2

    return jax_program(final_state, loss, problem.coefficients)


def _cdiffeq(order: int) -> Build:
    def build(problem: Instance, steps: float) -> Program:
        import jax.numpy as jnp

        import cdiffeq as cd

        grid = cd.linalg.Grid((LENGTH,), (len(problem.x),))
        particle = cd.constant(cd.linalg.KineticPotential(grid, problem.potential))
        pulse = lambda t, c: jnp.sum(c * jnp.sin(K * jnp.pi * t / TIME))
        dipole = cd.linalg.diagonals(problem.x)

        def final_state(c):
            H = particle + cd.modulated(pulse, dipole, c)
            method = cd.SplitOperator(order, steps=int(steps))
            return cd.sesolve(H, problem.psi0, [0.0, TIME], method=method).final_state

        return _jax(final_state, problem)

    return build


def _plain(checkpoint: bool) -> Build:
    """No library: `jax.grad` through the same splitting, as one would write it."""

    def build(problem: Instance, steps: float) -> Program:
        import jax
        import jax.numpy as jnp

        count = int(steps)
        h = TIME / count
        drifts = [jnp.asarray(np.exp(-0.5j * problem.k**2 * b * h)) for b in DRIFTS]

        def step(psi, t, c):
            for i, a in enumerate(KICKS):
                pulse = jnp.sum(c * jnp.sin(K * jnp.pi * t / TIME))
                psi = jnp.exp(-1j * a * h * (problem.potential + pulse * problem.x)) * psi
                if i < len(drifts):
                    psi = jnp.fft.ifft(drifts[i] * jnp.fft.fft(psi))
                    t = t + DRIFTS[i] * h
            return psi

        stepper = jax.checkpoint(step) if checkpoint else step

        def final_state(c):
            scanned = lambda psi, t: (stepper(psi, t, c), None)
            return jax.lax.scan(scanned, jnp.asarray(problem.psi0), h * jnp.arange(count))[0]

        return _jax(final_state, problem)

    return build


def _diffrax(solver: str, real: bool) -> Build:
    def build(problem: Instance, tolerance: float) -> Program:
        import diffrax
        import jax.numpy as jnp

        kinetic = jnp.asarray(problem.k**2 / 2)

        def field(t, psi, c):
            pulse = jnp.sum(c * jnp.sin(K * jnp.pi * t / TIME))
            wave = jnp.fft.ifft(kinetic * jnp.fft.fft(psi))
            return -1j * (wave + (problem.potential + pulse * problem.x) * psi)

        def field_of_parts(t, y, c):
            slope = field(t, y[0] + 1j * y[1], c)
            return jnp.stack([slope.real, slope.imag])

        def final_state(c):
            psi0 = jnp.asarray(problem.psi0)
            solution = diffrax.diffeqsolve(
                diffrax.ODETerm(field_of_parts if real else field),
                getattr(diffrax, solver)(),
                t0=0.0,
                t1=TIME,
                dt0=1e-3,
                y0=jnp.stack([psi0.real, psi0.imag]) if real else psi0,
                args=c,
                stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
                # With as few as by default the gradient is off by 6e-3 on this problem.
                adjoint=diffrax.RecursiveCheckpointAdjoint(checkpoints=4096),
                max_steps=200_000,
            )
            y = solution.ys[-1]
            return y[0] + 1j * y[1] if real else y

        return _jax(final_state, problem)

    return build


TOLERANCES = decades(-4, -12)
STEPS = (250.0, 300.0, 350.0, 400.0, 500.0, 700.0, 1000.0)  # instead of a tolerance

PROBLEM = Problem(
    title="Wave packet on a grid, shaken by a pulse of 20 coefficients: gradient of a state transfer",
    size_name="points",
    sizes=(1024,),
    quick_sizes=(64,),
    target=1e-8,
    calibrate_on="gradient",
    instance=instance,
    reference=reference,
    methods={
        "cdiffeq": Method(_cdiffeq(4), ("cdiffeq",), STEPS),
        "diffrax-dopri8": Method(_diffrax("Dopri8", False), ("diffrax",), TOLERANCES),
        "diffrax-dopri8-real": Method(_diffrax("Dopri8", True), ("diffrax",), TOLERANCES),
        "jax-splitting": Method(_plain(False), ("jax",), STEPS),
        "jax-splitting-checkpoint": Method(_plain(True), ("jax",), STEPS),
    },
)
