"""Whole builds: what is in them, in which order, and that a build after another one is the same as a first one."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from identree.directory.build import Built, build, build_bridge
from identree.directory.draft import Draft, Kind
from identree.directory.ids import IdMap, Numbers
from identree.directory.layout import Layout
from identree.directory.source import Source
from identree.directory.sudo import SudoRule
from tests.directory.sources import (
    BASE,
    LAYOUT,
    attributes,
    by_dn,
    fresh_map,
    group,
    layouts,
    numbered,
    run,
    source,
    sources,
    user,
)

NESTED = replace(LAYOUT, nested_groups=True)
BIS = replace(LAYOUT, schema="rfc2307bis")


def built(of: Source, layout: Layout = LAYOUT, previous: Built | None = None, ids: IdMap | None = None) -> Built:
    return run(build(of, numbered(ids or fresh_map(), of).numbers, layout, previous))


def entries(of: Source, layout: Layout = LAYOUT) -> dict[str, dict[str, list[str]]]:
    return by_dn(built(of, layout).drafts)


def in_groups(name: str) -> str:
    return f"cn={name},ou=groups,{BASE}"


def in_people(name: str) -> str:
    return f"uid={name},ou=people,{BASE}"


def in_sudoers(name: str) -> str:
    return f"cn={name},ou=sudoers,{BASE}"


class TreeTests(SynchronousTestCase):
    def test_order(self) -> None:
        """Containers before what is in them; people, groups, private groups and rules in source order."""
        of = source(user("bob"), user("alice"), group("web", "bob", claims=(("sudoCommands", "ALL"),)), group("ops"))
        self.assertEqual(
            [draft.dn for draft in built(of).drafts],
            [
                BASE,
                f"ou=people,{BASE}",
                in_people("bob"),
                in_people("alice"),
                f"ou=groups,{BASE}",
                in_groups("web"),
                in_groups("ops"),
                in_groups("bob"),
                in_groups("alice"),
                f"ou=sudoers,{BASE}",
                in_sudoers("web"),
            ],
        )

    def test_base(self) -> None:
        """The base entry has what names it, and the deployed attributes."""
        self.assertEqual(
            entries(source())[BASE],
            {
                "objectClass": ["top", "dcObject", "organization"],
                "dc": ["example"],
                "o": [BASE],
                "namingContexts": [BASE],
            },
        )

    def test_other_bases(self) -> None:
        """A base that begins otherwise is no dcObject; spelling is kept."""
        for base, classes, naming in (
            ("O=Acme\\, Inc.,c=DE", ["top", "organization"], ("o", ["Acme, Inc.", "O=Acme\\, Inc.,c=DE"])),
            ("ou=dir, DC=x", ["top", "extensibleObject", "organization"], ("ou", ["dir"])),
            ("DC = Example,dc=com", ["top", "dcObject", "organization"], ("dc", ["Example"])),
        ):
            found = entries(source(), replace(LAYOUT, base_dn=base))[base]
            self.assertEqual((found["objectClass"], found[naming[0]]), (classes, naming[1]))

    def test_bad_base(self) -> None:
        """A base that is no DN is refused."""
        for base in ("", "example"):
            self.assertRaises(ValueError, built, source(), replace(LAYOUT, base_dn=base))

    def test_containers(self) -> None:
        """Always in lower case."""
        self.assertEqual(
            entries(source())[f"ou=sudoers,{BASE}"],
            {"objectClass": ["top", "organizationalUnit"], "ou": ["sudoers"]},
        )


class MembershipTests(SynchronousTestCase):
    def test_who_counts(self) -> None:
        """Reserved, invalid, disabled and unknown people are in no group and have no rule."""
        of = source(
            user("alice"),
            user("www-data"),
            user("a@b"),
            user("eve", disabled=True),
            group("ops", "www-data", "eve", "alice", "a@b", "ghost", "alice", claims=(("sudoCommands", "ALL"),)),
        )
        found = entries(of)
        self.assertEqual(found[in_groups("ops")]["memberUid"], ["alice"])
        self.assertEqual(found[in_groups("ops")]["member"], [in_people("alice")])
        self.assertEqual(found[in_sudoers("ops")]["sudoUser"], ["alice"])
        self.assertTrue({in_people("www-data"), in_people("a@b"), in_groups("a@b")}.isdisjoint(found))
        self.assertIn(in_people("eve"), found)

    def test_order_of_members(self) -> None:
        """PocketID's."""
        found = entries(source(user("a"), user("b"), group("ops", "b", "a")))
        self.assertEqual(found[in_groups("ops")]["memberUid"], ["b", "a"])

    def test_withheld_person(self) -> None:
        """Who lost the name to an older group has no entry, no private group and no membership anywhere."""
        found = entries(source(user("ops", created=2), user("alice"), group("ops"), group("web", "ops", "alice")))
        self.assertEqual(found[in_groups("web")]["memberUid"], ["alice"])
        self.assertNotIn(in_people("ops"), found)

    def test_reserved_private_group(self) -> None:
        """A person called like a privileged group keeps the account but gives no such group its member."""
        found = entries(source(user("docker")))
        self.assertIn(in_people("docker"), found)
        self.assertNotIn(in_groups("docker"), found)

    def test_member_of(self) -> None:
        """In rfc2307bis people name their groups, the private one too; disabled people none."""
        of = source(user("a"), user("e", disabled=True), group("ops", "a", "e"), group("db", "a"))
        found = entries(of, BIS)
        self.assertEqual(found[in_people("a")]["memberOf"], [in_groups("a"), in_groups("db"), in_groups("ops")])
        self.assertNotIn("memberOf", found[in_people("e")])
        self.assertNotIn("memberOf", entries(of)[in_people("a")])


