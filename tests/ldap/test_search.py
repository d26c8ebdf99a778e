"""Answers to searches: three ways to the same bytes."""

import sys
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from ldaptor.protocols import pureldap
from twisted.trial.unittest import SynchronousTestCase

from identree.directory.draft import Stamp
from identree.directory.filters import Equal, Filter, Or, parse_text
from identree.directory.snapshot import Entry, Snapshot, View, run
from identree.ldap import ber, search
from identree.ldap.search import Reply, Scan, Searcher, entry_answer

from ..directory.drafts import (
    BASE,
    FIRST_USN,
    attributes,
    containers,
    group,
    person,
    private_group,
    role,
    snapshot,
    stamped,
)
from ..directory.test_filters import FILTERS, RecordShape
from .test_ber import decode, encode, plain

PEOPLE, GROUPS, SUDOERS = f"ou=people,{BASE}", f"ou=groups,{BASE}", f"ou=sudoers,{BASE}"
USER_ATTRIBUTES = (
    "objectClass uid userPassword uidNumber gidNumber gecos homeDirectory loginShell krbPrincipalName cn"
    " modifyTimestamp modifyTimestamp shadowLastChange shadowMin shadowMax shadowWarning shadowInactive shadowExpire"
    " shadowFlag krbLastPwdChange krbPasswordExpiration pwdAttribute authorizedService accountExpires"
    " userAccountControl nsAccountLock host rhost loginDisabled loginExpirationTime loginAllowedTimeMap sshPublicKey"
    " userCertificate;binary mail"
).split()
GETPWNAM = "(&(uid=%s)(objectClass=posixAccount)(uid=*)(&(uidNumber=*)(!(uidNumber=0))))"
GETPWUID = "(&(uidNumber=%s)(objectClass=posixAccount)(uid=*)(&(uidNumber=*)(!(uidNumber=0))))"
GETGRNAM = "(&(cn=%s)(objectClass=posixGroup)(cn=*)(&(gidNumber=*)(!(gidNumber=0))))"
GETGRGID = "(&(gidNumber=%s)(objectClass=posixGroup)(cn=*)(&(gidNumber=*)(!(gidNumber=0))))"
INITGROUPS = "(&(memberuid=%s)(objectClass=posixGroup)(cn=*)(&(gidNumber=*)(!(gidNumber=0))))"


def ask(
    filter: str | Filter = "(objectClass=*)",
    base: str = BASE,
    scope: int = 2,
    attributes: Sequence[str] = (),
    size_limit: int = 0,
    time_limit: int = 0,
    types_only: bool = False,
) -> bytes:
    return ber.tlv(
        ber.SEARCH_REQUEST,
        b"".join(
            (
                ber.octets(base.encode()),
                ber.integer(scope, 0x0A),
                ber.integer(0, 0x0A),
                ber.integer(size_limit),
                ber.integer(time_limit),
                ber.boolean(types_only),
                encode(parse_text(filter) if isinstance(filter, str) else filter),
                ber.tlv(0x30, b"".join(ber.octets(each.encode()) for each in attributes)),
            )
        ),
    )


def reply(answer: Reply | Scan) -> Reply:
    """Any answer as a whole."""
    if isinstance(answer, Reply):
        return answer
    found: list[bytes] = []
    while not answer.done:
        found += answer.step()
    return Reply(found, answer.done_op(), answer.reply_code, answer.base)


Record = dict[str, list[bytes]]


def records(answer: Reply | Scan) -> dict[str, Record]:
    """The entries of an answer by DN, as ldaptor reads them."""
    *entries, done = decode(reply(answer).render(7))
    assert isinstance(done.value, pureldap.LDAPSearchResultDone)
    return {
        each.value.objectName.decode(): {
            plain(name).decode(): [plain(value) for value in values] for name, values in each.value.attributes
        }
        for each in entries
    }


class Clock:
    """Seconds that pass only when they are told to: ``tick`` per look."""

    def __init__(self, tick: float = 0) -> None:
        self.now = 0.0
        self.tick = tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


class SearcherCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.drafts = [
            *containers(),
            *(person(each) for each in range(5)),
            person(5, "Alice", cn=["Alice Smith", "Ally"], host=["web1", "web2"], shadowExpire="1"),
            group(1, ["user0", "user1"]),
            group(2, []),
            *(private_group(each) for each in range(5)),
            role(1, ["user0"]),
            role(2, ["user1"], ["web1", "10.0.0.0/8"]),
        ]
        self.snapshot: Snapshot | None = snapshot(self.drafts)
        self.clock = Clock()
        self.searcher = Searcher(lambda: self.snapshot, 1 << 20, self.clock)

    def ask(self, *args: object, **more: object) -> dict[str, Record]:
        return records(self.searcher.answer(ask(*args, **more)))  # type: ignore[arg-type]

    def names(self, *args: object, **more: object) -> list[str]:
        return sorted(dn.partition(",")[0] for dn in self.ask(*args, **more))

    def reply(self, *args: object, **more: object) -> Reply:
        return reply(self.searcher.answer(ask(*args, **more)))  # type: ignore[arg-type]


class ScopeTests(SearcherCase):
    def test_scopes(self) -> None:
        """Each scope from each level."""
        for base, scope, count in (
            *((BASE, 0, 1), (BASE, 1, 3), (BASE, 2, 19), (BASE, 3, 18)),
            *(
                (PEOPLE, 0, 1),
                (PEOPLE, 1, 6),
                (PEOPLE, 2, 7),
                (f"uid=user1,{PEOPLE}", 0, 1),
                (f"uid=user1,{PEOPLE}", 1, 0),
            ),
        ):
            self.assertEqual(len(self.ask(base=base, scope=scope)), count, (base, scope))

    def test_missing_base(self) -> None:
        """noSuchObject with the nearest entry above, or without any."""
        for base, matched in (
            (f"uid=nobody,{PEOPLE}", PEOPLE),
            (f"ou=identree-hosts,{BASE}", BASE),
            ("", ""),
            ("dc=org", ""),
        ):
            [done] = decode(self.reply(base=base).render(1))
            self.assertEqual((done.value.resultCode, done.value.matchedDN.decode()), (32, matched))

    def test_bad_base(self) -> None:
        """invalidDNSyntax."""
        self.assertEqual(self.reply(base="nonsense").code, 34)

    def test_spelling(self) -> None:
        """Spaces, case and escapes of the base do not matter."""
        self.assertEqual(self.names("(uid=user1)", "OU = People , DC=example,dc=com"), ["uid=user1"])

    def test_metric(self) -> None:
        """The part of the tree that a search is based in."""
        for base, name in (
            *(
                (BASE, "root"),
                (PEOPLE, "people"),
                (GROUPS, "groups"),
                (SUDOERS, "sudoers"),
                (f"uid=user1,{PEOPLE}", "people"),
            ),
            *((f"uid=nobody,{PEOPLE}", "people"), (f"ou=other,{BASE}", "root"), ("dc=org", "root")),
        ):
            self.assertEqual(self.reply(base=base).base, name)


class SelectionTests(SearcherCase):
    def selected(self, *names: str, **more: object) -> Record:
        [found] = self.ask("(uid=alice)", PEOPLE, attributes=names, **more).values()
        return found

    def test_user(self) -> None:
        """Nothing and * are all user attributes, entryUUID among them."""
        self.assertEqual(self.selected(), self.selected("*"))
        self.assertIn("entryUUID", self.selected())
        self.assertNotIn("modifyTimestamp", self.selected())

    def test_operational(self) -> None:
        """+ is all operational attributes, and no others."""
        self.assertEqual(
            sorted(self.selected("+")),
            sorted(
                "createTimestamp entryDN entryUSN entryUUID hasSubordinates modifyTimestamp structuralObjectClass"
                " subschemaSubentry".split()
            ),
        )
        self.assertEqual(self.selected("*", "+"), self.selected() | self.selected("+"))

    def test_none(self) -> None:
        """1.1 alone is nothing, with others it says nothing; nor does what nobody knows."""
        for names in (["1.1"], ["nonsense"], ["userCertificate;binary"], ["userPassword"]):
            self.assertEqual(self.selected(*names), {})
        self.assertEqual(self.selected("1.1", "uid"), {"uid": [b"Alice"]})

    def test_names(self) -> None:
        """Any spelling, alias or OID; each once and under its own name."""
        self.assertEqual(self.selected("UID", "uid", "userid", "0.9.2342.19200300.100.1.1"), {"uid": [b"Alice"]})
        self.assertEqual(
            self.selected("homedirectory", "entrydn"),
            {"homeDirectory": [b"/home/Alice"], "entryDN": [f"uid=Alice,{PEOPLE}".encode()]},
        )

    def test_supertype(self) -> None:
        """``name`` selects what is derived from it."""
        self.assertEqual(sorted(self.selected("name")), ["cn", "givenName", "sn"])

    def test_object_class(self) -> None:
        """objectClass comes only when asked for (RFC 4511 section 4.5.1.8)."""
        self.assertNotIn("objectClass", self.selected("uid"))

    def test_types_only(self) -> None:
        """Names without values."""
        self.assertEqual(
            self.selected("uid", "host", "entryDN", types_only=True), {"uid": [], "host": [], "entryDN": []}
        )

    def test_values(self) -> None:
        """Several values in their order."""
        self.assertEqual(self.selected("host", "cn"), {"host": [b"web1", b"web2"], "cn": [b"Alice Smith", b"Ally"]})

    def test_containers(self) -> None:
        """Base and containers are narrowed and filtered like any other entry."""
        self.assertEqual(self.ask("(ou=people)", BASE, 1, ["ou"]), {PEOPLE: {"ou": [b"people"]}})
        self.assertEqual(self.ask("(dc=nothing)", BASE, 0), {})


