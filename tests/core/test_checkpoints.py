"""Checkpoints: what is signed, and the statement read back in its one form."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from identree.core.checkpoints import (
    MOST_CHARACTERS,
    BadStatement,
    Standing,
    Statement,
    key_id,
    parse,
    signed_bytes,
    statement,
)

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
STANDING = Standing(instance="0123456789abcdef", seq=41, hash="1d" * 32, time=AT)
SIGNATURE = bytes(range(64))
TEXT = (
    f"seq=41 hash={'1d' * 32} time=2026-01-02T03:04:05Z instance=0123456789abcdef "
    "sig=AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8gISIjJCUmJygpKissLS4vMDEyMzQ1Njc4OTo7PD0-Pw"
)

standings = st.builds(
    Standing,
    instance=st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True),
    seq=st.integers(0, (1 << 64) - 1),
    hash=st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
    time=st.datetimes(min_value=datetime(1000, 1, 1), timezones=st.just(UTC)).map(lambda at: at.replace(microsecond=0)),
)


class StatementTests(SynchronousTestCase):
    def test_form(self) -> None:
        """The statement is a line that people can read, and is read back."""
        self.assertEqual(statement(STANDING, SIGNATURE), TEXT)
        self.assertEqual(parse(TEXT), Statement(standing=STANDING, signature=SIGNATURE))

    def test_signed(self) -> None:
        """What is signed names its purpose and every field."""
        self.assertEqual(
            signed_bytes(STANDING),
            b"identree audit checkpoint v1\ninstance=0123456789abcdef\nseq=41\nhash=%s\ntime=2026-01-02T03:04:05Z\n"
            % (b"1d" * 32),
        )

    def test_key_id(self) -> None:
        """A key is named by its hash: RFC 8032's first test key here."""
        raw = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
        self.assertEqual(key_id(raw), "21fe31dfa154a261")

    @given(standings, st.binary(min_size=64, max_size=64))
    def test_round_trip(self, standing: Standing, signature: bytes) -> None:
        """Whatever the values, the statement fits into a reason and is read back as it was."""
        text = statement(standing, signature)
        self.assertLessEqual(len(text), MOST_CHARACTERS)
        self.assertEqual(parse(text), Statement(standing=standing, signature=signature))

    @given(standings, standings)
    def test_distinct(self, one: Standing, other: Standing) -> None:
        """Two standings never sign the same bytes."""
        self.assertEqual(one == other, signed_bytes(one) == signed_bytes(other))

    @given(st.data())
    def test_any_character(self, data: st.DataObject) -> None:
        """No other text stands for the same statement."""
        at = data.draw(st.integers(0, len(TEXT)))
        text = TEXT[:at] + data.draw(st.sampled_from([" ", "A", "0", "_", "\n", "é", ""])) + TEXT[at + 1 :]
        if text != TEXT:
            try:
                found = parse(text)
            except BadStatement:
                return
            self.assertNotEqual(found, parse(TEXT))

    def test_refused(self) -> None:
        """Everything else is refused in plain words."""
        for text, why in (
            ("", "not of the form"),
            (TEXT + " ", "not of the form"),
            (TEXT.replace("seq=41", "seq=041"), "not of the form"),
            (TEXT.replace("seq=41", "seq=٤١"), "not of the form"),
            (TEXT.replace("seq=41", "seq=18446744073709551616"), "2\\^64-1"),
            (TEXT.replace("1d", "1D"), "not of the form"),
            (TEXT.replace("01-02T", "02-31T"), "does not exist"),
            (TEXT[:-1] + "x", "base64url"),
            (TEXT + "x" * 500, "500 characters"),
        ):
            with self.assertRaisesRegex(BadStatement, why):
                parse(text)

    def test_unfit(self) -> None:
        """What could not be read back is not written."""
        for standing in (
            replace(STANDING, instance="a b"),
            replace(STANDING, instance=""),
            replace(STANDING, seq=-1),
            replace(STANDING, hash=""),
            replace(STANDING, time=AT + timedelta(microseconds=1)),
        ):
            with self.assertRaises(BadStatement):
                statement(standing, SIGNATURE)
        with self.assertRaises(BadStatement):
            statement(STANDING, b"short")

    def test_other_zone(self) -> None:
        """The time is told in UTC, wherever it is from."""
        there = replace(STANDING, time=AT.astimezone(timezone(timedelta(hours=5))))
        self.assertEqual((statement(there, SIGNATURE), signed_bytes(there)), (TEXT, signed_bytes(STANDING)))