class HostTests(SynchronousTestCase):
    def test_vector(self) -> None:
        """The union over the groups, sorted; what is no host contributes nothing."""
        of = source(
            user("alice"),
            user("bob"),
            group("web", "alice", claims=(("accessHosts", "web2,web1,ALL,.example.com"),)),
            group("db", "alice", claims=(("accessHosts", "db1,web1"),)),
        )
        found = entries(of)
        self.assertEqual(found[in_people("alice")]["host"], ["db1", "web1", "web2"])
        self.assertNotIn("host", found[in_people("bob")])

    def test_withheld_group(self) -> None:
        """A group that is not served opens no host."""
        found = entries(source(user("alice"), group("Web", "alice", claims=(("accessHosts", "web1"),))))
        self.assertNotIn("host", found[in_people("alice")])


class NestingTests(SynchronousTestCase):
    def test_members(self) -> None:
        """People of groups in a group are in it: their own first; everything of the group holds for them."""
        of = source(
            user("a"), user("b"), user("c"),
            group("all-ops", "c", claims=(("memberGroups", "ops,none"), ("sudoCommands", "ALL"), ("accessHosts", "w"))),
            group("ops", "a", claims=(("memberGroups", "db"),)),
            group("db", "b", "a"),
        )  # fmt: skip
        found = entries(of, NESTED)
        self.assertEqual(found[in_groups("all-ops")]["memberUid"], ["c", "a", "b"])
        self.assertEqual(found[in_sudoers("all-ops")]["sudoUser"], ["c", "a", "b"])
        self.assertEqual(found[in_people("b")]["host"], ["w"])
        self.assertEqual(found[in_groups("ops")]["memberUid"], ["a", "b"])
        self.assertEqual(entries(of)[in_groups("all-ops")]["memberUid"], ["c"])

    def test_cycle(self) -> None:
        """A cycle ends."""
        of = source(
            user("a"),
            user("b"),
            group("x", "a", claims=(("memberGroups", "y"),)),
            group("y", "b", claims=(("memberGroups", "x,y"),)),
        )
        found = entries(of, NESTED)
        self.assertEqual(found[in_groups("x")]["memberUid"], ["a", "b"])
        self.assertEqual(found[in_groups("y")]["memberUid"], ["b", "a"])

    def test_unserved(self) -> None:
        """A group that is not served gives nobody to others."""
        of = source(user("a"), group("x", claims=(("memberGroups", "wheel"),)), group("wheel", "a"))
        self.assertNotIn("memberUid", entries(of, NESTED)[in_groups("x")])


