"""``identree setup --sssd``: what the server sends, what becomes of it, and the way back."""

from __future__ import annotations

import datetime
import functools
import ssl
import subprocess
import tempfile
import threading
import unittest
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from identree.agent import config as configuration
from identree.agent import setup_sssd
from identree.agent.setup_files import SetupError
from tests.agent.harness import archive, interpreters
from tests.agent.scripted import SECRET, Answer
from tests.agent.setuphost import DEBIAN, SOLE, MadeUpHost

NSSWITCH = b"""# names
passwd:         files systemd
group:          files systemd  # ours too
shadow:         files
hosts:          files dns
"""


class Authority:
    """A CA with a certificate of its own making."""

    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = self._sign(self._name, self._key.public_key(), True)

    def issue(self, name: str) -> tuple[str, str]:
        """Certificate and key for a host, as PEM; the key in the form that servers send."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        form = serialization.PrivateFormat.TraditionalOpenSSL
        text = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
        return self._sign(subject, key.public_key(), False), text.decode()

    def _sign(self, subject: x509.Name, key: ec.EllipticCurvePublicKey, ca: bool) -> str:
        now = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
        names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
        made = (
            x509.CertificateBuilder(self._name, subject, key, x509.random_serial_number(), now, now.replace(year=2120))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(names, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return made.public_bytes(serialization.Encoding.PEM).decode()


@functools.cache
def authority(name: str = "ours") -> Authority:
    return Authority(name)


def granted(**more: object) -> dict[str, object]:
    return {
        "ldap_url": "ldap://id.example.com:389",
        "base_dn": "dc=example,dc=com",
        "bind_dn": "uid=web01,ou=identree-hosts,dc=example,dc=com",
        "bind_password": "0123abcd",
        **more,
    }


def with_certificate(**more: object) -> dict[str, object]:
    certificate, key = authority().issue("web01")
    return granted(
        ldap_url="ldaps://id.example.com:636",
        client_cert=certificate,
        client_key=key,
        ca_cert=authority().certificate,
        cert_serial="1f",
        **more,
    )


class NsswitchTests(unittest.TestCase):
    def test_added(self) -> None:
        """sssd is asked last, before a comment; a database that is missing gets its line."""
        new, added = setup_sssd.with_sss(NSSWITCH)
        self.assertEqual(
            new,
            NSSWITCH.replace(b"passwd:         files systemd", b"passwd:         files systemd sss").replace(
                b"group:          files systemd  #", b"group:          files systemd sss  #"
            )
            + b"sudoers: files sss\n",
        )
        self.assertEqual(setup_sssd.without_sss(new, added), NSSWITCH)

    def test_present(self) -> None:
        """What is there already is not touched; a word in a comment, or a part of a word, is not there."""
        there = b"passwd: files sss\ngroup: sss files\nsudoers: files sss\n"
        self.assertEqual(setup_sssd.with_sss(there), (there, []))
        for line in (b"passwd: files # sss\n", b"passwd: files sssd\n", b"passwd: files"):
            new, added = setup_sssd.with_sss(line)
            self.assertIn("passwd", added)
            self.assertTrue(setup_sssd.without_sss(new, added).rstrip(b"\n") == line.rstrip(b"\n"))

    def test_others_changed_it(self) -> None:
        """What others added behind ours stays when ours goes."""
        new, added = setup_sssd.with_sss(NSSWITCH)
        self.assertEqual(
            setup_sssd.without_sss(new.replace(b"systemd sss", b"systemd sss winbind", 1), added),
            NSSWITCH.replace(b"systemd", b"systemd winbind", 1),
        )


class GrantTests(unittest.TestCase):
    def test_text(self) -> None:
        """The file of the contract, with the account policy without which nobody gets in."""
        text = setup_sssd.sssd_conf(setup_sssd.Grant(granted()), ldap_ca="", certificate="", key="").decode()
        for line in (
            "services = nss, pam, sudo",
            "config_file_version = 2",
            "domains = identree",
            "id_provider = ldap",
            "auth_provider = none",
            "access_provider = ldap",
            "sudo_provider = ldap",
            "ldap_access_order = expire",
            "ldap_account_expire_policy = shadow",
            "ldap_uri = ldap://id.example.com:389",
            "ldap_search_base = dc=example,dc=com",
            "ldap_user_search_base = ou=people,dc=example,dc=com",
            "ldap_group_search_base = ou=groups,dc=example,dc=com",
            "ldap_sudo_search_base = ou=sudoers,dc=example,dc=com",
            "ldap_default_bind_dn = uid=web01,ou=identree-hosts,dc=example,dc=com",
            "ldap_default_authtok = 0123abcd",
            "ldap_default_authtok_type = password",
            "ldap_id_use_start_tls = false",
            "ldap_tls_reqcert = never",
            "ldap_schema = rfc2307",
            "enumerate = false",
            "cache_credentials = false",
            "entry_cache_timeout = 60",
            "entry_cache_user_timeout = 60",
            "entry_cache_group_timeout = 60",
            "entry_cache_sudo_timeout = 60",
            "refresh_expired_interval = 30",
            "ldap_enumeration_refresh_timeout = 60",
            "ldap_sudo_smart_refresh_interval = 30",
            "ldap_sudo_full_refresh_interval = 60",
            "homedir_substring = /home",
            "sudo_timed = false",
        ):
            self.assertIn(f"\n{line}\n", text)
        self.assertTrue(text.endswith("\n"))

    def test_encrypted(self) -> None:
        """Over ldaps the other end is checked, always, also when the server sends no CA."""
        for extra in ({}, {"ldap_url": "ldaps://id.example.com"}):
            grant = setup_sssd.Grant(with_certificate(**extra) if not extra else granted(**extra))
            text = setup_sssd.sssd_conf(grant, ldap_ca="/ca", certificate="/crt", key="/key").decode()
            self.assertIn("ldap_tls_reqcert = demand\n", text)
            self.assertIn("ldap_tls_cacert = /ca\nldap_tls_cert = /crt\nldap_tls_key = /key\n", text)

    def test_refused(self) -> None:
        """Nothing is believed that could add a line, or is not what it should be."""
        for change in (
            {"ldap_url": "ldap://x\nldap_uri = ldap://evil"},
            {"ldap_url": "https://x"},
            {"ldap_url": "ldap://a, ldap://b"},
            {"ldap_url": ""},
            {"base_dn": 7},
            {"base_dn": "example.com"},
            {"bind_dn": "uid=x\r\n[sssd]"},
            {"bind_password": "a\u2028b"},
            {"bind_password": " x"},
            {"bind_password": "x" * 2000},
            {"tls_ca_cert": "hello"},
            {"tls_ca_cert": ["x"]},
            {"client_cert": authority().certificate},
        ):
            with self.subTest(change), self.assertRaises(SetupError):
                setup_sssd.Grant(granted(**change))

    def test_certificates_refused(self) -> None:
        """A CA that is none and a key that is another's are found before anything is written."""
        _, other = authority("other").issue("web01")
        broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
        for change in ({"tls_ca_cert": broken}, {"ca_cert": broken}, {"client_key": other}):
            with self.subTest(list(change)), self.assertRaises(SetupError):
                setup_sssd.check_certificates(setup_sssd.Grant({**with_certificate(), **change}))
        setup_sssd.check_certificates(setup_sssd.Grant(with_certificate(tls_ca_cert=authority("other").certificate)))


