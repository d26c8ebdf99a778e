"""Filters: three values, matching rules, and text."""

from collections.abc import Callable, Sequence

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from identree.directory import filters, schema
from identree.directory.filters import (
    And,
    Approx,
    Equal,
    Extensible,
    Filter,
    GreaterOrEqual,
    LessOrEqual,
    Not,
    Or,
    Present,
    Substrings,
    Verdict,
    parse_text,
    to_text,
)
from identree.directory.schema import AttributeType

Record = dict[str, list[bytes]]


class RecordShape:
    """The shape of one record: attribute keys to values."""

    def __init__(self, record: Record, dn: str = "uid=alice,ou=people,dc=example") -> None:
        self._record = record
        self._dn = dn
        self.types: Sequence[AttributeType] = [schema.BY_NAME[key] for key in record]
        self.classes = schema.with_superclasses(tuple(record.get("objectclass", ())))

    def reader(self, type_: AttributeType) -> Callable[[Record], Sequence[bytes]] | None:
        key = type_.key
        return (lambda record: record[key]) if key in self._record else None

    def dn(self, entry: Record) -> str:
        return self._dn


ALICE: Record = {
    "objectclass": [b"top", b"posixAccount", b"inetOrgPerson"],
    "uid": [b"Alice"],
    "cn": [b"Alice  Smith", "Élise".encode()],
    "uidnumber": [b"200000"],
    "homedirectory": [b"/home/Alice"],
    "mail": [b"alice@example.com"],
    "modifytimestamp": [b"20260101123059Z"],
    "memberof": [b"cn=ops,ou=groups,dc=example"],
    "sudohost": [b"ALL", b"web*"],
}


def evaluate(text: str | Filter, record: Record = ALICE) -> Verdict:
    filter = parse_text(text) if isinstance(text, str) else text
    verdict = filters.compile(filter, RecordShape(record))
    return verdict(record) if callable(verdict) else verdict


class MeaningTests(SynchronousTestCase):
    def verdicts(self, expected: Verdict, *texts: str) -> None:
        for text in texts:
            self.assertIs(evaluate(text), expected, text)

    def test_equality(self) -> None:
        """Each attribute by its rule (spec/ldap sections 13 and 14.18)."""
        self.verdicts(True, "(UID=ALICE)", "(uid~=alice)", "(cn=alice smith)", "(homeDirectory=/home/Alice)")
        self.verdicts(True, "(uidNumber=200000)", "(2.5.4.3=\\c3\\89LISE)", "(memberOf=CN=Ops, OU=Groups,dc=Example)")
        self.verdicts(False, "(uid=bob)", "(homeDirectory=/home/alice)", "(uidNumber=20000)")

    def test_classes(self) -> None:
        """Superclasses count, and so do OIDs; a class that nobody knows is merely not there."""
        self.verdicts(True, "(objectClass=PERSON)", "(objectclass=2.5.6.6)", "(objectClass=*)", "(objectClass=top)")
        self.verdicts(False, "(objectClass=posixGroup)", "(objectClass=ipService)")

    def test_literal_star(self) -> None:
        """An escaped star is no wildcard."""
        self.verdicts(True, "(sudoHost=web\\2a)")
        self.verdicts(False, "(uid=a\\2a)")

    def test_substrings(self) -> None:
        """In their order, without overlap."""
        self.verdicts(True, "(cn=Alice*)", "(cn=*Smith)", "(cn=*ice*mi*)", "(cn=alice sm*)", "(cn=*e s*)", "(uid=a*e)")
        self.verdicts(False, "(cn=*mi*ice*)", "(uid=alice*e)", "(uid=alic*ice)", "(homeDirectory=/HOME*)")

    def test_ordering(self) -> None:
        """Numbers as numbers, times as digits; a type without order is Undefined."""
        self.verdicts(True, "(uidNumber>=99999)", "(uidNumber>=200000)", "(uidNumber<=200000)")
        self.verdicts(True, "(modifyTimestamp>=20260101123059Z)", "(modifyTimestamp<=20260101123060Z)")
        self.verdicts(False, "(uidNumber>=1000000)", "(uidNumber<=3)", "(modifyTimestamp>=20260101123060Z)")
        self.verdicts(None, "(uid>=a)", "(objectClass<=top)")

    def test_absent(self) -> None:
        """An attribute that is known and absent matches nothing, so its negation does."""
        self.verdicts(False, "(host=x)", "(host=*)", "(shadowExpire>=1)", "(host=x*)", "(cn;lang-de=Alice)")
        self.verdicts(True, "(!(host=*))", "(!(shadowExpire>=1))", "(!(host=x))")

    def test_undefined(self) -> None:
        """What the schema does not know, values that do not fit, and rules that do not exist."""
        unknown = ("(krbPrincipalName=a)", "(krbPrincipalName=*)", "(uidNumber=x)", "(member=x)", "(uidNumber=2*)")
        unknown += ("(modifyTimestamp>=yesterday)", "(uid:1.2.3:=alice)", "(nothing:=a)", "(uid:integerMatch:=1)")
        # no text in any place of a substring match
        unknown += ("(uid=\\ff*)", "(uid=*\\ff)", "(uid=*\\ff*)", "(uid=a\\ff*e)", "(cn=a*\\ff*e)", "(mail=\\ff*)")
        self.verdicts(None, *unknown)
        self.verdicts(None, *(f"(!{each})" for each in unknown))

    def test_three_values(self) -> None:
        """Undefined spreads unless the rest decides."""
        t, f, u = "(uid=alice)", "(uid=bob)", "(unknown=1)"
        self.verdicts(True, f"(|{u}{t})", "(&)", f"(&{t}{t})", "(!(|))", f"(!(&{u}{f}))")
        self.verdicts(False, f"(&{u}{f})", "(|)", f"(|{f}{f})", f"(&{t}{f}{u})")
        self.verdicts(None, f"(&{u}{t})", f"(|{u}{f})", f"(!(&{u}{t}))")

    def test_many_alternatives(self) -> None:
        """Alternatives of one attribute, one of which does not fit."""
        self.verdicts(True, "(|(uid=bob)(uid=alice)(cn=x))")
        self.verdicts(None, "(|(uidNumber=x)(uidNumber=3))")
        self.verdicts(False, "(|(uid=a)(uid=b)(host=a)(host=b))")

    def test_supertype(self) -> None:
        """``name`` is every name."""
        self.verdicts(True, "(name=Alice Smith)", "(name=*)")
        self.verdicts(False, "(name=nobody)")

    def test_extensible(self) -> None:
        """With another rule, without attribute, within the DN, and by bits."""
        self.verdicts(True, "(uid:caseExactMatch:=Alice)", "(uid:=alice)", "(:caseIgnoreMatch:=ALICE)")
        self.verdicts(True, "(ou:dn:=People)", "(ou:dn:2.5.13.2:=PEOPLE)", "(:dn:caseIgnoreMatch:=people)")
        self.verdicts(True, "(uidNumber:1.2.840.113556.1.4.803:=64)", "(uidNumber:1.2.840.113556.1.4.804:=65)")
        self.verdicts(True, "(memberOf:distinguishedNameMatch:=cn=OPS,ou=groups,dc=example)")
        self.verdicts(False, "(uid:caseExactMatch:=alice)", "(uidNumber:1.2.840.113556.1.4.803:=65)", "(ou:dn:=x)")
        self.verdicts(False, "(ou:=people)", "(uidNumber:1.2.840.113556.1.4.804:=1)")

    def test_spaces_within_substrings(self) -> None:
        """A space at the inner end of a substring is meant."""
        self.verdicts(False, "(uid=ali *)")
        self.verdicts(True, "(cn=alice *)")


