"""What as many policies as there may be cost a request."""

from __future__ import annotations

import json
from contextlib import ExitStack

from benchmarks import hosts
from benchmarks.report import Report
from benchmarks.server import served, temporary_directory
from identree.core.policy import MAX_POLICIES

ADDED_MS = 3.0


def many(report: Report) -> None:
    """None but the last fits, and each is looked at with patterns that nearly do."""
    policies: list[dict[str, object]] = [
        {
            "name": f"team-{number}",
            "match_hosts": [f"web-*-{number}.prod", f"*web*{number}x"],
            "match_commands": ["/usr/bin/systemctl * nginx-?*", "*psql*"],
            "unknown_command": "match",
            "min_approvals": 2,
        }
        for number in range(MAX_POLICIES - 1)
    ]
    policies.append({"name": "default"})
    with ExitStack() as stack:
        path = stack.enter_context(temporary_directory()) / "policies.json"
        path.write_text(json.dumps({"policies": policies}))
        plain = stack.enter_context(served())
        governed = stack.enter_context(served({"IDENTREE_APPROVAL_POLICIES_FILE": str(path)}))
        if f"policies={MAX_POLICIES}" not in governed.log:
            raise RuntimeError(f"the server does not say that it has the policies:\n{governed.log}")
        hosts.added(report, f"{MAX_POLICIES:,} policies", "policies", ADDED_MS, plain, governed)
