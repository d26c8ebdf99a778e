"""
The way in while the server cannot be reached: one password per host, whose bcrypt hash is here and whose text is in
the vault (spec/host-agent section 9).

Only *unreachable* leads here. Each attempt and each use is in the system log; a use is reported to the server as soon
as it can be reached again.
"""

from __future__ import annotations

import errno
import fcntl
import hmac
import json
import os
import select
import signal
import stat
import termios
import time

from identree.agent import config as configuration
from identree.agent import journal, messages, places
from identree.agent.bcrypt import Bcrypt, NoBcrypt, valid
from identree.agent.places import PLACES
from identree.agent.watch import Left, Watch
from identree.agent.wire import Client, Unreachable, WireError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from identree.agent.config import Config
    from identree.agent.places import Places

USAGE = """\
usage: identree verify-breakglass

Ask for the break-glass password of this host, and say whether it is the right one. Run it as root."""

# Of the hash file; a comment and a hash fit in several times.
MAX_HASH_FILE_BYTES = 512
MAX_PENDING_BYTES = 1024

# A person gets the password from a vault or from a colleague first.
PROMPT_SECONDS = 300.0

# More is no password; it is read and forgotten.
MAX_TYPED_BYTES = 256

# Wrong passwords that cost nothing; from then on 1, 2, 4 … 256 seconds of waiting.
FREE_FAILURES, MAX_DOUBLINGS = 3, 8
MAX_FAILURES_BYTES = 128
GREATEST_COUNT = 1_000_000

# When the count of failures cannot be kept, every attempt waits instead.
UNCOUNTED_SECONDS = 5.0

# Compared with when there is no usable hash, so that the answer takes as long. Nobody knows its password.
DUMMY = "$2b$12$" + "Wq1vGk0yT5nJ8eB3xL6zOu" + "f4Rc7Hs2Mp9Ad0KtYiVwXoZlQbNgEjS"

# Uses that wait for the server. Each stands for a right password, so a full file means that somebody plays.
MAX_USED_BYTES = 65536
REPORT_SECONDS = 3.0
LOCK_SECONDS = 1.0

# A terminal that takes nothing (Ctrl-S) delays us so long, not for ever.
WRITE_SECONDS = 1.0

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Refused(Exception):
    """No way in. :ivar key: the message. :ivar plain: a result, not a problem with a remedy."""

    def __init__(self, key: str, result: str, *, plain: bool = True, **values: object) -> None:
        super().__init__(key)
        self.key, self.result, self.plain, self.values = key, result, plain, values


class HashError(Exception):
    """The hash cannot be used; the text says why."""


# Files that only root may have written


def trusted(fd: int, *, written: bool = False) -> str:
    """What speaks against the open file, or nothing. :param written: it is to be changed, not only read."""
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        return "is not a regular file"
    if info.st_uid not in (0, os.geteuid()):
        return f"belongs to uid {info.st_uid}"
    if info.st_mode & 0o077:
        return "is open to others than its owner"
    if written and info.st_nlink > 1:
        return "has another name, which may be somebody's file"
    return ""


def read_private(path: str, limit: int) -> str:
    """
    At most ``limit`` bytes of a file that only its owner can read.

    :raise FileNotFoundError: it is not there.
    :raise HashError: it is not to be trusted, or cannot be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as e:
        what = "is a symbolic link" if e.errno == errno.ELOOP else f"cannot be read: {os.strerror(e.errno or 0)}"
        raise HashError(f"{path} {what}") from None
    try:
        wrong = trusted(fd)
        if wrong:
            raise HashError(f"{path} {wrong}; it must be a regular file of root with mode 600")
        return os.read(fd, limit).decode("utf-8", "replace")
    except OSError as e:
        raise HashError(f"{path} cannot be read: {os.strerror(e.errno or 0)}") from None
    finally:
        os.close(fd)


def open_private(path: str, *, append: bool = True) -> int:
    """
    A file of ours for reading and writing (at its end by default), made when it is not there. What is in its place and
    is not to be trusted (a link, another's file) is removed: nothing in it counts, and nothing is written through it.

    :raise OSError: there is no way to have it.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_APPEND if append else 0)
    try:
        fd = os.open(path, flags, 0o600)
    except OSError as e:
        if e.errno not in (errno.ELOOP, errno.ENXIO):
            raise
        wrong = "is a symbolic link"
    else:
        wrong = trusted(fd, written=True)
        if not wrong:
            return fd
        os.close(fd)
    journal.record(serious=True, result="warning", reason="replaced a file that is not ours", detail=f"{path} {wrong}")
    os.unlink(path)
    return os.open(path, flags | os.O_EXCL, 0o600)


