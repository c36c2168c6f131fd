"""Runs the methods of a problem side by side, each in a process of its own.

A problem is a module of this package that defines `PROBLEM`. It makes an instance of a given
size, knows the right answer to it, and has one short function per method. For every method the
harness

1. picks, where the method has tolerances, the loosest that brings the final state (or the
   gradient: `Problem.calibrate_on`) within `Problem.target` of the reference, so that speeds are
   compared at equal accuracy;
2. compiles, runs and times it in a fresh process, `repeats` times, taking turns with the other
   methods (A B C A B C ...), so that a change of the machine's mood meets all of them alike.

The parent process imports NumPy and SciPy alone; libraries are imported by the process that
measures them.
"""

import importlib
import importlib.metadata
import json
import os
import pkgutil
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

import benchmarks

OURS = "cdiffeq"  # the method that the others are compared with, where a problem has it
MIN_SECONDS = 0.2  # of CPU time in one measurement
MEBIBYTE = 2**20

# One thread everywhere: what is compared is the work done, not how many cores it is spread over.
# XLA runs independent parts of a program on several threads whatever its flags say, which costs
# some methods up to twice the CPU time, unless the process is confined to one core; `work` does so.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_X64": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


class Reference(NamedTuple):
    """The right answer to an instance of a problem."""

    loss: float
    final_state: np.ndarray
    gradient: np.ndarray


class Ready(NamedTuple):
    """A function of no arguments, compiled, and the temporary memory that XLA gives it."""

    call: Callable[[], tuple[Any, Any]]
    temporary_bytes: int | None = None


class Program(NamedTuple):
    """What a method hands to the harness: two functions that compile and return a `Ready`.

    `forward().call()` is (loss, final state), `gradient().call()` is (loss, gradient).
    """

    forward: Callable[[], Ready]
    gradient: Callable[[], Ready]


Build = Callable[[Any, Any], Program]  # of an instance and a tolerance
Figures = dict[str, Any]  # by name: numbers, None where there are none


@dataclass(frozen=True)
class Method:
    """One way to solve a problem.

    `build(instance, tolerance)` imports the library and returns a `Program`. `requires` names the
    distributions it needs. `tolerances` are tried in the order given; a method whose accuracy
    isn't set by a tolerance has none and is given None.
    """

    build: Build
    requires: tuple[str, ...]
    tolerances: tuple[float, ...] = ()


@dataclass(frozen=True)
class Problem:
    """A problem of variable size, its reference and the methods that solve it.

    `target` is how close to the reference a method must come to count as accurate: the 2-norm of
    the final state's error or, with `calibrate_on="gradient"`, that of the gradient's, relative.
    `fields` names the functions ``(np, y, parameters)`` of the problem's module whose calls are counted.
    """

    title: str
    size_name: str
    sizes: tuple[int, ...]
    quick_sizes: tuple[int, ...]
    target: float
    instance: Callable[[int], Any]
    reference: Callable[[Any], Reference]
    methods: dict[str, Method]
    calibrate_on: Literal["state", "gradient"] = "state"
    fields: tuple[str, ...] = ()

    def accurate(self, figures: Figures) -> bool:
        """Whether the errors among a method's figures are within the target."""
        return figures[f"{self.calibrate_on}_error"] <= self.target


def decades(loosest: int, tightest: int, digits: tuple[int, ...] = (1,)) -> tuple[float, ...]:
    """The powers of ten `10**loosest, ..., 10**tightest`, exponents falling by one, times each of the digits.

    With ``digits=(5, 2, 1)`` that is 5, 2 and 1 times the first power, then 5, 2 and 1 times the next.
    """
    exponents = range(loosest, tightest - 1, -1)
    return tuple(float(f"{digit}e{exponent}") for exponent in exponents for digit in digits)


