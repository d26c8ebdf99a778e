"""Snapshots: entries, indexes, scopes, sharing, and what one host sees."""

import random
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from identree.directory import schema
from identree.directory import snapshot as module
from identree.directory.draft import Draft, Kind, Stamp
from identree.directory.filters import parse_text
from identree.directory.snapshot import (
    BASE as BASE_SCOPE,
)
from identree.directory.snapshot import (
    INDEXED,
    ONE,
    SUBORDINATES,
    SUBTREE,
    Entry,
    NoSuchObject,
    Snapshot,
    View,
    concerns,
    run,
)
from identree.directory.stamps import Stamps

from .drafts import (
    BASE,
    FIRST_USN,
    attributes,
    company,
    containers,
    group,
    person,
    private_group,
    role,
    snapshot,
    stamped,
)


def names(entries: Sequence[Entry] | None) -> list[str] | None:
    return None if entries is None else sorted(entry.draft.dn.partition(",")[0] for entry in entries)


def named(draft: Draft, dn: str) -> Draft:
    """The same entry with another DN."""
    return Draft(draft.kind, draft.key, dn, draft.attributes)


def content(snapshot: Snapshot) -> object:
    """Everything that can be asked of a snapshot, in an order of its own."""
    return {
        "entries": [
            (entry.draft, entry.usn, entry.created, entry.head, entry.pieces, entry.parent)
            for entry in snapshot.entries
        ],
        "dn": {entry.normal: snapshot.by_dn(entry.normal) is entry for entry in snapshot.entries},
        "index": {
            (name, value): names(snapshot.lookup(name, schema.BY_NAME[name.lower()].normalise(value) or b""))
            for entry in snapshot.entries
            for name, values in entry.draft.attributes
            if name in INDEXED
            for value in values
        },
        "blocks": [
            sorted((block.shape.key, names(block.entries)) for block in snapshot.blocks(snapshot.entries[0], scope))
            for scope in (BASE_SCOPE, ONE, SUBTREE)
        ],
        "shapes": sorted(snapshot.shapes),
        "changed": names(snapshot.candidates(parse_text(f"(entryUSN>={snapshot.usn})")) or ()),
    }


class EntryTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.snapshot = snapshot([*containers(), person(1), private_group(1), group(1, ["user1"]), role(1, ["user1"])])

    def values(self, dn: str, attribute: str) -> Sequence[bytes]:
        return self.snapshot.find(dn).values(schema.BY_NAME[attribute.lower()])

    def test_operational(self) -> None:
        """Change number, times, name, class and place of a person (spec/ldap section 14.11)."""
        dn = f"uid=user1,ou=people,{BASE}"
        for attribute, value in (
            ("entryUSN", b"1770000000"),
            ("modifyTimestamp", b"20260202024000Z"),
            ("createTimestamp", b"20260202024000Z"),
            ("entryDN", dn.encode()),
            ("structuralObjectClass", b"inetOrgPerson"),
            ("hasSubordinates", b"FALSE"),
            ("subschemaSubentry", b"cn=Subschema"),
        ):
            self.assertEqual(list(self.values(dn, attribute)), [value], attribute)

    def test_has_subordinates(self) -> None:
        """Containers say whether something is in them."""
        self.assertEqual([*self.values(BASE, "hasSubordinates")], [b"TRUE"])
        self.assertEqual([*self.values(f"ou=people,{BASE}", "hasSubordinates")], [b"TRUE"])
        alone = snapshot(containers())
        found = alone.find(f"ou=people,{BASE}").values(schema.BY_NAME["hassubordinates"])
        self.assertEqual([*found], [b"FALSE"])

    def test_find(self) -> None:
        """By any spelling; what is missing names the nearest entry above it."""
        self.assertEqual(self.snapshot.find("UID=USER1, OU=People ,dc=example,dc=com").draft.key, "person:1")
        for dn, matched in (
            (f"uid=nobody,ou=people,{BASE}", f"ou=people,{BASE}"),
            (f"cn=a,cn=b,ou=hosts,{BASE}", BASE),
            ("dc=org", ""),
            ("", ""),
        ):
            with self.assertRaises(NoSuchObject) as caught:
                self.snapshot.find(dn)
            self.assertEqual(caught.exception.matched_dn, matched)
        with self.assertRaises(ValueError):
            self.snapshot.find("nonsense")

    def test_lookup(self) -> None:
        """Exact indexes; an attribute without one cannot tell."""
        self.assertEqual(names(self.snapshot.lookup("uid", b"user1")), ["uid=user1"])
        self.assertEqual(names(self.snapshot.lookup("memberUid", b"user1")), ["cn=group1", "cn=user1"])
        self.assertEqual(names(self.snapshot.lookup("gidNumber", b"400001")), ["cn=user1", "uid=user1"])
        self.assertEqual(self.snapshot.lookup("uid", b"nobody"), ())
        self.assertIsNone(self.snapshot.lookup("loginShell", b"/bin/bash"))

    def test_scopes(self) -> None:
        """Base, one level, subtree and subordinates, by block and by entry."""
        base = self.snapshot.find(BASE)
        people = self.snapshot.find(f"ou=people,{BASE}")
        for start, scope, expected in (
            (base, BASE_SCOPE, 1),
            (base, ONE, 3),
            (base, SUBTREE, 8),
            (base, SUBORDINATES, 7),
            (people, BASE_SCOPE, 1),
            (people, ONE, 1),
            (people, SUBTREE, 2),
        ):
            found = [entry for block in self.snapshot.blocks(start, scope) for entry in block.entries]
            inside = [entry for entry in self.snapshot.entries if self.snapshot.in_scope(entry, start, scope)]
            self.assertEqual((len(found), names(found)), (expected, names(inside)))

    def test_alone(self) -> None:
        """An entry outside of the tree has what it was given."""
        entry = Entry.alone("", attributes(objectClass="top", namingContexts=BASE))
        self.assertEqual(list(entry.values(schema.BY_NAME["namingcontexts"])), [BASE.encode()])
        self.assertEqual(list(entry.values(schema.BY_NAME["entrydn"])), [])


class CandidateTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.snapshot = snapshot(company(50, 5, 5))

    def count(self, text: str) -> int | None:
        found = self.snapshot.candidates(parse_text(text))
        return None if found is None else len(found)

    def test_selective(self) -> None:
        """The most selective term of a conjunction decides, all terms of a disjunction do."""
        for text, expected in (
            ("(uid=user1)", 1),
            ("(&(objectClass=posixAccount)(uid=user1)(gidNumber=400001))", 1),
            ("(&(memberUid=user1)(cn=group0))", 1),
            ("(|(uid=user1)(uid=user2)(uid=user1))", 2),
            ("(|(uid=user1)(loginShell=/bin/sh))", None),
            ("(&(|(uid=user1)(loginShell=/bin/sh))(uid=user3))", 1),
            ("(!(uid=user1))", None),
            ("(loginShell=/bin/sh)", None),
            ("(objectClass=posixAccount)", None),
            (f"(entryDN=UID=user1,ou=people,{BASE})", 1),
        ):
            self.assertEqual(self.count(text), expected, text)

    def test_nothing(self) -> None:
        """What no entry can match is known at once."""
        for text in (
            *(
                "(objectClass=ipService)",
                "(host=*)",
                "(unknown=*)",
                "(unknown=x)",
                "(uidNumber=x)",
                "(entryUSN>=1999999999)",
            ),
            "(&(objectclass=ipService)(cn=*)(ipServicePort=*)(ipServiceProtocol=*))",
            "(modifyTimestamp>=20260202024060Z)",
        ):
            self.assertEqual(self.count(text), 0, text)

    def test_too_many(self) -> None:
        """A value of very many entries selects nothing, also after some of them are gone."""
        self.patch(module, "MAX_BUCKET", 10)
        drafts = [*containers(), *(role(each, ["ALL"]) for each in range(30))]
        first = snapshot(drafts)
        self.assertIsNone(first.lookup("sudoUser", b"ALL"))
        self.assertIsNone(snapshot(drafts[:-5], first).lookup("sudoUser", b"ALL"))

    def test_changes(self) -> None:
        """The entries of the last changes are found by their change numbers."""
        drafts = company(50, 5, 5)
        stamps = stamped(drafts)
        stamps["person:7"] = Stamp(FIRST_USN + 60, FIRST_USN, b"")
        changed = run(Snapshot.build(BASE, drafts, stamps, self.snapshot))
        for text in ("(entryUSN>=1770000001)", "(modifyTimestamp>=20260202024060Z)", "(entryUSN>=1770000060)"):
            self.assertEqual(names(changed.candidates(parse_text(text))), ["uid=user7"])
        self.assertEqual(changed.usn, FIRST_USN + 60)

    def test_changes_beyond(self) -> None:
        """Beyond the changes that are kept, only a scan can tell."""
        self.patch(module, "MAX_RECENT", 10)
        drafts = [*containers(), *(person(each) for each in range(40))]
        stamps = {draft.key: Stamp(FIRST_USN + at, FIRST_USN, b"") for at, draft in enumerate(drafts)}
        found = run(Snapshot.build(BASE, drafts, stamps))
        for back in range(1, 9):
            text = f"(entryUSN>={FIRST_USN + len(drafts) - back})"
            self.assertEqual(len(found.candidates(parse_text(text)) or ()), back)
        self.assertIsNone(found.candidates(parse_text(f"(entryUSN>={FIRST_USN + 5})")))