def lift_limits() -> None:
    """
    Take off what a caller may have put on us with ulimit or umask: a file size of zero, and no wrong password would be
    counted and no use recorded.
    """
    import resource

    os.umask(0o077)
    for each in (resource.RLIMIT_FSIZE, resource.RLIMIT_CPU):
        most = resource.getrlimit(each)[1]
        for limit in (resource.RLIM_INFINITY, most):  # to raise the hard limit a container's root may lack the right
            try:
                resource.setrlimit(each, (limit, limit))
                break
            except (OSError, ValueError):
                pass


def lock(fd: int, seconds: float = LOCK_SECONDS) -> bool:
    """Take the exclusive lock; False when another process keeps it that long."""
    until = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as e:
            if e.errno not in (errno.EWOULDBLOCK, errno.EINTR) or time.monotonic() >= until:
                return False
        time.sleep(0.01)


# The password


def read_hash(path: str) -> str:
    """
    The bcrypt hash in the hash file: its first line that is neither empty nor a comment.

    :raise HashError: there is none that can be used.
    """
    try:
        text = read_private(path, MAX_HASH_FILE_BYTES)
    except FileNotFoundError:
        raise HashError(f"{path} does not exist; run: identree rotate-breakglass") from None
    for line in text.splitlines():
        line = line.strip()
        if line and not line.startswith("#"):
            if valid(line):
                return line
            break
    raise HashError(f"{path} holds no bcrypt hash; run: identree rotate-breakglass --force")


class Pending:
    """A new password on its way into the vault. :ivar created: unix seconds."""

    def __init__(self, password: str, kind: str, created: int) -> None:
        self.password, self.kind, self.created = password, kind, created

    def text(self, hostname: str) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.created))
        return f"# identree breakglass host={hostname} type={self.kind} created={at} pending\n{self.password}\n"


def read_pending(file: str) -> Pending | None:
    """
    The password on its way, None when there is none.

    :raise HashError: there is something, but nothing that we wrote.
    """
    path = file + places.PENDING
    try:
        text = read_private(path, MAX_PENDING_BYTES)
    except FileNotFoundError:
        return None
    lines = text.split("\n")
    words = dict(word.partition("=")[::2] for word in lines[0].split())
    created = places.instant(words.get("created", ""))
    password = lines[1] if len(lines) == 3 and not lines[2] else ""
    good = password.isascii() and password.isprintable() and 0 < len(password) <= 72
    if not lines[0].endswith(" pending") or created is None or not good:
        raise HashError(f"{path} is damaged")
    return Pending(password, words.get("type", ""), int(created))


def matches(file: str, typed: bytes, bcrypt: Bcrypt) -> bool:
    """
    Whether ``typed`` opens: the password of the hash, or the one that is on its way into the vault. Which of the two
    the vault has is not known until the next rotation has asked it, and whoever reads one there must get in with it.

    It takes as long when there is no usable hash.
    """
    try:
        pending = read_pending(file)  # before the hash, which takes its place: read later it might be in neither
    except HashError as e:
        pending = None
        journal.record(serious=True, result="warning", reason="break-glass hash", detail=str(e))
    try:
        digest, usable = read_hash(file), True
    except HashError as e:
        digest, usable = DUMMY, False
        journal.record(serious=True, result="warning", reason="break-glass hash", detail=str(e))
    right = bcrypt.matches(typed, digest) and usable
    if pending is not None and hmac.compare_digest(pending.password.encode(), typed):
        # the hash file may have been made a link to switch break-glass off; then this does not open either
        right = right or places.usable(file)
    return right


