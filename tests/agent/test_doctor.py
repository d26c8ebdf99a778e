"""``doctor`` and ``status`` on made-up hosts: each fault is one finding, with its remedy."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import tempfile
import time
import unittest
from email.utils import formatdate
from pathlib import Path
from unittest import mock

from identree.agent import breakglass, doctor, heartbeat, journal, places, setup, status, tokencache, units
from identree.agent.bcrypt import Bcrypt
from identree.agent.doctor import Doctor
from identree.agent.findings import FAIL, OK, WARN, Finding
from identree.agent.heartbeat import Record
from identree.agent.status import Status
from tests.agent.authority import Authority, DirectoryServer, Pair, SecureScriptedServer, server_context
from tests.agent.scripted import SECRET, Answer, Request
from tests.agent.setuphost import DEBIAN, SOLE, PretendCommands

AGENT = "/usr/local/bin/identree"
NSSWITCH = "passwd: files sss\ngroup: files sss\nsudoers: files sss\n"


class HostCase(unittest.TestCase):
    """
    A host below a directory where everything is well: configuration, HTTPS server, LDAPS directory, PAM, sssd, timers.

    :ivar conf: values of ``client.conf``. :ivar sssd: of identree's domain. :ivar commands: the programs of the host.
    """

    def setUp(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="identree-doctor-"))
        self.addCleanup(shutil.rmtree, self.root, True)
        for name in ("etc/identree", "etc/pam.d", "etc/sssd", "usr/local/bin", "run/systemd/system", "var/run", "tls"):
            (self.root / name).mkdir(parents=True)
        self.where = places.Places(run=str(self.root / "var/run"), state=str(self.root / "var/state"))
        self.authority = Authority(self.root / "tls")
        self.own = self.place(self.authority.issue("web01", "web01", client=True))
        self.server_pair = self.authority.issue("localhost", "localhost")
        self.answers = {
            "/healthz": Answer(200, {"status": "ok"}, {"Date": formatdate(usegmt=True)}),
            "/api/grace-status": Answer(200, {"grace_remaining": 0}),
        }
        self.context = server_context(self.server_pair, clients=self.authority.file, optional=True)
        self.server = SecureScriptedServer(self.answer, self.context)
        self.addCleanup(self.server.stop)
        self.directory = self.serve_directory()
        self.hash = self.root / "etc/identree-breakglass"
        self.hash.write_text(Bcrypt().hash("x", 4) + "\n")
        self.hash.chmod(0o600)
        self.conf = {
            "IDENTREE_SERVER_URL": self.server.url,
            "IDENTREE_SHARED_SECRET": SECRET,
            "IDENTREE_HOSTNAME": "web01",
            "IDENTREE_CLIENT_CERT": self.own.certificate,
            "IDENTREE_CLIENT_KEY": self.own.key,
            "IDENTREE_CA_CERT": f"{self.root}/etc/identree/ca.crt",
            "IDENTREE_BREAKGLASS_FILE": str(self.hash),
            "IDENTREE_TOKEN_CACHE_DIR": str(self.root / "run/identree"),
        }
        self.sssd = {
            "id_provider": "ldap",
            "ldap_uri": f"ldaps://localhost:{self.directory.port}",
            "ldap_search_base": "dc=example,dc=com",
            "ldap_default_bind_dn": DirectoryServer.DN,
            "ldap_default_authtok": DirectoryServer.PASSWORD,
            "ldap_tls_reqcert": "demand",
            "ldap_tls_cacert": "/etc/identree/ca.crt",
            "ldap_tls_cert": "/etc/identree/client.crt",
            "ldap_tls_key": "/etc/identree/client.key",
        }
        (self.root / "etc/nsswitch.conf").write_text(NSSWITCH)
        (self.root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
        for name in ("sudo", "sudo-i"):
            (self.root / "etc/pam.d" / name).write_bytes(SOLE + DEBIAN)
        for name in ("common-auth", "common-account", "common-session-noninteractive"):
            (self.root / "etc/pam.d" / name).write_bytes(b"")
        self.agent = self.root / "usr/local/bin/identree"
        self.agent.write_text("#!/bin/sh\n")
        self.agent.chmod(0o755)
        Record(time.time(), time.time()).write(self.where.state)
        self.commands = PretendCommands()
        self.commands.programs = {"systemctl": lambda words: (0, ""), "getent": self.getent}
        self.known = {DirectoryServer.USER}
        patches = (
            mock.patch.object(journal, "_send", lambda priority, text: None),
            mock.patch.object(setup, "check_owner", lambda path: None),  # the directories above are the test's
            mock.patch("identree.agent.doctor_ldap.PLAIN_PORT", self.plain().port),
        )
        for patch in patches:
            patch.start()
            self.addCleanup(patch.stop)

    def place(self, pair: Pair, ca: str = "") -> Pair:
        """Make it this host's certificate."""
        target = Pair(f"{self.root}/etc/identree/client.crt", f"{self.root}/etc/identree/client.key")
        shutil.copy(pair.certificate, target.certificate)
        shutil.copy(pair.key, target.key)
        Path(f"{self.root}/etc/identree/ca.crt").write_text(ca or self.authority.text)
        return target

    def serve_directory(self, pair: Pair | None = None, clients: str = "") -> DirectoryServer:
        context = server_context(pair or self.server_pair, clients=clients or self.authority.file)
        directory = DirectoryServer(context)
        self.addCleanup(directory.stop)
        return directory

    def plain(self) -> DirectoryServer:
        directory = DirectoryServer()
        self.addCleanup(directory.stop)
        return directory

    def use(self, directory: DirectoryServer) -> None:
        self.sssd["ldap_uri"] = f"ldaps://localhost:{directory.port}"

    def answer(self, request: Request) -> Answer:
        return self.answers.get(request.path, Answer(404, {}))

    def getent(self, words: list[str]) -> tuple[int, str]:
        return (0, f"{words[-1]}:x:1:1::/:/bin/sh\n") if words[-1] in self.known else (2, "")

    def write(self) -> str:
        path = self.root / "etc/identree/client.conf"
        path.write_text("".join(f"{key}={value}\n" for key, value in self.conf.items() if value))
        path.chmod(0o600)
        if self.sssd:
            lines = "".join(f"{key} = {value}\n" for key, value in self.sssd.items() if value)
            (self.root / "etc/sssd/sssd.conf").write_text(f"[sssd]\nservices = nss\n[domain/identree]\n{lines}[nss]\n")
        return str(path)

    def examine(self) -> dict[str, Finding]:
        """What is found, by id; of several the worst."""
        examined = Doctor(self.write(), self.commands, root=str(self.root), agent=AGENT, where=self.where)
        found: dict[str, Finding] = {}
        for each in examined.run().all:
            self.assertEqual(bool(each.remedy), each.level != OK, each.id)
            if each.id not in found or each.level == FAIL:
                found[each.id] = each
        return found

    def wrong(self) -> dict[str, Finding]:
        return {id_: each for id_, each in self.examine().items() if each.level != OK and id_ != "program.root"}

    def only(self, id_: str, level: str, *words: str) -> Finding:
        """Nothing but this is wrong; text and remedy have these words."""
        found = self.wrong()
        self.assertEqual(list(found), [id_], {k: v.text for k, v in found.items()})
        self.check(found[id_], level, *words)
        return found[id_]

    def check(self, finding: Finding, level: str, *words: str) -> None:
        self.assertEqual(finding.level, level, finding.text)
        for word in words:
            self.assertIn(word, f"{finding.text} {finding.remedy}")