class BuildTests(SynchronousTestCase):
    def test_shared(self) -> None:
        """What did not change is the same object in the next snapshot."""
        drafts = company(20, 3, 3)
        first = snapshot(drafts)
        second = snapshot([*drafts[:5], person(3, "renamed"), *drafts[6:]], first)
        fresh = [entry for entry in second.entries if entry not in first.entries]
        self.assertEqual([entry.draft.dn for entry in fresh], [f"uid=renamed,ou=people,{BASE}"])
        self.assertEqual(second.version, first.version + 1)

    def test_usn_survives_deletion(self) -> None:
        """The highest change number stays shown when the entry that had it is gone, also over a restart."""
        drafts = [*containers(), person(1), person(2)]
        stamps = stamped(drafts) | {"person:2": Stamp(FIRST_USN + 5, FIRST_USN, b"")}
        first = run(Snapshot.build(BASE, drafts, stamps))
        self.assertEqual(run(Snapshot.build(BASE, drafts[:-1], stamps, first)).usn, FIRST_USN + 5)
        self.assertEqual(run(Snapshot.build(BASE, drafts[:-1], stamps, None, FIRST_USN + 5)).usn, FIRST_USN + 5)

    def test_refused(self) -> None:
        """Drafts that are no tree, and those without stamp or type, are errors that name the entry."""
        tree = containers()
        odd = Draft(Kind.PERSON, "odd", f"uid=odd,ou=people,{BASE}", (("shoeSize", (b"43",)),))
        orphan = named(person(1), f"uid=user1,ou=nowhere,{BASE}")
        for drafts in ([*tree, person(1), named(person(2), person(1).dn.upper())], [*tree, odd], [*tree, orphan]):
            with self.assertRaisesRegex(ValueError, "(?i)uid="):
                snapshot(drafts)
        with self.assertRaisesRegex(ValueError, "stamp"):
            run(Snapshot.build(BASE, [*tree, person(1)], stamped(tree)))

    def test_replaced_name(self) -> None:
        """A name that passes from one person to another in one build is the other's."""
        first = snapshot([*containers(), person(1, "anna"), person(2, "bert")])
        second = snapshot([*containers(), person(1, "bert"), person(2, "anna")], first)
        self.assertEqual(second.find(f"uid=anna,ou=people,{BASE}").draft.key, "person:2")
        self.assertEqual(names(second.lookup("uidNumber", b"200001")), ["uid=bert"])

    def test_other_order(self) -> None:
        """Drafts in another order are still the same entries, and what is missing among them is gone."""
        drafts = company(300, 3, 3)
        first = snapshot(drafts)
        people = drafts[2:302]
        random.Random(1).shuffle(people)
        second = snapshot([*drafts[:2], *people[5:], *drafts[302:]], first)
        # some are made anew before the order counts as another one
        self.assertLess(len(set(second.entries) - set(first.entries)), 210)
        self.assertEqual(len(second.entries), len(first.entries) - 5)
        self.assertEqual(second.lookup("uid", people[0].attributes[1][1][0]), ())
        self.assertEqual(content(second), content(snapshot([entry.draft for entry in second.entries])))

    def test_steps(self) -> None:
        """A build is many short steps: none encodes more than a few hundred entries or thousand values."""
        drafts = company(2000, 10, 10)
        self.assertGreater(sum(1 for _ in Snapshot.build(BASE, drafts, stamped(drafts))), 40)
        huge = [*containers(), group(1, [f"user{each}" for each in range(50_000)])]
        self.assertGreater(sum(1 for _ in Snapshot.build(BASE, huge, stamped(huge))), 80)

    def test_large_group(self) -> None:
        """A group of many members is encoded like any other."""
        members = [f"user{each}" for each in range(5000)]
        entry = snapshot([*containers(), group(1, members)]).find(f"cn=group1,ou=groups,{BASE}")
        at = entry.shape.position(schema.BY_NAME["memberuid"])
        assert at is not None
        from identree.directory.encoding import partial_attribute

        self.assertEqual(entry.pieces[at], partial_attribute(b"memberUid", [each.encode() for each in members]))

    def test_retired(self) -> None:
        """A snapshot that is let go of is intact for whoever still uses it."""
        found = snapshot(company(20, 3, 3))
        before = content(found)
        for _ in found.retire():
            pass
        self.assertEqual(content(found), before)

    def _changed(self, drafts: Sequence[Draft], changed: dict[str, Draft], usn: int) -> tuple[Snapshot, Snapshot]:
        """The snapshot of some drafts, and the next one with others in the places of some."""
        stamps = run(Stamps.of(stamped(drafts)))
        first = run(Snapshot.build(BASE, drafts, stamps))
        after = tuple(changed.get(draft.key, draft) for draft in drafts)
        restamped = {key: Stamp(usn, FIRST_USN, b"") for key in changed}
        second = run(Snapshot.build(BASE, after, run(stamps.followed(restamped)), first))
        again = run(Snapshot.build(BASE, after, run(stamps.followed(restamped)), None))
        self.assertEqual(content(second), content(again))
        return first, second

    def test_in_place(self) -> None:
        """A few that changed where they were: everything else is shared, and nothing is missing."""
        drafts = tuple(company(300, 5, 5))
        changed = {"person:7": person(7, mail="new@example.com"), "group:1": group(1, ["user9"])}
        first, second = self._changed(drafts, changed, FIRST_USN + 9)
        fresh = {entry.draft.key for entry in second.entries if entry not in first.entries}
        self.assertEqual(fresh, set(changed))
        self.assertEqual(names(second.candidates(parse_text("(mail=new@example.com)"))), ["uid=user7"])
        self.assertEqual(names(first.candidates(parse_text("(mail=new@example.com)"))), [])

    def test_in_place_of_another_shape(self) -> None:
        """Who gets an attribute that nobody else has stands in another block from then on."""
        _, second = self._changed(tuple(company(30, 5, 5)), {"person:7": person(7, description="x")}, FIRST_USN + 9)
        self.assertEqual(names(second.candidates(parse_text("(uid=user7)"))), ["uid=user7"])

    def test_stamp_alone(self) -> None:
        """An entry that is the same but for its change number shows the new one."""
        drafts = tuple(company(30, 5, 5))
        [same] = [draft for draft in drafts if draft.key == "person:7"]
        _, second = self._changed(drafts, {"person:7": same}, FIRST_USN + 9)
        self.assertEqual(second.find(same.dn).usn, FIRST_USN + 9)

    @given(st.lists(st.tuples(st.integers(0, 2**32), st.integers(0, 9)), min_size=1, max_size=5))
    def test_incremental(self, changes: list[tuple[int, int]]) -> None:
        """Whatever comes, goes, changes or moves: built from the one before or from nothing, it is the same."""
        pool: dict[str, Draft] = {draft.key: draft for draft in company(8, 3, 3, members=3)}
        stamps = stamped(pool.values())
        usn = FIRST_USN
        current: Snapshot | None = None
        for seed, number in changes:
            dice = random.Random(seed)
            usn += dice.choice([0, 1, 100])
            for made in (
                person(number, dice.choice([f"user{number}", f"other{number}"]), mail=dice.choice(["a@b", "c@d"])),
                group(number, [f"user{dice.randrange(8)}"]),
                role(number, ["user1"], [dice.choice(["ALL", "web1"])]),
            ):
                if dice.random() < 0.3:
                    pool.pop(made.key, None)
                elif pool.get(made.key) != made and dice.random() < 0.7:
                    pool[made.key] = made
                    stamps[made.key] = Stamp(usn, FIRST_USN, b"")
            kinds = list(Kind)
            drafts = sorted(pool.values(), key=lambda draft: (draft.kind is not Kind.ROOT, kinds.index(draft.kind)))
            current = run(Snapshot.build(BASE, tuple(drafts), run(Stamps.of(dict(stamps))), current))
            again = run(Snapshot.build(BASE, drafts, stamps, None, current.usn))
            self.assertEqual(content(current), content(again))


class ViewTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.drafts = [
            *containers(),
            *(person(each) for each in range(3)),
            *(private_group(each) for each in range(3)),
            group(1, ["user0", "user1"]),
            group(2, ["user2"]),
            role(1, ["user0", "user1"], ["web1"]),
            role(2, ["user2", "%ops"], ["ALL"]),
            role(3, ["user1"], ["ALL"]),
            role(4, ["user0"], ["db1"]),
        ]
        self.snapshot = snapshot(self.drafts)

    def seen(self, view: View) -> list[str]:
        sight = self.snapshot.view(view)
        return [entry.draft.key for entry in self.snapshot.entries if sight.see(entry) is not None]

    def test_rules_only(self) -> None:
        """With all people, a host lacks only the rules of other hosts, and every entry it sees is the original."""
        view = View(hostname="web1.example.com")
        self.assertEqual(set(self.seen(view)), {draft.key for draft in self.drafts} - {"role:4"})
        sight = self.snapshot.view(view)
        self.assertTrue(all(sight.see(entry) in (entry, None) for entry in self.snapshot.entries))

    def test_people(self) -> None:
        """People that the host does not have, their groups, and rules for nobody else are not there."""
        found = self.seen(View(hostname="web1", people=frozenset({"user0"})))
        expected = ["person:0", "private:0", "group:1", "group:2", "role:1", "role:2"]
        self.assertEqual([key for key in found if key[:4] not in ("root", "cont")], expected)

    def test_narrowed(self) -> None:
        """Groups and rules show the host's people alone."""
        sight = self.snapshot.view(View(hostname="web1", people=frozenset({"user0"})))

        def values(dn: str, attribute: str) -> list[bytes]:
            entry = sight.see(self.snapshot.find(dn))
            assert entry is not None
            return list(entry.values(schema.BY_NAME[attribute.lower()]))

        self.assertEqual(values(f"cn=group1,ou=groups,{BASE}", "memberUid"), [b"user0"])
        self.assertEqual(values(f"cn=group1,ou=groups,{BASE}", "member"), [f"uid=user0,ou=people,{BASE}".encode()])
        self.assertEqual(values(f"cn=group2,ou=groups,{BASE}", "memberUid"), [])
        self.assertEqual(values(f"cn=role1,ou=sudoers,{BASE}", "sudoUser"), [b"user0"])
        self.assertEqual(values(f"cn=role2,ou=sudoers,{BASE}", "sudoUser"), [b"%ops"])

    def test_stamp(self) -> None:
        """A group of which a person came into view carries that person's change number."""
        stamps = stamped(self.drafts) | {"person:0": Stamp(FIRST_USN + 9, FIRST_USN, b"")}
        later = run(Snapshot.build(BASE, self.drafts, stamps))
        entry = later.view(View(hostname="web1", people=frozenset({"user0"}))).see(
            later.find(f"cn=group1,ou=groups,{BASE}")
        )
        assert entry is not None
        self.assertEqual(entry.usn, FIRST_USN + 9)

    def test_concerns(self) -> None:
        """Names that are another host's do not; what only the host can decide does."""
        for host in (
            "ALL",
            "all",
            "web1",
            "WEB1.example.com",
            "+netgroup",
            "10.0.0.0/8",
            "10.0.0.5",
            "fe80::1",
            "web*",
            "!db1",
        ):
            self.assertTrue(concerns("web1.example.com", host), host)
        for host in ("web2", "web1.example.org", "db1.example.com", "1web"):
            self.assertFalse(concerns("web1.example.com", host), host)
        self.assertTrue(concerns("web1", "web1.example.com"))
