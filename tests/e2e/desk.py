"""
The pages of administrators by themselves: ``python -m tests.e2e.desk PORT full|bridge`` serves them on loopback over
the real web adapter, with a rules file and a directory in memory, and prints a session cookie of an administrator.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from types import TracebackType
from typing import Any

from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ServerEndpoint

from identree.app.directory import Loss, Mode, Refusal, Served, Trouble
from identree.app.rules import Rules
from identree.core.addresses import parse_networks
from identree.directory.build import build
from identree.directory.ids import Numbers
from identree.directory.layout import Layout
from identree.directory.source import Source, SourceGroup, SourceUser
from identree.directory.sudo import SudoRule
from tests.app.memoryrules import at_once
from tests.e2e.server import DYING_WITH_US, PROGRAMS, REPOSITORY, free_port
from tests.web.desk import Desk
from tests.web.house import House, result

RULES = (
    SudoRule(group="ops", commands="/usr/bin/apt,/usr/bin/systemctl restart nginx", hosts="web1,web2"),
    SudoRule(
        group="dba",
        commands="/usr/bin/psql,/usr/bin/pg_dump,/usr/bin/pg_restore,/usr/sbin/pg_createcluster,/usr/bin/vacuumdb,"
        "/usr/bin/reindexdb,/usr/bin/createdb,/usr/bin/dropdb",
        hosts="10.0.0.0/24,+databases",
        run_as_user="postgres",
        options="LOG_OUTPUT",
        description="People who look after the databases",
    ),
    SudoRule(group="web", commands="/usr/bin/nginx -s reload, nginx", run_as_user="www", run_as_group="www"),
    SudoRule(group="backup", commands="/usr/bin/rsync"),
)


def directory(desk: Desk, house: House) -> None:
    """People, groups, and what went wrong with some of them."""
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEEE alice@laptop"
    users = (
        SourceUser(id="u1", username="alice", first_name="Alice", last_name="Smith", claims=(("sshPublicKey", key),)),
        SourceUser(id="u2", username="bob", disabled=True),
        SourceUser(id="u3", username="www-data"),
        SourceUser(id="u4", username="Alice"),
    )
    groups = (
        SourceGroup(
            id="g1",
            name="ops",
            claims=(("sudoCommands", "/usr/bin/apt, apt"), ("sudoHosts", "web1,web2"), ("accessHosts", "web1")),
            member_ids=("u1", "u2", "u3"),
        ),
        SourceGroup(id="g2", name="dba", claims=(("sudoCommands", "ALL, !/bin/su"),), member_ids=("u1",)),
        SourceGroup(id="g3", name="docker", claims=(("sudoCommands", "ALL"),), member_ids=("u1",)),
    )
    source, layout = Source(users=users, groups=groups), Layout(base_dn="dc=example,dc=com")
    ids = [one.id for one in (*groups, *users)]
    numbers = Numbers(
        uids={user.id: 200000 + count for count, user in enumerate(users)},
        gids={id: 200000 + count for count, id in enumerate(ids)},
    )
    built = result(at_once(build(source, numbers, layout)))
    desk.served = Served(
        snapshot=None,  # type: ignore[arg-type]  # the pages do not look at it
        built=built,
        layout=layout,
        version=1,
        source=source,
        numbers=numbers,
    )
    desk.reports = built.rules
    now = house.now()
    desk.state = replace(
        desk.state,
        mode=Mode.FULL,
        people=1204,
        groups=31,
        roles=len(built.rules),
        usn=int(now.timestamp()) - 240,
        confirmed_at=now - timedelta(minutes=4),
        age_seconds=240.0,
        withheld=built.withheld,
        trouble=Trouble(at=now - timedelta(minutes=1), reason="PocketID did not answer within 30 s"),
        refusal=Refusal(at=now - timedelta(minutes=2), losses=(Loss(what="people", before=1204, lost=1180),)),
    )


def main(port: int, mode: str) -> None:
    desk = Desk(*RULES, full=mode == "full")
    house = House(
        rules=Rules(external_url=f"http://127.0.0.1:{port}"),
        reactor=reactor,
        trusted_proxies=parse_networks(["127.0.0.1"]),
        directory=desk,
    )
    if mode == "full":
        directory(desk, house)

    def listening(_: Any) -> None:
        print(house.cookie("carol", "admin"), flush=True)

    endpoint = TCP4ServerEndpoint(reactor, port, interface="127.0.0.1")
    endpoint.listen(house.front.site).addCallback(listening)
    reactor.run()


class DeskProcess:
    """
    The pages in a process of their own.

    :ivar cookie: ``pam_session`` of an administrator.
    """

    def __init__(self, mode: str) -> None:
        self._mode = mode
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._command = [*DYING_WITH_US, str(PROGRAMS / "python"), "-m", "tests.e2e.desk", str(port), mode]

    def __enter__(self) -> DeskProcess:
        self._process = subprocess.Popen(self._command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.cookie = self._process.stdout.readline().strip()
        assert self.cookie, "the pages are not served"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
