"""
Policies and notifications by themselves: ``python -m tests.e2e.floor PORT`` serves the real web adapter on loopback,
with a store in memory, two requests that wait, and messages that really go out, also to this machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any

from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ServerEndpoint

from identree.app.rules import Rules
from identree.clients.guarded import Guard, build_guarded_client
from identree.clients.notify.messenger import Notifiers
from identree.clients.notify.webpush import VapidKey
from identree.core.addresses import parse_networks
from identree.core.challenge import HostContext
from identree.core.policy import Policies
from tests.e2e.server import DYING_WITH_US, PROGRAMS, REPOSITORY, free_port
from tests.web.house import House, result

POLICIES = [
    {
        "name": "production",
        "match_hosts": ["db*"],
        "min_approvals": 2,
        "break_glass_bypass": True,
        "allowed_days": "Sun-Sat",
        "description": "Databases need two people",
        "notify_channels": ["gone"],
    },
    {"name": "late", "match_hosts": ["db01*"], "require_admin": True},
    {"name": "default", "auto_approve_grace": True, "max_grace": "1h"},
]


class Asking:
    """One approval request each."""

    QUORUM, OVERRIDE = "db-01.example.com", "db-02.example.com"


def main(port: int) -> None:
    any_reactor: Any = reactor
    house = House(
        rules=Rules(
            external_url=f"http://127.0.0.1:{port}",
            grace_period=timedelta(hours=8),
            challenge_ttl=timedelta(minutes=10),
        ),
        reactor=any_reactor,
        policies=Policies.from_fields(POLICIES),
        trusted_proxies=parse_networks(["127.0.0.1"]),
    )
    carol = house.caller("carol", "admin")
    result(house.book.import_document(carol, json.dumps(POLICIES).encode()))

    async def nobody(host: str) -> list[str]:
        return []

    vapid = VapidKey(house.keys.vapid)
    house.notices.vapid_public = vapid.public
    house.notices._messenger = Notifiers(
        http=build_guarded_client(any_reactor, Guard(nobody, parse_networks(["127.0.0.0/8"]))),
        mailer=None,  # type: ignore[arg-type]
        clock=any_reactor,
        now=lambda: datetime.now(UTC),
        timeout_seconds=lambda: 10.0,
        user_agent="identree/test",
        vapid=vapid,
        contact="mailto:ops@example.com",
        random=os.urandom,
        environment=os.environ,
    )
    context = HostContext(command="psql -c 'drop table t'", cwd="/root", tty="pts/0")
    codes = {host: house.ask("alice", host, context=context).user_code for host in (Asking.QUORUM, Asking.OVERRIDE)}
    cookies = {"alice": house.cookie("alice"), "carol": house.cookie("carol", "admin")}

    def listening(_: Any) -> None:
        print(json.dumps({"cookies": cookies, "codes": codes}), flush=True)

    endpoint = TCP4ServerEndpoint(any_reactor, port, interface="127.0.0.1")
    endpoint.listen(house.front.site).addCallback(listening)
    any_reactor.run()


class Floor:
    """
    The pages in a process of their own.

    :ivar cookies: ``pam_session`` by person. :ivar codes: of the waiting requests, by host.
    """

    def __init__(self) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._command = [*DYING_WITH_US, str(PROGRAMS / "python"), "-m", "tests.e2e.floor", str(port)]

    def __enter__(self) -> Floor:
        self._process = subprocess.Popen(self._command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the pages are not served"
        told = json.loads(line)
        self.cookies: dict[str, str] = told["cookies"]
        self.codes: dict[str, str] = told["codes"]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()


if __name__ == "__main__":
    main(int(sys.argv[1]))