class ClientTests(SearcherCase):
    def test_sssd(self) -> None:
        """sssd's lookups find just what they are for (spec/ldap section 11.1)."""
        for filter, base, expected in (
            (GETPWNAM % "user1", PEOPLE, ["uid=user1"]),
            (GETPWNAM % "ALICE", PEOPLE, ["uid=Alice"]),
            (GETPWNAM % "nobody", PEOPLE, []),
            (GETPWUID % "200001", PEOPLE, ["uid=user1"]),
            (GETGRNAM % "group1", GROUPS, ["cn=group1"]),
            (GETGRGID % "400001", GROUPS, ["cn=user1"]),
            (INITGROUPS % "user1", GROUPS, ["cn=group1", "cn=user1"]),
            (GETPWNAM % "user2", BASE, ["uid=user2"]),
            (
                "(&(|(krbPrincipalName=a@b)(mail=user1@example.com))(objectclass=posixAccount)(uid=*))",
                PEOPLE,
                ["uid=user1"],
            ),
            ("(&(cn=ng)(objectclass=nisNetgroup))", BASE, []),
            ("(&(objectclass=ipService)(cn=*)(ipServicePort=*)(ipServiceProtocol=*))", BASE, []),
            (
                "(&(objectClass=sudoRole)(|(&(!(sudoHost=*))(cn=defaults))(sudoHost=ALL)(sudoHost=WEB1)(sudoHost=+*)))",
                SUDOERS,
                ["cn=role1", "cn=role2"],
            ),
            ("(&(objectClass=sudoRole)(sudoUser=%#200001))", SUDOERS, []),
        ):
            for _ in range(2):
                self.assertEqual(self.names(filter, base, 2, USER_ATTRIBUTES), expected, filter)

    def test_access_filter(self) -> None:
        """A base search of the person's own entry."""
        dn = f"uid=user1,{PEOPLE}"
        self.assertEqual(
            self.names("(&(uid=user1)(objectclass=posixAccount)(!(shadowExpire=1)))", dn, 0), ["uid=user1"]
        )
        self.assertEqual(self.names("(&(uid=user2)(objectclass=posixAccount))", dn, 0), [])

    def test_smart_refresh(self) -> None:
        """Only what changed since, also when the time asked for is impossible."""
        stamps = stamped(self.drafts) | {"role:2": Stamp(FIRST_USN + 70, FIRST_USN, b"")}
        self.snapshot = run(Snapshot.build(BASE, self.drafts, stamps, self.snapshot))
        for term in ("entryUSN>=1770000001", "modifyTimestamp>=20260202024060Z"):
            self.assertEqual(self.names(f"(&(&(objectClass=sudoRole)({term}))(sudoHost=*))", SUDOERS), ["cn=role2"])


