"""
``doctor`` (spec/host-agent section 19.24): everything that an approval goes through, step by step, each
with its remedy.

It changes nothing. It asks the server as the helper does; a secret that the server refuses counts there as one failed
authentication, of ten that are free within a minute.
"""

from __future__ import annotations

import json
import os
import ssl
import stat
import sys
import time

from identree.agent import (
    breakglass,
    certificates,
    clock,
    doctor_ldap,
    doctor_pam,
    doctor_tls,
    heartbeat,
    places,
    tokencache,
    tokens,
)
from identree.agent import config as configuration
from identree.agent.bcrypt import Bcrypt, NoBcrypt
from identree.agent.build import VERSION
from identree.agent.doctor_tls import Party, open_at
from identree.agent.findings import FAIL, OK, WARN, Findings
from identree.agent.setup_files import Commands, SetupError, below, read, systemd_runs
from identree.agent.status import own_path
from identree.agent.text import clean, note
from identree.agent.units import CRON_FILE, RENEW_TIMER, TIMERS
from identree.agent.watch import Watch
from identree.agent.wire import Client, Response, Unreachable, WireError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from identree.agent.config import Config

USAGE = """\
usage: identree doctor [--json]

Look at everything that an approval goes through, and say what is wrong and what to do. Run it as root. The exit status
is 1 when something fails.

  --json  for programs"""

# Below the first the clocks agree; above the second the server refuses what carries a time (escrow takes 60 s).
SKEW_SECONDS, REFUSED_SKEW_SECONDS = 5, 55

# The server calls a host red after an hour.
SILENT_SECONDS = 3600

LEAST_PYTHON = (3, 9)

# The vectors of spec/host-agent section 6: what this interpreter's HMAC must give.
_SECRET, _ID = "0123456789abcdef0123456789abcdef", "00112233445566778899aabbccddeeff"
_ROTATE, _REVOKE = "2026-01-01T00:00:00Z", "2026-03-01T00:00:00Z"
_VECTORS = (
    ("approved", "", "", "5affdfb4f1f4dfcb41a30ae78fd4da788bd2e93170c818794f3ff8bc6d22118a"),
    ("denied", "", "", "7deb28c11d9e2e334971e459d5ec6413e3f4ed970dd958aa84ac9860ec560f71"),
    ("approved", _ROTATE, _REVOKE, "23636722e2572b392dbba7984f10983de968baea16cbe3a266141c5e005fbb73"),
    ("approved", "", "", "cd5d8b1f56801752706672ec9907b9b482e05dea800408033717f248dcb0c1fc"),
    ("denied", "", "", "afc6f894614750e4c9f0a7520707645bd7360b048e145b1e3e439aa6f6729df0"),
    ("approved", _ROTATE, _REVOKE, "2f2b5f96d66511dbd57b57198180af995eb62b02bd09d1ab0b71369712c308d1"),
)

_MARKS = {OK: "ok  ", WARN: "WARN", FAIL: "FAIL"}


