"""The examples of large quantum systems run, and reach what they promise."""

import re
from pathlib import Path

import pytest

from tests.running import run


@pytest.mark.slow
@pytest.mark.parametrize(
    "script, better, worse",
    [
        ("many_body_control.py", r"([-.e0-9]+) after", r"infidelity ([-.e0-9]+) before"),
        ("wavepacket.py", r"flat wall: ([.0-9]+);", r"shaped one: ([.0-9]+)"),
    ],
)
def test_examples_run(script: str, better: str, worse: str, tmp_path: Path):
    done = run(script, "--quick", "--output", tmp_path / "figure.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    low, high = (float(re.search(p, done.stdout)[1]) for p in (better, worse))
    assert low < 0.8 * high
    assert (tmp_path / "figure.png").stat().st_size > 10_000
