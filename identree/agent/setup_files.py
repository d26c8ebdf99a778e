"""
Files of a system below a root, changed so that every change can be taken back (spec/host-agent sections 10 and 17.3).

Each is replaced in one step. What is about to happen goes to a journal first, and the original stays beside the file:
wherever the power fails, a second run or a removal knows what was ours.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import os
import stat

from identree.agent.text import clean

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

BACKUP = ".identree.bak"
STATE_DIRECTORY = "/var/lib/identree"
JOURNAL = f"{STATE_DIRECTORY}/setup.json"
TEMPORARY = ".identree-setup-"
# Every system has it, and nobody locks it: those who change passwords lock another file.
SETUP_LOCK = "/etc/shadow"

MAX_FILE_BYTES = 262144
MAX_LINKS = 16
# A host has some twenty files of ours; what could not be read again must not be written.
MAX_JOURNAL_BYTES = MAX_FILE_BYTES
# Of what a program says, in bytes.
MAX_OUTPUT_BYTES = 65536
# Programs of the distribution write caches and restart services; none of them needs longer.
COMMAND_SECONDS = 120.0

# Where distributions keep programs that an administrator runs; PATH is not asked, it may be anybody's.
_PROGRAM_PLACES = ("/usr/sbin", "/usr/bin", "/sbin", "/bin")


class SetupError(Exception):
    """The text says what is wrong and what to do."""


# Files below a root


def below(root: str, path: str) -> str:
    return path if root == "/" else root + path


def resolve(root: str, path: str) -> str:
    """
    The real file that ``path`` names below ``root``, whose links are followed as if ``root`` were ``/``.

    :raise SetupError: a circle of links.
    """
    parts, at, links = path.split("/"), "", 0
    while parts:
        part = parts.pop(0)
        if part in ("", "."):
            continue
        if part == "..":
            at = at.rpartition("/")[0]
            continue
        try:
            target = os.readlink(below(root, f"{at}/{part}"))
        except OSError as e:
            if e.errno not in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
                raise
            at = f"{at}/{part}"
            continue
        links += 1
        if links > MAX_LINKS:
            raise SetupError(f"{path} is a circle of symbolic links")
        if target.startswith("/"):
            at = ""
        parts = target.split("/") + parts
    return below(root, at)


def read(path: str, *, ours: bool = False) -> bytes | None:
    """
    The content of a regular file; None when there is none.

    :param ours: it decides what is done as root, so nobody else may have written it.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as e:
        if e.errno == errno.ELOOP:
            raise SetupError(f"{path} is a symbolic link; put a regular file there") from None
        raise
    info = os.fstat(fd)
    if stat.S_ISDIR(info.st_mode):  # which cannot become a file object
        os.close(fd)
        raise SetupError(f"{path} is a directory; put a regular file there")
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(info.st_mode):
            raise SetupError(f"{path} is not a regular file")
        if ours and (info.st_uid not in (0, os.geteuid()) or info.st_mode & 0o022):
            raise SetupError(f"{path} could have been written by others than root; move it away")
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise SetupError(f"{path} is larger than {MAX_FILE_BYTES} bytes")
    return data


class Look:
    """Mode, owner and security label that a file has, or is to have."""

    def __init__(self, mode: int, uid: int, gid: int, label: bytes = b"") -> None:
        self.mode, self.uid, self.gid, self.label = mode, uid, gid, label

    @classmethod
    def of(cls, path: str) -> Look:
        info = os.stat(path, follow_symlinks=False)
        try:
            label = os.getxattr(path, "security.selinux", follow_symlinks=False)
        except OSError:
            label = b""  # no label, or no SELinux
        return cls(stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid, label)


