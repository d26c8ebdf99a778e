"""The host registry, as its file says."""

import json

from twisted.trial.unittest import SynchronousTestCase

from identree.core.hosts import HostRegistry

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
                "bad name": {"secret": "d" * 64, "users": []},
            }
        )

    def test_names(self) -> None:
        """Names are normalised; null entries and impossible names are dropped and told."""
        self.assertEqual(self.registry.names, ("db01", "idle", "web01.example.com"))
        self.assertEqual(self.registry.dropped, ("gone", "bad name"))

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


class SuccessionTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.registry = parse({"web01": {"secret": WEB, "users": ["*"]}})

    def test_emptied(self) -> None:
        """A registry whose last host is removed while we run refuses everybody; it does not open to all."""
        after = self.registry.succeeded_by(parse({}))
        self.assertTrue(after.enabled)
        self.assertFalse(after.lists("web01", "alice"))
        self.assertIsNone(after.any_host(WEB.encode()))

    def test_stays_closed(self) -> None:
        """An emptied registry that is read again, still empty, stays closed."""
        self.assertTrue(self.registry.succeeded_by(parse({})).succeeded_by(parse({})).enabled)

    def test_filled_again(self) -> None:
        """The next registered host ends that."""
        after = self.registry.succeeded_by(parse({})).succeeded_by(self.registry)
        self.assertTrue(after.lists("web01", "alice"))

    def test_never_used(self) -> None:
        """Where there never was a registry, none is still none."""
        self.assertFalse(HostRegistry.empty().succeeded_by(parse({})).enabled)
