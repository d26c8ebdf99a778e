"""
A new break-glass password: made, put into the vault, and only then valid by its hash (spec/host-agent 9.2, 9.5, 9.6,
9.9).

Whatever is cut off, and wherever: the password that the vault shows opens. For that the new one is written down in
``<hash file>.pending`` before it is sent, and counts from there until it is known what the vault has. The next run
sends the same one again, so that vault and hash never stay apart.
"""

from __future__ import annotations

import base64
import errno
import fcntl
import hmac
import json
import os
import stat
import time

from identree.agent import config as configuration
from identree.agent import journal, places
from identree.agent.bcrypt import Bcrypt, NoBcrypt
from identree.agent.breakglass import (
    HashError,
    Pending,
    lift_limits,
    open_private,
    read_hash,
    read_pending,
    trusted,
)
from identree.agent.places import DAY_SECONDS, LOCK, PENDING, PLACES, SIGNAL
from identree.agent.watch import Left, Watch
from identree.agent.wire import Client, Unreachable, Untrusted, WireError
from identree.agent.words import WORDS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from identree.agent.config import Config
    from identree.agent.places import Places
    from identree.agent.wire import Response

USAGE = """\
usage: identree rotate-breakglass [--force] [--print]

Give this host a new break-glass password when the old one is old enough, and put it into the vault of the server.
Run it as root.

  --force, -f  whatever the age of the present one
  --print      when no vault takes it, print it even if the output is no terminal"""

# Of this alphabet nothing looks like anything else.
ALPHANUMERIC = "23456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghjkmnpqrstuvwxyz"
ALPHANUMERIC_CHARACTERS = 24
PASSPHRASE_WORDS = 10
RANDOM_BYTES = 32

# The server has 30 s to reach the vault; whoever gives up earlier does not know what came of it.
ESCROW_SECONDS = 35.0
ESCROW_CONNECT_SECONDS = 5.0
ESCROW_TRIES = 3
# A token counts once per second and host.
ESCROW_PAUSE_SECONDS = 1.1

# What became of a password on its way to the vault.
STORED, NO_VAULT, REFUSED, UNCLEAR = "stored", "no vault", "refused", "unclear"

TEMPORARY = ".breakglass-tmp-"


class RotationError(Exception):
    """No new password; the text says why and what to do. The old one is valid as before."""


class Busy(RotationError):
    """Another rotation is running."""


class NotEscrowed(RotationError):
    """No vault takes the password, and nobody is there to be told."""


# Passwords


def generate(kind: str) -> str:
    """
    A new password from the system's random source, every one equally likely.

    :raise RotationError: a type that there is not.
    """
    if kind == "random":
        return base64.urlsafe_b64encode(os.urandom(RANDOM_BYTES)).decode().rstrip("=")
    if kind == "passphrase":
        return "-".join(WORDS[byte] for byte in os.urandom(PASSPHRASE_WORDS))
    if kind == "alphanumeric":
        return "".join(ALPHANUMERIC[_below(len(ALPHANUMERIC))] for _ in range(ALPHANUMERIC_CHARACTERS))
    raise RotationError(
        f"IDENTREE_BREAKGLASS_PASSWORD_TYPE is {kind!r}; it must be one of: {', '.join(configuration.PASSWORD_TYPES)}"
    )


def _below(count: int) -> int:
    """Uniform below ``count``, at most 256: what would favour the first ones is thrown again."""
    while True:
        byte = os.urandom(1)[0]
        if byte < 256 - 256 % count:
            return byte % count


# The vault


