"""
The JSON log sink: one record per line, to standard output or to a file that rotates by size
(spec/audit-and-metrics section 6).

Everything here blocks. It belongs in one dedicated thread, which writes in order; nothing is shared with the reactor.
"""

from __future__ import annotations

import errno
import os
import select
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from twisted.logger import Logger

from identree.core.audit import Sealed
from identree.sinks import formats
from identree.sinks.formats import NATIVE, Format

_log = Logger()

FILE_MODE = 0o640
DIRECTORY_MODE = 0o750
# How far back from its end a log is read for the last record of an instance, and for the start of a torn line.
# A record is a few kilobytes at most.
TAIL_BYTES = 1 << 20
# How much of its beginning, to tell whether it is one.
HEAD_BYTES = 64
# How long a full pipe on standard output may hold up a record.
STDOUT_PATIENCE_SECONDS = 10.0

Fsync = Literal["always", "interval", "off"]


class SinkError(OSError):
    """
    The log cannot be written. The message names the path and what to do; ``errno`` is the system's, so that a full
    disk can be told from a missing right.
    """

    def __str__(self) -> str:
        return self.strerror or super().__str__()


@dataclass(frozen=True, slots=True)
class Target:
    """Where the JSON log goes: a file, or standard output when ``path`` is None."""

    path: Path | None = None


def parse_target(text: str) -> Target | None:
    """
    The value of ``IDENTREE_AUDIT_LOG``: ``stdout``, ``file:PATH`` or a bare path; None when empty (off).

    :raise ValueError: no usable path; the message says what would be right.
    """
    text = text.strip()
    if not text:
        return None
    if text == "stdout":
        return Target()
    name = text.removeprefix("file:")
    if not name or "\0" in name or name.endswith("/"):
        raise ValueError(f"{text!r} names no file; write stdout or, for example, file:/var/log/identree/audit.log")
    return Target(Path(name))