def problem_names() -> list[str]:
    """The modules of this package that are problems: all but those that begin with `_`."""
    names = [module.name for module in pkgutil.iter_modules(benchmarks.__path__)]
    return sorted(name for name in names if not name.startswith("_"))


def find_problem(name: str) -> Problem:
    """The problem defined by the module `benchmarks.<name>`."""
    return importlib.import_module(f"benchmarks.{name}").PROBLEM


def jax_program(
    final_state: Callable[[Any], Any], loss: Callable[[Any], Any], parameters: np.ndarray
) -> Program:
    """The `Program` of a JAX function `final_state(parameters)` and a `loss(final_state)`."""
    import jax

    x = jax.numpy.asarray(parameters)  # starts the backend, which isn't part of compilation

    def loss_and_state(x):
        state = final_state(x)
        return loss(state), state

    def ready(function):
        compiled = jax.jit(function).lower(x).compile()
        return Ready(
            call=lambda: jax.block_until_ready(compiled(x)),
            temporary_bytes=getattr(compiled.memory_analysis(), "temp_size_in_bytes", None),
        )

    return Program(
        forward=lambda: ready(loss_and_state),
        gradient=lambda: ready(jax.value_and_grad(lambda x: loss(final_state(x)))),
    )


# The process that measures


def work(job_file: str) -> None:
    """Do the job described by a JSON file; write the answer to the file that it names."""
    if hasattr(os, "sched_setaffinity"):  # Linux
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    job = json.loads(Path(job_file).read_text())
    problem = find_problem(job["problem"])
    method = problem.methods[job["method"]]
    instance = problem.instance(job["size"])
    with np.load(_reference_file(job)) as arrays:
        reference = Reference(arrays["loss"].item(), arrays["final_state"], arrays["gradient"])
    answer: Any
    if job["task"] == "calibrate":
        answer = calibrate(problem, method, instance, reference)
    elif job["task"] == "count":
        tally = watch(importlib.import_module(f"benchmarks.{job['problem']}"), problem.fields)
        answer = count(method.build(instance, job["tolerance"]), tally)
    else:
        answer = measure(method.build(instance, job["tolerance"]), reference)
    Path(job["answer"]).write_text(json.dumps(answer))


def _reference_file(job: dict[str, Any]) -> Path:
    return Path(job["folder"]) / "reference.npz"


def calibrate(problem: Problem, method: Method, instance: Any, reference: Reference) -> float:
    """The first tolerance that is within the problem's target; if none is, the last."""
    for tolerance in method.tolerances:
        program = method.build(instance, tolerance)
        if problem.calibrate_on == "gradient":
            error = _gradient_error(program.gradient().call()[1], reference)
        else:
            error = _distance(program.forward().call()[1], reference.final_state)
        if error <= problem.target:
            break
    return tolerance


def measure(program: Program, reference: Reference) -> Figures:
    """Cost and error of one program: seconds per call, memory in MiB, errors in the 2-norm."""
    gradient, gradient_compile = _clock(program.gradient)
    # Its first call, before anything has left free pages behind that it could use unnoticed.
    (loss, slope), gradient_peak, process_peak = _with_peak_memory(gradient.call)
    forward, forward_compile = _clock(program.forward)
    _, state = forward.call()
    forward_cpu, forward_wall = _seconds_per_call(forward.call)
    gradient_cpu, gradient_wall = _seconds_per_call(gradient.call)
    temporary = gradient.temporary_bytes
    return {
        "forward_compile_s": forward_compile,
        "gradient_compile_s": gradient_compile,
        "forward_cpu_s": forward_cpu,
        "forward_wall_s": forward_wall,
        "gradient_cpu_s": gradient_cpu,
        "gradient_wall_s": gradient_wall,
        "gradient_temporary_mib": None if temporary is None else temporary / MEBIBYTE,
        "gradient_peak_mib": gradient_peak,
        "process_peak_mib": process_peak,
        "state_error": _distance(state, reference.final_state),
        "loss_error": abs(float(loss) - reference.loss),
        "gradient_error": _gradient_error(slope, reference),
    }


