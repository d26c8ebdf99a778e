"""What may come through the door."""

import string

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from identree.core import names
from identree.core.challenge import HostContext
from identree.core.errors import Invalid

NAME_CHARACTERS = string.ascii_letters + string.digits + "._-"


class NameTests(SynchronousTestCase):
    @given(st.text(NAME_CHARACTERS, min_size=1, max_size=64))
    def test_username(self, text: str) -> None:
        """All names of the contract's characters and lengths are taken as they are."""
        self.assertEqual(names.username(text), text)

    def test_bad_username(self) -> None:
        """Anything else is refused, with the message key of the pages."""
        for text in ("", "a" * 65, "a b", "alice\n", "al:ice", "älice", "a/b", "١"):
            e = self.assertRaises(Invalid, names.username, text)
            self.assertEqual(e.key, "invalid_username_format")

    def test_hostname(self) -> None:
        """Lower case, one trailing dot removed."""
        self.assertEqual(names.hostname("Web01.Example.COM."), "web01.example.com")
        self.assertEqual(names.hostname("h" * 253 + "."), "h" * 253)

    def test_bad_hostname(self) -> None:
        """Empty after normalisation, too long, or of other characters: refused. The Kelvin sign is no K."""
        for text in ("", ".", "web..", "h" * 254, "h" * 255, "web 01", "web01\n", "web_ü", "\u212aelvin"):
            self.assertRaises(Invalid, names.hostname, text)

    def test_optional_hostname(self) -> None:
        """A host may have no name."""
        self.assertEqual(names.optional_hostname(""), "")
        self.assertRaises(Invalid, names.optional_hostname, ".")

    @given(st.text(NAME_CHARACTERS, min_size=1, max_size=253))
    def test_normalised_once(self, text: str) -> None:
        """A normalised name without trailing dot is its own normal form."""
        name = names.normalised_hostname(text).rstrip(".")
        self.assertEqual(names.normalised_hostname(name), name)

    def test_challenge_id(self) -> None:
        """32 hex digits in either case."""
        self.assertEqual(names.challenge_id("00112233445566778899aabbccddeeff"), "00112233445566778899aabbccddeeff")
        names.challenge_id("A" * 32)
        for text in ("", "0" * 31, "0" * 33, "g" * 32, "0" * 32 + "\n"):
            e = self.assertRaises(Invalid, names.challenge_id, text)
            self.assertEqual(e.key, "missing_fields")

    def test_user_code(self) -> None:
        """Six letters but I and O, a hyphen, six ASCII digits."""
        self.assertEqual(names.user_code("ABCDEF-123456"), "ABCDEF-123456")
        for text in ("", "ABCDEI-123456", "ABCDEO-123456", "abcdef-123456", "ABCDEF123456", "ABCDEF-١٢٣٤٥٦"):
            self.assertRaises(Invalid, names.user_code, text)


class ReasonTests(SynchronousTestCase):
    def test_trim_and_cut(self) -> None:
        """White space around it goes, then what is beyond 500 characters."""
        self.assertEqual(names.reason("\u3000 disk full\t\r\n"), "disk full")
        self.assertEqual(names.reason("é" * 600), "é" * 500)

    def test_tab(self) -> None:
        """TAB may stand inside."""
        self.assertEqual(names.reason("disk\tfull"), "disk\tfull")

    def test_control(self) -> None:
        """Other control characters are refused, also at the ends, where str.strip() would take some away."""
        for text in ("a\nb", "a\x00b", "\x1cdisk", "a\x1b[2Jb"):
            self.assertRaises(Invalid, names.reason, text)

    def test_control_behind_the_cut(self) -> None:
        """What is cut away is not looked at."""
        self.assertEqual(names.reason("a" * 500 + "\x00b"), "a" * 500)

    def test_decisions(self) -> None:
        """A decision's reason never fails: an invalid one is absent."""
        self.assertEqual(names.decision_reason("a\nb"), "")
        self.assertEqual(names.decision_reason(" ok "), "ok")

    @given(st.text(st.characters(), max_size=600))
    def test_encodable(self, text: str) -> None:
        """Whatever passes is short, stays the same when checked again but for its trimmed end, and is UTF-8."""
        said = names.decision_reason(text)
        said.encode()
        self.assertLessEqual(len(said), 500)
        self.assertTrue(said.startswith(names.reason(said)))


class HostContextTests(SynchronousTestCase):
    def test_told(self) -> None:
        """Unicode text is taken as it is."""
        self.assertEqual(
            names.host_context("cat /srv/Übersicht", "/srv", "pts/3", "2001:db8::1"),
            HostContext(command="cat /srv/Übersicht", cwd="/srv", tty="pts/3", remote_host="2001:db8::1"),
        )

    def test_absent(self) -> None:
        """All of it is optional."""
        self.assertEqual(names.host_context(), HostContext())

    def test_unshowable(self) -> None:
        """Control, invisible and direction characters are refused, and the field is named."""
        for character in "\t\n\x00\x1b\x7f\x9b\u202e\u2066\u200b\u200f\ufeff\u2028\ud800":
            e = self.assertRaises(Invalid, names.host_context, "ls", f"/{character}x")
            self.assertIn("cwd", e.detail)

    def test_bounds(self) -> None:
        """Each field has its limit; a command is not cut, since its end matters to who approves it."""
        for field, limit in (("command", 1024), ("cwd", 512), ("tty", 64), ("remote_host", 253)):
            names.host_context(**{field: "x" * limit})
            e = self.assertRaises(Invalid, names.host_context, **{field: "x" * (limit + 1)})
            self.assertIn(field, e.detail)


class LocalPathTests(SynchronousTestCase):
    def test_paths(self) -> None:
        """Local paths are taken, decoded once."""
        for text, path in (
            ("/", "/"),
            ("/admin/hosts", "/admin/hosts"),
            ("%2Fadmin%2Fhosts", "/admin/hosts"),
            ("/a b\x01c", "/abc"),
            ("/%C3%BC", "/%C3%BC"),
            ("/%252e", "/%252e"),
        ):
            self.assertEqual(names.local_path(text), path)

    def test_foreign(self) -> None:
        """Whatever could lead elsewhere leads home."""
        for text in (
            "",
            "admin",
            "//evil.example",
            "/ /evil.example",
            "/%09/evil.example",
            "/\\evil.example",
            "/%5Cevil",
            "https://evil.example",
            "/a?b",
            "/a%3Fb",
            "/a#b",
            "/%zz",
            "/" + "a" * 512,
        ):
            self.assertEqual(names.local_path(text), "/", text)

    def test_return_path(self) -> None:
        """The variant for logins keeps the query."""
        self.assertEqual(names.return_path("/approve/ABCDEF-123456?x=%2F"), "/approve/ABCDEF-123456?x=%2F")
        for text in ("", "x", "//e", "/\\e", "/a\\b", "/a b", "/a\r\nSet-Cookie:x", "/ü", "/a#b", "/" + "a" * 512):
            self.assertEqual(names.return_path(text), "/", text)

    @given(st.text(alphabet="/\\.?#%25cCeE \t\n\r@:aä\x00", max_size=20))
    def test_stays_here(self, text: str) -> None:
        """No result has a second slash or a backslash behind the first, a line break, or other than ASCII."""
        for path in (names.local_path(text), names.return_path(text)):
            self.assertRegex(path, r"\A/(?![/\\])[!-~]*\Z")
