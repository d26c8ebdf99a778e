"""``renew-cert``: when, how it asks, what it believes, and that the pair is whole at every instant."""

from __future__ import annotations

import os
import ssl
import tempfile
import time
import unittest
from pathlib import Path
from unittest import mock

from identree.agent import certificates, journal, renew
from identree.agent.config import Config
from identree.agent.renew import CA, CERT, KEY, Renewal, RenewalError, Store, due
from tests.agent.authority import Authority, Pair, SecureScriptedServer, server_context
from tests.agent.scripted import SECRET, Answer, Request
from tests.agent.setuphost import PretendCommands

DAY = 86400
HOST = "web01.example.com"


class RenewCase(unittest.TestCase):
    """
    A server with HTTPS of its own CA, and this host's ``/etc/identree`` below a temporary directory.

    :ivar grant: what the server answers with. :ivar said, warned: what the last run said.
    """

    def setUp(self) -> None:
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.root = Path(temporary.name)
        self.etc = self.root / "etc"
        self.etc.mkdir()
        self.authority = Authority(self.root)
        self.context = server_context(
            self.authority.issue("localhost", "localhost"), clients=self.authority.file, optional=True
        )
        self.server = SecureScriptedServer(self.answer, self.context)
        self.addCleanup(self.server.stop)
        for name in ("CLIENT_CERT", "CLIENT_KEY", "CA_CERT"):
            value = str(self.etc / os.path.basename(getattr(renew, name)))
            patch = mock.patch.object(renew, name, value)
            patch.start()
            self.addCleanup(patch.stop)
        self.records: list[str] = []
        patch = mock.patch.object(journal, "_send", lambda priority, text: self.records.append(text))
        patch.start()
        self.addCleanup(patch.stop)
        self.pair = self.authority.issue(HOST, HOST, days=20)
        self.place(self.pair)
        self.new = self.authority.issue(HOST, HOST, days=365)
        self.grant: Answer = self.granted(self.new)
        self.said: list[str] = []
        self.warned: list[str] = []
        self.commands = PretendCommands()
        self.sssd = tuple(str(self.root / name) for name in ("sssd.crt", "sssd.key", "sssd-ca.crt", "sssd.conf"))

    def place(self, pair: Pair, ca: str = "") -> None:
        certificate, key = pair.texts
        for name, text in ((CERT, certificate), (KEY, key), (CA, ca or self.authority.text)):
            (self.etc / name).write_text(text)

    def granted(self, pair: Pair, ca: str = "", **more: object) -> Answer:
        certificate, key = pair.texts
        body = {
            "ldap_url": "ldaps://localhost:636",
            "base_dn": "dc=example,dc=com",
            "bind_dn": f"uid={HOST},ou=identree-hosts,dc=example,dc=com",
            "bind_password": "secret",
            "client_cert": certificate,
            "client_key": key,
            "ca_cert": ca or self.authority.text,
            **more,
        }
        return Answer(200, {k: v for k, v in body.items() if v is not None})

    def answer(self, request: Request) -> Answer:
        if request.path == "/api/client/provision":
            return self.grant
        return Answer(200, {"status": "ok"}) if request.path == "/healthz" else Answer(404, {})

    def config(self, **values: str) -> Config:
        return Config(
            "client.conf",
            {
                "IDENTREE_SERVER_URL": self.server.url,
                "IDENTREE_SHARED_SECRET": SECRET,
                "IDENTREE_HOSTNAME": HOST,
                "IDENTREE_CLIENT_CERT": str(self.etc / CERT),
                "IDENTREE_CLIENT_KEY": str(self.etc / KEY),
                "IDENTREE_CA_CERT": str(self.etc / CA),
                **values,
            },
        )

    def renew(self, *, force: bool = False, **values: str) -> bool:
        self.said.clear()
        self.warned.clear()
        renewal = Renewal(
            self.config(**values),
            Store(str(self.etc)),
            self.commands,
            self.said.append,
            self.warned.append,
            sssd=self.sssd,  # type: ignore[arg-type]
        )
        return renewal.run(force=force)

    def refused(self, word: str, **values: str) -> None:
        """No renewal, for a reason that is said; the old pair stands as it stood."""
        with self.assertRaises(RenewalError) as caught:
            self.renew(force=True, **values)
        self.assertIn(word, str(caught.exception))
        self.assertEqual(self.present(), self.pair.texts)

    def present(self) -> tuple[str, str]:
        return (self.etc / CERT).read_text(), (self.etc / KEY).read_text()

    @property
    def provisions(self) -> list[Request]:
        return [each for each in self.server.requests if each.path == "/api/client/provision"]


