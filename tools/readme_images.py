"""
Put the README's pictures, which the end-to-end tests made, into ``docs/images``.

    readme_images.py

They are taken on purpose, not by every test run: each run makes other codes and times, and would change the tree.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCREENSHOTS = ROOT / "build" / "screenshots"
IMAGES = ROOT / "docs" / "images"

CHOSEN = {
    "terminal.png": "terminal-waiting.png",
    "approve-phone.png": "story-phone-light-en.png",
}


def main() -> int:
    missing = [source for source in CHOSEN.values() if not (SCREENSHOTS / source).exists()]
    if missing:
        print(f"not made yet: {', '.join(missing)}; run: make screenshots", file=sys.stderr)
        return 1
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name, source in CHOSEN.items():
        shutil.copyfile(SCREENSHOTS / source, IMAGES / name)
        print(f"docs/images/{name}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
