"""The demo's settings and its pretended host."""

from __future__ import annotations

import stat
from pathlib import Path
from tempfile import TemporaryDirectory

from twisted.trial.unittest import SynchronousTestCase

from identree.demo.run import DemoOptions, demo_settings, parse_arguments, refuse_non_loopback, write_host_config
from identree.settings.registry import BY_NAME, PREFIX, SETTINGS


class SettingsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.settings = demo_settings(Path("/tmp/demo"), 8090, 8091)

    def test_loopback(self) -> None:
        """The demo's own settings stay on this machine."""
        refuse_non_loopback(self.settings)

    def test_elsewhere(self) -> None:
        """An address or URL beyond this machine is refused by name."""
        for name, value in (
            ("LISTEN_ADDR", ":8090"),
            ("LISTEN_ADDR", "0.0.0.0:8090"),
            ("LISTEN_ADDR", "[::]:8090"),
            ("LISTEN_ADDR", ""),
            ("EXTERNAL_URL", "https://sudo.example"),
            ("OIDC_ISSUER_URL", "https://id.example"),
            ("OIDC_ISSUER_PUBLIC_URL", "http://10.1.2.3"),
            ("LDAP_LISTEN_ADDR", ":389"),
            ("LDAP_TLS_LISTEN_ADDR", ":636"),
            ("POCKETID_API_URL", "https://id.example"),
        ):
            with self.assertRaisesRegex(ValueError, f"IDENTREE_{name}"):
                refuse_non_loopback({**self.settings, f"IDENTREE_{name}": value})

    def test_one_directory(self) -> None:
        """No setting is left whose default is a file elsewhere."""
        elsewhere = [
            setting.name
            for setting in SETTINGS
            if str(setting.default).startswith(("/config/", "/etc/identree/"))
            and not self.settings.get(PREFIX + setting.name, "").startswith("/tmp/demo/")
        ]
        self.assertEqual(elsewhere, [])

    def test_known(self) -> None:
        """Every setting of the demo exists."""
        self.assertEqual([name for name in self.settings if name.removeprefix(PREFIX) not in BY_NAME], [])

    def test_secrets(self) -> None:
        """Secrets are long, different from each other, and new each time."""
        names = ("SHARED_SECRET", "SESSION_SECRET", "OIDC_CLIENT_SECRET", "POCKETID_API_KEY", "WEBHOOK_SECRET")
        again = demo_settings(Path("/tmp/demo"), 8090, 8091)
        made = {values[f"IDENTREE_{name}"] for values in (self.settings, again) for name in names}
        self.assertEqual({len(secret) for secret in made}, {64})
        self.assertEqual(len(made), 10)


class HostTests(SynchronousTestCase):
    def test_config(self) -> None:
        """The host's configuration is readable by its owner only, and replaces an earlier one."""
        with TemporaryDirectory() as directory:
            write_host_config(Path(directory), "http://127.0.0.1:1", "old")
            path = write_host_config(Path(directory), "http://127.0.0.1:8090", "s3cret")
            self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)
            self.assertEqual(
                [line for line in path.read_text().splitlines() if not line.startswith("#")],
                [
                    "IDENTREE_SERVER_URL=http://127.0.0.1:8090",
                    "IDENTREE_SHARED_SECRET=s3cret",
                    "IDENTREE_INSECURE_ALLOW_HTTP_ESCROW=true",
                    "IDENTREE_TOKEN_CACHE_ENABLED=false",
                ],
            )


class ArgumentTests(SynchronousTestCase):
    def test_none(self) -> None:
        """Nothing needs to be given."""
        self.assertEqual(parse_arguments([]), DemoOptions())

    def test_all(self) -> None:
        """Values may be joined or apart."""
        options = parse_arguments(["--agent", "a.pyz", "--port=1234", "--provider-port", "1235", "--ldap-port=1236"])
        self.assertEqual(options, DemoOptions(agent=Path("a.pyz"), http_port=1234, provider_port=1235, ldap_port=1236))

    def test_mistakes(self) -> None:
        """Mistakes are named."""
        for arguments, what in (
            (["--port"], "needs a value"),
            (["--bind", "x"], "'--bind' is unknown"),
            (["--port", "0"], "no port"),
            (["--port", "65536"], "no port"),
            (["--port", "x"], "no port"),
            (["--port", "9" * 50], "no port"),
            (["--port", "8091"], "three different ports"),
            (["--port", "8389"], "three different ports"),
        ):
            with self.assertRaisesRegex(ValueError, what):
                parse_arguments(arguments)
