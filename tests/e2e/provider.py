"""
The demo's identity provider in a process of its own, with people of the test's choice.

Run as a program it serves until its standard input ends, so that it never outlives the test that holds the other end.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

REPOSITORY = __file__.rpartition("/tests/")[0]
CLIENT_ID = "identree-e2e"
CLIENT_SECRET = "e2e-client-secret-0123456789abcdef"


class Provider:
    """
    :param redirect_uris: the servers' ``/callback`` addresses.
    :param users: names and their groups.
    :param since: the age in seconds of the session that everybody has here; a client that does not insist on a new
        sign-in (``prompt=login``) is told of that one.
    """

    def __init__(
        self, port: int, redirect_uris: Sequence[str], users: Mapping[str, Sequence[str]], since: int = 0
    ) -> None:
        self.issuer = f"http://127.0.0.1:{port}"
        self._arguments = json.dumps(
            {"port": port, "redirect_uris": list(redirect_uris), "users": dict(users), "since": since}
        )
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def settings(self) -> dict[str, str]:
        """What a server needs to sign people in here."""
        return {
            "IDENTREE_OIDC_ISSUER_URL": self.issuer,
            "IDENTREE_OIDC_CLIENT_ID": CLIENT_ID,
            "IDENTREE_OIDC_CLIENT_SECRET": CLIENT_SECRET,
        }

    def start(self) -> None:
        """Start it and wait until it listens."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.provider", self._arguments],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"listening\n":
            self.stop()
            raise AssertionError("the identity provider did not start")

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

    def __enter__(self) -> Provider:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def serve(arguments: str) -> None:
    from datetime import UTC, datetime

    from twisted.internet import reactor, stdio
    from twisted.internet.protocol import Protocol
    from twisted.python.failure import Failure

    from identree.demo.provider import DemoProvider

    wanted = json.loads(arguments)

    class UntilEnd(Protocol):
        def connectionLost(self, reason: Failure | None = None) -> None:
            reactor.stop()  # type: ignore[attr-defined]

    class Remembering(DemoProvider):
        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named)
            self._signed_in: dict[str, float] = {}

        def grant(self, username: str, request: Mapping[str, str]) -> str:
            age = 0 if request.get("prompt") == "login" else wanted["since"]
            self._signed_in[username] = self.now().timestamp() - age
            return super().grant(username, request)

        def claims(self, username: str) -> dict[str, Any]:
            return {**super().claims(username), "auth_time": int(self._signed_in[username])}

    provider = Remembering(
        reactor,
        issuer=f"http://127.0.0.1:{wanted['port']}",
        client_id=CLIENT_ID,
        client_secret=CLIENT_SECRET,
        redirect_uris=wanted["redirect_uris"],
        users=wanted["users"],
        now=lambda: datetime.now(UTC),
    )
    provider.listen(wanted["port"])
    stdio.StandardIO(UntilEnd())
    reactor.callWhenRunning(lambda: print("listening", flush=True))  # type: ignore[attr-defined]
    reactor.run()  # type: ignore[attr-defined]


if __name__ == "__main__":
    serve(sys.argv[1])
