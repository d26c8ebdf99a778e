"""What the application needs from the outside world, as Protocols that the clients fulfil."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

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
    """

    username: str
    groups: tuple[str, ...]
    picture: str = ""
    authenticated_at: datetime | None = None


class IdentityProvider(Protocol):
    """The OIDC provider (spec/web-ui section 3)."""

    async def authorization_url(self, *, state: str, nonce: str, code_challenge: str) -> str:
        """
        Where to send the browser.

        :raise ProviderUnavailable: discovery has not succeeded yet and did not now.
        """

    async def redeem(self, *, code: str, verifier: str, nonce: str) -> Identity:
        """
        Exchange the code and verify the ID token: signature, issuer, audience, expiry, nonce, user name.

        :raise LoginFailed: with the page's message key and status.
        :raise ProviderUnavailable: it does not answer.
        """
