"""The command line: `python -m benchmarks [PROBLEM] [options]`."""

import argparse
import dataclasses
import datetime
import shlex
import sys
from collections.abc import Callable
from typing import Any

from benchmarks import _harness, _report


def main(arguments: list[str]) -> int:
    """Run what the arguments ask for; 1 if a method that is installed failed."""
    options, problems = parse(arguments)
    if options.worker:
        _harness.work(options.worker)
        return 0
    failed = False
    for name in problems:
        problem = _harness.find_problem(name)
        record = {
            "problem": problem.title,
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%MZ"),
            "command": shlex.join(["python", "-m", "benchmarks", *arguments]),
            "machine": _harness.machine(),
            "versions": _harness.versions(problem),
            "target": problem.target,
            "calibrate_on": problem.calibrate_on,
        }
        results = {}
        sizes = problem.quick_sizes if options.quick else problem.sizes
        for size in getattr(options, problem.size_name) or sizes:
            rows = _harness.run(
                name,
                size,
                options.methods or list(problem.methods),
                options.repeats,
                options.limit,
                not options.quick,
            )
            print(_report.table(problem, size, rows), end="\n\n", flush=True)
            failed |= any(row.status.startswith("failed") for row in rows)
            results[size] = [dataclasses.asdict(row) for row in rows]
            if options.save:
                _report.save(name, {**record, problem.size_name: results})
    return int(failed)


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options and the names of the problems to run."""
    names = _harness.problem_names()
    problems = {name: _harness.find_problem(name) for name in names}
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description="Compare cdiffeq with other libraries."
    )
    parser.add_argument("problem", nargs="?", choices=names, help="all, if none is named")
    sizes = {problem.size_name for problem in problems.values()}
    for size_name in sorted(sizes):
        parser.add_argument(f"--{size_name}", type=_positive(int), nargs="+", metavar="N")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="some methods only")
    parser.add_argument("--repeats", type=_positive(int), help="runs of each method (3)")
    parser.add_argument(
        "--limit",
        type=_positive(float),
        default=300.0,
        metavar="SECONDS",
        help="time of one process, after which a method is reported as 'over N s' (%(default)g)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny, loosest tolerance, one run each, nothing saved"
    )
    parser.add_argument("--no-save", action="store_false", dest="save")
    parser.add_argument("--worker", metavar="JOB", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)

    chosen = [options.problem] if options.problem else names
    for method in options.methods or []:
        for name in chosen:
            if method not in problems[name].methods:
                known = ", ".join(problems[name].methods)
                parser.error(f"{name} has no method {method!r}; it has {known}")
    for size_name in sizes - {problems[name].size_name for name in chosen}:
        if getattr(options, size_name):
            parser.error(f"{options.problem} has no --{size_name}")
    if options.quick:
        options.save = False
    if options.repeats is None:
        options.repeats = 1 if options.quick else 3
    return options, chosen


def _positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        value = kind(text)
        if value <= 0:
            raise argparse.ArgumentTypeError(f"{text} is not positive")
        return value

    return convert


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
