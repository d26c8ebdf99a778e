"""A command that stores passwords, with real processes."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from identree.app.escrow import SHOWN_BYTES, EscrowFailed, Stored
from identree.clients.escrow import command
from identree.clients.escrow.command import CommandBackend
from tests.clients.escrow.case import PASSWORD


def running(pid: int) -> bool:
    """No for one that has ended and whose parent has yet to hear of it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class CommandTests(TestCase):
    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.directory)

    def backend(self, script: str, prefixes: tuple[str, ...] = (), **environment: str) -> CommandBackend:
        return CommandBackend(
            reactor=reactor,
            command=script,
            prefixes=prefixes,
            environment={"PATH": os.environ["PATH"], "OUT": str(self.directory), **environment},
        )

    async def failure(self, script: str) -> EscrowFailed:
        try:
            await self.backend(script, ("OUT",)).store("web1", PASSWORD)
        except EscrowFailed as failed:
            self.assertNotIn(PASSWORD, failed.reason + failed.output)
            return failed
        raise AssertionError("it was stored")

    def read(self, name: str) -> str:
        return (self.directory / name).read_text()

    async def gone(self, pid: int) -> None:
        """Wait until the process is no more."""
        for _ in range(1000):
            if not running(pid):
                return
            await deferLater(reactor, 0.02)
        os.kill(pid, signal.SIGKILL)
        raise AssertionError("it still runs")

    async def appeared(self, name: str) -> str:
        for _ in range(1000):
            path = self.directory / name
            if path.exists() and path.read_text().endswith("\n"):
                return path.read_text().strip()
            await deferLater(reactor, 0.02)
        raise AssertionError(f"{name} was not written")

    async def test_password(self) -> None:
        """It comes on the standard input, without a newline, and nowhere else."""
        script = 'cat > "$OUT/in"; env > "$OUT/env"; tr "\\0" " " < /proc/$$/cmdline > "$OUT/args"'
        stored = await self.backend(script, ("OUT",)).store("web1", PASSWORD)
        self.assertEqual((stored, self.read("in")), (Stored(), PASSWORD))
        self.assertNotIn(PASSWORD, self.read("env") + self.read("args"))

    async def test_environment(self) -> None:
        """Only the promised names, and what the prefixes let through."""
        backend = self.backend(
            'env > "$OUT/env"', ("OUT", "AWS_"), HOME="/h", AWS_REGION="r", SECRET="s", BREAKGLASS_HOSTNAME="no"
        )
        await backend.store("web1", PASSWORD)
        given = dict(line.split("=", 1) for line in self.read("env").splitlines())
        # the shell's own
        for name in ("PWD", "SHLVL", "OLDPWD", "_"):
            given.pop(name, None)
        self.assertEqual(
            given,
            {
                "PATH": os.environ["PATH"],
                "HOME": "/h",
                "OUT": str(self.directory),
                "AWS_REGION": "r",
                "BREAKGLASS_HOSTNAME": "web1",
            },
        )

    async def test_item_id(self) -> None:
        """The first line of the output that has one."""
        stored = await self.backend("cat >/dev/null; echo hello; echo ' item_id=a/b '; echo item_id=c").store(
            "web1", "x"
        )
        self.assertEqual(stored, Stored(item_id="a/b"))

    async def test_not_of_errors(self) -> None:
        """The standard error has no item id."""
        self.assertEqual(await self.backend("echo item_id=a >&2").store("web1", "x"), Stored())

    async def test_status(self) -> None:
        """Every status but 0 is a failure; what the command said goes with it, the password struck out."""
        failed = await self.failure("cat >&2; echo; echo sorry; exit 3")
        self.assertIn("status 3", failed.reason)
        self.assertEqual(failed.output.split(), ["***", "sorry"])

    async def test_signal(self) -> None:
        """So is an end by a signal."""
        self.assertIn("signal 9", (await self.failure("kill -9 $$")).reason)

    async def test_unknown_command(self) -> None:
        """The shell says what it does not find."""
        failed = await self.failure("/nowhere/escrow")
        self.assertIn("status 127", failed.reason)
        self.assertIn("/nowhere/escrow", failed.output)

    async def test_does_not_read(self) -> None:
        """A command that never looks at its input decides by its status."""
        self.assertEqual(await self.backend("exit 0").store("web1", "x" * 1024), Stored())

    async def test_much_output(self) -> None:
        """What comes beyond the limit is read and thrown away; the command is not held up by it."""
        script = (
            "head -c 5000000 /dev/zero | tr '\\0' x; echo; echo item_id=late; head -c 5000000 /dev/zero >&2; exit 1"
        )
        failed = await self.failure(script)
        self.assertEqual(len(failed.output.encode()) <= SHOWN_BYTES, True)
        self.assertEqual(await self.backend(script.replace("exit 1", "exit 0")).store("web1", "x"), Stored())

    async def test_too_slow(self) -> None:
        """It is killed with everything that it has started."""
        self.patch(command, "OPERATION_SECONDS", 2.0)
        failed = await self.failure('sleep 600 & echo $! > "$OUT/child"; echo waiting; wait')
        self.assertIn("within 2 s", failed.reason)
        self.assertEqual(failed.output, "waiting")
        await self.gone(int(await self.appeared("child")))

    async def test_cancelled(self) -> None:
        """So it is when nobody waits any more."""
        script = 'echo $$ > "$OUT/self"; sleep 600 & echo $! > "$OUT/child"; wait'
        waiting = Deferred.fromCoroutine(self.backend(script, ("OUT",)).store("web1", PASSWORD))
        pids = [int(await self.appeared(name)) for name in ("self", "child")]
        waiting.cancel()
        await self.assertFailure(waiting, CancelledError)
        for pid in pids:
            await self.gone(pid)
        # its end has reached us too
        await deferLater(reactor, 0.1)

    async def test_leaves_something_running(self) -> None:
        """What it has left running with open outputs is neither waited for nor killed."""
        script = 'sleep 600 & echo $! > "$OUT/child"; echo item_id=a'
        self.assertEqual(await self.backend(script, ("OUT",)).store("web1", "x"), Stored(item_id="a"))
        pid = int(await self.appeared("child"))
        os.kill(pid, signal.SIGKILL)
        await self.gone(pid)

    async def test_not_started(self) -> None:
        """A host's name or a password that cannot be passed on is refused before anything runs."""
        for hostname, password in (("..", "x"), ("a\nb", "x"), ("web1", "\ud800")):
            with self.assertRaises(EscrowFailed):
                await self.backend('echo x > "$OUT/ran"', ("OUT",)).store(hostname, password)
        self.assertEqual(list(self.directory.iterdir()), [])

    async def test_never_revealed(self) -> None:
        """There is no way back."""
        backend: Any = self.backend("true")
        self.assertEqual((backend.name, backend.revealable), ("command", False))
        with self.assertRaises(EscrowFailed):
            await backend.retrieve("web1", "a", "")
        await backend.check()
        await backend.keep()

    def test_settings(self) -> None:
        """An empty command, and one that no process can be given."""
        for script in ("", "  ", "a\0b"):
            with self.assertRaises(ValueError) as raised:
                self.backend(script)
            self.assertIn("IDENTREE_ESCROW_COMMAND", str(raised.exception))
