"""
A PocketID in a process of its own, with as many people as wanted, whose data a test can change while it runs.

Run as a program it serves until its standard input ends, so that it never outlives the test that holds the other end.
"""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.request import Request, urlopen

if TYPE_CHECKING:
    from identree.demo.pocketid import DemoPocketID

REPOSITORY = __file__.rpartition("/tests/")[0]
KEY = "e2e-pocketid-key-0123456789abcdef"
# In how many groups everybody is.
GROUPS_EACH = 3
_KEY_BODY = "AAAAC3NzaC1lZDI1NTE5AAAAI"


def username(number: int) -> str:
    return f"user{number:06d}"


def groupname(number: int) -> str:
    return f"group{number:04d}"


def populate(pocketid: DemoPocketID, users: int, groups: int, rules: int) -> None:
    """
    The same people each time: ``user000000`` and on, each with a mail address, a shell of every third and an SSH key;
    ``group0000`` and on, of which the first ``rules`` have a sudo rule. Everybody is in some of the groups.
    """
    people = [
        pocketid.add_user(
            username(n),
            email=f"{username(n)}@example.com",
            first_name=f"First{n}",
            last_name=f"Last{n % 997}",
            claims=[
                ("sshPublicKey", f"ssh-ed25519 {_KEY_BODY}{n:043d} {username(n)}"),
                *([("loginShell", "/bin/zsh")] if n % 3 == 0 else []),
            ],
        )
        for n in range(users)
    ]
    members: list[dict[str, None]] = [{} for _ in range(groups)]
    for n, person in enumerate(people if groups else []):
        for step in range(GROUPS_EACH):
            members[(n * (step * 6 + 1) + step) % groups][person.id] = None
    for n in range(groups):
        claims = [("accessHosts", f"web{n % 50},db{n % 20}")]
        if n < rules:
            claims += [
                ("sudoCommands", f"/usr/bin/systemctl restart app{n},/usr/bin/journalctl -u app{n}"),
                ("sudoHosts", "ALL" if n % 4 == 0 else f"web{n % 50},db{n % 20}"),
                ("sudoRunAsUser", "root"),
            ]
        pocketid.add_group(groupname(n), friendly_name=f"Group {n}", claims=claims, members=())
        pocketid.group(groupname(n)).members.update(members[n])
    pocketid.changed()


