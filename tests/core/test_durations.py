"""Durations as text."""

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from identree.core import durations


class ParseTests(SynchronousTestCase):
    def test_values(self) -> None:
        """The syntax of settings."""
        for text, seconds in (
            ("0", 0),
            ("-0", 0),
            ("120s", 120),
            ("1h30m", 5400),
            ("1.5s", 1.5),
            (".5h", 1800),
            ("1.m", 60),
            ("-2m", -120),
            ("+2m", 120),
            ("250ms", 0.25),
            ("10us", 0.00001),
            ("10µs", 0.00001),
            ("10μs", 0.00001),
            ("1500ns", 0.000001),
            ("8760h", 8760 * 3600),
            ("1s1s", 2),
        ):
            self.assertEqual(durations.parse(text), timedelta(seconds=seconds), text)

    def test_refused(self) -> None:
        """No days, no bare numbers, no blanks, no other digits."""
        for text in ("", "1d", "120", "1 s", " 1s", "1s ", "s", ".s", "1h30", "--1s", "1e3s", "١s", "1,5s", "1S", "+"):
            self.assertRaises(ValueError, durations.parse, text)

    def test_bounded(self) -> None:
        """More than 64-bit nanoseconds, or a text of any length, is refused."""
        self.assertRaises(ValueError, durations.parse, "2562048h")
        self.assertRaises(ValueError, durations.parse, "1" * 50 + "h")
        self.assertRaises(ValueError, durations.parse, "0" * 100000 + "1s")


class RenderTests(SynchronousTestCase):
    def test_forms(self) -> None:
        """The form that hosts read."""
        for seconds, text in (
            (0, "0s"),
            (2, "2s"),
            (1.5, "1.5s"),
            (90, "1m30s"),
            (600, "10m0s"),
            (3600, "1h0m0s"),
            (86400, "24h0m0s"),
            (0.0015, "1.5ms"),
            (0.00001, "10µs"),
            (-90, "-1m30s"),
            (0.25, "250ms"),
        ):
            self.assertEqual(durations.render(timedelta(seconds=seconds)), text)

    @given(st.timedeltas(timedelta(days=-100_000), timedelta(days=100_000)))
    def test_round_trip(self, duration: timedelta) -> None:
        """What is rendered reads back exactly."""
        self.assertEqual(durations.parse(durations.render(duration)), duration)


class WordsTests(SynchronousTestCase):
    def test_words(self) -> None:
        """Hours and minutes, seconds below a minute."""
        for seconds, text in (
            (-5, "0s"),
            (0, "0s"),
            (12, "12s"),
            (59, "59s"),
            (60, "1m"),
            (47 * 60 + 59, "47m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 12 * 60, "3h 12m"),
        ):
            self.assertEqual(durations.words(seconds), text)