class WellTests(HostCase):
    def test_all_is_well(self) -> None:
        """On a host that is as it should be nothing is wrong, and all parts were looked at."""
        found = self.examine()
        self.assertEqual({id_: each.text for id_, each in self.wrong().items()}, {})
        parts = {id_.partition(".")[0] for id_ in found}
        self.assertLessEqual(
            {"program", "config", "permissions", "server", "clock", "tokens", "breakglass", "token-cache", "pam"}, parts
        )
        self.assertLessEqual({"ldaps", "sssd", "timers"}, parts)
        self.assertEqual(self.directory.binds[0], (DirectoryServer.DN, DirectoryServer.PASSWORD))

    def test_no_sssd(self) -> None:
        """A host without sssd is well, too."""
        self.sssd = {}
        self.assertEqual(self.wrong(), {})

    def test_no_directory_secret_in_the_clear(self) -> None:
        """The bind password is shown to the LDAPS server alone."""
        with mock.patch("identree.agent.doctor_ldap.PLAIN_PORT", (plain := self.plain()).port):
            self.use(self.serve_directory(Authority(self.root / "tls").issue("localhost", "localhost")))
            self.wrong()
        self.assertEqual(plain.binds, [])


class ProgramTests(HostCase):
    def test_interpreter_gone(self) -> None:
        """An upgrade has removed the Python that the helper names."""
        self.agent.write_text("#!/usr/bin/python3.4 -ISB\n")
        self.only("program.interpreter", FAIL, "python3.4", "console")

    def test_no_program(self) -> None:
        """The helper itself is gone."""
        self.agent.unlink()
        self.only("program.file", FAIL, "installer")

    def test_others_could_replace_it(self) -> None:
        """A helper that others can write to."""
        problem = setup.SetupError("/x would run as root, but others can write to it; run: chmod go-w /x")
        with mock.patch.object(setup, "check_owner", side_effect=problem):
            self.only("program.file", FAIL, "chmod go-w /x")