class DueTests(RenewCase):
    def test_due(self) -> None:
        """A third of the life, thirty days at least; anything that is no certificate."""
        now = time.time()
        for life, left, wanted in ((365, 122, False), (365, 121, True), (60, 31, False), (60, 29, True), (10, 9, True)):
            pair = self.authority.issue("x", days=left, begins=left - life)
            own = certificates.read_file(pair.certificate)[0]
            self.assertEqual(due(own, now), wanted, (life, left))
        self.assertTrue(due(None, now))

    def test_not_due(self) -> None:
        """A certificate that lasts is left alone, and nobody is asked; --force asks."""
        self.place(self.authority.issue(HOST, HOST, days=300))
        self.assertFalse(self.renew())
        self.assertIn("nothing to do", self.said[0])
        self.assertEqual(self.server.requests, [])
        self.assertTrue(self.renew(force=True))

    def test_renewed(self) -> None:
        """The new pair stands under the same names; the old one is kept a while; it is on record."""
        self.assertTrue(self.renew())
        self.assertEqual(self.present(), self.new.texts)
        self.assertEqual((self.etc / CA).read_text(), self.authority.text)
        self.assertIn(f"certificate renewed for {HOST}", self.said[0])
        self.assertEqual([r.headers["x-hostname"] for r in self.provisions], [HOST])
        self.assertIn("certificate renewed", "".join(self.records))
        self.assertEqual(os.stat(self.etc / KEY).st_mode & 0o777, 0o600)
        self.assertEqual(os.stat(self.etc / CERT).st_mode & 0o777, 0o644)
        self.assertFalse(self.renew())

    def test_shown(self) -> None:
        """The present certificate is shown to get the new one, and the new one is tried before it counts."""
        other = self.authority.issue("new name", HOST, days=365)
        self.grant = self.granted(other)
        self.assertTrue(self.renew())
        self.assertEqual(self.server.peers[0], HOST)
        self.assertEqual(self.server.peers[-1], "new name")

    def test_again_and_again(self) -> None:
        """Ten renewals leave two versions and no rubbish."""
        for _ in range(10):
            self.new = self.authority.issue(HOST, HOST)
            self.grant = self.granted(self.new)
            self.assertTrue(self.renew(force=True))
            self.assertEqual(self.present(), self.new.texts)
        names = sorted(path.name for path in (self.etc / renew.VERSIONS).iterdir())
        self.assertEqual(len(names), renew.KEPT_VERSIONS + 1, names)
        self.assertEqual(sorted(p.name for p in self.etc.iterdir()), [CA, renew.VERSIONS, CERT, KEY])

    def test_replaced_by_another(self) -> None:
        """Another installer has put files over the links: they are taken up, and renewed."""
        self.renew(force=True)
        for name in (CERT, KEY):
            (self.etc / name).unlink()
        self.place(self.pair)
        self.new = self.authority.issue(HOST, HOST)
        self.grant = self.granted(self.new)
        self.assertTrue(self.renew(force=True))
        self.assertEqual(self.present(), self.new.texts)
        self.assertTrue((self.etc / CERT).is_symlink())

    def test_none_yet(self) -> None:
        """A host without certificate gets one, and is told what is missing in its configuration."""
        for name in (CERT, KEY):
            (self.etc / name).unlink()
        values = {"IDENTREE_CLIENT_CERT": "", "IDENTREE_CLIENT_KEY": ""}
        self.assertTrue(self.renew(**values))
        self.assertEqual(self.present(), self.new.texts)
        self.assertIn("IDENTREE_CLIENT_CERT=", self.warned[-1])


