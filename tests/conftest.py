"""
How the suite is spread over the processors: a file stays together, with what its tests share. Those that put a user, a
PAM service and a ``client.conf`` on the machine itself run one after the other.
"""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parent
# What they import tells them apart: it changes the machine, for as long as the test takes.
_ON_THE_MACHINE = ("tests.e2e.sudohost", "tests.e2e.world")
# They wait for daemons most of the time, and take longest: they begin.
_FIRST = ROOT / "e2e"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    groups: dict[Path, str] = {}
    for item in items:
        if item.path not in groups:
            text = item.path.read_text()
            shared = any(f"from {name} import" in text for name in _ON_THE_MACHINE)
            groups[item.path] = "machine" if shared else str(item.path.relative_to(ROOT))
        item.add_marker(pytest.mark.xdist_group(groups[item.path]))
    items.sort(key=lambda item: not item.path.is_relative_to(_FIRST))
