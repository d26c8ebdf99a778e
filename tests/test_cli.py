"""The command line."""

import os
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

from twisted.trial.unittest import SynchronousTestCase

from identree import __version__, cli
from identree.core import audit
from identree.settings.registry import SETTINGS

MINIMAL = {
    "IDENTREE_OIDC_ISSUER_URL": "https://id.example.com",
    "IDENTREE_OIDC_CLIENT_ID": "identree",
    "IDENTREE_OIDC_CLIENT_SECRET": "client-secret-client-secret-client",
    "IDENTREE_EXTERNAL_URL": "https://identree.example.com",
    "IDENTREE_SHARED_SECRET": "shared-secret-0123456789abcdef01",
    "IDENTREE_LDAP_BASE_DN": "dc=example,dc=com",
}


class CommandLineTests(SynchronousTestCase):
    def run_command(self, *words: str, environ: Mapping[str, str] | None = None) -> tuple[int, str, str]:
        out, err = StringIO(), StringIO()
        if environ is not None:
            for name in [name for name in os.environ if name.startswith("IDENTREE_")]:
                del os.environ[name]
            os.environ.update(environ)
        with redirect_stdout(out), redirect_stderr(err):
            status = cli.main(words)
        return status, out.getvalue(), err.getvalue()

    def setUp(self) -> None:
        before = dict(os.environ)
        self.addCleanup(os.environ.update, before)
        self.addCleanup(os.environ.clear)

    def test_version(self) -> None:
        """Only the version."""
        self.assertEqual(self.run_command("--version"), (0, f"{__version__}\n", ""))

    def test_help(self) -> None:
        """Also when nothing is asked for."""
        self.assertEqual(self.run_command(), self.run_command("--help"))

    def test_unknown(self) -> None:
        """It is named, and where to look."""
        status, out, err = self.run_command("frobnicate")
        self.assertEqual((status, out), (1, ""))
        self.assertIn("'frobnicate'", err)
        self.assertIn("--help", err)

    def test_check_config(self) -> None:
        """Every setting with its source; no secret."""
        status, out, _ = self.run_command("check-config", environ=MINIMAL)
        self.assertEqual(status, 0)
        self.assertRegex(out, r"IDENTREE_EXTERNAL_URL +https://identree.example.com +environment")
        self.assertRegex(out, r"IDENTREE_CHALLENGE_TTL +\S+ +default")
        for secret in ("client-secret", "shared-secret"):
            self.assertNotIn(secret, out)

    def test_check_config_reports_all_mistakes(self) -> None:
        """Each with its variable and an example."""
        environ = {
            **MINIMAL,
            "IDENTREE_CHALLENGE_TTL": "soon",
            "IDENTREE_EXTERNAL_URL": "",
            "IDENTREE_API_KEYS": "short",
        }
        status, _, err = self.run_command("check-config", environ=environ)
        self.assertEqual(status, 1)
        for name in ("IDENTREE_CHALLENGE_TTL", "IDENTREE_EXTERNAL_URL", "IDENTREE_API_KEYS"):
            self.assertIn(name, err)
        self.assertIn("for example IDENTREE_CHALLENGE_TTL=", err)
        self.assertNotIn("Traceback", err)

    def test_check_config_shows_the_rest_too(self) -> None:
        """With mistakes, all settings are shown nevertheless; wrong ones have no value, and no secret shows."""
        environ = {
            **MINIMAL,
            "IDENTREE_CHALLENGE_TTL": "soon",
            "IDENTREE_GRACE_PERIOD": "2h",
            "IDENTREE_EXTERNAL_URL": "",
            "IDENTREE_SHARED_SECRET": "short-but-secret",
            "IDENTREE_ADMIN_GROUPS": "admins",
        }
        status, out, err = self.run_command("check-config", environ=environ)
        self.assertEqual(status, 1)
        self.assertRegex(out, r"(?m)^IDENTREE_CHALLENGE_TTL +\? +environment: wrong$")
        self.assertRegex(out, r"(?m)^IDENTREE_EXTERNAL_URL +\? +default: missing$")
        self.assertRegex(out, r"(?m)^IDENTREE_SHARED_SECRET +\? +environment: wrong$")
        self.assertRegex(out, r"(?m)^IDENTREE_GRACE_PERIOD +2h\S* +environment$")
        self.assertRegex(out, r"(?m)^IDENTREE_OIDC_CLIENT_SECRET +set +environment$")
        for setting in SETTINGS:
            self.assertRegex(out, rf"(?m)^{setting.variable} ")
        for secret in ("client-secret-", "short-but-secret"):
            self.assertNotIn(secret, out + err)
        # what follows from a wrong value only confuses
        self.assertNotIn("SHARED_SECRET also signs", out)

    def test_audit_verify(self) -> None:
        """A good log is 0, a changed one 1, a missing one 2."""
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        path = Path(directory.name) / "audit.jsonl"
        head, lines = audit.Head(), []
        for number in range(3):
            fields = {"timestamp": "2026-01-02T03:04:05Z", "event": "user_logged_in", "username": f"user{number}"}
            head, record = audit.seal(head, fields, version="dev", instance="ab")
            lines.append(record.plain + b"\n")
        path.write_bytes(b"".join(lines))
        self.assertEqual(self.run_command("audit", "verify", str(path))[0], 0)
        path.write_bytes(b"".join(lines).replace(b"user1", b"userX"))
        status, out, err = self.run_command("audit", "verify", str(path))
        self.assertEqual(status, 1)
        self.assertIn("audit.jsonl:", out + err)
        self.assertEqual(self.run_command("audit", "verify", str(path) + ".none")[0], 2)

    def test_audit_usage(self) -> None:
        """What is missing is said."""
        status, _, err = self.run_command("audit", "verify")
        self.assertEqual((status, "usage: identree audit verify" in err), (2, True))

    def test_demo_usage(self) -> None:
        """An unknown option is named."""
        status, _, err = self.run_command("demo", "--listen", "0.0.0.0")
        self.assertEqual((status, "--listen" in err), (2, True))


class HealthCheckTests(SynchronousTestCase):
    def ask(self, status: int) -> int:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status if self.path == "/healthz" else 404)
                self.end_headers()
                self.wfile.write(b'{"status":"x"}')

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        thread = Thread(target=server.handle_request)
        thread.start()
        try:
            with redirect_stdout(StringIO()):
                return cli.main(["healthcheck", f"http://127.0.0.1:{server.server_port}"])
        finally:
            thread.join()
            server.server_close()

    def test_well(self) -> None:
        """200 is 0."""
        self.assertEqual(self.ask(200), 0)

    def test_unhealthy(self) -> None:
        """503 is 1."""
        self.assertEqual(self.ask(503), 1)

    def test_no_url(self) -> None:
        """What is no URL is said."""
        err = StringIO()
        with redirect_stderr(err):
            self.assertEqual(cli.main(["healthcheck", "http://127.0.0.1:port"]), 2)
        self.assertIn("not a URL", err.getvalue())

    def test_nobody(self) -> None:
        """No answer is 1, with a sentence."""
        err = StringIO()
        with redirect_stderr(err):
            self.assertEqual(cli.main(["healthcheck", "http://127.0.0.1:9"]), 1)
        self.assertIn("does not answer", err.getvalue())
        self.assertNotIn("Traceback", err.getvalue())