class HandshakeTests(unittest.TestCase):
    """A server with a real certificate."""

    def setUp(self) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        certificate, key = authority().issue("localhost")
        with tempfile.TemporaryDirectory() as directory:
            files = [Path(directory) / "crt", Path(directory) / "key"]
            files[0].write_text(certificate)
            files[1].write_text(key)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*files)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        values = {"IDENTREE_SERVER_URL": f"https://localhost:{server.server_port}", "IDENTREE_HOSTNAME": "web01"}
        self.config = configuration.Config("/etc/identree/client.conf", values)

    def test_alone(self) -> None:
        """The CA is trusted alone when the server's own certificate comes from it, and not otherwise."""
        self.assertTrue(setup_sssd.trusts_alone(self.config, setup_sssd.Grant(with_certificate())))
        other = {**with_certificate(), "ca_cert": authority("other").certificate}
        self.assertFalse(setup_sssd.trusts_alone(self.config, setup_sssd.Grant(other)))
        self.assertEqual(self.config.ca_cert, "")

    def test_nothing_to_trust(self) -> None:
        """Without CA, or without encryption, there is nothing to try."""
        self.assertFalse(setup_sssd.trusts_alone(self.config, setup_sssd.Grant(granted())))
        self.config.scheme = "http"
        self.assertFalse(setup_sssd.trusts_alone(self.config, setup_sssd.Grant(with_certificate())))