def count(program: Program, tally: Counter[str]) -> Figures:
    """Evaluations of the field in `forward` and in `gradient`, and the vjps of the latter."""
    _called(program.forward, tally)
    forward = tally["evaluations"]
    _called(program.gradient, tally)
    return {
        "forward_evaluations": forward,
        "gradient_evaluations": tally["evaluations"],
        "gradient_vjps": tally["vjps"],
    }


def _called(function: Callable[[], Ready], tally: Counter[str]) -> None:
    import jax

    ready = function()
    jax.effects_barrier()
    tally.clear()
    ready.call()
    jax.effects_barrier()


def watch(module: Any, fields: Sequence[str]) -> Counter[str]:
    """Replaces functions ``(np, y, parameters)`` of a module by ones that count their calls and vjps.

    JAX is told by an identity with a rule that calls the host; for PyTorch it is a hook.
    """
    import jax

    import cdiffeq as cd

    tally: Counter[str] = Counter()
    note = lambda what: jax.debug.callback(lambda: tally.update([what]))

    @cd.wirtinger.adjoint_rule
    def probe(y):
        note("evaluations")
        return y

    @probe.def_tangent
    def _(args, out, dargs):
        return dargs[0]

    @probe.def_adjoint
    def _(args, out, g):
        note("vjps")
        return (g,)

    def watched(field: Callable[..., Any]) -> Callable[..., Any]:
        def call(np, y, *parameters):
            if np.__name__ != "torch":
                return field(np, probe(y), *parameters)
            slope = field(np, y, *parameters)
            tally["evaluations"] += 1
            if slope.requires_grad:
                slope.register_hook(lambda _: tally.update(["vjps"]))
            return slope

        return call

    for name in fields:
        setattr(module, name, watched(getattr(module, name)))
    return tally


def _distance(x: Any, reference: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(x).reshape(reference.shape) - reference))


def _gradient_error(gradient: Any, reference: Reference) -> float:
    error = _distance(gradient, reference.gradient)
    return error / float(np.linalg.norm(reference.gradient))


def _clock(function: Callable[[], Ready]) -> tuple[Ready, float]:
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def _seconds_per_call(call: Callable[[], Any]) -> tuple[float, float]:
    """CPU (all threads of the process) and wall seconds per call, over enough calls."""
    calls, wall, cpu = 0, time.perf_counter(), time.process_time()
    while calls == 0 or time.process_time() - cpu < MIN_SECONDS:
        call()
        calls += 1
    return (time.process_time() - cpu) / calls, (time.perf_counter() - wall) / calls


def _with_peak_memory(call: Callable[[], Any]) -> tuple[Any, float | None, float | None]:
    """The result of `call`, by how much it raised resident memory, and the process's peak.

    None where the system keeps no such marks: elsewhere than on Linux. (`getrusage` won't do: a
    process starts with the peak of its parent there.)
    """
    try:
        before, earlier_peak = _resident("VmRSS"), _resident("VmHWM")
        Path("/proc/self/clear_refs").write_text("5")  # lowers the peak to what is in use
    except OSError:
        return call(), None, None
    result = call()
    peak = _resident("VmHWM")
    return result, peak - before, max(peak, earlier_peak)


