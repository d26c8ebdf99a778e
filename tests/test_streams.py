"""Standard streams that whoever starts us has closed (``>&-``), and the terminal that goes away."""

import os
import subprocess
import sys
import unittest
from collections.abc import Callable

HOLDERS = ("identree.serverlog", "identree.agent.main")


def closing(*descriptors: int) -> Callable[[], None]:
    def close() -> None:
        for descriptor in descriptors:
            os.close(descriptor)

    return close


class ClosedStreamTests(unittest.TestCase):
    def test_not_taken(self) -> None:
        """The next file that is opened does not get the number of a closed stream: no log is written into it."""
        for module in HOLDERS:
            code = (
                f"import os\nfrom {module} import keep_standard_streams\nkeep_standard_streams()\n"
                "fd = os.open('/', os.O_RDONLY)\nos.write(1, b'lost')\nos.write(2, b'lost')\nos._exit(fd)"
            )
            done = subprocess.run([sys.executable, "-c", code], preexec_fn=closing(0, 1, 2), timeout=60, check=False)
            self.assertGreater(done.returncode, 2, module)

    def test_open_ones_stay(self) -> None:
        """Streams that are there are left alone, and nothing stays open."""
        for module in HOLDERS:
            code = (
                f"import os\nfrom {module} import keep_standard_streams\nbefore = os.listdir('/proc/self/fd')\n"
                "keep_standard_streams()\nprint(before == os.listdir('/proc/self/fd'))"
            )
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=False)
            self.assertEqual(done.stdout, b"True\n", (module, done.stderr))


class HangupTests(unittest.TestCase):
    def outcome(self, terminal: bool, before: str = "") -> str:
        code = (
            "import os, signal\nfrom twisted.internet import reactor\nfrom identree.service import answer_hangup\n"
            # the tests themselves may have been started so that they outlive their terminal
            "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
            f"{before}\nanswer_hangup(reactor, terminal={terminal}, reopen=lambda: print('reopened', flush=True))\n"
            "reactor.callWhenRunning(os.kill, os.getpid(), signal.SIGHUP)\n"
            "reactor.callLater(1, lambda: (print('lives', flush=True), reactor.stop()))\n"
            "reactor.run()\nprint('ended')"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
        return done.stdout

    def test_server(self) -> None:
        """What a service manager or log rotation sends ends nothing, and opens the audit log anew."""
        self.assertEqual(self.outcome(terminal=False), "reopened\nlives\nended\n")

    def test_terminal_gone(self) -> None:
        """When its terminal goes the server ends in order."""
        self.assertEqual(self.outcome(terminal=True), "ended\n")

    def test_nohup(self) -> None:
        """Who asked for the signal to be ignored gets that."""
        self.assertEqual(self.outcome(True, "signal.signal(signal.SIGHUP, signal.SIG_IGN)"), "lives\nended\n")