class ConfigurationTests(HostCase):
    def test_unusable(self) -> None:
        """A file that cannot be used stops what follows from it, and nothing else."""
        self.conf["IDENTREE_SERVER_URL"] = "ftp://x"
        self.only("config.file", FAIL, "IDENTREE_SERVER_URL")

    def test_nothing_set(self) -> None:
        """Neither server nor secret nor certificate."""
        for key in ("IDENTREE_SERVER_URL", "IDENTREE_SHARED_SECRET", "IDENTREE_CLIENT_CERT", "IDENTREE_CLIENT_KEY"):
            self.conf[key] = ""
        self.assertEqual(list(self.wrong()), ["config.server", "config.secret"])

    def test_no_secret(self) -> None:
        """By certificate alone approvals are not signed."""
        self.conf["IDENTREE_SHARED_SECRET"] = ""
        self.only("config.secret", WARN, "IDENTREE_SHARED_SECRET")

    def test_warnings(self) -> None:
        """A value that is not what it should be, and a file that others can read."""
        self.conf["IDENTREE_POLL_INTERVAL"] = "often"
        self.only("config.value", WARN, "IDENTREE_POLL_INTERVAL")

    def test_key_open(self) -> None:
        """A client key that others can read."""
        os.chmod(self.own.key, 0o640)
        self.only("permissions.key", FAIL, "chmod 600")

    def test_directory_open(self) -> None:
        """A directory in which others can replace the configuration."""
        os.chmod(self.root / "etc/identree", 0o777)
        self.only("permissions.directory", FAIL, "chmod go-w")


