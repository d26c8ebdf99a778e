"""
Everything about one account or group, and about every sudo rule, with the reason why it applies or not: what an
administrator asks when somebody cannot log in or cannot use sudo.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from identree.directory.accounts import full_name, home, member_groups, shell, ssh_keys
from identree.directory.build import Built, Group, Person, RuleReport
from identree.directory.eligibility import Withheld
from identree.directory.ids import Numbers
from identree.directory.layout import Layout
from identree.directory.source import Source
from identree.directory.sudo import Verdict

# People of one group that the text names; the rest is counted.
NAMES_IN_TEXT = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """
    :ivar via: names of the groups through which a nested membership comes, outermost first; empty for a direct one.
    """

    group: str
    gid: int
    via: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountExplained:
    """
    A person as hosts see the account.

    :ivar private_group: whether the primary group has an entry.
    :ivar key_fingerprints: as ``ssh-keygen -l`` prints them, with the key's type; never the keys.
    :ivar hosts: values of ``host``.
    """

    username: str
    source_id: str
    full_name: str
    uid: int
    gid: int
    home: str
    shell: str
    disabled: bool
    private_group: bool
    key_fingerprints: tuple[str, ...]
    hosts: tuple[str, ...]
    groups: tuple[Membership, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupExplained:
    """
    :ivar members: user names, as served.
    :ivar not_members: people of the group who are not served as members, and why, as (name, key); the keys are
        ``disabled`` and those of :data:`~identree.directory.eligibility.WITHHELD_MESSAGES`.
    """

    name: str
    source_id: str
    gid: int
    hosts: tuple[str, ...]
    members: tuple[str, ...]
    not_members: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleExplained:
    """
    A sudo rule, seen from the name that was asked for.

    :ivar applies: whether the account, or the people of the group, have it.
    :ivar why: key of :data:`REASONS`.
    :ivar via: the groups through which it comes, outermost first.
    :ivar verdicts: what of the rule is not served.
    """

    report: RuleReport
    applies: bool
    why: str
    via: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.report.name

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        return self.report.checked.verdicts


REASONS = {
    "member": "the account is a member of the group",
    "nested_member": "the account is a member of a group in the group",
    "group": "it is the group's rule",
    "host_group": "it holds for whoever is in the group on the host",
    "not_member": "the account is not a member of the group",
    "other_group": "it is another group's rule",
    "disabled": "the account is disabled",
    "no_account": "there is no such account",
    "not_served": "the rule is not served",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """
    :ivar name: as it was asked for; found without regard to case, as hosts find it.
    :ivar account: None when no account of this name is served.
    :ivar group: None when no group of this name is served; private groups are told with their account.
    :ivar rules: every rule that was written, in the order of the source.
    :ivar withheld: what has this name or id in the source, but no entry.
    """

    name: str
    bridge: bool
    account: AccountExplained | None
    group: GroupExplained | None
    rules: tuple[RuleExplained, ...]
    withheld: tuple[Withheld, ...]

    @property
    def found(self) -> bool:
        """Whether the name means anything here."""
        return bool(self.account or self.group or self.withheld or any(rule.applies for rule in self.rules))


def explain(name: str, source: Source, numbers: Numbers, layout: Layout, built: Built) -> Explanation:
    """
    Tell about a user name or group name, or an id of the source.

    :param built: made from ``source``, ``numbers`` and ``layout``.
    """
    wanted = name.lower()
    person = next(
        (one for one in built.people.values() if one.user.id == name or one.user.username.lower() == wanted), None
    )
    group = next((one for one in built.groups.values() if one.group.id == name or one.group.name == wanted), None)
    parents = _parents(layout, built)
    withheld = tuple(item for item in built.withheld if item.name.lower() == wanted or item.source_id == name)
    return Explanation(
        name=name,
        bridge=built.bridge,
        account=_account(person, numbers, layout, built, parents) if person is not None else None,
        group=_group(group, source, built) if group is not None else None,
        rules=tuple(_rule(report, wanted, person, group, built, parents) for report in built.rules),
        withheld=withheld,
    )


def _parents(layout: Layout, built: Built) -> dict[str, list[Group]]:
    """By group name, the groups that name it in ``memberGroups``."""
    parents: dict[str, list[Group]] = {}
    if layout.nested_groups:
        for group in built.groups.values():
            for child in member_groups(group.group.claims):
                parents.setdefault(child, []).append(group)
    return parents


def _account(
    person: Person, numbers: Numbers, layout: Layout, built: Built, parents: dict[str, list[Group]]
) -> AccountExplained:
    user = person.user
    groups = () if user.disabled else tuple(_memberships(person, built, parents))
    return AccountExplained(
        username=user.username,
        source_id=user.id,
        full_name=full_name(user),
        uid=numbers.uids[user.id],
        gid=numbers.gids[user.id],
        home=home(user, layout),
        shell=shell(user, layout),
        disabled=user.disabled,
        private_group=person.private is not None,
        key_fingerprints=() if user.disabled else tuple(map(fingerprint, ssh_keys(user.claims))),
        hosts=tuple(host.decode() for host in person.hosts),
        groups=groups,
    )


def _memberships(person: Person, built: Built, parents: dict[str, list[Group]]) -> Iterable[Membership]:
    paths = _paths(person, built, parents)
    for group in built.groups.values():
        if person.user.id in group.member_ids:
            via = paths.get(group.group.id, ())
            yield Membership(group=group.group.name, gid=group.gid, via=via)


def _paths(person: Person, built: Built, parents: dict[str, list[Group]]) -> dict[str, tuple[str, ...]]:
    """By id of each group that the person is in: the shortest way down to a group that lists the person."""
    paths: dict[str, tuple[str, ...]] = {}
    level = [group for group in built.groups.values() if person.user.id in group.group.member_ids]
    paths.update((group.group.id, ()) for group in level)
    while level:
        above: list[Group] = []
        for child in level:
            for parent in parents.get(child.group.name, ()):
                if parent.group.id not in paths:
                    paths[parent.group.id] = (child.group.name, *paths[child.group.id])
                    above.append(parent)
        level = above
    return paths


def _group(group: Group, source: Source, built: Built) -> GroupExplained:
    by_id = {user.id: user for user in source.users}
    reasons = {item.source_id: item.key for item in built.withheld}
    others: list[tuple[str, str]] = []
    for id in dict.fromkeys(group.member_ids):
        user = by_id.get(id)
        if user is None:
            continue
        if id not in built.people:
            others.append((user.username, reasons.get(id, "no_number")))
        elif user.disabled:
            others.append((user.username, "disabled"))
    return GroupExplained(
        name=group.group.name,
        source_id=group.group.id,
        gid=group.gid,
        hosts=group.hosts,
        members=tuple(name.decode() for name in group.names),
        not_members=tuple(others),
    )


def _rule(
    report: RuleReport,
    wanted: str,
    person: Person | None,
    group: Group | None,
    built: Built,
    parents: dict[str, list[Group]],
) -> RuleExplained:
    def told(applies: bool, why: str, via: tuple[str, ...] = ()) -> RuleExplained:
        return RuleExplained(report=report, applies=applies and report.served, why=why, via=via)

    if not report.served:
        return told(False, "not_served")
    if built.bridge:
        return told(True, "host_group") if report.name == wanted else told(False, "other_group")
    owner = built.groups.get(report.source_id)
    if person is not None and owner is not None:
        if person.user.disabled:
            return told(False, "disabled")
        if person.user.id not in owner.member_ids:
            return told(False, "not_member")
        via = _paths(person, built, parents).get(owner.group.id, ())
        return told(True, "nested_member", via) if via else told(True, "member")
    if group is not None:
        return told(True, "group") if group is owner else told(False, "other_group")
    return told(False, "no_account")


def fingerprint(key: bytes) -> str:
    """A key's type and SHA-256 fingerprint, or ``unreadable`` in its place."""
    type, _, rest = key.partition(b" ")
    try:
        blob = base64.b64decode(rest.split(None, 1)[0], validate=True)
    except (ValueError, IndexError):
        return f"{type.decode()} unreadable"
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    return f"{type.decode()} SHA256:{digest}"


