"""View models of the policies page. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from identree.app.policies import Preview, Sight
from identree.core.explanation import Explanation
from identree.core.policy import DEFAULT, Policies, Policy
from identree.core.policywarnings import warnings
from identree.storage.interface import PolicyVersion
from identree.web import explanations
from identree.web.translations import SENTENCES
from identree.web.views import Banner, Flash, Reading, When, when

# Lines of a comparison that are shown.
MOST_LINES = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class FormView:
    """The fields of a form, as text. :ivar policy: whose; empty: a new one."""

    policy: str = ""
    name: str = ""
    description: str = ""
    match_hosts: str = ""
    match_host_groups: str = ""
    match_users: str = ""
    match_commands: str = ""
    unknown_command: str = ""
    require_admin: bool = False
    min_approvals: int = 1
    auto_approve_grace: bool = True
    allowed_hours: str = ""
    allowed_days: str = ""
    time_zone: str = ""
    notify_channels: str = ""
    require_fresh_oidc: str = ""
    break_glass_bypass: bool = False
    forbid_self_approval: bool = False
    approver_groups: str = ""
    max_grace: str = ""
    priority: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyView:
    """
    One policy.

    :ivar criteria: label and values of what it applies to; empty: everything.
    :ivar asks: sentences.
    :ivar up, down: its place after a move; None: it is there already.
    """

    name: str
    description: str
    place: int
    is_default: bool
    priority: int
    criteria: tuple[tuple[str, tuple[str, ...]], ...]
    asks: tuple[str, ...]
    channels: tuple[str, ...]
    warnings: tuple[str, ...]
    up: int | None
    down: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionView:
    number: int
    author: str
    note: str
    at: When
    current: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LineView:
    """Of a comparison. :ivar tone: ``good`` only in force now, ``bad`` only in the older one, ``calm`` in both."""

    tone: str
    sign: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PoliciesView:
    policies: tuple[PolicyView, ...]
    editable: bool
    version: int
    form: FormView
    history: tuple[VersionView, ...]
    older: VersionView | None
    comparison: tuple[LineView, ...]
    problem: str
    channels: tuple[str, ...]
    host_groups: tuple[str, ...]
    reading: Reading

    def said(self, flashes: Sequence[Flash]) -> tuple[Banner, ...]:
        """The messages of this page's forms; texts came through a cookie whose items end at commas."""
        return tuple(found for code, arguments in flashes if (found := _banner(code, arguments, self.reading)))


def _banner(code: str, arguments: Sequence[str], reading: Reading) -> Banner | None:
    _ = reading.language.gettext
    first = unquote(arguments[0]) if arguments else ""
    if code == "policy_error":
        return Banner(kind="bad", icon="warning", text=_("Nothing was changed. %(why)s", why=first))
    texts = {
        "policy_added": lambda: _("Added: the policy %(name)s.", name=first),
        "policy_updated": lambda: _("Saved: the policy %(name)s.", name=first),
        "policy_deleted": lambda: _("Deleted: the policy %(name)s.", name=first),
        "policy_moved": lambda: _("Moved: the policy %(name)s.", name=first),
        "policies_imported": lambda: _("Imported: %(count)s policies.", count=first),
        "policies_reverted": lambda: _("In force again: the policies of version %(number)s.", number=first),
    }
    return Banner(kind="good", icon="check", text=texts[code]()) if code in texts else None


def policies_view(
    reading: Reading,
    sight: Sight,
    *,
    editing: str,
    older: PolicyVersion | None,
    channels: Sequence[str],
    host_groups: Sequence[str] | None,
) -> PoliciesView:
    """:param editing: the name of the policy whose form is shown; empty: a new one."""
    policies = sight.policies
    found: dict[str, list[str]] = {}
    for warning in warnings(policies, channels=channels, host_groups=host_groups):
        found.setdefault(warning.policy, []).append(warning.text)
    written = list(policies.in_written_order)
    place = {policy.name: number for number, policy in enumerate(written)}
    shown = [policy for policy in policies if policy.name != DEFAULT]
    shown += [policy for policy in policies if policy.name == DEFAULT]
    edited = policies.get(editing) if editing else None
    return PoliciesView(
        policies=tuple(
            _policy(policy, place[policy.name], len(written), tuple(found.get(policy.name, ())), reading)
            for policy in shown
        ),
        editable=sight.editable,
        version=policies.version,
        form=_form(edited) if edited is not None else FormView(),
        history=tuple(_version(one, policies.version, reading) for one in sight.history),
        older=_version(older, policies.version, reading) if older is not None else None,
        comparison=_compared(older, policies) if older is not None else (),
        problem=sight.problem,
        channels=tuple(channels),
        host_groups=tuple(host_groups or ()),
        reading=reading,
    )


