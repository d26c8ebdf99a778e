"""The token cache: what is kept, what of it is believed, and how seldom the provider is asked."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
import time
import unittest
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from identree.agent import journal, tokencache
from identree.agent.config import Config
from identree.agent.tokencache import KEYS_FILE, Hit, forget, lookup, revoke, session, store
from identree.agent.watch import Watch
from identree.agent.wire import Client, WireError
from tests.agent.scripted import SECRET, Answer, Request, ScriptedServer
from tests.agent.test_jwt import ec_jwk, make, rsa_jwk

NOW = 1_800_000_000
HOST = "web01.example.com"


def rfc3339(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


class CacheCase(unittest.TestCase):
    """
    A provider and a server in one, and a cache directory.

    :ivar now: unix seconds. :ivar answers: by path. :ivar asked: the paths that were asked for.
    """

    def setUp(self) -> None:
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.directory = Path(temporary.name) / "identree"
        self.directory.mkdir(0o755)
        self.server = ScriptedServer(self.answer)
        self.addCleanup(self.server.stop)
        self.issuer = f"{self.server.url}/idp"
        self.now = float(NOW)
        self.keys: list[object] = [rsa_jwk(), ec_jwk()]
        self.etag = ""
        self.document: dict[str, object] = {
            "issuer": self.issuer,
            "jwks_uri": f"{self.server.url}/keys?p=1",
            "id_token_signing_alg_values_supported": ["RS256", "ES256"],
        }
        self.grace = Answer(200, {"grace_remaining": 0})
        self.config = self.configured()
        self.records: list[str] = []
        patch = mock.patch.object(journal, "_send", lambda priority, text: self.records.append(text))
        patch.start()
        self.addCleanup(patch.stop)

    def configured(self, **values: str) -> Config:
        return Config(
            "client.conf",
            {
                "IDENTREE_SERVER_URL": self.server.url,
                "IDENTREE_SHARED_SECRET": SECRET,
                "IDENTREE_INSECURE_ALLOW_HTTP_ESCROW": "true",
                "IDENTREE_HOSTNAME": HOST,
                "IDENTREE_TOKEN_CACHE_DIR": str(self.directory),
                "IDENTREE_TOKEN_CACHE_ISSUER": self.issuer,
                "IDENTREE_TOKEN_CACHE_CLIENT_ID": "identree",
                **values,
            },
        )

    def answer(self, request: Request) -> Answer:
        if request.path == "/idp/.well-known/openid-configuration":
            return Answer(200, self.document)
        if request.path == "/keys":
            if self.etag and request.headers.get("if-none-match") == self.etag:
                return Answer(304, b"", {"Content-Length": "0"})
            return Answer(200, {"keys": self.keys}, {"ETag": self.etag} if self.etag else {})
        if request.path == "/api/grace-status":
            return self.grace
        return Answer(404, {})

    @property
    def asked(self) -> list[str]:
        return [request.path for request in self.server.requests]

    def token(self, algorithm: str = "RS256", **changed: object) -> str:
        claims = {
            "iss": self.issuer,
            "aud": "identree",
            "exp": NOW + 3600,
            "preferred_username": "alice",
            **changed,
        }
        return make(algorithm, {k: v for k, v in claims.items() if v is not None})

    def look(self, user: str = "alice", hostname: str = HOST) -> Hit | None:
        return lookup(self.config, user, hostname, now=lambda: self.now)

    @property
    def file(self) -> Path:
        return self.directory / HOST / "alice"

    def hit(self) -> Hit:
        found = self.look()
        assert found is not None, self.records
        return found


class OffTests(CacheCase):
    def test_off(self) -> None:
        """Without issuer or client id, or when it is switched off, there is no cache, and no error."""
        for values in (
            {"IDENTREE_TOKEN_CACHE_ISSUER": ""},
            {"IDENTREE_TOKEN_CACHE_CLIENT_ID": ""},
            {"IDENTREE_TOKEN_CACHE_ENABLED": "false"},
            {"IDENTREE_TOKEN_CACHE_DIR": "relative"},
        ):
            config = self.configured(**values)
            with self.subTest(values):
                self.assertNotEqual(tokencache.off(config), "")
                self.assertFalse(store(config, "alice", HOST, self.token()))
                self.assertIsNone(lookup(config, "alice", HOST))
        self.assertEqual((list(self.directory.iterdir()), self.asked), ([], []))
        self.assertEqual(tokencache.off(self.config), "")

    def test_pushed_off(self) -> None:
        """The server's setting switches it off for this run."""
        store(self.config, "alice", HOST, self.token())
        self.config.push_verified({"token_cache_enabled": False})
        self.assertIsNone(self.look())


