"""
From a source to entries: everything that is served, in its order, and everything that is not, with the reason.

Builds are generators, so that 100,000 people never hold the reactor, and incremental: whatever is as it was in the last
build has the identical draft object, so that the stamps and the snapshot after it see at once what changed.
"""

from __future__ import annotations

import operator
from collections import ChainMap
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import cast

from identree.directory.accounts import (
    access_hosts,
    group_dn,
    group_draft,
    member_groups,
    person_dn,
    person_draft,
    private_group_draft,
)
from identree.directory.draft import Draft, Kind
from identree.directory.eligibility import (
    RESERVED_RULE_NAME,
    Judgement,
    Withheld,
    has_private_group,
    judge,
)
from identree.directory.ids import Numbers
from identree.directory.layout import Layout
from identree.directory.slices import ITEMS_AT_A_TIME, SLICE, copied
from identree.directory.source import Source, SourceGroup, SourceUser
from identree.directory.sudo import (
    ITEMS_PER_CLAIM,
    Checked,
    SudoRule,
    Verdict,
    check,
    group_verdicts,
    role_draft,
    rule_of_claims,
)

# Levels of groups in groups; whoever nests deeper does it by mistake.
MAX_NESTING = 16

# Costs in units of SLICE, about a microsecond.
_PERSON_WORK = 60
_GROUP_WORK = 60
_RULE_WORK = 150


@dataclass(frozen=True, slots=True, eq=False)
class Person:
    """
    One person in a build.

    :ivar name: user name, shared with the entries that list it.
    :ivar dn: likewise.
    """

    user: SourceUser
    uid: int
    gid: int
    name: bytes
    dn: bytes
    hosts: tuple[bytes, ...]
    groups: tuple[bytes, ...]
    entry: Draft
    private: Draft | None


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """
    One group in a build.

    :ivar member_ids: of its own and, with nesting, its groups' people; ids of nobody may be among them.
    :ivar names: user names of those that count, as in the entry.
    :ivar hosts: claim ``accessHosts``.
    :ivar checked: its sudo rule, None without one.
    """

    group: SourceGroup
    gid: int
    member_ids: tuple[str, ...]
    names: tuple[bytes, ...]
    dn: bytes
    hosts: tuple[str, ...]
    checked: Checked | None
    entry: Draft


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleReport:
    """
    A sudo rule, served or not.

    :ivar name: of the group.
    :ivar source_id: of the group; its name for a rule of a file.
    :ivar rule: as it was written.
    :ivar checked: its valid part and what is not valid.
    :ivar draft: the entry; None when it is not served.
    """

    name: str
    source_id: str
    rule: SudoRule
    checked: Checked
    draft: Draft | None

    @property
    def served(self) -> bool:
        return self.draft is not None


class _Users(Mapping[str, SourceUser]):
    """What the people of a build are at the source, by id."""

    __slots__ = ("_people",)

    def __init__(self, people: Mapping[str, Person]) -> None:
        self._people = people

    def __getitem__(self, id: str) -> SourceUser:
        return self._people[id].user

    def __contains__(self, id: object) -> bool:
        return id in self._people

    def __iter__(self) -> Iterator[str]:
        return iter(self._people)

    def __len__(self) -> int:
        return len(self._people)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Built:
    """
    A build. The next one takes it to find what did not change; it never changes it.

    :ivar drafts: the base entry, people, groups, private groups, rules; each container before what is in it.
    :ivar withheld: what has no entry, and why.
    :ivar rules: every sudo rule that was written, in source order.
    :ivar people: by source id.
    :ivar groups: by source id, without private groups.
    :ivar source: equal to the one it was built from, and made of the last one's objects where these are equal; who
        keeps a source for long should keep this one, so that memory has everybody once.
    :ivar numbers: as given.
    :ivar judged: who has an entry, by the objects of ``source``.
    :ivar fixed: the base entry and the containers.
    """

    layout: Layout
    bridge: bool = False
    drafts: tuple[Draft, ...]
    withheld: tuple[Withheld, ...] = ()
    rules: tuple[RuleReport, ...] = ()
    people: Mapping[str, Person] = field(default_factory=dict)
    groups: Mapping[str, Group] = field(default_factory=dict)
    source: Source = field(default_factory=Source)
    numbers: Numbers = field(default_factory=lambda: Numbers(uids={}, gids={}))
    judged: Judgement = field(default_factory=lambda: Judgement(people={}, groups={}, withheld=()))
    fixed: tuple[Draft, Draft, Draft, Draft]