class AskTests(RenewCase):
    def test_expired(self) -> None:
        """An ended certificate breaks the handshake: it is asked again without, by the secret."""
        self.pair = self.authority.issue(HOST, HOST, days=-1, begins=-30)
        self.place(self.pair)
        self.assertTrue(self.renew())
        self.assertIn("asking without it", self.warned[0])
        self.assertEqual(self.present(), self.new.texts)

    def test_expired_old_tls(self) -> None:
        """The same with TLS 1.2, where the handshake itself fails."""
        self.context.maximum_version = ssl.TLSVersion.TLSv1_2
        self.test_expired()

    def test_foreign(self) -> None:
        """One of a CA that the server no longer has."""
        self.place(Authority(self.root).issue(HOST, HOST, days=20))
        self.assertTrue(self.renew())

    def test_damaged(self) -> None:
        """Files that are damaged or do not belong together."""
        for name in (CERT, KEY):
            self.place(self.pair)
            (self.etc / name).write_text("damaged")
            self.assertTrue(self.renew(force=True))
            self.assertEqual(self.present(), self.new.texts)
            for link in (CERT, KEY, CA):
                (self.etc / link).unlink()

    def test_expired_without_secret(self) -> None:
        """Without secret there is no other way; the text says so."""
        self.pair = self.authority.issue(HOST, HOST, days=-1, begins=-30)
        self.place(self.pair)
        self.refused("IDENTREE_SHARED_SECRET", IDENTREE_SHARED_SECRET="")

    def test_refused_by_status(self) -> None:
        """A proxy that answers 400 to a certificate it does not like."""
        answers = [Answer(400, b"The SSL certificate error"), self.grant]
        with mock.patch.object(self, "answer", side_effect=self.answer):
            self.server.script = lambda request: (
                answers.pop(0) if request.path == "/api/client/provision" else Answer(200, {})
            )
            self.assertTrue(self.renew())
        self.assertEqual(len(self.provisions), 2)

    def test_refusals(self) -> None:
        """Each refusal names its remedy."""
        for status, word in (
            (401, "IDENTREE_SHARED_SECRET"),
            (403, "IDENTREE_HOSTNAME"),
            (404, "IDENTREE_LDAP_PROVISION_ENABLED"),
            (429, "a minute"),
            (500, "HTTP 500"),
            (302, "HTTP 302"),
        ):
            self.grant = Answer(status, b"hostname mismatch")
            with self.subTest(status):
                self.refused(word)

    def test_unreachable(self) -> None:
        """Nobody there."""
        self.server.stop()
        self.refused("cannot be reached")

    def test_useless_answers(self) -> None:
        """No JSON, no certificate, half a pair, a pair that is none."""
        certificate, key = self.new.texts
        other = self.authority.issue("other").texts[1]
        for answer, word in (
            (Answer(200, b"<html>"), "is this an identree server"),
            (self.granted(self.new, client_cert=None, client_key=None), "IDENTREE_MTLS_ENABLED"),
            (self.granted(self.new, client_key=None), "without its key"),
            (self.granted(self.new, client_key=other), "do not belong together"),
            (self.granted(self.new, client_cert="x" + certificate), "not PEM"),
            (self.granted(self.new, ca_cert=key), "no certificate"),
        ):
            self.grant = answer
            with self.subTest(word):
                self.refused(word)