class StoreTests(CacheCase):
    def test_stored(self) -> None:
        """The file of the contract: token and its end, 0600, in a directory 0700."""
        token = self.token()
        self.assertTrue(store(self.config, "alice", HOST, token))
        self.assertEqual(json.loads(self.file.read_text()), {"id_token": token, "expires_at": rfc3339(NOW + 3600)})
        self.assertEqual(self.file.stat().st_mode & 0o777, 0o600)
        self.assertEqual(self.file.parent.stat().st_mode & 0o777, 0o700)
        self.assertEqual([path.name for path in self.file.parent.iterdir()], ["alice"])

    def test_directory_is_made(self) -> None:
        """After a reboot the whole directory is missing."""
        self.directory.rmdir()
        self.assertTrue(store(self.config, "alice", HOST, self.token()))
        self.assertEqual(self.directory.stat().st_mode & 0o777, 0o700)

    def test_mode_is_repaired(self) -> None:
        """A host directory of another mode gets its own again."""
        self.file.parent.mkdir(0o755)
        self.assertTrue(store(self.config, "alice", HOST, self.token()))
        self.assertEqual(self.file.parent.stat().st_mode & 0o777, 0o700)

    def test_no_token(self) -> None:
        """Not three parts, no end, too long to be read back: a warning, and nothing kept; no part of it in the log."""
        for bad in (
            "",
            "secret.part",
            "a.b.c.d",
            self.token(exp=None),
            self.token(exp="soon"),
            self.token(exp=True),
            self.token(exp=float("1e300")),
            self.token(pad="x" * 20000),
            "x" * 70000,
        ):
            self.assertFalse(store(self.config, "alice", HOST, bad))
        self.assertEqual([p for p in self.directory.rglob("*") if p.is_file()], [])
        self.assertTrue(self.records)
        self.assertNotIn("secret", "".join(self.records))

    def test_names(self) -> None:
        """Names that are no parts of a path."""
        for user, host in (
            ("../alice", HOST),
            ("", HOST),
            ("alice", ".."),
            ("alice", "."),
            ("alice", "a/b"),
            ("alice", ""),
            ("alice", "UPPER"),
            (".hidden", HOST),
            ("a\0b", HOST),
            ("alice", "@jwks"),
        ):
            with self.subTest((user, host)):
                self.assertFalse(store(self.config, user, host, self.token()))
                self.assertIsNone(self.look(user, host))
                forget(self.config, user, host)
        self.assertEqual(list(self.directory.iterdir()), [])

    def test_planted_links(self) -> None:
        """A link in place of the file, of the host's directory or of the cache: nothing is written through it."""
        elsewhere = self.directory.parent / "elsewhere"
        elsewhere.mkdir()
        victim = elsewhere / "victim"
        victim.write_text("untouched")
        self.file.parent.mkdir(0o700)
        self.file.symlink_to(victim)
        self.assertFalse(store(self.config, "alice", HOST, self.token()))
        self.file.unlink()
        self.file.parent.rmdir()
        self.file.parent.symlink_to(elsewhere)
        self.assertFalse(store(self.config, "alice", HOST, self.token()))
        self.file.parent.unlink()
        self.directory.rmdir()
        self.directory.symlink_to(elsewhere)
        self.assertFalse(store(self.config, "alice", HOST, self.token()))
        self.assertEqual([p.name for p in elsewhere.iterdir()], ["victim"])
        self.assertEqual(victim.read_text(), "untouched")

    def test_locked(self) -> None:
        """Who holds the file for too long keeps the new token out, and is not waited for without end."""
        store(self.config, "alice", HOST, self.token())
        before = self.file.read_text()
        with open(self.file) as held, mock.patch.object(tokencache, "LOCK_SECONDS", 0.05):
            fcntl.flock(held, fcntl.LOCK_SH)
            self.assertFalse(store(self.config, "alice", HOST, self.token(exp=NOW + 9999)))
            self.assertIsNotNone(self.look())
            fcntl.flock(held, fcntl.LOCK_EX)
            self.assertIsNone(self.look())
        self.assertEqual(self.file.read_text(), before)
        self.assertEqual([p.name for p in self.file.parent.iterdir()], ["alice"])

    def test_forget(self) -> None:
        """Forgetting removes it; twice is once."""
        store(self.config, "alice", HOST, self.token())
        forget(self.config, "alice", HOST)
        forget(self.config, "alice", HOST)
        self.assertFalse(self.file.exists())

    def test_revoke(self) -> None:
        """A verified revocation forgets what is older, and what it cannot date; never what is younger."""
        for revoked, kept in ((rfc3339(NOW - 10), True), (rfc3339(NOW + 10), False), ("yesterday", False), ("", True)):
            store(self.config, "alice", HOST, self.token())
            os.utime(self.file, (NOW, NOW))
            revoke(self.config, "alice", HOST, revoked)
            self.assertEqual(self.file.exists(), kept, revoked)