NAMES = st.sampled_from(["uid", "cn", "uidNumber", "host", "unknown", "objectClass", "modifyTimestamp", "memberOf"])
WORDS = st.sampled_from([b"alice", b"Alice", b"200000", b"200001", b"a", b"20260101123060Z", b"top", b"\xff", b"*()\\"])
LEAVES: st.SearchStrategy[Filter] = st.one_of(
    st.builds(Equal, NAMES, WORDS),
    st.builds(Approx, NAMES, WORDS),
    st.builds(Present, NAMES),
    st.builds(GreaterOrEqual, NAMES, WORDS),
    st.builds(LessOrEqual, NAMES, WORDS),
    st.builds(Substrings, NAMES, WORDS, st.lists(WORDS, max_size=2).map(tuple), st.none() | WORDS),
    st.builds(
        Extensible, st.sampled_from(["caseExactMatch", "integerMatch", "1.2"]), st.none() | NAMES, WORDS, st.booleans()
    ),
)
FILTERS: st.SearchStrategy[Filter] = st.recursive(
    LEAVES,
    lambda parts: st.one_of(
        st.lists(parts, max_size=3).map(lambda each: And(tuple(each))),
        st.lists(parts, max_size=3).map(lambda each: Or(tuple(each))),
        parts.map(Not),
    ),
    max_leaves=8,
)


def by_definition(filter: Filter) -> Verdict:
    """The truth tables of RFC 4511 section 4.5.1.7; items are evaluated one by one."""
    if isinstance(filter, And):
        found = [by_definition(part) for part in filter.parts]
        return False if False in found else None if None in found else True
    if isinstance(filter, Or):
        found = [by_definition(part) for part in filter.parts]
        return True if True in found else None if None in found else False
    if isinstance(filter, Not):
        inner = by_definition(filter.part)
        return None if inner is None else not inner
    return evaluate(filter)


class CompiledTests(SynchronousTestCase):
    @given(FILTERS)
    def test_tables(self, filter: Filter) -> None:
        """Whatever is decided beforehand, the outcome is that of the truth tables."""
        self.assertIs(evaluate(filter), by_definition(filter))

    @given(FILTERS)
    def test_text(self, filter: Filter) -> None:
        """A filter survives as text."""
        self.assertEqual(parse_text(to_text(filter)), filter)


