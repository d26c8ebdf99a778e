"""
Deploying over SSH from a browser: the page, the calls of its script, and the stream of a job's output (spec/http-api
section 9.1, spec/notifications-and-policy section 10, spec/web-ui section 12.3).

Additions to the contract, all optional: ``host_key`` (a fingerprint or a public key), ``known_as`` (the host's name in
identree where SSH connects to another one), ``id`` of the lines of a stream, and the calls to cancel a job and to
forget a host key. A start on a host whose key nobody has confirmed is answered 409 with the key.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.logger import Logger
from twisted.web import http
from twisted.web.iweb import IRequest
from zope.interface import implementer

from identree.app.decisions import Decisions
from identree.app.deploys import (
    Deploys,
    HostUnreachable,
    Job,
    Kind,
    NoScript,
    NotInitiator,
    Stopping,
    TooManyJobs,
    TooManyReaders,
    UnknownJob,
    Wish,
)
from identree.app.people import Caller
from identree.app.rules import Rules
from identree.core import deploy, errors
from identree.core.deploy import HostKeyChanged, HostKeyUnknown, State
from identree.core.errors import Invalid, Refused, SessionExpired
from identree.web import replies
from identree.web.fleet import AdminCalls, CallAnswers, CallRefused
from identree.web.reading import (
    Addresses,
    BadJSON,
    body,
    first_header,
    is_json,
    json_integer,
    json_object,
    json_string,
    query,
)
from identree.web.render import AdminPage, Renderer, Shell
from identree.web.router import LOGIN_PATH, CardAnswers, Router
from identree.web.sessions import BrowserSessions
from identree.web.translations import N_

DEPLOY_PATH, REMOVE_PATH = "/api/deploy", "/api/deploy/remove"
PUBLIC_KEY_PATH, USERS_PATH = "/api/deploy/pubkey", "/api/deploy/users"
CANCEL_PATH, FORGET_PATH = "/api/deploy/cancel", "/api/deploy/forget-host-key"
STREAM_PREFIX = "/api/deploy/stream/"
PAGE_PATH = "/admin/deploy"
# Bytes; for the site's table.
BODY_BYTES = 65_536
BODY_LIMITS = {path.encode(): BODY_BYTES for path in (DEPLOY_PATH, REMOVE_PATH, PUBLIC_KEY_PATH)}

DEPLOY_PAGE = AdminPage(path=PAGE_PATH, name=N_("Set up a host"), icon="plus", key="n", goes=N_("Set up a host"))

KEEPALIVE_SECONDS = 30
# A browser that reads nothing for two keep-alives is gone.
STALLED_KEEPALIVES = 2
# Bytes of a stream written before others get their turn.
SLICE_BYTES = 65_536
BUSY_SECONDS = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyHolder:
    """Somebody of the directory who has SSH keys. :ivar ssh_keys: public ones, one line each."""

    username: str
    email: str
    ssh_keys: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployDesk:
    """
    What administrators do here.

    :ivar key_holders: reads the people of the directory who have SSH keys, anew; nobody where people have none.
    :ivar server_url: where hosts get identree from.
    """

    deploys: Deploys
    key_holders: Callable[[], Awaitable[Sequence[KeyHolder]]]
    server_url: Callable[[], str]


# -- answers ----------------------------------------------------------------------------------------------------------
class DeployAnswers(CallAnswers):
    """``J(...)`` with what a script needs to go on."""

    def refused(self, request: IRequest, refusal: Refused) -> bytes:
        if isinstance(refusal, HostKeyUnknown):
            shown = refusal.host_key
            return replies.json_error(
                request,
                http.CONFLICT,
                refusal.detail,
                key=refusal.key,
                host_key={"type": shown.type, "fingerprint": shown.fingerprint},
            )
        if isinstance(refusal, HostKeyChanged):
            return replies.json_error(request, http.CONFLICT, refusal.detail, key=refusal.key)
        if isinstance(refusal, HostUnreachable):
            return replies.json_error(request, http.BAD_GATEWAY, refusal.detail, key=refusal.key)
        if isinstance(refusal, TooManyReaders):
            replies.retry_after(request, refusal.retry_after)
            return replies.json_error(request, 429, "too many connections")
        if isinstance(refusal, errors.Throttled) and refusal.detail:
            replies.retry_after(request, refusal.retry_after)
            return replies.json_error(request, 429, refusal.detail)
        if isinstance(refusal, TooManyJobs | Stopping):
            replies.retry_after(request, BUSY_SECONDS)
            return replies.json_error(request, http.SERVICE_UNAVAILABLE, refusal.detail)
        if isinstance(refusal, NoScript):
            return replies.json_error(request, http.INTERNAL_SERVER_ERROR, "failed to render install script")
        if isinstance(refusal, UnknownJob):
            return replies.json_error(request, http.NOT_FOUND, "job not found")
        if isinstance(refusal, NotInitiator):
            return replies.json_error(request, http.FORBIDDEN, "forbidden")
        return super().refused(request, refusal)


# -- calls ------------------------------------------------------------------------------------------------------------
class DeployCalls:
    """What the page's script asks."""

    router = Router()
    _log = Logger()

    def __init__(
        self,
        *,
        desk: DeployDesk,
        calls: AdminCalls,
        sessions: BrowserSessions,
        addresses: Addresses,
        clock: IReactorTime,
    ) -> None:
        self.answers = DeployAnswers()
        self._deploys = desk.deploys
        self._key_holders = desk.key_holders
        self._calls = calls
        self._sessions = sessions
        self._addresses = addresses
        self._clock = clock

    @router.route(PUBLIC_KEY_PATH, methods=["POST"])
    async def public_key(self, request: IRequest) -> bytes:
        caller = await self._accepted(request)
        members = _members(request)
        if members is None:
            raise Invalid("invalid JSON")
        type, fingerprint = await self._deploys.public_key(caller, _private_key(members, "invalid JSON"))
        return replies.send_json(request, http.OK, {"fingerprint": fingerprint, "type": type})

    @router.route(DEPLOY_PATH, methods=["POST"])
    async def deploy(self, request: IRequest) -> bytes:
        return await self._start(request, Kind.INSTALL, "invalid JSON")

    @router.route(REMOVE_PATH, methods=["POST"])
    async def remove(self, request: IRequest) -> bytes:
        return await self._start(request, Kind.REMOVE, "invalid request body")

    async def _start(self, request: IRequest, kind: Kind, malformed: str) -> bytes:
        caller = await self._accepted(request)
        address = self._addresses.of(request)
        members = _members(request)
        self._deploys.admit(caller, address, None if members is None else _confirmed(members))
        if members is None:
            raise Invalid(malformed)
        job = await self._deploys.start(caller, _wish(kind, members, malformed), address)
        return replies.send_json(request, http.OK, {"id": job.id})

    @router.route(CANCEL_PATH, methods=["POST"])
    async def cancel(self, request: IRequest) -> bytes:
        """``id``. A job that has ended is answered the same."""
        caller = await self._accepted(request)
        try:
            id = json_string(_members(request) or {}, "id")
        except BadJSON:
            id = ""
        job = self._deploys.cancel(caller, id)
        return replies.send_json(request, http.OK, {"id": job.id, "status": job.state.value})

    @router.route(FORGET_PATH, methods=["POST"])
    async def forget(self, request: IRequest) -> bytes:
        """``hostname``, ``port``."""
        caller = await self._accepted(request)
        members = _members(request)
        if members is None:
            raise Invalid("invalid JSON")
        try:
            hostname, port = json_string(members, "hostname"), json_integer(members, "port")
        except BadJSON:
            raise Invalid("invalid JSON") from None
        forgotten = await self._deploys.forget_host_key(caller, hostname, port, self._addresses.of(request))
        return replies.send_json(request, http.OK, {"forgotten": forgotten})

    @router.route(USERS_PATH, methods=["GET"])
    async def users(self, request: IRequest) -> bytes:
        await self._session(request)
        try:
            holders = await self._key_holders()
        except CancelledError:
            raise
        except Exception as problem:
            self._log.warn("people with SSH keys cannot be read: {problem}", problem=problem)
            return replies.json_error(request, http.INTERNAL_SERVER_ERROR, "failed to fetch users")
        rows = [
            {"username": holder.username, "email": holder.email, "ssh_keys": list(holder.ssh_keys)}
            for holder in holders
            if holder.ssh_keys
        ]
        if not rows:
            return replies.send(request, http.OK, replies.JSON, b"[]")
        return replies.send_json(request, http.OK, rows)

    @router.route(STREAM_PREFIX + "<path:id>")
    async def stream(self, request: Any, id: str) -> bytes:
        """Server-sent events, from the start or from behind ``Last-Event-ID``."""
        job = self._deploys.job(await self._session(request), id)
        reader = _Reader(request, job, self._clock, _seen(first_header(request, b"Last-Event-ID")))
        request.held = "stream"
        await reader.run()
        return b""

    # -- inside -------------------------------------------------------------------------------------------------------
    async def _accepted(self, request: IRequest) -> Caller:
        caller = await self._calls.accepted(request)
        if not is_json(request):
            raise CallRefused(http.UNSUPPORTED_MEDIA_TYPE, "content-type must be application/json")
        return caller

    async def _session(self, request: IRequest) -> Caller:
        """An administrator's browser session, without more: a stream and a list change nothing."""
        try:
            caller = await self._sessions.caller(request)
        except SessionExpired:
            raise CallRefused(http.UNAUTHORIZED, "unauthorized") from None
        if not caller.is_admin:
            raise CallRefused(http.UNAUTHORIZED, "unauthorized")
        return caller


