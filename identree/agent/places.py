"""
What every ``sudo`` looks at in passing: is there a break-glass use to report, is the password to be changed?

Looking costs some calls of lstat; all that follows from it happens in a child that nobody waits for (spec/host-agent
sections 2, 9.6, 9.7).
"""

from __future__ import annotations

import os
import signal
import stat
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# Beside the hash file.
LOCK, PENDING, SIGNAL = ".lock", ".pending", ".signal"

DAY_SECONDS = 86400

# The clocks of host and server may differ so much; the remembered signal keeps this from rotating twice.
SKEW_SECONDS = 300

# After a failure the next automatic try comes this much later, however often sudo is used meanwhile.
PAUSE_SECONDS = 600

# Nothing that the child does takes longer, with three tries to reach the vault.
CHILD_SECONDS = 180

MAX_SIGNAL_BYTES = 128


class Places:
    """
    Files whose names are fixed.

    :ivar failures: wrong passwords, for the rate limit. :ivar used: uses to report; auditd watches it.
    :ivar kept: a copy that survives a reboot. :ivar attempt: when the last automatic rotation failed.
    """

    def __init__(self, run: str = "/var/run", state: str = "/var/lib/identree") -> None:
        self.failures = f"{run}/identree-breakglass-failures"
        self.used = f"{run}/identree-breakglass-used"
        self.attempt = f"{run}/identree-breakglass-attempt"
        self.warned = f"{run}/identree-breakglass-warned"
        self.state = state
        self.kept = f"{state}/breakglass-used"


PLACES = Places()


def regular(path: str) -> bool:
    """Whether a regular file is there; a symbolic link is none."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def usable(file: str) -> bool:
    """
    Whether the break-glass password can be asked for: its hash is there, or at least the first password of this host
    that may be in the vault already.
    """
    try:
        return stat.S_ISREG(os.lstat(file).st_mode)
    except FileNotFoundError:
        return regular(file + PENDING)
    except OSError:
        return False


def to_report(places: Places) -> bool:
    for path in (places.used, places.kept):
        try:
            if os.lstat(path).st_size:
                return True
        except OSError:
            pass
    return False


def recently(path: str, now: float, seconds: float) -> bool:
    """Whether ``path`` was written within the last ``seconds``."""
    try:
        return 0 <= now - os.lstat(path).st_mtime < seconds
    except OSError:
        return False


def due(file: str, days: int, signalled: str, now: float) -> str:
    """
    Why the password is to be changed, or nothing: ``unsettled``, ``missing``, ``age``, ``signal``.

    :param signalled: the server's ``rotate_breakglass_before``, verified; empty when it sent none.
    :param now: unix seconds.
    """
    if regular(file + PENDING):
        return "unsettled"
    try:
        info = os.lstat(file)
    except FileNotFoundError:
        return "missing"
    except OSError:
        return ""
    if not stat.S_ISREG(info.st_mode):
        return ""  # somebody's decision against break-glass, or an attack; both end here
    age = now - info.st_mtime
    if age >= days * DAY_SECONDS or age < -DAY_SECONDS:  # a date in the future says nothing about the age
        return "age"
    before = instant(signalled)
    if before is None or before > now + DAY_SECONDS or info.st_mtime >= before + SKEW_SECONDS:
        return ""
    return "signal" if before > honoured(file) else ""


def honoured(file: str) -> float:
    """The last signal that this host has followed, in unix seconds; minus infinity when there was none."""
    try:
        fd = os.open(file + SIGNAL, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return float("-inf")
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_uid not in (0, os.geteuid()) or info.st_mode & 0o022:
            return float("-inf")
        found = instant(os.read(fd, MAX_SIGNAL_BYTES).decode("ascii", "replace").strip())
    except OSError:
        return float("-inf")
    finally:
        os.close(fd)
    return float("-inf") if found is None else found


def instant(text: str) -> float | None:
    """Unix seconds of an RFC 3339 time; None when it is none. By hand: Python 3.9 does not know ``Z``."""
    date, rest = text[:10], text[11:]
    if len(text) < 20 or len(text) > 40 or not text.isascii() or text[10] not in "Tt " or date[4] + date[7] != "--":
        return None
    clock, zone = rest[:8], rest[8:]
    if clock[2] + clock[5] != "::":
        return None
    fraction = 0.0
    if zone.startswith("."):
        end = 1
        while end < len(zone) and zone[end].isdigit():
            end += 1
        if end == 1:
            return None
        fraction, zone = float("0" + zone[:end]), zone[end:]
    numbers = (date[:4], date[5:7], date[8:], clock[:2], clock[3:5], clock[6:])
    if not all(number.isdigit() for number in numbers):
        return None
    year, month, day, hour, minute, second = map(int, numbers)
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    lengths = (31, 29 if leap else 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
    if (
        not year
        or not 1 <= month <= 12
        or not 1 <= day <= lengths[month - 1]
        or hour > 23
        or minute > 59
        or second > 60
    ):
        return None
    shift = 0
    if zone not in ("Z", "z"):
        if len(zone) != 6 or zone[0] not in "+-" or zone[3] != ":" or not (zone[1:3] + zone[4:]).isdigit():
            return None
        shift = (int(zone[1:3]) * 60 + int(zone[4:])) * (60 if zone[0] == "+" else -60)
    past = year - 1
    days = past * 365 + past // 4 - past // 100 + past // 400 + sum(lengths[: month - 1]) + day - 719163
    return days * 86400.0 + hour * 3600 + minute * 60 + second - shift + fraction


def detach(task: Callable[[], None]) -> None:
    """
    Run ``task`` in a process of its own that keeps nobody waiting: in its own session, with nothing of ours open, and
    ended after :data:`CHILD_SECONDS`. Whatever goes wrong in it goes to the system log.
    """
    try:
        middle = os.fork()
    except OSError as e:
        from identree.agent import journal

        journal.record(serious=True, result="warning", reason="no background process", detail=e.strerror or "")
        return
    if middle:
        try:
            os.waitpid(middle, 0)
        except OSError:
            pass
        return
    try:
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, signal.SIG_DFL)
        os.setsid()
        if os.fork():
            os._exit(0)
        os.chdir("/")
        os.umask(0o077)
        if "syslog" in sys.modules:
            import syslog

            syslog.closelog()  # else it would go on writing to its descriptor's number, whatever that is by then
        null = os.open("/dev/null", os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2:
                try:
                    os.close(int(name))
                except OSError:
                    pass  # the one that listed them
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        signal.alarm(CHILD_SECONDS)
        task()
    except BaseException:
        from identree.agent import journal

        journal.bug()
    finally:
        os._exit(0)
