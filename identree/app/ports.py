"""What the application needs from the outside world, as Protocols that the clients fulfil."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from identree.core.notices import Channel, Notice
from identree.directory.source import Source
from identree.storage.interface import PushDevice

# The wall clock: aware UTC. What must survive a clock step uses Monotonic instead.
Now = Callable[[], datetime]
# Seconds on a clock that never steps.
Monotonic = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """
    Who signed in, as the identity provider's verified ID token says.

    :ivar username: the ``preferred_username`` claim, of valid syntax.
    :ivar picture: an http(s) URL, or empty.
    :ivar authenticated_at: the ``auth_time`` claim, if there was one.
    :ivar id_token: the token itself, as it was verified; a secret.
    """

    username: str
    groups: tuple[str, ...]
    picture: str = ""
    authenticated_at: datetime | None = None
    id_token: str = field(default="", repr=False)


class IdentityProvider(Protocol):
    """The OIDC provider (spec/web-ui section 3)."""

    async def authorization_url(
        self, *, state: str, nonce: str, code_challenge: str, max_age: int | None = None
    ) -> str:
        """
        Where to send the browser.

        :param max_age: seconds; the person must have proved who it is within them, and is asked to do so anew
            (``max_age`` and ``prompt=login``, OpenID Connect Core section 3.1.2.1). None: as the provider likes.
        :raise ProviderUnavailable: discovery has not succeeded yet and did not now.
        """

    async def redeem(self, *, code: str, verifier: str, nonce: str) -> Identity:
        """
        Exchange the code and verify the ID token: signature, issuer, audience, expiry, nonce, user name.

        :raise LoginFailed: with the page's message key and status.
        :raise ProviderUnavailable: it does not answer.
        """


class SourceUnavailable(Exception):
    """
    The source of people and groups cannot be read now; a later attempt may succeed. Nothing of a half-read source is
    ever given out.

    :ivar retry_after: seconds that the source asked us to wait, from its answer to a rate limit; 0 when it did not.
    """

    def __init__(self, reason: str, *, retry_after: float = 0.0) -> None:
        """:param reason: for people: fit for one line of a page or the log, and without secrets."""
        super().__init__(reason)
        self.reason = reason
        self.retry_after = retry_after


class SourceRefused(Exception):
    """The source will not answer us as we are configured (a bad API key, a wrong address): trying soon is no use."""

    def __init__(self, reason: str) -> None:
        """:param reason: for people: what an operator must change; without secrets."""
        super().__init__(reason)
        self.reason = reason


class PeopleSource(Protocol):
    """Where people and groups come from (spec/ldap section 9)."""

    async def fetch(self) -> Source:
        """
        Everything, as it is now; whole or not at all. Safe to cancel.

        :raise SourceUnavailable: try again later.
        :raise SourceRefused: an operator has to do something first.
        """


class SigningFailed(Exception):
    """The CA's key signed nothing; a later attempt may succeed. The message is for the log, and without secrets."""


class SigningKey(Protocol):
    """The CA's private key, where another program holds it (spec/ldap section 8.5)."""

    async def sign(self, digest: bytes, hash_name: str) -> bytes:
        """
        :param digest: of what is to be signed.
        :param hash_name: ``sha256``, ``sha384`` or ``sha512``, what the digest was made with.
        :returns: the signature as it stands in a certificate: DER for ECDSA, PKCS #1 v1.5 for RSA.
        :raise SigningFailed: no usable answer.
        """


class DeliveryFailed(Exception):
    """
    A message was not taken. The text is for people and holds no secret.

    :ivar permanent: the same message will never be taken: trying again is no use.
    :ivar retry_after: seconds that the receiver asked for, or None.
    :ivar gone: the receiver does not exist any more (a push device that was given up).
    """

    def __init__(
        self, why: str, *, permanent: bool = False, retry_after: float | None = None, gone: bool = False
    ) -> None:
        super().__init__(why)
        self.permanent = permanent
        self.retry_after = retry_after
        self.gone = gone


class Messenger(Protocol):
    """Takes messages to the receivers of channels, whatever their back end (``identree.clients.notify``)."""

    async def send(
        self, channel: Channel, notice: Notice, *, device: PushDevice | None = None, previous: str = ""
    ) -> str:
        """
        One attempt, bounded by the channel's timeout. May be cancelled; then whether it arrived is unknown.

        :param device: the receiver, for ``webpush``.
        :param previous: reference of an earlier message that this one brings up to date; empty: it is a new one.
        :returns: a reference by which the message can be brought up to date; empty: it cannot.
        :raise DeliveryFailed: see there.
        """

    def edits(self, channel: Channel) -> bool:
        """Whether messages of this channel can be brought up to date."""
