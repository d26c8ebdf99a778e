"""Passwords in HashiCorp Vault, against a stand-in that refuses what the real one refuses."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger, formatEvent

from identree.app.escrow import Stored
from identree.clients.escrow.vault import VaultBackend
from tests.clients.escrow.case import PASSWORD, URL, BehaviourContract, EscrowTestCase
from tests.clients.escrow.standins import Vault

TOKEN = "hvs.given-by-the-administrator"
SECRET_ID = "secret-id-of-the-role"


class VaultTestCase(EscrowTestCase):
    secrets = (TOKEN, SECRET_ID, "hvs.login-")

    def setUp(self) -> None:
        super().setUp()
        self.lines: list[str] = []
        self.patch(VaultBackend, "_log", Logger(observer=lambda event: self.lines.append(formatEvent(event))))
        self.server = Vault({TOKEN: 3600})
        self.backend = self.build()

    def build(self, **changes: Any) -> VaultBackend:
        values: dict[str, Any] = {
            "http": self.http(self.server),
            "clock": self.clock,
            "monotonic": self.clock.seconds,
            "url": URL + "/",
            "auth_id": "",
            "auth_secret": TOKEN,
            "path": "secret/identree",
            "vault_map": {},
            **changes,
        }
        return VaultBackend(**values)

    def role(self, **changes: Any) -> VaultBackend:
        return self.build(**{"auth_id": "role-1", "auth_secret": SECRET_ID, **changes})

    def writes(self) -> list[str]:
        return [line for line in self.server.asked if "/data/" in line]


class StoringTests(VaultTestCase, BehaviourContract):
    write = "POST /v1/secret/data/identree/web1"

    def setUp(self) -> None:
        super().setUp()
        self.server.replies["PUT /v1/secret/data/identree/web1"] = []

    def answer(self, *replies: Any) -> None:
        super().answer(*replies)
        self.server.replies["PUT /v1/secret/data/identree/web1"] = list(replies)

    def test_path(self) -> None:
        """The prefix is one segment; the id is the whole address."""
        self.backend = self.build(path="secret/a/b c")
        self.assertEqual(self.store(), Stored(item_id=f"{URL}/v1/secret/data/a%2Fb%20c/web1"))
        self.assertEqual(self.server.asked, ["POST /v1/secret/data/a%2Fb%20c/web1"])
        self.assertEqual(self.server.secrets, {"a/b c/web1": [{"password": PASSWORD}]})

    def test_document(self) -> None:
        """The password under its name, as JSON, with the token in its header only."""
        self.store()
        self.assertEqual(self.server.sent, [{"data": {"password": PASSWORD}}])
        self.assertEqual(self.server.headers[0]["x-vault-token"], TOKEN)
        self.assertEqual(self.server.headers[0]["content-type"], "application/json")
        self.assertNotIn("x-vault-namespace", self.server.headers[0])

    def test_put(self) -> None:
        """Where POST is not allowed, PUT is; its error counts."""
        self.server.only = "PUT"
        self.store()
        self.assertEqual([line.split()[0] for line in self.server.asked], ["POST", "PUT"])
        self.server.only = "GET"
        self.assertIn("HTTP 405", self.failed(self.backend.store("web1", PASSWORD)))

    def test_redirected_once(self) -> None:
        """After a redirection PUT is not tried."""
        self.refused(*[(307, {})] * 2)
        self.assertEqual(self.server.asked, [self.write])

    def test_namespace(self) -> None:
        """Sent where it is set, to the login too."""
        self.server.namespace = "team/a"
        self.assertIn("HTTP 403", self.failed(self.backend.store("web1", PASSWORD)))
        self.backend = self.build(namespace="team/a")
        self.store()
        self.backend = self.role(namespace="team/a")
        self.store()

    def test_sealed(self) -> None:
        """The message says what is the matter."""
        self.server.sealed = True
        self.assertIn("Vault is sealed", self.failed(self.backend.store("web1", PASSWORD)))

    def test_wrong_mount(self) -> None:
        """The message names the settings."""
        self.backend = self.build(path="other")
        self.assertIn("IDENTREE_ESCROW_PATH", self.failed(self.backend.store("web1", PASSWORD)))

    def test_no_place(self) -> None:
        """A host without a place in the map is refused before anything is sent."""
        self.backend = self.build(path="", vault_map={"db*": "secret"})
        self.assertIn("IDENTREE_ESCROW_PATH", self.failed(self.backend.store("web1", PASSWORD)))
        self.assertEqual(self.server.asked, [])

    def test_settings(self) -> None:
        """What cannot work is refused at once, and names the setting."""
        for changes, name in (
            ({"url": ""}, "ESCROW_URL"),
            ({"url": "ftp://x"}, "ESCROW_URL"),
            ({"url": "https://u:p4ssword@vault"}, "ESCROW_URL"),
            ({"url": "https://vault/?x"}, "ESCROW_URL"),
            ({"auth_secret": ""}, "ESCROW_AUTH_SECRET"),
            ({"auth_secret": "tökén"}, "ESCROW_AUTH_SECRET"),
            ({"auth_secret": "to\nken"}, "ESCROW_AUTH_SECRET"),
            ({"path": ""}, "ESCROW_PATH"),
            ({"path": "secret/../x"}, "ESCROW_PATH"),
            ({"vault_map": {"a": "secret/./x"}}, "ESCROW_PATH"),
        ):
            with self.assertRaises(ValueError) as raised:
                self.build(**changes)
            self.assertIn(name, str(raised.exception))
            self.assertNotIn("p4ssword", str(raised.exception))

    def test_cancelled(self) -> None:
        """Who stops waiting ends the request."""
        self.answer(None)
        waiting = Deferred.fromCoroutine(self.backend.store("web1", PASSWORD))
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])


MAP = {"db*": "secret/databases", "default": "secret/others"}


class RetrievingTests(VaultTestCase):
    def test_mapped(self) -> None:
        """What the map has led elsewhere is found, with the stored id and without one."""
        self.backend = self.build(vault_map=MAP)
        stored = self.store("db1")
        self.assertEqual(self.server.secrets, {"databases/db1": [{"password": PASSWORD}]})
        self.assertEqual(self.retrieve("db1", stored.item_id), PASSWORD)
        self.assertEqual(self.retrieve("db1"), PASSWORD)

    def test_changed_map(self) -> None:
        """The id leads to where it was stored, whatever the map says now."""
        stored = self.store("db1")
        self.backend = self.build(vault_map=MAP)
        self.assertEqual(self.retrieve("db1", stored.item_id), PASSWORD)

    def test_moved(self) -> None:
        """What was moved in Vault is found at its place by the map, and at last by the path."""
        item = f"{URL}/v1/secret/data/old/db1"
        self.server.secrets["databases/db1"] = [{"password": "by map"}]
        self.server.secrets["identree/db1"] = [{"password": "by path"}]
        self.backend = self.build(vault_map=MAP)
        self.assertEqual(self.retrieve("db1", item), "by map")
        del self.server.secrets["databases/db1"]
        self.assertEqual(self.retrieve("db1", item), "by path")
        del self.server.secrets["identree/db1"]
        self.assertIn("HTTP 404", self.failed(self.backend.retrieve("db1", item, "")))

    def test_moved_server(self) -> None:
        """Only the address that is set now is asked, and so only it sees the token."""
        self.server.secrets["identree/web1"] = [{"password": PASSWORD}]
        item = "https://old.example/v1/secret/data/identree/web1"
        self.assertEqual(self.retrieve("web1", item), PASSWORD)

    def test_denied(self) -> None:
        """A refusal other than a missing secret ends the search."""
        self.server.replies["GET /v1/secret/data/old/web1"] = [(403, {"errors": ["permission denied"]})]
        self.assertIn("HTTP 403", self.failed(self.backend.retrieve("web1", f"{URL}/v1/secret/data/old/web1", "")))
        self.assertEqual(len(self.server.asked), 1)

    def test_without_password(self) -> None:
        """A secret of another form, an empty password, an answer that is no object."""
        for secret in ({"pass": "x"}, {"password": ""}, {"password": 5}):
            self.server.secrets["identree/web1"] = [secret]
            self.assertIn("no password", self.failed(self.backend.retrieve("web1", "", "")))
        for raw in (b"", b"[]", b"{", b'{"data": 1}', b"[" * 100_000):
            self.server.replies["GET /v1/secret/data/identree/web1"] = [(200, raw)]
            self.assertIn("no password", self.failed(self.backend.retrieve("web1", "", "")))


class AppRoleTests(VaultTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.backend = self.role()

    def test_once(self) -> None:
        """One login serves all operations of its lease."""
        for _ in range(3):
            self.store()
        self.assertEqual((self.server.logins, self.server.renewals), (1, 0))

    def test_at_once(self) -> None:
        """Hosts that come at the same time share one login."""
        work = [Deferred.fromCoroutine(self.backend.store(f"web{number}", PASSWORD)) for number in range(5)]
        for one in work:
            self.successResultOf(one)
        self.assertEqual(self.server.logins, 1)

    def test_renewed(self) -> None:
        """After half of its time the token is renewed rather than asked for anew."""
        self.store()
        self.clock.advance(1801)
        self.store()
        self.assertEqual((self.server.logins, self.server.renewals), (1, 1))
        self.clock.advance(1700)
        self.store()
        self.assertEqual((self.server.logins, self.server.renewals), (1, 1))

    def test_ended(self) -> None:
        """After its time there is a new login."""
        self.store()
        self.clock.advance(3600)
        self.store()
        self.assertEqual((self.server.logins, self.server.renewals), (2, 0))

    def test_not_renewed(self) -> None:
        """A token that is not renewed for long, or not at all, is replaced."""
        self.store()
        self.server.longest = 5
        self.clock.advance(1801)
        self.store()
        self.assertEqual(self.server.logins, 2)
        self.server.renewable = False
        self.clock.advance(1801)
        self.store()
        self.assertEqual(self.server.logins, 3)

    def test_no_lease(self) -> None:
        """Without a word about its life a token is used once."""
        self.server.ttl = 0
        self.store()
        self.store()
        self.assertEqual(self.server.logins, 2)

    def test_revoked(self) -> None:
        """A kept token that is refused is replaced, once."""
        self.store()
        self.server.tokens.clear()
        self.store()
        self.assertEqual(self.server.logins, 2)
        self.server.role = "another"
        self.server.tokens.clear()
        self.assertIn("invalid role", self.failed(self.backend.store("web1", PASSWORD)))

    def test_denied(self) -> None:
        """A new token that may not do it is not replaced again and again."""
        path = "/v1/secret/data/identree/web1"
        for method in ("POST", "PUT"):
            self.server.replies[f"{method} {path}"] = [(403, {"errors": ["permission denied"]})] * 9
        self.assertIn("permission denied", self.failed(self.backend.store("web1", PASSWORD)))
        self.assertEqual(self.server.logins, 1)

    def test_answers(self) -> None:
        """A login without a token is a failure."""
        for answer in ({}, {"auth": None}, {"auth": {"client_token": ""}}, {"auth": {"client_token": "a\nb"}}):
            self.server.replies["POST /v1/auth/approle/login"] = [(200, answer)]
            self.assertIn("no token", self.failed(self.backend.store("web1", PASSWORD)))

    def test_slow_login(self) -> None:
        """The login counts into the half minute, also of those who wait for it."""
        self.server.replies["POST /v1/auth/approle/login"] = [None, None]
        first = Deferred.fromCoroutine(self.backend.store("web1", PASSWORD))
        self.clock.advance(20)
        second = Deferred.fromCoroutine(self.backend.store("web2", PASSWORD))
        self.clock.advance(10.1)
        self.failureResultOf(first)
        self.clock.advance(20)
        self.failureResultOf(second)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.store()


class GivenTokenTests(VaultTestCase):
    def keep(self) -> None:
        self.result(self.backend.keep())

    def test_renewed(self) -> None:
        """It is renewed at half of its life, however rarely a host comes."""
        self.keep()
        self.assertEqual(self.server.renewals, 0)
        for _ in range(10):
            self.clock.advance(1801)
            self.keep()
            self.keep()
        self.assertEqual(self.server.renewals, 10)
        self.assertEqual(self.lines, [])

    def test_endless(self) -> None:
        """A root token is asked about once."""
        self.server.tokens[TOKEN] = 0
        for _ in range(3):
            self.keep()
            self.clock.advance(100_000)
        self.assertEqual(len(self.server.asked), 1)

    def test_not_renewable(self) -> None:
        """Its end is announced, once."""
        self.server.renewable = False
        for _ in range(3):
            self.keep()
            self.clock.advance(100)
        self.assertEqual(len(self.lines), 1)
        self.assertIn("cannot be renewed and ends in 1.0 hours", self.lines[0])

    def test_longest_life(self) -> None:
        """So is that of one that gets no more time."""
        self.keep()
        self.clock.advance(1801)
        self.server.longest = 1799
        self.keep()
        self.assertIn("longest life", self.lines[0])

    def test_trouble(self) -> None:
        """A failure is logged once, tried again, and its end is logged."""
        self.server.sealed = True
        self.keep()
        self.keep()
        self.server.sealed = False
        self.keep()
        self.assertEqual(len(self.lines), 2)
        self.assertIn("Vault is sealed", self.lines[0])
        self.assertIn("again", self.lines[1])
        self.assertNotIn(TOKEN, "".join(self.lines))

    def test_check(self) -> None:
        """Whether the token is good."""
        self.result(self.backend.check())
        self.server.tokens.clear()
        self.assertIn("HTTP 403", self.failed(self.backend.check()))
