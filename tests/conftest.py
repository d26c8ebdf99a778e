"""
How the suite is spread over the processors: a file stays together, with what its tests share. Those that put a user, a
PAM service and a ``client.conf`` on the machine itself run one after the other.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

ROOT = Path(__file__).parent
# What they import tells them apart: it changes the machine, for as long as the test takes.
_ON_THE_MACHINE = ("tests.e2e.sudohost", "tests.e2e.world")
# They wait for daemons most of the time, and take longest: they begin.
_FIRST = ROOT / "e2e"


@cache
def _together(file: str) -> str:
    """The name of what a file, relative to the checkout, must share a worker with."""
    text = (ROOT.parent / file).read_text()
    return "machine" if any(f"from {name} import" in text for name in _ON_THE_MACHINE) else file


class Scheduling(LoadFileScheduling):  # type: ignore[misc]
    def _split_scope(self, nodeid: str) -> str:
        return _together(nodeid.partition("::")[0])


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.path.is_relative_to(_FIRST))