class PocketIdServer:
    """
    :ivar url: for ``IDENTREE_POCKETID_API_URL``.
    :ivar key: for ``IDENTREE_POCKETID_API_KEY``.
    """

    key = KEY

    def __init__(self, users: int = 0, groups: int = 0, rules: int = 0, *, old: bool = False, port: int = 0) -> None:
        self._arguments = json.dumps({"users": users, "groups": groups, "rules": rules, "old": old, "port": port})
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    @property
    def settings(self) -> dict[str, str]:
        """What a server needs to read people and groups here."""
        return {"IDENTREE_POCKETID_API_URL": self.url, "IDENTREE_POCKETID_API_KEY": self.key}

    def start(self) -> None:
        """Start it and wait until it listens."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.pocketid", self._arguments],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        word, _, port = self._process.stdout.readline().decode().strip().partition(" ")
        if word != "listening":
            self.stop()
            raise AssertionError("PocketID did not start")
        self.url = f"http://127.0.0.1:{port}"

    def stop(self) -> None:
        if self._process is None:
            return
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._process = None

    def __enter__(self) -> PocketIdServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- changes ------------------------------------------------------------------------------------------------------
    def change(self, do: str, **arguments: Any) -> Any:
        """:param do: the name of a method of :class:`Control`."""
        body = json.dumps({"do": do, **arguments}).encode()
        request = Request(f"{self.url}/control", body, {"X-API-KEY": self.key}, method="POST")
        with urlopen(request, timeout=60) as response:
            return json.load(response)

    def add_user(self, username: str, **fields: Any) -> None:
        """:param fields: ``email``, ``first_name``, ``last_name``, ``disabled``, ``id``; ``claims`` as a dict."""
        self.change("add_user", username=username, **fields)

    def change_user(self, username: str, **fields: Any) -> None:
        """:param fields: as of :meth:`add_user`, and ``new_username``."""
        self.change("change_user", username=username, **fields)

    def delete_user(self, username: str) -> None:
        self.change("delete_user", username=username)

    def add_group(self, name: str, **fields: Any) -> None:
        """:param fields: ``friendly_name``, ``id``; ``claims`` as a dict; ``members``, a list of user names."""
        self.change("add_group", name=name, **fields)

    def change_group(self, name: str, **fields: Any) -> None:
        """:param fields: as of :meth:`add_group`, and ``new_name``."""
        self.change("change_group", name=name, **fields)

    def delete_group(self, name: str) -> None:
        self.change("delete_group", name=name)

    def fail(self, path: str, status: int = 500, times: int = -1) -> None:
        """:param path: the beginning of the paths after ``/api/``, such as ``users``; empty: all."""
        self.change("fail", path=path, status=status, times=times)

    def limit_rate(self, burst: int, per_second: float) -> None:
        self.change("limit_rate", burst=burst, per_second=per_second)

    def slow(self, seconds: float) -> None:
        self.change("slow", seconds=seconds)

    def heal(self) -> None:
        """Neither failures nor limits nor slowness."""
        self.change("heal")

    def requests(self) -> list[str]:
        """The last requests to the API, and forget them."""
        found: list[str] = self.change("requests")
        return found


class Control:
    """What can be asked of the process."""

    def __init__(self, pocketid: DemoPocketID) -> None:
        self._pocketid = pocketid

    def add_user(self, username: str, claims: dict[str, str] | None = None, **fields: Any) -> None:
        self._pocketid.add_user(username, claims=list((claims or {}).items()), **fields)

    def change_user(self, username: str, **fields: Any) -> None:
        self._change(self._pocketid.user(username), "username", fields)

    def delete_user(self, username: str) -> None:
        self._pocketid.delete_user(self._pocketid.user(username))

    def add_group(
        self, name: str, members: list[str] | None = None, claims: dict[str, str] | None = None, **fields: Any
    ) -> None:
        people = [self._pocketid.user(username) for username in members or ()]
        self._pocketid.add_group(name, members=people, claims=list((claims or {}).items()), **fields)

    def change_group(self, name: str, members: list[str] | None = None, **fields: Any) -> None:
        team = self._pocketid.group(name)
        if members is not None:
            team.members = {self._pocketid.user(username).id: None for username in members}
        self._change(team, "name", fields)

    def delete_group(self, name: str) -> None:
        self._pocketid.delete_group(self._pocketid.group(name))

    def fail(self, path: str, status: int, times: int) -> None:
        self._pocketid.fail(path, status, times=times)

    def limit_rate(self, burst: int, per_second: float) -> None:
        self._pocketid.limit_rate(burst, per_second)

    def slow(self, seconds: float) -> None:
        self._pocketid.latency_seconds = seconds

    def heal(self) -> None:
        self._pocketid.heal()

    def requests(self) -> list[str]:
        found = list(self._pocketid.requests)
        self._pocketid.requests.clear()
        return found

    def _change(self, what: Any, name: str, fields: dict[str, Any]) -> None:
        for key, value in fields.items():
            if key == "claims":
                what.claims = list(value.items())
            else:
                setattr(what, name if key == f"new_{name}" else key, value)
        self._pocketid.changed()


def serve(arguments: str) -> None:
    from twisted.internet import reactor as global_reactor
    from twisted.internet import stdio
    from twisted.internet.protocol import Protocol
    from twisted.python.failure import Failure
    from twisted.web.resource import Resource
    from twisted.web.server import Site

    from identree.demo.pocketid import DemoPocketID

    reactor: Any = global_reactor
    wanted = json.loads(arguments)
    pocketid = DemoPocketID(api_key=KEY, now=lambda: datetime.now(UTC), clock=reactor)
    pocketid.old = wanted["old"]
    populate(pocketid, wanted["users"], wanted["groups"], wanted["rules"])
    control = Control(pocketid)

    class UntilEnd(Protocol):
        def connectionLost(self, reason: Failure | None = None) -> None:
            reactor.stop()

    class ControlResource(Resource):
        isLeaf = True

        def render_POST(self, request: Any) -> bytes:
            if not pocketid.knows(request.getHeader("x-api-key") or ""):
                request.setResponseCode(401)
                return b""
            asked = json.load(request.content)
            do = asked.pop("do")
            if do.startswith("_"):
                request.setResponseCode(404)
                return b""
            return json.dumps(getattr(control, do)(**asked)).encode()

    root = Resource()
    root.putChild(b"api", pocketid.resource())
    root.putChild(b"control", ControlResource())
    port = reactor.listenTCP(wanted["port"], Site(root, reactor=reactor), interface="127.0.0.1")
    stdio.StandardIO(UntilEnd())
    reactor.callWhenRunning(lambda: print("listening", port.getHost().port, flush=True))
    reactor.run()


if __name__ == "__main__":
    serve(sys.argv[1])
