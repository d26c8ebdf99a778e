"""Takes messages to the receivers of channels, whatever their back end."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ProcessDone

from identree.app.ports import DeliveryFailed
from identree.clients import processes
from identree.clients.guarded import Denied
from identree.clients.http import Answer, Fetch, Nonsense, Unanswered
from identree.clients.notify import payloads, texts
from identree.clients.notify.mail import Mailer
from identree.clients.notify.webpush import MAX_PLAINTEXT, VapidKey, encrypt
from identree.core import tokens
from identree.core.notices import Channel, Notice
from identree.storage.interface import PushDevice

T = TypeVar("T")

# Of one HTTP attempt, whatever the channel says (spec/notifications-and-policy section 5).
HTTP_SECONDS = 10.0
ANSWER_BYTES = 65_536
# Of an answer, shown in an error.
SHOWN_CHARACTERS = 1024
COMMAND_SHOWN = 500
# Statuses that a later attempt may not meet.
_TEMPORARY = frozenset({408, 425, 429})
LONGEST_TTL = 24 * 3600


class Notifiers:
    """
    Implements :class:`identree.app.ports.Messenger`.

    :param http: a treq client that goes through the guard.
    :param clock: an ``IReactorTime`` and ``IReactorProcess``.
    :param timeout_seconds: of an attempt of a channel that has no timeout of its own.
    :param random: n random bytes.
    :param environment: the server's; of it commands get ``PATH`` and ``HOME``.
    :param contact: for push services, ``mailto:`` or ``https:``.
    """

    def __init__(
        self,
        *,
        http: Any,
        mailer: Mailer,
        clock: Any,
        now: Callable[[], datetime],
        timeout_seconds: Callable[[], float],
        user_agent: str,
        vapid: VapidKey,
        contact: str,
        random: Callable[[int], bytes],
        environment: Mapping[str, str],
    ) -> None:
        self._http = http
        self._mailer = mailer
        self._clock = clock
        self._now = now
        self._timeout_seconds = timeout_seconds
        self._user_agent = user_agent
        self._vapid = vapid
        self._contact = contact
        self._random = random
        self._environment = environment

    def edits(self, channel: Channel) -> bool:
        """See :class:`~identree.app.ports.Messenger`."""
        if channel.backend == "slack":
            return _slack_bot(channel.url)
        return channel.backend in ("discord", "webpush", "email", "ntfy")

    async def send(
        self, channel: Channel, notice: Notice, *, device: PushDevice | None = None, previous: str = ""
    ) -> str:
        """See :class:`~identree.app.ports.Messenger`."""
        seconds = channel.timeout.total_seconds() if channel.timeout is not None else self._timeout_seconds()
        if channel.backend == "custom":
            await self._command(channel, notice, seconds)
            return ""
        work = self._send(channel, notice, device, previous, seconds)
        return await self._bounded(work, seconds)

    async def _send(
        self, channel: Channel, notice: Notice, device: PushDevice | None, previous: str, seconds: float
    ) -> str:
        try:
            match channel.backend:
                case "email":
                    return await self._mailer.send(channel, notice, seconds=seconds, previous=previous)
                case "webpush":
                    return await self._push(notice, device, seconds)
                case "slack":
                    return await self._slack(channel, notice, previous, seconds)
                case "discord":
                    return await self._discord(channel, notice, previous, seconds)
                case "ntfy":
                    return await self._ntfy(channel, notice, previous, seconds)
                case "teams":
                    await self._post(channel, channel.url, payloads.teams(notice), seconds)
                case "apprise":
                    await self._post(channel, channel.url, payloads.apprise(notice), seconds)
                case _:
                    await self._post(
                        channel, channel.url, payloads.webhook(notice), seconds, signed=True, notice=notice
                    )
        except Denied as problem:
            raise DeliveryFailed(str(problem)) from None
        return ""

    async def _bounded(self, work: Awaitable[T], seconds: float) -> T:
        running = Deferred.fromCoroutine(_awaited(work))
        late = self._clock.callLater(seconds, running.cancel)
        try:
            return await running
        except CancelledError:
            if late.active():
                raise
            raise DeliveryFailed(f"not done within {seconds:g} s") from None
        except DeliveryFailed:
            raise
        except Exception as problem:
            if not late.active():
                raise DeliveryFailed(f"not done within {seconds:g} s") from None
            words = texts.cleaned(str(problem).encode(), (), 300)
            raise DeliveryFailed(f"{type(problem).__name__}: {words}" if words else type(problem).__name__) from None
        finally:
            if late.active():
                late.cancel()

    # -- HTTP ---------------------------------------------------------------------------------------------------------
    async def _post(
        self,
        channel: Channel,
        url: str,
        value: Mapping[str, Any],
        seconds: float,
        *,
        method: str = "POST",
        signed: bool = False,
        notice: Notice | None = None,
    ) -> Answer:
        body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
        headers = {"Content-Type": "application/json"}
        if channel.token:
            headers["Authorization"] = f"Bearer {channel.token}"
        if notice is not None and notice.key:
            headers["Idempotency-Key"] = _same_again(channel, notice)
        if signed and channel.secret:
            stamp = str(int(self._now().timestamp()))
            headers["X-Identree-Timestamp"] = stamp
            headers["X-Identree-Signature"] = tokens.webhook_signature(
                channel.secret.encode(), stamp.encode() + b"." + body
            )
        return await self._request(channel, method, url, headers, body, seconds)

    async def _request(
        self, channel: Channel, method: str, url: str, headers: Mapping[str, str], body: bytes, seconds: float
    ) -> Answer:
        if urlsplit(url).scheme not in ("http", "https"):
            raise DeliveryFailed("the channel has no http or https address", permanent=True)
        fetch = Fetch(_Raw(self._http, body), self._clock)
        try:
            answer = await fetch(
                method,
                url,
                limit=ANSWER_BYTES,
                seconds=min(seconds, HTTP_SECONDS),
                headers={"User-Agent": self._user_agent, "Accept": "*/*", **headers},
            )
        except Unanswered as problem:
            raise DeliveryFailed(texts.cleaned(str(problem).encode(), _secrets(channel), 300)) from None
        except Nonsense:
            # it was taken; what it says about it is too much to read
            return Answer(200, b"")
        if answer.status < 400:
            return answer
        words = texts.cleaned(answer.body, _secrets(channel), SHOWN_CHARACTERS)
        why = f"server returned {answer.status}: {words}" if words else f"server returned {answer.status}"
        temporary = answer.status >= 500 or answer.status in _TEMPORARY
        raise DeliveryFailed(
            why, permanent=not temporary, retry_after=_seconds(answer.retry_after, self._now()) if temporary else None
        )

    # -- receivers that can edit --------------------------------------------------------------------------------------
    async def _slack(self, channel: Channel, notice: Notice, previous: str, seconds: float) -> str:
        value = payloads.slack(channel, notice)
        if not _slack_bot(channel.url):
            await self._post(channel, channel.url, value, seconds)
            return ""
        url = channel.url
        if previous:
            known = _object(previous)
            value = {**value, "ts": known.get("ts", ""), "channel": known.get("channel", "")}
            url = url.replace("chat.postMessage", "chat.update")
        answer = _object((await self._post(channel, url, value, seconds)).body)
        if answer.get("ok") is not True:
            # Slack answers 200 and says in the body that it did not
            error = texts.cleaned(str(answer.get("error", "")).encode(), _secrets(channel), 100)
            raise DeliveryFailed(f"Slack said: {error or 'nothing'}", permanent=error not in _SLACK_TEMPORARY)
        return json.dumps({"ts": str(answer.get("ts", ""))[:64], "channel": str(answer.get("channel", ""))[:64]})

    async def _discord(self, channel: Channel, notice: Notice, previous: str, seconds: float) -> str:
        value = payloads.discord(notice)
        parts = urlsplit(channel.url)
        if previous:
            path = f"{parts.path.rstrip('/')}/messages/{previous}"
            url = urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))
            await self._post(channel, url, value, seconds, method="PATCH")
            return previous
        # without it Discord does not say how the message is called
        query = f"{parts.query}&wait=true" if parts.query else "wait=true"
        url = urlunsplit((parts.scheme, parts.netloc, parts.path, query, ""))
        answer = _object((await self._post(channel, url, value, seconds)).body)
        id = str(answer.get("id", ""))
        return id if id.isascii() and id.isdigit() and len(id) <= 32 else ""

    async def _ntfy(self, channel: Channel, notice: Notice, previous: str, seconds: float) -> str:
        target = _checked(lambda: payloads.ntfy_target(channel))
        sequence = previous or (_same_again(channel, notice) if notice.key else "")
        value = payloads.ntfy(channel, notice, sequence)
        answer = _object((await self._post(channel, target.url, value, seconds)).body)
        # a server before 2.16 does not know it, and would show every change as one more message
        return sequence if answer.get("sequence_id") == sequence else ""

    # -- push ---------------------------------------------------------------------------------------------------------
    async def _push(self, notice: Notice, device: PushDevice | None, seconds: float) -> str:
        if device is None:
            raise DeliveryFailed("no device", permanent=True)
        value = payloads.push(notice)
        plain = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
        if len(plain) > MAX_PLAINTEXT:
            plain = json.dumps({**value, "body": ""}, ensure_ascii=False, separators=(",", ":")).encode()
        body = _checked(lambda: encrypt(plain, device.p256dh, device.auth, salt=self._random(16)))
        ttl = min(notice.expires_in or 3600, LONGEST_TTL)
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Encoding": "aes128gcm",
            "TTL": str(ttl),
            "Urgency": "high" if value["tone"] in ("ask", "bad") else "normal",
            "Authorization": self._vapid.authorization(device.endpoint, self._contact, int(self._now().timestamp())),
        }
        topic = hashlib.sha256(str(value["tag"]).encode()).hexdigest()[:32]
        if value["tag"]:
            # of messages about one request a browser that was away gets the last one (RFC 8030 section 5.4)
            headers["Topic"] = topic
        channel = Channel(name="webpush", backend="webpush", url=device.endpoint)
        try:
            await self._request(channel, "POST", device.endpoint, headers, body, seconds)
        except DeliveryFailed as failure:
            gone = str(failure).startswith(("server returned 404", "server returned 410"))
            raise DeliveryFailed(
                str(failure), permanent=failure.permanent, retry_after=failure.retry_after, gone=gone
            ) from None
        return topic

    # -- commands -----------------------------------------------------------------------------------------------------
    async def _command(self, channel: Channel, notice: Notice, seconds: float) -> None:
        if not channel.command.strip() or "\0" in channel.command:
            raise DeliveryFailed("the channel has no command", permanent=True)
        environment = {name: self._environment[name] for name in ("PATH", "HOME") if name in self._environment}
        environment.update(payloads.environment(channel, notice))
        run = processes.Run(self._clock, b"", seconds)
        try:
            processes.start(run, self._clock, channel.command, environment)
        except OSError as problem:
            raise DeliveryFailed(f"the command cannot be started: {problem.strerror}", permanent=True) from None
        reason, late = await run.ended
        output = texts.cleaned(run.output + b"\n" + run.errors, _secrets(channel), COMMAND_SHOWN)
        if late:
            raise DeliveryFailed(
                f"the command was not done within {seconds:g} s and was killed: {output}", permanent=True
            )
        if not reason.check(ProcessDone):
            status = getattr(reason.value, "exitCode", None)
            raise DeliveryFailed(f"the command ended with status {status}: {output}", permanent=True)


class _Raw:
    """Fetch with a body of bytes."""

    def __init__(self, http: Any, body: bytes) -> None:
        self._http = http
        self._body = body

    def request(self, method: str, url: str, **options: Any) -> Any:
        return self._http.request(method, url, **{**options, "data": self._body})


_SLACK_TEMPORARY = frozenset({"ratelimited", "rate_limited", "internal_error", "fatal_error", "service_unavailable"})


def _slack_bot(url: str) -> bool:
    return urlsplit(url).path.endswith("/chat.postMessage")


def _object(raw: bytes | str) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _secrets(channel: Channel) -> tuple[str, ...]:
    """What an answer might say back: also the address, which for most receivers is all it takes to write there."""
    parts = urlsplit(channel.url)
    tail = parts.path.rstrip("/").rpartition("/")[2]
    return (channel.token, channel.secret, channel.url, tail if len(tail) >= 16 else "")


def _checked(make: Callable[[], T]) -> T:
    try:
        return make()
    except ValueError as problem:
        raise DeliveryFailed(str(problem), permanent=True) from None


def _seconds(retry_after: str, now: datetime) -> float | None:
    """RFC 9110 section 10.2.3: seconds or a date."""
    text = retry_after.strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return None
    return max(0.0, (at.astimezone(UTC) - now).total_seconds()) if at.tzinfo is not None else None


def _same_again(channel: Channel, notice: Notice) -> str:
    """By which a receiver knows a repetition of a message."""
    return hashlib.sha256(f"{channel.name}:{notice.key}".encode()).hexdigest()[:32]


async def _awaited(work: Awaitable[T]) -> T:
    return await work
