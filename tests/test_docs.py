"""The Python blocks of every page of the documentation run, and print what the page shows."""

import doctest
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def _with_code() -> list[Path]:
    return [page for page in sorted(DOCS.rglob("*.md")) if BLOCK.search(page.read_text())]


@pytest.mark.slow
@pytest.mark.parametrize("page", _with_code(), ids=lambda page: page.name)
def test_blocks_run(page: Path):
    # One session for a page: a block may use what an earlier one has defined.
    text = page.read_text()
    sessions = [match[1] for match in BLOCK.finditer(text)]
    parser = doctest.DocTestParser()
    for session in sessions:
        assert parser.get_examples(session), f"nothing is run and shown in:\n{session}"
    test = parser.get_doctest("\n\n".join(sessions), {}, page.name, str(page), None)
    report: list[str] = []
    failed, _ = doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    assert not failed, "".join(report)