class SssdTests(MadeUpHost):
    def setUp(self) -> None:
        super().setUp()
        (self.root / "etc/nsswitch.conf").write_bytes(NSSWITCH)
        (self.root / "usr/sbin").mkdir()
        (self.root / "usr/sbin/sssd").touch(0o755)
        self.conf.write_text(self.conf.read_text() + f"IDENTREE_SHARED_SECRET={SECRET}")  # no line end, on purpose
        self.answers["/api/client/provision"] = Answer(200, granted())
        self.sssd_conf = self.root / "etc/sssd/sssd.conf"

    def test_everything(self) -> None:
        """The server is asked in the host's name, and sssd, names and sudo are configured."""
        self.assertEqual(self.setup("--sssd", "--hostname=web02"), 0, self.said)
        request = next(each for each in self.server.requests if each.path != "/healthz")
        self.assertEqual(
            (request.method, request.path, request.headers["x-hostname"], request.headers["x-shared-secret"]),
            ("GET", "/api/client/provision", "web02", SECRET),
        )
        self.assertIn("ldap_uri = ldap://id.example.com:389\n", self.sssd_conf.read_text())
        self.assertEqual(self.sssd_conf.stat().st_mode & 0o777, 0o600)
        self.assertEqual(self.sssd_conf.parent.stat().st_mode & 0o777, 0o700)
        self.assertEqual((self.root / "etc/nsswitch.conf").read_bytes(), setup_sssd.with_sss(NSSWITCH)[0])
        self.assertIn(SOLE, self.sudo.read_bytes())
        self.assertNotIn("0123abcd", self.said)

    def test_certificate(self) -> None:
        """A certificate is kept where client.conf names it, the key for root alone, the CA only when it holds alone."""
        self.answers["/api/client/provision"] = Answer(200, with_certificate(tls_ca_cert=authority().certificate))
        before = self.conf.read_text()
        self.assertEqual(self.setup("--sssd"), 0, self.said)
        added = "\nIDENTREE_CLIENT_CERT=/etc/identree/client.crt\nIDENTREE_CLIENT_KEY=/etc/identree/client.key\n"
        self.assertEqual(self.conf.read_text(), before + added)
        self.assertIn("IDENTREE_CA_CERT is left out", self.said)
        self.assertEqual((self.root / "etc/identree/client.key").stat().st_mode & 0o777, 0o600)
        text = self.sssd_conf.read_text()
        self.assertIn(
            "ldap_tls_cacert = /etc/sssd/identree-ldap-ca.crt\nldap_tls_cert = /etc/identree/client.crt\n", text
        )
        self.assertNotIn("PRIVATE KEY", self.said)
        with mock.patch.object(setup_sssd, "trusts_alone", lambda config, grant: True):
            self.assertEqual(self.setup("--sssd"), 0, self.said)
        self.assertEqual(self.conf.read_text(), before + added + "IDENTREE_CA_CERT=/etc/identree/ca.crt\n")

    def test_certificate_elsewhere(self) -> None:
        """What client.conf names already goes on being named; a commented line names nothing."""
        self.answers["/api/client/provision"] = Answer(200, with_certificate())
        certificate, key = authority().issue("web01")
        (self.root / "own.crt").write_text(certificate)
        (self.root / "own.key").write_text(key)
        self.conf.write_text(
            self.conf.read_text() + f"\n#IDENTREE_CLIENT_KEY=x\nIDENTREE_CLIENT_CERT={self.root}/own.crt\n"
        )
        self.assertEqual(self.setup("--sssd"), 0, self.said)
        self.assertIn(f"goes on naming {self.root}/own.crt", self.said)
        self.assertTrue(self.conf.read_text().endswith("IDENTREE_CLIENT_KEY=/etc/identree/client.key\n"))

    def test_existing(self) -> None:
        """An sssd.conf of somebody's stays, the other steps go on; --force replaces it and keeps it beside."""
        self.sssd_conf.parent.mkdir()
        self.sssd_conf.write_text("[sssd]\n")
        self.answers["/api/client/provision"] = Answer(200, granted(tls_ca_cert=authority().certificate))
        before = self.tree()
        self.assertEqual(self.setup("--sssd"), 0, self.said)
        self.assertEqual(self.sssd_conf.read_text(), "[sssd]\n")
        self.assertIn("--force replaces it", self.said)
        self.assertFalse((self.root / "etc/sssd/identree-ldap-ca.crt").exists())
        self.assertIn(b" sss", (self.root / "etc/nsswitch.conf").read_bytes())
        self.assertEqual(self.setup("--sssd", "--force"), 0, self.said)
        self.assertIn("[domain/identree]", self.sssd_conf.read_text())
        self.assertEqual((self.root / "etc/sssd/sssd.conf.identree.bak").read_text(), "[sssd]\n")
        self.assertEqual(self.setup("--remove", "--keep-files"), 0, self.said)
        self.assertEqual(self.tree(), before)

    def test_twice(self) -> None:
        """A second run writes what the server says now, needs no --force for what is ours, and adds nothing twice."""
        self.setup("--sssd")
        once = self.tree()
        self.assertEqual(self.setup("--sssd"), 0, self.said)
        self.assertEqual(self.tree(), once)
        self.answers["/api/client/provision"] = Answer(200, granted(bind_password="changed"))
        self.assertEqual(self.setup("--sssd"), 0, self.said)
        self.assertIn("ldap_default_authtok = changed\n", self.sssd_conf.read_text())

    def test_removed(self) -> None:
        """Removal gives back every file, and directories that we made."""
        anchors = self.root / "usr/local/share/ca-certificates"
        anchors.mkdir(parents=True)
        before = self.tree()
        self.answers["/api/client/provision"] = Answer(200, with_certificate(tls_ca_cert=authority().certificate))
        self.setup("--sssd")
        self.assertTrue((anchors / "identree.crt").exists())
        self.assertEqual(self.setup("--remove", "--keep-files"), 0, self.said)
        self.assertEqual(self.tree(), before)
        self.assertFalse(self.sssd_conf.parent.exists() or (self.root / "var/lib/identree").exists())

    def test_removed_after_edits(self) -> None:
        """From files that others changed since only ours is taken; a changed sssd.conf stays."""
        self.answers["/api/client/provision"] = Answer(200, with_certificate())
        conf = self.conf.read_text()
        self.setup("--sssd")
        for path, more in (("etc/nsswitch.conf", "netgroup: nis\n"), ("etc/identree/client.conf", "# mine\n")):
            with (self.root / path).open("a") as file:
                file.write(more)
        self.sssd_conf.write_text("[sssd]\n")
        self.assertEqual(self.setup("--remove", "--keep-files"), 0, self.said)
        self.assertEqual((self.root / "etc/nsswitch.conf").read_bytes(), NSSWITCH + b"netgroup: nis\n")
        self.assertEqual(self.conf.read_text(), conf + "\n# mine\n")
        self.assertEqual(self.sssd_conf.read_text(), "[sssd]\n")
        self.assertIn("stays as it is", self.said)

    def test_refusals(self) -> None:
        """What the server refuses is said with what to do, before anything is changed."""
        for status, word in (
            (400, "--hostname"),
            (401, "IDENTREE_SHARED_SECRET"),
            (403, "register"),
            (404, "IDENTREE_LDAP_PROVISION_ENABLED"),
            (500, "HTTP 500"),
            (503, "HTTP 503"),
        ):
            with self.subTest(status):
                self.answers["/api/client/provision"] = Answer(status, {"error": "no"})
                self.refused(word, "--sssd")
        for body in (b"hello", b"[]", b'{"ldap_url": "ldap://x"}'):
            with self.subTest(body):
                self.answers["/api/client/provision"] = Answer(200, body)
                self.refused("the server", "--sssd")

    def test_no_server(self) -> None:
        """Without a server in client.conf nothing begins."""
        self.conf.write_text("")
        self.refused("IDENTREE_SERVER_URL", "--sssd", "--force")

    def test_dry_run(self) -> None:
        """A dry run asks nobody."""
        before = self.tree()
        self.assertEqual(self.setup("--sssd", "--dry-run"), 0, self.said)
        self.assertEqual((self.tree(), self.server.requests), (before, []))
        self.assertIn("+ sudoers: files sss", self.said)

    def test_missing_sssd(self) -> None:
        """That sssd is not installed is said."""
        (self.root / "usr/sbin/sssd").unlink()
        self.assertEqual(self.setup("--sssd"), 0)
        self.assertIn("sssd is not installed", self.said)

    def test_unprivileged(self) -> None:
        """An sssd that is not root gets copies that it can read, its group's and nobody else's."""
        (self.root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nsssd:x:990:0::/:/sbin/nologin\n")
        self.answers["/api/client/provision"] = Answer(200, with_certificate())
        for version, path in (("2.9.5", "/etc/identree/client.key"), ("2.10.1", "/etc/sssd/identree-client.key")):
            with self.subTest(version):
                self.commands.programs["sssd"] = lambda arguments, version=version: (0, version + "\n")
                self.assertEqual(self.setup("--sssd"), 0, self.said)
                self.assertIn(f"ldap_tls_key = {path}\n", self.sssd_conf.read_text())
        self.assertEqual((self.root / "etc/sssd/identree-client.key").stat().st_mode & 0o777, 0o640)
        self.assertEqual(self.sssd_conf.stat().st_mode & 0o777, 0o640)
        self.assertIn("ldap_tls_cacert = /etc/sssd/identree-ca.crt\n", self.sssd_conf.read_text())

    def test_copies_renewed(self) -> None:
        """A renewal replaces the copies where they are, with their owner and mode, and makes none."""
        self.assertFalse(setup_sssd.refresh_copies(str(self.root), "c", "k", "a"))
        copy = self.root / "etc/sssd/identree-client.key"
        copy.parent.mkdir()
        copy.write_text("old")
        copy.chmod(0o640)
        self.assertTrue(setup_sssd.refresh_copies(str(self.root), "c", "k", "a"))
        self.assertEqual((copy.read_text(), copy.stat().st_mode & 0o777), ("k", 0o640))
        self.assertEqual([path.name for path in copy.parent.iterdir()], [copy.name])

    def test_last_check(self) -> None:
        """When the server does not answer any more with what was written, everything is rolled back."""
        self.answers["/api/client/provision"] = Answer(200, with_certificate())
        answers = [Answer(200, {"status": "ok"}), Answer(421, {})]
        usual = self.server.script
        self.server.script = lambda request: answers.pop(0) if request.path == "/healthz" else usual(request)
        self.refused("HTTP 421. Every change was rolled back", "--sssd")

    def test_unknown_trust_store(self) -> None:
        """Where the system's place for authorities is not known, the CA is shown."""
        self.answers["/api/client/provision"] = Answer(200, granted(tls_ca_cert=authority().certificate))
        self.setup("--sssd")
        self.assertIn("BEGIN CERTIFICATE", self.said)

    def test_check_of_the_configuration(self) -> None:
        """What sssctl finds ends it, unless it is forced; then everything is as before."""
        self.commands.programs["sssctl"] = lambda arguments: (1, "Issues identified by validators: 1")
        self.refused("Issues identified", "--sssd")
        self.assertEqual(self.setup("--sssd", "--force"), 0, self.said)
        self.commands.programs["sssctl"] = lambda arguments: (1, "Issues identified by validators: 0\n\nNo conf.d.")
        self.assertEqual(self.setup("--sssd"), 0, self.said)
        self.assertIn("No conf.d", self.said)

    def test_every_python(self) -> None:
        """The built agent does the same on every Python that hosts have."""
        for name in ("etc/cron.d", "etc/audit/rules.d"):
            (self.root / name).mkdir(parents=True)
        self.answers["/api/client/provision"] = Answer(200, with_certificate(tls_ca_cert=authority().certificate))
        before = self.tree()
        for version, path in interpreters().items():
            for arguments in (["--sssd", "--auditd", "--timers"], ["--remove", "--keep-files"]):
                with self.subTest(version, arguments=arguments):
                    command = [path, "-ISB", archive(), "setup", f"--root={self.root}", *arguments]
                    done = subprocess.run(command, capture_output=True, text=True, env={}, timeout=120)
                    self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
                    self.assertEqual(self.tree() == before, "--remove" in arguments)


class ServiceTests(MadeUpHost):
    """sssd as a service, and the programs that manage PAM and nsswitch."""

    def setUp(self) -> None:
        super().setUp()
        (self.root / "etc/nsswitch.conf").write_bytes(NSSWITCH)
        (self.root / "run/systemd/system").mkdir(parents=True)
        self.answers["/api/client/provision"] = Answer(200, granted())
        self.active: set[str] = set()
        self.failing = ""
        self.commands.programs["systemctl"] = self.systemctl

    def systemctl(self, arguments: Sequence[str]) -> tuple[int, str]:
        if arguments[0] == self.failing:
            return 1, "no"
        if arguments[0] in ("is-active", "is-enabled"):
            return (0 if arguments[0] in self.active else 3), ""
        return 0, ""

    def test_started(self) -> None:
        """sssd is enabled and started, and stopped again by the removal when it did not run before."""
        self.assertEqual(self.setup("--sssd"), 0, self.said)
        self.assertEqual(self.commands.calls[-2:], ["systemctl enable sssd.service", "systemctl restart sssd.service"])
        self.setup("--remove", "--keep-files")
        self.assertIn("systemctl stop sssd.service", self.commands.calls)
        self.assertIn("systemctl disable sssd.service", self.commands.calls)

    def test_was_running(self) -> None:
        """One that ran before goes on with what it had."""
        self.active = {"is-active", "is-enabled"}
        self.setup("--sssd")
        self.commands.calls.clear()
        self.assertEqual(self.setup("--remove", "--keep-files"), 0, self.said)
        self.assertIn("systemctl restart sssd.service", self.commands.calls)
        self.assertNotIn("systemctl stop sssd.service", self.commands.calls)

    def test_does_not_start(self) -> None:
        """When sssd does not start with it, everything is as before, sssd too."""
        self.failing = "restart"
        self.refused("restart sssd.service failed", "--sssd")
        self.assertIn("systemctl stop sssd.service", self.commands.calls)

    def authselect(self, profile: str) -> None:
        directory = self.root / "etc/authselect"
        directory.mkdir()
        (directory / "authselect.conf").write_text(profile)
        (directory / "nsswitch.conf").write_bytes(NSSWITCH)
        (self.root / "etc/nsswitch.conf").unlink()
        (self.root / "etc/nsswitch.conf").symlink_to("/etc/authselect/nsswitch.conf")

        def answer(arguments: Sequence[str]) -> tuple[int, str]:
            current = (directory / "authselect.conf").read_text().split()
            if arguments[0] == "current":
                return 0, " ".join(current) + "\n"
            if arguments[0] == "list-features":
                return 0, "with-faillock\nwith-mkhomedir\nwith-sudo\n"
            made = list(arguments[1:]) if arguments[0] == "select" else [*current, arguments[1]]
            (directory / "authselect.conf").write_text(" ".join(made))
            (directory / "nsswitch.conf").write_text("passwd: files sss\nsudoers: files sss\n")
            (directory / "system-auth").write_text("new\n")
            return 0, ""

        self.commands.programs["authselect"] = answer

    def test_authselect_profile(self) -> None:
        """Where authselect manages the files its own profile is chosen, with the features there were."""
        self.authselect("minimal with-faillock")
        before = self.tree()
        self.assertEqual(self.setup("--sssd"), 0, self.said)
        self.assertIn("authselect select sssd with-sudo with-mkhomedir with-faillock", self.commands.calls)
        self.assertTrue((self.root / "etc/nsswitch.conf").is_symlink())
        self.assertEqual(self.setup("--remove", "--keep-files"), 0, self.said)
        self.assertEqual(self.tree(), before)

    def test_authselect_feature(self) -> None:
        """A profile that has sssd gets the features that are missing."""
        self.authselect("sssd with-mkhomedir")
        self.assertEqual(self.setup("--sssd"), 0, self.said)
        self.assertIn("authselect enable-feature with-sudo", self.commands.calls)
        self.assertNotIn("authselect enable-feature with-mkhomedir", self.commands.calls)

    def test_authselect_changed_since(self) -> None:
        """When somebody chose another profile since, the removal asks authselect for the one before us."""
        self.authselect("minimal")
        self.setup("--sssd")
        (self.root / "etc/authselect/authselect.conf").write_text("winbind")
        self.assertEqual(self.setup("--remove", "--keep-files"), 0, self.said)
        self.assertIn("authselect select minimal", self.commands.calls)
        self.assertEqual((self.root / "etc/authselect/authselect.conf").read_text(), "minimal")

    def test_authselect_fails(self) -> None:
        """What it did before it failed is taken back."""
        self.authselect("minimal")
        real = self.commands.programs["authselect"]

        def broken(arguments: list[str]) -> tuple[int, str]:
            done = real(arguments)
            return (1, "unexpected changes") if arguments[0] == "select" else done

        self.commands.programs["authselect"] = broken
        self.refused("unexpected changes", "--sssd")

    def test_home_directories(self) -> None:
        """On Debian pam-auth-update is asked for home directories, and told at the removal."""
        session = self.root / "etc/pam.d/common-session"
        session.write_text("session required pam_unix.so\n")
        profile = self.root / "usr/share/pam-configs/mkhomedir"
        profile.parent.mkdir(parents=True)
        profile.touch()
        state = self.root / "var/lib/pam/seen"
        state.parent.mkdir(parents=True)
        state.write_text("unix\n")

        def answer(arguments: Sequence[str]) -> tuple[int, str]:
            if arguments[0] == "--enable":
                session.write_text(session.read_text() + "session optional pam_mkhomedir.so\n")
                state.write_text("unix\nmkhomedir\n")
            return 0, ""

        self.commands.programs["pam-auth-update"] = answer
        before = self.tree()
        self.assertEqual(self.setup("--sssd"), 0, self.said)
        self.assertIn("pam_mkhomedir", session.read_text())
        self.assertEqual(self.setup("--remove", "--keep-files"), 0, self.said)
        self.assertIn("pam-auth-update --disable mkhomedir", self.commands.calls)
        self.assertEqual(self.tree(), before)
        self.assertEqual(self.sudo.read_bytes(), DEBIAN)

    def test_trust(self) -> None:
        """The system's authorities are brought up to date, again when it is all taken back."""
        anchors = self.root / "etc/pki/ca-trust/source/anchors"
        anchors.mkdir(parents=True)
        self.answers["/api/client/provision"] = Answer(200, granted(tls_ca_cert=authority().certificate))
        seen: list[bool] = []

        def answer(arguments: Sequence[str]) -> tuple[int, str]:
            seen.append((anchors / "identree.crt").exists())
            return 0, ""

        self.commands.programs["update-ca-trust"] = answer
        self.assertEqual(self.setup("--sssd"), 0, self.said)
        self.assertEqual(self.setup("--remove", "--keep-files"), 0, self.said)
        self.failing = "restart"
        self.refused("failed", "--sssd")
        self.assertEqual(seen, [True, False, True, False])
