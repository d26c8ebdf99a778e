"""The fuzz target, for a fixed number of runs."""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from twisted.trial.unittest import SynchronousTestCase

from tests.fuzz.directory import seeds, write_seeds

ROOT = Path(__file__).parents[2]
# About ten seconds; the seed makes the runs the same each time.
RUNS = 30_000


class LdapFuzzTests(SynchronousTestCase):
    def test_runs(self) -> None:
        """From real clients' requests on, no input makes anything but an answer or a refusal."""
        with TemporaryDirectory() as name:
            corpus = Path(name) / "corpus"
            corpus.mkdir()
            write_seeds(corpus)
            command = [
                sys.executable,
                "-m",
                "tests.fuzz.ldap_target",
                f"-runs={RUNS}",
                "-seed=7",
                "-max_len=1024",
                "-len_control=0",
            ]
            command += ["-timeout=5", "-rss_limit_mb=1024", f"-artifact_prefix={name}/", str(corpus)]
            done = subprocess.run(
                command,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0"},
                capture_output=True,
                timeout=240,
            )
            crashes = {path.name: path.read_bytes().hex() for path in Path(name).iterdir() if path.is_file()}
        report = done.stderr.decode("utf-8", "replace")
        self.assertEqual((done.returncode, crashes), (0, {}), report[-4000:])
        self.assertIn("DONE", report)

    def test_seeds(self) -> None:
        """What it starts from is good: every request of a client among them is one to us too."""
        from identree.ldap import operations
        from identree.ldap.framing import Framer

        frames = [frame for seed in seeds() for frame in Framer().feed(seed[1:])]
        self.assertGreater(len(frames), 20)
        for frame in frames:
            operations.envelope(frame)
