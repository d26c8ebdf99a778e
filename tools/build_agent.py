"""
Write ``identree.pyz``, the one file that runs on managed hosts.

    build_agent.py OUT

The same sources at the same commit give the same bytes: entries are sorted, uncompressed and carry one fixed time.
They stay source, because compiled code fits one version of Python only and hosts have many.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# An absolute interpreter, because pam_exec sets no PATH; isolated, without site, without writing bytecode.
SHEBANG = b"#!/usr/bin/python3 -ISB\n"

# The oldest time that a zip can hold.
TIMESTAMP = (1980, 1, 1, 0, 0, 0)

MAIN = b"from identree.agent.main import main\n\nmain()\n"


def version() -> str:
    """The version in ``identree/__init__.py``, read without importing the program."""
    found = re.search(r'^__version__ = "([^"\s]+)"$', (ROOT / "identree" / "__init__.py").read_text(), re.MULTILINE)
    if found is None:
        raise SystemExit("identree/__init__.py has no __version__ line")
    return found[1]


def commit() -> str:
    """The abbreviated commit, empty outside a checkout."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def build(number: str, revision: str) -> bytes:
    """The whole archive."""
    baked = ('"""What this agent was built from."""\n\n' + f"VERSION = {number!r}\nCOMMIT = {revision!r}\n").encode()
    entries = {"__main__.py": MAIN, "identree/__init__.py": b""}
    for source in (ROOT / "identree" / "agent").glob("*.py"):
        entries[f"identree/agent/{source.name}"] = source.read_bytes()
    entries["identree/agent/build.py"] = baked
    out = io.BytesIO()
    out.write(SHEBANG)
    with zipfile.ZipFile(out, "a", zipfile.ZIP_STORED) as archive:
        for name in sorted(entries):
            entry = zipfile.ZipInfo(name, TIMESTAMP)
            entry.external_attr = 0o644 << 16
            entry.create_system = 3
            archive.writestr(entry, entries[name])
    return out.getvalue()


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: build_agent.py OUT", file=sys.stderr)
        return 1
    target = Path(arguments[0])
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.write_bytes(build(version(), commit()))
    temporary.chmod(0o755)
    temporary.replace(target)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
