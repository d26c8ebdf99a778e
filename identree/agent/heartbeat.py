"""
``heartbeat`` (spec/host-agent section 12): this host is alive; what it is; and what waited for a connection: uses of
the break-glass password to be reported, and a new password that the server asks for.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import time

from identree.agent import certificates, clock, journal, places
from identree.agent import config as configuration
from identree.agent.build import VERSION
from identree.agent.text import clean, note
from identree.agent.watch import Watch
from identree.agent.wire import Client, Unreachable, WireError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from identree.agent.config import Config

USAGE = """\
usage: identree heartbeat

Tell the server that this host is alive, and report what waited for it. A timer does that every five minutes."""

OS_RELEASE = ("/etc/os-release", "/usr/lib/os-release")
MAX_RELEASE_BYTES = 16384
MAX_OS_CHARACTERS = 200

BEAT_SECONDS = 10.0
REPORT_SECONDS = 3.0

# The names that deployed servers know machines by.
ARCHITECTURES = {
    "x86_64": "amd64",
    "amd64": "amd64",
    "aarch64": "arm64",
    "arm64": "arm64",
    "i386": "386",
    "i486": "386",
    "i586": "386",
    "i686": "386",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
    "riscv64": "riscv64",
}

# In the state directory: when the server last heard of us, and what came of the last try.
RECORD = "heartbeat.json"
MAX_RECORD_BYTES = 4096
# Of an instant or a difference in it, in seconds: what is beyond the year 9999 is damage, and no date.
MAX_SECONDS = 253402300800


class BeatError(Exception):
    """The server did not take it; the text says why and what to do."""


def architecture(machine: str) -> str:
    if machine.startswith("armv"):
        return "arm64" if machine.startswith("armv8") and machine.endswith("64") else "arm"
    return ARCHITECTURES.get(machine, machine)


def os_info(paths: tuple[str, ...] = OS_RELEASE, machine: str = "") -> str:
    """``Debian GNU/Linux 12 (bookworm) (amd64)``; ``linux/amd64`` for a system that does not say."""
    kind = architecture(machine or os.uname().machine)
    for path in paths:
        try:
            with certificates.open_regular(path) as file:
                text = file.read(MAX_RELEASE_BYTES).decode("utf-8", "replace")
        except OSError:
            continue
        values = configuration.parse(text)
        name = values.get("PRETTY_NAME", "")
        if not name and values.get("NAME"):
            name = " ".join(filter(None, (values["NAME"], values.get("VERSION_ID", ""))))
        if name := clean(name, MAX_OS_CHARACTERS):
            return f"{name} ({kind})"
    return f"linux/{kind}"


class Record:
    """
    What is remembered of the heartbeats, for ``status`` and ``doctor``. Unix seconds; 0 for never.

    :ivar heard: when the server last took one. :ivar tried: when the last one was sent. :ivar problem: of that; empty
        when it was taken. :ivar ahead: seconds that our clock was ahead of the server's.
    """

    def __init__(self, heard: float = 0.0, tried: float = 0.0, problem: str = "", ahead: float | None = None) -> None:
        self.heard, self.tried, self.problem, self.ahead = heard, tried, problem, ahead

    @classmethod
    def read(cls, state: str) -> Record:
        """Nothing remembered, when there is nothing to be believed. :raise PermissionError: only root can see it."""
        from identree.agent.breakglass import HashError, read_private

        path = os.path.join(state, RECORD)
        if not os.access(state, os.X_OK) and os.path.isdir(state):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        try:
            _check_directory(state)
            value = json.loads(read_private(path, MAX_RECORD_BYTES))
            heard, tried, problem, ahead = (value[key] for key in ("heard", "tried", "problem", "ahead"))
        except (OSError, HashError, ValueError, KeyError, TypeError, RecursionError):
            return cls()
        if not all(_number(each) and each >= 0 for each in (heard, tried)) or not isinstance(problem, str):
            return cls()
        if not (ahead is None or _number(ahead)):
            return cls()
        return cls(float(heard), float(tried), clean(problem, 300), ahead)

    def write(self, state: str) -> None:
        """:raise OSError: it is not remembered."""
        from identree.agent.setup_files import Look, write

        value = {"heard": self.heard, "tried": self.tried, "problem": self.problem, "ahead": self.ahead}
        try:
            os.mkdir(state, 0o700)
        except FileExistsError:
            pass
        _check_directory(state)
        path = os.path.join(state, RECORD)
        write(path, json.dumps(value).encode() + b"\n", Look(0o600, os.geteuid(), os.getegid()))


def _number(value: object) -> bool:
    # JSON of Python's has infinities, and numbers that are none
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < MAX_SECONDS


def _check_directory(state: str) -> None:
    """:raise OSError: it is no directory, is a link to one, or others than root can change what is in it."""
    info = os.lstat(state)
    if not stat.S_ISDIR(info.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "it is not a directory", state)
    if info.st_uid not in (0, os.geteuid()) or info.st_mode & 0o022:
        raise PermissionError(errno.EPERM, "others than root can change what is in it", state)


class Heartbeat:
    """
    :param now: unix seconds. :param where: what is kept on this host.
    :param rotate: makes a new break-glass password because of a request, which it is given.
    """

    def __init__(
        self,
        config: Config,
        client: Client,
        *,
        now: Callable[[], float] = time.time,
        where: places.Places | None = None,
        rotate: Callable[[str], object] | None = None,
    ) -> None:
        self._config, self._client, self._now = config, client, now
        self._where = where or places.PLACES
        self._rotate = rotate or self._rotate_password

    def run(self) -> None:
        """:raise BeatError: the server did not take it."""
        record = Record.read(self._where.state)
        record.tried, record.problem = self._now(), ""
        try:
            wanted = self._beat(record)
            record.heard = self._now()
        except BeatError as e:
            record.problem = str(e)
            raise
        finally:
            try:
                record.write(self._where.state)
            except OSError as e:
                journal.record(result="warning", reason="heartbeat not remembered", detail=_told(e))
        self._report()
        if wanted:
            self._answer(wanted)

    def _beat(self, record: Record) -> str:
        """What the server asks for: an instant before which the break-glass password must not have been made."""
        config = self._config
        body = {"hostname": config.hostname, "version": VERSION, "os_info": os_info()}
        try:
            answer = self._client.request(
                "POST", "/api/agent/heartbeat", json.dumps(body, ensure_ascii=False).encode(), timeout=BEAT_SECONDS
            )
        except (Unreachable, WireError) as e:
            raise BeatError(f"{config.server_url} did not take the heartbeat: {clean(str(e), 200)}") from None
        record.ahead = clock.ahead(answer.headers, self._now())
        if answer.status in (401, 403):
            raise BeatError(
                f"{config.server_url} refuses this host (HTTP {answer.status}); check IDENTREE_SHARED_SECRET and "
                f"IDENTREE_HOSTNAME in {config.path}"
            )
        if answer.status not in (200, 204):
            raise BeatError(f"{config.server_url} did not take the heartbeat: HTTP {answer.status}")
        try:
            value = json.loads(answer.body) if answer.body and not answer.cut else None
        except (ValueError, RecursionError):
            value = None
        asked = value.get("rotate_breakglass_before") if isinstance(value, dict) else None
        return asked if isinstance(asked, str) else ""

    def _report(self) -> None:
        if places.to_report(self._where):
            from identree.agent import breakglass

            breakglass.flush_reports(self._client, REPORT_SECONDS, self._where)

    def _answer(self, wanted: str) -> None:
        """Nothing signs the request but the connection: without TLS it could be anybody's, so it does not count."""
        config = self._config
        if config.scheme != "https" or not config.breakglass_enabled:
            return
        if places.due(config.breakglass_file, config.rotation_days, wanted, self._now()):
            self._rotate(wanted)

    def _rotate_password(self, wanted: str) -> None:
        from identree.agent import rotation

        rotation.automatic(self._config, wanted)


def _told(error: OSError) -> str:
    # when a replacement fails, the second name is the one that people know
    return f"{error.filename2 or error.filename or 'file'}: {error.strerror}"


def run(arguments: list[str]) -> int:
    """0 when the server took it."""
    from identree.agent.main import complain
    from identree.agent.pam import conf_path

    if arguments in (["--help"], ["-h"]):
        note(USAGE)
        return 0
    if arguments:
        complain(USAGE)
        return 1
    environ = dict(os.environ)
    configuration.strip_environment()
    try:
        config = configuration.load(conf_path(environ))
        journal.enabled = config.syslog
        if not config.secret and not (config.client_cert and config.client_key):
            raise BeatError(
                f"this host has neither secret nor certificate; set IDENTREE_SHARED_SECRET in {config.path}"
            )
        if not config.hostname:
            raise BeatError(f"this host has no name; set IDENTREE_HOSTNAME in {config.path}")
        Heartbeat(config, Client(config, Watch(parent=False))).run()
        return 0
    except (configuration.ConfigError, BeatError) as e:
        complain(f"identree heartbeat: {e}")
    except OSError as e:
        complain(f"identree heartbeat: {e.filename or 'file'}: {e.strerror}; run this as root")
    return 1