def _members(request: Any) -> dict[str, Any] | None:
    """None: no JSON object. The body is overwritten: a private key stands in it."""
    try:
        return json_object(body(request)[:BODY_BYTES])
    except BadJSON:
        return None
    finally:
        content = request.content
        if hasattr(content, "getbuffer"):
            with content.getbuffer() as raw:
                raw[:] = bytes(len(raw))


def _confirmed(members: dict[str, Any]) -> tuple[str, int, str] | None:
    try:
        text = json_string(members, "host_key")
        if not text:
            return None
        return json_string(members, "hostname"), json_integer(members, "port"), text
    except BadJSON:
        return None


def _private_key(members: dict[str, Any], malformed: str) -> bytearray:
    try:
        text = json_string(members, "private_key")
    except BadJSON:
        raise Invalid(malformed) from None
    members.pop("private_key", None)
    return bytearray(text.encode("utf-8", "replace"))


def _flag(members: dict[str, Any], name: str) -> bool:
    """Deployed pages always send it; absent is no. :raise BadJSON:"""
    value = members.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise BadJSON
    return value


def _wish(kind: Kind, members: dict[str, Any], malformed: str) -> Wish:
    """:raise Invalid: with the texts of the contract."""
    private_key = _private_key(members, malformed)
    try:
        hostname, user = json_string(members, "hostname"), json_string(members, "ssh_user")
        port = json_integer(members, "port")
        alias, host_key = json_string(members, "known_as"), json_string(members, "host_key")
        pam, files = _flag(members, "unconfigure_pam"), _flag(members, "remove_files")
    except BadJSON:
        raise Invalid(malformed) from None
    try:
        target = deploy.target(hostname, port, user)
    except Invalid as invalid:
        if kind is Kind.REMOVE and invalid.detail == "invalid hostname":
            raise Invalid("hostname required") from None
        raise
    known_as = deploy.known_as(alias, target.host)
    expected = deploy.expected_key(host_key) if host_key else None
    if not private_key:
        raise Invalid("private_key required")
    return Wish(
        kind=kind,
        target=target,
        known_as=known_as,
        private_key=private_key,
        host_key=expected,
        unconfigure_pam=pam,
        remove_files=files,
    )


