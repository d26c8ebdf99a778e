"""``status``: what this host knows of itself, without asking anybody."""

from __future__ import annotations

import json
import os
import sys
import time

from identree.agent import certificates, doctor_pam, heartbeat, places, tokencache
from identree.agent import config as configuration
from identree.agent.build import COMMIT, VERSION
from identree.agent.certificates import NotACertificate, day
from identree.agent.setup_pam import FILES
from identree.agent.text import clean, note
from identree.agent.units import AGENT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from identree.agent.config import Config

USAGE = """\
usage: identree status [--json]

Say how this host stands with identree: heartbeat, certificate, break-glass password, token cache, PAM. Nobody is asked;
identree doctor looks deeper. Run it as root.

  --json  for programs"""

# What root alone can see, to others.
UNKNOWN = "unknown"


def own_path() -> str:
    """The helper that is installed, or that is running."""
    return AGENT if os.path.exists(AGENT) else os.path.abspath(sys.argv[0])


class Status:
    """
    :param conf: of ``client.conf``. :param now: unix seconds. :param where: what is kept on this host.
    :ivar facts: all of it, for programs; times are RFC 3339, ages and rests whole seconds, None what is not known.
    """

    def __init__(
        self,
        conf: str,
        *,
        root: str = "/",
        agent: str = "",
        now: Callable[[], float] = time.time,
        where: places.Places | None = None,
    ) -> None:
        self._root, self._agent, self._now = root, agent or own_path(), now()
        self._where = where or places.PLACES
        self.problem = ""
        self.facts: dict[str, object] = {"version": VERSION, "commit": COMMIT}
        self.facts["pam"] = {os.path.basename(file): doctor_pam.state(root, file, self._agent) for file in FILES}
        self.facts["heartbeat"] = self._heartbeat()
        self.facts["pending_reports"] = self._reports()
        config: Config | None = None
        try:
            config = configuration.load(conf, server=False)
        except (configuration.ConfigError, OSError) as e:
            self.problem = str(e)
        self.facts["config"] = {"path": conf, "problem": self.problem}
        if config is not None:
            self.facts["hostname"], self.facts["server"] = config.hostname, config.server_url
            self.facts["certificate"] = self._certificate(config)
            self.facts["breakglass"] = self._breakglass(config)
            self.facts["token_cache"] = self._cache(config)

    def _heartbeat(self) -> dict[str, object]:
        try:
            record = heartbeat.Record.read(self._where.state)
        except OSError:
            return {"known": False}
        return {
            "known": True,
            "last": _rfc3339(record.heard),
            "age_seconds": int(self._now - record.heard) if record.heard else None,
            "last_try": _rfc3339(record.tried),
            "problem": record.problem,
            "clock_ahead_seconds": None if record.ahead is None else round(record.ahead, 1),
        }

    def _reports(self) -> int | None:
        from identree.agent import breakglass

        if os.geteuid() != 0 and places.to_report(self._where):
            return None
        return len(breakglass.pending_reports(self._where))

    def _certificate(self, config: Config) -> dict[str, object]:
        if not config.client_cert:
            return {"path": None}
        found: dict[str, object] = {"path": config.client_cert, "problem": "", "not_after": None, "left_seconds": None}
        try:
            own = certificates.read_file(config.client_cert)[0]
        except (OSError, NotACertificate) as e:
            found["problem"] = clean(getattr(e, "strerror", None) or str(e), 200)
            return found
        found["not_after"], found["left_seconds"] = _rfc3339(own.not_after), int(own.not_after - self._now)
        found["serial"], found["names"] = own.serial, own.names
        return found

    def _breakglass(self, config: Config) -> dict[str, object]:
        path = config.breakglass_file
        found: dict[str, object] = {"enabled": config.breakglass_enabled, "file": path, "hash": "none"}
        try:
            info = os.lstat(path)
            found["hash"] = "present" if places.regular(path) else "switched off (not a regular file)"
            found["age_seconds"] = max(0, int(self._now - info.st_mtime))
        except OSError as e:
            if not isinstance(e, FileNotFoundError):
                found["hash"] = UNKNOWN
        found["rotation_days"] = config.rotation_days
        found["rotation_due"] = places.due(path, config.rotation_days, "", self._now)
        found["rotation_unsettled"] = places.regular(path + places.PENDING)
        # it is written when an automatic rotation fails
        found["rotation_failed_lately"] = places.recently(self._where.attempt, self._now, places.DAY_SECONDS)
        return found

    def _cache(self, config: Config) -> dict[str, object]:
        off = tokencache.off(config)
        if off:
            return {"on": False, "why": off}
        try:
            kept: int | None = tokencache.count(config, config.hostname)
        except OSError:
            kept = None
        return {"on": True, "directory": config.token_cache_dir, "tokens": kept}

    # For people

    def lines(self) -> list[str]:
        facts = self.facts
        rows = [
            ("version", f"{VERSION} ({COMMIT})" if COMMIT else VERSION),
            ("host", str(facts.get("hostname") or UNKNOWN)),
            ("server", str(facts.get("server") or "not set")),
            ("configuration", self.problem or str(_part(facts, "config")["path"])),
            ("sudo asks", ", ".join(f"{name}: {state}" for name, state in _part(facts, "pam").items())),
            ("heartbeat", self._heartbeat_line()),
        ]
        if "certificate" in facts:
            rows += [
                ("certificate", self._certificate_line()),
                ("break-glass", self._breakglass_line()),
                ("rotation", self._rotation_line()),
                ("token cache", self._cache_line()),
            ]
        reports = facts["pending_reports"]
        rows.append(("unreported uses", UNKNOWN if reports is None else str(reports)))
        return [f"{name + ':':17}{text}" for name, text in rows]

    def _heartbeat_line(self) -> str:
        beat = _part(self.facts, "heartbeat")
        if not beat["known"]:
            return f"{UNKNOWN} (run this as root)"
        text = f"{_age(beat['age_seconds'])} ago" if beat["last"] else "never"
        return f"{text}; the last try failed: {beat['problem']}" if beat["problem"] else text

    def _certificate_line(self) -> str:
        found = _part(self.facts, "certificate")
        if not found["path"]:
            return "none"
        if found["problem"]:
            return f"{found['path']}: {found['problem']}"
        left = found["left_seconds"]
        assert isinstance(left, int)
        ends = day(self._now + left)
        return f"good until {ends} ({_age(left)} left)" if left > 0 else f"ENDED on {ends}; run: identree renew-cert"

    def _breakglass_line(self) -> str:
        found = _part(self.facts, "breakglass")
        if not found["enabled"]:
            return "off (IDENTREE_BREAKGLASS_ENABLED)"
        if found["hash"] != "present":
            return f"{found['file']}: {found['hash']}"
        return f"the password is {_age(found['age_seconds'])} old, and changed after {found['rotation_days']} days"

    def _rotation_line(self) -> str:
        found = _part(self.facts, "breakglass")
        if found["rotation_unsettled"]:
            return "begun and not settled: the old and the new password are both valid; run: identree rotate-breakglass"
        failed = "; the last automatic try failed, the system log says why" if found["rotation_failed_lately"] else ""
        due = {"": "not due", "missing": "due: there is no password", "age": "due: the password is old"}
        return due.get(str(found["rotation_due"]), str(found["rotation_due"])) + failed

    def _cache_line(self) -> str:
        found = _part(self.facts, "token_cache")
        if not found["on"]:
            return f"off: {found['why']}"
        return f"on; {UNKNOWN if found['tokens'] is None else found['tokens']} kept"


def _part(facts: dict[str, object], name: str) -> dict[str, object]:
    value = facts[name]
    assert isinstance(value, dict)
    return value


def _rfc3339(seconds: float) -> str | None:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds)) if seconds else None


def _age(seconds: object) -> str:
    """``3d``, ``5h``, ``12m``, ``40s``."""
    assert isinstance(seconds, int)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size}{unit}"
    return f"{max(seconds, 0)}s"


def run(arguments: list[str]) -> int:
    """0 when the configuration can be used."""
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
    status = Status(conf_path(environ))
    if arguments:
        note(json.dumps(status.facts, indent=2))
    else:
        for line in status.lines():
            note(clean(line, 500))
    return 1 if status.problem else 0