class ServerTests(HostCase):
    def test_no_name(self) -> None:
        """A server whose name has no address."""
        self.conf["IDENTREE_SERVER_URL"] = "https://identree.invalid"
        self.only("server.dns", FAIL, "identree.invalid", "resolv.conf")

    def test_nobody_listens(self) -> None:
        """A port where nobody listens."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.conf["IDENTREE_SERVER_URL"] = f"https://127.0.0.1:{port}"
        self.only("server.tcp", FAIL, "refused", "firewalls")

    def swap(self, pair: Pair, **options: object) -> None:
        """Let the server have this certificate."""
        self.server.context = server_context(pair, **options)  # type: ignore[arg-type]

    def test_wrong_ca(self) -> None:
        """A server whose certificate comes from another CA."""
        self.swap(Authority(self.root / "tls", "other").issue("localhost", "localhost"))
        self.only("server.server-ca", FAIL, "IDENTREE_CA_CERT")

    def test_changed_ca(self) -> None:
        """The same with a CA of the same name: it was changed."""
        self.swap(Authority(self.root / "tls").issue("localhost", "localhost"))
        self.only("server.server-ca", FAIL, "the CA was changed")

    def test_other_name(self) -> None:
        """A certificate for another name: it is said for which."""
        self.swap(self.authority.issue("x", "identree.example.com", "b.example"))
        self.only("server.server-name", FAIL, "identree.example.com, b.example", "localhost")

    def test_expired(self) -> None:
        """A server whose certificate has ended; one that ends soon."""
        self.swap(self.authority.issue("localhost", "localhost", days=-1, begins=-9))
        self.only("server.server-expired", FAIL, "renew it at the server", "clock")
        self.swap(self.authority.issue("localhost", "localhost", days=9, begins=-300))
        self.only("server.server-expiry", WARN, "ends soon")

    def test_not_yet(self) -> None:
        """A certificate of the future: a clock is wrong."""
        self.swap(self.authority.issue("localhost", "localhost", begins=1))
        self.only("server.server-expired", FAIL, "NTP")

    def test_plain(self) -> None:
        """Something at that port that does not speak TLS."""
        plain = self.plain()
        self.conf["IDENTREE_SERVER_URL"] = f"https://localhost:{plain.port}"
        self.assertIn("server.tls", self.wrong())

    def test_old_tls(self) -> None:
        """A server that wants a newer TLS than we speak, or an older one, has no version in common."""
        with mock.patch.object(doctor.doctor_tls, "_tls_context", side_effect=lambda files: old_client(files)):
            self.server.context.minimum_version = ssl.TLSVersion.TLSv1_3
            self.only("server.tls", FAIL, "TLS 1.2 or 1.3")

    def test_client_certificates(self) -> None:
        """A server that demands a certificate, and a host that has none."""
        self.swap(self.server_pair, clients=self.authority.file)
        self.conf["IDENTREE_CLIENT_CERT"] = self.conf["IDENTREE_CLIENT_KEY"] = ""
        self.only("server.client-certificate", FAIL, "IDENTREE_CLIENT_CERT")

    def test_half_a_pair(self) -> None:
        """Only one of certificate and key."""
        self.conf["IDENTREE_CLIENT_KEY"] = ""
        self.only("server.files", FAIL, "go together")

    def test_ill(self) -> None:
        """Answers that are not those of a server that is well."""
        for code, word in ((503, "server's log"), (404, "IDENTREE_SERVER_URL")):
            self.answers["/healthz"] = Answer(code, {})
            self.only("server.http", FAIL, f"HTTP {code}", word)
        self.answers["/healthz"] = Answer(301, {}, {"Location": "https://other.example/"})
        self.only("server.http", FAIL, "https://other.example/", "never followed")
        self.answers["/healthz"] = Answer(raw=b"220 mail.example.com ESMTP\r\n")
        self.only("server.http", FAIL, "proxy")

    def test_refused(self) -> None:
        """A secret that the server does not accept; too many of them."""
        for code, level, word in (
            (401, FAIL, "IDENTREE_SHARED_SECRET"),
            (403, FAIL, "registered"),
            (429, WARN, "minute"),
        ):
            self.answers["/api/grace-status"] = Answer(code, {})
            self.only("server.secret", level, word)

    def test_clock(self) -> None:
        """Clocks that agree, differ, and differ so much that the server refuses."""
        for ahead, level in ((3, OK), (30, WARN), (-30, WARN), (300, FAIL), (-7200, FAIL)):
            date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() - ahead))
            self.answers["/healthz"] = Answer(200, {}, {"Date": date})
            found = self.examine()["clock.skew"]
            self.check(found, level)
            if level != OK:
                self.assertIn("NTP", found.remedy)
                self.assertIn("ahead" if ahead > 0 else "behind", found.text)

    def test_address_that_is_dead(self) -> None:
        """Of two addresses the first is dead: it works, slowly."""
        import identree.agent.doctor_tls as doctor_tls

        real = doctor_tls.socket.getaddrinfo

        def two(host: object, port: object, *rest: object) -> list[object]:
            found = real(host, port, *rest)  # type: ignore[arg-type]
            dead = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.77", port))]
            return dead + [each for each in found if each[0] == socket.AF_INET]

        with mock.patch.object(doctor_tls.socket, "getaddrinfo", two):
            self.only_among({"server.tcp", "ldaps.tcp"}, WARN, "127.0.0.77")

    def only_among(self, ids: set[str], level: str, *words: str) -> None:
        found = self.wrong()
        self.assertEqual(set(found), ids)
        for each in found.values():
            self.check(each, level, *words)


def old_client(files: object) -> ssl.SSLContext:
    from identree.agent.wire import _tls_context

    context = _tls_context(files)  # type: ignore[arg-type]
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


class LdapsTests(HostCase):
    """The cases of the promise's section on LDAPS troubleshooting, one by one."""

    def test_no_client_certificate(self) -> None:
        """The client certificate is not presented."""
        self.sssd["ldap_tls_cert"] = self.sssd["ldap_tls_key"] = ""
        found = self.wrong()
        self.assertEqual(list(found), ["ldaps.client-certificate", "ldaps.plain-works"])
        self.check(found["ldaps.client-certificate"], FAIL, "none was presented", "ldap_tls_cert")

    def test_no_client_certificate_old_tls(self) -> None:
        """The same with TLS 1.2, where the handshake itself ends."""
        assert self.directory.context is not None
        self.directory.context.maximum_version = ssl.TLSVersion.TLSv1_2
        self.test_no_client_certificate()

    def test_wrong_client_ca(self) -> None:
        """The server trusts another CA than the one that issued the client certificate."""
        other = Authority(self.root / "tls", "other")
        self.use(self.serve_directory(clients=other.file))
        found = self.wrong()
        self.assertEqual(list(found), ["ldaps.client-ca", "ldaps.plain-works"])
        self.check(found["ldaps.client-ca"], FAIL, "IDENTREE_LDAP_TLS_CA_CERT", "setup --sssd")

    def test_wrong_client_ca_seen_here(self) -> None:
        """A certificate that the CA beside it has not issued: seen without the server."""
        stranger = Authority(self.root / "tls", "stranger").issue("web01", client=True)
        self.place(stranger)
        self.conf["IDENTREE_CLIENT_CERT"] = self.conf["IDENTREE_CLIENT_KEY"] = ""
        self.check(self.wrong()["ldaps.client-ca"], FAIL, "was not issued by the CA")

    def test_rotated_ca(self) -> None:
        """After a change of the CA existing certificates are untrusted."""
        earlier = Authority(self.root / "tls").issue("web01", client=True)
        self.place(earlier)
        self.conf["IDENTREE_CLIENT_CERT"] = self.conf["IDENTREE_CLIENT_KEY"] = ""
        self.check(self.wrong()["ldaps.ca-rotated"], FAIL, "change of the CA", "setup --sssd")

    def test_client_expired(self) -> None:
        """The client certificate has ended; the server says so, too."""
        self.place(self.authority.issue("web01", client=True, days=-1, begins=-9))
        self.conf["IDENTREE_CLIENT_CERT"] = self.conf["IDENTREE_CLIENT_KEY"] = ""
        self.check(self.wrong()["ldaps.client-expired"], FAIL, "ended", "setup --sssd")

    def test_client_ends_soon(self) -> None:
        """Thirty days before the end it is a warning; of a short life a third."""
        self.place(self.authority.issue("web01", client=True, days=29, begins=-300))
        found = self.wrong()
        self.assertEqual(set(found), {"server.client-expired", "ldaps.client-expired"})
        self.check(found["ldaps.client-expired"], WARN, "ends soon")
        self.place(self.authority.issue("web01", client=True, days=6, begins=-1))
        self.assertEqual(self.wrong(), {})

    def test_host_name(self) -> None:
        """The server's certificate is for another name."""
        self.use(self.serve_directory(self.authority.issue("x", "ldap.example.com")))
        found = self.wrong()
        self.assertEqual(list(found), ["ldaps.server-name", "ldaps.plain-works"])
        self.check(found["ldaps.server-name"], FAIL, "ldap.example.com", "subjectAltName")

    def test_server_ca(self) -> None:
        """``ldap_tls_cacert`` does not match the server's CA."""
        self.use(self.serve_directory(Authority(self.root / "tls", "other").issue("localhost", "localhost")))
        self.check(self.wrong()["ldaps.server-ca"], FAIL, "ldap_tls_cacert")

    def test_server_expired(self) -> None:
        """The directory's certificate has ended."""
        self.use(self.serve_directory(self.authority.issue("localhost", "localhost", days=-1, begins=-9)))
        self.check(self.wrong()["ldaps.server-expired"], FAIL, "ended")

    def test_plain_works(self) -> None:
        """LDAPS fails and plain LDAP works: the fault is in TLS."""
        self.use(self.serve_directory(self.authority.issue("x", "x")))
        self.check(self.wrong()["ldaps.plain-works"], WARN, "in TLS or in the certificates")

    def test_nothing_works(self) -> None:
        """When plain LDAP does not answer either, that is not said."""
        self.use(self.serve_directory(self.authority.issue("x", "x")))
        with (
            socket.create_server(("127.0.0.1", 0)) as free,
            mock.patch("identree.agent.doctor_ldap.PLAIN_PORT", free.getsockname()[1]),
        ):
            free.close()
            self.assertEqual(list(self.wrong()), ["ldaps.server-name"])

    def test_port_closed(self) -> None:
        """Nobody listens at the port."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.sssd["ldap_uri"] = f"ldaps://127.0.0.1:{port}"
        self.only("ldaps.tcp", FAIL, "refused")

    def test_sssd_keeps_its_state(self) -> None:
        """Certificates that changed after sssd started: restart it."""
        (self.root / "run/sssd.pid").write_text(f"{os.getpid()}\n")
        self.only("sssd.restart", WARN, "client.crt", "systemctl restart sssd")
        old = time.time() - 10 * 86400
        for name in ("ca.crt", "client.crt", "client.key"):
            os.utime(self.root / "etc/identree" / name, (old, old))
        self.assertEqual(self.wrong(), {})

    def test_files_missing(self) -> None:
        """Files that are named and not there; a key of another certificate; a CA file without CA."""
        good = dict(self.sssd)
        self.sssd["ldap_tls_cert"] = "/etc/identree/nothing.crt"
        self.only("ldaps.files", FAIL, "no such file")
        self.sssd = {**good, "ldap_tls_key": "/etc/identree/other.key"}
        shutil.copy(self.server_pair.key, self.root / "etc/identree/other.key")
        self.only("ldaps.files", FAIL, "key values mismatch")
        self.sssd = {**good, "ldap_tls_cacert": "/etc/identree/other.key"}
        self.only("ldaps.ca-file", FAIL, "no certificate")

    def test_unverified(self) -> None:
        """A directory that is not verified at all."""
        self.sssd["ldap_tls_reqcert"] = "never"
        self.only("ldaps.unverified", WARN, "demand")

    def test_key_for_sssd(self) -> None:
        """An sssd that is not root cannot read root's key."""
        (self.root / "etc/passwd").write_text("sssd:x:990:990::/:/bin/false\n")
        self.commands.programs["sssd"] = lambda words: (0, "2.10.1\n")
        self.only("ldaps.key-unreadable", FAIL, "does not run as root")

    def test_key_open(self) -> None:
        """A key that everybody can read."""
        other = self.root / "etc/sssd/own.key"
        shutil.copy(self.own.key, other)
        other.chmod(0o644)
        self.sssd["ldap_tls_key"] = "/etc/sssd/own.key"
        self.only("ldaps.key-open", FAIL, "chmod o-rwx")

    def test_bind(self) -> None:
        """A bind password that is no longer right."""
        self.sssd["ldap_default_authtok"] = "old"
        found = self.wrong()
        self.check(found["ldaps.bind"], FAIL, "password", "setup --sssd")

    def test_nobody_there(self) -> None:
        """A directory without people."""
        directory = self.serve_directory()
        directory._people = False
        self.use(directory)
        self.only("ldaps.search", WARN, "nobody")

    def test_plain_ldap(self) -> None:
        """LDAP without TLS works, and is warned of."""
        self.sssd["ldap_uri"] = f"ldap://localhost:{self.plain().port}"
        self.only("ldap.plain", WARN, "in the clear")

    def test_not_ldap(self) -> None:
        """Something else behind TLS."""
        directory = self.serve_directory()
        directory.greeting = b"HTTP/1.1 400 Bad Request\r\n\r\n"
        self.use(directory)
        self.check(self.wrong()["ldaps.search"], FAIL, "not an LDAP server")