class FileTests(CacheCase):
    def setUp(self) -> None:
        super().setUp()
        store(self.config, "alice", HOST, self.token())

    def missed(self) -> None:
        self.assertIsNone(self.look())
        self.assertEqual(self.asked, [])  # nobody is asked for the sake of a file that does not count

    def test_hit(self) -> None:
        """A good token: its text, the seconds up to its end less the margin, and when it was kept."""
        os.utime(self.file, (NOW - 5, NOW - 5))
        hit = self.hit()
        self.assertEqual((hit.token, hit.remaining, hit.mtime), (self.token(), 3570, NOW - 5))

    def test_nobody(self) -> None:
        """No file for this user or host: a miss without a word in the log."""
        self.assertIsNone(self.look("bob"))
        self.assertIsNone(self.look(hostname="other"))
        self.assertEqual((self.records, self.asked), ([], []))

    def test_mode(self) -> None:
        """A file that others can read or write."""
        for mode in (0o640, 0o604, 0o620, 0o601):
            self.file.chmod(mode)
            self.missed()

    def test_owner(self) -> None:
        """A file or directory of somebody else."""
        if os.geteuid() != 0:
            self.skipTest("only root gives files away")
        for path in (self.file, self.file.parent, self.directory):
            os.chown(path, 12345, 0)
            self.missed()
            os.chown(path, 0, 0)

    def test_open_directory(self) -> None:
        """A directory that others can write to: they could have moved a file there."""
        for path in (self.file.parent, self.directory):
            path.chmod(0o777)
            self.missed()
            path.chmod(0o755)
        self.hit()

    def test_links(self) -> None:
        """A symbolic link, also to a good file."""
        real = self.file.parent / "real"
        self.file.rename(real)
        self.file.symlink_to(real)
        self.missed()

    def test_not_regular(self) -> None:
        """A fifo does not keep sudo waiting."""
        self.file.unlink()
        os.mkfifo(self.file, 0o600)
        self.missed()

    def test_damaged(self) -> None:
        """No JSON, no object, missing or wrong parts, an empty file."""
        for text in ("", "{", "[]", "null", '{"id_token": ""}', '{"id_token": "a.b.c"}', "[" * 16000):
            self.file.write_text(text)
            self.missed()
        for value in ({"id_token": 1, "expires_at": rfc3339(NOW + 99)}, {"id_token": "a.b.c", "expires_at": "never"}):
            self.file.write_text(json.dumps(value))
            self.missed()

    def test_ended(self) -> None:
        """From half a minute before its end on it does not count."""
        self.now = NOW + 3600 - 31
        self.hit()
        self.server.requests.clear()
        self.now = NOW + 3600 - 30
        self.missed()

    def test_truncated_reading(self) -> None:
        """Only the first 16 KiB are read; what is longer is no JSON then."""
        value = json.loads(self.file.read_text())
        self.file.write_text(json.dumps({**value, "pad": "x" * 20000}))
        self.missed()


