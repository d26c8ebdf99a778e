"""
``identree setup --remove``: give back what was before (spec/host-agent sections 10.7 and 17.3).

What nobody changed since is restored byte for byte; from what others changed only our part is taken out. PAM comes
first and the helper last: a rule without its helper locks everybody out of sudo, a helper without rule does nothing.
"""

from __future__ import annotations

import errno
import glob
import os
import shutil

from identree.agent import config as configuration
from identree.agent import renew, setup_pam, setup_sssd, units
from identree.agent.places import PLACES
from identree.agent.setup_files import (
    BACKUP,
    TEMPORARY,
    Commands,
    Entry,
    Journal,
    Look,
    SetupError,
    below,
    demand,
    digest,
    matching,
    read,
    reason,
    remove,
    resolve,
    sync_directory,
    systemd_runs,
    write,
)
from identree.agent.text import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

CONFIG_DIRECTORY = "/etc/identree"
# What deployed installers wrote beside the helper.
_OTHER_NAMES = ("identree-linux-amd64", "identree-linux-arm64")
# When a timer ran last; systemd keeps it for persistent ones.
_STAMPS = "/var/lib/systemd/timers/stamp-"


class Outcome:
    """:ivar new: the content to come, None for no file. :ivar remark: why it is not the original."""

    def __init__(self, old: bytes | None, new: bytes | None, *, whole: bool, remark: str = "") -> None:
        self.old, self.new, self.whole, self.remark = old, new, whole, remark