class SssdTests(HostCase):
    def test_does_not_know(self) -> None:
        """The directory knows a person whom sssd does not."""
        self.known.clear()
        self.only("sssd.answer", FAIL, "alice", "sss_cache")

    def test_not_running(self) -> None:
        """sssd does not run."""
        self.commands.programs["systemctl"] = lambda words: (3 if "sssd.service" in words else 0, "")
        self.only("sssd.running", FAIL, "systemctl enable --now sssd")

    def test_nsswitch(self) -> None:
        """nsswitch.conf does not ask sssd."""
        (self.root / "etc/nsswitch.conf").write_text("passwd: files\ngroup: files sss # x\n")
        self.only("sssd.nsswitch", FAIL, "passwd, sudoers")

    def test_mistakes(self) -> None:
        """What sssctl finds."""
        self.commands.programs["sssctl"] = lambda words: (1, "Issues identified by validators: 1\n")
        self.only("sssd.config-check", FAIL, "Issues identified")
        harmless = "Issues identified by validators: 0\n\nDirectory /etc/sssd/conf.d does not exist.\n"
        self.commands.programs["sssctl"] = lambda words: (1, harmless)
        self.assertEqual(self.wrong(), {})

    def test_somebody_elses(self) -> None:
        """An sssd.conf without identree."""
        self.sssd = {}
        self.write()
        (self.root / "etc/sssd/sssd.conf").write_text("[domain/ad]\nid_provider = ad\n")
        self.only("sssd.conf", WARN, "setup --sssd")