class TokenTests(CacheCase):
    def miss(self, token: str) -> None:
        self.assertTrue(store(self.config, "alice", HOST, token))
        self.assertIsNone(self.look())

    def test_claims(self) -> None:
        """Another issuer, audience, user, or time."""
        for changed in (
            {"iss": "https://other.example"},
            {"iss": self.issuer + "/"},
            {"aud": "other"},
            {"aud": ["other"]},
            {"aud": None},
            {"aud": {"identree": 1}},
            {"preferred_username": "bob"},
            {"preferred_username": "Alice"},
            {"preferred_username": None},
            {"nbf": NOW + 301},
            {"nbf": "now"},
        ):
            with self.subTest(changed):
                self.miss(self.token(**changed))

    def test_allowed(self) -> None:
        """Several audiences with ours, a beginning within the leeway, the other algorithm."""
        for token in (
            self.token(aud=["other", "identree"]),
            self.token(nbf=NOW + 299),
            self.token("ES256"),
        ):
            store(self.config, "alice", HOST, token)
            self.hit()

    def test_end_in_the_file_lies(self) -> None:
        """The end that counts is also the one that is signed."""
        store(self.config, "alice", HOST, self.token(exp=NOW - 1))
        value = json.loads(self.file.read_text())
        self.file.write_text(json.dumps({**value, "expires_at": rfc3339(NOW + 9999)}))
        self.assertIsNone(self.look())

    def test_other_key(self) -> None:
        """A token by a key that the provider does not have, under an id that it has."""
        from cryptography.hazmat.primitives.asymmetric import ec

        claims = {"iss": self.issuer, "aud": "identree", "exp": NOW + 3600, "preferred_username": "alice"}
        self.miss(make("ES256", claims, key=ec.generate_private_key(ec.SECP256R1())))

    def test_moved(self) -> None:
        """Alice's token in Bob's file is nobody's."""
        store(self.config, "alice", HOST, self.token())
        self.file.rename(self.file.parent / "bob")
        self.assertIsNone(self.look("bob"))


