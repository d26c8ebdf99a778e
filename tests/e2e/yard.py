"""
The hosts page by itself: ``python -m tests.e2e.yard PORT`` serves it on loopback over the real web adapter, with a
store and an escrow back end in memory, and prints a session cookie of an administrator.
"""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import timedelta
from types import TracebackType
from typing import Any

from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ServerEndpoint

from identree.app.rules import Rules
from identree.core.addresses import parse_networks
from tests.e2e.server import DYING_WITH_US, PROGRAMS, REPOSITORY, free_port
from tests.web.house import House, result
from tests.web.yard import Yard

DEBIAN = "Debian GNU/Linux 12 (bookworm) (amd64)"


def fill(yard: Yard) -> None:
    """Hosts in every state, and enough of them for a search."""
    told = {"version": "1.0.3", "os_info": DEBIAN, "address": "192.0.2.21"}
    yard.beat("web-01.example.com", timedelta(minutes=2), **told)
    yard.beat("web-02.example.com", timedelta(minutes=31), **told)
    yard.beat("db-01.example.com", timedelta(days=3), **told)
    for number in range(4, 12):
        yard.beat(f"app-{number:02}.example.com", timedelta(minutes=1), **told)
    yard.keep("web-01.example.com", "correct-horse-battery-staple", ago=timedelta(days=12))
    yard.keep("db-01.example.com", "V8!long,and;hard", ago=timedelta(days=120))
    yard.keep("vault-only.example.com", ago=timedelta(hours=5))
    yard.house.session("alice", "web-01.example.com", timedelta(hours=2))
    result(yard.fleet.rotate(yard.house.caller("carol", "admin"), "db-01.example.com"))


def main(port: int) -> None:
    house = House(
        rules=Rules(external_url=f"http://127.0.0.1:{port}", grace_period=timedelta(hours=8)),
        reactor=reactor,
        trusted_proxies=parse_networks(["127.0.0.1"]),
    )
    yard = Yard(house)
    fill(yard)

    def listening(_: Any) -> None:
        print(json.dumps({"cookie": house.cookie("carol", "admin")}), flush=True)

    endpoint = TCP4ServerEndpoint(reactor, port, interface="127.0.0.1")
    endpoint.listen(yard.site).addCallback(listening)
    reactor.run()


class YardProcess:
    """
    The page in a process of its own.

    :ivar cookie: ``pam_session`` of an administrator.
    """

    def __init__(self) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._command = [*DYING_WITH_US, str(PROGRAMS / "python"), "-m", "tests.e2e.yard", str(port)]

    def __enter__(self) -> YardProcess:
        self._process = subprocess.Popen(self._command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the page is not served"
        self.cookie: str = json.loads(line)["cookie"]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()


if __name__ == "__main__":
    main(int(sys.argv[1]))