def build(
    source: Source, numbers: Numbers, layout: Layout, previous: Built | None = None
) -> Generator[None, None, Built]:
    """
    All entries of full mode.

    :param previous: the build that is served; of another layout or mode it is of no use, and ignored.
    :raise ValueError: the base DN is none.
    """
    before = previous if previous is not None and previous.layout == layout and not previous.bridge else None
    old_people: Mapping[str, Person] = before.people if before else {}
    old_groups: Mapping[str, Group] = before.groups if before else {}
    bis = layout.schema == "rfc2307bis"
    uids, gids = numbers.uids, numbers.gids
    judged, changed, users = yield from _judged(source, numbers, before)

    # Who is new or changed, and whose membership looks different: only these concern groups.
    fresh: dict[str, tuple[bytes, bytes]] = {}
    moved: set[str] = set()
    known = work = 0
    for id, user in judged.people.items() if changed is None else changed.items():
        work += 1
        if work >= SLICE:
            work = 0
            yield
        person = old_people.get(id)
        if person is not None:
            known += 1
            if (person.user is user or person.user == user) and person.uid == uids[id] and person.gid == gids[id]:
                continue
            if person.user.username == user.username:
                fresh[id] = (person.name, person.dn)
                if person.user.disabled != user.disabled:
                    moved.add(id)
                continue
        work += 2
        fresh[id] = (user.username.encode(), person_dn(user.username, layout).encode())
        moved.add(id)
    if changed is None and known != len(old_people):
        for id in old_people:
            work += 1
            if work >= SLICE:
                work = 0
                yield
            if id not in judged.people:
                moved.add(id)

    # Groups, and whose hosts or memberships may be others for it.
    expanded = yield from _expand(judged.groups, layout)
    groups: dict[str, Group] = {}
    affected: set[str] = set()
    for id, group in judged.groups.items():
        old = old_groups.get(id)
        member_ids = expanded.get(id, group.member_ids)
        gid = gids[id]
        work += 10 + len(member_ids) // 20
        if work >= SLICE:
            work = 0
            yield
        if (
            old is not None
            and old.gid == gid
            and (old.group is group or old.group == group)
            and old.member_ids == member_ids
            and not (yield from _meets(moved, member_ids))
        ):
            groups[id] = old
            continue
        names: list[bytes] = []
        dns: list[bytes] = []
        for member in dict.fromkeys(member_ids):
            work += 1
            if work >= SLICE:
                work = 0
                yield
            user_or_none = judged.people.get(member)
            if user_or_none is None or user_or_none.disabled:
                continue
            name, dn = fresh[member] if member in fresh else (old_people[member].name, old_people[member].dn)
            names.append(name)
            dns.append(dn)
        made = yield from _group(group, gid, member_ids, names, dns, layout, old)
        groups[id] = made
        work = 0
        if made.hosts or (old is not None and old.hosts) or bis:
            for ids in (old.member_ids if old is not None else (), member_ids):
                yield from _update(affected, ids)
    for id, old in old_groups.items():
        if id not in groups and (old.hosts or bis):
            yield from _update(affected, old.member_ids)
    yield from _update(affected, fresh)

    hosts, memberships = yield from _of_people(affected, judged.people, groups, layout)

    # People and their private groups.
    people: dict[str, Person] = {} if changed is None else (yield from copied(old_people))
    for id in judged.people if changed is None else affected:
        work += 1
        if work >= SLICE:
            work = 0
            yield
        person = old_people.get(id)
        if id in affected:
            one = judged.people.get(id)
            if one is None:
                continue
            mine, member_of = hosts.get(id, ()), memberships.get(id, ())
            pair = fresh.get(id)
            if pair is None and person is not None and (person.hosts != mine or person.groups != member_of):
                pair = (person.name, person.dn)
            if pair is not None:
                work += _PERSON_WORK
                person = _person(one, numbers, pair, mine, member_of, layout, person)
        assert person is not None
        people[id] = person
    yield
    entries: list[Draft] = []
    private: list[Draft] = []
    rest = iter(people.values())
    while some := tuple(islice(rest, ITEMS_AT_A_TIME)):
        entries += [person.entry for person in some]
        private += [person.private for person in some if person.private is not None]
        yield

    reports = yield from _reports(source, groups, layout, before)
    kept, judged = yield from _canonical(source, judged, users, people, groups)
    fixed = root, people_ou, groups_ou, sudoers_ou = _fixed(layout, before)
    drafts = [root, people_ou, *entries, groups_ou]
    yield
    drafts += (made.entry for made in groups.values())
    drafts += private
    drafts.append(sudoers_ou)
    drafts += (report.draft for report in reports if report.draft is not None)
    yield
    return Built(
        layout=layout,
        drafts=tuple(drafts),
        withheld=(*judged.withheld, *_refused(reports)),
        rules=tuple(reports),
        people=people,
        groups=groups,
        source=kept,
        numbers=numbers,
        judged=judged,
        fixed=fixed,
    )


