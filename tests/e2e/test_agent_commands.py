"""
``heartbeat``, ``renew-cert``, ``status``, ``doctor`` and the signing commands of the real agent, on a host of its own
with a real sssd, against a real server with HTTPS, LDAPS and its own CA.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from identree.agent import certificates
from tests.agent.harness import interpreters
from tests.e2e import directory
from tests.e2e.ldaptools import Told
from tests.e2e.pocketid import PocketIdServer, username
from tests.e2e.provider import Provider
from tests.e2e.server import SHARED_SECRET, free_port
from tests.e2e.slapd import BASE_DN
from tests.e2e.sssd import FULL_NAME, SERVER_NAME, ManagedHost, configuration
from tests.e2e.tls import CA, SecureServer, openssl
from tests.e2e.world import build_agent

pytestmark = pytest.mark.e2e

# In the host's own /etc, which nobody but root can write to.
AGENT = "/etc/identree-agent/identree"
STATE = Path("/var/lib/identree")
ADA = username(1)
SOLE = f"auth [success=done default=die] pam_exec.so quiet stdout {AGENT}\naccount required pam_permit.so\n"


@dataclass(frozen=True)
class World:
    """:ivar given: what the host was provisioned with. :ivar ca: the server's, of hosts as well."""

    server: SecureServer
    host: ManagedHost
    ca: CA
    given: dict[str, str]

    def agent(self, *arguments: str, python: str = "") -> Told:
        command = [python, "-ISB", AGENT] if python else [AGENT]
        return self.host.run(*command, *arguments, seconds=120)

    def configure(self, **changed: str) -> None:
        values = {
            "IDENTREE_SERVER_URL": f"https://{SERVER_NAME}:{self.server.port}",
            "IDENTREE_SHARED_SECRET": SHARED_SECRET,
            "IDENTREE_HOSTNAME": FULL_NAME,
            "IDENTREE_CA_CERT": "/etc/identree/ca.crt",
            "IDENTREE_CLIENT_CERT": "/etc/identree/client.crt",
            "IDENTREE_CLIENT_KEY": "/etc/identree/client.key",
            "IDENTREE_SYSLOG": "false",
            **changed,
        }
        text = "".join(f"{key}={value}\n" for key, value in values.items() if value)
        self.host.write("/etc/identree/client.conf", text, 0o600)

    def certify(self, certificate: str, key: str) -> None:
        """Give the host this certificate, as its installation would."""
        shutil.rmtree(self.host.file("/etc/identree/certificates"), ignore_errors=True)
        self.host.write("/etc/identree/ca.crt", self.given["ca_cert"])
        self.host.write("/etc/identree/client.crt", certificate)
        self.host.write("/etc/identree/client.key", key, 0o600)

    def certificate(self) -> certificates.Certificate:
        return certificates.read_pem(self.host.run("cat", "/etc/identree/client.crt").output)[0]

    def findings(self) -> dict[str, tuple[str, str]]:
        """Level and text of what ``doctor`` finds, by id; of several the worst."""
        told = self.agent("doctor", "--json")
        value = json.loads(told.output)
        assert told.status == (0 if value["ok"] else 1), told
        found: dict[str, tuple[str, str]] = {}
        for each in value["findings"]:
            if each["id"] not in found or each["level"] == "fail":
                found[each["id"]] = (each["level"], f"{each['text']} -> {each['remedy']}")
        return found

    def failures(self) -> dict[str, str]:
        return {name: text for name, (level, text) in self.findings().items() if level == "fail"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    place, ldaps_port = tmp_path_factory.mktemp("server"), free_port()
    ca = CA(tmp_path_factory.mktemp("ca"))
    had_state = STATE.is_dir()
    with ExitStack() as stack:
        pocketid = stack.enter_context(PocketIdServer(5, 2, 0))
        oidc = stack.enter_context(Provider(free_port(), ["http://127.0.0.1:8090/callback"], {"alice": ["users"]}))
        settings = {
            **oidc.settings,
            **directory.settings(place, pocketid, free_port()),
            **ca.settings(),
            "IDENTREE_LDAP_TLS_LISTEN_ADDR": f"127.0.0.1:{ldaps_port}",
            "IDENTREE_LDAP_PROVISION_ENABLED": "true",
            "IDENTREE_LDAP_EXTERNAL_URL": f"ldaps://{SERVER_NAME}:{ldaps_port}",
        }
        server = SecureServer(place, settings)
        server.settings["IDENTREE_EXTERNAL_URL"] = f"https://{SERVER_NAME}:{server.port}"
        stack.enter_context(server)
        headers = {"X-Shared-Secret": SHARED_SECRET, "X-Hostname": FULL_NAME}
        given = server.ask("GET", "/api/client/provision", headers).json
        host = stack.enter_context(ManagedHost(tmp_path_factory.mktemp("host")))
        host.file(AGENT).parent.mkdir(0o755)
        shutil.copy(build_agent(), host.file(AGENT))
        # the state directory is this host's own, too
        STATE.mkdir(mode=0o700, exist_ok=True)
        stack.callback(_remove_state, had_state)
        assert host.run("mount", "-t", "tmpfs", "-o", "mode=700", "tmpfs", str(STATE)).status == 0
        world = World(server, host, ca, given)
        world.certify(given["client_cert"], given["client_key"])
        world.configure()
        text = configuration(
            "full-ldaps.conf",
            address=f"ldaps://{SERVER_NAME}:636=>{given['ldap_url']}",
            identity=f"uid=web1.example.com,ou=identree-hosts,{BASE_DN}=>{given['bind_dn']}",
            password=f"change-me=>{given['bind_password']}",
        )
        host.start_sssd(text, ["getent", "passwd", ADA])
        yield world


def _remove_state(had: bool) -> None:
    if not had:
        with suppress(OSError):
            STATE.rmdir()


@pytest.fixture
def world(made: World) -> World:
    """The host as it was installed."""
    made.certify(made.given["client_cert"], made.given["client_key"])
    made.configure()
    made.host.pam(SOLE)
    return made


class TestHeartbeat:
    def test_taken(self, world: World) -> None:
        """Silence and 0, by secret and certificate, by either alone; and it is remembered."""
        for changed in ({}, {"IDENTREE_SHARED_SECRET": ""}, {"IDENTREE_CLIENT_CERT": "", "IDENTREE_CLIENT_KEY": ""}):
            world.configure(**changed)
            assert world.agent("heartbeat") == Told(0, "", "")
        beat = json.loads(world.agent("status", "--json").output)["heartbeat"]
        assert beat["last"] and not beat["problem"]
        assert beat["age_seconds"] < 120

    def test_refused(self, world: World) -> None:
        """A wrong secret is refused; the line names the key to look at, and not the secret."""
        wrong = "0123456789abcdef0123456789abcdef"
        world.configure(IDENTREE_SHARED_SECRET=wrong, IDENTREE_CLIENT_CERT="", IDENTREE_CLIENT_KEY="")
        told = world.agent("heartbeat")
        assert told.status == 1
        assert "IDENTREE_SHARED_SECRET" in told.errors
        assert wrong not in told.errors


class TestRenewal:
    def test_not_due(self, world: World) -> None:
        """A fresh certificate stays."""
        before = world.certificate().serial
        told = world.agent("renew-cert")
        assert (told.status, world.certificate().serial) == (0, before)
        assert "nothing to do" in told.output

    def test_forced(self, world: World) -> None:
        """A new one under the same names, which openssl and the server take."""
        before = world.certificate()
        told = world.agent("renew-cert", "--force")
        assert told.status == 0, told
        after = world.certificate()
        assert after.serial != before.serial
        assert after.names_host(FULL_NAME)
        checked = world.host.run(
            "openssl", "verify", "-purpose", "sslclient", "-CAfile", "/etc/identree/ca.crt", "/etc/identree/client.crt"
        )
        assert checked.status == 0, checked
        world.configure(IDENTREE_SHARED_SECRET="")
        assert world.agent("renew-cert", "--force").status == 0

    def test_expired(self, world: World) -> None:
        """A host whose certificate has ended comes back by its secret, and without one is told what to do."""
        certificate, key = world.ca.issue(FULL_NAME, "clientAuth", days=-1)
        world.certify(certificate.read_text(), key.read_text())
        world.configure(IDENTREE_SHARED_SECRET="")
        told = world.agent("renew-cert")
        assert told.status == 1
        assert "IDENTREE_SHARED_SECRET" in told.errors
        world.configure()
        told = world.agent("renew-cert")
        assert told.status == 0, told
        assert "asking without it" in told.errors
        assert world.agent("renew-cert").output.endswith("nothing to do\n")

    def test_other_host(self, world: World) -> None:
        """By its certificate alone a host gets no certificate for another name."""
        world.configure(IDENTREE_SHARED_SECRET="", IDENTREE_HOSTNAME="db1.example.com")
        told = world.agent("renew-cert", "--force")
        assert told.status == 1
        assert "IDENTREE_HOSTNAME" in told.errors


class TestDoctor:
    def test_well(self, world: World) -> None:
        """On a host that works nothing of the ways to the server and the directory fails."""
        found = world.findings()
        for name in (
            "server.secret",
            "server.http",
            "ldaps.bind",
            "ldaps.search",
            "sssd.answer",
            "pam.sudo",
            "clock.skew",
        ):
            assert found[name][0] == "ok", found[name]
        # no password was made for this host, which has no systemd
        assert set(world.failures()) <= {"breakglass.hash"}, world.failures()

    def test_client_expired(self, world: World) -> None:
        """The certificate has ended: seen here and said by the server."""
        certificate, key = world.ca.issue(FULL_NAME, "clientAuth", days=-1)
        world.certify(certificate.read_text(), key.read_text())
        failures = world.failures()
        assert "ended" in failures["ldaps.client-expired"]
        assert "renew-cert --force" in failures["server.client-expired"]

    def test_other_ca(self, world: World, tmp_path: Path) -> None:
        """A certificate of another CA: the real server's alert is understood."""
        certificate, key = CA(tmp_path / "other", "other CA").issue(FULL_NAME, "clientAuth")
        world.certify(certificate.read_text(), key.read_text())
        assert "IDENTREE_LDAP_TLS_CA_CERT" in world.failures()["ldaps.client-ca"]

    def test_ca_changed(self, world: World, tmp_path: Path) -> None:
        """The CA of the directory was changed, and sssd's copy of it was not."""
        other = CA(tmp_path / "new")
        world.host.write("/etc/identree/ca.crt", other.certificate.read_text())
        failures = world.failures()
        assert "ldap_tls_cacert" in failures["ldaps.server-ca"]
        assert "IDENTREE_CA_CERT" in failures["server.server-ca"]

    def test_not_presented(self, world: World) -> None:
        """sssd has no certificate to show."""
        conf = world.host.file("/etc/sssd/sssd.conf")
        before = conf.read_text()
        try:
            lines = [line for line in before.splitlines() if not line.startswith(("ldap_tls_cert", "ldap_tls_key"))]
            world.host.write("/etc/sssd/sssd.conf", "\n".join(lines) + "\n", 0o600)
            assert "ldap_tls_cert" in world.failures()["ldaps.client-certificate"]
        finally:
            world.host.write("/etc/sssd/sssd.conf", before, 0o600)

    def test_secret(self, world: World) -> None:
        """A wrong secret."""
        world.configure(IDENTREE_SHARED_SECRET="0" * 32, IDENTREE_CLIENT_CERT="", IDENTREE_CLIENT_KEY="")
        assert "IDENTREE_SHARED_SECRET" in world.failures()["server.secret"]

    def test_stack(self, world: World) -> None:
        """A stack with a way past the approval."""
        world.host.pam(f"auth sufficient pam_permit.so\n{SOLE}")
        assert "pam_permit.so" in world.failures()["pam.sudo-bypass"]

    def test_for_people(self, world: World) -> None:
        """Plain lines, remedies below; the secret is in none of them."""
        told = world.agent("doctor")
        assert "ok   server.secret: " in told.output
        assert "     -> run: identree rotate-breakglass --force" in told.output
        assert told.output.splitlines()[-1].endswith("to look at")
        assert SHARED_SECRET not in told.output
        assert world.given["bind_password"] not in told.output

    def test_every_python(self, world: World) -> None:
        """doctor and status run, and find the same, on every Python that hosts have."""
        wanted = set(world.failures())
        for version, path in interpreters().items():
            told = world.agent("doctor", "--json", python=path)
            assert not told.errors, (version, told)
            found = {each["id"] for each in json.loads(told.output)["findings"] if each["level"] == "fail"}
            assert found == wanted, version
            assert world.agent("status", python=path).status == 0, version


class TestStatus:
    def test_said(self, world: World) -> None:
        """What the host is, in lines and for programs."""
        told = world.agent("status")
        assert told.status == 0, told
        assert "sudo: sole" in told.output
        assert "good until" in told.output
        value = json.loads(world.agent("status", "--json").output)
        assert value["hostname"] == FULL_NAME
        assert value["certificate"]["left_seconds"] > 86400


class TestSigning:
    def test_script(self, world: World, tmp_path: Path) -> None:
        """A pair is made, a script signed and verified; openssl agrees; a changed script is refused."""
        script = world.host.file("/etc/identree/install.sh")
        script.write_bytes(b"#!/bin/bash\n" + os.urandom(200))
        names = [f"/etc/identree/{name}" for name in ("s.key", "install.sh")]
        signed = world.agent("sign-script", "--generate-key", "--key", names[0], "--script", names[1])
        assert signed.status == 0, signed
        verify = ["verify-install", "--key", "/etc/identree/s.pub", "--script", names[1], "--sig", f"{names[1]}.sig"]
        assert world.agent(*verify).output.startswith("OK")
        pub = world.host.file("/etc/identree/s.pub").read_text().splitlines()
        der = bytes.fromhex("302a300506032b6570032100") + base64.b64decode(pub[1])
        key, signature = tmp_path / "pub.der", tmp_path / "signature"
        key.write_bytes(der)
        signature.write_bytes(base64.b64decode(signed.output.strip() + "=="))
        openssl(
            *("pkeyutl", "-verify", "-rawin", "-pubin", "-keyform", "DER", "-inkey", key),
            *("-in", script, "-sigfile", signature),
        )
        script.write_bytes(script.read_bytes() + b"#")
        told = world.agent(*verify)
        assert (told.status, told.output) == (1, "")
        assert "NOT" in told.errors