# -- the stream -------------------------------------------------------------------------------------------------------
def _seen(last_id: bytes) -> int:
    """How many lines a browser that comes back has."""
    return int(last_id) if last_id.isdigit() and len(last_id) < 10 else 0


@implementer(IPushProducer)
class _Reader:
    """One open stream: a position in the lines of a job. Nothing is queued for it."""

    def __init__(self, request: Any, job: Job, clock: IReactorTime, seen: int) -> None:
        self._request = request
        self._job = job
        self._clock = clock
        self._seen = min(seen, len(job.lines))
        self._paused = False
        self._stalls = 0
        self._pumping: IDelayedCall | None = None
        self._idle: IDelayedCall | None = None
        self._over: Deferred[None] = Deferred()

    async def run(self) -> None:
        """
        Until the job has ended and everything is written, or the client is gone.

        :raise TooManyReaders:
        """
        stop = self._job.listen(self._wake)
        try:
            request = self._request
            request.setResponseCode(http.OK)
            for name, value in (
                (b"Content-Type", b"text/event-stream"),
                (b"Cache-Control", b"no-cache"),
                (b"X-Accel-Buffering", b"no"),
            ):
                request.responseHeaders.setRawHeaders(name, [value])
            # the headers go out at once, also where there is nothing to tell yet
            request.write(b": connected\n\n")
            request.registerProducer(self, True)
            self._rest()
            self._wake()
            await self._over
            request.unregisterProducer()
        finally:
            stop()
            for call in (self._pumping, self._idle):
                if call is not None and call.active():
                    call.cancel()

    def _wake(self) -> None:
        if self._pumping is None and not self._paused:
            self._pumping = self._clock.callLater(0, self._pump)

    def _pump(self) -> None:
        self._pumping = None
        if self._paused or self._over.called:
            return
        lines = self._job.lines
        frames: list[bytes] = []
        size = 0
        while self._seen < len(lines) and size < SLICE_BYTES:
            line = " ".join(lines[self._seen].splitlines())
            self._seen += 1
            frames.append(f"id: {self._seen}\ndata: {line}\n\n".encode("utf-8", "replace"))
            size += len(frames[-1])
        ended = self._seen >= len(lines) and self._job.state is not State.RUNNING
        if ended:
            frames.append(f"event: status\ndata: {self._job.state.value}\n\n".encode())
        if frames:
            self._request.write(b"".join(frames))
            self._rest()
        if ended:
            self._over.callback(None)
        elif self._seen < len(lines):
            self._wake()

    def _rest(self) -> None:
        """Something was written: the silence begins anew."""
        if self._idle is not None and self._idle.active():
            self._idle.cancel()
        self._idle = self._clock.callLater(KEEPALIVE_SECONDS, self._keep_alive)

    def _keep_alive(self) -> None:
        self._idle = self._clock.callLater(KEEPALIVE_SECONDS, self._keep_alive)
        if not self._paused:
            self._request.write(b": keepalive\n\n")
            return
        self._stalls += 1
        if self._stalls >= STALLED_KEEPALIVES:
            self._request.channel.transport.abortConnection()

    def pauseProducing(self) -> None:
        self._paused = True

    def resumeProducing(self) -> None:
        self._paused = False
        self._stalls = 0
        self._wake()

    def stopProducing(self) -> None:
        """The connection is gone; the request says so too."""


