"""Languages, catalogues, and the sentences of message keys."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from shutil import copytree, ignore_patterns, rmtree
from zoneinfo import ZoneInfo

from twisted.trial.unittest import SynchronousTestCase

from identree.core import errors
from identree.web.render import templates_directory
from identree.web.translations import LANGUAGES, SENTENCES, Catalogues, zone
from tools import catalogues as tool

CATALOGUES = Catalogues(templates_directory() / "locale")
NOW = datetime(2026, 3, 4, 9, 30, tzinfo=UTC)

# The keys of LoginFailed and of the web adapter, which no class carries.
FURTHER_KEYS = [
    "login_state_invalid",
    "login_other_browser",
    "login_session_expired",
    "ip_binding_mismatch",
    "login_provider_error",
    "login_code_missing",
    "login_exchange_failed",
    "login_no_id_token",
    "login_token_invalid",
    "login_nonce_mismatch",
    "login_claims_invalid",
    "login_username_invalid",
    "provider_unavailable",
    "storage_unavailable",
    "invalid_form",
    "missing_fields",
    "invalid_username_format",
    "invalid_timestamp",
    "invalid_format",
    "too_many_requests",
    "challenge_expired_or_resolved",
    "approval_failed_message",
    "rejection_failed_message",
    "signed_out",
]


def _refusals(kind: type[errors.Refused]) -> set[str]:
    keys = {kind.key}
    for child in kind.__subclasses__():
        keys |= _refusals(child)
    return keys


class CatalogueTests(SynchronousTestCase):
    def test_complete(self) -> None:
        """Every message of the sources is in every catalogue, translated and sure, and the template is not stale."""
        self.assertEqual(list(tool.problems()), [])

    def test_languages_of_the_menu(self) -> None:
        """Every catalogue is in the menu, and every language of the menu has a catalogue."""
        self.assertEqual(tool.languages(), sorted(LANGUAGES))

    def test_formal(self) -> None:
        """German says Sie."""
        words = " ".join(str(message.string) for message in tool.read("de")).split()
        self.assertEqual({"du", "Du", "dein", "deine", "dich", "dir"} & set(words), set())

    def test_refusals_have_sentences(self) -> None:
        """Every refusal of the domain says what happened and what to do."""
        self.assertEqual(_refusals(errors.Refused) - set(SENTENCES), set())

    def test_further_keys_have_sentences(self) -> None:
        """So do the keys that are only named where they are raised."""
        self.assertEqual(set(FURTHER_KEYS) - set(SENTENCES), set())

    def test_sentences_are_translated(self) -> None:
        """Titles and sentences of all keys exist in German, filled in without an error."""
        german = CATALOGUES["de"]
        for message in SENTENCES.values():
            for text in (message.title, message.text):
                self.assertNotEqual(german.gettext(text), text)

    def test_compiled_from_source(self) -> None:
        """A catalogue without a compiled file is read from its source."""
        directory = Path(tempfile.mkdtemp())
        self.addCleanup(rmtree, directory)
        copytree(templates_directory() / "locale", directory, ignore=ignore_patterns("*.mo"), dirs_exist_ok=True)
        self.assertEqual(Catalogues(directory)["de"].gettext("Approve"), "Genehmigen")


class NegotiationTests(SynchronousTestCase):
    def choose(self, cookie: str, header: str) -> str:
        return CATALOGUES.negotiate(cookie, header).code

    def test_cookie_first(self) -> None:
        """What the person chose counts more than what the browser asks for."""
        self.assertEqual(self.choose("de", "en"), "de")

    def test_unknown_cookie(self) -> None:
        """An unknown language in the cookie is none."""
        self.assertEqual(self.choose("xx", "de"), "de")

    def test_quality(self) -> None:
        """The highest quality wins, wherever it stands."""
        self.assertEqual(self.choose("", "en;q=0.3, de-AT;q=0.8"), "de")

    def test_first_of_equal(self) -> None:
        """Of equal qualities the first wins."""
        self.assertEqual(self.choose("", "de, en"), "de")

    def test_refused_language(self) -> None:
        """A quality of zero means: not this one."""
        self.assertEqual(self.choose("", "de;q=0"), "en")

    def test_nonsense(self) -> None:
        """What is no header value is passed over."""
        self.assertEqual(self.choose("", "de;q=high, ;;;, de;q=9"), "en")

    def test_default(self) -> None:
        """English when nothing fits."""
        self.assertEqual(self.choose("", "fr, ja;q=0.5"), "en")


class ZoneTests(SynchronousTestCase):
    def test_known(self) -> None:
        """An IANA name is that zone."""
        self.assertEqual(zone("Europe/Berlin"), ZoneInfo("Europe/Berlin"))

    def test_anything_else(self) -> None:
        """Absent, unknown, hostile or overlong names mean UTC."""
        for name in ("", "Mars/Phobos", "../../etc/passwd", "/etc/localtime", "A" * 65, "Europe", "a b"):
            self.assertIs(zone(name), UTC)


class TimeTests(SynchronousTestCase):
    def test_ago(self) -> None:
        """One unit, rounded down; days have a plural."""
        english = CATALOGUES["en"]
        said = [english.ago(NOW - timedelta(seconds=s), NOW) for s in (0, 59, 60, 3599, 3600, 86399, 86400, 172800)]
        self.assertEqual(
            said,
            ["just now", "just now", "1 min ago", "59 min ago", "1 h ago", "23 h ago", "1 day ago", "2 days ago"],
        )

    def test_duration(self) -> None:
        """A policy's durations as people read them; all of each, and nothing lost."""
        german = CATALOGUES["de"]
        for text, wanted in (
            ("5m0s", "5 Min."),
            ("1m30s", "1 Min. 30 Sek."),
            ("25h1m0s", "1 T. 1 Std. 1 Min."),
            ("0s", "0 Sek."),
            ("1.5s", "1.5s"),
            ("-5m0s", "-5m0s"),
            ("soon", "soon"),
        ):
            self.assertEqual(german.duration(text), wanted)

    def test_lasting(self) -> None:
        """The two largest units."""
        german = CATALOGUES["de"]
        self.assertEqual(
            [german.lasting(s) for s in (-5, 45, 60, 86340, 86400, 90061)],
            ["0 Sek.", "45 Sek.", "1 Min.", "23 Std. 59 Min.", "1 T.", "1 T. 1 Std."],
        )

    def test_exact(self) -> None:
        """In the person's zone, and in UTC beside it."""
        said = CATALOGUES["de"].exact(NOW, zone("Europe/Berlin"))
        self.assertEqual(said, "04.03.2026, 10:30:00 CET (09:30:00 UTC)")

    def test_exact_in_utc(self) -> None:
        """UTC is said once."""
        self.assertTrue(CATALOGUES["de"].exact(NOW, UTC).endswith("09:30:00 UTC"))

    def test_clock_of_another_day(self) -> None:
        """A time that is not today names the day."""
        self.assertEqual(CATALOGUES["de"].clock(NOW + timedelta(days=1), UTC, NOW), "Do. 09:30")
