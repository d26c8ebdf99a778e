"""The JSON log sink, on real files; only what a healthy file system never does is faked."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from identree.sinks.formats import CEF, FORMATS, OCSF, Format
from identree.sinks.jsonl import JsonLog, SinkError, Target, parse_target
from tests.sinks.records import lines, sealed


class TargetTests(SynchronousTestCase):
    def test_off(self) -> None:
        """An empty value is off."""
        self.assertIsNone(parse_target("  "))

    def test_stdout(self) -> None:
        """``stdout`` is standard output."""
        self.assertEqual(parse_target("stdout"), Target(None))

    def test_prefix(self) -> None:
        """``file:`` is stripped once."""
        self.assertEqual(parse_target("file:/a/b.log"), Target(Path("/a/b.log")))
        self.assertEqual(parse_target("file:file:x"), Target(Path("file:x")))

    def test_bare(self) -> None:
        """A bare path is a file."""
        self.assertEqual(parse_target("/a/b.log"), Target(Path("/a/b.log")))

    def test_nothing_named(self) -> None:
        """A value without a file name is refused with an example."""
        for text in ("file:", "file:/var/log/", "/a\0b"):
            with self.assertRaisesRegex(ValueError, "for example, file:/var/log"):
                parse_target(text)


class Base(SynchronousTestCase):
    def setUp(self) -> None:
        temporary = TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.directory = Path(temporary.name) / "log"
        self.path = self.directory / "audit.log"
        self.troubles: list[SinkError] = []

    def log(self, **changes: object) -> JsonLog:
        log = JsonLog(Target(self.path), trouble=self.troubles.append, **changes)
        self.addCleanup(log.close)
        return log


class FileTests(Base):
    def test_lines(self) -> None:
        """Each record is its P-form and LF, in order, after what was there."""
        records = sealed(5)
        self.log().write(records[:2])
        self.log().write(records[2:])
        self.assertEqual(self.path.read_bytes(), lines(records))

    def test_modes(self) -> None:
        """Every new parent directory has mode 0750, the file 0640."""
        self.path = self.directory / "a" / "b" / "audit.log"
        before = os.umask(0)
        self.addCleanup(os.umask, before)
        self.log().open()
        modes = [stat.S_IMODE(path.stat().st_mode) for path in (self.path, self.path.parent, self.path.parent.parent)]
        self.assertEqual(modes, [0o640, 0o750, 0o750])

    def test_symlink(self) -> None:
        """A symbolic link is refused, and its target stays as it is."""
        self.directory.mkdir()
        target = self.directory / "target"
        target.write_bytes(b"")
        self.path.symlink_to(target)
        error = self.assertRaises(SinkError, self.log().open)
        self.assertEqual(error.errno, errno.ELOOP)
        self.assertEqual(
            str(error),
            f"the audit log {self.path} cannot be written (Too many levels of symbolic links): it is a symbolic link; "
            "name the real file",
        )

    def test_not_a_file(self) -> None:
        """A FIFO without a reader and a directory are refused at once."""
        self.directory.mkdir()
        os.mkfifo(self.path)
        self.assertIn("no regular file", str(self.assertRaises(SinkError, self.log().open)))
        self.path.unlink()
        self.path.mkdir()
        self.assertIn("it is a directory", str(self.assertRaises(SinkError, self.log().open)))

    def test_renamed_from_outside(self) -> None:
        """A file that was renamed by others is left, and a new one is begun."""
        records = sealed(2)
        log = self.log()
        log.write(records[:1])
        self.path.rename(self.directory / "moved")
        log.write(records[1:])
        self.assertEqual(self.path.read_bytes(), lines(records[1:]))

    def test_synced(self) -> None:
        """With fsync ``always`` a batch is synced once; with the other policies not before it is answered."""
        for policy, calls in (("always", 1), ("interval", 0), ("off", 0)):
            log = self.log(fsync=policy)
            with mock.patch("os.fdatasync") as synced:
                log.write(sealed(10))
            self.assertEqual(synced.call_count, calls)

    def test_writing_after_close(self) -> None:
        """Closing is not the end: the next write opens again."""
        log = self.log()
        log.write(sealed(2)[:1])
        log.close()
        log.write(sealed(2)[1:])
        self.assertEqual(self.path.read_bytes(), lines(sealed(2)))

    def test_emptied_from_outside(self) -> None:
        """A file that was emptied in place (copytruncate) goes on at its new end, also when a write fails."""
        records = sealed(3)
        log = self.log()
        log.write(records[:1])
        os.truncate(self.path, 0)
        with mock.patch("os.fdatasync", side_effect=OSError(errno.EIO, "Input/output error")):
            self.assertRaises(SinkError, log.write, records[1:2])
        self.assertEqual(self.path.read_bytes(), b"")
        log.write(records[1:])
        self.assertEqual(self.path.read_bytes(), lines(records[1:]))

    def test_reopened(self) -> None:
        """After ``reopen`` the next record goes to the file that has the name then."""
        records = sealed(2)
        log = self.log()
        log.write(records[:1])
        log.reopen()
        self.path.rename(self.directory / "moved")
        log.write(records[1:])
        self.assertEqual((self.directory / "moved").read_bytes(), lines(records[:1]))
        self.assertEqual(self.path.read_bytes(), lines(records[1:]))


class IntervalTests(Base):
    """With fsync ``interval``."""

    def setUp(self) -> None:
        super().setUp()
        self.interval = self.log(fsync="interval")
        self.synced: list[str] = []
        fsync, fdatasync = os.fsync, os.fdatasync

        def name(file: int) -> str:
            return "directory" if stat.S_ISDIR(os.fstat(file).st_mode) else "file"

        def directory(file: int) -> None:
            self.synced.append(name(file))
            fsync(file)

        def data(file: int) -> None:
            self.synced.append(name(file))
            fdatasync(file)

        self.enterContext(mock.patch("os.fsync", directory))
        self.enterContext(mock.patch("os.fdatasync", data))

    def test_nothing_written(self) -> None:
        """Before the first record there is nothing to sync."""
        self.interval.sync()
        self.assertEqual(self.synced, [])

    def test_once(self) -> None:
        """What was written is synced by the next call and not again; the new file's name with it."""
        self.interval.write(sealed(2))
        self.interval.write(sealed(2))
        self.assertEqual(self.synced, [])
        self.interval.sync()
        self.assertEqual(self.synced, ["file", "directory"])
        self.interval.sync()
        self.assertEqual(self.synced, ["file", "directory"])
        self.interval.write(sealed(1))
        self.interval.sync()
        self.assertEqual(self.synced, ["file", "directory", "file"])

    def test_rotated(self) -> None:
        """A file is synced before a rotation lets go of it."""
        log = self.log(fsync="interval", max_bytes=1)
        log.write(sealed(1))
        self.assertEqual(self.synced[0], "file")

    def test_closed(self) -> None:
        """Closing syncs."""
        self.interval.write(sealed(1))
        self.interval.close()
        self.assertEqual(self.synced, ["file", "directory"])

    def test_other_policies(self) -> None:
        """With ``always`` nothing is left for the call to do, and with ``off`` it does nothing."""
        for policy in ("always", "off"):
            log = self.log(fsync=policy)
            log.write(sealed(1))
            self.synced.clear()
            log.sync()
            self.assertEqual(self.synced, [])

    def test_failure(self) -> None:
        """A failure says what may be lost, and the next call tries again."""
        self.interval.write(sealed(1))
        with mock.patch("os.fdatasync", side_effect=OSError(errno.EIO, "Input/output error")):
            error = self.assertRaises(SinkError, self.interval.sync)
        self.assertEqual(error.errno, errno.EIO)
        self.assertIn("may not be on the disk", str(error))
        self.interval.sync()
        self.assertEqual(self.synced, ["file", "directory"])

    def test_failure_at_rotation(self) -> None:
        """A file that cannot be synced when it is rotated away is told of, and the records go on."""
        log = self.log(fsync="interval", max_bytes=1)
        with mock.patch("os.fdatasync", side_effect=OSError(errno.EIO, "Input/output error")):
            log.write(sealed(1))
            log.write(sealed(2)[1:])
        self.assertEqual(len(self.troubles), 2)
        self.assertIn("may not be on the disk", str(self.troubles[0]))
        self.assertEqual((self.directory / "audit.log.1").read_bytes(), lines(sealed(2)[1:]))

    def test_standard_output(self) -> None:
        """Standard output has nothing to sync, close or open."""
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        self.addCleanup(os.close, writer)
        log = JsonLog(Target(), stdout=writer, fsync="interval")
        log.write(sealed(1))
        log.sync()
        log.reopen()
        log.write(sealed(2)[1:])
        self.assertEqual(os.read(reader, 65536), lines(sealed(2)))