class ProviderTests(CacheCase):
    DISCOVERY, JWKS = "/idp/.well-known/openid-configuration", "/keys"

    def setUp(self) -> None:
        super().setUp()
        self.etag = '"one"'
        store(self.config, "alice", HOST, self.token(exp=NOW + 10**6))

    def test_kept(self) -> None:
        """The provider is asked once in six hours; its keys stand in a file of root's alone."""
        self.hit()
        self.assertEqual(self.asked, [self.DISCOVERY, self.JWKS])
        self.assertEqual((self.directory / KEYS_FILE).stat().st_mode & 0o777, 0o600)
        self.now += 6 * 3600 - 1
        self.hit()
        self.assertEqual(len(self.asked), 2)
        self.now += 1
        self.hit()
        self.assertEqual(len(self.asked), 4)

    def test_not_modified(self) -> None:
        """After that the provider is asked whether its keys have changed; if not, the kept ones go on."""
        self.hit()
        self.now += 7 * 3600
        self.hit()
        self.assertEqual(self.server.requests[-1].headers.get("if-none-match"), '"one"')
        self.keys, self.etag = [ec_jwk()], '"two"'
        self.now += 7 * 3600
        self.assertIsNone(self.look())

    def test_no_secret_to_the_provider(self) -> None:
        """The host's secret is for the server alone."""
        self.hit()
        self.assertTrue(all("x-shared-secret" not in request.headers for request in self.server.requests))

    def test_query_in_the_address(self) -> None:
        """A provider may have a query in the address of its keys."""
        self.hit()
        self.assertEqual(self.server.requests[-1].query, {"p": "1"})

    def test_changed_keys(self) -> None:
        """A token by a new key makes us fetch the keys, but not again and again."""
        keys = self.keys
        self.keys = [rsa_jwk(kid="old")]
        self.assertIsNone(self.look())  # fetched, unknown key, and fetched a moment ago
        self.assertEqual(len(self.asked), 2)
        self.keys, self.etag = keys, '"two"'
        self.assertIsNone(self.look())
        self.assertEqual(len(self.asked), 2)
        self.now += tokencache.PAUSE_SECONDS
        self.hit()
        self.assertEqual(len(self.asked), 4)

    def test_provider_down(self) -> None:
        """Without the provider fresh keys go on; old ones do not, and it is not tried at every sudo."""
        self.hit()
        self.server.stop()
        self.now += 6 * 3600 - 1
        self.hit()
        self.now += 2
        self.assertIsNone(self.look())
        with mock.patch.object(tokencache, "_ProviderClient", side_effect=AssertionError("asked again")):
            self.now += tokencache.PAUSE_SECONDS - 1
            self.assertIsNone(self.look())

    def test_clock_set_back(self) -> None:
        """Keys of the future are fetched anew."""
        self.hit()
        self.now -= 3600
        self.hit()
        self.assertEqual(len(self.asked), 4)

    def test_wrong_documents(self) -> None:
        """Another issuer, no address, another scheme, a broken body, another status: a miss each."""
        good = dict(self.document)
        for changed in (
            {"issuer": self.issuer + "/"},
            {"issuer": None},
            {"jwks_uri": None},
            {"jwks_uri": "file:///etc/passwd"},
            {"jwks_uri": "https://user@host/keys"},
            {"jwks_uri": f"{self.server.url}/keys?a b"},
            {"jwks_uri": f"{self.server.url}/nothing"},
            {"id_token_signing_alg_values_supported": ["HS256", "none"]},
        ):
            with self.subTest(changed):
                self.document = {**good, **changed}
                (self.directory / KEYS_FILE).unlink(missing_ok=True)
                self.assertIsNone(self.look())

    def test_no_algorithms(self) -> None:
        """A provider that lists no algorithms uses RS256."""
        del self.document["id_token_signing_alg_values_supported"]
        self.hit()
        store(self.config, "alice", HOST, self.token("ES256"))
        self.assertIsNone(self.look())

    def test_planted_keys(self) -> None:
        """Kept keys that others could have written, of another issuer, or damaged, are fetched anew."""
        self.hit()
        path = self.directory / KEYS_FILE
        good = path.read_text()
        for text, mode in (
            (good, 0o644),
            (good.replace(self.issuer, "https://other.example"), 0o600),
            ("{}", 0o600),
            ("[", 0o600),
            ("[1]", 0o600),
        ):
            path.write_text(text)
            path.chmod(mode)
            self.server.requests.clear()
            self.hit()
            self.assertEqual(len(self.asked), 2)
            self.assertEqual(path.stat().st_mode & 0o777, 0o600)

    def test_plain_provider(self) -> None:
        """Where the server is spoken to by HTTPS, the provider is too, or not at all."""
        self.config.scheme = "https"
        self.assertIsNone(self.look())
        self.assertEqual(self.asked, [])

    def test_the_person_leaves(self) -> None:
        """Ctrl-C while the provider is asked ends the waiting."""
        from identree.agent.watch import Cancelled

        watch = Watch(parent=False)

        def leave() -> None:
            raise Cancelled

        watch.on_tick = leave
        with self.assertRaises(Cancelled):
            lookup(self.config, "alice", HOST, watch=watch, now=lambda: self.now)