def write(path: str, data: bytes, look: Look) -> None:
    """Replace ``path`` in one step by ``data``. Without label in ``look`` it is the directory's."""
    temporary = f"{path}{TEMPORARY}{os.urandom(6).hex()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            view = data
            while view:
                view = view[os.write(fd, view) :]
            if (look.uid, look.gid) != (os.geteuid(), os.getegid()):
                os.fchown(fd, look.uid, look.gid)
            os.fchmod(fd, look.mode)
            if look.label:
                try:
                    os.setxattr(fd, "security.selinux", look.label)
                except OSError:
                    pass  # a file system without labels
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except BaseException as e:
        os.unlink(temporary)
        if isinstance(e, OSError) and e.errno is not None and e.filename is None:
            raise OSError(e.errno, os.strerror(e.errno), path) from None
        raise
    sync_directory(os.path.dirname(path))


def remove(path: str) -> None:
    """Remove a file, if it is there."""
    try:
        os.unlink(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    sync_directory(os.path.dirname(path))


def sync_directory(path: str) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def digest(data: bytes | None) -> str:
    """What the journal keeps of a content; empty for a file that is not there."""
    return "" if data is None else hashlib.sha256(data).hexdigest()


def reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


class Lock:
    """
    Keeps a second set-up of the same system out; on what is there anyway, so that it leaves nothing, killed or not.

    Of the running system that is a file that only root and its groups can open. Everybody can open ``/`` itself, and
    whoever held the lock could keep root from installing. Another root is locked by its directory.
    """

    def __init__(self, root: str) -> None:
        self._path = SETUP_LOCK if root == "/" and _private(SETUP_LOCK) else root

    def __enter__(self) -> None:
        self._fd = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._fd)
            raise SetupError("another identree setup is running here; wait until it has ended") from None

    def __exit__(self, *exc: object) -> None:
        os.close(self._fd)


def _private(path: str) -> bool:
    """Whether that is a file of root's which strangers cannot open."""
    try:
        info = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(info.st_mode) and info.st_uid == 0 and not info.st_mode & 0o006


# Programs of the system


