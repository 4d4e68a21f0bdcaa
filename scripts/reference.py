"""docs/reference.md: the help of every command.

python scripts/reference.py            write it
python scripts/reference.py --check    exit 1 if it is out of date
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from outsize.cli.main import COMMANDS

REFERENCE = Path(__file__).parents[1] / "docs" / "reference.md"
START = """# Reference

The help of every command, as `outsize COMMAND --help` prints it. `scripts/reference.py` writes this page, and the
tests check that it is current. Sizes are read as `6GiB`, `500MB` or `1.5TiB`. Answers go to stdout,
everything else to stderr.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | failed |
| 2 | wrong usage |
| 3 | does not fit |
| 4 | damaged or untrustworthy model files |
| 130 | interrupted |
"""


def help_of(*command: str) -> str:
    """What ``outsize COMMAND --help`` prints, 100 columns wide."""
    words = [sys.executable, "-m", "outsize", *command, "--help"]
    env = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "PYTHON_COLORS": "0"}
    return subprocess.run(words, env=env, capture_output=True, text=True, check=True).stdout.rstrip()


def reference() -> str:
    """The page."""
    sections = [("outsize", help_of()), *((f"outsize {name}", help_of(name)) for name in COMMANDS)]
    return START + "".join(f"\n## {title}\n\n```\n{text}\n```\n" for title, text in sections)


def main() -> int:
    text = reference()
    if "--check" in sys.argv[1:]:
        current = REFERENCE.exists() and REFERENCE.read_text() == text
        if not current:
            print("docs/reference.md is out of date: python scripts/reference.py", file=sys.stderr)
        return 0 if current else 1
    REFERENCE.write_text(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
