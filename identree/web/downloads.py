"""
What hosts fetch (spec/http-api section 10), and the install script of one's own (section 9.1).

Nothing here is secret but what ``/install-config.json`` asks for, and nothing depends on who asks: whoever verifies a
signature gets the same bytes as everybody.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Protocol, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.web import http
from twisted.web.iweb import IRequest
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.formparser import MultiPartParser
from werkzeug.http import parse_options_header
from zope.interface import implementer

from identree.app import distribution
from identree.app.distribution import (
    AGENT_NAMES,
    SCRIPT_BYTES,
    Agent,
    AgentFile,
    InstallTerms,
    NoCustomScript,
    NotWritten,
    Scripts,
    SigningOff,
)
from identree.app.hosts import Credential, Hosts
from identree.app.people import Caller
from identree.core import errors
from identree.core.errors import Invalid, Refused
from identree.core.hosts import HostRegistry
from identree.web import replies
from identree.web.reading import Addresses, Credentials, body, cut, first_header, query
from identree.web.router import Answers, Router, TextAnswers, not_found

INSTALL_PATH, SIGNATURE_PATH, PUBLIC_KEY_PATH = "/install.sh", "/install.sh.sig", "/install.pub"
CONFIG_PATH = "/install-config.json"
VERSION_PATH, MANIFEST_PATH = "/download/version", "/download/manifest.json"
UNITS_PATH = "/download/systemd/"
UNINSTALL_PATH = "/api/deploy/uninstall-script"
UPLOAD_PATH = "/api/admin/install-script"

# The script, its signature, and what multipart puts around them.
UPLOAD_BODY_BYTES = SCRIPT_BYTES + (64 << 10)
# What of the form is read at once, and what the parser may hold of parts that are no files, in bytes: the parser counts
# the first into the second.
CHUNK_BYTES = 64 << 10
FORM_BYTES = 4 * CHUNK_BYTES
# The form has two parts; a browser may add some.
PARTS = 8
# RFC 2046 section 5.1.1.
BOUNDARY_CHARACTERS = 70
# Larger answers go out piece by piece, as fast as the client takes them: a thousand slow ones must not cost a thousand
# copies.
PIECE_BYTES = 64 << 10
# Who takes longer has to come again with Range; 32 MiB in this time are 110 kB/s.
DOWNLOAD_SECONDS = 300.0

SHELL = b"text/x-shellscript; charset=utf-8"
PEM = b"application/x-pem-file"
BINARY = b"application/octet-stream"
JSON_TEXT = b"application/json; charset=utf-8"

T = TypeVar("T")
# Runs a function in a thread.
InThread = Callable[[Callable[[], T]], Awaitable[T]]

_SCHEME = b"Identree"


class DownloadAnswers(TextAnswers):
    """``T(...)`` with the texts of these endpoints."""

    def refused(self, request: IRequest, refusal: Refused) -> bytes:
        if isinstance(refusal, SigningOff):
            return replies.text(request, http.SERVICE_UNAVAILABLE, "signing not configured")
        if isinstance(refusal, errors.Unauthorized):
            # RFC 9110 section 15.5.2 wants a scheme named; none is registered for a secret in a header of its own
            request.responseHeaders.setRawHeaders(b"WWW-Authenticate", [_SCHEME])
        return super().refused(request, refusal)


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadDesk:
    """
    What there is to fetch.

    :ivar version: of the server, and so of the agent that it serves.
    :ivar units: name to text of the systemd units.
    :ivar uninstall: template of the uninstall script.
    :ivar registry: the host registry as it is now.
    """

    scripts: Scripts
    agent: AgentFile
    terms: InstallTerms
    version: str
    units: Mapping[str, str]
    uninstall: str
    registry: Callable[[], HostRegistry]


class DownloadRoutes:
    """:param clock: ends downloads that take too long."""

    router = Router()

    def __init__(
        self, *, desk: DownloadDesk, hosts: Hosts, addresses: Addresses, credentials: Credentials, clock: IReactorTime
    ) -> None:
        self.answers: Answers = DownloadAnswers()
        self._scripts, self._agent, self._registry = desk.scripts, desk.agent, desk.registry
        self._config = json.dumps(desk.terms.members(), separators=(",", ":")).encode() + b"\n"
        self._version = desk.version or "dev"
        self._units = dict(desk.units)
        self._uninstall = {
            (pam, files): distribution.uninstall_script(desk.uninstall, pam=pam, files=files).encode()
            for pam in (True, False)
            for files in (True, False)
        }
        self._hosts = hosts
        self._addresses = addresses
        self._credentials = credentials
        self._clock = clock

    # -- the script ---------------------------------------------------------------------------------------------------
    @router.route(INSTALL_PATH, methods=["GET"])
    async def install(self, request: IRequest) -> bytes:
        script = await self._scripts.current()
        _disposition(request, "inline; filename=install.sh")
        return await self._deliver(request, SHELL, script.content)

    @router.route(SIGNATURE_PATH, methods=["GET"])
    async def signature(self, request: IRequest) -> bytes:
        return replies.send(request, http.OK, replies.TEXT, (await self._scripts.signature()).encode("ascii"))

    @router.route(PUBLIC_KEY_PATH, methods=["GET"])
    async def public_key(self, request: IRequest) -> bytes:
        return replies.send(request, http.OK, PEM, self._scripts.public_pem)

    @router.route(UNINSTALL_PATH, methods=["GET"])
    async def uninstall(self, request: IRequest) -> bytes:
        """Open, as it tells nothing; what it does to a host needs root there."""
        asked = query(request)
        script = self._uninstall[asked.get("pam") != "false", asked.get("files") != "false"]
        _disposition(request, "inline; filename=uninstall.sh")
        return replies.send(request, http.OK, SHELL, script)

    @router.route(CONFIG_PATH, methods=["GET"])
    async def config(self, request: IRequest) -> bytes:
        self._authenticate(request)
        return replies.send(request, http.OK, JSON_TEXT, self._config)

    def _authenticate(self, request: IRequest) -> None:
        """
        The global secret; or a host's own, when ``X-Hostname`` says whose, which deployed installers do not send.

        :raise Unauthorized: :raise Throttled:
        """
        presented, address = self._credentials.of(request), self._addresses.of(request)
        self._hosts.admit(presented, address)
        if self._hosts.is_global(presented):
            return
        hostname = first_header(request, b"X-Hostname").decode("latin-1")
        if presented.secret and hostname and self._registry().matches(hostname, presented.secret):
            return
        where = f"GET {CONFIG_PATH}"
        # a certificate is no secret: what was sent beside it is judged by itself
        self._hosts.authenticate(Credential(secret=presented.secret), address, where)
        self._hosts.note_failure(f"neither the global secret nor that of the host named: {where}", address)
        raise errors.Unauthorized

    # -- the agent ----------------------------------------------------------------------------------------------------
    @router.route(VERSION_PATH, methods=["GET"])
    async def version(self, request: IRequest) -> bytes:
        return replies.send(request, http.OK, replies.TEXT, self._version.encode())

    @router.route(MANIFEST_PATH, methods=["GET"])
    async def manifest(self, request: IRequest) -> bytes:
        return replies.send(request, http.OK, replies.JSON, await self._manifest())

    @router.route(MANIFEST_PATH + ".sig", methods=["GET"])
    async def manifest_signature(self, request: IRequest) -> bytes:
        signed = self._scripts.sign(await self._manifest())
        return replies.send(request, http.OK, replies.TEXT, signed.encode("ascii"))

    async def _manifest(self) -> bytes:
        return distribution.manifest(self._version, await self._agent.get(), self._units)

    @router.route(f"/download/{AGENT_NAMES[0]}", methods=["GET"])
    @router.route(f"/download/{AGENT_NAMES[1]}", methods=["GET"])
    @router.route(f"/download/{AGENT_NAMES[2]}", methods=["GET"])
    async def agent(self, request: IRequest) -> bytes:
        name = _name(request)
        agent = await self._agent.get()
        if agent is None:
            return _unavailable(request, name)
        _disposition(request, f'attachment; filename="{name}"')
        request.responseHeaders.setRawHeaders(b"Accept-Ranges", [b"bytes"])
        if request.setETag(b'"%b"' % agent.digest.encode("ascii")) is http.CACHED:
            return b""
        # RFC 9110 section 13.2.2: the date is asked only of those who know no tag
        if not first_header(request, b"If-None-Match"):
            if request.setLastModified(agent.modified) is http.CACHED:
                return b""
        else:
            request.responseHeaders.setRawHeaders(b"Last-Modified", [http.datetimeToString(agent.modified)])
        return await self._part(request, agent)

    async def _part(self, request: IRequest, agent: Agent) -> bytes:
        """All of it, or the one range that was asked for (RFC 9110 section 14.2)."""
        content, size = agent.content, len(agent.content)
        wanted = first_header(request, b"Range")
        if wanted and not _still(first_header(request, b"If-Range"), agent):
            wanted = b""
        found = byte_range(wanted, size)
        if found is None:
            return await self._deliver(request, BINARY, content)
        start, end = found
        if start >= end:
            request.responseHeaders.setRawHeaders(b"Content-Range", [b"bytes */%d" % size])
            return replies.text(request, http.REQUESTED_RANGE_NOT_SATISFIABLE, "range not satisfiable")
        request.responseHeaders.setRawHeaders(b"Content-Range", [b"bytes %d-%d/%d" % (start, end - 1, size)])
        return await self._deliver(request, BINARY, content, start, end, http.PARTIAL_CONTENT)

    @router.route(f"/download/{AGENT_NAMES[0]}.sha256", methods=["GET"])
    @router.route(f"/download/{AGENT_NAMES[1]}.sha256", methods=["GET"])
    @router.route(f"/download/{AGENT_NAMES[2]}.sha256", methods=["GET"])
    async def checksum(self, request: IRequest) -> bytes:
        name = _name(request).removesuffix(".sha256")
        agent = await self._agent.get()
        if agent is None:
            return _unavailable(request, name)
        return replies.send(request, http.OK, replies.TEXT, agent.checksum(name))

    @router.route(f"/download/{AGENT_NAMES[0]}.sha256.sig", methods=["GET"])
    @router.route(f"/download/{AGENT_NAMES[1]}.sha256.sig", methods=["GET"])
    @router.route(f"/download/{AGENT_NAMES[2]}.sha256.sig", methods=["GET"])
    async def checksum_signature(self, request: IRequest) -> bytes:
        name = _name(request).removesuffix(".sha256.sig")
        agent = await self._agent.get()
        if agent is None:
            return _unavailable(request, name)
        signed = self._scripts.sign(agent.checksum(name))
        return replies.send(request, http.OK, replies.TEXT, signed.encode("ascii"))

    @router.route(UNITS_PATH + "<string:name>", methods=["GET"])
    async def unit(self, request: IRequest, name: str) -> bytes:
        text = self._units.get(name)
        if text is None:
            return not_found(request)
        return replies.send(request, http.OK, replies.TEXT, text.encode())

    async def _deliver(
        self,
        request: Any,
        content_type: bytes,
        content: bytes,
        start: int = 0,
        end: int | None = None,
        code: int = http.OK,
    ) -> bytes:
        """The bytes from ``start`` to ``end``; returns what remains to be written when they are many."""
        end = len(content) if end is None else end
        length = end - start
        if length <= PIECE_BYTES:
            return replies.send(request, code, content_type, content[start:end])
        replies.send(request, code, content_type, b"")
        request.responseHeaders.setRawHeaders(b"Content-Length", [b"%d" % length])
        sending = _Sending(request, memoryview(content)[start:end])
        timer = self._clock.callLater(DOWNLOAD_SECONDS, request.channel.transport.abortConnection)
        try:
            await sending.run()
        finally:
            if timer.active():
                timer.cancel()
        return b""


@implementer(IPushProducer)
class _Sending:
    """Writes as long as the connection takes it. All readers share the bytes; each has one piece in its buffer."""

    def __init__(self, request: Any, content: memoryview) -> None:
        self._request, self._left, self._paused = request, content, False
        self._done: Deferred[None] = Deferred()

    def run(self) -> Deferred[None]:
        """Fires when everything is in the connection's buffer; cancelled when the client hangs up."""
        self._request.registerProducer(self, True)
        self.resumeProducing()
        return self._done

    def resumeProducing(self) -> None:
        self._paused = False
        while self._left and not self._paused:
            piece, self._left = self._left[:PIECE_BYTES], self._left[PIECE_BYTES:]
            self._request.write(bytes(piece))
        if not self._left and not self._done.called:
            self._request.unregisterProducer()
            self._done.callback(None)

    def pauseProducing(self) -> None:
        self._paused = True

    def stopProducing(self) -> None:
        self._paused = True
        self._left = self._left[:0]