class FormatTests(Base):
    def written(self, form: Format, count: int) -> bytes:
        return b"".join(form.text(record) + b"\n" for record in sealed(count))

    def test_lines(self) -> None:
        """Each record is one line of the format."""
        for form in FORMATS.values():
            with self.subTest(form.name):
                self.path = self.directory / form.name
                self.log(form=form).write(sealed(3))
                self.assertEqual(self.path.read_bytes(), self.written(form, 3))

    def test_output(self) -> None:
        """Standard output gets the format too."""
        reader, writer = os.pipe()
        self.addCleanup(os.close, reader)
        self.addCleanup(os.close, writer)
        JsonLog(Target(), stdout=writer, form=CEF).write(sealed(2))
        self.assertEqual(os.read(reader, 65536), self.written(CEF, 2))

    def test_torn(self) -> None:
        """A torn last line is cut off, in whatever format it was written and is written now."""
        self.directory.mkdir()
        for old in FORMATS.values():
            for new in FORMATS.values():
                whole, last = self.written(old, 2), old.text(sealed(3)[2])
                for torn in (last[:1], last[: len(old.begins)], last[:100], last):
                    self.path.write_bytes(whole + torn)
                    self.log(form=new).open()
                    self.assertEqual(self.path.read_bytes(), whole, (old.name, new.name))

    def test_last_seq(self) -> None:
        """The last record counts, also where the format was changed there and back."""
        records = sealed(6)
        for first, form in enumerate((OCSF, CEF, FORMATS["native"])):
            self.log(form=form).write(records[2 * first : 2 * first + 2])
            for reader in FORMATS.values():
                self.assertEqual(self.log(form=reader).last_seq("a1"), 2 * first + 1)

    def test_rotation(self) -> None:
        """The size is that of what is written."""
        log = self.log(form=OCSF, max_bytes=len(self.written(OCSF, 2)))
        log.write(sealed(3))
        self.assertEqual((self.directory / "audit.log.1").read_bytes(), self.written(OCSF, 2))