# The rate limit


class Limit:
    """
    Wrong passwords of this host, whoever typed them (section 9.4).

    :param now: unix seconds.
    """

    def __init__(self, path: str, now: Callable[[], float]) -> None:
        self._path, self._now = path, now

    def seconds_left(self) -> int:
        """
        How long the next attempt has to wait; 0 when it may be made now.

        :raise OSError: nobody knows.
        """
        if not os.path.lexists(self._path):
            return 0
        fd = open_private(self._path, append=False)
        try:
            lock(fd)
            return self._left(fd)
        finally:
            os.close(fd)

    def count(self) -> int:
        """
        Count an attempt as failed *before* it is compared, unless it has to wait: then the seconds, and it does not
        count. So a hundred prompts at a time are no hundred free attempts. A right password takes it back.

        :raise OSError: it cannot be counted.
        """
        fd = open_private(self._path, append=False)
        try:
            lock(fd)
            left = self._left(fd)
            if not left:
                self._write(fd, self._read(fd)[0] + 1)
            return left
        finally:
            os.close(fd)

    def clear(self) -> None:
        try:
            os.unlink(self._path)
        except OSError:
            pass

    def _left(self, fd: int) -> int:
        count, last = self._read(fd)
        if count < FREE_FAILURES:
            return 0
        now = self._now()
        if last > now + 1:
            # The clock was ahead when it was written. Waiting for that time to come could take years.
            self._write(fd, count)
            last = now
        left = last + 2 ** min(count - FREE_FAILURES, MAX_DOUBLINGS) - now
        return 0 if left <= 0 else max(1, int(left + 0.999))

    @staticmethod
    def _read(fd: int) -> tuple[int, float]:
        """Failures and the unix time of the last; none when what is there makes no sense."""
        words = os.pread(fd, MAX_FAILURES_BYTES, 0).decode("ascii", "replace").split()
        if len(words) != 2 or not words[0].isdigit() or len(words[0]) > 9:
            return 0, 0.0
        last = float(words[1]) if words[1].isdigit() and len(words[1]) < 12 else places.instant(words[1])
        return (min(int(words[0]), GREATEST_COUNT), last) if last is not None else (0, 0.0)

    def _write(self, fd: int, count: int) -> None:
        # Over the old text first: on a full disk the count stays, where truncating first would have forgotten it.
        text = b"%d %d" % (count, self._now())
        if os.pwrite(fd, text, 0) != len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.ftruncate(fd, len(text))
        os.fsync(fd)


# The terminal


def open_terminal(tty: str, parent: int) -> int:
    """The terminal of the person (section 9.3), or -1. :param tty: what PAM names. :param parent: who called us."""
    from identree.agent import screen

    try:
        return os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        pass  # under pam_exec there is no controlling terminal
    fd = screen.open_terminal(tty, parent)
    if fd < 0 and os.isatty(0):
        return os.dup(0)
    return fd


