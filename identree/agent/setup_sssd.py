"""
``identree setup --sssd``: people, groups and sudo rules from identree's directory (spec/host-agent sections 10.3 to
10.6), with the host's certificate where the server gives one.
"""

from __future__ import annotations

import copy
import json
import os

from identree.agent import config as configuration
from identree.agent.setup_files import (
    BACKUP,
    Commands,
    Look,
    SetupError,
    Work,
    below,
    demand,
    digest,
    read,
    resolve,
    systemd_runs,
    write,
)
from identree.agent.text import clean
from identree.agent.watch import Watch
from identree.agent.wire import Client, Response, Unreachable, WireError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from identree.agent.config import Config

SSSD_CONF = "/etc/sssd/sssd.conf"
LDAP_CA = "/etc/sssd/identree-ldap-ca.crt"
NSSWITCH = "/etc/nsswitch.conf"
CLIENT_CERT, CLIENT_KEY, CA_CERT = "/etc/identree/client.crt", "/etc/identree/client.key", "/etc/identree/ca.crt"
# For an sssd that does not run as root: /etc/identree is closed to it.
SSSD_CERT, SSSD_KEY, SSSD_CA = (
    "/etc/sssd/identree-client.crt",
    "/etc/sssd/identree-client.key",
    "/etc/sssd/identree-ca.crt",
)
SSSD_USER = "sssd"
# From here on sssd runs as its own user.
UNPRIVILEGED_SSSD = (2, 10)

ANCHOR = "identree.crt"
# What makes the program forget what is no longer there; without, Debian's leaves its links behind.
TRUST_FORGETS = {"update-ca-certificates": ("--fresh",)}
# The system's own authorities, and the program that takes them over.
ANCHOR_DIRECTORIES = {
    "/usr/local/share/ca-certificates": "update-ca-certificates",
    "/etc/pki/ca-trust/source/anchors": "update-ca-trust",
}
MKHOMEDIR_PROFILE = "/usr/share/pam-configs/mkhomedir"
# What the two programs that manage PAM and nsswitch write.
PAM_AUTH_UPDATE_FILES = ("/etc/pam.d/common-*", "/var/lib/pam/*")
AUTHSELECT_FILES = (
    "/etc/authselect/*",
    "/etc/dconf/db/distro.d/20-authselect",
    "/etc/dconf/db/distro.d/locks/20-authselect",
)

DATABASES = ("passwd", "group", "sudoers")

PROVISION_SECONDS = 35.0  # the server may have to ask another for the certificate
HANDSHAKE_SECONDS = 10.0

# Bounds of what the server may send, in characters.
_MAX_VALUE = 1024
_MAX_PEM = 65536


class Grant:
    """
    What this host was given, checked.

    :ivar ldap_ca: PEM, or empty. :ivar certificate, key, ca: PEM; the first two come together or not at all.
    """

    def __init__(self, answer: dict[str, object]) -> None:
        """:raise SetupError: something is missing or could not stand in a configuration file."""
        self.url = _value(answer, "ldap_url")
        self.base = _value(answer, "base_dn")
        self.bind_dn = _value(answer, "bind_dn")
        self.password = _value(answer, "bind_password", empty=True)
        self.ldap_ca = _pem(answer, "tls_ca_cert")
        self.certificate, self.key = _pem(answer, "client_cert"), _pem(answer, "client_key")
        self.ca = _pem(answer, "ca_cert")
        if bool(self.certificate) != bool(self.key):
            raise SetupError("the server sent a certificate without its key, or a key without certificate")
        scheme, separator, rest = self.url.partition("://")
        if scheme not in ("ldap", "ldaps") or not separator or not rest or any(c in rest for c in ' ,"<>?#@'):
            raise SetupError(
                f"the server sent the LDAP address {clean(self.url, 80)!r}; set IDENTREE_LDAP_EXTERNAL_URL there"
            )
        if "=" not in self.base or "=" not in self.bind_dn:
            raise SetupError("the server sent a base or bind DN that is none; check IDENTREE_LDAP_BASE_DN there")

    @property
    def encrypted(self) -> bool:
        return self.url.startswith("ldaps://")