class LimitTests(SearcherCase):
    def test_size(self) -> None:
        """Exactly the limit is success; one more match gives the first entries, then 4, in every way of answering."""
        for filter, base, total in (
            ("(uid=*)", PEOPLE, 6),
            (INITGROUPS % "user1", GROUPS, 2),
            ("(objectClass=*)", BASE, 19),
        ):
            for limit in range(1, total + 2):
                for _ in range(3):
                    found = self.reply(filter, base, size_limit=limit)
                    self.assertEqual((found.count, found.code), (min(limit, total), 4 if limit < total else 0))

    def test_size_of_server(self) -> None:
        """The server's own limit holds for those who ask for more or for no limit, in every way of answering."""
        self.searcher = Searcher(lambda: self.snapshot, 1 << 20, self.clock, 2)
        for asked, count, code in ((0, 2, 4), (6, 2, 4), (2, 2, 4), (1, 1, 4)):
            for _ in range(3):
                found = self.reply("(uid=*)", PEOPLE, size_limit=asked)
                self.assertEqual((found.count, found.code), (count, code))

    def test_time(self) -> None:
        """A scan beyond its time limit ends with what it found, and 3; this is not remembered."""
        drafts = [*containers(), *(person(each) for each in range(500))]
        self.snapshot = snapshot(drafts)
        self.clock.tick = 0.5
        op = ask("(homeDirectory=*)", PEOPLE, time_limit=3)
        found = reply(self.searcher.answer(op))
        self.assertEqual(found.code, 3)
        self.assertTrue(0 < found.count < 500)
        self.clock.tick = 0
        self.assertEqual(reply(self.searcher.answer(op)).code, 0)

    def test_filter(self) -> None:
        """A filter beyond our bounds is refused as such, and one that is damaged is no request."""
        deep = "(!" * 30 + "(uid=a)" + ")" * 30
        self.assertEqual(self.reply(deep).code, 0)
        op = ask(deep)
        wide = ask(Or((Equal("uid", b"a"),) * 9000))
        self.assertEqual(reply(self.searcher.answer(wide)).code, 11)
        with self.assertRaises(ber.BerError):
            self.searcher.answer(op[:-1])

    def test_busy(self) -> None:
        """Without a snapshot."""
        self.snapshot = None
        self.assertEqual(self.reply().code, 51)


class StepTests(SearcherCase):
    def setUp(self) -> None:
        super().setUp()
        self.snapshot = snapshot([*containers(), *(person(each) for each in range(3000))])

    def test_steps(self) -> None:
        """A scan gives way after 2 ms of work, and in the end gives everything once."""
        self.clock.tick = 0.0015
        answer = self.searcher.answer(ask("(loginShell=/bin/bash)", PEOPLE))
        assert isinstance(answer, Scan)
        seen: list[bytes] = []
        while not answer.done:
            some = answer.step()
            self.assertLessEqual(len(some), 64)
            seen += some
        self.assertEqual((len(seen), len(set(seen)), answer.reply_code, answer.count), (3000, 3000, 0, 3000))

    def test_steps_without_matches(self) -> None:
        """Looking in vain gives way too."""
        self.clock.tick = 0.0015
        answer = self.searcher.answer(ask("(loginShell=/bin/no)", PEOPLE))
        assert isinstance(answer, Scan)
        self.assertEqual(answer.step(), [])
        self.assertFalse(answer.done)

    def test_bytes(self) -> None:
        """A step makes a bounded number of bytes, however fast it is."""
        answer = self.searcher.answer(ask("(uid=*)", PEOPLE))
        assert isinstance(answer, Scan)
        while not answer.done:
            self.assertLessEqual(sum(map(len, answer.step())), search.STEP_BYTES + 32 * 1000)

    def test_pages(self) -> None:
        """Paged by any size, a scan gives every entry once, and stays with its snapshot."""
        answer = self.searcher.scan(ask("(uid=*)", PEOPLE))
        assert isinstance(answer, Scan)
        seen = answer.step(100)
        self.assertEqual(len(seen), 100)
        self.snapshot = snapshot(containers())
        while not answer.done:
            page = answer.step(700)
            self.assertLessEqual(len(page), 700)
            seen += page
        self.assertEqual(len(set(seen)), 3000)

    def test_no_cap(self) -> None:
        """There is no limit but the client's own."""
        self.assertEqual(reply(self.searcher.answer(ask("(uid=*)", BASE))).count, 3000)