def in_steps(filter: Filter, record: Record, holders: filters.Holders[Record] | None = None) -> tuple[Verdict, int]:
    """The outcome, and the number of steps that lead to it."""
    steps = filters.stepped(filter, RecordShape(record), holders)
    if not callable(steps):
        return steps, 0
    running = steps(record)
    for count in range(1_000_000):
        try:
            next(running)
        except StopIteration as end:
            return end.value, count
    raise AssertionError("it never ends")


class SteppedTests(SynchronousTestCase):
    @given(FILTERS, st.integers(1, 3))
    def test_same(self, filter: Filter, at_once: int) -> None:
        """In steps, however long, the outcome is the same; also where equality is looked up."""
        before, filters.VALUES_AT_ONCE = filters.VALUES_AT_ONCE, at_once
        try:
            self.assertIs(in_steps(filter, ALICE)[0], evaluate(filter))
            self.assertIs(in_steps(filter, ALICE, self.holders)[0], evaluate(filter))
        finally:
            filters.VALUES_AT_ONCE = before

    @staticmethod
    def holders(type_: AttributeType, value: bytes) -> Sequence[Record] | None:
        """What an index of everything but names says."""
        if type_.key == "cn":
            return None
        values = ALICE.get(type_.key, [])
        return [ALICE] if any(type_.normalise(own) == value for own in values) else []

    def test_steps(self) -> None:
        """Each term about many values takes a step for each part of them, unless it was decided before."""
        many: Record = {"cn": [b"value%d" % each for each in range(4 * filters.VALUES_AT_ONCE)]}
        for text, steps in (
            ("(cn=*x*)", 4),
            ("(|(cn=*x*)(cn=y)(cn=z)(cn>=z))", 8),
            ("(&(cn=*x*)(cn=*y*))", 4),
            ("(!(cn=value0))", 0),
            ("(&(!(cn=x))(!(cn=y)))", 8),
            ("(:caseIgnoreMatch:=x)", 4),
            ("(cn:dn:=x)", 5),
            ("(uid=*x*)", 0),
        ):
            self.assertEqual(in_steps(parse_text(text), many)[1], steps, text)

    def test_passes(self) -> None:
        """Over which attributes a filter goes, and how often; over what has one value, not at all."""
        cn, uid = schema.BY_NAME["cn"], schema.BY_NAME["uid"]
        for text, expected in (
            ("(|(cn=a)(cn=b)(commonName=c)(cn=d*))", {cn: 3}),
            ("(&(cn=a)(cn=b)(!(uid=c))(uidNumber=4)(cn=*)(objectClass=top))", {cn: 2, uid: 1}),
            ("(:caseIgnoreMatch:=x)", {None: 1}),
            ("(nonsense=x)", {}),
        ):
            self.assertEqual(filters.passes(parse_text(text)), expected, text)

    def test_dear(self) -> None:
        """Bytes that take long to normalise are counted; ordinary names do not."""
        for text, count in (
            ("(|(uid=alice)(member=uid=alice,ou=people,dc=x)(sudoUser=%admins)(cn=Alice Smith))", 0),
            ("(&(cn=\\c3\\a9)(!(cn=a\\c3\\a9*b*\\c3\\a9)))", 2 + 3 + 2),
            ("(|(member=uid=a\\5c,b,dc=x)(member=A=b)(cn=a  b)(cn=*)(:caseIgnoreMatch:=a  b))", 13 + 3 + 4 + 4),
        ):
            self.assertEqual(filters.dear_bytes(parse_text(text)), count, text)


class TextTests(SynchronousTestCase):
    def test_read(self) -> None:
        """What the parts of a text mean."""
        self.assertEqual(parse_text("(cn=a*b*c)"), Substrings("cn", b"a", (b"b",), b"c"))
        self.assertEqual(parse_text("(cn=*)"), Present("cn"))
        self.assertEqual(parse_text("(cn=)"), Equal("cn", b""))
        self.assertEqual(parse_text("(cn=\\2a\\c3\\a9)"), Equal("cn", b"*\xc3\xa9"))
        self.assertEqual(parse_text("(cn:dn:1.2:=x)"), Extensible("1.2", "cn", b"x", True))

    def test_bad(self) -> None:
        """A text that is no filter is a ValueError."""
        for text in (
            *("", "uid=a", "(uid=a", "(uid=a))", "(&(uid=a)", "(=a)", "(uid)", "(uid=a**b)", "(uid=\\2)", "(uid=\\zz)"),
            *("(!)", "(!(a=b)(c=d))", "(:=x)", "(a:b:c:=x)", "(a b=c)", "(uid=a(b)", "(" * 100),
            "(!" * 40 + "(a=b)" + ")" * 40,
            "(a=" + "b" * filters.MAX_TEXT + ")",
        ):
            with self.assertRaises(ValueError, msg=text[:40]):
                parse_text(text)
