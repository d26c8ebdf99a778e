"""Matching rules, and the schema as it is published."""

import re

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from identree.directory import schema
from identree.directory.schema import BY_NAME, CLASSES, RULES


class RuleTests(SynchronousTestCase):
    def same(self, attribute: str, one: bytes, other: bytes) -> bool:
        normalise = BY_NAME[attribute].normalise
        found = normalise(one)
        return found is not None and found == normalise(other)

    def test_case(self) -> None:
        """Names and hosts have no case; paths, keys, members and sudo's users do (spec/ldap section 14.18)."""
        for attribute in ("uid", "cn", "mail", "gecos", "host", "sudohost", "objectclass", "ou", "entryuuid"):
            self.assertTrue(self.same(attribute, b"alice", b"ALICE"), attribute)
        for attribute in ("memberuid", "homedirectory", "loginshell", "sshpublickey", "sudouser", "sudocommand"):
            self.assertFalse(self.same(attribute, b"alice", b"ALICE"), attribute)

    def test_spaces(self) -> None:
        """Outer spaces and the number of inner ones do not matter in text, and do in octets."""
        self.assertTrue(self.same("cn", b"a b", b"  A   b "))
        self.assertFalse(self.same("cn", b"ab", b"a b"))
        self.assertFalse(self.same("sshpublickey", b"a b", b"a  b"))

    def test_unicode(self) -> None:
        """Text beyond ASCII is compared in its composed form and without case."""
        self.assertTrue(self.same("cn", "É".encode(), "e\u0301".encode()))

    def test_unfit(self) -> None:
        """Values that do not fit their rule have no normal form."""
        for attribute, value in (
            *(("cn", b"\xff"), ("cn", b""), ("cn", b" "), ("mail", b"\xc3\xa9"), ("memberuid", b"\xff")),
            *(
                ("uidnumber", b"0x10"),
                ("uidnumber", b"007"),
                ("uidnumber", b""),
                ("uidnumber", b"-0"),
                ("uidnumber", b"1 "),
            ),
            *(("uidnumber", b"9" * 100), ("member", b"nonsense"), ("member", b"\xff"), ("objectclass", b"a b")),
            *(("modifytimestamp", b"2026"), ("modifytimestamp", b"20260101123059"), ("hassubordinates", b"true")),
        ):
            self.assertIsNone(BY_NAME[attribute].normalise(value), (attribute, value))

    def test_integers(self) -> None:
        """Numbers order as numbers."""
        order = BY_NAME["uidnumber"].order
        assert order is not None
        self.assertEqual(sorted([b"10", b"9", b"-5", b"0"], key=order), [b"-5", b"0", b"9", b"10"])

    def test_impossible_time(self) -> None:
        """sssd counts a timestamp up as a number; the result is later than the time and earlier than the next one."""
        normalise = BY_NAME["modifytimestamp"].normalise
        found = [normalise(b"2026010112%sZ" % each) for each in (b"3059", b"3060", b"3100")]
        self.assertNotIn(None, found)
        self.assertEqual(found, sorted(found, key=lambda each: each or b""))
        self.assertEqual(len(set(found)), 3)

    def test_times(self) -> None:
        """One instant in several spellings."""
        for one, other in (
            (b"20260101120000Z", b"202601011200Z"),
            (b"20260101120000Z", b"2026010112Z"),
            (b"20260101120000Z", b"20260101120000.0Z"),
            (b"20260101120000.5Z", b"20260101120000,50Z"),
            (b"20260101000000Z", b"20251231230000-0100"),
            (b"20260301000000Z", b"20260301013000+0130"),
            (b"20240229233000Z", b"20240301003000+01"),
        ):
            self.assertTrue(self.same("modifytimestamp", one, other), (one, other))

    @given(st.sampled_from(sorted(BY_NAME)), st.binary(max_size=20))
    def test_idempotent(self, name: str, value: bytes) -> None:
        """A normal form is its own, except for times, which leave their spelling behind."""
        normalise = BY_NAME[name].normalise
        found = normalise(value)
        if found is not None and BY_NAME[name].equality.family != "time":
            self.assertEqual(normalise(found), found)

    def test_names(self) -> None:
        """Types are known by alias and OID."""
        self.assertIs(BY_NAME["2.5.4.3"], BY_NAME["cn"])
        self.assertIs(BY_NAME["commonname"], BY_NAME["cn"])
        self.assertIs(BY_NAME["userid"], BY_NAME["uid"])

    def test_superclasses(self) -> None:
        """An inetOrgPerson is a person."""
        found = schema.with_superclasses((b"inetOrgPerson", b"posixAccount"))
        self.assertEqual(found, {b"inetorgperson", b"organizationalperson", b"person", b"top", b"posixaccount"})

    def test_structural(self) -> None:
        """The class that names the entry."""
        people = (b"top", b"posixAccount", b"shadowAccount", b"inetOrgPerson")
        self.assertEqual(schema.structural_class(people), b"inetOrgPerson")
        self.assertEqual(schema.structural_class((b"top", b"sudoRole")), b"sudoRole")
        self.assertIsNone(schema.structural_class((b"top",)))

    def test_known(self) -> None:
        """A type, its subtypes, one with a language, one with an option of no meaning here, and an unknown one."""
        known = schema.known
        self.assertEqual([each.name for each in known("NAME") or ()], ["name", "cn", "sn", "givenName", "o", "ou"])
        self.assertEqual(known("cn;lang-de"), ())
        self.assertIsNone(known("cn;binary"))
        self.assertIsNone(known("krbPrincipalName"))


class SubschemaTests(SynchronousTestCase):
    def test_closed(self) -> None:
        """Whatever a class or type refers to is there, and no OID is given twice."""
        for class_ in CLASSES.values():
            for name in (*class_.must, *class_.may):
                self.assertIn(name.lower(), BY_NAME)
            if class_.sup:
                self.assertIn(class_.sup.lower(), CLASSES)
        types = set(BY_NAME.values())
        for type_ in types:
            if type_.sup:
                self.assertIn(type_.sup.lower(), BY_NAME)
        oids = [each.oid for each in (*types, *set(CLASSES.values()), *set(RULES.values()))]
        self.assertEqual(len(oids), len(set(oids)))

    def test_syntaxes(self) -> None:
        """Every syntax that is used is listed."""
        listed = {each.split()[1].decode() for each in dict(schema.subschema())["ldapSyntaxes"]}
        used = {type_.syntax for type_ in BY_NAME.values()} | {rule.syntax for rule in RULES.values()}
        self.assertEqual(used - listed, set())

    def test_form(self) -> None:
        """Descriptions have the form of RFC 4512."""
        for name, values in schema.subschema()[2:]:
            for value in values:
                self.assertRegex(
                    value.decode(), re.compile(r"\( [0-9.]+ (NAME|DESC) [^()]*(\( [^()]+ \)[^()]*)*\)"), name
                )
