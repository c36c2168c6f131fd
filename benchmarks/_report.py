"""Prints the figures as a table and keeps them as JSON."""

import json
from pathlib import Path
from typing import Any

from benchmarks._harness import Problem, Row

RESULTS = Path(__file__).parent / "results"

COLUMNS = (
    # heading, key of the summary, format
    ("forward CPU s", "forward_cpu_s", ".2g"),
    ("gradient CPU s", "gradient_cpu_s", ".2g"),
    ("gradient / forward", "gradient_over_forward", ".1f"),
    ("x ours", "gradient_over_ours", ".1f"),
    ("gradient wall s", "gradient_wall_s", ".2g"),
    ("compile s", "gradient_compile_s", ".1f"),
    ("temporary MiB", "gradient_temporary_mib", ".3g"),
    ("gradient peak MiB", "gradient_peak_mib", ".3g"),
    ("process peak MiB", "process_peak_mib", ".0f"),
    ("state error", "state_error", ".0e"),
    ("loss error", "loss_error", ".0e"),
    ("gradient error", "gradient_error", ".0e"),
    ("f forward", "forward_evaluations", ","),
    ("f gradient", "gradient_evaluations", ","),
    ("vjps", "gradient_vjps", ","),
)


def table(problem: Problem, size: int, rows: list[Row]) -> str:
    """The rows of one size as a Markdown table; ratios are of CPU seconds."""
    headings = ["method", "tolerance", *(heading for heading, _, _ in COLUMNS)]
    lines = [
        f"### {problem.title}; {size:,} {problem.size_name}",
        "",
        "| " + " | ".join(headings) + " |",
        "|" + "---|" * len(headings),
    ]
    missed = False
    for row in rows:
        if row.status != "ok":
            lines.append(f"| {row.method} | {row.status} |" + " |" * len(COLUMNS))
            continue
        accurate = problem.accurate(row.summary)
        missed |= not accurate
        cells = [row.method if accurate else f"{row.method}*", _cell(row.tolerance, ".0e")]
        cells += [_cell(row.summary.get(key), form) for _, key, form in COLUMNS]
        lines.append("| " + " | ".join(cells) + " |")
    if missed:
        what = "gradient" if problem.calibrate_on == "gradient" else "final state"
        lines += ["", f"`*`: {what} not within {problem.target:.0e}: not at equal accuracy."]
    return "\n".join(lines)


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def save(name: str, record: dict[str, Any]) -> Path:
    """Write `record` to `results/<name>-<date>.json`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{record['date'].replace(':', '')}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path
