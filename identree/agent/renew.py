"""
``renew-cert`` (spec/host-agent section 11): a new client certificate before the old one ends.

Certificate, key and CA of one renewal stand in a directory of their own, and one symbolic link names the directory that
counts. So they change together, in one step, and ``/etc/identree/client.crt`` is a good name at every instant. A new
pair is tried at the server before it counts.
"""

from __future__ import annotations

import copy
import errno
import fcntl
import json
import os
import shutil
import stat
import time

from identree.agent import certificates, journal
from identree.agent import config as configuration
from identree.agent.certificates import NotACertificate, day
from identree.agent.setup_files import Commands, Look, SetupError, read, reason, sync_directory, systemd_runs, write
from identree.agent.setup_sssd import (
    CA_CERT,
    CLIENT_CERT,
    CLIENT_KEY,
    HANDSHAKE_SECONDS,
    PROVISION_SECONDS,
    SSSD_CA,
    SSSD_CERT,
    SSSD_CONF,
    SSSD_KEY,
    Grant,
    Memory,
    ProvisionClient,
    check_certificates,
    trusts_alone,
)
from identree.agent.text import clean, note
from identree.agent.watch import Watch
from identree.agent.wire import Client, Response, Unreachable, WireError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from identree.agent.certificates import Certificate
    from identree.agent.config import Config

USAGE = """\
usage: identree renew-cert [--force]

Get a new client certificate for this host when the present one ends soon. Run it as root.

  --force  whenever the present one ends"""

DIRECTORY = "/etc/identree"
# Below it: the directories of the renewals, and the link to the one that counts.
VERSIONS, CURRENT = "certificates", "current"
# In each of them, and as links beside VERSIONS.
CERT, KEY, CA = (os.path.basename(path) for path in (CLIENT_CERT, CLIENT_KEY, CA_CERT))
TEMPORARY = ".new-"

# A certificate is renewed when less than a third of its life, or less than this, remains.
LIFE_SHARE = 3
LEAST_SECONDS = 30 * 86400

# So far may the server's clock be ahead when it issues.
SKEW_SECONDS = 300

# Besides the one that counts: whoever opened its certificate a moment ago opens its key in a moment.
KEPT_VERSIONS = 2

# With which a server, or what stands before it, may refuse a certificate without breaking the connection off.
_REFUSALS_OF_CERTIFICATES = (400, 401, 403, 495, 496)


class RenewalError(Exception):
    """There is no new certificate; the text says why and what to do. The old one is where it was."""


# Files


