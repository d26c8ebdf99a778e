"""
View models: what a page says, decided here from values, so that templates only lay it out. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo

from identree.app.decisions import LONGEST_EXTENSION, WhoMay
from identree.app.people import Caller
from identree.core.challenge import Challenge, GraceSession, HistoryEntry, Status
from identree.core.errors import (
    AccountDisabled,
    AdminRequired,
    FreshLoginRequired,
    NotAnApprover,
    OutsideWindow,
    Refused,
    SelfApprovalForbidden,
)
from identree.web import explanations
from identree.web.router import step_up
from identree.web.translations import N_, Language

# Extensions that the menu offers, in seconds, where the server would grant them whole.
EXTENSIONS = (3600, 2 * 3600, 4 * 3600, 8 * 3600, 86400)
# An extension that gains less than this is no offer.
LEAST_GAIN = timedelta(minutes=1)
# A countdown turns urgent when this much is left.
URGENT_SECONDS = 30


# The reasons that are offered where none are configured (``rules.BUILT_IN_JUSTIFICATIONS``), in the reader's language.
JUSTIFICATIONS = (
    N_("Routine maintenance"),
    N_("Incident response"),
    N_("Deployment"),
    N_("Debugging / troubleshooting"),
    N_("Security investigation"),
    N_("Configuration change"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Who reads the page: language, time zone, and the present time."""

    language: Language
    zone: tzinfo
    now: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class When:
    """
    An instant for people.

    :ivar iso: RFC 3339 in UTC, for ``<time datetime>``.
    :ivar exact: to the second, in the person's zone and UTC.
    :ivar ago: relative to now.
    :ivar clock: hours and minutes.
    """

    iso: str
    exact: str
    ago: str
    clock: str


