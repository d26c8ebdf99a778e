"""
What hosts tell about themselves: a new break-glass password, its use, and that they are alive (spec/http-api sections
7.4, 7.6 and 7.7). And the list of the hosts that are.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, TypeVar

from twisted.web import http
from twisted.web.iweb import IRequest

from identree.app import breakglass
from identree.app.breakglass import BreakGlass, Signed
from identree.app.challenges import instant_text
from identree.app.fleet import Fleet, TooManyHosts, UnknownHost, seen_state
from identree.app.hosts import Hosts
from identree.app.ports import Now
from identree.core import errors
from identree.core.errors import Invalid, Refused, SessionExpired
from identree.storage.interface import Agent
from identree.web import replies
from identree.web.hosts import HostAnswers
from identree.web.reading import (
    Addresses,
    BadJSON,
    Credentials,
    body,
    first_header,
    is_json,
    json_integer,
    json_object,
    json_string,
)
from identree.web.router import Router
from identree.web.sessions import BrowserSessions

ESCROW_PATH = "/api/breakglass/escrow"
REPORT_PATH = "/api/breakglass/report"
HEARTBEAT_PATH = "/api/agent/heartbeat"
AGENTS_PATH = "/api/agents"
# A JSON value that is complete within this succeeds whatever follows.
BODY_BYTES = 1024
HEARTBEAT_BODY_BYTES = 4096
# Rows of the list of agents that are encoded in one go, a millisecond.
ROWS_AT_ONCE = 500

T = TypeVar("T")
# Runs a function in a thread.
InThread = Callable[[Callable[[], T]], Awaitable[T]]

_TOO_MANY = "too many authentication failures"


class BreakGlassAnswers(HostAnswers):
    """``J(...)`` with the texts of these endpoints."""

    def refused(self, request: IRequest, refusal: Refused) -> bytes:
        if isinstance(refusal, errors.Throttled):
            return _later(request, 429, _TOO_MANY, refusal.retry_after)
        if isinstance(refusal, breakglass.NoWayToEscrow):
            return replies.json_error(request, http.FORBIDDEN, "escrow endpoint requires shared secret authentication")
        if isinstance(refusal, breakglass.NotItsOwn):
            return replies.json_error(request, http.FORBIDDEN, "invalid credential for hostname")
        if isinstance(refusal, breakglass.BadEscrowToken):
            return replies.json_error(request, http.FORBIDDEN, refusal.detail)
        if isinstance(refusal, breakglass.TooManyTokens):
            seconds = breakglass.RETRY_TOKENS_SECONDS
            return _later(request, 429, "escrow rate limit exceeded", seconds)
        if isinstance(refusal, breakglass.TokenUsed):
            return replies.json_error(request, http.GONE, "escrow token already used")
        if isinstance(refusal, breakglass.NothingConfigured):
            return replies.json_error(request, http.NOT_IMPLEMENTED, "escrow not configured on server")
        if isinstance(refusal, breakglass.EscrowBusy):
            seconds = breakglass.RETRY_BUSY_SECONDS
            return _later(request, http.SERVICE_UNAVAILABLE, "too many concurrent escrow operations", seconds)
        if isinstance(refusal, breakglass.NotStored):
            said = "escrow command failed" if refusal.by_command else "escrow failed"
            return replies.json_error(request, http.INTERNAL_SERVER_ERROR, said)
        return super().refused(request, refusal)


class BreakGlassRoutes:
    router = Router()

    def __init__(
        self, *, break_glass: BreakGlass, hosts: Hosts, addresses: Addresses, credentials: Credentials
    ) -> None:
        self.answers = BreakGlassAnswers()
        self._break_glass = break_glass
        self._hosts = hosts
        self._addresses = addresses
        self._credentials = credentials

    @router.route(ESCROW_PATH, methods=["POST"])
    async def escrow(self, request: IRequest) -> bytes:
        presented, address = self._credentials.of(request), self._addresses.of(request)
        self._break_glass.may_escrow(presented)
        self._hosts.admit(presented, address)
        self._hosts.authenticate(presented, address, breakglass.ESCROW)
        if not is_json(request):
            return _not_json(request)
        try:
            members = json_object(body(request)[:BODY_BYTES])
            password, hostname = json_string(members, "password"), json_string(members, "hostname")
        except BadJSON:
            return _bad_body(request)
        if not password:
            raise Invalid("password required")
        if "\ufffd" in password:
            # it was not text: what we would keep is not what the host has
            return _bad_body(request)
        if not hostname:
            raise Invalid("hostname required")
        signed = Signed(
            ts=first_header(request, b"X-Escrow-Ts").decode("latin-1"),
            token=first_header(request, b"X-Escrow-Token").decode("latin-1"),
        )
        await self._break_glass.escrow(hostname, password, signed, presented, address)
        return replies.send_json(request, http.OK, {"status": "ok"})

    @router.route(REPORT_PATH, methods=["POST"])
    async def report(self, request: IRequest) -> bytes:
        presented, address = self._credentials.of(request), self._addresses.of(request)
        self._hosts.admit(presented, address)
        self._hosts.authenticate(presented, address, breakglass.REPORT)
        if not is_json(request):
            return _not_json(request)
        try:
            members = json_object(body(request)[:BODY_BYTES])
            hostname, username = json_string(members, "hostname"), json_string(members, "username")
            used_at = json_integer(members, "timestamp")
        except BadJSON:
            return _bad_body(request)
        if not (hostname and username):
            raise Invalid("hostname and username required")
        await self._break_glass.report(hostname, username, used_at, presented, address)
        return replies.send_json(request, http.OK, {"status": "ok"})


class HeartbeatAnswers(HostAnswers):
    """``J(...)``, but a wrong method is told in plain text."""

    def refused(self, request: IRequest, refusal: Refused) -> bytes:
        if isinstance(refusal, errors.Throttled):
            return _later(request, 429, _TOO_MANY, refusal.retry_after)
        if isinstance(refusal, SessionExpired | errors.Forbidden):
            return replies.json_error(request, http.UNAUTHORIZED, "admin session required")
        if isinstance(refusal, UnknownHost):
            return replies.json_error(request, http.FORBIDDEN, "hostname not registered")
        if isinstance(refusal, TooManyHosts):
            return replies.json_error(request, 429, "too many hosts; an admin has to remove some on the hosts page")
        return super().refused(request, refusal)

    def wrong_method(self, request: IRequest) -> bytes:
        return replies.text(request, http.NOT_ALLOWED, "method not allowed")


class HeartbeatRoutes:
    """:param in_thread: runs what takes long in a thread."""

    router = Router()

    def __init__(
        self,
        *,
        fleet: Fleet,
        hosts: Hosts,
        sessions: BrowserSessions,
        addresses: Addresses,
        credentials: Credentials,
        in_thread: InThread[Any],
        now: Now,
    ) -> None:
        self.answers = HeartbeatAnswers()
        self._fleet = fleet
        self._hosts = hosts
        self._sessions = sessions
        self._addresses = addresses
        self._credentials = credentials
        self._in_thread = in_thread
        self._now = now

    @router.route(HEARTBEAT_PATH, methods=["POST"])
    async def heartbeat(self, request: IRequest) -> bytes:
        """204; or 200 with what the host is asked to do, which deployed agents do not look at."""
        presented, address = self._credentials.of(request), self._addresses.of(request)
        self._hosts.admit(presented, address)
        try:
            members = json_object(body(request)[:HEARTBEAT_BODY_BYTES])
            hostname, version, os_info = (json_string(members, name) for name in ("hostname", "version", "os_info"))
        except BadJSON:
            return replies.json_error(request, http.BAD_REQUEST, "invalid JSON")
        if not hostname.strip():
            raise Invalid("hostname is required")
        wanted = await self._fleet.heartbeat(hostname.strip(), version, os_info, presented, address)
        if wanted is None:
            return replies.empty(request, http.NO_CONTENT)
        return replies.send_json(request, http.OK, {"rotate_breakglass_before": instant_text(wanted)})

    @router.route(AGENTS_PATH, methods=["GET"])
    async def agents(self, request: IRequest) -> bytes:
        caller = await self._sessions.caller(request)
        found = await self._fleet.agents(caller)
        now = self._now()
        encoded: bytes = await self._in_thread(lambda: _encoded(found, now))
        return replies.send(request, http.OK, replies.JSON, encoded)


def _encoded(agents: list[Agent], now: datetime) -> bytes:
    """The answer, the rows a few at a time: the encoder lets no other thread work until it is done."""
    pieces = []
    for start in range(0, len(agents), ROWS_AT_ONCE):
        rows = [_row(agent, now) for agent in agents[start : start + ROWS_AT_ONCE]]
        pieces.append(replies.encode_json(rows)[1:-1])
    return b'{"agents":[' + b",".join(pieces) + b"]}\n"


def _row(agent: Agent, now: datetime) -> dict[str, object]:
    row: dict[str, object] = {"hostname": agent.hostname}
    for name, value in (("version", agent.version), ("os_info", agent.os_info), ("ip", agent.address)):
        if value:
            row[name] = value
    row["first_seen"] = instant_text(agent.first_seen)
    row["last_seen"] = instant_text(agent.last_seen)
    row["last_seen_ago"] = _ago(int((now - agent.last_seen).total_seconds()))
    row["status"] = seen_state(agent.last_seen, now).value
    return row


def _ago(seconds: int) -> str:
    """``12s``, ``5m``, ``2h``, ``3d``: truncated."""
    seconds = max(0, seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m"
    return f"{seconds // 3600}h" if seconds < 86400 else f"{seconds // 86400}d"


def _later(request: IRequest, code: int, message: str, seconds: int) -> bytes:
    replies.retry_after(request, seconds)
    return replies.json_error(request, code, message, poll_after=seconds)


def _not_json(request: IRequest) -> bytes:
    return replies.json_error(request, http.UNSUPPORTED_MEDIA_TYPE, "content-type must be application/json")


def _bad_body(request: IRequest) -> bytes:
    return replies.json_error(request, http.BAD_REQUEST, "invalid request body")
