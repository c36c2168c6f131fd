"""Pages that are made anew with each build: the benchmarks' tables, and the gallery.

The tables come from the newest file of each problem under `benchmarks/results/`. The pictures are those that
`python docs/make_gallery.py` has left under `build/gallery/`, which runs every example.
"""

import ast
import json
import sys
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "build" / "gallery"
REPOSITORY_PAGES = ("benchmarks/README.md", "README.md")


def on_files(files, config):
    add = lambda path, content: files.append(File.generated(config, path, content=content))
    add("benchmarks.md", benchmarks())
    add("gallery.md", gallery())
    for picture in sorted(PICTURES.glob("*.png")):
        files.append(File.generated(config, f"gallery/{picture.name}", abs_src_path=str(picture)))
    return files


def benchmarks() -> str:
    """The newest results of each problem, as tables."""
    sys.path.insert(0, str(ROOT))
    from benchmarks import _harness, _report

    pages = [
        "# Benchmarks",
        "Measured by `python -m benchmarks`: all methods of a table in one run, each in processes of its own "
        "on one core of a CPU. `benchmarks/README.md` in the repository says how it is done, and what the "
        'methods are. "x ours" is the CPU time of the gradient over that of the first row.',
    ]
    newest = {path.name.split("-")[0]: path for path in sorted(_report.RESULTS.glob("*.json"))}
    for name, path in newest.items():
        record = json.loads(path.read_text())
        problem = _harness.find_problem(name)
        versions = ", ".join(
            f"{library} {version}" for library, version in record["versions"].items()
        )
        pages.append(f"## {record['problem']}")
        pages.append(f"{record['date'][:10]}, `{record['command']}`; {versions}.")
        for size, rows in record[problem.size_name].items():
            rows = [_harness.Row(**row) for row in rows]
            table = _report.table(problem, int(size), rows)
            pages.append(f"### {problem.size_name} {int(size):,}\n\n" + table.split("\n", 2)[2])
    return "\n\n".join(pages) + "\n"


def gallery() -> str:
    """Each example with the first lines of its docstring, and its pictures."""
    pages = [
        "# Gallery",
        "Each picture is drawn by a script in `examples/`, which says more about it.",
    ]
    for example in sorted((ROOT / "examples").glob("*.py")):
        about = ast.get_docstring(ast.parse(example.read_text())) or ""
        pages += [f"## {example.stem}", about.split("\n\n")[0]]
        pictures = sorted(PICTURES.glob(f"{example.stem}*.png"))
        pages += [f"![{picture.stem}](gallery/{picture.name})" for picture in pictures]
        if not pictures:
            pages.append(f"*Run `python examples/{example.name}` to draw it.*")
    return "\n\n".join(pages) + "\n"
