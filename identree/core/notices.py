"""
Notifications: channels, routes, preferences, and what a message says (spec/notifications-and-policy sections 1, 3
and 5). Pure.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta

# Back ends that a channel of the file may name; any other is taken for ``webhook``, as deployed versions do.
BACKENDS = ("ntfy", "slack", "discord", "teams", "apprise", "webhook", "email", "custom", "webpush")

TEST = "test"


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """
    Where messages go.

    :ivar backend: one of :data:`BACKENDS`.
    :ivar url: of the receiver; for ``email`` ``smtp://host:587`` (STARTTLS is demanded), ``smtps://host:465`` or
        ``smtp+plain://localhost:25``, with an optional ``user@``.
    :ivar token: goes out as ``Authorization: Bearer``; for ``email`` the password; a secret.
    :ivar command: of ``custom``, for ``sh -c``; may hold secrets.
    :ivar secret: key of the signature of ``webhook``; empty: unsigned.
    :ivar timeout: of one attempt; None: the server's.
    :ivar sender, to: of ``email``.
    :ivar quiet: when it is silent; None: never.
    :ivar topic, priority: of ``ntfy``; empty and 0: from the URL, and by the kind of message.
    """

    name: str
    backend: str
    url: str = ""
    token: str = field(default="", repr=False)
    command: str = field(default="", repr=False)
    secret: str = field(default="", repr=False)
    timeout: timedelta | None = None
    sender: str = ""
    to: tuple[str, ...] = ()
    quiet: Quiet | None = None
    topic: str = ""
    priority: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Quiet:
    """
    Quiet hours.

    :ivar hours: ``22:00-07:00``.
    :ivar time_zone: IANA name.
    :ivar days: ``Mon-Fri``, or empty: all.
    :ivar despite: patterns of events that are told all the same.
    """

    hours: str
    time_zone: str = "UTC"
    days: str = ""
    despite: tuple[str, ...] = ("break_glass*", "revealed_breakglass")


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """
    What happened, with all that a message may say about it. Everything is text for people and comes from events and
    challenges; back ends escape it.

    :ivar event: its name, as in the audit record.
    :ivar hostname: as the event has it; may be empty, or the name of a channel or group.
    :ivar timestamp: RFC 3339, UTC.
    :ivar approval_url, onetap_url: only of a challenge that waits; else empty.
    :ivar expires_in: seconds that it still has when this is sent; 0: nothing expires.
    :ivar command, cwd, remote_host: as told by the host.
    :ivar policy: name of the policy that applies.
    :ivar approvals, required: of a quorum: how many there are, and how many are needed; 0: it is not about one.
    :ivar outcome: of a challenge that is over: ``approved``, ``rejected``, ``expired``, ``cancelled``,
        ``overridden``; else empty.
    :ivar key: the same for the same message, for receivers that know repetitions.
    """

    event: str
    username: str = ""
    hostname: str = ""
    user_code: str = ""
    reason: str = ""
    actor: str = ""
    timestamp: str = ""
    approval_url: str = ""
    onetap_url: str = ""
    expires_in: int = 0
    command: str = ""
    cwd: str = ""
    remote_host: str = ""
    policy: str = ""
    approvals: int = 0
    required: int = 0
    outcome: str = ""
    key: str = ""

    @property
    def url(self) -> str:
        """What the button opens."""
        return self.onetap_url or self.approval_url


@dataclass(frozen=True, slots=True, kw_only=True)
class Wording:
    """
    A message in words, not escaped.

    :ivar title: one line.
    :ivar lines: label and value, each one line, no value empty.
    :ivar tone: ``ask`` (somebody has to act), ``good``, ``bad``, ``calm``.
    :ivar button: label of the link, empty without one.
    :ivar url: what it opens, empty without one.
    """

    title: str
    lines: tuple[tuple[str, str], ...] = ()
    tone: str = "calm"
    button: str = ""
    url: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """
    Which events go to which channels. An empty list fits everything.

    :ivar channels, events, hosts, users: names of channels; patterns.
    :ivar escalate_after: where a challenge still waits after so long, ``escalate_to`` are told too.
    """

    channels: tuple[str, ...] = ()
    events: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    escalate_after: timedelta | None = None
    escalate_to: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """What an administrator wants to be told, and through which channels."""

    username: str
    channels: tuple[str, ...] = ()
    events: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    enabled: bool = False
    quiet: Quiet | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """Channels and routes of the file, secrets of the environment included."""

    channels: tuple[Channel, ...] = ()
    routes: tuple[Route, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipient:
    """:ivar after: of the event; None: at once. :ivar quiet: whether now is a quiet time for it."""

    channel: str
    after: timedelta | None = None
    quiet: bool = False


# Characters that end lines, hide text or turn it round; nothing that people write needs them in a message.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
)
_BREAKS = re.compile("[\t\r\n]+")
MAX_VALUE = 500

# event -> title, tone
_TITLES: dict[str, tuple[str, str]] = {
    TEST: ("Test notification from identree", "calm"),
    "challenge_created": ("Sudo approval needed", "ask"),
    "challenge_partially_approved": ("Sudo approved in part", "ask"),
    "challenge_approval_withdrawn": ("An approval of sudo was taken back", "ask"),
    "challenge_approved": ("Sudo approved", "good"),
    "auto_approved": ("Sudo approved by an open session", "good"),
    "challenge_rejected": ("Sudo rejected", "bad"),
    "challenge_expired": ("Sudo request expired", "calm"),
    "challenge_cancelled": ("Sudo request given up", "calm"),
    "break_glass_policy_override": ("Approval policy overridden", "bad"),
    "approval_refused": ("An approval was refused", "bad"),
    "session_revoked": ("Sudo session revoked", "calm"),
    "sessions_revoked_bulk": ("Sudo sessions revoked", "calm"),
    "session_extended": ("Sudo session extended", "calm"),
    "grace_elevated": ("Sudo session opened without a request", "bad"),
    "breakglass_rotation_requested": ("Break-glass rotation requested", "calm"),
    "breakglass_escrowed": ("Break-glass password escrowed", "calm"),
    "revealed_breakglass": ("Break-glass password shown", "bad"),
    "break_glass_used": ("Break-glass password used", "bad"),
    "config_changed": ("Configuration changed", "calm"),
    "user_removed": ("User removed", "bad"),
    "claims_updated": ("Permissions changed", "calm"),
    "sudo_rule_modified": ("Sudo rule changed", "calm"),
    "host_removed": ("Host removed", "bad"),
    "deployed": ("Host set up", "calm"),
    "host_unconfigured": ("identree taken off a host", "calm"),
    "server_restarted": ("Server restarted", "calm"),
    "certificate_issued": ("Client certificate issued", "calm"),
}
# What the field ``hostname`` of an event names, where that is no host.
_SUBJECTS: dict[str, str] = {
    "sudo_rule_modified": "Group",
    "notification_channel_added": "Channel",
    "notification_channel_deleted": "Channel",
    "notification_channel_changed": "Channel",
}


def one_line(text: str, most: int = MAX_VALUE) -> str:
    """Without what breaks lines, hides text or turns it round; cut at ``most`` characters."""
    clean = _HIDDEN.sub("", _BREAKS.sub(" ", text)).strip()
    return clean if len(clean) <= most else clean[: most - 1] + "\u2026"


def title_of(event: str) -> str:
    return _TITLES[event][0] if event in _TITLES else one_line(event.replace("_", " ").capitalize(), 100)


def wording(notice: Notice) -> Wording:
    """What a message says, in English."""
    event = notice.event
    title, tone = title_of(event), _TITLES.get(event, ("", "calm"))[1]
    if event == TEST:
        said = f"Sent by {notice.actor} at {notice.timestamp}" if notice.actor else f"Sent at {notice.timestamp}"
        return Wording(title=title, lines=(("", one_line(said)),), tone=tone)
    asks = bool(notice.url)
    facts = (
        ("User", notice.username),
        (_SUBJECTS.get(event, "Host"), notice.hostname),
        ("Command", notice.command),
        ("Directory", notice.cwd),
        ("From", notice.remote_host),
        ("Reason", notice.reason),
        ("Code", notice.user_code),
        ("Policy", notice.policy),
        ("Approvals", f"{notice.approvals} of {notice.required}" if notice.required > 1 else ""),
        ("By", notice.actor if notice.actor != notice.username or notice.outcome else ""),
        ("Expires", f"in {notice.expires_in} s" if asks and notice.expires_in > 0 else ""),
        ("Time", "" if asks else notice.timestamp),
    )
    return Wording(
        title=title,
        lines=tuple((label, one_line(value)) for label, value in facts if one_line(value)),
        tone=tone if asks or tone != "ask" else "calm",
        button="Approve" if asks else "",
        url=notice.url,
    )


def iso(at: datetime) -> str:
    """RFC 3339, UTC, whole seconds."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def notice_json(notice: Notice) -> str:
    """As it is stored with a delivery; empty fields are left out."""
    values = {field.name: getattr(notice, field.name) for field in fields(notice)}
    return json.dumps({name: value for name, value in values.items() if value}, ensure_ascii=False)


def read_notice(text: str) -> Notice:
    """:raise ValueError: not what :func:`notice_json` writes; members of a newer version are passed over."""
    values = json.loads(text)
    if not isinstance(values, dict) or not isinstance(values.get("event"), str):
        raise ValueError("no notice")
    known = {field.name: type(getattr(_EMPTY, field.name)) for field in fields(Notice)}
    return Notice(**{name: value for name, value in values.items() if isinstance(value, known.get(name, Never))})


class Never:
    """No value is one."""


_EMPTY = Notice(event="")