class Removal:
    """
    :param say: told what was done. :param warn: told what could not be.
    :param keep_files: the helper, its configuration and the break-glass password stay.
    """

    def __init__(
        self,
        root: str,
        agent: str,
        journal: Journal,
        commands: Commands,
        say: Callable[[str], None],
        warn: Callable[[str], None],
        *,
        keep_files: bool,
    ) -> None:
        self._root, self._agent, self._journal, self._commands = root, agent, journal, commands
        self._say, self._warn, self._keep_files = say, warn, keep_files
        self._unchanged: set[str] = set()
        self._undone_by: set[str] = set()
        self._complete_journal()

    def _complete_journal(self) -> None:
        """What an earlier version, or another installer, did without writing it down."""
        files = self._journal.files
        for path in setup_pam.FILES:
            real = resolve(self._root, path)
            name, now = self._journal.name(real), read(real)
            if name in files or now is None or not setup_pam.has_agent(now, self._agent):
                continue
            original = setup_pam.original(now, read(real + BACKUP), self._agent)
            entry = files[name] = Entry(existed=True, was=digest(original), kind="pam")
            entry.wrote.append(digest(now))
            entry.mixed = original is None
        ours = [units.RULES_FILE, units.CRON_FILE, *(f"{units.UNIT_DIRECTORY}/{name}" for name in units.NAMES)]
        ours += [f"{directory}/{setup_sssd.ANCHOR}" for directory in setup_sssd.ANCHOR_DIRECTORIES]
        for path in ours:
            real = resolve(self._root, path)
            if self._journal.name(real) not in files and read(real) is not None:
                files[self._journal.name(real)] = Entry(existed=False, was="", own=True)

    # What to do

    def _ordered(self) -> list[tuple[str, Entry]]:
        """PAM first; then what was done last."""
        entries = list(self._journal.files.items())
        return [each for each in entries if each[1].kind == "pam"] + [
            each for each in reversed(entries) if each[1].kind != "pam"
        ]

    def _outcome(self, name: str, entry: Entry) -> Outcome:
        real = below(self._root, name)
        if entry.own and os.path.islink(real):  # renew-cert has put it there
            return Outcome(b"", None, whole=True)
        now, saved = read(real), read(real + BACKUP)
        if entry.own:
            return Outcome(now, None, whole=True)
        if digest(now) == entry.was:
            return Outcome(now, now, whole=True)
        ours = digest(now) in entry.wrote or entry.pending or name in self._unchanged
        if ours and not entry.mixed:
            if not entry.existed:
                return Outcome(now, None, whole=True)
            if digest(saved) == entry.was:
                return Outcome(now, saved, whole=True)
        if now is None or entry.by in self._undone_by:
            return Outcome(now, now, whole=False)
        if entry.kind == "pam":
            new = setup_pam.strip(now, self._agent)
        elif entry.kind == "nsswitch":
            new = setup_sssd.without_sss(now, entry.lines)
        elif entry.kind == "lines":
            new = setup_sssd.without_lines(now, entry.lines)
        else:
            remark = "others changed it since, so it stays as it is"
            return Outcome(now, now, whole=False, remark=remark + (f"; see {real}{BACKUP}" if saved else ""))
        return Outcome(now, new, whole=False, remark="others changed it since, so only our lines were taken out")

    def preview(self) -> list[str]:
        """The lines that a dry run shows."""
        out = []
        for name, entry in self._ordered():
            outcome, real = self._outcome(name, entry), below(self._root, name)
            if outcome.new == outcome.old:
                continue
            out.append(f"[dry-run] would {'remove' if outcome.new is None else 'write'} {real}")
            if outcome.new is not None and outcome.old is not None:
                out += ["  " + line for line in setup_pam.difference(outcome.old, outcome.new)]
        if not self._keep_files:
            out += [f"[dry-run] would remove {path}" for path in self._files()]
        return out

    # Deeds

    def run(self) -> None:
        """:raise SetupError: something could not be undone; what could was, and a second run does the rest."""
        files = [] if self._keep_files else self._files()
        problems = self._files_of("pam")
        if not problems and not self._keep_files:
            problems += [f"{path} still runs the helper; take that rule out first" for path in self._still_used()]
        for step in (
            self._stop_timers,
            self._undo_profiles,
            lambda: self._files_of(""),
            self._new_files,
            self._reload,
            self._directories,
        ):
            try:
                problems += step()
            except (OSError, SetupError) as e:
                problems.append(reason(e))
        if problems:
            raise SetupError("; ".join(problems) + ". Run identree setup --remove again after that")
        for path in files[:-1]:
            self._delete(path)
        for left in glob.glob(glob.escape(self._journal.path) + TEMPORARY + "*"):
            os.unlink(left)
        remove(self._journal.path)
        state = os.path.dirname(self._journal.path)
        if self._keep_files:
            _remove_directory(state)  # what is in it is the helper's, and then stays
        else:
            shutil.rmtree(state, ignore_errors=True)
        for path in files[-1:]:
            self._delete(path)  # the helper itself: until here it can be run again

    def _files_of(self, kind: str) -> list[str]:
        problems = []
        for name, entry in self._ordered():
            if kind and entry.kind != kind:
                continue
            try:
                self._give_back(name, entry)
            except (OSError, SetupError) as e:
                problems.append(reason(e))
        return problems

    def _give_back(self, name: str, entry: Entry) -> None:
        real = below(self._root, name)
        for left in glob.glob(glob.escape(real) + TEMPORARY + "*") + glob.glob(
            glob.escape(real + BACKUP) + TEMPORARY + "*"
        ):
            os.unlink(left)
        outcome, saved = self._outcome(name, entry), real + BACKUP
        original = entry.existed and digest(read(saved)) == entry.was
        if outcome.new is None:
            remove(real)
        elif outcome.whole and outcome.new != outcome.old:
            os.rename(saved, real)  # with its owner, mode and label, in one step
            sync_directory(os.path.dirname(real))
        elif outcome.new != outcome.old:
            write(real, outcome.new, Look.of(real))
        if outcome.whole and original:
            remove(saved)
        if outcome.remark:
            self._warn(f"identree setup: {real}: {outcome.remark}")
        elif outcome.new != outcome.old:
            self._say(f"{real}: {'removed' if outcome.new is None else 'as before'}")
        del self._journal.files[name]
        if self._journal.found:
            self._journal.save()

    def _still_used(self) -> list[str]:
        found = []
        for path in matching(self._root, ["/etc/pam.d/*"]):
            data = read(path)
            if data is not None and setup_pam.has_agent(data, self._agent):
                found.append(path)
        return found

    def _stop_timers(self) -> list[str]:
        if systemd_runs(self._root, self._commands):
            for name in units.TIMERS:
                if os.path.lexists(below(self._root, f"{units.UNIT_DIRECTORY}/{name}")):
                    self._commands.run("systemctl", "disable", "--now", name)
        return []

    def _undo_profiles(self) -> list[str]:
        """
        Programs that keep what they were told elsewhere are told, too; that their files are as before is seen to
        afterwards.
        """
        problems, files = [], self._journal.files
        by: dict[str, list[str]] = {}
        for name, entry in files.items():
            if entry.by:
                by.setdefault(entry.by, []).append(name)
        unchanged = {
            name
            for names in by.values()
            for name in names
            if files[name].pending or digest(read(below(self._root, name))) in (files[name].was, *files[name].wrote)
        }
        self._unchanged |= unchanged
        if self._journal.facts.get("mkhomedir") == "pam-auth-update" and self._commands.find("pam-auth-update"):
            code, _ = self._commands.run("pam-auth-update", "--disable", "mkhomedir")
            if code == 0:
                self._undone_by.add("pam-auth-update")
        profile = self._journal.facts.get("authselect")
        if isinstance(profile, list) and not set(by.get("authselect", ())) <= unchanged:
            code, said = self._commands.run("authselect", "select", *map(str, profile))
            if code == 0:
                self._undone_by.add("authselect")
            else:
                problems.append(
                    f"the authselect profile was changed since and cannot be put back ({clean(said, 200)}); "
                    f"run: authselect select {' '.join(map(str, profile))}"
                )
        return problems

    def _new_files(self) -> list[str]:
        """What a program of the system made before the power failed."""
        there = set(self._journal.watching.get("there", ()))
        for real in matching(self._root, self._journal.watching.get("patterns", ())):
            if self._journal.name(real) not in there:
                remove(real)
        return []

    def _reload(self) -> list[str]:
        problems, facts = [], self._journal.facts
        systemd = systemd_runs(self._root, self._commands)
        if systemd:
            self._commands.run("systemctl", "daemon-reload")
        for name in units.TIMERS:
            remove(below(self._root, _STAMPS + name))
        trust = facts.get("trust")
        if isinstance(trust, str) and self._commands.find(trust):
            code, said = self._commands.run(trust, *setup_sssd.TRUST_FORGETS.get(trust, ()))
            if code != 0:
                problems.append(f"{trust} failed: {clean(said, 200)}")
        if self._commands.find("auditctl") and facts.get("audit"):
            for key in units.AUDIT_KEYS:
                # by key, so that nobody else's rules are touched; it fails where there are none
                self._commands.run("auditctl", "-D", "-k", key)
        before = facts.get("sssd")
        if isinstance(before, dict) and systemd:
            if not before.get("active"):
                self._commands.run("systemctl", "stop", "sssd.service")
            if not before.get("enabled"):
                self._commands.run("systemctl", "disable", "sssd.service")
            if before.get("active"):
                try:
                    demand(self._commands, "systemctl", "restart", "sssd.service")
                except SetupError as e:
                    problems.append(str(e))
        return problems

    def _directories(self) -> list[str]:
        renew.forget(below(self._root, CONFIG_DIRECTORY))
        for name in reversed(self._journal.directories):
            if name != self._journal.name(os.path.dirname(self._journal.path)):
                _remove_directory(below(self._root, name))
        return []

    # The helper's own files

    def _files(self) -> list[str]:
        """What an installer, the helper and its commands made; the program itself is the last."""
        hash_file, cache = configuration.DEFAULT_BREAKGLASS_FILE, ""
        try:
            config = configuration.load(resolve(self._root, configuration.DEFAULT_PATH), server=False)
            hash_file, cache = config.breakglass_file, config.token_cache_dir
        except configuration.ConfigError:
            pass  # its files are then where they are by default
        agent = resolve(self._root, self._agent)
        fixed = [hash_file, PLACES.failures, PLACES.used, PLACES.attempt, PLACES.warned]
        found = [resolve(self._root, path) for path in fixed]
        found += sorted(glob.glob(glob.escape(resolve(self._root, hash_file)) + ".*"))
        found += [resolve(self._root, path) for path in ("/run/identree", cache) if path and "identree" in path]
        found += [below(self._root, CONFIG_DIRECTORY)]
        found += [os.path.join(os.path.dirname(agent), name) for name in _OTHER_NAMES]
        found += [*sorted(glob.glob(glob.escape(agent) + ".*")), agent]
        return [path for path in dict.fromkeys(found) if os.path.lexists(path)]

    def _delete(self, path: str) -> None:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            remove(path)
        self._say(f"{path}: removed")


def _remove_directory(path: str) -> None:
    """An empty one; what others put something into stays."""
    try:
        os.rmdir(path)
    except OSError as e:
        if e.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.EBUSY):
            raise
