"""Distinguished names."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from identree.directory.dn import MAX_CHARACTERS, MAX_FOLDED_CHARACTERS, escape, normal, parse

VALUES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20)


class NormalTests(SynchronousTestCase):
    def test_same(self) -> None:
        """Spelling that does not matter."""
        for one, other in (
            ("uid=alice,ou=people,dc=x", "UID = Alice , OU=People,dc=X"),
            ("uid=alice,dc=x", "0.9.2342.19200300.100.1.1=alice,DomainComponent=x"),
            ("uid=alice,dc=x", "oid.0.9.2342.19200300.100.1.1=alice;dc=x"),
            ("cn=a b,dc=x", "cn=a  \\ b  ,dc=x"),
            ("cn=a\\,b,dc=x", "cn=a\\2cb,dc=x"),
            ("cn=a\\,b,dc=x", 'cn="a,b",dc=x'),
            ("cn=alice,dc=x", "cn=#0c05616c696365,dc=x"),
            ("cn=a+uid=b,dc=x", "uid=B+cn=A,dc=x"),
            ("cn=straße,dc=x", "cn=STRASSE,dc=x"),
            ("cn=é", "cn=e\\cc\\81"),
        ):
            self.assertEqual(normal(one), normal(other))

    def test_different(self) -> None:
        """Spelling that does."""
        for one, other in (
            ("uid=alice,dc=x", "uid=alice,dc=y"),
            ("uid=alice,dc=x", "cn=alice,dc=x"),
            ("uid=a,dc=x", "uid=a\\,dc=x"),
            ("cn=a b", "cn=ab"),
            ("cn=a,cn=b", "cn=a+cn=b"),
        ):
            self.assertNotEqual(normal(one), normal(other))

    def test_empty(self) -> None:
        """The root DSE has a DN too."""
        self.assertEqual((normal(""), normal("  "), parse("").parent), ("", "", None))

    def test_bad(self) -> None:
        """What is no DN is refused, whatever it is."""
        for text in (
            *(
                "alice",
                "=a",
                "uid=a,",
                "uid=a,,dc=x",
                "uid=a+",
                "uid=a\\",
                "uid=a\\zz",
                "uid=a\\ff",
                "u id=a",
                'uid="a',
            ),
            *(
                'uid="a"b',
                "uid=a<b",
                "uid=#",
                "uid=#0c",
                "uid=#0c0161zz",
                "uid=#300161",
                "uid=a\0",
                ",",
                "+",
                "uid=\ud800",
            ),
            "dc=" + "a" * MAX_CHARACTERS,
            "dc=" + "\ufdfa" * MAX_FOLDED_CHARACTERS,
            ",".join(["dc=a"] * 200),
        ):
            with self.assertRaises(ValueError):
                normal(text)

    @given(st.text(max_size=40))
    def test_any_text(self, text: str) -> None:
        """Any text is a DN or a ValueError, and a normal form is its own."""
        try:
            found = normal(text)
        except ValueError:
            return
        self.assertEqual(normal(found), found)

    @given(st.lists(VALUES, min_size=1, max_size=4))
    def test_escaped(self, values: list[str]) -> None:
        """Whatever is escaped comes back."""
        found = parse(",".join(f"cn={escape(value)}" for value in values))
        self.assertEqual([pair[0][1] for pair in found.rdns], values)

    def test_parts(self) -> None:
        """The parts of a DN, and what is above it."""
        found = parse("cn=A+uid=b,OU=c,dc=d")
        self.assertEqual(found.rdn, (("cn", "A"), ("uid", "b")))
        above = found.parent
        assert above is not None
        self.assertEqual(above.normal, "ou=c,dc=d")


class EscapeTests(SynchronousTestCase):
    def test_vectors(self) -> None:
        """What the contract says (spec/ldap section 13)."""
        for value, escaped in (
            ("with,comma", "with\\,comma"),
            ("#leading", "\\#leading"),
            ("trailing ", "trailing\\ "),
            (" leading", "\\ leading"),
            (" ", "\\ "),
            ("  ", "\\ \\ "),
            ('+"\\<>;=', '\\+\\"\\\\\\<\\>\\;\\='),
            ("\0", "\\00"),
            ("a#b", "a#b"),
        ):
            self.assertEqual(escape(value), escaped)