def text(explanation: Explanation) -> str:
    """The explanation for a terminal: lines of English, with a newline at the end."""
    lines: list[str] = []
    if explanation.account is not None:
        lines += _account_lines(explanation.account)
    if explanation.group is not None:
        lines += _group_lines(explanation.group)
    if explanation.bridge:
        lines.append("bridge mode: people and groups are in another directory, only sudo rules are here")
    for item in explanation.withheld:
        lines.append(f"not served: {item.kind.value} {_shown(item.name)} (id {_shown(item.source_id)}): {item.text()}")
    if not explanation.found:
        lines.append(f"nothing here is called {_shown(explanation.name)}")
    if explanation.rules:
        lines.append("sudo rules:")
        for rule in explanation.rules:
            lines += _rule_lines(rule)
    else:
        lines.append("sudo rules: none")
    return "\n".join(lines) + "\n"


def _account_lines(account: AccountExplained) -> Iterable[str]:
    yield f"account {account.username} (id {_shown(account.source_id)})"
    yield f"  name: {_shown(account.full_name)}"
    yield f"  state: {'disabled, hosts deny it' if account.disabled else 'active'}"
    primary = "private group" if account.private_group else "without an entry, see below"
    yield f"  uid {account.uid}, gid {account.gid} ({primary})"
    yield f"  home {_shown(account.home)}, shell {account.shell}"
    yield f"  hosts: {', '.join(account.hosts) or 'none named'}"
    yield "  groups:" if account.groups else "  groups: none"
    for membership in account.groups:
        yield f"    {membership.group} ({membership.gid}){_via(membership.via)}"
    yield "  keys:" if account.key_fingerprints else "  keys: none"
    for key in account.key_fingerprints:
        yield f"    {key}"


