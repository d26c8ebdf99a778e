"""The host registry, as its file says."""

import json
from datetime import UTC, datetime
from hashlib import sha256

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from identree.core.errors import Invalid
from identree.core.hosts import (
    MOST_USERS,
    TOKEN_PREFIX,
    BadToken,
    HostEntry,
    HostRegistry,
    checked_group,
    checked_users,
    digest_of,
    registrable,
    token_digest,
)

WEB, DB = "a" * 64, "b" * 64


def parse(document: object) -> HostRegistry:
    return HostRegistry.parse(json.dumps(document).encode())


class HostRegistryTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.registry = parse(
            {
                "Web01.Example.com.": {
                    "secret": WEB,
                    "users": ["*"],
                    "group": "production",
                    "registered_at": "2026-04-17T20:55:14.123456789Z",
                    "cert_expires_at": "0001-01-01T00:00:00Z",
                },
                "db01": {"secret": DB, "users": ["alice"]},
                "idle": {"secret": "c" * 64, "users": None},
                "gone": None,
                "web..": {"secret": "e" * 64, "users": []},
                "bad name": {"secret": "d" * 64, "users": []},
            }
        )

    def test_names(self) -> None:
        """Names are normalised; null entries and impossible names are dropped and told."""
        self.assertEqual(self.registry.names, ("db01", "idle", "web01.example.com"))
        self.assertEqual(self.registry.dropped, ("gone", "web..", "bad name"))

    def test_matches(self) -> None:
        """A host's secret is its own, whatever the spelling of its name."""
        self.assertTrue(self.registry.matches("WEB01.example.com.", WEB.encode()))
        self.assertFalse(self.registry.matches("web01.example.com", DB.encode()))
        self.assertFalse(self.registry.matches("unknown", WEB.encode()))
        self.assertFalse(self.registry.matches("db01", b""))

    def test_any_host(self) -> None:
        """A secret leads to its host."""
        self.assertEqual(self.registry.any_host(DB.encode()), "db01")
        self.assertIsNone(self.registry.any_host(b"x" * 64))

    def test_lists(self) -> None:
        """The star lists everybody, an empty list nobody."""
        self.assertTrue(self.registry.lists("web01.example.com", "bob"))
        self.assertTrue(self.registry.lists("DB01", "alice"))
        self.assertFalse(self.registry.lists("db01", "bob"))
        self.assertFalse(self.registry.lists("idle", "alice"))
        self.assertFalse(self.registry.lists("unknown", "alice"))

    def test_group(self) -> None:
        """The label, or nothing."""
        self.assertEqual(self.registry.group("web01.example.com"), "production")
        self.assertEqual(self.registry.group("db01"), "")
        self.assertEqual(self.registry.group("unknown"), "")

    def test_no_secret_kept(self) -> None:
        """Neither the entries nor their repr have a secret."""
        self.assertNotIn(WEB, repr(vars(self.registry)))

    def test_empty(self) -> None:
        """An empty registry is disabled, and knows nobody."""
        registry = parse({})
        self.assertFalse(registry.enabled)
        self.assertFalse(registry.lists("web01", "alice"))
        self.assertTrue(self.registry.enabled)

    def test_fails_closed(self) -> None:
        """Whatever is not a registry stops the start; the message names the host and never the secret."""
        good = {"secret": WEB, "users": []}
        for raw in (b"", b"[]", b"null", b"{", b"\xff", b"[" * 100_000):
            self.assertRaises(ValueError, HostRegistry.parse, raw)
        documents: tuple[dict[str, object], ...] = (
            {"web": []},
            {"web": {"users": []}},
            {"web": {"secret": "", "users": []}},
            {"web": {"secret": "geheim", "users": []}},
            {"web": {**good, "users": "alice"}},
            {"web": {**good, "users": [1]}},
            {"web": {**good, "users": ["a b"]}},
            {"web": {**good, "group": "a b"}},
            {"web": good, "WEB": good},
        )
        for document in documents:
            e = self.assertRaises(ValueError, parse, document)
            self.assertIn("host web", str(e))
            self.assertNotIn("geheim", str(e))

    def test_nothing_left(self) -> None:
        """A file of which no entry is usable is not an empty registry."""
        self.assertRaises(ValueError, parse, {"bad name": None})


class ClosedTests(SynchronousTestCase):
    def test_closed(self) -> None:
        """A registry whose last host was removed refuses everybody; it does not open to all."""
        closed = HostRegistry.of((), closed=True)
        self.assertTrue(closed.enabled)
        self.assertFalse(closed.lists("web01", "alice"))
        self.assertIsNone(closed.any_host(WEB.encode()))


NAMES = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}[a-z0-9]", fullmatch=True)
TIMES = st.none() | st.datetimes(
    min_value=datetime(1971, 1, 1),
    max_value=datetime(2200, 1, 1),
    timezones=st.just(UTC),
).map(lambda at: at.replace(microsecond=0))
ENTRIES = st.builds(
    HostEntry,
    name=NAMES,
    digest=st.binary(min_size=32, max_size=32),
    users=st.frozensets(st.from_regex(r"[a-zA-Z0-9._-]{1,8}|\*", fullmatch=True), max_size=4),
    group=st.from_regex(r"[a-zA-Z0-9._-]{0,8}", fullmatch=True),
    registered_at=TIMES,
    certificate_ends=TIMES,
)


class ExportTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.registry = parse(
            {
                "web01": {
                    "secret": WEB,
                    "users": ["bob", "alice"],
                    "group": "production",
                    "registered_at": "2026-04-17T20:55:14.123456789Z",
                    "cert_expires_at": "0001-01-01T00:00:00Z",
                },
                "db01": {"secret": DB, "users": ["*"]},
            }
        )
        self.document = json.loads(self.registry.export())

    def test_form(self) -> None:
        """The documented form: keys sorted, two spaces, no group where there is none, year 1 for no time."""
        self.assertEqual(list(self.document), ["db01", "web01"])
        self.assertIn(b'\n  "db01": {\n    "secret": ', self.registry.export())
        web = self.document["web01"]
        self.assertEqual(list(web), ["secret", "secret_sha256", "users", "group", "registered_at", "cert_expires_at"])
        self.assertEqual((web["users"], web["group"]), (["alice", "bob"], "production"))
        self.assertEqual(web["registered_at"], "2026-04-17T20:55:14Z")
        self.assertEqual(web["cert_expires_at"], "0001-01-01T00:00:00Z")
        self.assertNotIn("group", self.document["db01"])

    def test_no_secret(self) -> None:
        """It has the digest; what stands where older programs look for the secret is long, and nobody's secret."""
        web, db = self.document["web01"], self.document["db01"]
        self.assertEqual(web["secret_sha256"], sha256(WEB.encode()).hexdigest())
        self.assertGreater(len(web["secret"]), 64)
        self.assertNotEqual(web["secret"], db["secret"])
        again = HostRegistry.parse(self.registry.export())
        self.assertFalse(again.matches("web01", web["secret"].encode()))
        self.assertFalse(again.matches("web01", web["secret_sha256"].encode()))
        self.assertTrue(again.matches("web01", WEB.encode()))

    def test_says_what_it_is(self) -> None:
        """An export is told from the file of an earlier version."""
        self.assertFalse(self.registry.exported)
        self.assertTrue(HostRegistry.parse(self.registry.export()).exported)

    def test_without_digests(self) -> None:
        """An export from which an older program has dropped the digests is no registry."""
        for entry in self.document.values():
            del entry["secret_sha256"]
        self.assertIn("the secret is missing", str(self.assertRaises(ValueError, parse, self.document)))

    def test_bad_digests(self) -> None:
        """A digest must be one."""
        for digest in ("", "A" * 64, "a" * 63, 1, None):
            entry = {"secret": WEB, "secret_sha256": digest, "users": []}
            self.assertIn("secret_sha256", str(self.assertRaises(ValueError, parse, {"web": entry})))

    def test_strange_times(self) -> None:
        """A time that cannot be read is not known; it stops nothing."""
        for text in ("", "yesterday", 5, None, "0001-01-01T00:00:00Z", "9999-12-31T23:59:59-23:59"):
            registry = parse({"web": {"secret": WEB, "users": [], "registered_at": text}})
            self.assertIsNone(registry.entries[0].registered_at)

    @given(st.lists(ENTRIES, max_size=5))
    def test_round_trip(self, entries: list[HostEntry]) -> None:
        """What is exported is read back, to the second."""
        registry = HostRegistry.of(entries)
        again = HostRegistry.parse(registry.export())
        self.assertEqual(again.entries, registry.entries)
        self.assertTrue(again.means(registry))

    def test_means(self) -> None:
        """Two registries that let in the same mean the same, whatever they know of times."""
        without = parse({"web01": {"secret": WEB, "users": ["alice", "bob"], "group": "production"}})
        self.assertFalse(self.registry.means(without))
        both = parse(
            {
                "web01": {"secret": WEB, "users": ["alice", "bob"], "group": "production"},
                "db01": {"secret": DB, "users": ["*"]},
            }
        )
        self.assertTrue(self.registry.means(both))
        other = parse(
            {
                "web01": {"secret": DB, "users": ["alice", "bob"], "group": "production"},
                "db01": {"secret": DB, "users": ["*"]},
            }
        )
        self.assertFalse(self.registry.means(other))


class FormTests(SynchronousTestCase):
    def test_names(self) -> None:
        """Stored in lower case, without the trailing dot."""
        self.assertEqual(registrable("Web01.Example.COM."), "web01.example.com")

    def test_refused_names(self) -> None:
        """No host names, names that mean something else, and numbers."""
        for name in (
            "",
            ".",
            "..",
            "a b",
            "web/1",
            "x" * 254,
            "LOCALHOST",
            "vpn.",
            "web1..",
            "12345",
            "-",
            "b\u00fccher",
        ):
            self.assertRaises(Invalid, registrable, name)

    def test_users(self) -> None:
        """Names, or everybody; some at least."""
        self.assertEqual(checked_users(["alice", "al.ice-1_"]), {"alice", "al.ice-1_"})
        self.assertEqual(checked_users(["*"]), {"*"})
        for users in ([], [""], ["a b"], ["a*"], ["x" * 65], [f"u{n}" for n in range(MOST_USERS + 1)]):
            self.assertRaises(Invalid, checked_users, users)

    def test_groups(self) -> None:
        """One label."""
        self.assertEqual(checked_group("production"), "production")
        for group in ("", "a b", "x" * 65, "a,b"):
            self.assertRaises(Invalid, checked_group, group)

    def test_tokens(self) -> None:
        """A token is known by its form; nothing else is looked up."""
        token = TOKEN_PREFIX + "a" * 64
        self.assertEqual(token_digest(token), digest_of(token))
        for text in ("", "a" * 64, token.upper(), token + "a", token[:-1], f" {token}"):
            self.assertRaises(BadToken, token_digest, text)