class Commands:
    """
    The distribution's own programs.

    :param root: with another than ``/`` nothing is run, because it would change the system that we run on.
    """

    def __init__(self, root: str) -> None:
        self.usable = root == "/"

    def find(self, name: str) -> str:
        """The program's path, or nothing."""
        places = _PROGRAM_PLACES if self.usable else ()
        return next((path for path in (f"{place}/{name}" for place in places) if os.access(path, os.X_OK)), "")

    def run(self, *words: str, seconds: float = COMMAND_SECONDS) -> tuple[int, str]:
        """
        The exit status, and what was said, cleaned and cut.

        :param words: the first is a name for :meth:`find`.
        """
        import subprocess

        path = self.find(words[0])
        if not path:
            return 127, f"there is no {words[0]}"
        environ = {"PATH": ":".join(_PROGRAM_PLACES), "LANG": "C", "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
        try:
            done = subprocess.run(
                [path, *words[1:]],
                env=environ,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=seconds,
                start_new_session=True,
            )
        except OSError as e:
            return 126, reason(e)
        except subprocess.TimeoutExpired:
            return 124, f"{words[0]} did not end within {seconds:g} seconds"
        return done.returncode, done.stdout[:MAX_OUTPUT_BYTES].decode("utf-8", "replace")


def demand(commands: Commands, *words: str) -> str:
    """What the program said. :raise SetupError: it failed."""
    code, said = commands.run(*words)
    if code != 0:
        raise SetupError(f"{' '.join(words)} failed: {clean(said, 300) or code}")
    return said


def systemd_runs(root: str, commands: Commands) -> bool:
    """Whether systemd is what starts services here."""
    return bool(commands.find("systemctl")) and os.path.isdir(below(root, "/run/systemd/system"))


# The journal


class Entry:
    """
    What was done to one file.

    :ivar existed: it was there before us. :ivar was: digest of that. :ivar wrote: digests of all that we made of it.
    :ivar own: it is ours by its name, and goes whatever is in it.
    :ivar kind: how our part is taken out of a file that others changed since: ``pam``, ``nsswitch``, ``lines``.
    :ivar lines: what that needs to know.
    :ivar mixed: others changed it between two of our changes, so that the original is no longer what to go back to.
    :ivar pending: a program of the system was about to change it; that it ended is not known.
    :ivar by: that program.
    """

    __slots__ = ("by", "existed", "kind", "lines", "mixed", "own", "pending", "was", "wrote")

    def __init__(self, *, existed: bool, was: str, own: bool = False, kind: str = "", by: str = "") -> None:
        self.existed, self.was, self.own, self.kind, self.by = existed, was, own, kind, by
        self.wrote: list[str] = []
        self.lines: list[str] = []
        self.mixed = self.pending = False

    def as_dict(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_dict(cls, data: dict[str, object]) -> Entry:
        """:raise ValueError: it is none."""
        entry = cls(existed=False, was="")
        for name in cls.__slots__:
            value, kind = data.get(name), type(getattr(entry, name))
            if type(value) is not kind or (isinstance(value, list) and not all(isinstance(one, str) for one in value)):
                raise ValueError(name)
            setattr(entry, name, value)
        return entry


class Journal:
    """
    ``/var/lib/identree/setup.json``: what was done to this system, so that exactly that can be undone.

    :ivar files: by their real path below the root. :ivar directories: that we made, outer ones first.
    :ivar facts: how services and profiles were before us. :ivar watching: patterns, and what matched before a program
        was started that makes files there.
    :raise SetupError: the file is there and is none.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.path = resolve(root, JOURNAL)
        self.files: dict[str, Entry] = {}
        self.directories: list[str] = []
        self.facts: dict[str, object] = {}
        self.watching: dict[str, list[str]] = {}
        self.found = False
        text = read(self.path, ours=True)
        if text is None:
            return
        self.found = True
        try:
            data = json.loads(text)
            if data["version"] != 1:
                raise ValueError("version")
            self.files = {str(name): Entry.from_dict(entry) for name, entry in data["files"].items()}
            self.directories = [str(name) for name in data["directories"]]
            self.facts = dict(data["facts"])
            self.watching = {str(k): [str(one) for one in v] for k, v in data["watching"].items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise SetupError(
                f"{self.path} is not what identree wrote; move it away, and what cannot be known then stays as it is"
            ) from None

    def save(self) -> None:
        """:raise OSError: it could not be kept; then nothing may be changed."""
        data = {
            "version": 1,
            "files": {name: entry.as_dict() for name, entry in self.files.items()},
            "directories": self.directories,
            "facts": self.facts,
            "watching": self.watching,
        }
        text = json.dumps(data, indent=1, sort_keys=True).encode() + b"\n"
        if len(text) > MAX_JOURNAL_BYTES:
            raise SetupError(f"{self.path} would become larger than {MAX_JOURNAL_BYTES} bytes")
        write(self.path, text, Look(0o600, os.geteuid(), os.getegid()))

    def name(self, real: str) -> str:
        """The key of a file in :attr:`files`."""
        return real if self.root == "/" else real[len(self.root) :]


class Work:
    """
    Changes that are all made or all taken back.

    :param say: told about every file that was written.
    """

    def __init__(self, root: str, journal: Journal, commands: Commands, say: Callable[[str], None]) -> None:
        self.root, self.journal, self.commands, self._say = root, journal, commands, say
        self._before = read(journal.path)
        self._undo: list[Callable[[], None]] = []
        self._backups: list[str] = []
        self._made: list[str] = []
        self.changed: list[str] = []

    def begin(self) -> None:
        """The place of the journal; before anything else."""
        self.sweep(self.journal.path)
        self.directory(STATE_DIRECTORY, 0o700)
        self._settle()

    def _settle(self) -> None:
        """What a program made before the power failed counts as made."""
        journal = self.journal
        there = set(journal.watching.get("there", ()))
        for real in matching(self.root, journal.watching.get("patterns", ())):
            if journal.name(real) not in there:
                self._entry(journal.name(real), None).wrote.append(digest(read(real)))
        for name, entry in journal.files.items():
            if entry.pending:
                entry.pending = False
                entry.wrote.append(digest(read(below(self.root, name))))
        journal.watching = {}

    def get(self, path: str) -> bytes | None:
        return read(resolve(self.root, path))

    def fact(self, name: str, value: object) -> None:
        """How something was before us; the first word counts."""
        if name not in self.journal.facts:
            self.journal.facts[name] = value
            self.journal.save()

    def undo(self, deed: Callable[[], None]) -> None:
        """What is also to be done when everything is taken back: after what is done from here on has been."""
        self._undo.append(deed)

    def directory(self, path: str, mode: int) -> None:
        """Make a directory, and with 0755 those that lead to it, where they are missing."""
        real = resolve(self.root, path)
        if os.path.isdir(real):
            return
        above = os.path.dirname(path)
        if above != "/":
            self.directory(above, 0o755)
        name = self.journal.name(real)
        if name not in self.journal.directories:
            self.journal.directories.append(name)
            if os.path.isdir(os.path.dirname(self.journal.path)):
                self.journal.save()
        os.mkdir(real, 0o700)
        self._made.append(real)
        os.chmod(real, mode)
        sync_directory(os.path.dirname(real))

    def put(
        self,
        path: str,
        new: bytes,
        *,
        mode: int = 0o644,
        group: int = -1,
        own: bool = False,
        private: bool = False,
        kind: str = "",
        lines: Iterable[str] = (),
        original: bytes | None = None,
        mixed: bool = False,
    ) -> bool:
        """
        Make ``new`` the content of ``path``; whether that was a change.

        :param mode: of a file that is new or ours; others keep theirs, with their owner and label.
        :param group: likewise; -1 for root's. :param private: ``mode`` and ``group`` count in any case.
        :param own: :param kind: :param lines: see :class:`Entry`.
        :param original: what to go back to, if that is not the present content but the backup's.
        :param mixed: there is no original to go back to.
        """
        real = resolve(self.root, path)
        self.sweep(real)
        old = read(real)
        had = None if old is None else Look.of(real)
        fresh = Look(mode, os.geteuid(), os.getegid() if group < 0 else group)
        if had is None:
            look = fresh
        elif own or private:
            look = Look(fresh.mode, fresh.uid, fresh.gid, had.label)
        else:
            look = had
        if old == new and had is not None and (had.mode, had.uid, had.gid) == (look.mode, look.uid, look.gid):
            return False
        entry = self._entry(self.journal.name(real), old, own=own, kind=kind)
        if original is not None and not entry.wrote:
            entry.was = digest(original)
            entry.wrote.append(digest(old))
        elif old is not None and digest(old) not in (entry.was, *entry.wrote):
            entry.mixed = True
        entry.mixed = entry.mixed or mixed
        if digest(new) not in entry.wrote:
            entry.wrote.append(digest(new))
        entry.lines += [line for line in lines if line not in entry.lines]
        self.journal.save()
        if not own:
            self._keep(real, old, entry)
        self._undo.append(lambda: _put_back(real, old, had))
        write(real, new, look)
        self.changed.append(real)
        self._say(f"{real}: written")
        return True

    def _entry(self, name: str, old: bytes | None, *, own: bool = False, kind: str = "", by: str = "") -> Entry:
        entry = self.journal.files.get(name)
        if entry is None:
            entry = Entry(existed=old is not None, was=digest(old), own=own, kind=kind, by=by)
            self.journal.files[name] = entry
        return entry

    def _keep(self, real: str, old: bytes | None, entry: Entry) -> None:
        """The original beside the file, once. One of an earlier time, which was taken back since, is replaced."""
        saved = real + BACKUP
        if old is None or not entry.existed:
            return
        there = read(saved)
        if (there is None and entry.mixed) or (there != old and digest(old) == entry.was):
            if there is None:
                self._backups.append(saved)
            self.sweep(saved)
            write(saved, old, Look.of(real))

    def command(self, by: str, patterns: Iterable[str], *words: str) -> str:
        """
        Run a program of the system that changes files which match the shell patterns; what it said.

        :raise SetupError: it failed.
        """
        patterns = list(patterns)
        before = {real: (read(real), Look.of(real)) for real in matching(self.root, patterns)}
        new_entries, new_backups = [], []
        for real, (old, _) in before.items():
            name = self.journal.name(real)
            if name not in self.journal.files:
                new_entries.append(name)
            entry = self._entry(name, old, by=by)
            if digest(old) not in (entry.was, *entry.wrote):
                entry.mixed = True
            entry.pending = True
        self.journal.watching = {"patterns": patterns, "there": [self.journal.name(real) for real in before]}
        self.journal.save()
        for real, (old, _) in before.items():
            if not os.path.lexists(real + BACKUP):
                new_backups.append(real + BACKUP)
            self._keep(real, old, self.journal.files[self.journal.name(real)])
        self._undo.append(lambda: self._restore(patterns, before))
        said = demand(self.commands, *words)
        for real in {**before, **dict.fromkeys(matching(self.root, patterns))}:
            name, now = self.journal.name(real), read(real)
            if real not in before:
                self._entry(name, None, by=by).wrote.append(digest(now))
                self.changed.append(real)
                continue
            entry = self.journal.files[name]
            entry.pending = False
            if now == before[real][0]:
                if name in new_entries:
                    del self.journal.files[name]
                    if real + BACKUP in new_backups:
                        remove(real + BACKUP)
                continue
            self.changed.append(real)
            if digest(now) not in entry.wrote:
                entry.wrote.append(digest(now))
        self.journal.watching = {}
        self.journal.save()
        return said

    def _restore(self, patterns: list[str], before: dict[str, tuple[bytes | None, Look]]) -> None:
        for real in matching(self.root, patterns):
            if real not in before:
                remove(real)
        for real, (old, look) in before.items():
            _put_back(real, old, look)

    def sweep(self, real: str) -> None:
        """Remove what a run that was killed left beside the file."""
        for left in glob.glob(glob.escape(real + TEMPORARY) + "*"):
            os.unlink(left)

    def roll_back(self) -> list[str]:
        """Take everything back, the last change first, all that can be; returns what could not, and why."""
        stuck = []
        for deed in reversed(self._undo):
            try:
                deed()
            except (OSError, SetupError) as e:
                stuck.append(reason(e))
        if stuck:
            return stuck  # backups and journal stay, for whoever repairs it
        try:
            for saved in self._backups:
                remove(saved)
            # The journal goes before the directory that it is in, and names what is not gone yet until then.
            _put_back(self.journal.path, self._before, Look(0o600, os.geteuid(), os.getegid()))
            for real in reversed(self._made):
                os.rmdir(real)
        except OSError as e:
            stuck.append(reason(e))
        return stuck


def _put_back(real: str, old: bytes | None, look: Look | None) -> None:
    if old is None or look is None:
        remove(real)
    elif read(real) != old or (now := Look.of(real)).mode != look.mode or (now.uid, now.gid) != (look.uid, look.gid):
        try:
            write(real, old, look)
        except OSError as e:
            if e.errno not in (errno.ENOSPC, errno.EDQUOT) or not _restore_backup(real, old, look):
                raise


def _restore_backup(real: str, old: bytes, look: Look) -> bool:
    """On a full disk: let the copy beside the file be the file, which takes no space. Whether it is that content."""
    saved = real + BACKUP
    if read(saved) != old:
        return False
    os.chown(saved, look.uid, look.gid, follow_symlinks=False)
    os.chmod(saved, look.mode)
    os.rename(saved, real)
    sync_directory(os.path.dirname(real))
    return True


def matching(root: str, patterns: Iterable[str]) -> list[str]:
    """The regular files below ``root`` that match, without our own copies."""
    found = []
    for pattern in patterns:
        for path in sorted(glob.glob(below(glob.escape(root), pattern))):
            if BACKUP not in path and TEMPORARY not in path and stat.S_ISREG(os.lstat(path).st_mode):
                found.append(path)
    return found