class MemoTests(SearcherCase):
    def test_repeat(self) -> None:
        """The same bytes are answered from memory, the message id aside."""
        op = ask(GETPWNAM % "user1", PEOPLE)
        first = self.searcher.answer(op)
        again = self.searcher.answer(bytes(bytearray(op)))
        self.assertIs(first, again)
        self.assertEqual(self.searcher.memo_hits, 1)
        assert isinstance(again, Reply)
        for id in (1, 127, 128, 32767, 32768, 2**31 - 1):
            self.assertEqual({each.id for each in decode(again.render(id))}, {id})

    def test_swap(self) -> None:
        """A new snapshot answers for itself."""
        op = ask(GETPWNAM % "user1", PEOPLE)
        self.searcher.answer(op)
        self.snapshot = snapshot(containers())
        self.assertEqual(reply(self.searcher.answer(op)).count, 0)

    def test_renewed(self) -> None:
        """After a swap, nothing of the snapshot before is held on to."""
        for op in (ask(GETPWNAM % "user1", PEOPLE), ask("(uid=*)", BASE)):
            for view in (None, View(hostname="web1")):
                self.searcher.answer(op, view)
        before = self.snapshot
        self.snapshot = snapshot(containers())
        self.searcher.renew()
        self.assertEqual(self.searcher.memo_bytes_used, 0)
        # this name and the argument
        self.assertEqual(sys.getrefcount(before), 2)

    def test_bounded(self) -> None:
        """The memo keeps its bound, and what is asked again and again stays in it."""
        searcher = Searcher(lambda: self.snapshot, 20_000, self.clock)
        often = ask(GETPWNAM % "user1", PEOPLE)
        searcher.answer(often)
        for each in range(300):
            searcher.answer(ask(f"(&(uid=user{each % 5})(uidNumber>={each}))", PEOPLE))
            hits = searcher.memo_hits
            searcher.answer(often)
            self.assertEqual(searcher.memo_hits, hits + 1)
            self.assertLessEqual(searcher.memo_bytes_used, 20_000)

    def test_views_apart(self) -> None:
        """What one host is shown is never another's answer."""
        op = ask("(objectClass=sudoRole)", SUDOERS)
        counts = [
            reply(self.searcher.answer(op, view)).count
            for view in (None, View(hostname="db1"), None, View(hostname="db1"))
        ]
        self.assertEqual(counts, [2, 2, 2, 2])
        op = ask(INITGROUPS % "user1", GROUPS)
        mine = View(hostname="web1", people=frozenset({"user0"}))
        counts = [reply(self.searcher.answer(op, view)).count for view in (None, mine, None, mine)]
        self.assertEqual(counts, [2, 0, 2, 0])

    def test_many_ids(self) -> None:
        """An answer of many entries is rendered for ids of any length, in any order."""
        found = self.reply("(uid=*)", PEOPLE)
        for id in (5, 500, 70000, 5):
            expected = ber.messages(id, [*found.entries, found.done])
            self.assertEqual(found.render(id), expected)

    def test_controls(self) -> None:
        """Controls go with the last message, and do not stay for the next time."""
        control = ber.tlv(0xA0, ber.control(b"1.2.3", b"value"))
        for filter in ("(uid=nobody)", "(uid=user1)", "(uid=*)"):
            found = self.reply(filter, PEOPLE)
            without = found.render(5)
            with_control = found.render(5, control)
            self.assertEqual(
                with_control[len(ber.messages(5, found.entries)) :], ber.message(5, found.done, [control[2:]])
            )
            self.assertEqual(found.render(5), without)


QUESTIONS = st.tuples(
    st.sampled_from(
        [
            GETPWNAM,
            GETPWUID,
            GETGRNAM,
            GETGRGID,
            INITGROUPS,
            "(uid=%s)",
            "(&(cn=%s))",
            "(&(mail=%s)(host=*))",
            "(memberUid=%s)",
        ]
    ),
    st.sampled_from(
        [
            "user1",
            "USER1",
            "Alice",
            "group1",
            "200001",
            "400001",
            "",
            "x" * 130,
            "200001 ",
            " user1",
            "\\ff",
            "nobody",
            "user0@example.com",
        ]
    ),
    st.sampled_from([BASE, PEOPLE, GROUPS, f"uid=user1,{PEOPLE}", f"ou=none,{BASE}", PEOPLE.upper()]),
    st.sampled_from([0, 1, 2, 3]),
    st.sampled_from([[], ["1.1"], ["*", "+"], USER_ATTRIBUTES, ["memberUid"], ["cn", "entryDN"]]),
    st.sampled_from([0, 1, 2, 1000]),
    st.booleans(),
)


