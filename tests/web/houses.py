"""People who send forms and calls to a :class:`tests.web.house.House`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from twisted.trial.unittest import SynchronousTestCase

from identree.core import tokens
from tests.web.front import Connection, Response
from tests.web.house import EXTERNAL_URL, House


class HouseCase(SynchronousTestCase):
    notice_path = ""

    def setUp(self) -> None:
        self.house = House(notice_path=self.notice_path)

    def ask(self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Response:
        connection = Connection(self.house.front.site)
        lines = [f"{method} {path} HTTP/1.1", "Host: identree.example", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        connection.send("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        response = connection.response()
        connection.hang_up()
        assert response is not None, "no answer"
        return response

    def csrf(self, user: str) -> dict[str, str]:
        ts = int(self.house.now().timestamp())
        return {"csrf_token": tokens.csrf_token(self.house.keys, user, ts), "csrf_ts": str(ts)}

    def form(self, path: str, user: str = "carol", role: str = "admin", **fields: str) -> Response:
        sent = {"username": user, **self.csrf(user), **{name.rstrip("_"): value for name, value in fields.items()}}
        headers = {
            "Content-Type": "application/x-www-form-urlencoded",
            "Cookie": f"pam_session={self.house.cookie(user, role)}",
        }
        return self.ask("POST", path, headers, urlencode(sent).encode())

    def call(
        self,
        path: str,
        value: object = None,
        user: str = "carol",
        role: str = "admin",
        method: str = "POST",
        **more: str,
    ) -> Response:
        csrf = self.csrf(user)
        headers = {
            "Content-Type": "application/json",
            "X-CSRF-Token": csrf["csrf_token"],
            "X-CSRF-Ts": csrf["csrf_ts"],
            "Cookie": f"pam_session={self.house.cookie(user, role)}",
            **more,
        }
        body = b"" if value is None else json.dumps(value).encode()
        return self.ask(method, path, {name: text for name, text in headers.items() if text}, body)

    def get(self, path: str, user: str = "carol", role: str = "admin", **cookies: str) -> Response:
        kept = {"pam_session": self.house.cookie(user, role), **cookies} if user else cookies
        return self.ask("GET", path, {"Cookie": "; ".join(f"{name}={value}" for name, value in kept.items())})

    def flash(self, response: Response, location: str) -> str:
        """The flash of a redirect to this page."""
        self.assertEqual((response.code, response.header("Location")), (303, EXTERNAL_URL + location), response.text)
        return (response.cookie("pam_flash") or "").partition(";")[0].removeprefix("pam_flash=").strip('"')

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(record.plain) for record in self.house.store.log.records]