class EscrowClient(Client):
    """The client with the two headers of an escrow request."""

    def __init__(self, config: Config, watch: Watch) -> None:
        super().__init__(config, watch)
        self._extra = b""

    def store(self, hostname: str, password: str, stamp: int, secret: str) -> Response:
        """
        :param stamp: unix seconds; the server takes each once per host.
        :raise Unreachable: :raise WireError: as :meth:`Client.request` does.
        """
        self._extra = b""
        if secret:
            self._extra = (
                f"X-Escrow-Ts: {stamp}\r\nX-Escrow-Token: {escrow_token(secret, hostname, stamp)}\r\n".encode()
            )
        body = json.dumps({"hostname": hostname, "password": password}, separators=(",", ":")).encode()
        return self.request(
            "POST",
            "/api/breakglass/escrow",
            body,
            timeout=ESCROW_SECONDS,
            connect_timeout=ESCROW_CONNECT_SECONDS,
        )

    def _exchange(self, request: bytes, until: float, sent: Callable[[], None] | None, *, kept: bool) -> Response:
        head, blank, body = request.partition(b"\r\n\r\n")
        return super()._exchange(head + b"\r\n" + self._extra + blank[2:] + body, until, sent, kept=kept)


def escrow_token(secret: str, hostname: str, stamp: int) -> str:
    """Lower-case hex of HMAC-SHA256 over ``escrow:HOST:SECONDS``."""
    key = hmac.new(secret.encode(), b"escrow", "sha256").digest()
    return hmac.new(key, f"escrow:{hostname}:{stamp}".encode(), "sha256").hexdigest()