class RuleTests(SynchronousTestCase):
    def rule(self, name: str, **claims: str) -> object:
        return group(name, "alice", claims=tuple({"sudoCommands": "ALL", **claims}.items()))

    def test_order(self) -> None:
        """Positions count the rules that are served; an own order stands."""
        of = source(
            user("alice"),
            self.rule("a"),  # type: ignore[arg-type]
            self.rule("b", sudoHosts="!web1"),  # type: ignore[arg-type]
            self.rule("c", sudoOrder="70"),  # type: ignore[arg-type]
            self.rule("d"),  # type: ignore[arg-type]
        )
        found = entries(of)
        self.assertNotIn(in_sudoers("b"), found)
        self.assertEqual([found[in_sudoers(name)]["sudoOrder"] for name in "acd"], [["1"], ["70"], ["3"]])

    def test_defaults(self) -> None:
        """A group called defaults is a group, but its rule would be sudo's global options."""
        made = built(source(user("alice"), self.rule("defaults")))  # type: ignore[arg-type]
        found = by_dn(made.drafts)
        self.assertIn(in_groups("defaults"), found)
        self.assertNotIn(in_sudoers("defaults"), found)
        self.assertEqual([verdict.key for verdict in made.rules[0].checked.verdicts], ["sudo_defaults_group"])

    def test_nobody(self) -> None:
        """A rule for nobody is none; nor is one of a group that is not served. Both are told."""
        made = built(
            source(group("ops", claims=(("sudoCommands", "ALL"),)), group("wheel", claims=(("sudoCommands", "ALL"),)))
        )
        self.assertFalse([draft for draft in made.drafts if draft.kind is Kind.ROLE])
        self.assertEqual(
            [[verdict.key for verdict in report.checked.verdicts] for report in made.rules],
            [["sudo_no_members"], ["sudo_group_withheld"]],
        )
        self.assertEqual(
            [(item.name, item.key) for item in made.withheld if item.kind is Kind.ROLE],
            [("ops", "rule_not_served"), ("wheel", "rule_not_served")],
        )


