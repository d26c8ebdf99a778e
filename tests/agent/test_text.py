"""Cleaning of strangers' text, durations, remaining times, catalogues."""

from __future__ import annotations

import string
import unittest

from hypothesis import given
from hypothesis import strategies as st

from identree.agent import messages
from identree.agent.journal import line
from identree.agent.text import clean, duration, shown


class CleanTests(unittest.TestCase):
    def test_line_breaks(self) -> None:
        """Line breaks and tabs become blanks, and none are left around the text."""
        self.assertEqual(clean("\ta\r\nb\tc\u2028d\n"), "a  b c d")

    def test_terminal_controls(self) -> None:
        """Escape, C1 controls, direction and zero-width characters and lone surrogates are dropped."""
        self.assertEqual(clean("a\x1b[2J\x9b1m\u202eb\u2066\u200b\ufeff\ud800c\x7f"), "a[2J1mbc")

    def test_limit(self) -> None:
        """The limit counts what is left, and a huge text is not worked through."""
        self.assertEqual(clean("\x00" * 10 + "abcdef", 5), "abcde")
        self.assertEqual(len(clean("ä" * 10_000_000, 7)), 7)

    @given(st.text(st.characters(), max_size=200))
    def test_one_safe_line(self, text: str) -> None:
        """What goes out is one line that every encoder takes, and cleaning it again changes nothing."""
        cleaned = clean(text)
        cleaned.encode()
        self.assertFalse(any(ord(char) < 32 or 0x7F <= ord(char) < 0xA0 for char in cleaned))
        self.assertEqual(clean(cleaned), cleaned)


class ShownTests(unittest.TestCase):
    def test_padding(self) -> None:
        """A command whose end is pushed behind the limit by blanks is shown as one that goes on."""
        self.assertEqual(shown("sh -c 'echo hi" + " " * 3000 + "; rm -rf /'", 2000), "sh -c 'echo hi…")
        self.assertEqual(shown("sh -c 'echö hi" + " " * 3000 + "; rm -rf /'", 2000), "sh -c 'echö hi…")

    def test_escapes(self) -> None:
        """Escapes that make it longer than the limit do not hide that it was cut either."""
        self.assertEqual(shown("a\x1b\x1b", 6), "a\\x1b…")

    @given(st.text(st.characters(), max_size=60), st.integers(2, 60))
    def test_nothing_disappears(self, text: str, limit: int) -> None:
        """Within the limit, and marked exactly when something is missing."""
        result = shown(text, limit)
        self.assertLessEqual(len(result), limit)
        if not result.endswith("…"):
            self.assertEqual(result, shown(text, 100_000))


class DurationTests(unittest.TestCase):
    def test_values(self) -> None:
        """Sums of number and unit, with sign and fraction; zero needs no unit."""
        for text, seconds in {
            "2s": 2,
            "1m30s": 90,
            "1.5s": 1.5,
            "-2s": -2,
            "+1h": 3600,
            "0": 0,
            "250ms": 0.25,
            "10m0s": 600,
            "5us": 5e-6,
            "5µs": 5e-6,
            ".5s": 0.5,
        }.items():
            value = duration(text)
            assert value is not None, text
            self.assertAlmostEqual(value, seconds)

    def test_nonsense(self) -> None:
        """No unit, no number, unknown units, blanks, absurd lengths."""
        for text in ("", "2", "s", "2 s", "2d", "1.2.3s", "-", "--1s", "2s3", "9" * 40 + "s", "1s" * 40, "²s", ".s"):
            self.assertIsNone(duration(text), text)

    @given(st.text(string.digits + ".smhnu+-", max_size=70))
    def test_never_raises(self, text: str) -> None:
        """Nothing makes the parser fail."""
        value = duration(text)
        self.assertTrue(value is None or abs(value) <= 1e9)


class RemainingTests(unittest.TestCase):
    def test_format(self) -> None:
        """Hours and minutes; seconds only below a minute; never negative."""
        for seconds, text in {11520: "3h 12m", 10800: "3h", 2820: "47m", 59: "59s", 0: "0s", -5: "0s"}.items():
            self.assertEqual(messages.remaining("en", seconds), text)

    def test_german(self) -> None:
        """Units are translated."""
        self.assertEqual(messages.remaining("de", 11520), "3h 12min")


class CatalogueTests(unittest.TestCase):
    def test_same_keys_and_places(self) -> None:
        """Every catalogue has English's keys, with the same named places."""
        for name, catalogue in messages.CATALOGUES.items():
            self.assertEqual(set(catalogue), set(messages.ENGLISH), name)
            for key, text in catalogue.items():
                self.assertEqual(self.places(text), self.places(messages.ENGLISH[key]), (name, key))

    @staticmethod
    def places(text: str) -> set[str]:
        return {field for _, field, _, _ in string.Formatter().parse(text) if field is not None}

    def test_language(self) -> None:
        """The first variable that names a known language decides; C and POSIX name none."""
        for environ, wanted in (
            ({"LANG": "de_AT.UTF-8"}, "de"),
            ({"LC_ALL": "C", "LC_MESSAGES": "fr_FR.UTF-8", "LANG": "de_DE.UTF-8", "LC_CTYPE": "C.UTF-8"}, "en"),
            ({"LC_MESSAGES": "de_DE.UTF-8", "LANG": "en_US.UTF-8"}, "de"),
            ({"LANG": "sv_SE.UTF-8"}, "en"),
            ({"LANG": "de_DE"}, "en"),
            ({"LANG": "ja_JP.UTF-8"}, "ja"),
            ({}, "en"),
        ):
            self.assertEqual(messages.language(environ), wanted, environ)

    def test_missing_catalogue(self) -> None:
        """A language without catalogue yet is spoken to in English."""
        self.assertEqual(messages.say("ko", "approved"), "sudo approved")


class JournalTests(unittest.TestCase):
    def test_line(self) -> None:
        """Fields with blanks or quotes are quoted, empty ones left out, controls removed."""
        text = line(user="alice", result="denied", reason='not "now"\n', detail="", status=0)
        self.assertEqual(text, 'user=alice result=denied reason="not \\"now\\"" status=0')