class CheckTests(RenewCase):
    def test_other_host(self) -> None:
        """A certificate for another host."""
        self.grant = self.granted(self.authority.issue("web02", "web02.example.com"))
        self.refused("web02.example.com")

    def test_remembered_name(self) -> None:
        """The name that the host was given, and no other, is what it asks for."""
        self.renew(force=True)
        self.assertEqual(self.provisions[-1].headers["x-hostname"], HOST)

    def test_times(self) -> None:
        """One that has ended, and one that has not begun."""
        self.grant = self.granted(self.authority.issue(HOST, HOST, days=-0.1))
        self.refused("ended")
        self.grant = self.granted(self.authority.issue(HOST, HOST, begins=1))
        self.refused("begins")

    def test_not_taken(self) -> None:
        """A certificate that the server itself does not take."""
        other = Authority(self.root)
        self.grant = self.granted(other.issue(HOST, HOST))
        self.refused("does not take")

    def test_untrusted_server(self) -> None:
        """A server whose certificate is not believed is not asked."""
        (self.etc / CA).write_text(Authority(self.root).text)
        self.refused("does not answer")

    def test_new_ca(self) -> None:
        """The CA was changed, the server's certificate not yet: both are believed until the old one ends."""
        newer = Authority(self.root, "newer")
        both = self.root / "both.crt"
        both.write_text(self.authority.text + newer.text)
        self.context.load_verify_locations(str(both))
        self.new = newer.issue(HOST, HOST)
        self.grant = self.granted(self.new, ca=newer.text)
        self.assertTrue(self.renew())
        found = certificates.read_file(str(self.etc / CA))
        self.assertEqual([each.common_name for each in found], ["newer", "test authority"])
        self.grant = self.granted(self.new, ca=newer.text)
        self.assertTrue(self.renew(force=True))
        self.assertEqual(len(certificates.read_file(str(self.etc / CA))), 2)

    def test_new_ca_alone(self) -> None:
        """Where the server's certificate comes from what was sent, only that is believed."""
        (self.etc / CA).write_text(self.authority.text + Authority(self.root, "gone").text)
        self.assertTrue(self.renew())
        self.assertEqual((self.etc / CA).read_text(), self.authority.text)


class PlaceTests(RenewCase):
    def test_other_paths(self) -> None:
        """A certificate that comes from elsewhere is not replaced."""
        self.refused("IDENTREE_CLIENT_CERT", IDENTREE_CLIENT_CERT="/etc/pki/host.crt")

    def test_foreign_link(self) -> None:
        """A link of the administrator's is not touched."""
        target = self.root / "elsewhere.crt"
        (self.etc / CERT).rename(target)
        (self.etc / CERT).symlink_to(target)
        self.refused("symbolic link")
        self.assertEqual(target.read_text(), self.pair.texts[0])

    def test_no_name(self) -> None:
        """A host without name."""
        config = self.config()
        config.hostname = ""
        with self.assertRaises(RenewalError):
            Renewal(config, Store(str(self.etc)), self.commands, print, print).run(force=True)

    def test_sssd_copies(self) -> None:
        """Where sssd has copies of its own they follow, with mode and owner as they were, and it is restarted."""
        certificate, key, ca, conf = (Path(path) for path in self.sssd)
        for path in (certificate, key, ca):
            path.write_text("old")
            path.chmod(0o640)
        conf.write_text(f"ldap_tls_cert = {certificate}\n")
        self.commands.programs["systemctl"] = lambda words: (0, "")
        with mock.patch.object(renew, "systemd_runs", lambda root, commands: True):
            self.assertTrue(self.renew())
        self.assertEqual((certificate.read_text(), key.read_text()), self.new.texts)
        self.assertEqual(ca.read_text(), self.authority.text)
        self.assertEqual(key.stat().st_mode & 0o777, 0o640)
        self.assertEqual(self.commands.calls, ["systemctl try-restart sssd.service"])

    def test_sssd_elsewhere(self) -> None:
        """An sssd that does not use the certificate is left alone."""
        Path(self.sssd[3]).write_text("[sssd]\n")
        with mock.patch.object(renew, "systemd_runs", lambda root, commands: True):
            self.assertTrue(self.renew())
        self.assertEqual((self.commands.calls, [Path(p).exists() for p in self.sssd[:3]]), ([], [False] * 3))

    def test_sssd_without_systemd(self) -> None:
        """Without systemd a person restarts it."""
        Path(self.sssd[3]).write_text(f"ldap_tls_cert = {self.etc / CERT}\n")
        self.assertTrue(self.renew())
        self.assertIn("restart sssd", " ".join(self.said))