class JsonLog:
    """
    Appends sealed records to a log. What :meth:`write` returned for is in the log.

    A file is open for one writer only. After any failure it is cut back to where the batch began, so that a repetition
    leaves no torn line; when even that fails, or the process dies, the torn last line is cut off at the next open.
    A file that somebody renamed or removed (an external logrotate) is noticed and created anew; one that was emptied in
    place (``copytruncate``) goes on from its new end.

    :param max_bytes: rotate once a file has grown to this size; 0 never does.
    :param max_files: rotated files that are kept, ``PATH.1`` being the newest.
    :param fsync: ``always`` lets :meth:`write` return once the batch is on the disk (one ``fdatasync`` per batch and
        file), so that an answered approval survives a power cut. ``interval`` leaves that to :meth:`sync`, which
        somebody calls once a second, so that a power cut takes the last second. ``off`` leaves it to the kernel. Pipes
        and terminals have nothing to sync.
    :param form: how records are written. Records that are there already are known in every format.
    :param trouble: told, in the writing thread, what else went wrong, once per cause: why a rotation did not happen
        (the records are safe then and go on being appended), or that a file that is let go of could not be synced.
    """

    def __init__(
        self,
        target: Target,
        *,
        max_bytes: int = 100 << 20,
        max_files: int = 5,
        fsync: Fsync = "always",
        form: Format = NATIVE,
        trouble: Callable[[SinkError], None] | None = None,
        stdout: int = 1,
    ) -> None:
        self._path = target.path
        self._max_bytes = max_bytes
        self._max_files = max_files if max_files > 0 else 5
        self._fsync = fsync
        self._form = form
        self._trouble = trouble or _log_trouble
        self._stdout = stdout
        self._file: int | None = None
        self._size = 0
        # with ``interval``: what the next sync() has to bring to the disk, the file's content and its name
        self._unsynced = self._unsynced_name = False
        self._torn_output = False
        self._last_trouble: str | None = None

    def open(self) -> None:
        """
        Create or open the file, so that a mistake in the settings shows at start. Writing opens by itself.

        :raise SinkError: cannot be opened, is no regular file, or holds something else than an audit log.
        """
        if self._path is not None and self._file is None:
            self._open(self._path)

    def write(self, records: Sequence[Sealed]) -> None:
        """
        Append the records, in order, each as one line.

        :raise SinkError: not all of them are in the log; all may be written again.
        """
        if self._path is None:
            self._write_output(b"".join(self._form.text(record) + b"\n" for record in records))
            return
        if self._file is not None:
            size = _size_while_still(self._path, self._file)
            if size is None:
                self._let_go()
            else:
                self._size = size
        self.open()
        for chunk in self._chunks(records):
            self._append(self._path, chunk)
            if 0 < self._max_bytes <= self._size:
                self._rotate(self._path)

    def last_seq(self, instance: str) -> int | None:
        """
        The ``seq`` of the last whole record of this chain in the file, or in ``PATH.1`` when the file has none (it was
        rotated just before). None: nothing found in the last mebibyte of either, or the log is standard output.

        :raise SinkError: there is a file, but it cannot be read.
        """
        if self._path is None:
            return None
        for path in (self._path, _numbered(self._path, 1)):
            for line in _lines_backwards(path):
                place = formats.place(line)
                if place is not None and place[0] == instance:
                    return place[1]
        return None

    def sync(self) -> None:
        """
        With ``interval``: bring what was written since the last call to the disk. Called once a second, in the thread
        that writes; costs nothing when there is nothing to do, and does nothing with the other policies.

        :raise SinkError: it may not be on the disk. The next call tries again.
        """
        if self._path is None or self._file is None:
            return
        try:
            if self._unsynced:
                os.fdatasync(self._file)
                self._unsynced = False
            if self._unsynced_name:
                _sync_directory(self._path.parent)
                self._unsynced_name = False
        except OSError as e:
            raise SinkError(
                e.errno,
                f"the end of the audit log {self._path} may not be on the disk ({e.strerror}): check the disk, and "
                "compare the log with another sink or identree audit export",
            ) from e

    def reopen(self) -> None:
        """
        For SIGHUP: let go of the file, so that the next write opens what has the name then. In the thread that writes.

        :raise SinkError: as :meth:`sync`; the file is let go of nevertheless.
        """
        self.close()

    def close(self) -> None:
        """
        Close the file; a later write opens it again.

        :raise SinkError: as :meth:`sync`; it is closed nevertheless.
        """
        try:
            self.sync()
        finally:  # what an error says is lost is lost; a repetition on another descriptor would not bring it back
            if self._file is not None:
                file, self._file = self._file, None
                self._unsynced = self._unsynced_name = False
                os.close(file)

    def _let_go(self) -> None:
        """Close a file that has failed or is ours no more; that it cannot be synced is said, and no reason to stop."""
        assert self._path is not None
        try:
            self.close()
        except OSError as e:
            self._report(e if isinstance(e, SinkError) else _error(self._path, e))

    # -- standard output ----------------------------------------------------------------------------------------------
    def _write_output(self, data: bytes) -> None:
        if self._torn_output:  # end the line that the last failure left half written
            data = b"\n" + data
        view = memoryview(data)
        try:
            while view:
                try:
                    view = view[os.write(self._stdout, view) :]
                except BlockingIOError:
                    if not select.select([], [self._stdout], [], STDOUT_PATIENCE_SECONDS)[1]:
                        raise
        except OSError as e:
            self._torn_output = self._torn_output or 0 < len(view) < len(data)
            raise SinkError(
                e.errno, f"the audit log cannot be written to standard output ({e.strerror}); check what reads it"
            ) from e
        self._torn_output = False

    # -- the file -----------------------------------------------------------------------------------------------------
    def _chunks(self, records: Sequence[Sealed]) -> Iterator[bytes]:
        """The records' lines, cut where the file will have reached its size."""
        lines: list[bytes] = []
        pending = 0
        for record in records:
            lines.append(self._form.text(record) + b"\n")
            pending += len(lines[-1])
            if 0 < self._max_bytes <= self._size + pending:
                yield b"".join(lines)
                lines, pending = [], 0
        if lines:
            yield b"".join(lines)

    def _append(self, path: Path, data: bytes) -> None:
        file = self._file if self._file is not None else self._open(path)
        start = self._size
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(file, view) :]
            if self._fsync == "always":
                os.fdatasync(file)
        except OSError as e:
            with suppress(OSError):  # else the next open cuts the torn line off
                os.ftruncate(file, start)
            self._let_go()
            raise _error(path, e) from e
        self._unsynced = self._fsync == "interval"
        self._size += len(data)

    def _open(self, path: Path) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            _make_directory(path.parent)
            file = os.open(path, flags, FILE_MODE)
        except OSError as e:
            raise _error(path, e) from e
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise SinkError(
                    errno.EINVAL,
                    f"the audit log {path} is no regular file; name a file or write IDENTREE_AUDIT_LOG=stdout",
                )
            self._size = _cut_torn_line(path, file)
            if self._fsync == "always":
                _sync_directory(path.parent)
        except OSError as e:
            os.close(file)
            raise (e if isinstance(e, SinkError) else _error(path, e)) from e
        self._file = file
        self._unsynced_name = self._fsync == "interval"
        return file

    def _rotate(self, path: Path) -> None:
        """
        ``PATH.i`` becomes ``PATH.i+1``, ``PATH`` becomes ``PATH.1``; the oldest goes. It ends at the first failure,
        before a file that could not be moved away is overwritten, and shifts only as far as the first free number, so
        that repeated failures do not push the old files out one by one.
        """
        try:
            free = next((n for n in range(1, self._max_files) if not os.path.lexists(_numbered(path, n))), None)
            for number in range((free or self._max_files) - 1, 0, -1):
                os.rename(_numbered(path, number), _numbered(path, number + 1))
            os.rename(path, _numbered(path, 1))
        except OSError as e:
            self._report(
                SinkError(
                    e.errno,
                    f"the audit log {path} could not be rotated ({e.strerror}: {e.filename2 or e.filename}); it "
                    f"goes on growing: let the service create and rename files in {path.parent}",
                )
            )
            return
        self._let_go()
        try:
            self._open(path)
        except OSError as e:
            # What was written is safe in PATH.1; the next record tries to open again, and fails by itself if it must.
            self._report(e if isinstance(e, SinkError) else _error(path, e))
        else:
            self._last_trouble = None

    def _report(self, error: SinkError) -> None:
        if str(error) != self._last_trouble:
            self._last_trouble = str(error)
            self._trouble(error)