def when(at: datetime, reading: Reading) -> When:
    return When(
        iso=at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        exact=reading.language.exact(at, reading.zone),
        ago=reading.language.ago(at, reading.now),
        clock=reading.language.clock(at, reading.zone, reading.now),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestView:
    """
    One pending request.

    :ivar code_groups: the code in pieces to compare; joined, they are the code.
    :ivar command_pieces: the command cut at white space, which stays in it; lines are broken there and not at hyphens.
    :ivar told: what the host told about the command besides the command: label and value.
    :ivar remaining: ``1:32``.
    :ivar ends: unix seconds.
    :ivar whole_seconds: the whole life, of which the bar shows the rest.
    :ivar why_not: why the caller cannot approve; empty when he can.
    :ivar step_up: path of the sign-in that would help, or empty.
    :ivar because, asks: sentences: why the policy applies, and what it asks for.
    :ivar others: who else may approve, as a sentence, or empty.
    :ivar overridable: the caller may override the policy.
    :ivar withdrawable: the caller's approval counts and can be taken back.
    :ivar reason_asked: ``no``, ``optional`` or ``required``.
    :ivar version: changes when a page should show the request anew.
    """

    id: str
    code: str
    code_groups: tuple[str, ...]
    username: str
    own: bool
    host: str
    command: str
    command_pieces: tuple[str, ...]
    told: tuple[tuple[str, str], ...]
    reason: str
    address: str
    asked: When
    expires: When
    remaining: str
    remaining_seconds: int
    ends: int
    whole_seconds: int
    urgent: bool
    policy: str
    admin_required: bool
    approvals_required: int
    approvers: tuple[str, ...]
    progress: str
    why_not: str
    step_up: str
    because: tuple[str, ...]
    asks: tuple[str, ...]
    others: str
    overridable: bool
    withdrawable: bool
    reason_asked: str
    choices: tuple[str, ...]
    version: str

    @property
    def can_approve(self) -> bool:
        return not self.why_not


def countdown(seconds: int) -> str:
    """``1:32``, ``2:00:05``; the scripts write it the same way."""
    minutes, seconds = divmod(max(0, seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def code_groups(code: str) -> tuple[str, ...]:
    """``ABCDEF-123456`` as ``ABC``, ``DEF``, ``-``, ``123``, ``456``."""
    letters, dash, digits = code.partition("-")
    return tuple(part for part in (letters[:3], letters[3:], dash, digits[:3], digits[3:]) if part)


def _obstacle(refusal: Refused | None, challenge: Challenge, reading: Reading) -> tuple[str, str]:
    """Why the caller cannot approve, and the path of a sign-in that would help; both may be empty."""
    _ = reading.language.gettext
    if isinstance(refusal, AdminRequired):
        return _("Only an administrator can approve this. You can reject it."), ""
    if isinstance(refusal, SelfApprovalForbidden):
        return _("The policy wants somebody else than you to approve this."), ""
    if isinstance(refusal, NotAnApprover):
        return _("Only members of %(groups)s can approve this.", groups=refusal.detail), ""
    if isinstance(refusal, OutsideWindow):
        return _("It can be approved at these times only: %(window)s.", window=refusal.detail), ""
    if isinstance(refusal, FreshLoginRequired):
        recent = reading.language.duration(refusal.detail)
        words = _("The policy wants a sign-in within the last %(time)s.", time=recent)
        return words, step_up(f"/approve/{challenge.user_code}", refusal)
    if isinstance(refusal, AccountDisabled):
        return _("The account of %(user)s is disabled.", user=challenge.username), ""
    return ("" if refusal is None else _("You cannot approve this.")), ""


def _others(who: WhoMay | None, reading: Reading) -> str:
    if who is None or not who.known:
        return ""
    language = reading.language
    if not who.names:
        return language.gettext("Nobody else may approve it.")
    names = ", ".join(who.names)
    if who.more:
        return language.gettext("%(names)s and %(num)s others may approve it too.", names=names, num=who.more)
    return language.gettext("May approve it too: %(names)s.", names=names)


def request_view(
    challenge: Challenge,
    caller: Caller,
    reading: Reading,
    *,
    reason_required: bool,
    choices: Sequence[str],
    obstacle: Refused | None = None,
    who: WhoMay | None = None,
) -> RequestView:
    """
    A pending challenge as ``caller`` sees it.

    :param obstacle: why the caller's approval would not count (``Decisions.obstacle``).
    :param who: may approve beside the caller; None: it is not said.
    """
    _ = reading.language.gettext
    context = challenge.context
    told = (
        (_("Directory"), context.cwd),
        (_("Terminal"), context.tty),
        (_("Remote host"), context.remote_host),
    )
    remaining = challenge.remaining_seconds(reading.now)
    missing = challenge.required_approvals - len(challenge.approvals)
    login = ""
    counted = challenge.approved_already(caller.username)
    if counted:
        why_not = reading.language.ngettext(
            "You approved this. %(num)s more person has to.", "You approved this. %(num)s more people have to.", missing
        )
    else:
        if obstacle is None and challenge.require_admin and not caller.is_admin:
            obstacle = AdminRequired()
        why_not, login = _obstacle(obstacle, challenge, reading)
    overridable = (
        challenge.bypass_allowed
        and caller.is_admin
        and not (challenge.forbid_self_approval and challenge.username.lower() == caller.username.lower())
        and not isinstance(obstacle, AccountDisabled)
        and (bool(why_not) or challenge.required_approvals > 1)
    )
    if challenge.reason:
        reason_asked = "no"
    else:
        reason_asked = "required" if reason_required else "optional"
    progress = ""
    if challenge.required_approvals > 1:
        progress = _("%(have)s of %(need)s approvals", have=len(challenge.approvals), need=challenge.required_approvals)
    return RequestView(
        id=challenge.id,
        code=challenge.user_code,
        code_groups=code_groups(challenge.user_code),
        username=challenge.username,
        own=challenge.username == caller.username,
        host=challenge.hostname or _("an unnamed host"),
        command=context.command,
        command_pieces=tuple(piece for piece in re.split(r"(\s+)", context.command) if piece),
        told=tuple((label, value) for label, value in told if value),
        reason=challenge.reason,
        address=challenge.remote_addr,
        asked=when(challenge.created_at, reading),
        expires=when(challenge.expires_at, reading),
        remaining=countdown(remaining),
        remaining_seconds=remaining,
        ends=int(challenge.expires_at.timestamp()),
        whole_seconds=max(1, int((challenge.expires_at - challenge.created_at).total_seconds())),
        urgent=remaining <= URGENT_SECONDS,
        policy=challenge.policy_name,
        admin_required=challenge.require_admin,
        approvals_required=challenge.required_approvals,
        approvers=challenge.approvers,
        progress=progress,
        why_not=why_not,
        step_up=login,
        because=explanations.because(challenge.explanation, reading.language),
        asks=explanations.asks(challenge.explanation, reading.language),
        others=_others(who, reading),
        overridable=overridable,
        withdrawable=counted,
        reason_asked=reason_asked,
        choices=tuple(_(choice) if choice in JUSTIFICATIONS else choice for choice in choices)
        if reason_asked != "no"
        else (),
        version=f"{','.join(challenge.approvers)}-{getattr(obstacle, 'key', '')}-{reading.language.code}",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """:ivar duration: the form field: seconds, or ``max``. :ivar until: the resulting end."""

    duration: str
    label: str
    until: When


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionView:
    """One sudo (grace) session. :ivar host: as the forms send it."""

    host: str
    shown_host: str
    until: When
    left: str
    ends: int
    offers: tuple[Offer, ...]
    highlighted: bool
    version: str


def offers(session: GraceSession, grace_period: timedelta, reading: Reading) -> tuple[Offer, ...]:
    """
    Extensions that ``Decisions.extend`` grants whole and that lengthen the session; the whole grace period last.
    """
    longest = min(grace_period, LONGEST_EXTENSION)
    # the server counts from the whole second of its answer, which is not before this one
    now = reading.now.replace(microsecond=0)
    wanted = [timedelta(seconds=seconds) for seconds in EXTENSIONS if timedelta(seconds=seconds) < longest]
    offered = [
        Offer(
            duration=str(int(length.total_seconds())),
            label=reading.language.lasting(int(length.total_seconds())),
            until=when(now + length, reading),
        )
        for length in wanted
        if now + length >= session.expires_at + LEAST_GAIN
    ]
    if now + longest >= session.expires_at + LEAST_GAIN:
        label = reading.language.lasting(int(longest.total_seconds()))
        offered.append(Offer(duration="max", label=label, until=when(now + longest, reading)))
    return tuple(offered)


def session_view(
    session: GraceSession, grace_period: timedelta, reading: Reading, *, highlighted: bool = False
) -> SessionView:
    menu = offers(session, grace_period, reading)
    return SessionView(
        host=session.shown_host,
        shown_host=session.hostname or reading.language.gettext("an unnamed host"),
        until=when(session.expires_at, reading),
        left=reading.language.lasting(session.remaining_seconds(reading.now)),
        ends=int(session.expires_at.timestamp()),
        offers=menu,
        highlighted=highlighted,
        version=f"{int(session.expires_at.timestamp())}-{len(menu)}-{reading.language.code}",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivityView:
    """One line of the history. :ivar tone: ``good``, ``bad``, ``calm``; the icon and the words say it too."""

    icon: str
    tone: str
    label: str
    host: str
    actor: str
    reason: str
    at: When


# action -> icon, tone, words
_ACTIONS: Mapping[str, tuple[str, str, str]] = {
    "approved": ("check", "good", N_("Approved")),
    "auto_approved": ("check", "good", N_("Approved by an open sudo session")),
    "rejected": ("cross", "bad", N_("Rejected")),
    "denied": ("cross", "bad", N_("Denied")),
    "cancelled": ("cross", "calm", N_("Cancelled in the terminal")),
    "revoked": ("cross", "bad", N_("Sudo session revoked")),
    "extended": ("clock", "calm", N_("Sudo session extended")),
    "elevated": ("check", "good", N_("Sudo session opened without a request")),
    "rotated_breakglass": ("key", "calm", N_("Break-glass password rotated")),
    "rotation_requested": ("key", "calm", N_("Break-glass rotation requested")),
    "revealed_breakglass": ("key", "bad", N_("Break-glass password shown")),
    "breakglass_override": ("key", "bad", N_("Policy overridden")),
    "breakglass_used": ("key", "bad", N_("Break-glass password used")),
    "deployed": ("host", "calm", N_("Host set up")),
    "removed_host": ("host", "calm", N_("Host removed")),
    "user_removed": ("person", "bad", N_("User removed")),
    "config_changed": ("gear", "calm", N_("Configuration changed")),
    "server_restarted": ("gear", "calm", N_("Server restarted")),
    "claims_updated": ("person", "calm", N_("Permissions changed")),
    "sudo_rule_modified": ("gear", "calm", N_("Sudo rule changed")),
}


def activity_view(entry: HistoryEntry, caller: Caller, reading: Reading) -> ActivityView:
    icon, tone, words = _ACTIONS.get(entry.action, ("clock", "calm", N_("Other activity")))
    by_another = entry.actor and entry.actor != caller.username
    return ActivityView(
        icon=icon,
        tone=tone,
        label=reading.language.gettext(words),
        host=entry.hostname,
        actor=entry.actor if by_another else "",
        reason=entry.reason,
        at=when(entry.at, reading),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    """
    The page ``/``.

    :ivar approvable: of the caller's own requests, how many one press of approve-all would approve.
    :ivar rejectable: the caller's own requests.
    """

    requests: tuple[RequestView, ...]
    sessions: tuple[SessionView, ...]
    activity: tuple[ActivityView, ...]
    approvable: int
    rejectable: int
    grace_off: bool
    sees_all: bool

    @property
    def all_own(self) -> bool:
        return self.rejectable == len(self.requests)


def dashboard(
    caller: Caller,
    reading: Reading,
    *,
    pending: Sequence[Challenge],
    sessions: Sequence[GraceSession],
    history: Sequence[HistoryEntry],
    grace_period: timedelta,
    reason_required: bool,
    choices: Sequence[str],
    highlighted: str = "",
    obstacles: Mapping[str, Refused | None] | None = None,
    whos: Mapping[str, WhoMay] | None = None,
) -> Dashboard:
    """
    :param obstacles, whos: of the requests by their ids, as for :func:`request_view`.
    :param sessions: an admin's list is everybody's; the page shows the caller's own.
    :param highlighted: host whose session was just opened.
    """
    requests = tuple(
        request_view(
            challenge,
            caller,
            reading,
            reason_required=reason_required,
            choices=choices,
            obstacle=(obstacles or {}).get(challenge.id),
            who=(whos or {}).get(challenge.id),
        )
        for challenge in pending
        if challenge.live(reading.now)
    )
    own = [request for request in requests if request.own]
    return Dashboard(
        requests=requests,
        sessions=tuple(
            session_view(session, grace_period, reading, highlighted=session.shown_host == highlighted)
            for session in sessions
            if session.username == caller.username
        ),
        activity=tuple(activity_view(entry, caller, reading) for entry in history),
        approvable=sum(request.can_approve and request.reason_asked != "required" for request in own),
        rejectable=len(own),
        grace_off=grace_period <= timedelta(0),
        sees_all=caller.is_admin,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StateView:
    """
    What became of a request that somebody is looking at.

    :ivar kind: ``pending``, ``approved``, ``denied``, ``expired`` or ``cancelled``.
    """

    kind: str
    icon: str
    title: str
    text: str

    @property
    def over(self) -> bool:
        return self.kind != "pending"


def state_view(challenge: Challenge, caller: Caller, reading: Reading) -> StateView:
    """For a caller who may see the challenge."""
    _ = reading.language.gettext
    status = challenge.status
    if status is Status.PENDING and not challenge.live(reading.now):
        status = Status.EXPIRED
    if status is Status.APPROVED:
        by = challenge.approved_by
        title = _("Approved") if by == caller.username else _("Approved by %(name)s", name=by)
        return StateView(kind="approved", icon="check", title=title, text=_("sudo goes on in the terminal."))
    if status is Status.DENIED:
        by = challenge.denied_by
        title = _("Rejected") if by == caller.username else _("Rejected by %(name)s", name=by)
        said = challenge.deny_reason
        text = _("sudo was refused: %(reason)s", reason=said) if said else _("sudo was refused in the terminal.")
        return StateView(kind="denied", icon="cross", title=title, text=text)
    if status is Status.CANCELLED:
        return StateView(
            kind="cancelled",
            icon="cross",
            title=_("Cancelled in the terminal"),
            text=_("The person at the terminal gave up waiting. Nothing was approved."),
        )
    if status is Status.EXPIRED:
        return StateView(
            kind="expired",
            icon="clock",
            title=_("Time ran out"),
            text=_("Nobody decided in time. Run sudo again for a new code."),
        )
    return StateView(
        kind="pending",
        icon="clock",
        title=_("Waiting"),
        text=_("%(have)s of %(need)s approvals", have=len(challenge.approvals), need=challenge.required_approvals),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Banner:
    """:ivar kind: ``good``, ``bad`` or ``calm``."""

    kind: str
    icon: str
    text: str


Flash = tuple[str, Sequence[str]]
# Of what a script hands back for display, characters and items.
FLASHES_LENGTH = 1000
FLASHES_ITEMS = 16


def parse_flashes(text: str) -> list[Flash]:
    """``code:argument:...`` joined by commas, as the decision endpoints answer scripts."""
    items = (item.split(":") for item in text[:FLASHES_LENGTH].split(",")[:FLASHES_ITEMS])
    return [(code, tuple(arguments)) for code, *arguments in items if code]


def banners(flashes: Sequence[Flash], reading: Reading) -> tuple[Banner, ...]:
    """The flashes that the pages know, as sentences; others, and those with missing parts, are dropped."""
    made = (_banner(code, list(arguments), reading) for code, arguments in flashes)
    return tuple(banner for banner in made if banner is not None)


def highlighted(flashes: Sequence[Flash]) -> str:
    """The host of a ``highlight:user:host`` flash, or empty."""
    return next((arguments[1] for code, arguments in flashes if code == "highlight" and len(arguments) > 1), "")


def _number(text: str) -> int:
    """A count from a cookie; 0 for anything that is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 12 else 0


def _clock(text: str, reading: Reading) -> str:
    """A unix time as hours and minutes; empty when there is none."""
    seconds = _number(text)
    if not 0 < seconds < 253_402_300_800:  # year 10000
        return ""
    return reading.language.clock(datetime.fromtimestamp(seconds, UTC), reading.zone, reading.now)


def _banner(code: str, arguments: list[str], reading: Reading) -> Banner | None:
    language = reading.language
    _, many = language.gettext, language.ngettext
    arguments = [*arguments, "", "", ""]
    first, second, third = arguments[:3]
    if code == "expired":
        return Banner(kind="calm", icon="info", text=_("Your sign-in had ended, so you were asked to sign in again."))
    if not first:
        return None
    until = _clock(third, reading)
    text = ""
    if code == "approved":
        text = (
            _("Approved: sudo for %(user)s on %(host)s, open until %(time)s.", user=second, host=first, time=until)
            if until
            else _("Approved: sudo for %(user)s on %(host)s.", user=second, host=first)
        )
    elif code == "rejected":
        text = _("Rejected: sudo on %(host)s.", host=first)
    elif code == "revoked":
        text = _("Revoked: the sudo session of %(user)s on %(host)s has ended.", user=second, host=first)
    elif code == "extended":
        text = _(
            "Extended: the sudo session of %(user)s on %(host)s ends at %(time)s.", user=second, host=first, time=until
        )
    elif code == "elevated":
        text = _("Opened: sudo for %(user)s on %(host)s until %(time)s.", user=second, host=first, time=until)
    elif code == "approved_all":
        text = many("%(num)s request approved.", "%(num)s requests approved.", _number(first))
    elif code == "rejected_all":
        text = many("%(num)s request rejected.", "%(num)s requests rejected.", _number(first))
    elif code == "revoked_all":
        text = many("%(num)s sudo session revoked.", "%(num)s sudo sessions revoked.", _number(first))
    elif code == "extended_all":
        text = many(
            "%(num)s sudo session extended until %(time)s.",
            "%(num)s sudo sessions extended until %(time)s.",
            _number(first),
            time=_clock(second, reading),
        )
    elif code == "partial_approve":
        text = _(
            "Your approval of %(code)s counts: %(have)s of %(need)s.",
            code=first,
            have=_number(second),
            need=_number(third),
        )
    elif code == "withdrawn":
        text = _("Your approval of %(code)s is taken back.", code=first)
    elif code == "left_out":
        left = many("%(num)s request was left as it is", "%(num)s requests were left as they are", _number(first))
        return Banner(kind="calm", icon="info", text=_("%(left)s: a rule does not let you approve it.", left=left))
    elif code == "sudo_added":
        text = _("Added: the sudo rule of %(group)s.", group=first)
    elif code == "sudo_updated":
        text = _("Saved: the sudo rule of %(group)s.", group=first)
    elif code == "sudo_deleted":
        text = _("Deleted: the sudo rule of %(group)s.", group=first)
    elif code == "directory_refreshed":
        text = _("Refreshed: the directory is as its source has it now.")
    elif code == "directory_refreshing":
        return Banner(kind="calm", icon="clock", text=_("The refresh takes longer than usual. Look again in a minute."))
    elif code == "directory_not_refreshed":
        return Banner(kind="bad", icon="warning", text=_("The directory was not refreshed; the reason stands below."))
    elif code == "directory_other_loss":
        return Banner(kind="calm", icon="info", text=_("What waited for acceptance has changed. Look at it again."))
    elif code == "break_glass_override":
        text = _("Policy overridden: sudo for %(user)s on %(host)s is approved.", user=second, host=first)
    if not text:
        return None
    return Banner(kind="bad" if code == "break_glass_override" else "good", icon="check", text=text)