def byte_range(header: bytes, size: int) -> tuple[int, int] | None:
    """
    Start and end (exclusive) of the one range that is asked for.

    :returns: None to send everything, also for several ranges and for what is not understood (RFC 9110 section 14.2);
        an empty one when there is nothing there.
    """
    unit, equals, text = header.partition(b"=")
    if unit.strip().lower() != b"bytes" or not equals or len(text) > 64:
        return None
    first, dash, last = (part.strip(b" \t") for part in text.partition(b"-"))
    if not dash or not (first or last) or not all(part.isdigit() for part in (first, last) if part):
        return None
    if not first:
        return max(0, size - int(last)), size if int(last) else 0
    start = int(first)
    end = min(int(last) + 1, size) if last else size
    if last and int(last) < start:
        return None
    return (start, end) if start < size else (size, size)


def _still(condition: bytes, agent: Agent) -> bool:
    """Whether ``If-Range`` means what there is now; absent, it does."""
    if not condition:
        return True
    if condition.startswith((b'"', b"W/")):
        return condition == b'"%b"' % agent.digest.encode("ascii")
    return bool(condition == http.datetimeToString(agent.modified))


def _name(request: IRequest) -> str:
    path: bytes = request.path
    return path.rpartition(b"/")[2].decode("ascii")