def _value(answer: dict[str, object], key: str, *, empty: bool = False) -> str:
    """
    One line, without what would end it or be cut off in an ini file.

    :raise SetupError: it is not there, or is more than that.
    """
    value = answer.get(key, "" if empty else None)
    if not isinstance(value, str) or (not value and not empty):
        raise SetupError(f"the server sent no {key}")
    if len(value) > _MAX_VALUE or not value.isprintable() or value != value.strip():
        raise SetupError(f"the server sent a {key} that cannot stand in sssd.conf")
    return value


def _pem(answer: dict[str, object], key: str) -> str:
    value = answer.get(key, "")
    if not isinstance(value, str) or len(value) > _MAX_PEM or not value.isascii():
        raise SetupError(f"the server sent a {key} that is not PEM")
    if not value:
        return ""
    begin, end = "-----BEGIN ", "-----END "
    if not value.startswith(begin) or end not in value or any(not c.isprintable() and c not in "\r\n" for c in value):
        raise SetupError(f"the server sent a {key} that is not PEM")
    return value if value.endswith("\n") else value + "\n"


class ProvisionClient(Client):
    """The client with the header that names the host."""

    def __init__(self, config: Config, watch: Watch, hostname: str) -> None:
        super().__init__(config, watch)
        self._named = f"X-Hostname: {hostname}\r\n".encode("ascii")

    def _exchange(self, request: bytes, until: float, sent: Callable[[], None] | None, *, kept: bool) -> Response:
        head, blank, body = request.partition(b"\r\n\r\n")
        return super()._exchange(head + b"\r\n" + self._named + blank[2:] + body, until, sent, kept=kept)


def provision(config: Config, hostname: str) -> Grant:
    """
    Ask the server for what this host needs at the directory.

    :raise SetupError: it refused, did not answer, or sent what cannot be used.
    """
    if not hostname:
        raise SetupError("this host has no name; give one with --hostname")
    try:
        client = ProvisionClient(config, Watch(parent=False), hostname)
        answer = client.request("GET", "/api/client/provision", timeout=PROVISION_SECONDS)
        client.close()
    except (Unreachable, WireError) as e:
        raise SetupError(f"{config.server_url} does not answer: {clean(str(e), 200)}") from None
    if answer.status != 200:
        said = clean(answer.body.decode("utf-8", "replace"), 120)
        raise SetupError(
            _REFUSALS.get(answer.status, "the server answers with HTTP {status}: {said}").format(
                status=answer.status, said=said, hostname=hostname
            )
        )
    try:
        body = json.loads(answer.body) if not answer.cut else None
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise SetupError("the server's answer is not what a host is provisioned with; is this an identree server?")
    grant = Grant(body)
    check_certificates(grant)
    return grant


_REFUSALS = {
    400: "the server does not accept the name {hostname!r} ({said}); give another with --hostname",
    401: "the server does not accept this host's secret or certificate; check IDENTREE_SHARED_SECRET",
    403: "the server refuses the name {hostname!r} ({said}); register the host there, or give its name with --hostname",
    404: "the server does not provision hosts; set IDENTREE_LDAP_PROVISION_ENABLED=true there",
    429: "the server has seen too many failed attempts from here; try again in a minute",
}


class Memory:
    """A file in memory, for programs' interfaces that read nothing but files. No key touches the disk for a test."""

    def __init__(self, text: str) -> None:
        self._fd = os.memfd_create("identree", os.MFD_CLOEXEC)
        data = text.encode()
        while data:
            data = data[os.write(self._fd, data) :]
        self.path = f"/proc/self/fd/{self._fd}"

    def close(self) -> None:
        os.close(self._fd)