class Terminal:
    """:param fd: of a terminal; closed by :meth:`close`."""

    def __init__(self, fd: int, watch: Watch) -> None:
        self._fd, self._watch = fd, watch

    def close(self) -> None:
        os.close(self._fd)

    def write(self, text: str) -> None:
        data, until = text.replace("\n", "\r\n").encode(), time.monotonic() + WRITE_SECONDS
        while data and time.monotonic() < until:
            try:
                if select.select([], [self._fd], [], 0.1)[1]:
                    data = data[os.write(self._fd, data[:512]) :]
            except BlockingIOError:
                pass
            except OSError:
                return

    def ask(self, prompt: str) -> bytes:
        """
        A line typed without being shown but for a star per byte.

        The terminal is put back whatever happens. While it is not as it was, signals are held back and looked for:
        one that arrived within the putting back would leave the person with a dead terminal.

        :raise Left: Ctrl-C, a signal, the caller has gone, or nothing was typed for :data:`PROMPT_SECONDS`.
        """
        from identree.agent.watch import Cancelled

        held = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        tick, self._watch.on_tick = self._watch.on_tick, _leave_if_signalled
        before = None
        try:
            before = termios.tcgetattr(self._fd)
            raw = [*before[:6], list(before[6])]
            raw[0] &= ~(termios.ICRNL | termios.INLCR | termios.IGNCR | termios.IXON | termios.ISTRIP)
            raw[3] &= ~(termios.ECHO | termios.ICANON | termios.ISIG | termios.IEXTEN)
            raw[6][termios.VMIN], raw[6][termios.VTIME] = 1, 0
            termios.tcsetattr(self._fd, termios.TCSANOW, raw)
            termios.tcflush(self._fd, termios.TCIFLUSH)  # what was typed before the question is no answer
            self.write(prompt)
            return self._read(time.monotonic() + PROMPT_SECONDS)
        except (OSError, termios.error):
            raise Cancelled from None  # the terminal is gone
        finally:
            if before is not None:
                try:
                    termios.tcflush(self._fd, termios.TCIFLUSH)  # the rest of a paste is no command for the shell
                    termios.tcsetattr(self._fd, termios.TCSANOW, before)
                except (OSError, termios.error):
                    pass
                self.write("\n")
            self._watch.on_tick = tick
            signal.pthread_sigmask(signal.SIG_SETMASK, held)

    def _read(self, until: float) -> bytes:
        from identree.agent.watch import Cancelled

        typed = bytearray()
        while True:
            if not self._watch.wait(self._fd, writing=False, until=until):
                raise Cancelled
            try:
                data = os.read(self._fd, 256)
            except BlockingIOError:
                continue
            if not data:
                raise Cancelled
            for byte in data:
                if byte in (10, 13):
                    return bytes(typed)
                if byte == 3:
                    raise Cancelled
                if byte in (8, 127):
                    if typed:
                        del typed[-1]
                        self.write("\b \b")
                elif byte >= 32 and len(typed) < MAX_TYPED_BYTES:
                    typed.append(byte)
                    self.write("*")


def _leave_if_signalled() -> None:
    from identree.agent.watch import Cancelled

    if signal.sigpending() & set(_SIGNALS):
        raise Cancelled


# The way in


def authenticate(
    config: Config,
    watch: Watch,
    user: str,
    tty: str,
    parent: int,
    lang: str,
    *,
    now: Callable[[], float] = time.time,
    places_: Places | None = None,
) -> None:
    """
    Ask for the password, once. Returns when it was right, and the use is on record.

    :raise Refused: it was wrong, it is too early to try again, or nobody can be asked.
    :raise Left: the person went away; that is no failure.
    """
    where = places_ or PLACES
    lift_limits()
    try:
        bcrypt = Bcrypt()
    except NoBcrypt as e:
        raise Refused("breakglass_unusable", "break-glass impossible", plain=False, detail=str(e)) from None
    limit = Limit(where.failures, now)
    counted = True
    try:
        _refuse(limit.seconds_left())
    except OSError as e:
        counted = _uncounted(watch, e)
    fd = open_terminal(tty, parent)
    if fd < 0:
        raise Refused("breakglass_no_terminal", "break-glass impossible", plain=False)
    terminal = Terminal(fd, watch)
    try:
        terminal.write(f"\n{messages.say(lang, 'breakglass_banner', server=config.server_url)}\n")
        terminal.write(f"{messages.say(lang, 'breakglass_explain', host=config.hostname)}\n\n")
        journal.record(serious=True, user=user, result="break-glass", reason="asked for the password")
        typed = terminal.ask(messages.say(lang, "breakglass_prompt"))
    finally:
        terminal.close()
    if counted:
        try:
            _refuse(limit.count())
        except OSError as e:
            _uncounted(watch, e)
    if not matches(config.breakglass_file, typed, bcrypt):
        raise Refused("breakglass_failed", "break-glass failed")
    limit.clear()
    journal.record(serious=True, user=user, result="break-glass opened", reason="the password was right")
    record_use(config.hostname, user, int(now()), where)