def _unavailable(request: IRequest, name: str) -> bytes:
    return replies.text(request, http.NOT_FOUND, f"{name} is not available on this server")


def _disposition(request: IRequest, value: str) -> None:
    request.responseHeaders.setRawHeaders(b"Content-Disposition", [value.encode("ascii")])


# -- the script of one's own ------------------------------------------------------------------------------------------
class Calls(Protocol):
    """JSON admin authentication (``identree.web.fleet.AdminCalls``)."""

    async def accepted(self, request: IRequest) -> Caller:
        """:raise Refused:"""


class UploadAnswers:
    """
    ``J(...)``, but a wrong method is told in plain text.

    :param others: what all calls of administrators have in common (``identree.web.fleet.CallAnswers``).
    """

    def __init__(self, others: Answers) -> None:
        self._others = others

    def refused(self, request: IRequest, refusal: Refused) -> bytes:
        if isinstance(refusal, SigningOff):
            return replies.json_error(request, http.SERVICE_UNAVAILABLE, "signing not configured")
        if isinstance(refusal, NoCustomScript):
            return replies.json_error(request, http.NOT_FOUND, "no custom script configured")
        if isinstance(refusal, Invalid):
            return replies.json_error(request, http.BAD_REQUEST, refusal.detail)
        return self._others.refused(request, refusal)

    def unavailable(self, request: IRequest, error: Exception) -> bytes:
        return self._others.unavailable(request, error)

    def wrong_method(self, request: IRequest) -> bytes:
        return replies.text(request, http.NOT_ALLOWED, "method not allowed")