def _group_lines(group: GroupExplained) -> Iterable[str]:
    yield f"group {group.name} (id {_shown(group.source_id)})"
    yield f"  gid {group.gid}"
    yield f"  opens hosts: {', '.join(group.hosts) or 'none named'}"
    more = len(group.members) - NAMES_IN_TEXT
    names = ", ".join(group.members[:NAMES_IN_TEXT]) + (f" and {more} more" if more > 0 else "")
    yield f"  members: {names or 'none'}"
    for name, why in group.not_members[:NAMES_IN_TEXT]:
        yield f"  not a member: {_shown(name)}: {why}"
    if len(group.not_members) > NAMES_IN_TEXT:
        yield f"  not members: {len(group.not_members) - NAMES_IN_TEXT} more"


def _rule_lines(rule: RuleExplained) -> Iterable[str]:
    state = "applies" if rule.applies else "does not apply"
    yield f"  {_shown(rule.name)}: {state}: {REASONS[rule.why]}{_via(rule.via)}"
    grant = rule.report.checked.grant
    if grant is not None and rule.report.served:
        yield f"    commands: {_shown(', '.join(grant.commands))}"
        yield f"    on hosts: {', '.join(grant.hosts)}; as users: {', '.join(grant.run_as_users)}"
        if grant.run_as_groups:
            yield f"    as groups: {', '.join(grant.run_as_groups)}"
        if grant.options:
            yield f"    options: {_shown(', '.join(grant.options))}"
        if grant.not_before or grant.not_after:
            yield f"    from {grant.not_before or 'always'} to {grant.not_after or 'always'}"
    for verdict in rule.verdicts:
        effect = "refuses the rule" if verdict.refuses else "left out"
        yield f"    {verdict.field}: {_shown(verdict.text())} ({effect})"


def _via(via: tuple[str, ...]) -> str:
    return f" through {' and '.join(via)}" if via else ""


def _shown(text: str) -> str:
    """Without what could move a terminal's cursor or turn its text."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