class FailureTests(Base):
    def test_full(self) -> None:
        """A full disk is an OSError with ENOSPC and a remedy; what was half written is taken back."""
        records = sealed(3)
        log = self.log()
        log.write(records[:1])
        write = os.write

        def half(file: int, data: bytes) -> int:
            if len(data) < 200:
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(file, data[: len(data) - 100])

        with mock.patch("os.write", half):
            error = self.assertRaises(SinkError, log.write, records[1:])
        self.assertEqual(error.errno, errno.ENOSPC)
        self.assertIn("free space", str(error))
        self.assertEqual(self.path.read_bytes(), lines(records[:1]))

    def test_recovers(self) -> None:
        """After a failure the same records can be written again, and stand there once."""
        records = sealed(3)
        log = self.log()
        with mock.patch("os.fdatasync", side_effect=OSError(errno.EIO, "Input/output error")):
            self.assertRaises(SinkError, log.write, records)
        log.write(records)
        self.assertEqual(self.path.read_bytes(), lines(records))

    def test_really_full(self) -> None:
        """/dev/full is no regular file, and refused as such."""
        log = JsonLog(Target(Path("/dev/full")))
        self.assertRaises(SinkError, log.open)

    def test_torn(self) -> None:
        """A torn last line is cut off at open, with zero bytes that a power cut left."""
        records = sealed(3)
        self.directory.mkdir()
        for torn in (records[2].plain[:50], b"{", b"\0" * 100, records[2].plain[:9] + b"\0\0", records[2].plain):
            self.path.write_bytes(lines(records[:2]) + torn)
            self.log().open()
            self.assertEqual(self.path.read_bytes(), lines(records[:2]))

    def test_torn_first(self) -> None:
        """The only line may be the torn one."""
        self.directory.mkdir()
        self.path.write_bytes(sealed(1)[0].plain[:40])
        self.log().write(sealed(1))
        self.assertEqual(self.path.read_bytes(), lines(sealed(1)))

    def test_not_ours(self) -> None:
        """A file that holds something else is not touched."""
        self.directory.mkdir()
        self.path.write_bytes(b"my only copy of a poem")
        error = self.assertRaises(SinkError, self.log().open)
        self.assertIn("does not look like an audit log", str(error))
        self.assertEqual(self.path.read_bytes(), b"my only copy of a poem")

    def test_whole_lines_not_ours(self) -> None:
        """Also when its last line is whole."""
        self.directory.mkdir()
        for content in (b"root:x:0:0:root:/root:/bin/bash\n", b"a\n\n", b"{}\n" * 1_000_000):
            self.path.write_bytes(content)
            error = self.assertRaises(SinkError, self.log().open)
            self.assertIn("neither its first nor its last line is a record", str(error))
            self.assertEqual(self.path.read_bytes(), content)

    def test_a_foreign_line(self) -> None:
        """A line that somebody has written into a log of ours is no reason to stop."""
        self.directory.mkdir()
        for content in (lines(sealed(1)) + b"# rotated by hand\n", b"# begun by hand\n" + lines(sealed(1))):
            self.path.write_bytes(content)
            self.log().write(sealed(2)[1:])
            self.assertEqual(self.path.read_bytes(), content + lines(sealed(2)[1:]))


