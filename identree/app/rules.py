"""
The settings that the application decides with, as values; read anew at each use, so that a live change counts at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from urllib.parse import urlsplit

BUILT_IN_JUSTIFICATIONS = (
    "Routine maintenance",
    "Incident response",
    "Deployment",
    "Debugging / troubleshooting",
    "Security investigation",
    "Configuration change",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientDefaults:
    """What is pushed to hosts; None and zero are not pushed."""

    poll_interval: timedelta = timedelta(0)
    timeout: timedelta = timedelta(0)
    breakglass_enabled: bool | None = None
    breakglass_password_type: str = ""
    breakglass_rotation_days: int = 0
    token_cache_enabled: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """
    :ivar external_url: public base URL without trailing slash.
    :ivar challenge_ttl: life of a challenge, 30 s to 24 h.
    :ivar grace_period: life of the grace session that an approval leaves behind; 0 is off.
    :ivar rotate_before: hosts with an older break-glass hash rotate; None when unset.
    :ivar notification_routes: whether at least one notification route exists.
    :ivar session_max_age: after this long a browser session ends, however active.
    """

    external_url: str
    challenge_ttl: timedelta = timedelta(seconds=120)
    grace_period: timedelta = timedelta(0)
    require_justification: bool = False
    justification_choices: tuple[str, ...] = BUILT_IN_JUSTIFICATIONS
    rotate_before: datetime | None = None
    notification_routes: bool = False
    admin_groups: tuple[str, ...] = ()
    session_max_age: timedelta = timedelta(hours=12)
    enforce_ip_binding: bool = False
    max_pending_per_user: int = 10
    max_pending: int = 10_000
    max_waiters: int = 20_000
    client: ClientDefaults = field(default_factory=ClientDefaults)

    @property
    def secure(self) -> bool:
        """Whether people reach us over https; cookies are Secure then."""
        return self.external_url.startswith("https://")

    @property
    def prefix(self) -> str:
        """
        Path of ``external_url``, which the reverse proxy takes off: what browsers ask for has it, what the server sees
        has not. Empty, or with a slash at its beginning and none at its end.
        """
        return urlsplit(self.external_url).path.rstrip("/")