class SessionTests(CacheCase):
    def setUp(self) -> None:
        super().setUp()
        store(self.config, "alice", HOST, self.token())
        os.utime(self.file, (NOW - 100, NOW - 100))
        self.kept = self.hit()

    @contextlib.contextmanager
    def client(self) -> Iterator[Client]:
        client = Client(self.config, Watch(parent=False))
        try:
            yield client
        finally:
            client.close()

    def ask(self) -> int | None:
        with self.client() as client:
            return session(client, self.config, "alice", self.kept, now=lambda: self.now)

    def test_asked(self) -> None:
        """The server is asked for this user and host, with the secret."""
        self.assertEqual(self.ask(), self.kept.remaining)
        request = self.server.requests[-1]
        self.assertEqual(request.query, {"username": "alice", "hostname": HOST})
        self.assertEqual(request.headers["x-shared-secret"], SECRET)

    def test_longer_grace(self) -> None:
        """The longer of the two counts."""
        self.grace = Answer(200, {"grace_remaining": 7200})
        self.assertEqual(self.ask(), 7200)

    def test_revoked(self) -> None:
        """A revocation after it was kept: it is gone, and the way is the ordinary one."""
        self.grace = Answer(200, {"grace_remaining": 0, "revoke_tokens_before": rfc3339(NOW - 99)})
        self.assertIsNone(self.ask())
        self.assertFalse(self.file.exists())

    def test_revoked_earlier(self) -> None:
        """A revocation before it was kept does not concern it."""
        self.grace = Answer(200, {"grace_remaining": 0, "revoke_tokens_before": rfc3339(NOW - 101)})
        self.assertEqual(self.ask(), self.kept.remaining)
        self.assertTrue(self.file.exists())

    def test_clock_ahead(self) -> None:
        """With our clock ahead, what was kept before the revocation looks younger; the server's date tells."""
        ahead = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(NOW - 60))
        body = {"grace_remaining": 0, "revoke_tokens_before": rfc3339(NOW - 110)}
        self.grace = Answer(200, body, {"Date": ahead})
        self.assertIsNone(self.ask())
        self.assertFalse(self.file.exists())

    def test_undatable(self) -> None:
        """A revocation that makes no sense is one."""
        self.grace = Answer(200, {"grace_remaining": 0, "revoke_tokens_before": 5})
        self.assertIsNone(self.ask())
        self.assertFalse(self.file.exists())

    def test_unreachable(self) -> None:
        """Nobody there: the ordinary way, and the token stays. A failing server as well."""
        self.server.stop()
        self.assertIsNone(self.ask())
        self.assertTrue(self.file.exists())

    def test_failing(self) -> None:
        """A server or gateway that fails: the ordinary way."""
        for status in (500, 502, 503):
            self.grace = Answer(status, {})
            self.assertIsNone(self.ask())

    def test_refused(self) -> None:
        """A refusal keeps out: 401, 403, 429, 404, a redirection."""
        for status in (401, 403, 404, 429, 302):
            self.grace = Answer(status, {})
            with self.subTest(status), self.assertRaises(tokencache.Refused) as caught:
                self.ask()
            self.assertEqual(caught.exception.status, status)

    def test_nonsense(self) -> None:
        """Bodies that are nothing keep out; numbers that are none are 0."""
        for body in (b"", b"[]", b"{"):
            self.grace = Answer(200, body)
            with self.assertRaises(WireError):
                self.ask()
        for value in ("x", True, -5, 1e300, None):
            self.grace = Answer(200, {"grace_remaining": value})
            self.assertEqual(self.ask(), self.kept.remaining)

    def test_silent(self) -> None:
        """A server that takes the connection and says nothing keeps out: that is not unreachable."""
        import threading

        release = threading.Event()
        self.addCleanup(release.set)
        self.grace = Answer(200, {}, hold=release)
        with mock.patch.object(tokencache, "GRACE_SECONDS", 0.2), self.assertRaises(WireError):
            self.ask()