class RotationTests(Base):
    def names(self) -> list[str]:
        return sorted(path.name for path in self.directory.iterdir())

    def test_after_the_write(self) -> None:
        """The record that reaches the size is the last of its file, and none is split."""
        records = sealed(3)
        log = self.log(max_bytes=len(lines(records[:2])))
        log.write(records)
        self.assertEqual((self.directory / "audit.log.1").read_bytes(), lines(records[:2]))
        self.assertEqual(self.path.read_bytes(), lines(records[2:]))

    def test_numbers(self) -> None:
        """The newest is PATH.1, and no more than the set number is kept."""
        records = sealed(6)
        log = self.log(max_bytes=1, max_files=3)
        for record in records:
            log.write([record])
        self.assertEqual(self.names(), ["audit.log", "audit.log.1", "audit.log.2", "audit.log.3"])
        kept = [(self.directory / f"audit.log.{number}").read_bytes() for number in (3, 2, 1)]
        self.assertEqual(kept, [lines([record]) for record in records[3:]])
        self.assertEqual(self.path.read_bytes(), b"")

    def test_counts_what_was_there(self) -> None:
        """The size of an existing file counts."""
        records = sealed(2)
        self.log().write(records[:1])
        self.log(max_bytes=len(lines(records))).write(records[1:])
        self.assertEqual((self.directory / "audit.log.1").read_bytes(), lines(records))

    def test_never(self) -> None:
        """A size of 0 never rotates."""
        self.log(max_bytes=0).write(sealed(50))
        self.assertEqual(self.names(), ["audit.log"])

    def test_failure_keeps_everything(self) -> None:
        """When the old files cannot be renamed, the record is written, the trouble told once, and no file lost."""
        records = sealed(4)
        log = self.log(max_bytes=1, max_files=2)
        log.write(records[:1])
        with mock.patch("os.rename", side_effect=OSError(errno.EACCES, "Permission denied", "x", None, "y")):
            log.write(records[1:2])
            log.write(records[2:3])
        self.assertEqual(len(self.troubles), 1)
        self.assertIn("goes on growing", str(self.troubles[0]))
        self.assertEqual((self.directory / "audit.log.1").read_bytes(), lines(records[:1]))
        self.assertEqual(self.path.read_bytes(), lines(records[1:3]))
        log.write(records[3:])
        self.assertEqual((self.directory / "audit.log.1").read_bytes(), lines(records[1:]))

    def test_stuck_live_file(self) -> None:
        """A live file that cannot be renamed does not push the old ones out, however often it is tried."""
        log = self.log(max_bytes=1, max_files=3)
        records = sealed(9)
        for record in records[:3]:
            log.write([record])
        rename = os.rename

        def stuck(old: Path, new: Path) -> None:
            if old == self.path:
                raise OSError(errno.EPERM, "Operation not permitted", str(old), None, str(new))
            rename(old, new)

        with mock.patch("os.rename", stuck):
            for record in records[3:]:
                log.write([record])
        self.assertEqual((self.directory / "audit.log.2").read_bytes(), lines(records[2:3]))
        self.assertEqual((self.directory / "audit.log.3").read_bytes(), lines(records[1:2]))

    def test_cannot_open_again(self) -> None:
        """When the new file cannot be opened, the record counts as written, and the next write tries again."""
        records = sealed(2)
        log = self.log(max_bytes=1)
        log.open()
        with mock.patch("os.open", side_effect=OSError(errno.EMFILE, "Too many open files")):
            log.write(records[:1])
        self.assertEqual(self.troubles[0].errno, errno.EMFILE)
        log.write(records[1:])
        self.assertEqual((self.directory / "audit.log.2").read_bytes(), lines(records[:1]))
        self.assertEqual((self.directory / "audit.log.1").read_bytes(), lines(records[1:]))