class Escrow:
    """
    Puts a password into the server's vault.

    :ivar detail: what the last answer was, for people.
    """

    def __init__(
        self,
        config: Config,
        *,
        client: Callable[[], EscrowClient] | None = None,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._config, self._now, self._sleep = config, now, sleep
        self._client = client or (lambda: EscrowClient(config, Watch(parent=False)))
        self._last = 0
        self.detail = ""

    def store(self, password: str) -> str:
        """
        One of :data:`STORED`, :data:`NO_VAULT`, :data:`REFUSED` (surely not stored), :data:`UNCLEAR` (perhaps stored,
        also after trying the same password again).

        :raise ConfigError: certificates that cannot be used; nothing was sent.
        """
        client = self._client()
        sent = False
        for attempt in range(ESCROW_TRIES):
            if attempt:
                self._sleep(ESCROW_PAUSE_SECONDS)
            outcome = self._try(client, password)
            if outcome != UNCLEAR:
                # A refusal now says nothing of what an earlier try has done.
                return UNCLEAR if sent and outcome != STORED else outcome
            sent = True
        return UNCLEAR

    def _try(self, client: EscrowClient, password: str) -> str:
        self._last = max(int(self._now()), self._last + 1)
        try:
            try:
                answer = client.store(self._config.hostname, password, self._last, self._config.secret)
            finally:
                client.close()
        except (Unreachable, Untrusted) as e:  # before anything was sent
            self.detail = str(e)
            return REFUSED
        except WireError as e:
            self.detail = str(e)
            return UNCLEAR
        self.detail = f"HTTP {answer.status}"
        if answer.status == 200:
            return STORED
        if answer.status == 501:
            return NO_VAULT
        if answer.status >= 500 or answer.status == 410:  # 410: a request with this stamp has been there already
            return UNCLEAR
        if answer.status == 403:
            self.detail += ": the server does not accept this host's secret for escrow, or the clocks differ"
        return REFUSED


# Files


class Disk:
    """The calls that change something, one by one, so that tests can cut the power between any two."""

    def create(self, path: str) -> int:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def write(self, fd: int, data: bytes) -> int:
        return os.write(fd, data)

    def set_time(self, fd: int, seconds: int) -> None:
        os.utime(fd, (seconds, seconds))

    def sync(self, fd: int) -> None:
        os.fsync(fd)

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def sync_directory(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


class Rotation:
    """
    The hash file and what stands beside it.

    :param escrow: None when this host has no server.
    :param now: unix seconds.
    :ivar told: a password that no vault has was shown to a person, and is the one now.
    """

    def __init__(
        self,
        config: Config,
        escrow: Escrow | None,
        *,
        bcrypt: Bcrypt,
        disk: Disk | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._config, self._escrow, self._bcrypt, self._now = config, escrow, bcrypt, now
        self._disk = disk or Disk()
        self.told = False
        self._file = config.breakglass_file
        self._directory = os.path.dirname(self._file) or "/"

    def locked(self) -> _Lock:
        """A context in which no other process rotates. :raise Busy: one does. :raise OSError: no lock file."""
        return _Lock(self._file + LOCK)

    def settle(self, disclose: Callable[[str], bool] | None = None) -> str:
        """
        Finish what an earlier run could not: send its password again, and let it be the one.

        :param disclose: as for :meth:`rotate`.
        :return: what was done, for people; empty when there was nothing to do.
        :raise RotationError: it is still open; both passwords are valid until it is not.
        """
        self._sweep()
        try:
            pending = read_pending(self._file)
        except HashError as e:
            try:
                self._remove(self._file + PENDING)
            except IsADirectoryError:
                raise RotationError(f"{self._file + PENDING} is a directory; remove it") from None
            journal.record(serious=True, result="warning", reason="break-glass rotation", detail=f"removed: {e}")
            return ""
        if pending is None:
            return ""
        if self._adopted(pending):
            self._remove(self._file + PENDING)
            return "the last rotation was complete"
        outcome = NO_VAULT if self._escrow is None else self._escrow.store(pending.password)
        digest = self._hash(pending.password)
        shown = outcome == NO_VAULT and disclose is not None and disclose(pending.password)
        if outcome != STORED and not shown:
            # A vault may have it from the first try, so it stays valid beside the old one.
            raise (NotEscrowed if outcome == NO_VAULT else RotationError)(
                f"the last rotation is not settled: {self._said(outcome)}. Until it is, the old and the new password "
                "are both valid; it is tried again"
            )
        self._adopt(digest, pending)
        self.told = shown
        return "the last rotation is complete now"

    def rotate(self, disclose: Callable[[str], bool] | None = None) -> bool:
        """
        Make a new password, and have it in the vault before it counts. Call :meth:`settle` before.

        :param disclose: shows the password to a person when no vault has it, and says whether that worked; None when
            nobody can be told.
        :return: whether the vault has it.
        :raise RotationError: there is none.
        """
        if not self._config.hostname and self._escrow is not None:
            raise RotationError(f"this host has no name; set IDENTREE_HOSTNAME in {self._config.path}")
        self._check_target()
        password = generate(self._config.password_type)
        new = Pending(password, self._config.password_type, int(self._now()))
        digest = self._hash(password)
        if self._escrow is None:
            outcome = NO_VAULT
        else:
            self._write(self._file + PENDING, new.text(self._config.hostname))
            try:
                outcome = self._escrow.store(password)
            except configuration.ConfigError:
                self._remove(self._file + PENDING)
                raise
        if outcome == UNCLEAR:
            raise RotationError(
                f"it is not known whether the vault has the new password ({self._said(outcome)}). Until it is, the old "
                "and the new one are both valid; run this again"
            )
        if outcome == NO_VAULT:
            if disclose is None or not disclose(password):
                self._remove(self._file + PENDING)
                raise NotEscrowed(
                    "no vault takes the password, so nobody would know it; nothing was changed. Set up escrow on the "
                    "server, or run this at a terminal, or with --print"
                )
        elif outcome != STORED:
            self._remove(self._file + PENDING)
            raise RotationError(f"the vault did not take the new password ({self._said(outcome)}); nothing was changed")
        self._adopt(digest, new)
        self.told = outcome == NO_VAULT
        return outcome == STORED

    def honour(self, signalled: str) -> None:
        """Remember the server's signal, so that clocks that differ do not make it count twice."""
        if places.instant(signalled) is not None:
            self._write(self._file + SIGNAL, signalled + "\n")

    def _said(self, outcome: str) -> str:
        if self._escrow is None:
            return "this host has no server"
        return "the server has no vault" if outcome == NO_VAULT else self._escrow.detail

    def _hash(self, password: str) -> str:
        return self._bcrypt.hash(password, self._config.bcrypt_cost)

    def _adopted(self, pending: Pending) -> bool:
        """Whether the hash is that of the pending password already: only the clearing up was cut off."""
        try:
            return self._bcrypt.matches(pending.password.encode(), read_hash(self._file))
        except HashError:
            return False

    def _adopt(self, digest: str, new: Pending) -> None:
        """From here on the new password counts by its hash; its age is that of its making."""
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(new.created))
        header = f"# identree breakglass host={self._config.hostname} type={new.kind} created={at}\n"
        self._check_target()
        self._write(self._file, f"{header}{digest}\n", made=new.created)
        self._remove(self._file + PENDING)

    def _check_target(self) -> None:
        """:raise RotationError: what stands in the hash file's place was put there to switch break-glass off."""
        try:
            mode = os.lstat(self._file).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISREG(mode):
            raise RotationError(f"{self._file} is not a regular file; remove it if this host is to have break-glass")

    def _write(self, path: str, text: str, made: int | None = None) -> None:
        """Replace ``path`` in one step that survives a power cut, whatever stands in its place."""
        temporary = os.path.join(self._directory, TEMPORARY + os.urandom(8).hex())
        fd = self._disk.create(temporary)
        try:
            try:
                data = text.encode()
                while data:
                    data = data[self._disk.write(fd, data) :]
                if made is not None:
                    self._disk.set_time(fd, made)
                self._disk.sync(fd)
            finally:
                os.close(fd)
            self._disk.rename(temporary, path)
        except OSError as e:
            try:
                self._disk.unlink(temporary)
            except OSError:
                pass
            if e.filename is None and e.errno is not None:
                raise OSError(e.errno, os.strerror(e.errno), path) from None
            raise
        self._disk.sync_directory(self._directory)

    def _remove(self, path: str) -> None:
        try:
            self._disk.unlink(path)
        except FileNotFoundError:
            return
        self._disk.sync_directory(self._directory)

    def _sweep(self) -> None:
        """Remove what a cut left behind; it may hold a password."""
        for name in os.listdir(self._directory):
            rest = name[len(TEMPORARY) :]
            if name.startswith(TEMPORARY) and len(rest) == 16 and set(rest) <= set("0123456789abcdef"):
                try:
                    self._disk.unlink(os.path.join(self._directory, name))
                except IsADirectoryError:
                    pass  # not what a cut left behind


class _Lock:
    def __init__(self, path: str) -> None:
        self._path, self._fd = path, -1

    def __enter__(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            self._fd = os.open(self._path, flags, 0o600)
        except OSError as e:
            if e.errno != errno.ELOOP:
                raise
            raise RotationError(f"{self._path} is a symbolic link, which nobody needs there; remove it") from None
        wrong = trusted(self._fd)
        if wrong:  # whoever can open it could hold the lock for ever
            os.close(self._fd)
            raise RotationError(f"{self._path} {wrong}; remove it")
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._fd)
            raise Busy("another rotation is running") from None

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)  # the file stays: removing it would let two processes hold two locks


# After a successful sudo


def automatic(
    config: Config,
    signalled: str,
    *,
    escrow: Escrow | None = None,
    bcrypt: Bcrypt | None = None,
    now: Callable[[], float] = time.time,
    where: Places | None = None,
) -> str:
    """
    Rotate when that is due (section 9.6), in the background: it says nothing to people, and what it cannot put into
    the vault it does not make.

    :param signalled: ``rotate_breakglass_before`` of a genuine approval; empty when there was none.
    :return: why it was due; empty when it was not.
    """
    where = where or PLACES
    lift_limits()
    try:
        if places.recently(where.attempt, now(), places.PAUSE_SECONDS):
            return ""
        rotation = Rotation(config, escrow or Escrow(config), bcrypt=bcrypt or Bcrypt(), now=now)
        with rotation.locked():
            why = places.due(config.breakglass_file, config.rotation_days, signalled, now())
            if not why:
                return ""
            settled = rotation.settle()
            if settled:
                journal.record(result="break-glass rotation", reason=settled)
            # what was settled is as old as its making, which may be old enough for the next one
            why = places.due(config.breakglass_file, config.rotation_days, signalled, now())
            if why:
                rotation.rotate()
                journal.record(result="break-glass rotated", reason=why)
                if signalled:
                    rotation.honour(signalled)
            return why or "unsettled"
    except Busy:
        return ""
    except NotEscrowed:
        _daily(where, now(), "no vault takes this host's break-glass password, so it is not rotated; set up escrow")
    except NoBcrypt as e:
        _daily(where, now(), f"break-glass is impossible: {e}")
    except (RotationError, HashError, configuration.ConfigError, OSError) as e:
        text = f"{e.filename or 'file'}: {e.strerror}" if isinstance(e, OSError) else str(e)
        journal.record(serious=True, result="break-glass not rotated", reason=text)
    _touch(where.attempt, now())
    return ""


def _daily(where: Places, now: float, text: str) -> None:
    """A warning once a day, not with every sudo."""
    if not places.recently(where.warned, now, DAY_SECONDS):
        journal.record(serious=True, result="break-glass not rotated", reason=text)
        _touch(where.warned, now)


def _touch(path: str, now: float) -> None:
    try:
        fd = open_private(path)
    except OSError:
        return
    try:
        os.utime(fd, (now, now))
    finally:
        os.close(fd)


# rotate-breakglass


def run(arguments: list[str]) -> int:
    """0 when there is a new password, or none was due, or another rotation is running."""
    from identree.agent.main import complain
    from identree.agent.pam import conf_path
    from identree.agent.text import note
    from identree.agent.watch import listen_to_signals

    if arguments in (["--help"], ["-h"]):
        note(USAGE)
        return 0
    force = print_ = False
    for each in arguments:
        if each in ("--force", "-f"):
            force = True
        elif each == "--print":
            print_ = True
        else:
            complain(USAGE)
            return 1
    environ = dict(os.environ)
    configuration.strip_environment()
    try:
        config = configuration.load(conf_path(environ), server=False)
        journal.enabled = config.syslog
        lift_limits()
        listen_to_signals()
        return _run(config, force, Disclosure(to_anything=print_), complain, note)
    except Busy as e:
        complain(f"identree rotate-breakglass: {e}")
        return 0
    except Left:
        complain("identree rotate-breakglass: interrupted; run it again to settle what was begun")
    except (configuration.ConfigError, RotationError, NoBcrypt) as e:
        journal.record(serious=True, result="break-glass not rotated", reason=str(e))
        complain(f"identree rotate-breakglass: {e}")
    except OSError as e:
        what = f"{e.filename}: {e.strerror}" if e.filename else e.strerror
        journal.record(serious=True, result="break-glass not rotated", reason=what)
        remedy = "; run this as root" if os.geteuid() else ""
        complain(f"identree rotate-breakglass: {what}{remedy}")
    return 1


def _run(
    config: Config,
    force: bool,
    disclosure: Disclosure,
    complain: Callable[[str], None],
    note: Callable[[str], None],
) -> int:
    rotation = Rotation(config, Escrow(config) if config.server_url else None, bcrypt=Bcrypt())
    disclose = disclosure if disclosure.possible else None
    with rotation.locked():
        settled = rotation.settle(disclose)
        if settled:
            complain(f"identree rotate-breakglass: {settled}")
        if not force and not rotation.told:
            why = places.due(config.breakglass_file, config.rotation_days, "", time.time())
            if not why and os.path.lexists(config.breakglass_file):
                days = max(0, int((time.time() - os.lstat(config.breakglass_file).st_mtime) / DAY_SECONDS))
                if places.regular(config.breakglass_file):
                    note(f"break-glass password is {days} days old, rotation after {config.rotation_days}; skipping")
                    return 0
        if not rotation.told:  # else there is a new one already, and the person has just read it
            rotation.rotate(disclose)
    journal.record(result="break-glass rotated", reason="rotate-breakglass")
    if not rotation.told:
        complain("the new break-glass password is in the vault")
    else:
        complain("the new break-glass password is valid now. No vault has it: write it down, it is not shown again")
    return 0


class Disclosure:
    """
    Shows a password that no vault has: on standard output when that is a terminal, or when root asked for it by
    ``--print``. Else nowhere: it would end in a journal or in a mail.
    """

    def __init__(self, *, to_anything: bool) -> None:
        self.possible = to_anything or os.isatty(1)

    def __call__(self, password: str) -> bool:
        """Whether it was written in full."""
        if not self.possible:
            return False
        data = (password + "\n").encode()
        try:
            while data:
                data = data[os.write(1, data) :]
        except OSError:
            return False
        return True