# -- the page ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class DeployView:
    """
    :ivar removing: the page takes identree off ``host``; otherwise it sets one up.
    :ivar download, run: the two commands for who rather does it by hand.
    """

    host: str
    removing: bool
    server_url: str
    download: str
    run: str
    key_bytes: int = deploy.PRIVATE_KEY_BYTES


def deploy_view(host: str, *, removing: bool, server_url: str) -> DeployView:
    """:param host: whatever stands in the query."""
    try:
        name = deploy.target(host, 0, "").host
    except Invalid:
        name, removing = "", False
    return DeployView(
        host=name,
        removing=removing,
        server_url=server_url,
        download=f"curl -fsSLO {server_url}/install.sh",
        run=f"sudo bash install.sh {server_url}",
    )


class DeployRoutes:
    """
    The page; ``host`` in the query fills in its name, ``remove=1`` makes it the one that takes identree off.

    :param ends_at: when a session that is renewed now ends (``People.session_ends_at``).
    """

    router = Router()

    def __init__(
        self,
        *,
        desk: DeployDesk,
        decisions: Decisions,
        sessions: BrowserSessions,
        render: Renderer,
        rules: Callable[[], Rules],
        ends_at: Callable[[Caller], datetime],
    ) -> None:
        self.answers = CardAnswers(render)
        self._server_url = desk.server_url
        self._decisions = decisions
        self._sessions = sessions
        self._render = render
        self._rules = rules
        self._ends_at = ends_at

    @router.route(PAGE_PATH, methods=["GET"])
    async def page(self, request: IRequest) -> bytes:
        switched = self._render.switched_language(request)
        if switched is not None:
            return switched
        try:
            caller = await self._sessions.caller(request)
        except SessionExpired:
            self._sessions.ended(request)
            wanted = request.uri.decode("ascii", "replace")
            return replies.see_other(
                request, f"{self._rules().external_url}{LOGIN_PATH}?next={quote(wanted, safe='/')}"
            )
        self._sessions.renew(request, caller)
        if not caller.is_admin:
            # spec/web-ui section 1: pages send others home
            return replies.see_other(request, self._rules().external_url + "/")
        asked = query(request)
        view = deploy_view(
            asked.get("host", ""), removing=asked.get("remove") == "1", server_url=self._server_url().rstrip("/")
        )
        return self._render.page(
            request,
            "admin_deploy.html",
            shell=Shell(
                caller=caller,
                csrf=self._sessions.csrf(caller),
                ends=int(self._ends_at(caller).astimezone(UTC).timestamp()),
                pending=len(await self._decisions.pending(caller)),
            ),
            view=view,
            banners=self._render.banners(request, self._sessions.flashes(request)),
        )