class LastSeqTests(Base):
    def test_none(self) -> None:
        """Without a file there is none."""
        self.assertIsNone(self.log().last_seq("a1"))

    def test_tail(self) -> None:
        """The last whole record counts; a torn one does not."""
        records = sealed(3)
        self.directory.mkdir()
        self.path.write_bytes(lines(records[:2]) + records[2].plain)
        self.assertEqual(self.log().last_seq("a1"), 1)

    def test_other_instances(self) -> None:
        """Records of other chains are passed over; one without the key is of the empty instance."""
        self.log().write([*sealed(4), *sealed(2, instance=""), *sealed(9, instance="b2")])
        log = self.log()
        self.assertEqual([log.last_seq(name) for name in ("a1", "", "b2", "c3")], [3, 1, 8, None])

    def test_just_rotated(self) -> None:
        """An empty file after a rotation makes PATH.1 count."""
        log = self.log(max_bytes=1)
        log.write(sealed(1))
        self.assertEqual(self.path.read_bytes(), b"")
        self.assertEqual(log.last_seq("a1"), 0)

    def test_long_file(self) -> None:
        """Only the end of a long file is read."""
        log = self.log(max_bytes=0, fsync="off")
        log.write(sealed(6000))
        self.assertGreater(self.path.stat().st_size, 1 << 20)
        self.assertEqual(log.last_seq("a1"), 5999)

    def test_strange_lines(self) -> None:
        """Lines that are no records are passed over."""
        self.log().write(sealed(2))
        with self.path.open("ab") as file:
            file.write(b'[]\nnull\n"x"\n{"seq":true,"instance":"a1"}\n\xff\n' + b"[" * 100_000 + b"\n")
        self.assertEqual(self.log().last_seq("a1"), 1)


class OutputTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reader, self.writer = os.pipe()
        self.addCleanup(os.close, self.reader)
        self.log = JsonLog(Target(), stdout=self.writer)

    def test_lines(self) -> None:
        """Standard output gets the same lines."""
        self.addCleanup(os.close, self.writer)
        self.log.write(sealed(2))
        self.assertEqual(os.read(self.reader, 65536), lines(sealed(2)))

    def test_no_memory(self) -> None:
        """Standard output cannot be asked what it got."""
        self.addCleanup(os.close, self.writer)
        self.assertIsNone(self.log.last_seq("a1"))

    def test_nobody_reads(self) -> None:
        """A closed pipe is a SinkError."""
        os.close(self.writer)
        error = self.assertRaises(SinkError, self.log.write, sealed(1))
        self.assertIn("standard output", str(error))

    def test_torn(self) -> None:
        """A record that was half written is ended by a line of its own before the repetition."""
        self.addCleanup(os.close, self.writer)
        write = os.write
        answers = iter((10, None))

        def half(file: int, data: bytes) -> int:
            length = next(answers)
            if length is None:
                raise OSError(errno.EIO, "Input/output error")
            return write(file, data[:length])

        with mock.patch("os.write", half):
            self.assertRaises(SinkError, self.log.write, sealed(1))
        self.log.write(sealed(1))
        self.assertEqual(os.read(self.reader, 65536), sealed(1)[0].plain[:10] + b"\n" + lines(sealed(1)))