def _policy(policy: Policy, place: int, count: int, found: tuple[str, ...], reading: Reading) -> PolicyView:
    _ = reading.language.gettext
    criteria = (
        (_("Hosts"), tuple(glob.pattern for glob in policy.match_hosts)),
        (_("Host groups"), policy.match_host_groups),
        (_("Users"), tuple(glob.pattern for glob in policy.match_users)),
        (_("Commands"), tuple(glob.pattern for glob in policy.match_commands)),
    )
    is_default = policy.name == DEFAULT
    asked = Explanation(asks=policy.asked())
    return PolicyView(
        name=policy.name,
        description=policy.description,
        place=place,
        is_default=is_default,
        priority=policy.priority,
        criteria=() if is_default else tuple((label, values) for label, values in criteria if values),
        asks=explanations.asks(asked, reading.language),
        channels=policy.notify_channels,
        warnings=found,
        up=place - 1 if place > 0 and not is_default else None,
        down=place + 1 if place < count - 1 and not is_default else None,
    )


def _form(policy: Policy) -> FormView:
    written = policy.written

    def text(key: str) -> str:
        value = written.get(key, "")
        return ", ".join(value) if isinstance(value, list) else str(value)

    return FormView(
        policy=policy.name,
        name=policy.name,
        description=policy.description,
        match_hosts=text("match_hosts"),
        match_host_groups=text("match_host_groups"),
        match_users=text("match_users"),
        match_commands=text("match_commands"),
        unknown_command=text("unknown_command"),
        require_admin=policy.require_admin,
        min_approvals=policy.min_approvals,
        auto_approve_grace=policy.auto_approve_grace,
        allowed_hours=text("allowed_hours"),
        allowed_days=text("allowed_days"),
        time_zone=text("time_zone"),
        notify_channels=text("notify_channels"),
        require_fresh_oidc=text("require_fresh_oidc"),
        break_glass_bypass=policy.break_glass_bypass,
        forbid_self_approval=policy.forbid_self_approval,
        approver_groups=text("approver_groups"),
        max_grace=text("max_grace"),
        priority=text("priority"),
    )


def _version(saved: PolicyVersion, current: int, reading: Reading) -> VersionView:
    return VersionView(
        number=saved.version,
        author=saved.author,
        note=saved.note,
        at=when(saved.at, reading),
        current=saved.version == current,
    )


def _compared(older: PolicyVersion, policies: Policies) -> tuple[LineView, ...]:
    lines = []
    for line in difflib.ndiff(older.document.splitlines(), policies.to_json().splitlines()):
        if line.startswith("?"):
            continue
        tone = {"-": "bad", "+": "good"}.get(line[:1], "calm")
        lines.append(LineView(tone=tone, sign=line[:1].strip(), text=line[2:]))
    return tuple(lines[:MOST_LINES])


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonView:
    """:ivar why_not: a sentence; empty: this approval would count."""

    name: str
    why_not: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewView:
    policy: str
    because: tuple[str, ...]
    asks: tuple[str, ...]
    people: tuple[PersonView, ...] | None
    more: int


def preview_view(reading: Reading, preview: Preview) -> PreviewView:
    explanation = preview.requirement.explanation
    people = None
    if preview.people is not None:
        people = tuple(
            PersonView(name=name, why_not=reading.language.gettext(SENTENCES[key].title) if key in SENTENCES else key)
            for name, key in preview.people
        )
    return PreviewView(
        policy=preview.requirement.policy_name,
        because=explanations.because(explanation, reading.language),
        asks=explanations.asks(explanation, reading.language),
        people=people,
        more=preview.more,
    )
