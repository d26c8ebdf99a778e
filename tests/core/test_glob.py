"""The pattern language."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from identree.core.glob import Glob


def naive(pattern: str, text: str) -> bool:
    """The definition, for patterns of letters, ``/``, ``*`` and ``?`` only."""
    if not pattern:
        return not text
    if pattern[0] == "*":
        return naive(pattern[1:], text) or (text[:1] not in ("", "/") and naive(pattern, text[1:]))
    return (
        bool(text)
        and (pattern[0] == text[0] or (pattern[0] == "?" and text[0] != "/"))
        and naive(pattern[1:], text[1:])
    )


class GlobTests(SynchronousTestCase):
    def test_matches(self) -> None:
        """What the table of the contract says."""
        for pattern, text in (
            ("", ""),
            ("*", ""),
            ("*", "web01.example.com"),
            ("**", "web01"),
            ("prod-*", "prod-1"),
            ("*-db-*", "eu-db-1"),
            ("web0?", "web01"),
            ("web[0-9a]", "weba"),
            ("web[^0-9]", "webx"),
            ("[!a]", "!"),
            ("[^a]", "/"),
            ("a[/]b", "a/b"),
            ("\\*", "*"),
            ("[\\]]", "]"),
            ("[\\-a]", "-"),
            ("[a-\\c]", "b"),
            ("[^^]", "a"),
            ("{a}", "{a}"),
            ("?", "ü"),
            ("*[^x]b", "a/b"),
        ):
            self.assertTrue(Glob(pattern).matches(text), (pattern, text))

    def test_does_not_match(self) -> None:
        """Slashes stop stars; case counts; the whole string counts."""
        for pattern, text in (
            ("*", "a/b"),
            ("?", "/"),
            ("", "a"),
            ("web", "Web"),
            ("web", "web01"),
            ("web*", "my-web"),
            ("[^a]", "a"),
            ("[!a]", "b"),
            ("[b-a]", "a"),
            ("prod-*", ""),
        ):
            self.assertFalse(Glob(pattern).matches(text), (pattern, text))

    def test_malformed(self) -> None:
        """A malformed pattern is an error wherever it is malformed."""
        for pattern in ("[", "[]", "[]a]", "[a", "[a-", "[a-]", "[-a]", "[^]", "a\\", "[\\", "x[a-]y", "b" * 513):
            self.assertRaises(ValueError, Glob, pattern)

    @given(st.text("ab/*?", max_size=8), st.text("ab/", max_size=8))
    def test_definition(self, pattern: str, text: str) -> None:
        """It agrees with the definition."""
        self.assertEqual(Glob(pattern).matches(text), naive(pattern, text))

    @given(st.text("a-z[]^\\*?b", max_size=10), st.text("a-z[]^\\*?b", max_size=10))
    def test_total(self, pattern: str, text: str) -> None:
        """Any pattern compiles or is a ValueError; any compiled one answers."""
        try:
            glob = Glob(pattern)
        except ValueError:
            return
        glob.matches(text)

    @given(
        st.lists(st.sampled_from(["*", "*", "a", "b", "ab", "/", "?", "[^a]"]), max_size=8),
        st.text("ab/", max_size=12),
        st.booleans(),
    )
    def test_fast(self, pieces: list[str], text: str, slashes: bool) -> None:
        """The short way and the one that follows all choices at once say the same."""
        glob = Glob("".join(pieces), slashes=slashes)
        self.assertEqual(glob.matches(text), glob._follow(text))

    def test_no_explosion(self) -> None:
        """Many stars cost their number, not a power of it."""
        self.assertFalse(Glob("*a" * 200 + "b").matches("a" * 253))