class WaysTests(SearcherCase):
    """The memo, patterns and plans give the same bytes, and these are right."""

    def plain(self, op: bytes, view: View | None = None) -> Reply:
        """By plan: nothing was learned or remembered before."""
        return reply(Searcher(lambda: self.snapshot, 0, self.clock).answer(op, view))

    @settings(max_examples=60)
    @given(st.lists(QUESTIONS, min_size=1, max_size=30), st.sampled_from([None, frozenset({"user1", "Alice"})]))
    def test_same(
        self, questions: list[tuple[str, str, str, int, list[str], int, bool]], people: frozenset[str] | None
    ) -> None:
        """Whatever was asked before."""
        for view in (None, View(hostname="web1", people=people)):
            searcher = Searcher(lambda: self.snapshot, 100_000, self.clock)
            for filter, value, base, scope, names, limit, types_only in questions:
                op = ask(filter % value, base, scope, names, limit, 0, types_only)
                expected = self.plain(op, view)
                for _ in range(2):
                    found = reply(searcher.answer(op, view))
                    self.assertEqual(
                        (found.code, found.base, found.render(9)), (expected.code, expected.base, expected.render(9))
                    )

    def test_patterns_are_used(self) -> None:
        """The second question of a kind is not decoded any more."""
        for kind, base in (
            (GETPWNAM, PEOPLE),
            (GETPWUID, PEOPLE),
            (GETGRNAM, GROUPS),
            (GETGRGID, GROUPS),
            (INITGROUPS, GROUPS),
        ):
            self.searcher.answer(ask(kind % "first", base, 2, USER_ATTRIBUTES))
        self.patch(ber, "decode_search", None)
        self.assertEqual(self.names(GETPWNAM % "user1", PEOPLE, 2, USER_ATTRIBUTES), ["uid=user1"])
        self.assertEqual(self.names(INITGROUPS % "user1", GROUPS, 2, USER_ATTRIBUTES), ["cn=group1", "cn=user1"])

    def test_values_of_many_lengths(self) -> None:
        """Kinds, and lengths of values, are told apart, however many there were."""
        self.patch(search, "MAX_FRAMES", 5)
        self.patch(search, "FRAMES_ALIKE", 2)
        for value in ("user1", "x" * 3, "y" * 4, "group1", "x" * 90, "Alice", "200001", "user0"):
            for kind in (GETPWNAM, GETPWUID, GETGRNAM, GETGRGID, INITGROUPS, "(uid=%s)", "(mail=%s)"):
                for base in (PEOPLE, GROUPS, BASE):
                    op = ask(kind % value, base, 2, ["cn"])
                    self.assertEqual(reply(self.searcher.answer(op)).render(1), self.plain(op).render(1), (kind, value))
        lane = self.searcher._everybody
        assert lane is not None
        self.assertLessEqual(sum(map(len, lane.frames.values())), 5)

    @given(st.sampled_from([GETPWNAM, "(uid=%s)"]), st.data())
    def test_damaged(self, kind: str, data: st.DataObject) -> None:
        """A damaged question is never taken for one of a known kind."""
        self.searcher.answer(ask(kind % "user2", PEOPLE, 2, ["uid"]))
        op = bytearray(ask(kind % "user1", PEOPLE, 2, ["uid"]))
        at = data.draw(st.integers(0, len(op) - 1))
        op[at] = data.draw(st.integers(0, 255))
        if data.draw(st.booleans()):
            del op[data.draw(st.integers(0, len(op))) :]
        raw = bytes(op)
        try:
            expected = self.plain(raw)
        except ber.BerError:
            with self.assertRaises(ber.BerError):
                self.searcher.answer(raw)
            return
        self.assertEqual(reply(self.searcher.answer(raw)).render(9), expected.render(9))

    @given(FILTERS)
    def test_right(self, filter: Filter) -> None:
        """With any filter, exactly the entries for which it is True by definition."""
        assert self.snapshot is not None
        expected = {entry.draft.dn for entry in self.snapshot.entries if self.true(filter, entry)}
        self.assertEqual(set(records(self.searcher.answer(ask(filter)))), expected)

    @staticmethod
    def true(filter: Filter, entry: Entry) -> bool:
        record = {type_.key: list(entry.values(type_)) for type_ in entry.shape.types}
        from identree.directory import filters

        verdict = filters.compile(filter, RecordShape(record, entry.draft.dn))
        return (verdict(record) if callable(verdict) else verdict) is True