class Store:
    """
    The directories of the renewals.

    :param directory: of the three names that everybody uses.
    """

    def __init__(self, directory: str = DIRECTORY) -> None:
        self._directory = directory
        self._versions = os.path.join(directory, VERSIONS)

    def read(self, name: str) -> bytes | None:
        """
        What stands behind one of the three names; None when nothing does.

        :raise OSError: it cannot be read. :raise RenewalError: it is nothing that could go on in root's name.
        """
        path = os.path.join(self._directory, name)
        if os.path.islink(path):
            path = os.path.join(self._directory, self._target(name))
        try:
            with certificates.open_regular(path, follow=False) as file:
                info = os.fstat(file.fileno())
                if info.st_uid not in (0, os.geteuid()) or info.st_mode & 0o022:
                    raise RenewalError(
                        f"{path} could have been written by others than root; look at it, then run: chown root {path}; "
                        f"chmod go-w {path}"
                    )
                data = file.read(certificates.MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as e:
            if e.errno == errno.ELOOP:
                raise RenewalError(f"{path} is a symbolic link, which is not from here; remove it") from None
            raise
        if len(data) > certificates.MAX_FILE_BYTES:
            raise RenewalError(f"{path} is larger than {certificates.MAX_FILE_BYTES} bytes; move it away")
        return data

    def check(self) -> None:
        """
        Whether what the server will send could be kept. It is not asked before, as a lost certificate helps nobody.

        :raise OSError: a file cannot be read.
        :raise RenewalError: one of the names is a link of somebody else's, or others could change what is kept.
        """
        for name in (CERT, KEY, CA):
            path = os.path.join(self._directory, name)
            if os.path.islink(path) and os.readlink(path) != self._target(name):
                raise RenewalError(
                    f"{path} is a symbolic link to {os.readlink(path)}, which is not from here; renew that certificate "
                    "where it comes from, or remove the link"
                )
        self._check_versions()
        for name in (CERT, KEY, CA):
            self.read(name)

    def _check_versions(self) -> None:
        if not os.path.lexists(self._versions):
            return
        _check_directory(self._versions)
        current = os.path.join(self._versions, CURRENT)
        if not os.path.lexists(current):
            return
        target = os.readlink(current) if os.path.islink(current) else ""
        if target in ("", ".", "..", CURRENT) or "/" in target:
            raise RenewalError(f"{current} is not a link to a renewal; remove it, and run: identree renew-cert --force")
        if os.path.lexists(os.path.join(self._versions, target)):
            _check_directory(os.path.join(self._versions, target))

    def install(self, version: str, contents: dict[str, bytes]) -> None:
        """
        Make ``contents`` the ones that count, all at once; :meth:`check` was before.

        :param version: a name that no directory has.
        :raise OSError: what counted counts on.
        """
        os.makedirs(self._versions, 0o755, exist_ok=True)
        self._sweep()
        self._adopt()
        self._add(version, contents)
        self._switch(version)
        for name in contents:
            self._link(name)
        self._prune(version)

    def _target(self, name: str) -> str:
        return f"{VERSIONS}/{CURRENT}/{name}"

    def _adopt(self) -> None:
        """Put files that stand under the three names themselves into a directory, as they are, and links to it."""
        paths = {name: os.path.join(self._directory, name) for name in (CERT, KEY, CA)}
        plain = [name for name, path in paths.items() if os.path.lexists(path) and not os.path.islink(path)]
        if not plain:
            return
        contents = {name: data for name in paths if (data := self.read(name)) is not None}
        version = f"0-{os.urandom(4).hex()}"
        self._add(version, contents)
        self._switch(version)
        for name in plain:
            self._link(name)

    def _add(self, version: str, contents: dict[str, bytes]) -> None:
        made = os.path.join(self._versions, f"{TEMPORARY}{os.urandom(4).hex()}")
        os.mkdir(made, 0o700)
        for name, data in contents.items():
            write(os.path.join(made, name), data, Look(0o600 if name == KEY else 0o644, os.geteuid(), os.getegid()))
        os.chmod(made, 0o755)
        sync_directory(made)
        os.rename(made, os.path.join(self._versions, version))
        sync_directory(self._versions)

    def _switch(self, version: str) -> None:
        self._replace_link(version, os.path.join(self._versions, CURRENT))

    def _link(self, name: str) -> None:
        path = os.path.join(self._directory, name)
        if not os.path.islink(path):
            self._replace_link(self._target(name), path)

    def _replace_link(self, target: str, path: str) -> None:
        temporary = f"{path}{TEMPORARY}{os.urandom(4).hex()}"
        os.symlink(target, temporary)
        try:
            os.rename(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        sync_directory(os.path.dirname(path))

    def _sweep(self) -> None:
        """What a run that was cut off left behind; there may be a key in it."""
        for directory in (self._versions, self._directory):
            for name in os.listdir(directory):
                path = os.path.join(directory, name)
                if TEMPORARY not in name:
                    continue
                if os.path.islink(path):
                    os.unlink(path)
                elif directory == self._versions:
                    if os.path.isdir(path):
                        shutil.rmtree(path)
                    else:
                        os.unlink(path)

    def _prune(self, version: str) -> None:
        others = [name for name in os.listdir(self._versions) if name not in (version, CURRENT)]
        paths = [os.path.join(self._versions, name) for name in others]
        # what is no renewal takes the place of none
        paths = [path for path in paths if os.path.isdir(path) and not os.path.islink(path)]
        paths.sort(key=lambda path: os.lstat(path).st_mtime, reverse=True)
        for path in paths[KEPT_VERSIONS - 1 :]:
            shutil.rmtree(path, ignore_errors=True)


def _check_directory(path: str) -> None:
    """:raise RenewalError: it is no directory, is a link to one, or others than root can change what is in it."""
    info = os.lstat(path)
    if not stat.S_ISDIR(info.st_mode):
        raise RenewalError(f"{path} is not a directory of certificates; remove it")
    if info.st_uid not in (0, os.geteuid()) or info.st_mode & 0o022:
        raise RenewalError(f"{path} can be changed by others; run: chown root {path}; chmod go-w {path}")


def forget(directory: str) -> None:
    """
    Remove the directories of the renewals, with the keys in them, when none of the three names leads there any more:
    for ``identree setup --remove``, after it has removed the names.
    """
    if not any(os.path.islink(os.path.join(directory, name)) for name in (CERT, KEY, CA)):
        versions = os.path.join(directory, VERSIONS)
        if os.path.isdir(versions):  # a pipe would be waited for
            shutil.rmtree(versions, ignore_errors=True)


# Whether


def due(present: Certificate | None, now: float) -> bool:
    """:param present: None when there is none that can be read. :param now: unix seconds."""
    if present is None:
        return True
    return present.not_after - now < max((present.not_after - present.not_before) / LIFE_SHARE, LEAST_SECONDS)


def present_certificate(path: str) -> Certificate | None:
    try:
        return certificates.read_file(path)[0]
    except (OSError, NotACertificate):
        return None


# The server


def ask(config: Config, warn: Callable[[str], None]) -> Grant:
    """
    A new certificate, by the present one and the secret; when the present one spoils the connection, by the secret
    alone, because an expired certificate must not keep its own renewal from happening.

    :param warn: told why the present certificate is left out.
    :raise RenewalError: the server gives none.
    """
    answer: Response | None = None
    trouble = ""
    if config.client_cert and config.client_key:
        try:
            answer = _request(config)
            if answer.status in _REFUSALS_OF_CERTIFICATES:
                trouble = f"HTTP {answer.status}"
        except (configuration.ConfigError, WireError) as e:
            trouble = str(e)
        except Unreachable as e:
            raise RenewalError(f"{config.server_url} cannot be reached: {clean(str(e), 200)}") from None
    if answer is None or (trouble and config.secret):
        if trouble:
            warn(f"the present certificate is of no use ({clean(trouble, 200)}); asking without it")
        if trouble and not config.secret:
            raise RenewalError(
                "the present certificate is of no use, and IDENTREE_SHARED_SECRET, which would do without it, is not "
                f"set in {config.path}; install this host anew"
            )
        bare = copy.copy(config)
        bare.client_cert = bare.client_key = ""
        try:
            answer = _request(bare)
        except (Unreachable, WireError) as e:
            raise RenewalError(f"{config.server_url} does not answer: {clean(str(e), 200)}") from None
    if answer.status != 200:
        said = clean(answer.body.decode("utf-8", "replace"), 120)
        raise RenewalError(
            _REFUSED.get(answer.status, "the server answers with HTTP {status}: {said}").format(
                status=answer.status, said=said, host=config.hostname, conf=config.path
            )
        )
    try:
        body = json.loads(answer.body) if not answer.cut else None
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise RenewalError("the server's answer is not what a host is provisioned with; is this an identree server?")
    try:
        grant = Grant(body)
        check_certificates(grant)
    except SetupError as e:
        raise RenewalError(str(e)) from None
    if not grant.certificate:
        raise RenewalError("the server sent no certificate; IDENTREE_MTLS_ENABLED is not true there")
    return grant


_REFUSED = {
    400: "the server does not accept the name {host!r} ({said}); set IDENTREE_HOSTNAME in {conf}",
    401: "the server accepts neither this host's certificate nor its secret; check IDENTREE_SHARED_SECRET in {conf}",
    403: "the server gives no certificate for {host!r} ({said}); set IDENTREE_HOSTNAME in {conf} to the name that this "
    "host was registered with",
    404: "the server does not provision hosts; set IDENTREE_LDAP_PROVISION_ENABLED=true there",
    429: "the server has seen too many failed attempts from here; try again in a minute",
}


def _request(config: Config) -> Response:
    client = ProvisionClient(config, Watch(parent=False), config.hostname)
    try:
        return client.request("GET", "/api/client/provision", timeout=PROVISION_SECONDS)
    finally:
        client.close()


def check(config: Config, grant: Grant, ca: str, now: float) -> Certificate:
    """
    The new certificate, which names this host, is valid now, and which the server takes.

    :param ca: PEM of the CAs that will be believed, if ``client.conf`` names that file.
    :raise RenewalError: it is not so; the old one stays.
    """
    try:
        new = certificates.read_pem(grant.certificate)[0]
    except NotACertificate as e:
        raise RenewalError(f"the server sent a certificate that cannot be read: {e}") from None
    if new.not_before > now + SKEW_SECONDS:
        raise RenewalError(f"the server sent a certificate that begins on {day(new.not_before)}; check both clocks")
    if new.not_after <= now:
        raise RenewalError(f"the server sent a certificate that ended on {day(new.not_after)}; check both clocks")
    if not new.names_host(config.hostname) and new.common_name.lower() != config.hostname:
        raise RenewalError(f"the server sent a certificate for {new.whose()}, and this host is {config.hostname}")
    if config.scheme != "https":
        return new
    kept = [Memory(text) for text in (grant.certificate, grant.key, ca)]
    trial = copy.copy(config)
    trial.client_cert, trial.client_key = kept[0].path, kept[1].path
    if config.ca_cert == CA_CERT:
        trial.ca_cert = kept[2].path
    try:
        client = Client(trial, Watch(parent=False))
        client.request("GET", "/healthz", timeout=HANDSHAKE_SECONDS)
        client.close()
    except (Unreachable, WireError, configuration.ConfigError) as e:
        raise RenewalError(
            f"the server does not take the certificate that it sent ({clean(str(e), 200)}); the old one stays"
        ) from None
    finally:
        for each in kept:
            each.close()
    return new


def authorities(config: Config, grant: Grant, old: str, now: float) -> str:
    """
    What ``ca.crt`` will hold: the CA that came, or what was there. When that file decides whether the server itself is
    believed, and the new CA alone would not, the old ones stay in it as long as they are valid.
    """
    if not grant.ca:
        return old
    if config.ca_cert != CA_CERT or not old or trusts_alone(config, grant):
        return grant.ca
    there = certificates.read_pem(grant.ca)
    try:
        before = certificates.read_pem(old)
    except NotACertificate:
        return grant.ca
    known = {each.der for each in there}
    kept = [each for each in before if each.der not in known and each.not_after > now]
    return "".join(certificates.pem(each) for each in [*there, *kept[:8]])


# The command


class Renewal:
    """
    :param now: unix seconds. :param say: :param warn: what a person should know.
    :param sssd: its own copies of certificate, key and CA, and its configuration.
    """

    def __init__(
        self,
        config: Config,
        store: Store,
        commands: Commands,
        say: Callable[[str], None],
        warn: Callable[[str], None],
        *,
        now: Callable[[], float] = time.time,
        sssd: tuple[str, str, str, str] = (SSSD_CERT, SSSD_KEY, SSSD_CA, SSSD_CONF),
    ) -> None:
        self._config, self._store, self._commands, self._now = config, store, commands, now
        self._say, self._warn, self._sssd = say, warn, sssd

    def run(self, *, force: bool) -> bool:
        """Whether there is a new certificate. :raise RenewalError: :raise OSError: there is none, though one is due."""
        config = self._config
        if not config.hostname:
            raise RenewalError(f"this host has no name; set IDENTREE_HOSTNAME in {config.path}")
        for key, named, ours in (
            ("IDENTREE_CLIENT_CERT", config.client_cert, CLIENT_CERT),
            ("IDENTREE_CLIENT_KEY", config.client_key, CLIENT_KEY),
        ):
            if named and named != ours:
                raise RenewalError(
                    f"{key} in {config.path} is {named}, which does not come from identree; renew it where it comes "
                    f"from, or set {ours}"
                )
        self._store.check()
        now = self._now()
        data = self._store.read(CERT)
        present = _first(data)
        if present is not None and not due(present, now) and not force:
            self._say(f"the certificate is good until {day(present.not_after)}; nothing to do")
            return False
        grant = ask(config, self._warn)
        ca = authorities(config, grant, (self._store.read(CA) or b"").decode("ascii", "replace"), now)
        new = check(config, grant, ca, now)
        contents = {CERT: grant.certificate.encode(), KEY: grant.key.encode()}
        if ca:
            contents[CA] = ca.encode()
        self._store.install(f"{int(now)}-{os.urandom(4).hex()}", contents)
        self._tell_sssd(contents)
        journal.record(result="certificate renewed", serial=new.serial, until=day(new.not_after))
        self._say(f"certificate renewed for {config.hostname}; it is good until {day(new.not_after)}")
        if not (config.client_cert and config.client_key):
            self._warn(
                f"{config.path} does not name it: add IDENTREE_CLIENT_CERT={CLIENT_CERT} and "
                f"IDENTREE_CLIENT_KEY={CLIENT_KEY}"
            )
        return True

    def _tell_sssd(self, contents: dict[str, bytes]) -> None:
        """Its copies, where it may not read ours; and a restart, because it keeps what it has read."""
        *copies, conf = self._sssd
        try:
            for path, name in zip(copies, (CERT, KEY, CA)):
                if read(path) is not None and name in contents:
                    look = Look.of(path)
                    if name == KEY:
                        look.mode &= 0o640  # whatever stood there, a key is not for everybody
                    write(path, contents[name], look)
            text = read(conf) or b""
        except (OSError, SetupError) as e:
            self._warn(f"sssd goes on with the old certificate: {reason(e)}; run identree setup --sssd --force")
            return
        if not any(path.encode() in text for path in (*copies, CLIENT_CERT, CA_CERT)):
            return
        if systemd_runs("/", self._commands):
            code, said = self._commands.run("systemctl", "try-restart", "sssd.service")
            if code:
                self._warn(f"sssd was not restarted ({clean(said, 100)}); run: systemctl restart sssd")
        else:
            self._say("restart sssd, so that it uses the new certificate")


def _first(data: bytes | None) -> Certificate | None:
    try:
        return certificates.read_pem(data.decode("ascii", "replace"))[0] if data else None
    except NotACertificate:
        return None


class _Lock:
    """One renewal at a time, by a lock on the directory, which needs no file."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        os.makedirs(self._path, 0o755, exist_ok=True)
        self._fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        info = os.fstat(self._fd)
        if info.st_uid not in (0, os.geteuid()) or stat.S_IMODE(info.st_mode) & 0o022:
            os.close(self._fd)
            raise RenewalError(
                f"{self._path} can be changed by others; run: chown root {self._path}; chmod 755 {self._path}"
            )
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            os.close(self._fd)
            if e.errno == errno.EWOULDBLOCK:
                raise RenewalError("another renewal is running; it will do") from None
            raise

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)


def run(arguments: list[str]) -> int:
    """0 when there is a new certificate, or none was due."""
    from identree.agent.main import complain
    from identree.agent.pam import conf_path

    if arguments in (["--help"], ["-h"]):
        note(USAGE)
        return 0
    if any(each not in ("--force", "-f") for each in arguments):
        complain(USAGE)
        return 1
    environ = dict(os.environ)
    configuration.strip_environment()

    def warn(line: str) -> None:
        complain(f"identree renew-cert: {line}")

    try:
        if os.geteuid() != 0:
            raise RenewalError("this needs root")
        config = configuration.load(conf_path(environ))
        journal.enabled = config.syslog
        with _Lock(DIRECTORY):
            Renewal(config, Store(), Commands("/"), note, warn).run(force=bool(arguments))
        return 0
    except (configuration.ConfigError, RenewalError) as e:
        journal.record(serious=True, result="certificate not renewed", reason=str(e))
        warn(str(e))
    except OSError as e:
        journal.record(serious=True, result="certificate not renewed", reason=reason(e))
        warn(reason(e))
    return 1