class Doctor:
    """
    :param conf: of ``client.conf``. :param root: below which the system's files are; for tests.
    :param agent: the path of the helper. :param where: what is kept on this host. :param now: unix seconds.
    """

    def __init__(
        self,
        conf: str,
        commands: Commands,
        *,
        root: str = "/",
        agent: str = "",
        where: places.Places | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._conf, self._commands, self._root, self._now = conf, commands, root, now
        self._agent = agent or own_path()
        self._where = where or places.PLACES
        self.findings = Findings()
        self.hostname = ""

    def run(self) -> Findings:
        self._program()
        config = self._configuration()
        if config is not None:
            self.hostname = config.hostname
            self._permissions(config)
            if config.server_url:
                self._server(config)
        self._tokens()
        if config is not None:
            self._breakglass(config)
            self._token_cache(config)
        doctor_pam.examine(self.findings, self._root, self._agent)
        doctor_ldap.Directory(self.findings, self._root, self._commands, self._now()).examine()
        self._timers(config)
        self._heartbeat()
        return self.findings

    # This host

    def _program(self) -> None:
        from identree.agent.setup import check_owner

        findings, path = self.findings, below(self._root, self._agent)
        if os.geteuid() != 0:
            findings.warn("program.root", "without root much cannot be seen", "run: sudo identree doctor, or as root")
        version = sys.version_info[:3]
        if version[:2] < LEAST_PYTHON:
            findings.fail(
                "program.python",
                f"Python {version[0]}.{version[1]} is too old",
                "install Python 3.9 or later, and run the installer again",
            )
        else:
            shown = ".".join(map(str, version))
            findings.ok("program.python", f"identree {VERSION} on Python {shown} with {ssl.OPENSSL_VERSION}")
        try:
            with certificates.open_regular(path) as file:
                first = file.readline(256)
            check_owner(path)
        except OSError as e:
            findings.fail(
                "program.file", f"{path} cannot be read: {e.strerror}", "run the installer again: sudo would lock up"
            )
            return
        except SetupError as e:
            findings.fail("program.file", str(e).partition("; run: ")[0], "run: " + str(e).partition("; run: ")[2])
            return
        interpreter = (
            first[2:].split()[0].decode("utf-8", "replace") if first.startswith(b"#!") and first[2:].split() else ""
        )
        if not interpreter or not os.access(interpreter, os.X_OK):
            findings.fail(
                "program.interpreter",
                f"{path} wants {clean(interpreter, 100) or 'no interpreter'}, which is not there: sudo locks up",
                "install that Python again, or run the installer, which finds another; root gets in at the console",
            )
        else:
            findings.ok("program.interpreter", f"{path} runs by {interpreter}, and only root can change it")

    def _configuration(self) -> Config | None:
        findings = self.findings
        try:
            config = configuration.load(self._conf, server=False)
        except (configuration.ConfigError, OSError) as e:
            findings.fail("config.file", str(e), f"correct {self._conf}; sudo fails until then")
            return None
        for warning in config.warnings:
            said, _, remedy = warning.partition("; ")
            findings.warn("config.value", said, remedy or f"correct it in {self._conf}")
        if not config.server_url:
            findings.fail("config.server", f"{self._conf} names no server", "set IDENTREE_SERVER_URL there")
        if not config.hostname:
            findings.fail("config.hostname", "this host has no name", f"set IDENTREE_HOSTNAME in {self._conf}")
        if not config.secret:
            if config.client_cert and config.client_key:
                findings.warn(
                    "config.secret",
                    "there is no shared secret: approvals are believed because of TLS alone",
                    f"set IDENTREE_SHARED_SECRET in {self._conf}, so that they are signed for this host",
                )
            else:
                findings.fail(
                    "config.secret",
                    "this host has neither secret nor certificate to show",
                    f"set IDENTREE_SHARED_SECRET in {self._conf}",
                )
        if config.scheme == "http":
            findings.warn(
                "config.http",
                "the server is spoken to without TLS: whoever is on the way reads the secret, and can approve",
                "set IDENTREE_SERVER_URL to https://, and remove IDENTREE_INSECURE_ALLOW_HTTP_ESCROW",
            )
        if not any(each.id.startswith("config.") for each in findings.all):
            findings.ok("config.file", f"{self._conf} is complete; this host is {config.hostname}")
        return config

    def _permissions(self, config: Config) -> None:
        findings, before = self.findings, len(self.findings.all)
        for path in (os.path.dirname(config.path), os.path.dirname(config.breakglass_file)):
            info = _stat(path)
            if info is not None and (info.st_uid not in (0, os.geteuid()) or info.st_mode & 0o022):
                findings.fail(
                    "permissions.directory",
                    f"others than root can change what is in {path}",
                    f"run: chown root:root {path}; chmod go-w {path}",
                )
        for path, what in ((config.client_key, "the client key"),):
            info = _stat(path) if path else None
            if info is None:
                continue
            if info.st_uid not in (0, os.geteuid()):
                findings.fail(
                    "permissions.key", f"{what} {path} belongs to uid {info.st_uid}", f"run: chown root {path}"
                )
            elif info.st_mode & 0o077:
                findings.fail(
                    "permissions.key", f"{what} {path} can be read by others than root", f"run: chmod 600 {path}"
                )
        if len(findings.all) == before:
            findings.ok("permissions.files", "only root can change the configuration and read the keys")

    # The server

    def _server(self, config: Config) -> None:
        party = Party(
            "server",
            config.host,
            config.port,
            ca=config.ca_cert,
            ca_key=f"IDENTREE_CA_CERT in {self._conf}",
            cert=config.client_cert,
            key=config.client_key,
            cert_keys=f"IDENTREE_CLIENT_CERT and IDENTREE_CLIENT_KEY in {self._conf}",
            server_ca="IDENTREE_MTLS_CA_CERT",
            renew="identree renew-cert --force",
        )
        usable = self._readable(config) if config.scheme == "https" else True
        if usable and config.scheme == "https":
            usable = doctor_tls.examine_files(self.findings, party, self._now())
        addresses = doctor_tls.resolve(self.findings, party)
        at = doctor_tls.connect(self.findings, party, addresses) if addresses else None
        if at is None or not usable:
            return
        if config.scheme == "https":
            connected = lambda: open_at(*at, config.port)  # noqa: E731
            if not doctor_tls.examine_server(self.findings, party, connected, self._now()):
                return
        answer = self._healthy(config, party, at)
        if answer is not None:
            self._clock(answer)
            self._secret(config)

    def _readable(self, config: Config) -> bool:
        """Whether OpenSSL can be sent to the client key; in a pipe or a file without end it would stay."""
        try:
            if config.client_key:
                certificates.check_usable(config.client_key)
            return True
        except OSError as e:
            self.findings.fail(
                "server.files",
                f"the client key {config.client_key} cannot be used: {e.strerror}",
                f"put a regular file there, or correct IDENTREE_CLIENT_KEY in {self._conf}",
            )
            return False

    def _healthy(self, config: Config, party: Party, at: tuple[int, str]) -> Response | None:
        findings = self.findings
        try:
            answer = _get(config, "/healthz")
        except (Unreachable, WireError, configuration.ConfigError) as e:
            said = str(e)
            alert = ""
            if config.scheme == "https":
                alert = doctor_tls.parting_word(party, lambda: open_at(*at, config.port))
            if alert:
                doctor_tls.refused(findings, party, alert)
            else:
                findings.fail(
                    "server.http",
                    f"{config.server_url} gives no usable answer: {said}",
                    "check that the address is identree's, and what stands before it (proxy, load balancer)",
                )
            return None
        if answer.status == 200:
            findings.ok("server.http", f"{config.server_url} is well")
        elif 300 <= answer.status < 400:
            target = clean(answer.headers.get("location", ""), 200) or "another address"
            findings.fail(
                "server.http",
                f"{config.server_url} redirects to {target}, which is never followed",
                f"set IDENTREE_SERVER_URL in {self._conf} to the final address",
            )
            return None
        else:
            findings.fail(
                "server.http",
                f"{config.server_url}/healthz answers with HTTP {answer.status}",
                "see the server's log" if answer.status >= 500 else f"check IDENTREE_SERVER_URL in {self._conf}",
            )
        return answer

    def _clock(self, answer: Response) -> None:
        ahead = clock.ahead(answer.headers, self._now())
        if ahead is None:
            return
        text = f"this host's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the server's"
        if abs(ahead) <= SKEW_SECONDS:
            self.findings.ok("clock.skew", "this host's clock and the server's agree")
        elif abs(ahead) <= REFUSED_SKEW_SECONDS:
            self.findings.warn("clock.skew", text, "let NTP set both clocks (timedatectl set-ntp true)")
        else:
            self.findings.fail(
                "clock.skew",
                f"{text}: the server refuses new break-glass passwords, and certificates may look ended",
                "let NTP set both clocks (timedatectl set-ntp true)",
            )

    def _secret(self, config: Config) -> None:
        """A question that changes nothing, for which the server wants to know who asks."""
        findings = self.findings
        query = "?username=root" + (f"&hostname={config.hostname}" if config.hostname else "")
        try:
            answer = _get(config, f"/api/grace-status{query}")
        except (Unreachable, WireError, configuration.ConfigError) as e:
            findings.warn("server.secret", f"whether the server accepts this host is not known: {e}", "run this again")
            return
        if answer.status == 200:
            findings.ok("server.secret", "the server accepts this host")
        elif answer.status == 429:
            findings.warn(
                "server.secret",
                "the server has seen too many failed attempts from here",
                f"check IDENTREE_SHARED_SECRET in {self._conf}, and run this again in a minute",
            )
        elif answer.status in (401, 403):
            findings.fail(
                "server.secret",
                f"the server refuses this host (HTTP {answer.status})",
                f"check IDENTREE_SHARED_SECRET and IDENTREE_HOSTNAME in {self._conf}; where hosts are registered, the "
                "secret is the one of this host",
            )
        else:
            findings.warn(
                "server.secret",
                f"the server answers with HTTP {answer.status} when it is asked who we are",
                "see the server's log",
            )

    # What is computed here

    def _tokens(self) -> None:
        good = all(
            tokens.verify([token], _SECRET, _ID, status, "alice", rotate, revoke)
            for status, rotate, revoke, token in _VECTORS
        )
        forged = tokens.verify(["0" * 64], _SECRET, _ID, "approved", "alice")
        if good and not forged:
            self.findings.ok("tokens.vectors", "signatures of approvals are computed rightly")
        else:
            self.findings.fail(
                "tokens.vectors",
                "this Python computes signatures of approvals wrongly: none would be believed",
                "install the distribution's Python again",
            )

    def _breakglass(self, config: Config) -> None:
        findings = self.findings
        if not config.breakglass_enabled:
            findings.warn(
                "breakglass.enabled",
                "break-glass is switched off: nobody can use sudo while the server cannot be reached",
                f"remove IDENTREE_BREAKGLASS_ENABLED from {self._conf}, if that is not meant",
            )
            return
        try:
            Bcrypt()
            findings.ok("breakglass.bcrypt", "bcrypt is computed rightly")
        except NoBcrypt as e:
            text, _, remedy = str(e).partition("; ")
            findings.fail("breakglass.bcrypt", f"break-glass is impossible: {text}", remedy)
        path = config.breakglass_file
        if os.path.islink(path):
            # how somebody switches it off for good; rotations leave it so
            findings.warn(
                "breakglass.hash",
                f"break-glass is switched off: {path} is a symbolic link",
                "remove it to have break-glass, and run: identree rotate-breakglass",
            )
        else:
            self._hash(config)
        if places.regular(path + places.PENDING):
            findings.warn(
                "breakglass.pending",
                "a rotation was begun and not settled: the old and the new password are both valid",
                "run: identree rotate-breakglass",
            )
        try:
            waiting = len(breakglass.pending_reports(self._where))
        except OSError:
            waiting = 0
        if waiting:
            findings.warn(
                "breakglass.reports",
                f"{waiting} uses of the break-glass password are not reported to the server yet",
                "run: identree heartbeat",
            )

    def _hash(self, config: Config) -> None:
        findings, path = self.findings, config.breakglass_file
        try:
            breakglass.read_hash(path)
            age = int((self._now() - os.lstat(path).st_mtime) / places.DAY_SECONDS)
            if age > config.rotation_days + 7:
                findings.warn(
                    "breakglass.hash",
                    f"the break-glass password is {age} days old, and was to be changed after {config.rotation_days}",
                    "run: identree rotate-breakglass; it says what keeps it from being changed",
                )
            else:
                findings.ok("breakglass.hash", f"there is a break-glass password, {max(age, 0)} days old")
        except (breakglass.HashError, OSError) as e:
            findings.fail("breakglass.hash", str(e).partition("; ")[0], "run: identree rotate-breakglass --force")

    def _token_cache(self, config: Config) -> None:
        off = tokencache.off(config)
        if off:
            self.findings.ok("token-cache.state", f"the token cache is off: {off}")
            return
        # with a slash at its end a link would be followed
        info = _stat(config.token_cache_dir.rstrip("/") or "/", follow=False)
        if info is None:
            self.findings.ok("token-cache.state", "the token cache is on, and empty")
        elif not stat.S_ISDIR(info.st_mode) or info.st_uid not in (0, os.geteuid()) or info.st_mode & 0o022:
            self.findings.fail(
                "token-cache.directory",
                f"{config.token_cache_dir} is no directory that only root can change, so nothing in it is believed",
                f"run: rm -r {config.token_cache_dir}; it is made anew",
            )
        else:
            self.findings.ok("token-cache.state", "the token cache is on")

    # What runs by itself

    def _timers(self, config: Config | None) -> None:
        findings = self.findings
        renew = config is not None and bool(config.client_cert)
        if systemd_runs(self._root, self._commands):
            missing = [
                name
                for name in TIMERS
                if (renew or name != RENEW_TIMER)
                and self._commands.run("systemctl", "is-active", "--quiet", name, seconds=20.0)[0] != 0
            ]
            if missing:
                findings.fail(
                    "timers.active",
                    f"these timers do not run: {', '.join(missing)}",
                    f"run: identree setup --timers (or systemctl enable --now {' '.join(missing)})",
                )
            else:
                findings.ok("timers.active", "the timers run")
            return
        try:
            text = (read(below(self._root, CRON_FILE)) or b"").decode("utf-8", "replace")
        except (OSError, SetupError):
            text = ""
        wanted = ["heartbeat", "rotate-breakglass", *(["renew-cert"] if renew else [])]
        lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
        missing = [command for command in wanted if not any(command in line for line in lines)]
        if missing:
            findings.warn(
                "timers.active",
                f"neither systemd nor {CRON_FILE} runs: {', '.join(missing)}",
                "run: identree setup --timers; in a container, call these commands from its own scheduler",
            )
        else:
            findings.ok("timers.active", f"{CRON_FILE} has all that is to be run")

    def _heartbeat(self) -> None:
        findings = self.findings
        try:
            record = heartbeat.Record.read(self._where.state)
        except OSError:
            return
        age = self._now() - record.heard
        if record.problem:
            findings.warn("timers.heartbeat", f"the last heartbeat failed: {record.problem}", "run: identree heartbeat")
        elif not record.heard:
            findings.warn("timers.heartbeat", "this host has sent no heartbeat yet", "run: identree heartbeat")
        elif age > SILENT_SECONDS:
            findings.warn(
                "timers.heartbeat",
                f"the last heartbeat was {int(age // 60)} minutes ago",
                "run: identree setup --timers",
            )
        else:
            findings.ok("timers.heartbeat", f"the last heartbeat was {int(max(age, 0) // 60)} minutes ago")


def _get(config: Config, path: str) -> Response:
    client = Client(config, Watch(parent=False))
    try:
        return client.request("GET", path)
    finally:
        client.close()


def _stat(path: str, *, follow: bool = True) -> os.stat_result | None:
    try:
        return os.stat(path, follow_symlinks=follow)
    except OSError:
        return None


def run(arguments: list[str]) -> int:
    """0 when nothing fails; warnings do not count."""
    from identree.agent.main import complain
    from identree.agent.pam import conf_path

    if arguments in (["--help"], ["-h"]):
        note(USAGE)
        return 0
    if any(each != "--json" for each in arguments):
        complain(USAGE)
        return 1
    environ = dict(os.environ)
    configuration.strip_environment()
    doctor = Doctor(conf_path(environ), Commands("/"))
    findings = doctor.run()
    failed = findings.failed()
    if arguments:
        value = {
            "version": VERSION,
            "hostname": doctor.hostname,
            "ok": not failed,
            "findings": [each.as_dict() for each in findings.all],
        }
        note(json.dumps(value, indent=2))
    else:
        for each in findings.all:
            note(f"{_MARKS[each.level]} {each.id}: {each.text}")
            if each.remedy:
                note(f"     -> {each.remedy}")
        counts = [sum(each.level == level for each in findings.all) for level in (FAIL, WARN)]
        note(f"{counts[0]} to repair, {counts[1]} to look at")
    return 1 if failed else 0