class OfflineTests(HostCase):
    def test_hash(self) -> None:
        """No password, one without a hash, one that others can read, one that is too old."""
        self.hash.chmod(0o644)
        self.only("breakglass.hash", FAIL, "open to others")
        self.hash.chmod(0o600)
        old = time.time() - 200 * 86400
        os.utime(self.hash, (old, old))
        self.only("breakglass.hash", WARN, "200 days")
        self.hash.write_text("nothing")
        self.only("breakglass.hash", FAIL, "rotate-breakglass --force")
        self.hash.unlink()
        self.only("breakglass.hash", FAIL, "does not exist")

    def test_switched_off(self) -> None:
        """Break-glass that is switched off is a decision to be looked at."""
        self.conf["IDENTREE_BREAKGLASS_ENABLED"] = "false"
        self.only("breakglass.enabled", WARN, "IDENTREE_BREAKGLASS_ENABLED")

    def test_link(self) -> None:
        """A symbolic link in the hash file's place is how break-glass is switched off: nothing to repair."""
        self.hash.unlink()
        for target in ("/dev/null", "/does/not/exist"):
            self.hash.symlink_to(target)
            self.only("breakglass.hash", WARN, f"break-glass is switched off: {self.hash} is a symbolic link")
            self.only("breakglass.hash", WARN, "remove it to have break-glass")
            self.hash.unlink()

    def test_no_bcrypt(self) -> None:
        """A system without bcrypt."""
        from identree.agent.bcrypt import NoBcrypt

        with mock.patch.object(doctor, "Bcrypt", side_effect=NoBcrypt("crypt(3) does not know it; install x")):
            self.only("breakglass.bcrypt", FAIL, "install x")

    def test_unsettled(self) -> None:
        """A rotation that was begun, and uses that are not reported."""
        Path(f"{self.hash}.pending").write_text("x")
        breakglass.record_use("web01", "alice", 5, self.where)
        found = self.wrong()
        self.assertEqual(set(found), {"breakglass.pending", "breakglass.reports"})

    def test_vectors(self) -> None:
        """An interpreter that computes wrongly, or that takes any signature."""
        for result in (False, True):
            with mock.patch.object(doctor.tokens, "verify", lambda *a, result=result: result):
                self.only("tokens.vectors", FAIL)

    def test_token_cache(self) -> None:
        """A cache directory that others can write to."""
        self.conf["IDENTREE_TOKEN_CACHE_ISSUER"] = "https://id.example.com"
        self.conf["IDENTREE_TOKEN_CACHE_CLIENT_ID"] = "identree"
        self.assertEqual(self.wrong(), {})
        cache = self.root / "run/identree"
        cache.mkdir()
        cache.chmod(0o777)
        self.only("token-cache.directory", FAIL, "made anew")

    def test_timers(self) -> None:
        """A timer that does not run; without systemd the cron file counts."""
        self.commands.programs["systemctl"] = lambda words: (3 if units.RENEW_TIMER in words else 0, "")
        self.only("timers.active", FAIL, units.RENEW_TIMER, "setup --timers")
        self.commands.programs["systemctl"] = lambda words: (0, "")
        (self.root / "run/systemd/system").rmdir()
        (self.root / "run/sssd.pid").write_text(f"{os.getpid()}\n")
        found = self.wrong()
        self.check(found["timers.active"], WARN, "heartbeat, rotate-breakglass, renew-cert")
        (self.root / "etc/cron.d").mkdir()
        (self.root / "etc/cron.d/identree-rotate").write_text(units.cron(renew=True))
        self.assertNotIn("timers.active", self.wrong())

    def test_heartbeat(self) -> None:
        """None yet, a failed one, an old one."""
        now = time.time()
        for record, words in (
            (Record(), "no heartbeat yet"),
            (Record(now, now, "HTTP 401"), "HTTP 401"),
            (Record(now - 7200, now - 7200), "120 minutes"),
        ):
            record.write(self.where.state)
            self.only("timers.heartbeat", WARN, words)