def _refuse(seconds: int) -> None:
    if seconds > 0:
        raise Refused("breakglass_limited", "break-glass refused", seconds=seconds)


def _uncounted(watch: Watch, error: OSError) -> bool:
    """Failures cannot be counted: slow is better than locked for good, and better than unlimited."""
    detail = os.strerror(error.errno or 0)
    journal.record(serious=True, result="warning", reason="break-glass failures cannot be counted", detail=detail)
    watch.sleep(UNCOUNTED_SECONDS)
    return False


# Uses, until the server knows of them


def record_use(hostname: str, user: str, at: int, where: Places | None = None) -> None:
    """
    Put a use on record, to be reported. Whoever typed the right password gets in even if that fails.

    :param at: unix seconds.
    """
    where = where or PLACES
    line = f"{hostname or 'unknown'} {user} {at}\n".encode()
    kept = 0
    for path in _copies(where):
        try:
            fd = open_private(path)
        except OSError as e:
            journal.record(serious=True, result="warning", reason="use not recorded", detail=f"{path} {e.strerror}")
            continue
        try:
            lock(fd)
            if os.fstat(fd).st_size + len(line) > MAX_USED_BYTES:
                raise OSError(errno.EFBIG, "too many uses wait for the server")
            os.write(fd, line)
            os.fsync(fd)
            kept += 1
        except OSError as e:
            journal.record(serious=True, result="warning", reason="use not recorded", detail=f"{path} {e.strerror}")
        finally:
            os.close(fd)
    if not kept:
        journal.record(serious=True, user=user, result="warning", reason="this break-glass use cannot be reported")


def pending_reports(where: Places | None = None) -> list[str]:
    """Uses that the server does not know of yet, oldest first: ``hostname username seconds``, without duplicates."""
    where = where or PLACES
    found: list[str] = []
    for path in _copies(where):
        try:
            text = read_private(path, MAX_USED_BYTES)
        except (FileNotFoundError, HashError):
            continue
        for line in text.split("\n")[:-1]:  # a line that was not written to its end is none
            if _parsed(line) is not None and line not in found:
                found.append(line)
    return sorted(found, key=lambda line: int(line.split(" ")[2]))


