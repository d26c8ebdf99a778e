"""Hosts and people without agent and browser: their requests straight over HTTP."""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlencode

from identree.core import tokens
from tests.e2e.server import SESSION_SECRET, SHARED_SECRET

KEYS = tokens.Keys.from_secrets(shared=SHARED_SECRET, session=SESSION_SECRET, hmac="")


@dataclass(frozen=True)
class Answer:
    """:ivar headers: names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    port: int,
    method: str,
    path: str,
    headers: dict[str, str] | None = None,
    body: bytes | str | None = None,
    seconds: float = 60,
) -> Answer:
    """
    One request on a connection of its own.

    :raise OSError, HTTPException: no complete answer.
    """
    connection = HTTPConnection("127.0.0.1", port, timeout=seconds)
    try:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        connection.close()


def create(port: int, username: str, hostname: str = "web-01") -> Answer:
    """``POST /api/challenge`` as a host."""
    body = json.dumps({"username": username, "hostname": hostname})
    return ask(
        port,
        "POST",
        "/api/challenge",
        {"Content-Type": "application/json", "X-Shared-Secret": SHARED_SECRET},
        body,
    )


def poll(port: int, challenge: str, wait: int = 0, hostname: str = "web-01") -> Answer:
    """``GET /api/challenge/ID`` as a host; ``wait`` seconds held at most."""
    path = f"/api/challenge/{challenge}?hostname={hostname}" + (f"&wait={wait}" if wait else "")
    return ask(port, "GET", path, {"X-Shared-Secret": SHARED_SECRET})


class Visitor:
    """Somebody who signed in: the cookie that the server would have given them, and forms."""

    def __init__(self, username: str, role: str = "user") -> None:
        self.username = username
        now = int(time.time())
        self._cookie = tokens.session_cookie(KEYS, username, role, now, secrets.token_hex(16))
        self._csrf = {
            "username": username,
            "csrf_token": tokens.csrf_token(KEYS, username, now),
            "csrf_ts": str(now),
        }

    @property
    def headers(self) -> dict[str, str]:
        return {"Cookie": f"pam_session={self._cookie}"}

    def get(self, port: int, path: str) -> Answer:
        return ask(port, "GET", path, self.headers)

    def post(self, port: int, path: str, **fields: str) -> Answer:
        """A form, the answer as our own scripts ask for it."""
        headers = {
            **self.headers,
            "Content-Type": "application/x-www-form-urlencoded",
            "Accept": "application/json",
        }
        return ask(port, "POST", path, headers, urlencode({**self._csrf, **fields}))

    def approve(self, port: int, challenge: str) -> Answer:
        return self.post(port, "/api/challenges/approve", challenge_id=challenge)