class UploadRoutes:
    """:param in_thread: runs what takes long in a thread."""

    router = Router()

    def __init__(
        self, *, scripts: Scripts, calls: Calls, answers: Answers, addresses: Addresses, in_thread: InThread[Any]
    ) -> None:
        self.answers: Answers = UploadAnswers(answers)
        self._scripts = scripts
        self._calls = calls
        self._addresses = addresses
        self._in_thread = in_thread

    @router.route(UPLOAD_PATH, methods=["GET"])
    async def stored(self, request: IRequest) -> bytes:
        await self._calls.accepted(request)
        stored = await self._scripts.stored()
        value = {
            "script": stored.content.decode("utf-8", "replace"),
            "signature": stored.signature,
            "valid": stored.valid,
        }
        return replies.send_json(request, http.OK, value)

    @router.route(UPLOAD_PATH, methods=["POST"])
    async def upload(self, request: IRequest) -> bytes:
        caller = await self._calls.accepted(request)
        self._scripts.require_key()
        if cut(request):
            raise Invalid("script exceeds maximum size")
        raw, kind = body(request), first_header(request, b"Content-Type").decode("latin-1")
        script, signature = await self._in_thread(lambda: read_upload(raw, kind))
        return await self._done(request, self._scripts.replace(script, signature, caller, self._addresses.of(request)))

    @router.route(UPLOAD_PATH, methods=["DELETE"])
    async def remove(self, request: IRequest) -> bytes:
        caller = await self._calls.accepted(request)
        return await self._done(request, self._scripts.remove(caller, self._addresses.of(request)))

    async def _done(self, request: IRequest, change: Any) -> bytes:
        try:
            await change
        except NotWritten:
            return replies.json_error(request, http.INTERNAL_SERVER_ERROR, "internal error")
        return replies.send_json(request, http.OK, {"status": "ok"})


def read_upload(raw: bytes, content_type: str) -> tuple[bytes, str]:
    """
    File part ``script`` and field ``signature`` of a form. Takes some milliseconds.

    :raise Invalid: the detail is the contract's text.
    """
    kind, options = parse_options_header(content_type)
    boundary = options.get("boundary", "")
    if kind.lower() != "multipart/form-data" or not 0 < len(boundary) <= BOUNDARY_CHARACTERS or not boundary.isascii():
        raise Invalid("invalid multipart form")
    parser = MultiPartParser(
        stream_factory=lambda *a, **k: BytesIO(),
        max_form_memory_size=FORM_BYTES,
        buffer_size=CHUNK_BYTES,
        max_form_parts=PARTS,
    )
    try:
        fields, files = parser.parse(BytesIO(raw), boundary.encode("ascii"), len(raw))
    except (ValueError, RequestEntityTooLarge):
        raise Invalid("invalid multipart form") from None
    file = files.get("script")
    if file is None:
        raise Invalid("missing script file")
    content = file.stream.read()
    if len(content) > SCRIPT_BYTES:
        raise Invalid("script exceeds maximum size")
    signature = str(fields.get("signature", ""))
    if not signature:
        raise Invalid("missing signature")
    return content, signature