def _log_trouble(error: SinkError) -> None:
    _log.error("{error}", error=str(error))


_REMEDIES = {
    errno.ELOOP: "it is a symbolic link; name the real file",
    errno.EACCES: "give the service's user the right to write there",
    errno.EPERM: "give the service's user the right to write there",
    errno.EROFS: "the file system is read-only; name a file elsewhere",
    errno.ENOSPC: "the disk is full; free space or lower IDENTREE_AUDIT_LOG_MAX_SIZE and _MAX_FILES",
    errno.EDQUOT: "the quota is used up; free space or lower IDENTREE_AUDIT_LOG_MAX_SIZE and _MAX_FILES",
    errno.EISDIR: "it is a directory; name a file",
    errno.ENOTDIR: "a part of the path is no directory; correct the path",
    errno.ENXIO: "it is no regular file; name a file or write IDENTREE_AUDIT_LOG=stdout",
}


def _error(path: Path, e: OSError) -> SinkError:
    remedy = _REMEDIES.get(e.errno or 0, "check the path and the disk")
    return SinkError(e.errno, f"the audit log {path} cannot be written ({e.strerror}): {remedy}")


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")


def _make_directory(path: Path) -> None:
    """As ``mkdir -p``, but every new directory has the mode, not only the last."""
    for directory in (*reversed(path.parents), path):
        with suppress(FileExistsError):
            if not directory.is_dir():
                os.mkdir(directory, DIRECTORY_MODE)


def _sync_directory(path: Path) -> None:
    """New names survive a power cut only once their directory is on the disk."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _size_while_still(path: Path, file: int) -> int | None:
    """The size of the open file, if the name still stands for it; else None."""
    try:
        status = os.fstat(file)
        return status.st_size if os.path.samestat(os.lstat(path), status) else None
    except OSError:
        return None


def _tail(path: Path) -> bytes:
    """The last bytes of a file, at most ``TAIL_BYTES``; nothing when there is no file."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    except OSError as e:
        raise _error(path, e) from e
    with os.fdopen(file, "rb") as reader:
        reader.seek(max(0, os.fstat(file).st_size - TAIL_BYTES))
        return reader.read(TAIL_BYTES)


def _head(path: Path) -> bytes:
    """The first bytes of a file, enough to tell a record's format."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as reader:
            return reader.read(HEAD_BYTES)
    except OSError as e:
        raise _error(path, e) from e


def _not_ours(path: Path, why: str) -> SinkError:
    return SinkError(errno.EINVAL, f"{path} does not look like an audit log: {why}; name another file")


def _lines_backwards(path: Path) -> Iterator[bytes]:
    """Whole lines, the last first; what stands behind the last LF is torn and no line."""
    lines = _tail(path).split(b"\n")[:-1]
    return reversed(lines)


def _cut_torn_line(path: Path, file: int) -> int:
    """
    Cut off a last line without its LF, which a crash left: the outbox writes that record again, whole. Zero bytes,
    which some file systems leave after a power cut, go with it.

    :returns: the size of the file.
    :raise SinkError: what stands there is no record; nothing is cut from a file that is not ours.
    """
    size = os.fstat(file).st_size
    if size == 0:
        return 0
    tail = _tail(path)
    if tail.endswith(b"\n"):
        # somebody may have written a line into a log of ours; a file of which neither end is ours is none
        last = tail[tail.rfind(b"\n", 0, -1) + 1 :]
        if not formats.begins(last) and not formats.begins(_head(path)):
            raise _not_ours(path, "neither its first nor its last line is a record")
        return size
    torn = tail[tail.rfind(b"\n") + 1 :]
    start = torn.rstrip(b"\0")
    if not formats.may_begin(start) or (len(torn) == len(tail) and size > len(tail)):
        raise _not_ours(path, "its last line is no record")
    size -= len(torn)
    os.ftruncate(file, size)
    _log.warn("audit log {path}: cut off a torn last line of {length} bytes", path=str(path), length=len(torn))
    return size