class CommandTests(HostCase):
    def run_doctor(self, *arguments: str) -> tuple[int, str]:
        lines: list[str] = []
        path = self.write()

        def made(conf: str, commands: object) -> Doctor:
            return Doctor(path, self.commands, root=str(self.root), agent=AGENT, where=self.where)

        with (
            mock.patch.object(doctor, "Doctor", made),
            mock.patch.object(doctor, "note", lines.append),
            mock.patch.dict(os.environ),
        ):
            code = doctor.run(list(arguments))
        return code, "\n".join(lines)

    def test_plain(self) -> None:
        """One line per finding, its remedy below it, and the sum; well is 0."""
        code, text = self.run_doctor()
        self.assertEqual(code, 0, text)
        self.assertIn("ok   server.secret: ", text)
        self.assertIn("0 to repair", text.splitlines()[-1])
        self.hash.unlink()
        code, text = self.run_doctor()
        self.assertEqual(code, 1)
        self.assertIn("FAIL breakglass.hash: ", text)
        self.assertIn("     -> run: identree rotate-breakglass", text)

    def test_warnings_are_no_failure(self) -> None:
        """With warnings alone the exit status is 0."""
        self.conf["IDENTREE_BREAKGLASS_ENABLED"] = "false"
        self.assertEqual(self.run_doctor()[0], 0)

    def test_json(self) -> None:
        """For programs: every finding with its four parts; no secret in it."""
        code, text = self.run_doctor("--json")
        value = json.loads(text)
        self.assertEqual((code, value["ok"], value["hostname"]), (0, True, "web01"))
        self.assertEqual(set(value["findings"][0]), {"id", "level", "text", "remedy"})
        self.hash.unlink()
        code, text = self.run_doctor("--json")
        self.assertEqual((code, json.loads(text)["ok"]), (1, False))
        for secret in (SECRET, DirectoryServer.PASSWORD):
            self.assertNotIn(secret, text)


