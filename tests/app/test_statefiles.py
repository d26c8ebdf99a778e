"""State files: suspicion, and following changes."""

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from twisted.internet.defer import Deferred, execute
from twisted.trial.unittest import SynchronousTestCase

from identree.app.statefiles import BadStateFile, StateFile


def parse(raw: bytes | None) -> str:
    if raw == b"nonsense":
        raise ValueError("this is nonsense")
    return "absent" if raw is None else raw.decode()


def inline(function: Callable[[], object]) -> Deferred[object]:
    return execute(function)


class StateFileTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = Path(directory.name) / "hosts.json"

    def write(self, text: str, mode: int = 0o600) -> None:
        fresh = self.path.with_suffix(".new")
        fresh.write_text(text)
        fresh.chmod(mode)
        fresh.rename(self.path)

    def file(self, limit: int = 100) -> StateFile[str]:
        return StateFile(str(self.path), limit, parse, inline)

    def refresh(self, file: StateFile[str]) -> bool:
        return self.successResultOf(Deferred.fromCoroutine(file.refresh()))

    def test_absent(self) -> None:
        """No file is a meaning of its own."""
        self.assertEqual(self.file()(), "absent")

    def test_followed(self) -> None:
        """A new, an unchanged and a changed file."""
        file = self.file()
        self.write("one")
        self.assertEqual((self.refresh(file), file()), (True, "one"))
        self.assertEqual((self.refresh(file), file()), (False, "one"))
        self.write("two, longer")
        self.assertEqual((self.refresh(file), file()), (True, "two, longer"))

    def test_gone(self) -> None:
        """A file that is removed while we run restricts on: its loss must not open what it closed."""
        self.write("restricting")
        file = self.file()
        self.path.unlink()
        self.assertEqual((self.refresh(file), file()), (False, "restricting"))
        self.write("again")
        self.assertEqual((self.refresh(file), file()), (True, "again"))

    def test_succession(self) -> None:
        """What a new content means may depend on what was in force."""
        self.write("one")
        file = StateFile(str(self.path), 100, parse, inline, lambda before, after: f"{after} after {before}")
        self.write("two, longer")
        self.assertEqual((self.refresh(file), file()), (True, "two, longer after one"))

    def test_directory(self) -> None:
        """A directory in its place is trouble with the file, not a bug that ends the following of others."""
        self.write("good")
        file = self.file()
        self.path.unlink()
        self.path.mkdir(mode=0o700)
        self.assertEqual((self.refresh(file), file()), (False, "good"))

    def test_bad_content_keeps_the_last_good(self) -> None:
        """What cannot be understood changes nothing."""
        self.write("good")
        file = self.file()
        self.write("nonsense")
        self.assertEqual((self.refresh(file), file()), (False, "good"))

    def test_bad_content_at_start(self) -> None:
        """At start it is refused, with the path and the problem."""
        self.write("nonsense")
        self.assertIn("this is nonsense", str(self.assertRaises(BadStateFile, self.file)))

    def test_writable_by_others(self) -> None:
        """A file that others may write is not trusted, and the remedy is named."""
        self.write("good", 0o666)
        self.assertIn("chmod go-w", str(self.assertRaises(BadStateFile, self.file)))

    def test_symlink(self) -> None:
        """A symlink is not followed."""
        self.path.symlink_to("/etc/hostname")
        self.assertRaises(BadStateFile, self.file)

    def test_fifo(self) -> None:
        """Something that would block is refused instead."""
        os.mkfifo(self.path)
        self.assertIn("regular", str(self.assertRaises(BadStateFile, self.file)))

    def test_too_large(self) -> None:
        """The size is bounded."""
        self.write("x" * 101)
        self.assertRaises(BadStateFile, self.file)