def _judged(
    source: Source, numbers: Numbers, before: Built | None
) -> Generator[None, None, tuple[Judgement, dict[str, SourceUser] | None, list[SourceUser]]]:
    """
    The judgement; those of its people who changed, by id; and the source's users, with the last build's objects in the
    place of their equals. Names, times of creation and numbers decide who has an entry: while they are as they were, so
    is the judgement. Otherwise it is made anew, anybody may have changed (None), and the users are left empty.
    """

    def anew() -> Generator[None, None, tuple[Judgement, dict[str, SourceUser] | None, list[SourceUser]]]:
        return (yield from judge(source, numbers.uids, numbers.gids)), None, []

    if (
        before is None
        or numbers.uids is not before.numbers.uids
        or numbers.gids is not before.numbers.gids
        or len(source.users) != len(before.source.users)
        or len(source.groups) != len(before.source.groups)
    ):
        return (yield from anew())
    changed: dict[str, SourceUser] = {}
    users: list[SourceUser] = []
    work = 0
    for start in range(0, len(source.users), ITEMS_AT_A_TIME // 10):
        some = source.users[start : start + ITEMS_AT_A_TIME // 10]
        others = before.source.users[start : start + ITEMS_AT_A_TIME // 10]
        work += 50
        if work >= SLICE:
            work = 0
            yield
        if some == others:
            users += others
            continue
        yield
        for user, old in zip(some, others, strict=True):
            if user is old or user == old:
                users.append(old)
                continue
            if (user.id, user.username, user.created_at) != (old.id, old.username, old.created_at):
                return (yield from anew())
            users.append(user)
            if before.judged.people.get(old.id) is old:
                changed[user.id] = user
    groups: dict[str, SourceGroup] = {}
    for group, old_group in zip(source.groups, before.source.groups, strict=True):
        if (group.id, group.name, group.created_at) != (old_group.id, old_group.name, old_group.created_at):
            return (yield from anew())
        if before.judged.groups.get(group.id) is old_group:
            groups[group.id] = group
    yield
    people = before.judged.people
    if changed:
        people = ChainMap(changed, cast("dict[str, SourceUser]", people))
    return Judgement(people=people, groups=groups, withheld=before.judged.withheld), changed, users


def _reports(
    source: Source, groups: Mapping[str, Group], layout: Layout, before: Built | None
) -> Generator[None, None, list[RuleReport]]:
    """Every rule that a group has; positions count those that are served."""
    old_reports = {report.source_id: report for report in before.rules} if before else {}
    old_groups: Mapping[str, Group] = before.groups if before else {}
    reports: list[RuleReport] = []
    seen: set[str] = set()
    position = 1
    work = 0
    for group in source.groups:
        work += 4
        if work >= SLICE:
            work = 0
            yield
        if group.id in seen:
            continue
        seen.add(group.id)
        served = groups.get(group.id)
        if served is not None:
            if served.checked is None:
                continue
            work += _RULE_WORK
            same = served is old_groups.get(group.id)
            report = _report(served, position, layout, old_reports.get(group.id), same)
            position += report.served
            reports.append(report)
            continue
        rule = rule_of_claims(group.name, group.claims)
        if rule is not None:
            work += _RULE_WORK
            verdicts = check(rule, layout.sudo_no_authenticate, ITEMS_PER_CLAIM).verdicts
            withheld = Verdict(field="group", item=group.name, key="sudo_group_withheld", refuses=True)
            checked = Checked(grant=None, verdicts=(withheld, *verdicts))
            reports.append(RuleReport(name=group.name, source_id=group.id, rule=rule, checked=checked, draft=None))
    return reports


def _canonical(
    source: Source,
    judged: Judgement,
    users: list[SourceUser],
    people: Mapping[str, Person],
    groups: Mapping[str, Group],
) -> Generator[None, None, tuple[Source, Judgement]]:
    """The source and the judgement, with the objects that the build keeps in the place of their equals."""
    work = 0
    if not users:
        for user in source.users:
            work += 1
            if work >= SLICE * 2:
                work = 0
                yield
            if judged.people.get(user.id) is user:
                user = people[user.id].user
            users.append(user)
    kept: list[SourceGroup] = []
    mine: dict[str, SourceGroup] = {}
    for group in source.groups:
        work += 10
        if work >= SLICE * 2:
            work = 0
            yield
        if judged.groups.get(group.id) is group:
            group = mine[group.id] = groups[group.id].group
        kept.append(group)
    yield
    same_users = yield from _identical(users, source.users)
    yield
    whole = Source(users=source.users if same_users else tuple(users), groups=tuple(kept))
    return whole, Judgement(people=_Users(people), groups=mine, withheld=judged.withheld)


def _identical(these: Sequence[object], those: Sequence[object]) -> Generator[None, None, bool]:
    """Whether they are the same objects; both have one length."""
    for start in range(0, len(these), ITEMS_AT_A_TIME):
        yield
        end = start + ITEMS_AT_A_TIME
        if not all(map(operator.is_, these[start:end], those[start:end])):
            return False
    return True


def build_bridge(
    rules: Sequence[SudoRule], layout: Layout, previous: Built | None = None
) -> Generator[None, None, Built]:
    """
    All entries of bridge mode: the rules, each for the group of its name as the hosts know it.

    :raise ValueError: the base DN is none.
    """
    before = previous if previous is not None and previous.layout == layout and previous.bridge else None
    fixed = root, _, _, sudoers_ou = _fixed(layout, before)
    # of several rules for one group the first is the one that may be served
    old_reports = {report.name: report for report in reversed(before.rules)} if before else {}
    reports: list[RuleReport] = []
    withheld: list[Withheld] = []
    names: set[str] = set()
    position = 1
    for rule in rules:
        yield
        name = rule.group
        old = old_reports.get(name)
        if old is not None and old.rule == rule:
            checked = old.checked
        else:
            old = None
            checked = check(rule, layout.sudo_no_authenticate)
            problems = group_verdicts(name)
            if problems:
                checked = Checked(grant=None, verdicts=(*problems, *checked.verdicts))
        draft = None
        if name in names:
            withheld.append(Withheld(kind=Kind.ROLE, source_id=name, name=name, key="rule_name_taken"))
        elif checked.grant is not None:
            draft = role_draft(layout, f"rule:{name}", name, (f"%{name}".encode(),), checked.grant, position)
            if old is not None and old.draft == draft:
                draft = old.draft
            position += 1
        names.add(name)
        reports.append(RuleReport(name=name, source_id=name, rule=rule, checked=checked, draft=draft))
    drafts = (root, sudoers_ou, *(report.draft for report in reports if report.draft is not None))
    return Built(
        layout=layout,
        bridge=True,
        drafts=drafts,
        withheld=(*withheld, *_refused(reports)),
        rules=tuple(reports),
        fixed=fixed,
    )


def _refused(reports: Iterable[RuleReport]) -> Iterable[Withheld]:
    for report in reports:
        reasons = [verdict.text() for verdict in report.checked.verdicts if verdict.refuses]
        if not report.served and reasons:
            yield Withheld(
                kind=Kind.ROLE,
                source_id=report.source_id,
                name=report.name,
                key="rule_not_served",
                other="; ".join(reasons),
            )


def _fixed(layout: Layout, before: Built | None) -> tuple[Draft, Draft, Draft, Draft]:
    """The base entry and the containers; of one layout they are always the same."""
    if before is not None:
        return before.fixed
    return (
        _root(layout),
        _container("people", layout.people_dn),
        _container("groups", layout.groups_dn),
        _container("sudoers", layout.sudoers_dn),
    )


def _root(layout: Layout) -> Draft:
    """
    The base entry. An entry must have what names it: with ``dc`` it is a dcObject and with ``o`` an organization, while
    another type comes in through extensibleObject.
    """
    base = layout.base_dn.encode()
    classes, named, organizations = [b"top"], [], [base]
    for type, value in layout.first_rdn():
        if type == "dc":
            classes.append(b"dcObject")
            named.append(("dc", (value.encode(),)))
        elif type == "o":
            if value.encode() != base:
                organizations.insert(0, value.encode())
        else:
            classes.append(b"extensibleObject")
            named.append((type, (value.encode(),)))
    attributes = (
        ("objectClass", (*dict.fromkeys(classes), b"organization")),
        *named,
        ("o", tuple(organizations)),
        ("namingContexts", (base,)),
    )
    return Draft(Kind.ROOT, "root", layout.base_dn, attributes)


def _container(name: str, dn: str) -> Draft:
    attributes = (("objectClass", (b"top", b"organizationalUnit")), ("ou", (name.encode(),)))
    return Draft(Kind.CONTAINER, f"container:{name}", dn, attributes)


def _meets(moved: set[str], ids: tuple[str, ...]) -> Generator[None, None, bool]:
    """Whether any of the ids moved."""
    if not moved:
        return False
    if len(ids) <= ITEMS_AT_A_TIME:
        return not moved.isdisjoint(ids)
    rest = iter(ids)
    while some := tuple(islice(rest, ITEMS_AT_A_TIME)):
        if not moved.isdisjoint(some):
            return True
        yield
    return False


def _among(wanted: set[str], ids: tuple[str, ...]) -> Generator[None, None, set[str]]:
    """Those of the ids that are wanted."""
    if len(ids) <= ITEMS_AT_A_TIME:
        return wanted.intersection(ids)
    found: set[str] = set()
    for start in range(0, len(ids), ITEMS_AT_A_TIME):
        found |= wanted.intersection(ids[start : start + ITEMS_AT_A_TIME])
        yield
    return found


def _update(into: set[str], ids: Iterable[str]) -> Generator[None, None, None]:
    rest = iter(ids)
    while some := tuple(islice(rest, ITEMS_AT_A_TIME)):
        into.update(some)
        yield


def _expand(groups: Mapping[str, SourceGroup], layout: Layout) -> Generator[None, None, dict[str, tuple[str, ...]]]:
    """
    By group id, the members of groups that have groups in them: their own first, then those of each named group in the
    claim's order, and so on. A group met again on the way, as in a cycle, adds nothing more.
    """
    expanded: dict[str, tuple[str, ...]] = {}
    if not layout.nested_groups:
        return expanded
    children = {group.id: names for group in groups.values() if (names := member_groups(group.claims))}
    by_name = {group.name: group for group in groups.values()}
    yield
    for id in children:
        members: dict[str, None] = {}
        seen = {id}
        level = [groups[id]]
        for _ in range(MAX_NESTING):
            below: list[SourceGroup] = []
            for group in level:
                rest = iter(group.member_ids)
                while some := tuple(islice(rest, ITEMS_AT_A_TIME)):
                    members.update(dict.fromkeys(some))
                    yield
                for name in children.get(group.id, ()):
                    child = by_name.get(name)
                    if child is not None and child.id not in seen:
                        seen.add(child.id)
                        below.append(child)
            level = below
            if not level:
                break
        expanded[id] = tuple(members)
        yield
    return expanded


def _group(
    group: SourceGroup,
    gid: int,
    member_ids: tuple[str, ...],
    names: list[bytes],
    dns: list[bytes],
    layout: Layout,
    old: Group | None,
) -> Generator[None, None, Group]:
    yield
    rule = rule_of_claims(group.name, group.claims)
    checked = None
    if rule is not None:
        checked = check(rule, layout.sudo_no_authenticate, ITEMS_PER_CLAIM)
        extra: list[Verdict] = []
        if group.name == RESERVED_RULE_NAME:
            extra.append(Verdict(field="group", item=group.name, key="sudo_defaults_group", refuses=True))
        if not names:
            extra.append(Verdict(field="group", item=group.name, key="sudo_no_members", refuses=True))
        if extra:
            checked = Checked(grant=None, verdicts=(*extra, *checked.verdicts))
    yield
    # the entry and the rule share the names
    shared = tuple(names)
    entry = group_draft(group, gid, shared, dns, layout)
    if old is not None and old.entry == entry:
        entry = old.entry
    yield
    return Group(
        group=group,
        gid=gid,
        member_ids=member_ids,
        names=shared,
        dn=group_dn(group.name, layout).encode(),
        hosts=access_hosts(group.claims),
        checked=checked,
        entry=entry,
    )


def _of_people(
    affected: set[str], people: Mapping[str, SourceUser], groups: Mapping[str, Group], layout: Layout
) -> Generator[None, None, tuple[dict[str, tuple[bytes, ...]], dict[str, tuple[bytes, ...]]]]:
    """Values of ``host`` and of ``memberOf`` of the people affected, sorted bytewise."""
    found: dict[str, set[str]] = {}
    memberships: dict[str, list[bytes]] = {}
    bis = layout.schema == "rfc2307bis"
    work = 0
    if affected:
        for made in groups.values():
            if not made.hosts and not bis:
                continue
            concerned = yield from _among(affected, made.member_ids)
            for id in concerned:
                work += 1
                if work >= SLICE * 4:
                    work = 0
                    yield
                if id not in people:
                    continue
                work += 8
                if made.hosts:
                    found.setdefault(id, set()).update(made.hosts)
                if bis and not people[id].disabled:
                    memberships.setdefault(id, []).append(made.dn)
    shared: dict[frozenset[str], tuple[bytes, ...]] = {}
    hosts: dict[str, tuple[bytes, ...]] = {}
    for id, names in found.items():
        work += 8
        if work >= SLICE:
            work = 0
            yield
        # people of the same groups have the same hosts; they share the values
        key = frozenset(names)
        values = shared.get(key)
        if values is None:
            work += len(key)
            values = shared[key] = tuple(sorted(name.encode() for name in key))
        hosts[id] = values
    member_of: dict[str, tuple[bytes, ...]] = {}
    if bis:
        for id in affected:
            user = people.get(id)
            if user is None or user.disabled:
                continue
            work += 10
            if work >= SLICE:
                work = 0
                yield
            dns = set(memberships.get(id, ()))
            if has_private_group(user.username):
                dns.add(group_dn(user.username, layout).encode())
            member_of[id] = tuple(sorted(dns))
    return hosts, member_of


def _person(
    user: SourceUser,
    numbers: Numbers,
    names: tuple[bytes, bytes],
    hosts: tuple[bytes, ...],
    groups: tuple[bytes, ...],
    layout: Layout,
    old: Person | None,
) -> Person:
    uid, gid = numbers.uids[user.id], numbers.gids[user.id]
    name, dn = names
    entry = person_draft(user, uid, gid, hosts, groups, layout)
    private = private_group_draft(user, gid, dn, layout) if has_private_group(user.username) else None
    if old is not None:
        # what a change of the source does not show in stays the same object
        entry = old.entry if old.entry == entry else entry
        private = old.private if old.private == private else private
    return Person(
        user=user, uid=uid, gid=gid, name=name, dn=dn, hosts=hosts, groups=groups, entry=entry, private=private
    )


def _report(served: Group, position: int, layout: Layout, old: RuleReport | None, same: bool) -> RuleReport:
    """
    The report on a served group's rule.

    :param old: the last one.
    :param same: whether the group is as it was then.
    """
    checked = served.checked
    assert checked is not None
    rule = old.rule if old is not None and same else rule_of_claims(served.group.name, served.group.claims)
    assert rule is not None
    draft = None
    if checked.grant is not None:
        key = f"rule:{served.group.id}"
        draft = role_draft(layout, key, served.group.name, served.names, checked.grant, position)
        if old is not None and old.draft == draft:
            draft = old.draft
    if old is not None and same and draft is old.draft:
        return old
    return RuleReport(name=served.group.name, source_id=served.group.id, rule=rule, checked=checked, draft=draft)