class StatusTests(HostCase):
    def status(self) -> Status:
        return Status(self.write(), root=str(self.root), agent=AGENT, where=self.where)

    def line(self, name: str) -> str:
        lines = [line for line in self.status().lines() if line.startswith(name + ":")]
        self.assertEqual(len(lines), 1)
        return lines[0].partition(":")[2].strip()

    def test_well(self) -> None:
        """A host that is well, for people."""
        self.assertEqual(self.line("sudo asks"), "sudo: sole, sudo-i: sole")
        self.assertRegex(self.line("heartbeat"), r"^\d+s ago$")
        self.assertRegex(self.line("certificate"), r"^good until .* \(36\dd left\)$")
        self.assertRegex(self.line("break-glass"), "^the password is .* old, and changed after 90 days$")
        self.assertEqual(self.line("rotation"), "not due")
        self.assertIn("IDENTREE_TOKEN_CACHE_ISSUER is not set", self.line("token cache"))
        self.assertEqual(self.line("unreported uses"), "0")

    def test_ill(self) -> None:
        """One that is not."""
        Record(time.time() - 7300, time.time(), "HTTP 401").write(self.where.state)
        self.place(self.authority.issue("web01", days=-1, begins=-9))
        Path(f"{self.hash}.pending").write_text("x")
        breakglass.record_use("web01", "alice", 5, self.where)
        (self.root / "etc/pam.d/sudo-i").write_bytes(DEBIAN)
        self.assertEqual(self.line("heartbeat"), "2h ago; the last try failed: HTTP 401")
        self.assertIn("ENDED", self.line("certificate"))
        self.assertIn("not settled", self.line("rotation"))
        self.assertEqual(self.line("unreported uses"), "1")
        self.assertEqual(self.line("sudo asks"), "sudo: sole, sudo-i: absent")

    def test_rotation(self) -> None:
        """Due by age, and failed lately."""
        old = time.time() - 100 * 86400
        os.utime(self.hash, (old, old))
        self.assertEqual(self.line("rotation"), "due: the password is old")
        Path(self.where.attempt).touch()
        self.assertIn("last automatic try failed", self.line("rotation"))

    def test_no_break_glass(self) -> None:
        """Switched off, by setting or by link."""
        self.hash.unlink()
        self.hash.symlink_to("/dev/null")
        self.assertIn("switched off", self.line("break-glass"))
        self.conf["IDENTREE_BREAKGLASS_ENABLED"] = "no"
        self.assertIn("off", self.line("break-glass"))

    def test_cache(self) -> None:
        """How many tokens are kept."""
        self.conf["IDENTREE_TOKEN_CACHE_ISSUER"] = "https://id.example.com"
        self.conf["IDENTREE_TOKEN_CACHE_CLIENT_ID"] = "identree"
        self.assertEqual(self.line("token cache"), "on; 0 kept")
        host = self.root / "run/identree/web01"
        host.mkdir(parents=True)
        for name in ("alice", "bob", tokencache.TEMPORARY + "1"):
            (host / name).touch()
        self.assertEqual(self.line("token cache"), "on; 2 kept")

    def test_configuration_unusable(self) -> None:
        """Without configuration the rest is still said."""
        self.conf["IDENTREE_SERVER_URL"] = "ftp://x"
        found = self.status()
        self.assertIn("IDENTREE_SERVER_URL", found.problem)
        self.assertIn("sole", self.line("sudo asks"))
        self.assertNotIn("certificate", found.facts)

    def test_json(self) -> None:
        """All of it for programs, without secrets."""
        text = json.dumps(self.status().facts)
        value = json.loads(text)
        self.assertEqual(value["pam"], {"sudo": "sole", "sudo-i": "sole"})
        self.assertEqual(value["certificate"]["names"], ["web01"])
        self.assertEqual(value["breakglass"]["hash"], "present")
        self.assertEqual(value["pending_reports"], 0)
        self.assertNotIn(SECRET, text)

    def test_command(self) -> None:
        """Exit status and usage."""
        from identree.agent import main

        lines: list[str] = []
        path = self.write()
        with (
            mock.patch.object(status, "note", lines.append),
            mock.patch.object(main, "complain", lines.append),
            mock.patch.object(status, "Status", lambda conf: Status(path, root=str(self.root), where=self.where)),
            mock.patch.dict(os.environ),
        ):
            self.assertEqual(status.run([]), 0)
            self.assertEqual(status.run(["--json"]), 0)
            json.loads(lines[-1])
            self.assertEqual(status.run(["--all"]), 1)
        self.assertIn("usage:", lines[-1])
        self.assertTrue(heartbeat.RECORD)