class IncrementalTests(SynchronousTestCase):
    def base(self) -> Source:
        return source(
            user("a"), user("b"), user("c"),
            group("ops", "a", "b", claims=(("sudoCommands", "ALL"), ("accessHosts", "w"))),
            group("web", "b", "c"),
        )  # fmt: skip

    def changed(self, before: Source, after: Source, layout: Layout = LAYOUT) -> set[str]:
        """DNs of the drafts that are not the same objects."""
        ids = numbered(numbered(fresh_map(), before), after)
        first = run(build(before, ids.numbers, layout))
        then = run(build(after, ids.numbers, layout, first))
        self.assertEqual(then.drafts, run(build(after, ids.numbers, layout)).drafts)
        old = {id(draft) for draft in first.drafts}
        return {draft.dn.removesuffix(f",{BASE}") for draft in then.drafts if id(draft) not in old}

    def test_same(self) -> None:
        """Equal sources, equal objects, whether the source's own are or not."""
        self.assertEqual(self.changed(self.base(), self.base()), set())

    def test_name(self) -> None:
        """A changed full name is one changed entry."""
        of = self.base()
        after = replace(of, users=(replace(of.users[0], last_name="New"), *of.users[1:]))
        self.assertEqual(self.changed(of, after), {"uid=a,ou=people"})

    def test_unseen(self) -> None:
        """A claim that shows nowhere changes nothing."""
        of = self.base()
        after = replace(of, users=(replace(of.users[0], claims=(("x", "y"),)), *of.users[1:]))
        self.assertEqual(self.changed(of, after), set())

    def test_disabled(self) -> None:
        """Disabling changes the person, the private group, the groups and their rules."""
        of = self.base()
        after = replace(of, users=(replace(of.users[0], disabled=True), *of.users[1:]))
        self.assertEqual(
            self.changed(of, after), {"uid=a,ou=people", "cn=a,ou=groups", "cn=ops,ou=groups", "cn=ops,ou=sudoers"}
        )

    def test_rename(self) -> None:
        """A renamed person changes the groups that list the name."""
        of = self.base()
        after = replace(of, users=(replace(of.users[0], username="z"), *of.users[1:]))
        self.assertEqual(
            self.changed(of, after), {"uid=z,ou=people", "cn=z,ou=groups", "cn=ops,ou=groups", "cn=ops,ou=sudoers"}
        )

    def test_membership(self) -> None:
        """A new member changes the group, its rule, and the member's hosts."""
        of = self.base()
        after = replace(of, groups=(replace(of.groups[0], member_ids=("u-a", "u-b", "u-c")), of.groups[1]))
        self.assertEqual(self.changed(of, after), {"cn=ops,ou=groups", "cn=ops,ou=sudoers", "uid=c,ou=people"})

    def test_hosts(self) -> None:
        """Changed hosts change the members, not the group."""
        of = self.base()
        claims = (("sudoCommands", "ALL"), ("accessHosts", "w,x"))
        after = replace(of, groups=(replace(of.groups[0], claims=claims), of.groups[1]))
        self.assertEqual(self.changed(of, after), {"uid=a,ou=people", "uid=b,ou=people"})

    def test_hosts_closed(self) -> None:
        """A group that opens no host any more closes them to its members."""
        of = self.base()
        after = replace(of, groups=(replace(of.groups[0], claims=(("sudoCommands", "ALL"),)), of.groups[1]))
        self.assertEqual(self.changed(of, after), {"uid=a,ou=people", "uid=b,ou=people"})

    def test_group_gone(self) -> None:
        """A group that is gone takes its hosts with it, and its name from people's memberships."""
        of = self.base()
        after = replace(of, groups=of.groups[1:])
        self.assertEqual(self.changed(of, after), {"uid=a,ou=people", "uid=b,ou=people"})
        self.assertEqual(
            self.changed(of, replace(of, groups=of.groups[:1]), BIS), {"uid=b,ou=people", "uid=c,ou=people"}
        )

    def test_nested(self) -> None:
        """A new member of a group in a group changes the outer one as well."""
        of = source(user("a"), user("b"), group("out", claims=(("memberGroups", "in"),)), group("in", "a"))
        after = replace(of, groups=(of.groups[0], replace(of.groups[1], member_ids=("u-a", "u-b"))))
        self.assertEqual(self.changed(of, after, NESTED), {"cn=out,ou=groups", "cn=in,ou=groups"})

    def test_age(self) -> None:
        """A time of creation that changes may change who has a name."""
        of = source(user("ops", created=1), group("ops", created=2))
        for after in (
            source(user("ops", created=3), group("ops", created=2)),
            source(user("ops", created=1), group("ops", created=0)),
        ):
            self.assertEqual(self.changed(of, after), {"cn=ops,ou=groups"})

    def test_numbers(self) -> None:
        """Who gets a number at last gets an entry; a number that is another one shows."""
        of = source(user("a"), user("b"))
        ids = numbered(fresh_map(), of).numbers
        first = run(build(of, Numbers(uids={"u-a": 7}, gids=ids.gids), LAYOUT))
        self.assertEqual(list(first.people), ["u-a"])
        then = run(build(of, ids, LAYOUT, first))
        self.assertEqual([attributes(draft)["uidNumber"] for draft in then.drafts[2:4]], [["200000"], ["200001"]])

    def test_one_gone(self) -> None:
        """Who is gone leaves the groups."""
        of = self.base()
        self.assertEqual(self.changed(of, replace(of, users=of.users[:2])), {"cn=web,ou=groups"})

    def test_layout(self) -> None:
        """Another layout takes nothing over."""
        of = self.base()
        first = built(of)
        then = built(of, replace(LAYOUT, default_shell="/bin/sh"), first)
        self.assertEqual(by_dn(then.drafts)[in_people("a")]["loginShell"], ["/bin/sh"])

    def test_previous_untouched(self) -> None:
        """A build never changes the one before it."""
        of = self.base()
        ids = numbered(fresh_map(), of)
        first = run(build(of, ids.numbers, LAYOUT))
        drafts, people, groups = first.drafts, dict(first.people), dict(first.groups)
        run(build(replace(of, users=of.users[1:]), ids.numbers, LAYOUT, first))
        self.assertEqual((first.drafts, dict(first.people), dict(first.groups)), (drafts, people, groups))

    def test_shared_source(self) -> None:
        """The source to keep is made of the objects that are kept anyway."""
        first = built(self.base())
        ids = numbered(fresh_map(), self.base())
        then = run(build(self.base(), ids.numbers, LAYOUT, first))
        for user_, one in zip(then.source.users, first.source.users, strict=True):
            self.assertIs(user_, one)

    @given(st.lists(st.tuples(sources(), layouts()), min_size=1, max_size=4), st.booleans())
    def test_like_the_first(self, refreshes: list[tuple[Source, Layout]], one_layout: bool) -> None:
        """
        After any refreshes the build is what it would be from nothing, no two entries share a DN, and unchanged entries
        are the same objects.
        """
        ids, previous = fresh_map(), None
        for of, layout in refreshes:
            ids = numbered(ids, of)
            layout = refreshes[0][1] if one_layout else layout
            made = run(build(of, ids.numbers, layout, previous))
            scratch = run(build(of, ids.numbers, layout))
            self.assertEqual(made.drafts, scratch.drafts)
            self.assertEqual((made.withheld, made.rules, made.source), (scratch.withheld, scratch.rules, of))
            names = [draft.dn.lower() for draft in made.drafts]
            self.assertEqual(len(set(names)), len(names))
            self.assertEqual(len({draft.key for draft in made.drafts}), len(names))
            if previous is not None and previous.layout == layout:
                old = {draft.key: draft for draft in previous.drafts}
                for draft in made.drafts:
                    if old.get(draft.key) == draft:
                        self.assertIs(draft, old[draft.key])
            previous = made

    @given(sources(), sources(), st.sampled_from(["users", "groups"]), st.data())
    def test_like_the_first_after_little(self, of: Source, other: Source, part: str, data: st.DataObject) -> None:
        """The same after a change of one person or group, the usual refresh."""
        ids = numbered(numbered(fresh_map(), of), other)
        layout = data.draw(layouts())
        first = run(build(of, ids.numbers, layout))
        items = list(getattr(of, part))
        new = {item.id: item for item in getattr(other, part)}
        for place, item in enumerate(items):
            if item.id in new and data.draw(st.booleans()):
                kept = {"username": item.username, "created_at": item.created_at} if part == "users" else {}
                items[place] = replace(new[item.id], **kept)
        after = replace(of, **{part: tuple(items)})
        made = run(build(after, ids.numbers, layout, first))
        self.assertEqual(made.drafts, run(build(after, ids.numbers, layout)).drafts)
        old = {draft.key: draft for draft in first.drafts}
        for draft in made.drafts:
            if old.get(draft.key) == draft:
                self.assertIs(draft, old[draft.key])
        again = run(build(after, ids.numbers, layout, made))
        for one, two in zip(again.drafts, made.drafts, strict=True):
            self.assertIs(one, two)

    @given(sources(), layouts())
    def test_nobody_unfit(self, of: Source, layout: Layout) -> None:
        """Whoever a group or a rule names has an account that is active."""
        found = by_dn(built(of, layout).drafts)
        active = {entry["uid"][0] for entry in found.values() if entry.get("accountStatus") == ["active"]}
        for entry in found.values():
            for name in (*entry.get("memberUid", ()), *entry.get("sudoUser", ())):
                self.assertIn(name, active)
            for dn in entry.get("member", ()):
                self.assertIn(dn, found)