class ViewTests(SearcherCase):
    def test_hidden(self) -> None:
        """A person whom the host does not have is not there in any way."""
        view = View(hostname="web1", people=frozenset({"user0"}))

        def answer(*args: object, **more: object) -> Reply:
            return reply(self.searcher.answer(ask(*args, **more), view))  # type: ignore[arg-type]

        self.assertEqual(answer(GETPWNAM % "user1", PEOPLE).count, 0)
        self.assertEqual(answer("(objectClass=*)", f"uid=user1,{PEOPLE}", 0).code, 32)
        self.assertEqual(answer(INITGROUPS % "user1", GROUPS).count, 0)
        self.assertEqual(answer("(sudoUser=user1)", SUDOERS).count, 0)
        self.assertEqual(answer("(memberUid=*)", GROUPS).count, 2)
        self.assertNotIn(b"user1", answer("(objectClass=*)", BASE, attributes=["*", "+"]).render(1))

    def test_change_by_view(self) -> None:
        """A group that changed only in this view is found by its later change number."""
        stamps = stamped(self.drafts) | {"person:0": Stamp(FIRST_USN + 9, FIRST_USN, b"")}
        self.snapshot = run(Snapshot.build(BASE, self.drafts, stamps))
        op = ask(f"(&(objectClass=posixGroup)(entryUSN>={FIRST_USN + 9}))", GROUPS)
        self.assertEqual(list(records(self.searcher.answer(op))), [])
        view = View(hostname="web1", people=frozenset({"user0"}))
        self.assertEqual(list(records(self.searcher.answer(op, view))), [f"cn=group1,{GROUPS}"])


class EntryAnswerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.entry = Entry.alone("", attributes(objectClass=["top"], namingContexts=BASE, supportedLDAPVersion="3"))

    def ask(self, *args: object, **more: object) -> dict[str, Record]:
        return records(entry_answer(self.entry, ber.decode_search(ask(*args, base="", **more))))  # type: ignore[arg-type]

    def test_root(self) -> None:
        """sssd's and nslcd's questions to the root DSE."""
        [found] = self.ask("(objectclass=*)", scope=0, attributes=["*", "namingContexts", "lastUSN"]).values()
        self.assertEqual(sorted(found), ["namingContexts", "objectClass"])
        [found] = self.ask("(objectClass=*)", scope=0, attributes=["+"]).values()
        self.assertEqual(sorted(found), ["namingContexts", "supportedLDAPVersion"])

    def test_filtered(self) -> None:
        """A filter that does not fit."""
        self.assertEqual(self.ask("(cn=x)", scope=0), {})

    def test_scope(self) -> None:
        """Only a base search is about this entry."""
        found = entry_answer(self.entry, ber.decode_search(ask(base="", scope=2)))
        self.assertEqual(found.code, 32)


class CompareTests(SearcherCase):
    def test_codes(self) -> None:
        """Every outcome of a Compare."""
        dn = f"UID=user1,{PEOPLE}".encode()
        for name, attribute, value, code in (
            (dn, b"UID", b"USER1", 6),
            (dn, b"uid", b"user2", 5),
            (dn, b"objectClass", b"person", 6),
            (dn, b"homeDirectory", b"/HOME/user1", 5),
            (dn, b"entryDN", dn, 6),
            (dn, b"host", b"x", 16),
            (dn, b"nonsense", b"x", 17),
            (dn, b"uidNumber", b"x", 21),
            (f"uid=nobody,{PEOPLE}".encode(), b"uid", b"x", 32),
            (b"nonsense", b"uid", b"x", 34),
            (b"\xff", b"uid", b"x", 34),
        ):
            self.assertEqual(self.searcher.compare(name, attribute, value)[0], code, (name, attribute))
        self.assertEqual(self.searcher.compare(f"uid=nobody,{PEOPLE}".encode(), b"uid", b"x")[1], PEOPLE)

    def test_view(self) -> None:
        """A person whom the host does not have is not there."""
        view = View(hostname="web1", people=frozenset({"user0"}))
        self.assertEqual(self.searcher.compare(f"uid=user1,{PEOPLE}".encode(), b"uid", b"user1", view)[0], 32)