def _resident(field: str) -> float:
    """Resident memory of this process in MiB: `VmRSS`, now; `VmHWM`, at its peak."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) / 1024


# The process that starts the others


class NoFigures(Exception):
    """Why a method has no figures: not installed, over its time, out of memory, or failed."""


@dataclass
class Row:
    """What came of one method: its `status` is "ok" or the reason why it has no figures."""

    method: str
    status: str = "ok"
    tolerance: float | None = None
    summary: Figures = field(default_factory=dict)
    runs: list[Figures] = field(default_factory=list)  # as `measure` returns them
    counts: Figures = field(default_factory=dict)  # as `count` does


def run(
    name: str,
    size: int,
    methods: Sequence[str],
    repeats: int,
    limit: float,
    calibrated: bool = True,
) -> list[Row]:
    """Measure `methods` on the problem `name` at one size; no process may take over `limit` s.

    If not `calibrated`, every method has the loosest of its tolerances.
    """
    problem = find_problem(name)
    rows = [Row(method) for method in methods]
    with tempfile.TemporaryDirectory() as folder:
        job = {"problem": name, "size": size, "folder": folder}
        np.savez(_reference_file(job), **problem.reference(problem.instance(size))._asdict())
        for repeat in range(1, repeats + 1):
            for row in rows:
                if row.status != "ok":
                    continue
                _say(f"{name}, {size} {problem.size_name}: {row.method}, {repeat} of {repeats}")
                job["method"] = row.method
                try:
                    if repeat == 1:
                        _check_installed(problem.methods[row.method])
                        if tolerances := problem.methods[row.method].tolerances:
                            row.tolerance = tolerances[0]
                            if calibrated:
                                row.tolerance = _ask({**job, "task": "calibrate"}, limit)
                    job["tolerance"] = row.tolerance
                    row.runs.append(_ask({**job, "task": "measure"}, limit))
                    if repeat == 1 and problem.fields:
                        row.counts = _ask({**job, "task": "count"}, limit)
                except NoFigures as reason:
                    row.status = str(reason)
    _summarise(rows)
    return rows


def machine() -> dict[str, Any]:
    """What a reader needs to judge the figures: the processor and what ran on it."""
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return {
        "cpu": model[1] if model else platform.processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def versions(problem: Problem) -> dict[str, str]:
    """The installed versions of all that the methods of a problem require."""
    required = {"numpy", "scipy", "jax", "jaxlib"}
    required.update(*(method.requires for method in problem.methods.values()))
    return {name: _version(name) or "not installed" for name in sorted(required)}


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _check_installed(method: Method) -> None:
    missing = [name for name in method.requires if _version(name) is None]
    if missing:
        raise NoFigures("not installed: " + ", ".join(missing))


def _ask(job: dict[str, Any], limit: float) -> Any:
    """Do a job in a fresh process and return its answer."""
    folder = Path(job["folder"])
    job_file, answer_file = folder / "job.json", folder / "answer.json"
    job_file.write_text(json.dumps({**job, "answer": str(answer_file)}))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks", "--worker", str(job_file)],
            cwd=Path(__file__).parents[1],
            env={**os.environ, **ENVIRONMENT},
            capture_output=True,
            text=True,
            timeout=limit,
        )
    except subprocess.TimeoutExpired:
        raise NoFigures(f"over {limit:g} s") from None
    if done.returncode != 0:
        message = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        if exhausted := re.search(r"(?:RESOURCE_EXHAUSTED|MemoryError): (.*)", message):
            raise NoFigures(f"out of memory: {exhausted[1]}")
        _say(done.stderr)
        raise NoFigures(f"failed: {message}")
    return json.loads(answer_file.read_text())


def _summarise(rows: list[Row]) -> None:
    """Fill in the summaries: medians of times, and of memory and errors the largest; ratios."""
    done = [row for row in rows if row.status == "ok"]
    for row in done:
        for key in row.runs[0]:
            values = [run[key] for run in row.runs]
            combine = statistics.median if key.endswith("_s") else max
            row.summary[key] = None if None in values else combine(values)
        row.summary.update(row.counts)
    ours = next((row.summary["gradient_cpu_s"] for row in done if row.method == OURS), None)
    for row in done:
        gradient = row.summary["gradient_cpu_s"]
        row.summary["gradient_over_forward"] = gradient / row.summary["forward_cpu_s"]
        row.summary["gradient_over_ours"] = None if ours is None else gradient / ours


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