class Cut(BaseException):
    """The power fails."""


class CutTests(RenewCase):
    """The power is cut before each call that changes the disk, for the first renewal and for a later one."""

    CALLS = ("os.mkdir", "os.rename", "os.symlink", "os.unlink", "os.write", "os.fsync", "os.chmod", "shutil.rmtree")

    def cut_at(self, number: int) -> bool:
        """Whether the renewal came to its end before call ``number``."""
        count = 0
        on = True

        def wrap(real):  # type: ignore[no-untyped-def]
            def call(*arguments, **named):  # type: ignore[no-untyped-def]
                nonlocal count
                if on:
                    count += 1
                    if count > number:
                        raise Cut  # and all that would tidy up does not happen either
                return real(*arguments, **named)

            return call

        import shutil
        from contextlib import ExitStack

        store = Store(str(self.etc))
        certificate, key = (text.encode() for text in self.new.texts)
        contents = {CERT: certificate, KEY: key, CA: self.authority.text.encode()}
        with ExitStack() as stack:
            for name in self.CALLS:
                module, _, attribute = name.partition(".")
                owner = {"os": os, "shutil": shutil}[module]
                stack.enter_context(mock.patch.object(owner, attribute, wrap(getattr(owner, attribute))))
            try:
                store.install(f"new-{number}", contents)
            except Cut:
                on = False
                return False
        return True

    def whole(self, *allowed: tuple[str, str]) -> None:
        """One of the pairs stands there, whole, and loads."""
        self.assertIn(self.present(), allowed)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_cert_chain(self.etc / CERT, self.etc / KEY)
        context.load_verify_locations(self.etc / CA)

    def run_all(self, prepare) -> None:  # type: ignore[no-untyped-def]
        import shutil

        number = 0
        while True:
            shutil.rmtree(self.etc)
            self.etc.mkdir()
            self.place(self.pair)
            prepare()
            done = self.cut_at(number)
            self.whole(self.pair.texts, self.new.texts)
            if done:
                break
            # and the next run comes to its end, and leaves nothing behind
            later = self.authority.issue(HOST, HOST)
            certificate, key = (text.encode() for text in later.texts)
            Store(str(self.etc)).install("later", {CERT: certificate, KEY: key, CA: self.authority.text.encode()})
            self.whole(later.texts)
            left = [path.name for path in self.etc.rglob("*") if renew.TEMPORARY in path.name]
            self.assertEqual(left, [], number)
            number += 1
        self.assertGreater(number, 10)

    def test_first(self) -> None:
        """The first renewal, which turns files into links."""
        self.run_all(lambda: None)

    def test_later(self) -> None:
        """A later one."""

        def prepare() -> None:
            certificate, key = (text.encode() for text in self.pair.texts)
            for version in ("one", "two"):
                contents = {CERT: certificate, KEY: key, CA: self.authority.text.encode()}
                Store(str(self.etc)).install(version, contents)

        self.run_all(prepare)


class CommandTests(unittest.TestCase):
    def test_options(self) -> None:
        """Unknown options are the usage; without root it says so."""
        from identree.agent import main

        said: list[str] = []
        with mock.patch.object(main, "complain", said.append):
            self.assertEqual(renew.run(["--now"]), 1)
            self.assertIn("usage:", said[0])
            with mock.patch.object(os, "geteuid", lambda: 1000), mock.patch.dict(os.environ):
                self.assertEqual(renew.run([]), 1)
        self.assertIn("needs root", said[-1])