def check_certificates(grant: Grant) -> None:
    """:raise SetupError: OpenSSL does not read what the server sent, or the key is not the certificate's."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for what, text in (("tls_ca_cert", grant.ldap_ca), ("ca_cert", grant.ca)):
        if text:
            try:
                context.load_verify_locations(cadata=text)
            except (ssl.SSLError, ValueError):
                raise SetupError(f"the server sent a {what} that is no certificate") from None
    if grant.certificate:
        certificate, key = Memory(grant.certificate), Memory(grant.key)
        try:
            context.load_cert_chain(certificate.path, key.path, password=lambda: "")
        except (OSError, ValueError):
            raise SetupError("the server sent a client certificate and a key that do not belong together") from None
        finally:
            certificate.close()
            key.close()


def trusts_alone(config: Config, grant: Grant) -> bool:
    """
    Whether the server's HTTPS certificate comes from the CA that it sent: only then may that CA replace the system's in
    ``client.conf``, or every later call would fail.
    """
    if config.scheme != "https" or not grant.ca:
        return False
    kept = [Memory(text) for text in (grant.ca, grant.certificate, grant.key)]
    alone = copy.copy(config)
    alone.ca_cert, alone.client_cert, alone.client_key = (each.path for each in kept)
    try:
        client = Client(alone, Watch(parent=False))
        client.request("GET", "/healthz", timeout=HANDSHAKE_SECONDS)
        client.close()
        return True
    except (Unreachable, WireError, configuration.ConfigError):
        return False
    finally:
        for each in kept:
            each.close()


# Text


def sssd_conf(grant: Grant, *, ldap_ca: str, certificate: str, key: str) -> bytes:
    """
    ``sssd.conf`` of section 10.4, with an account policy (without one, ``expire`` denies everybody), and an encrypted
    connection whose other end is always checked.

    :param ldap_ca, certificate, key: paths, or empty.
    """
    lines = [
        "# Written by identree setup --sssd.",
        "[sssd]",
        "services = nss, pam, sudo",
        "config_file_version = 2",
        "domains = identree",
        "",
        "[domain/identree]",
        "id_provider = ldap",
        "auth_provider = none",
        "access_provider = ldap",
        "sudo_provider = ldap",
        "ldap_access_order = expire",
        "ldap_account_expire_policy = shadow",
        f"ldap_uri = {grant.url}",
        f"ldap_search_base = {grant.base}",
        f"ldap_user_search_base = ou=people,{grant.base}",
        f"ldap_group_search_base = ou=groups,{grant.base}",
        f"ldap_sudo_search_base = ou=sudoers,{grant.base}",
        f"ldap_default_bind_dn = {grant.bind_dn}",
        "ldap_default_authtok_type = password",
        f"ldap_default_authtok = {grant.password}",
        "ldap_id_use_start_tls = false",
        f"ldap_tls_reqcert = {'demand' if grant.ldap_ca or grant.encrypted else 'never'}",
    ]
    if ldap_ca:
        lines.append(f"ldap_tls_cacert = {ldap_ca}")
    if grant.encrypted and certificate and key:
        lines += [f"ldap_tls_cert = {certificate}", f"ldap_tls_key = {key}"]
    lines += [
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
        "",
        "[nss]",
        "homedir_substring = /home",
        "",
        "[pam]",
        "",
        "[sudo]",
        "sudo_timed = false",
    ]
    return ("\n".join(lines) + "\n").encode()


def with_sss(data: bytes) -> tuple[bytes, list[str]]:
    """
    ``nsswitch.conf`` with sssd behind what each database asks now, before a comment; and what was added, for
    :func:`without_sss`.
    """
    out, added, seen = [], [], set()
    for line in data.splitlines(keepends=True):
        name, rest = _database(line)
        if name in DATABASES and name not in seen:
            seen.add(name)
            if b"sss" not in rest.split():
                text, comment = _before_comment(line)
                kept = text.rstrip()
                line = kept + b" sss" + text[len(kept) :] + comment
                added.append(name)
        out.append(line)
    if out and not out[-1].endswith(b"\n") and len(seen) < len(DATABASES):
        out[-1] += b"\n"
    for name in DATABASES:
        if name not in seen:
            out.append(f"{name}: files sss\n".encode())
            added.append(name + "+")
    return b"".join(out), added


def without_sss(data: bytes, added: list[str]) -> bytes:
    """What :func:`with_sss` added taken out again."""
    out, seen = [], set()
    for line in data.splitlines(keepends=True):
        name, rest = _database(line)
        if name + "+" in added and line.strip() == f"{name}: files sss".encode():
            continue
        if name in added and name not in seen:
            seen.add(name)
            text, comment = _before_comment(line)
            head, found, tail = text.rpartition(b" sss")
            if found and not tail.strip():
                line = head + tail + comment
            elif b"sss" in rest.split():
                line = text.replace(b" sss ", b" ", 1) + comment
        out.append(line)
    return b"".join(out)


def _database(line: bytes) -> tuple[str, bytes]:
    text, _ = _before_comment(line)
    name, colon, rest = text.partition(b":")
    return (name.strip().decode("latin-1"), rest) if colon else ("", b"")


def _before_comment(line: bytes) -> tuple[bytes, bytes]:
    text, mark, comment = line.partition(b"#")
    return text, mark + comment


def with_lines(data: bytes, wanted: dict[str, str]) -> tuple[bytes, list[str]]:
    """``client.conf`` with these settings where it has none of that name; and the lines that were added."""
    there = configuration.parse(data.decode("utf-8", "replace"))
    added = [f"{key}={value}" for key, value in wanted.items() if key not in there]
    if not added:
        return data, []
    gap = b"" if not data or data.endswith(b"\n") else b"\n"
    return data + gap + "".join(line + "\n" for line in added).encode(), added


def without_lines(data: bytes, added: list[str]) -> bytes:
    gone = {line.encode() for line in added}
    return b"".join(line for line in data.splitlines(keepends=True) if line.rstrip(b"\r\n") not in gone)


def unprivileged(commands: Commands, passwd: bytes) -> int:
    """
    The group of the user that sssd runs as, when that is not root (sssd 2.10); -1 otherwise.

    :param passwd: the content of ``/etc/passwd``.
    """
    for line in passwd.decode("utf-8", "replace").splitlines():
        fields = line.split(":")
        if fields[0] == SSSD_USER and len(fields) == 7 and fields[3].isdigit():
            code, said = commands.run("sssd", "--version", seconds=20.0)
            numbers = said.split()[-1].split(".")[:2] if said.split() else []
            new = (
                len(numbers) == 2
                and all(n.isdigit() for n in numbers)
                and tuple(map(int, numbers)) >= UNPRIVILEGED_SSSD
            )
            return int(fields[3]) if code == 0 and new else -1
    return -1


# Deeds


def refresh_copies(root: str, certificate: str, key: str, ca: str) -> bool:
    """
    Bring the copies up to date that an unprivileged sssd reads, after a renewal; whether there are any, so that sssd is
    to be restarted.

    :param certificate, key, ca: PEM; an empty one leaves its copy as it is.
    """
    found = False
    for path, text in ((SSSD_CERT, certificate), (SSSD_KEY, key), (SSSD_CA, ca)):
        real = resolve(root, path)
        if text and read(real) is not None:
            write(real, text.encode(), Look.of(real))
            found = True
    return found


class Sssd:
    """
    The steps of ``--sssd``, in their order; each is undone by :class:`Work` when a later one fails.

    :param say: :param warn: what a person should know.
    """

    def __init__(self, work: Work, say: Callable[[str], None], warn: Callable[[str], None], *, force: bool) -> None:
        self._work, self._commands, self._root = work, work.commands, work.root
        self._say, self._warn, self._force = say, warn, force

    def run(self, grant: Grant, config: Config) -> None:
        """:raise SetupError: a step failed."""
        group = unprivileged(self._commands, self._work.get("/etc/passwd") or b"")
        if not any(os.access(below(self._root, path), os.X_OK) for path in ("/usr/sbin/sssd", "/sbin/sssd")):
            self._warn("identree setup: sssd is not installed; install sssd with its LDAP provider, sudo and NSS parts")
        self._service_before()
        self._certificates(grant, config)
        written = self._configuration(grant, group)
        self._trust(grant)
        profile = self._authselect()
        if not profile:
            self._nsswitch()
            self._home_directories()
        self._check()
        self._service(written)

    def _certificates(self, grant: Grant, config: Config) -> None:
        if not grant.certificate:
            return
        self._work.directory("/etc/identree", 0o755)
        self._work.directory("/etc/identree/certificates", 0o755)  # of renew-cert; auditd watches it from now on
        self._work.put(CLIENT_CERT, grant.certificate.encode(), own=True)
        self._work.put(CLIENT_KEY, grant.key.encode(), mode=0o600, own=True)
        wanted = {"IDENTREE_CLIENT_CERT": CLIENT_CERT, "IDENTREE_CLIENT_KEY": CLIENT_KEY}
        if grant.ca:
            self._work.put(CA_CERT, grant.ca.encode(), own=True)
            if not config.ca_cert and trusts_alone(config, grant):
                wanted["IDENTREE_CA_CERT"] = CA_CERT
            elif not config.ca_cert:
                self._say(
                    "IDENTREE_CA_CERT is left out of client.conf: the server's HTTPS certificate does not come from "
                    "the CA that it sent, so the system's authorities go on deciding"
                )
        for present, path in ((config.client_cert, CLIENT_CERT), (config.client_key, CLIENT_KEY)):
            if present and present != path:
                self._warn(f"identree setup: {config.path} goes on naming {present}; what the server sent is in {path}")
        new, added = with_lines(self._work.get(configuration.DEFAULT_PATH) or b"", wanted)
        if added:
            self._work.put(configuration.DEFAULT_PATH, new, mode=0o600, kind="lines", lines=added)

    def _configuration(self, grant: Grant, group: int) -> bool:
        """Whether ``sssd.conf`` is ours."""
        real = resolve(self._root, SSSD_CONF)
        there, entry = self._work.get(SSSD_CONF), self._work.journal.files.get(self._work.journal.name(real))
        if there is not None and not self._force and (entry is None or digest(there) not in entry.wrote):
            self._warn(f"identree setup: {real} exists, and stays as it is; --force replaces it ({BACKUP} keeps it)")
            return False
        self._work.directory("/etc/sssd", 0o700)
        shared = group >= 0
        mode, key_mode = (0o640, 0o640) if shared else (0o600, 0o600)
        ldap_ca = certificate = key = ""
        if grant.ldap_ca:
            self._work.put(LDAP_CA, grant.ldap_ca.encode(), own=True)
            ldap_ca = LDAP_CA
        if grant.encrypted and grant.certificate:
            certificate, key = (SSSD_CERT, SSSD_KEY) if shared else (CLIENT_CERT, CLIENT_KEY)
            if shared:
                self._work.put(SSSD_CERT, grant.certificate.encode(), own=True)
                self._work.put(SSSD_KEY, grant.key.encode(), mode=key_mode, group=group, own=True)
            if grant.ca and not ldap_ca:
                ldap_ca = SSSD_CA if shared else CA_CERT
                if shared:
                    self._work.put(SSSD_CA, grant.ca.encode(), own=True)
        text = sssd_conf(grant, ldap_ca=ldap_ca, certificate=certificate, key=key)
        self._work.put(SSSD_CONF, text, mode=mode, group=group, private=True)
        return True

    def _trust(self, grant: Grant) -> None:
        if not grant.ldap_ca:
            return
        there = {path: tool for path, tool in ANCHOR_DIRECTORIES.items() if os.path.isdir(resolve(self._root, path))}
        if not there:
            self._say("this system's place for authorities is not known; add this one by hand where it is needed:")
            for line in grant.ldap_ca.splitlines():
                self._say(line)
        for directory, tool in there.items():
            # also when everything is taken back, after the file has gone
            self._work.undo(lambda tool=tool: self._update_trust(tool, *TRUST_FORGETS.get(tool, ())))  # type: ignore[misc]
            self._work.fact("trust", tool)
            self._work.put(f"{directory}/{ANCHOR}", grant.ldap_ca.encode(), own=True)
            self._update_trust(tool)

    def _update_trust(self, tool: str, *options: str) -> None:
        if not self._commands.find(tool):
            self._say(f"run {tool} to let the system's programs trust the directory's CA")
            return
        demand(self._commands, tool, *options)

    def _nsswitch(self) -> None:
        old = self._work.get(NSSWITCH)
        if old is None:
            self._say(f"{NSSWITCH} does not exist; nothing looks people up there")
            return
        new, added = with_sss(old)
        if new != old:
            self._work.put(NSSWITCH, new, kind="nsswitch", lines=added)

    def _authselect(self) -> bool:
        """Whether PAM and nsswitch are a profile of authselect, which is then told instead of editing behind it."""
        code, said = self._commands.run("authselect", "current", "--raw", seconds=20.0)
        words = said.split()
        if code != 0 or not words:
            return False
        profile, features = words[0], words[1:]
        wanted = ["with-sudo", "with-mkhomedir"]
        # a profile of the site's own, or of another source that has sssd in it, keeps its name
        keep = profile == "sssd" or profile.startswith("custom/")
        missing = [feature for feature in wanted if feature not in features]
        if keep and not missing:
            return True
        known = demand(self._commands, "authselect", "list-features", profile if keep else "sssd").split()
        self._work.fact("authselect", words)
        if keep:
            for feature in missing:
                if feature in known:
                    self._work.command("authselect", AUTHSELECT_FILES, "authselect", "enable-feature", feature)
                else:
                    self._warn(f"identree setup: the authselect profile {profile} has no feature {feature}")
            return True
        kept = [feature for feature in features if feature in known and feature not in wanted]
        self._work.command("authselect", AUTHSELECT_FILES, "authselect", "select", "sssd", *wanted, *kept)
        self._say(f"authselect: profile sssd instead of {profile}")
        return True

    def _home_directories(self) -> None:
        """Homes are made when people first come."""
        session = self._work.get("/etc/pam.d/common-session")
        if session is None or b"pam_mkhomedir.so" in session:
            return
        if self._commands.find("pam-auth-update") and os.path.exists(below(self._root, MKHOMEDIR_PROFILE)):
            self._work.fact("mkhomedir", "pam-auth-update")
            self._work.command("pam-auth-update", PAM_AUTH_UPDATE_FILES, "pam-auth-update", "--enable", "mkhomedir")
            # debconf keeps the choice, too
            self._work.undo(self._disable_mkhomedir)
            after = self._work.get("/etc/pam.d/common-session") or b""
            if b"pam_mkhomedir.so" not in after:
                self._warn(
                    "identree setup: /etc/pam.d/common-session was changed by hand, so pam-auth-update leaves it "
                    "alone; add pam_mkhomedir.so to its session rules"
                )
        else:
            self._say("add pam_mkhomedir.so to the session rules, so that people have homes")

    def _disable_mkhomedir(self) -> None:
        self._commands.run("pam-auth-update", "--disable", "mkhomedir")

    def _check(self) -> None:
        if not self._commands.find("sssctl"):
            return
        code, said = self._commands.run("sssctl", "config-check")
        if code == 0:
            return
        text = f"sssctl config-check finds mistakes: {clean(said, 400)}"
        # it also fails over a missing directory for snippets, which sssd itself does without
        if not self._force and "Issues identified by validators: 0" not in said:
            raise SetupError(text)
        self._warn(f"identree setup: warning: {text}")

    def _service_before(self) -> None:
        if not systemd_runs(self._root, self._commands):
            return
        active = self._commands.run("systemctl", "is-active", "--quiet", "sssd.service")[0] == 0
        enabled = self._commands.run("systemctl", "is-enabled", "--quiet", "sssd.service")[0] == 0
        self._work.fact("sssd", {"active": active, "enabled": enabled})
        # runs last of all when everything is taken back: with the old configuration
        self._work.undo(lambda: self._as_before(active, enabled))

    def _as_before(self, active: bool, enabled: bool) -> None:
        self._commands.run("systemctl", "restart" if active else "stop", "sssd.service")
        if not enabled:
            self._commands.run("systemctl", "disable", "sssd.service")

    def _service(self, written: bool) -> None:
        if not written:
            return
        if not systemd_runs(self._root, self._commands):
            self._say("restart sssd, so that it reads its new configuration")
            return
        if self._commands.run("systemctl", "cat", "sssd.service")[0] != 0:
            return  # not installed, which was said
        demand(self._commands, "systemctl", "enable", "sssd.service")
        demand(self._commands, "systemctl", "restart", "sssd.service")
