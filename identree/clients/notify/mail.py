"""E-mail: the message, and its way to a mail server (RFC 5321) through ``twisted.mail``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from html import escape
from io import BytesIO
from typing import Any
from urllib.parse import unquote, urlsplit

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.ssl import optionsForClientTLS
from twisted.mail.smtp import ESMTPSender, SMTPClientError

from identree.app.ports import DeliveryFailed
from identree.clients.notify import texts
from identree.clients.notify.payloads import said, subject
from identree.core.notices import Channel, Notice

PORTS = {"smtp": 587, "smtps": 465, "smtp+plain": 25}
MAX_RECIPIENTS = 50
# A server that does not take its leave is left.
GOODBYE_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MailServer:
    """
    Of a channel's URL.

    :ivar scheme: ``smtp`` demands STARTTLS, ``smtps`` begins with TLS, ``smtp+plain`` has none.
    """

    scheme: str
    host: str
    port: int
    user: str

    @classmethod
    def parse(cls, url: str) -> MailServer:
        """:raise ValueError: it is none."""
        parts = urlsplit(url)
        if parts.scheme not in PORTS or not parts.hostname:
            raise ValueError("the address must be like smtp://mail.example:587 or smtps://mail.example:465")
        return cls(
            scheme=parts.scheme,
            host=parts.hostname,
            port=parts.port or PORTS[parts.scheme],
            user=unquote(parts.username or ""),
        )


def message(channel: Channel, notice: Notice, *, now: datetime, previous: str, domain: str) -> tuple[EmailMessage, str]:
    """
    The mail, and its Message-ID.

    :param previous: Message-ID of the mail that this one answers, or empty.
    :param domain: of our Message-IDs.
    :raise ValueError: an address is none.
    """
    mail = EmailMessage(policy=SMTP)
    mail["From"] = _address(channel.sender or f"identree@{domain}")
    mail["To"] = [_address(text) for text in channel.to[:MAX_RECIPIENTS]]
    mail["Subject"] = texts.cut(subject(notice), 200)
    mail["Date"] = format_datetime(now)
    name = "".join(character for character in notice.key if character.isalnum() or character in "-_.") or "message"
    id = f"<{name}.{int(now.timestamp())}@{domain}>"
    mail["Message-ID"] = id
    if previous:
        mail["In-Reply-To"] = previous
        mail["References"] = previous
    mail["Auto-Submitted"] = "auto-generated"
    mail["X-Auto-Response-Suppress"] = "All"
    plain, html = _bodies(notice)
    mail.set_content(plain)
    mail.add_alternative(html, subtype="html")
    return mail, id


def _address(text: str) -> Address:
    """:raise ValueError: it is no address."""
    try:
        address = Address(addr_spec=text.strip())
    except Exception:
        raise ValueError(f"{text[:100]!r} is no mail address") from None
    if not address.domain or not address.username:
        raise ValueError(f"{text[:100]!r} is no mail address")
    return address


def _bodies(notice: Notice) -> tuple[str, str]:
    wording = said(notice)
    lines = [f"{label}: {value}" if label else value for label, value in wording.lines]
    plain = "\n".join([wording.title, "", *lines])
    rows = "".join(
        f'<tr><th style="text-align:left;padding:2px 12px 2px 0">{escape(label)}</th><td>{escape(value)}</td></tr>'
        for label, value in wording.lines
    )
    html = f'<!doctype html><meta charset="utf-8"><h2>{escape(wording.title)}</h2><table>{rows}</table>'
    if wording.url:
        plain += f"\n\n{wording.button}: {wording.url}\n"
        html += f'<p><a href="{escape(wording.url)}">{escape(wording.button)}</a></p>'
        if notice.approval_url and notice.approval_url != wording.url:
            plain += f"Open: {notice.approval_url}\n"
            html += f'<p><a href="{escape(notice.approval_url)}">Open</a></p>'
    return plain + "\n", html + "\n"


class Mailer:
    """
    :param endpoint: of host and port, through the guard.
    :param trust: roots that certificates of mail servers are verified by; None: the system's.
    """

    def __init__(
        self,
        reactor: Any,
        endpoint: Callable[[str, int], IStreamClientEndpoint],
        *,
        domain: str,
        now: Callable[[], datetime],
        trust: Any = None,
    ) -> None:
        self._reactor = reactor
        self._endpoint = endpoint
        self._domain = domain
        self._now = now
        self._trust = trust

    async def send(self, channel: Channel, notice: Notice, *, seconds: float, previous: str = "") -> str:
        """
        :returns: the Message-ID.
        :raise DeliveryFailed: see there.
        """
        try:
            server = MailServer.parse(channel.url)
            if not channel.to:
                raise ValueError("the channel has no recipients; set its member to")
            mail, id = message(channel, notice, now=self._now(), previous=previous, domain=self._domain)
        except ValueError as problem:
            raise DeliveryFailed(str(problem), permanent=True) from None
        await self._hand_over(server, channel, mail, seconds)
        return previous or id

    async def _hand_over(self, server: MailServer, channel: Channel, mail: EmailMessage, seconds: float) -> None:
        done: Deferred[object] = Deferred()
        context = optionsForClientTLS(server.host, trustRoot=self._trust)
        sender = str(mail["From"].addresses[0].addr_spec)
        recipients = [address.addr_spec for address in mail["To"].addresses]
        protocol = _Sender(
            server.user.encode(),
            channel.token.encode(),
            context if server.scheme == "smtp" else None,
            sender=sender,
            recipients=recipients,
            # twisted.mail makes the line ends of SMTP itself
            content=mail.as_bytes(policy=SMTP.clone(linesep="\n")),
            done=done,
            reactor=self._reactor,
        )
        protocol.requireTransportSecurity = server.scheme == "smtp"
        protocol.requireAuthentication = bool(server.user)
        protocol.setTimeout(seconds)
        factory = Factory.forProtocol(lambda: protocol)
        endpoint = self._endpoint(server.host, server.port)
        if server.scheme == "smtps":
            endpoint = wrapClientTLS(context, endpoint)
        try:
            await endpoint.connect(factory)
            await done
        except DeliveryFailed:
            raise
        except SMTPClientError as problem:
            raise _refused(problem, channel) from None
        finally:
            await self._hang_up(protocol)

    async def _hang_up(self, protocol: _Sender) -> None:
        """The mail is with the server, or is not: how the connection ends changes nothing about that."""
        transport: Any = protocol.transport
        if transport is None or protocol.gone.called:
            return
        transport.loseConnection()
        late = self._reactor.callLater(GOODBYE_SECONDS, transport.abortConnection)
        try:
            await protocol.gone
        finally:
            if late.active():
                late.cancel()


def _refused(problem: SMTPClientError, channel: Channel) -> DeliveryFailed:
    raw = problem.resp if isinstance(problem.resp, bytes) else str(problem.resp).encode()
    words = texts.cleaned(raw, (channel.token,), 500)
    code = problem.code
    permanent = isinstance(code, int) and 500 <= code < 600
    return DeliveryFailed(f"mail server said {code}: {words}", permanent=permanent)


class _Sender(ESMTPSender):
    """One mail on one connection."""

    def __init__(
        self,
        username: bytes,
        secret: bytes,
        context: Any,
        *,
        sender: str,
        recipients: list[str],
        content: bytes,
        done: Deferred[object],
        reactor: Any,
    ) -> None:
        super().__init__(username, secret, contextFactory=context, identity=b"identree", logsize=0)
        self._sender, self._recipients, self._content = sender, recipients, content
        self._done = done
        self._reactor = reactor
        self.gone: Deferred[None] = Deferred()
        self.debug = False

    def callLater(self, period: float, function: Callable[[], None]) -> Any:
        return self._reactor.callLater(period, function)

    def getMailFrom(self) -> str | None:
        sender, self._sender = self._sender, ""
        return sender or None

    def getMailTo(self) -> list[str]:
        return list(self._recipients)

    def getMailData(self) -> BytesIO:
        return BytesIO(self._content)

    def sentMail(self, code: int, resp: bytes, numOk: int, addresses: list[Any], log: Any) -> None:
        refused = [answer for _, answer, _ in addresses if answer >= 400] if addresses else []
        if not self._done.called:
            if numOk == 0 or (code >= 400):
                self._done.errback(SMTPClientError(max(refused, default=code), resp))
            else:
                self._done.callback(None)

    def sendError(self, exc: Exception) -> None:
        if not self._done.called:
            self._done.errback(exc)
        if self.transport is not None:
            self.transport.loseConnection()

    def connectionLost(self, reason: Any = None) -> None:
        super().connectionLost(reason)
        if not self.gone.called:
            self.gone.callback(None)
        if not self._done.called:
            self._done.errback(DeliveryFailed("the mail server closed the connection"))
