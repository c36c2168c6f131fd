"""Runs every example, each in its shortest form with --quick, and leaves the pictures for the site's gallery.

python docs/make_gallery.py [--quick]
"""

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "build" / "gallery"


def main(options: list[str]) -> int:
    """1 if an example failed."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    failed = []
    for example in sorted((ROOT / "examples").glob("*.py")):
        print(f"--- {example.name} {' '.join(options)}", flush=True)
        start = time.monotonic()
        # Elsewhere than at its own place: what an example needs is found from there.
        command = [sys.executable, str(example), *options]
        environment = {**os.environ, "MPLBACKEND": "Agg"}
        if subprocess.run(command, cwd=PICTURES, env=environment).returncode:
            failed.append(example.name)
        print(f"--- {time.monotonic() - start:.0f} s", flush=True)
    if failed:
        print("failed:", *failed, file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