def flush_reports(client: Client, seconds: float = REPORT_SECONDS, where: Places | None = None) -> int:
    """
    Report the recorded uses; what the server did not take stays for the next time.

    :param seconds: in all.
    :return: how many are left.
    """
    where = where or PLACES
    if not places.to_report(where):
        return 0
    # One at a time, by a lock on the directory: it needs no file, and nobody but root can open it.
    directory = -1
    try:
        directory = os.open(where.state, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        if not lock(directory, 0):
            return len(pending_reports(where))
    except OSError:
        pass  # reported twice is better than not at all
    try:
        return _flush(client, time.monotonic() + seconds, where)
    finally:
        if directory >= 0:
            os.close(directory)


def _flush(client: Client, until: float, where: Places) -> int:
    waiting = pending_reports(where)
    done: set[str] = set()
    for line in waiting:
        left = until - time.monotonic()
        if left <= 0:
            break
        parsed = _parsed(line)
        assert parsed is not None
        body = json.dumps(dict(zip(("hostname", "username", "timestamp"), parsed)), separators=(",", ":")).encode()
        try:
            # half for the connection, half for the answer
            answer = client.request("POST", "/api/breakglass/report", body, timeout=left / 2)
        except (Unreachable, WireError) as e:
            journal.record(result="not reported", reason="break-glass use", detail=str(e))
            break
        if answer.status == 200:
            done.add(line)
            journal.record(user=parsed[1], result="reported", reason="break-glass use")
            continue
        journal.record(serious=True, result="not reported", reason="break-glass use", status=answer.status)
        if answer.status != 400:  # 400 is about this one; everything else would be said of the next as well
            break
    if done or not waiting:
        for path in reversed(_copies(where)):
            _drop(path, done)
    return len(waiting) - len(done)


def _drop(path: str, done: set[str]) -> None:
    """
    Take ``done`` out of a record, and what is no record. In place, because the file is watched and locked by its
    inode: the other copy is whole meanwhile, and what is sent twice is known to the server.
    """
    if not places.regular(path):
        return
    try:
        fd = open_private(path, append=False)
    except OSError:
        return
    try:
        if not lock(fd):
            return
        text = os.pread(fd, MAX_USED_BYTES, 0).decode("utf-8", "replace")
        rest = [line for line in text.split("\n")[:-1] if line not in done and _parsed(line) is not None]
        data = "".join(f"{line}\n" for line in rest).encode()
        if data:
            os.pwrite(fd, data, 0)  # first over the old text: cut short in between, lines stand there twice, none less
        os.ftruncate(fd, len(data))
        os.fsync(fd)
    except OSError as e:
        journal.record(serious=True, result="warning", reason="uses reported twice", detail=f"{path} {e.strerror}")
    finally:
        os.close(fd)


def _parsed(line: str) -> tuple[str, str, int] | None:
    words = line.split(" ")
    if len(words) != 3 or not words[0] or not words[1] or not words[2].isdigit() or len(words[2]) > 11:
        return None
    return words[0], words[1], int(words[2])


def _copies(where: Places) -> list[str]:
    """The files with uses: the second only where nobody else decides what the name of its directory means."""
    try:
        os.mkdir(where.state, 0o700)
    except OSError:
        pass  # it is there, or what follows says why not
    try:
        info = os.lstat(where.state)
    except OSError:
        return [where.used, where.kept]
    if stat.S_ISDIR(info.st_mode) and info.st_uid in (0, os.geteuid()) and not info.st_mode & 0o022:
        return [where.used, where.kept]
    detail = f"{where.state} is not a directory that only root can change"
    journal.record(serious=True, result="warning", reason="uses do not survive a restart", detail=detail)
    return [where.used]


def report_in_background(config: Config) -> None:
    """What the child of a sudo does when there are uses to report."""
    try:
        flush_reports(Client(config, Watch(parent=False)))
    except (configuration.ConfigError, OSError) as e:
        journal.record(result="not reported", reason="break-glass use", detail=str(e))


# verify-breakglass


def run(arguments: list[str]) -> int:
    """Ask for the password and say whether it is right; neither limited nor counted, because root asks."""
    from identree.agent.main import complain
    from identree.agent.pam import conf_path
    from identree.agent.text import note
    from identree.agent.watch import listen_to_signals

    if arguments in (["--help"], ["-h"]):
        note(USAGE)
        return 0
    if arguments:
        complain(USAGE)
        return 1
    environ = dict(os.environ)
    configuration.strip_environment()
    try:
        config = configuration.load(conf_path(environ), server=False)
        journal.enabled = config.syslog
        bcrypt = Bcrypt()
        if read_pending(config.breakglass_file) is None or places.regular(config.breakglass_file):
            read_hash(config.breakglass_file)
    except (configuration.ConfigError, HashError, NoBcrypt) as e:
        complain(f"identree verify-breakglass: {e}")
        return 1
    watch = Watch(parent=False)
    fd = open_terminal("", os.getpid())
    if fd < 0:
        complain("identree verify-breakglass: this needs a terminal to ask at")
        return 1
    terminal = Terminal(fd, watch)
    try:
        listen_to_signals()
        typed = terminal.ask(messages.say(messages.language(environ), "breakglass_prompt"))
    except Left:
        complain("identree verify-breakglass: interrupted")
        return 1
    finally:
        terminal.close()
    right = matches(config.breakglass_file, typed, bcrypt)
    complain("the password is right" if right else "the password is wrong")
    return 0 if right else 1