class SlicesTests(SynchronousTestCase):
    def test_many(self) -> None:
        """A large build comes in many slices, and so does one that changes nothing."""
        of = source(*(user(f"user{number}") for number in range(3000)))
        ids = numbered(fresh_map(), of)
        steps = build(of, ids.numbers, LAYOUT)
        count = 0
        while True:
            try:
                next(steps)
                count += 1
            except StopIteration as end:
                first = end.value
                break
        self.assertGreater(count, 100)
        self.assertGreater(sum(1 for _ in build(of, ids.numbers, LAYOUT, first)), 5)


class BridgeTests(SynchronousTestCase):
    def bridge(self, *rules: SudoRule, previous: Built | None = None) -> Built:
        return run(build_bridge(rules, LAYOUT, previous))

    def test_tree(self) -> None:
        """The base, the container and the rules, each for a group of the hosts."""
        made = self.bridge(SudoRule(group="ops", commands="/bin/ls"))
        self.assertEqual([draft.dn for draft in made.drafts], [BASE, f"ou=sudoers,{BASE}", in_sudoers("ops")])
        found = attributes(made.drafts[2])
        self.assertEqual((found["sudoUser"], found["sudoOrder"]), (["%ops"], ["1"]))

    def test_withheld(self) -> None:
        """Rules of reserved or impossible names, refused ones and second ones are told, and not served."""
        made = self.bridge(
            SudoRule(group="wheel", commands="ALL"),
            SudoRule(group="defaults", commands="ALL"),
            SudoRule(group="x" * 33, commands="ALL"),
            SudoRule(group="ops", commands="ALL,!/bin/su"),
            SudoRule(group="ops", commands="ALL"),
            SudoRule(group="", commands="ALL"),
            SudoRule(group="web", commands="ALL"),
        )
        self.assertEqual([draft.dn for draft in made.drafts[2:]], [in_sudoers("web")])
        self.assertEqual(attributes(made.drafts[2])["sudoOrder"], ["1"])
        self.assertEqual(
            {(item.name, item.key) for item in made.withheld},
            {("ops", "rule_name_taken"), *((name, "rule_not_served") for name in
                                           ("wheel", "defaults", "x" * 33, "ops", ""))},
        )  # fmt: skip

    def test_incremental(self) -> None:
        """Unchanged rules keep their objects; a new one before them moves their positions."""
        ops, web = SudoRule(group="ops", commands="ALL"), SudoRule(group="web", commands="ALL")
        first = self.bridge(ops, web)
        same = self.bridge(ops, replace(web), previous=first)
        for one, two in zip(same.drafts, first.drafts, strict=True):
            self.assertIs(one, two)
        moved = self.bridge(web, previous=first)
        self.assertEqual(attributes(moved.drafts[2])["sudoOrder"], ["1"])

    def test_other_mode(self) -> None:
        """A build of the other mode is no help, and no harm."""
        full = built(source(user("ops"), group("web", "ops", claims=(("sudoCommands", "ALL"),))))
        made = self.bridge(SudoRule(group="web", commands="ALL"), previous=full)
        self.assertEqual(attributes(made.drafts[2])["sudoUser"], ["%web"])
        self.assertEqual(built(source(user("a")), previous=made).drafts, built(source(user("a"))).drafts)

    def test_types(self) -> None:
        """Drafts are immutable values."""
        self.assertIsInstance(self.bridge().drafts[0], Draft)
        self.assertRaises(AttributeError, setattr, self.bridge().drafts[0], "dn", "x")
