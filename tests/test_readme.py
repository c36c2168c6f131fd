"""The README does what it says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_the_example_prints_what_the_readme_shows():
    # A process of its own: a reader's interpreter has none of the settings of conftest.py.
    (program,), (shown,) = _blocks("python"), _blocks("text")
    printed = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert printed.stdout == shown


def _links() -> list[str]:
    return re.findall(r"\]\((?!https?:)([^)#]+)", README)


@pytest.mark.parametrize("link", _links())
def test_links_lead_somewhere(link: str):
    assert (ROOT / link).exists()


@pytest.mark.parametrize("command", _blocks("sh"))
def test_commands_name_files_that_exist(command: str):
    assert len(command.splitlines()) == 1
    for path in re.findall(r"\S+\.py\b", command):
        assert (ROOT / path).exists()
