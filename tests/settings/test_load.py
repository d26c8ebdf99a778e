"""Sources, precedence, and every rule that stops the start."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from identree.core import tokens
from identree.settings.load import SettingsError, load, no_files
from identree.settings.parse import parse
from identree.settings.registry import BY_NAME, SETTINGS
from identree.settings.show import show
from tests.settings.fakes import CONF, MINIMUM, OLD_TOML, SECRET, TOML, Files, directory, environment, loaded


class MinimumTests(SynchronousTestCase):
    def test_defaults(self) -> None:
        """With the minimum, everything else has its default."""
        settings = loaded()
        derived = {"INSTALL_URL", "POCKETID_API_URL", "DATABASE_DSN", "DATABASE_MAX_OPEN_CONNS", "TRUSTED_PROXIES"}
        derived.add("NOTIFY_ALLOWED_NETWORKS")
        for setting in SETTINGS:
            if setting.name in MINIMUM:
                self.assertEqual(getattr(settings, setting.attribute), MINIMUM[setting.name])
                self.assertEqual(settings.source(setting.name), "environment")
            else:
                self.assertEqual(settings.source(setting.name), "default")
                if setting.name not in derived:
                    self.assertEqual(getattr(settings, setting.attribute), setting.default, setting.name)

    def test_derived(self) -> None:
        """Defaults that depend on other settings."""
        settings = loaded()
        self.assertEqual(settings.install_url, "https://identree.example.com")
        self.assertEqual(settings.pocketid_api_url, "https://id.example.com")
        self.assertEqual((settings.database_dsn, settings.database_max_open_conns), ("/config/identree.db", 1))
        self.assertEqual([str(network) for network in settings.trusted_proxies], ["127.0.0.0/8", "::1/128"])
        self.assertTrue(settings.https)
        self.assertFalse(settings.mtls_enabled)

    def test_quiet(self) -> None:
        """A good configuration has no warnings."""
        account = {"LDAP_BIND_DN": "cn=readonly,dc=example,dc=com", "LDAP_BIND_PASSWORD": "read only"}
        self.assertEqual(loaded(ADMIN_GROUPS="admins", SESSION_SECRET="s" * 32, **account).warnings, ())

    def test_directory_warnings(self) -> None:
        """A directory that nobody or everybody can read, and sudo rules that skip the approval, are said at start."""
        for variables, said in (
            ({}, "nobody can bind"),
            ({"LDAP_ALLOW_ANONYMOUS": "true"}, "LDAP_ALLOW_ANONYMOUS is on"),
            ({"LDAP_SUDO_NO_AUTHENTICATE": "true"}, "LDAP_SUDO_NO_AUTHENTICATE is true"),
            ({"LDAP_UID_BASE": "300000", "LDAP_GID_BASE": "300000"}, "are equal"),
        ):
            warnings = loaded(ADMIN_GROUPS="admins", SESSION_SECRET="s" * 32, **variables).warnings
            self.assertTrue(any(said in warning for warning in warnings), (said, warnings))
            off = loaded(ADMIN_GROUPS="admins", SESSION_SECRET="s" * 32, LDAP_ENABLED="false", **variables).warnings
            self.assertEqual(off, ())

    def test_postgres(self) -> None:
        """PostgreSQL under its names, with its number of connections."""
        for name in ("postgres", "postgresql", "PG", " pgx "):
            settings = loaded(DATABASE_DRIVER=name, DATABASE_DSN="postgresql://db/identree")
            self.assertEqual((settings.database_driver, settings.database_max_open_conns), ("postgres", 25))

    def test_mtls(self) -> None:
        """With mTLS the shared secret is optional and of any length; the CA's other file has its default."""
        tls = {"TLS_CERT_FILE": "/c", "TLS_KEY_FILE": "/k"}
        settings = loaded(SHARED_SECRET="", SESSION_SECRET="s" * 32, MTLS_CA_CERT="/ca.crt", **tls)
        self.assertEqual((settings.shared_secret, settings.mtls_ca_key), ("", "/config/mtls-ca.key"))
        loaded(SHARED_SECRET="short", MTLS_CA_KEY="/ca.key", **tls)

    def test_dev_login(self) -> None:
        """Dev login needs no provider, but no https either."""
        nothing = {"OIDC_ISSUER_URL": "", "OIDC_CLIENT_ID": "", "OIDC_CLIENT_SECRET": ""}
        self.assertTrue(loaded(DEV_LOGIN="true", EXTERNAL_URL="http://localhost:8090", **nothing).dev_login)

    def test_frozen(self) -> None:
        """Settings do not change."""
        self.assertRaises(AttributeError, setattr, loaded(), "listen_addr", ":1")


class PrecedenceTests(SynchronousTestCase):
    def test_order(self) -> None:
        """Environment before identree.conf before TOML before default."""
        files = {CONF: "IDENTREE_LISTEN_ADDR=:2\n", TOML: '[server]\nlisten_addr = ":3"\n'}
        for source, settings in (
            ("environment", loaded(files, LISTEN_ADDR=":1")),
            ("identree.conf", loaded(files)),
            ("toml", loaded({TOML: files[TOML]})),
            ("default", loaded()),
        ):
            self.assertEqual(settings.source("LISTEN_ADDR"), source)
        self.assertEqual(loaded(files, LISTEN_ADDR=":1").listen_addr, ":1")
        self.assertEqual(loaded(files).listen_addr, ":2")
        self.assertEqual(loaded({TOML: files[TOML]}).listen_addr, ":3")

    def test_empty_variable(self) -> None:
        """A variable set to nothing does not blank out a file's value."""
        files = Files({CONF: "IDENTREE_LISTEN_ADDR=:2\n"})
        settings = load({**environment(), "IDENTREE_LISTEN_ADDR": ""}, read=files.read)
        self.assertEqual(settings.listen_addr, ":2")

    def test_empty_line(self) -> None:
        """An empty line of identree.conf hides the TOML value: the default counts."""
        settings = loaded({CONF: "IDENTREE_LISTEN_ADDR=\n", TOML: '[server]\nlisten_addr = ":3"\n'})
        self.assertEqual((settings.listen_addr, settings.source("LISTEN_ADDR")), (":8090", "default"))

    def test_closed_listener(self) -> None:
        """Only for the LDAP listener, nothing is a value: it stays closed."""
        self.assertEqual(load({**environment(), "IDENTREE_LDAP_LISTEN_ADDR": ""}, read=no_files).ldap_listen_addr, "")
        self.assertEqual(loaded({CONF: "IDENTREE_LDAP_LISTEN_ADDR=\n"}).ldap_listen_addr, "")
        self.assertEqual(loaded().ldap_listen_addr, ":389")

    def test_old_toml(self) -> None:
        """A deployed config.toml is read when there is no identree.toml, and only then."""
        old, new = '[server]\nlisten_addr = ":3"\n', '[server]\nlisten_addr = ":4"\n'
        settings = loaded({OLD_TOML: old})
        self.assertEqual((settings.listen_addr, settings.toml_config_file), (":3", OLD_TOML))
        settings = loaded({OLD_TOML: old, TOML: new})
        self.assertEqual((settings.listen_addr, settings.toml_config_file), (":4", TOML))
        self.assertEqual(loaded().toml_config_file, TOML)

    def test_named_toml(self) -> None:
        """The environment names another file; missing, it is empty, and the others are not looked at."""
        files = {"/x.toml": '[server]\nlisten_addr = ":5"\n', TOML: '[server]\nlisten_addr = ":4"\n'}
        self.assertEqual(loaded(files, TOML_CONFIG_FILE="/x.toml").listen_addr, ":5")
        settings = loaded(files, TOML_CONFIG_FILE="/y.toml")
        self.assertEqual((settings.listen_addr, settings.toml_config_file), (":8090", "/y.toml"))

    def test_environment_only(self) -> None:
        """Two settings count only in the environment; in the file they give a warning."""
        settings = loaded({CONF: "IDENTREE_LOG_LEVEL=debug\nIDENTREE_TOML_CONFIG_FILE=/x.toml\n"})
        self.assertEqual(settings.log_level, "info")
        self.assertEqual(len([w for w in settings.warnings if "only in the environment" in w]), 2)

    def test_secrets_in_conf(self) -> None:
        """identree.conf may hold secrets."""
        self.assertEqual(loaded({CONF: f"IDENTREE_WEBHOOK_SECRET={SECRET}\n"}).webhook_secret, SECRET)

    def test_not_trimmed(self) -> None:
        """An environment value is taken as it is."""
        self.assertEqual(loaded(SHARED_SECRET=SECRET + "\n").shared_secret, SECRET + "\n")

    def test_toml_lists(self) -> None:
        """A TOML array stays an array, with commas inside of its items; bare text is a comma list."""
        settings = loaded({TOML: '[admin]\ngroups = ["admin, ops", "users", ""]\n'})
        self.assertEqual(settings.admin_groups, ("admin, ops", "users"))
        self.assertEqual(loaded({TOML: "[admin]\ngroups = []\n"}).admin_groups, ())
        self.assertEqual(loaded({TOML: "[admin]\ngroups = rawvalue\n"}).admin_groups, ("rawvalue",))
        self.assertEqual(loaded(ADMIN_GROUPS=" a ,, b ").admin_groups, ("a", "b"))

    def test_toml_scalars(self) -> None:
        """Booleans and integers of TOML are those of the settings."""
        settings = loaded({TOML: "[ldap]\nenabled = false\nuid_base = 5000\n"})
        self.assertEqual((settings.ldap_enabled, settings.ldap_uid_base), (False, 5000))


class SecretFileTests(SynchronousTestCase):
    def test_every_secret(self) -> None:
        """Every secret and the DSN can be read from a file; the line end goes."""
        value = "ab" * 20
        for setting in SETTINGS:
            if not setting.secret:
                continue
            bind = {"LDAP_BIND_DN": "cn=x"} if setting.name == "LDAP_BIND_PASSWORD" else {}
            settings = load(
                {
                    **{key: text for key, text in environment(**bind).items() if key != setting.variable},
                    setting.variable + "_FILE": "/run/secrets/x",
                },
                read=Files({"/run/secrets/x": value + "\n"}).read,
            )
            expected: object = (value,) if setting.name == "API_KEYS" else value
            self.assertEqual(getattr(settings, setting.attribute), expected)
            self.assertEqual(settings.source(setting.name), "environment")
            self.assertEqual(settings.secret_files[setting.name], "/run/secrets/x")

    def test_in_conf(self) -> None:
        """identree.conf may name the file; the environment's own value comes first."""
        files = {CONF: "IDENTREE_SHARED_SECRET_FILE=/s\n", "/s": "f" * 32}
        self.assertEqual(loaded(files, SHARED_SECRET="").shared_secret, "f" * 32)
        self.assertEqual(loaded(files).shared_secret, SECRET)

    def test_several_keys(self) -> None:
        """A file of API keys may have one a line."""
        keys = ("a" * 32, "b" * 32)
        self.assertEqual(loaded({"/s": "\n".join(keys) + "\n"}, API_KEYS_FILE="/s").api_keys, keys)

    def test_mistakes(self) -> None:
        """Unreadable, empty, not text, two of them, dots in the path: errors that name the variable."""
        for files, path, text in (
            ({}, "/s", "No such file"),
            ({"/s": PermissionError(13, "Permission denied")}, "/s", "Permission denied"),
            ({"/s": "\n"}, "/s", "is empty"),
            ({"/s": b"\xff"}, "/s", "UTF-8"),
            ({"/a/../s": "x" * 32}, "/a/../s", "without . and .."),
        ):
            e = self.assertRaises(SettingsError, loaded, files, WEBHOOK_SECRET_FILE=path)
            self.assertEqual(len(e.problems), 1)
            self.assertIn("IDENTREE_WEBHOOK_SECRET_FILE", e.problems[0])
            self.assertIn(text, e.problems[0])
        e = self.assertRaises(SettingsError, loaded, {"/s": "x" * 32}, SHARED_SECRET_FILE="/s")
        self.assertIn("keep one of the two", str(e))


class FileTests(SynchronousTestCase):
    def test_unreadable(self) -> None:
        """A file that is there and cannot be read stops the start."""
        for path in (CONF, TOML):
            e = self.assertRaises(SettingsError, loaded, {path: PermissionError(13, "Permission denied")})
            self.assertEqual(e.problems, (f"{path}: cannot be read: Permission denied",))

    def test_too_open(self) -> None:
        """identree.conf: writable by others is refused, readable by everybody is told."""
        for mode in (0o620, 0o602, 0o666):
            self.assertRaises(SettingsError, loaded, {CONF: ""}, {CONF: mode})
        self.assertIn("read by everybody", " ".join(loaded({CONF: ""}, {CONF: 0o644}).warnings))
        self.assertNotIn("everybody", " ".join(loaded({CONF: ""}, {CONF: 0o640}).warnings))

    def test_toml_warnings(self) -> None:
        """A TOML file that only the old reader understands, or that everybody may write, is read with a warning."""
        settings = loaded({TOML: "[oidc]\nclient_id = 0123\n"}, {TOML: 0o666}, OIDC_CLIENT_ID="")
        self.assertEqual(settings.oidc_client_id, "0123")
        self.assertIn("line by line", settings.warnings[0])
        self.assertIn("written by everybody", settings.warnings[1])

    def test_real_files(self) -> None:
        """From real files: the TOML file is found beside identree.conf."""
        place = directory(self)
        conf = place / "identree.conf"
        conf.write_text("export IDENTREE_LISTEN_ADDR=':1'\n", encoding="utf-8")
        conf.chmod(0o600)
        (place / "config.toml").write_text("[ldap]\nuid_base = 5000\n", encoding="utf-8")
        settings = load(environment(), conf_path=str(conf))
        self.assertEqual((settings.listen_addr, settings.ldap_uid_base), (":1", 5000))


class SyntaxTests(SynchronousTestCase):
    def test_values(self) -> None:
        """One good value of every syntax."""
        settings = loaded(
            AUDIT_LOG_MAX_SIZE="50MB",
            CHALLENGE_TTL="1m30s",
            LDAP_ENABLED="f",
            CLIENT_BREAKGLASS_ENABLED="TRUE",
            BREAKGLASS_ROTATE_BEFORE="2025-01-15T02:00:00+02:00",
            ESCROW_VAULT_MAP='{"a": "b"}',
            LISTEN_ADDR="[::1]:8090",
            LOG_LEVEL="WARNING",
            LDAP_UID_BASE="+5000",
            TRUSTED_PROXIES="10.0.0.0/8",
        )
        self.assertEqual(settings.audit_log_max_size, 52428800)
        self.assertEqual(settings.challenge_ttl, timedelta(seconds=90))
        self.assertEqual(settings.ldap_enabled, False)
        self.assertEqual(settings.client_breakglass_enabled, True)
        self.assertEqual(settings.breakglass_rotate_before, datetime(2025, 1, 15, tzinfo=UTC))
        self.assertEqual(dict(settings.escrow_vault_map), {"a": "b"})
        self.assertEqual(settings.listen_addr, "[::1]:8090")
        self.assertEqual(settings.log_level, "warn")
        self.assertEqual(settings.ldap_uid_base, 5000)
        self.assertEqual(str(settings.trusted_proxies[0]), "10.0.0.0/8")

    def test_bad_values(self) -> None:
        """What is not understood is an error, not the default: the variable, its value, an example."""
        for name, value in (
            ("LDAP_ENABLED", "yes"),
            ("LDAP_ENABLED", "tRUE"),
            ("LDAP_ENABLED", "true "),
            ("CLIENT_BREAKGLASS_ENABLED", "on"),
            ("LDAP_UID_BASE", "2_000"),
            ("LDAP_UID_BASE", "١٢٣٤"),
            ("LDAP_UID_BASE", "9" * 30),
            ("CHALLENGE_TTL", "120"),
            ("CHALLENGE_TTL", "1d"),
            ("CHALLENGE_TTL", "3000000h"),
            ("AUDIT_LOG_MAX_SIZE", "100M"),
            ("AUDIT_LOG_MAX_SIZE", "1.5GB"),
            ("AUDIT_LOG_MAX_SIZE", "10B"),
            ("AUDIT_LOG_MAX_SIZE", "-1"),
            ("BREAKGLASS_ROTATE_BEFORE", "2025-01-15"),
            ("BREAKGLASS_ROTATE_BEFORE", "2025-13-15T00:00:00Z"),
            ("ESCROW_VAULT_MAP", '{"a": 1}'),
            ("ESCROW_VAULT_MAP", "{"),
            ("OIDC_ISSUER_URL", "id.example.com"),
            ("OIDC_ISSUER_PUBLIC_URL", "ftp://id.example.com"),
            ("POCKETID_API_URL", "https://"),
            ("ESCROW_URL", "https://x:99999"),
            ("ESCROW_WEB_URL", "https://[x"),
            ("EXTERNAL_URL", "https://a b"),
            ("EXTERNAL_URL", "https://a\nb"),
            ("LISTEN_ADDR", "8090"),
            ("LISTEN_ADDR", ":99999"),
            ("LISTEN_ADDR", "::1:8090"),
            ("TRUSTED_PROXIES", "10.0.0.0/33"),
            ("DATABASE_DRIVER", "mysql"),
            ("ESCROW_BACKEND", "Vault"),
            ("MTLS_KMS_BACKEND", "aws"),
            ("LDAP_SUDO_NO_AUTHENTICATE", "yes"),
            ("CLIENT_BREAKGLASS_PASSWORD_TYPE", "long"),
            ("LOG_LEVEL", "trace"),
            ("LOG_FORMAT", "JSON"),
            ("OIDC_CLOCK_LEEWAY", "6m"),
            ("MAX_PENDING", "0"),
            ("SESSION_MAX_AGE", "1s"),
        ):
            e = self.assertRaises(SettingsError, loaded, **{name: value})
            [problem] = e.problems
            self.assertTrue(problem.startswith(f"IDENTREE_{name}: {value[:10]!r}"[:-1]), problem)
            self.assertIn(f"for example IDENTREE_{name}={BY_NAME[name].example}", problem)
            self.assertNotIn("\n", problem)

    @given(st.sampled_from(SETTINGS), st.text(max_size=40))
    def test_noise(self, setting: object, text: str) -> None:
        """Any text is a value or a ValueError, for every setting."""
        try:
            parse(setting, text)  # type: ignore[arg-type]
        except ValueError as e:
            self.assertTrue(str(e))

    def test_not_utf8(self) -> None:
        """A secret with bytes that are no UTF-8 would be hashed as other bytes than hosts send: refused."""
        e = self.assertRaises(SettingsError, loaded, SHARED_SECRET="\udcff" * 40)
        self.assertIn("UTF-8", str(e))

    def test_bounds(self) -> None:
        """Values that deployed versions replaced are replaced, and it is said."""
        second, hour = timedelta(seconds=1), timedelta(hours=1)
        for name, text, value in (
            ("CHALLENGE_TTL", "1s", 30 * second),
            ("CHALLENGE_TTL", "48h", 24 * hour),
            ("GRACE_PERIOD", "-1h", 0 * hour),
            ("ONE_TAP_MAX_AGE", "0", 24 * hour),
            ("LDAP_REFRESH_INTERVAL", "0s", 300 * second),
            ("LDAP_REFRESH_INTERVAL", "5s", 10 * second),
            ("LDAP_UID_BASE", "0", 200_000),
            ("LDAP_GID_BASE", "-5", 200_000),
            ("MTLS_CERT_TTL", "-1s", 8760 * hour),
            ("DEFAULT_PAGE_SIZE", "0", 15),
            ("DEFAULT_PAGE_SIZE", "1000", 500),
            ("NOTIFY_TIMEOUT", "0", 15 * second),
            ("AUDIT_LOG_MAX_FILES", "0", 5),
            ("AUDIT_BUFFER_SIZE", "-1", 4096),
            ("CLIENT_POLL_INTERVAL", "10ms", second),
            ("CLIENT_POLL_INTERVAL", "-1s", 0 * second),
            ("CLIENT_TIMEOUT", "-1s", 0 * second),
            ("CLIENT_BREAKGLASS_ROTATION_DAYS", "-1", 0),
        ):
            settings = loaded(**{name: text})
            self.assertEqual(getattr(settings, name.lower()), value, (name, text))
            self.assertTrue([w for w in settings.warnings if w.startswith(f"IDENTREE_{name}: ")], name)

    def test_long_grace(self) -> None:
        """A grace period has no maximum at start, as before."""
        self.assertEqual(loaded(GRACE_PERIOD="100h").grace_period, timedelta(hours=100))


class FatalTests(SynchronousTestCase):
    def assertFatal(self, name: str, text: str, /, **variables: str) -> None:
        e = self.assertRaises(SettingsError, loaded, **variables)
        mine = [problem for problem in e.problems if problem.startswith(f"IDENTREE_{name}: ")]
        self.assertEqual(len(mine), 1, e.problems)
        self.assertIn(text, mine[0])

    def test_required(self) -> None:
        """Each part of the minimum is required, and its absence is one mistake."""
        for name in MINIMUM:
            e = self.assertRaises(SettingsError, loaded, **{name: ""})
            [problem] = e.problems
            self.assertTrue(problem.startswith(f"IDENTREE_{name}: is required"), problem)

    def test_base_dn(self) -> None:
        """It is needed only with LDAP, but never longer than 512 bytes."""
        loaded(LDAP_BASE_DN="", LDAP_ENABLED="false")
        self.assertFatal("LDAP_BASE_DN", "512", LDAP_BASE_DN="ü" * 257, LDAP_ENABLED="false")

    def test_secret_lengths(self) -> None:
        """Secrets that are too short; the shared one is counted in bytes."""
        self.assertFatal("SHARED_SECRET", "31 characters", SHARED_SECRET="x" * 31)
        loaded(SHARED_SECRET="ü" * 16)
        self.assertFatal("WEBHOOK_SECRET", "at least 32", WEBHOOK_SECRET="x" * 31)
        self.assertFatal("API_KEYS", "key 2 has 5", API_KEYS="a" * 32 + ",short")
        self.assertFatal("ESCROW_ENCRYPTION_KEY", "32", ESCROW_BACKEND="local", ESCROW_ENCRYPTION_KEY="x" * 31)

    def test_placeholders(self) -> None:
        """The secret of an example is no secret."""
        self.assertFatal("SHARED_SECRET", "placeholder", SHARED_SECRET="change-me-" * 4)
        self.assertFatal("SESSION_SECRET", "placeholder", SESSION_SECRET="CHANGEME" * 5)

    def test_token_base(self) -> None:
        """With mTLS and neither shared nor session secret nobody could sign in."""
        self.assertFatal("SESSION_SECRET", "sign in", SHARED_SECRET="", MTLS_CA_CERT="/x")

    def test_vault_transit(self) -> None:
        """It needs its three settings."""
        for name in ("MTLS_VAULT_ADDR", "MTLS_VAULT_TOKEN", "MTLS_VAULT_KEY_NAME"):
            self.assertFatal(name, "is required", MTLS_KMS_BACKEND="vault-transit")

    def test_postgres(self) -> None:
        """PostgreSQL needs a DSN and at least two connections."""
        self.assertFatal("DATABASE_DSN", "is required", DATABASE_DRIVER="postgres")
        self.assertFatal(
            "DATABASE_MAX_OPEN_CONNS",
            "at least 2",
            DATABASE_DRIVER="postgres",
            DATABASE_DSN="postgresql://db/x",
            DATABASE_MAX_OPEN_CONNS="1",
        )

    def test_external_url(self) -> None:
        """Forbidden characters; trailing slashes go."""
        for character in "\"'<>":
            self.assertFatal("EXTERNAL_URL", "quote", EXTERNAL_URL=f"https://x/{character}")
        self.assertEqual(loaded(EXTERNAL_URL="https://x/y//").external_url, "https://x/y")

    def test_dev_login(self) -> None:
        """Dev login on an https address lets the world in."""
        self.assertFatal("DEV_LOGIN", "https", DEV_LOGIN="1")
        self.assertFatal("DEV_LOGIN", "https", DEV_LOGIN="1", EXTERNAL_URL="HTTPS://x")

    def test_shell(self) -> None:
        """An absolute path without special characters."""
        for shell in ("bash", "/bin/ba sh", "/bin/bash;", "/bin/$SHELL", "/bin/*", "/bin/~", "/bin/a#b"):
            self.assertFatal("LDAP_DEFAULT_SHELL", "absolute path", LDAP_DEFAULT_SHELL=shell)

    def test_home(self) -> None:
        """At most one %s, and no other letter after a percent sign."""
        for home in ("/home/%s/%s", "/home/%d", "/home/%s/%u"):
            self.assertFatal("LDAP_DEFAULT_HOME", "%s", LDAP_DEFAULT_HOME=home)
        for home in ("/home/shared", "/home/%s", "/home/100%%/%s"):
            loaded(LDAP_DEFAULT_HOME=home)

    def test_escrow(self) -> None:
        """Command or back end; a salt of at least 16 bytes in hex; no dots in vault's path."""
        self.assertFatal("ESCROW_COMMAND", "one of the two", ESCROW_BACKEND="vault", ESCROW_COMMAND="x")
        self.assertFatal("ESCROW_HKDF_SALT", "hexadecimal", ESCROW_HKDF_SALT="xyz")
        self.assertFatal("ESCROW_HKDF_SALT", "hexadecimal", ESCROW_HKDF_SALT="abc")
        self.assertFatal("ESCROW_HKDF_SALT", "15 bytes", ESCROW_HKDF_SALT="ab" * 15)
        self.assertFatal("ESCROW_PATH", ". or ..", ESCROW_BACKEND="vault", ESCROW_PATH="secret/../x")
        loaded(ESCROW_BACKEND="infisical", ESCROW_PATH="a/../b")

    def test_paths(self) -> None:
        """No dots in the path of the registry and of the escrow secret's file."""
        for path in ("./hosts.json", "/config/../hosts.json"):
            self.assertFatal("HOST_REGISTRY_FILE", ". or ..", HOST_REGISTRY_FILE=path)
        self.assertFatal("ESCROW_AUTH_SECRET", ". and ..", ESCROW_AUTH_SECRET_FILE="/x/../y")

    def test_posix_ids(self) -> None:
        """Ids below 1000 are the system's; without LDAP it does not matter."""
        for name in ("LDAP_UID_BASE", "LDAP_GID_BASE"):
            self.assertFatal(name, "1000", **{name: "999"})
            loaded(LDAP_ENABLED="false", **{name: "999"})

    def test_bind(self) -> None:
        """DN and password, or neither, even without LDAP."""
        self.assertFatal("LDAP_BIND_PASSWORD", "together", LDAP_BIND_DN="cn=x", LDAP_ENABLED="0")
        self.assertFatal("LDAP_BIND_DN", "together", LDAP_BIND_PASSWORD="x", LDAP_ENABLED="0")

    def test_tls(self) -> None:
        """Certificate and key, or neither."""
        self.assertFatal("TLS_KEY_FILE", "together", TLS_CERT_FILE="/c")
        self.assertFatal("TLS_CERT_FILE", "together", TLS_KEY_FILE="/k")

    def test_audit(self) -> None:
        """Sinks that could never work."""
        for url in ("syslog", "tls://x:1", "tcp://x", "udp://x:0", "tcp://x:99999"):
            self.assertFatal("AUDIT_SYSLOG_URL", "host:port", AUDIT_SYSLOG_URL=url)
        self.assertFatal("AUDIT_LOG", "no file", AUDIT_LOG="file:")
        loaded(AUDIT_SYSLOG_URL="udp://[::1]:514", AUDIT_LOG="file:/x")

    def test_all_at_once(self) -> None:
        """Every mistake has its line, none has two, and no secret is in any."""
        e = self.assertRaises(
            SettingsError,
            load,
            {
                "IDENTREE_SHARED_SECRET": "geheim",
                "IDENTREE_WEBHOOK_SECRET": "geheim",
                "IDENTREE_API_KEYS": "geheim",
                "IDENTREE_ESCROW_HKDF_SALT": "geheim",
                "IDENTREE_DATABASE_DRIVER": "postgres",
                "IDENTREE_CHALLENGE_TTL": "soon",
                "IDENTREE_OIDC_ISSUER_URL": "https://alice:geheim@",
                "IDENTREE_TLS_CERT_FILE": "/c",
            },
            read=Files({CONF: "IDENTREE_LDAP_UID_BASE=5", TOML: "[ldap]\nenabled = 2"}, {CONF: 0o666}).read,
        )
        self.assertEqual(str(e).split("\n"), list(e.problems))
        started = sorted(problem.split(":")[0].removeprefix("IDENTREE_") for problem in e.problems)
        self.assertEqual(
            started,
            sorted(
                [
                    CONF,
                    "LDAP_ENABLED",
                    "SHARED_SECRET",
                    "WEBHOOK_SECRET",
                    "API_KEYS",
                    "ESCROW_HKDF_SALT",
                    "DATABASE_DSN",
                    "CHALLENGE_TTL",
                    "OIDC_ISSUER_URL",
                    "OIDC_CLIENT_ID",
                    "OIDC_CLIENT_SECRET",
                    "EXTERNAL_URL",
                    "LDAP_BASE_DN",
                    "LDAP_UID_BASE",
                    "TLS_KEY_FILE",
                ]
            ),
        )
        self.assertNotIn("geheim", str(e))

    def test_says_where(self) -> None:
        """A line says where the wrong value is from."""
        for files, variables, where in (
            ({}, {"LISTEN_ADDR": "x"}, "(environment)"),
            ({CONF: "IDENTREE_LISTEN_ADDR=x"}, {}, "(identree.conf)"),
            ({TOML: '[server]\nlisten_addr = "x"'}, {}, f"({TOML})"),
        ):
            e = self.assertRaises(SettingsError, loaded, files, **variables)
            self.assertIn(where, str(e))


class WarningTests(SynchronousTestCase):
    def assertWarned(self, text: str, /, **variables: str) -> None:
        warnings = loaded(**variables).warnings
        self.assertTrue([warning for warning in warnings if text in warning], warnings)

    def test_shared_secret_signs(self) -> None:
        """The shared secret, known to every host, also signs administrators' sessions."""
        self.assertWarned("also signs browser sessions")
        self.assertWarned("also signs browser sessions", SESSION_SECRET=SECRET)
        warnings = loaded(SESSION_SECRET="s" * 32).warnings
        self.assertFalse([warning for warning in warnings if "signs" in warning])

    def test_others(self) -> None:
        """What is allowed, but should not be."""
        self.assertWarned("nobody is an administrator")
        self.assertWarned("not https", EXTERNAL_URL="http://identree.example.com")
        self.assertWarned("certificate is not verified", OIDC_INSECURE_SKIP_VERIFY="1")
        self.assertWarned("webhook is refused", POCKETID_API_KEY="x" * 32)
        self.assertWarned("fixed salt", ESCROW_BACKEND="local", ESCROW_ENCRYPTION_KEY="x" * 32)
        self.assertWarned("ESCROW_AUTH_SECRET has fewer", ESCROW_AUTH_SECRET="x")
        self.assertWarned("LDAP_SECRET has fewer", LDAP_SECRET="x")
        self.assertWarned("can never arrive", MTLS_CA_CERT="/x")
        self.assertWarned("unsigned", SHARED_SECRET="", MTLS_CA_CERT="/x", HMAC_SECRET="h" * 32)

    def test_loopback(self) -> None:
        """Plain http on this machine is no reason to warn."""
        for url in ("http://localhost:8090", "http://127.0.0.1", "http://[::1]:1", "http://x.localhost"):
            self.assertFalse([w for w in loaded(EXTERNAL_URL=url).warnings if "https" in w])

    def test_unknown(self) -> None:
        """Unknown names, in every source, with the nearest known one."""
        self.assertWarned("the nearest is IDENTREE_CHALLENGE_TTL", CHALENGE_TTL="1m")
        self.assertWarned("the nearest is IDENTREE_SHARED_SECRET_FILE", SHARED_SECRETS_FILE="x")
        settings = loaded({CONF: "IDENTREE_LISTEN_ADR=x\nLISTEN_ADDR=x\n", TOML: "[server]\nlisten_adr = 1\n"})
        told = " ".join(settings.warnings)
        self.assertIn(f"'IDENTREE_LISTEN_ADR' in {CONF} is not a setting; the nearest is IDENTREE_LISTEN_ADDR", told)
        self.assertIn(f"'LISTEN_ADDR' in {CONF} is not a setting", told)
        self.assertIn("'server.listen_adr'", told)
        self.assertIn("the nearest is server.listen_addr", told)

    def test_dead(self) -> None:
        """Names of old examples are told what came after them."""
        self.assertWarned("channels", NOTIFY_URL="https://x")
        self.assertWarned("SAML is not supported", SAML_METADATA_URL="https://x")
        self.assertWarned("OIDC_INSECURE_SKIP_VERIFY", INSECURE="1")
        self.assertWarned("ESCROW_COMMAND_ENV", ESCROW_ENV="1")

    def test_of_hosts(self) -> None:
        """A host's setting is named as such."""
        self.assertWarned("setting of hosts", SERVER_URL="https://x")

    def test_known_by_others(self) -> None:
        """Channel credentials and the test suite's names are known."""
        settings = loaded(NOTIFY_CHANNEL_OPS_TOKEN="geheim", NOTIFY_CHANNEL_OPS_SECRET="k", TEST_BACKEND="sqlite")
        self.assertFalse([w for w in settings.warnings if "CHANNEL" in w or "TEST" in w])
        settings = loaded({CONF: "IDENTREE_NOTIFY_CHANNEL_OPS_TOKEN=geheim\n"})
        self.assertTrue([w for w in settings.warnings if "only in the environment" in w])
        self.assertNotIn("geheim", str(settings.warnings))


class SecretTests(SynchronousTestCase):
    def test_fallbacks(self) -> None:
        """Escrow and LDAP secret fall back to the shared one, each for itself."""
        settings = loaded(ESCROW_SECRET="e" * 32)
        self.assertEqual(settings.effective_escrow_secret, "e" * 32)
        self.assertEqual(settings.effective_ldap_secret, SECRET)

    def test_keys(self) -> None:
        """The keys follow the fallbacks of the contract."""
        keys = loaded(SESSION_SECRET="s" * 32, HMAC_SECRET="h" * 32).keys()
        self.assertEqual(keys.session, tokens.derive(b"h" * 32, "session"))
        self.assertEqual(keys.grace, tokens.derive(b"s" * 32, "grace-session"))

    def test_nowhere(self) -> None:
        """No secret is in the repr, in check-config's text or in a warning."""
        secrets = {s.name: "geheim" * 8 for s in SETTINGS if s.secret}
        secrets |= {"ESCROW_HKDF_SALT": "5ec2e7" * 16, "LDAP_BIND_DN": "cn=x"}
        secrets["DATABASE_DSN"] = "host=db password=geheim"
        settings = loaded(**secrets, ESCROW_URL="https://u:geheim@vault", AUDIT_LOKI_URL="https://l?token=geheim")
        for text in (repr(settings), show(settings), str(settings.warnings)):
            self.assertNotIn("geheim", text)
            self.assertNotIn("5ec2e7", text)


class ShowTests(SynchronousTestCase):
    def line(self, text: str, name: str) -> list[str]:
        [line] = [line for line in text.split("\n") if line.startswith(f"IDENTREE_{name} ")]
        return re.split(r"  +", line)[1:]

    def test_lines(self) -> None:
        """Every setting has a line with value and source; secrets are set or not."""
        text = show(loaded({CONF: "IDENTREE_CHALLENGE_TTL=90s\n", "/s": "m" * 32}, METRICS_TOKEN_FILE="/s"))
        for setting in SETTINGS:
            self.line(text, setting.name)
        self.assertEqual(self.line(text, "CHALLENGE_TTL"), ["1m30s", "identree.conf"])
        self.assertEqual(self.line(text, "SHARED_SECRET"), ["set", "environment"])
        self.assertEqual(self.line(text, "METRICS_TOKEN"), ["set", "environment, from the file /s"])
        self.assertEqual(self.line(text, "SESSION_SECRET"), ["not set", "default"])
        self.assertEqual(self.line(text, "LISTEN_ADDR"), [":8090", "default"])
        self.assertIn("# Warnings", text)

    def test_dsn(self) -> None:
        """The password of a connection string is masked in every form."""
        for dsn, shown in (
            ("/config/identree.db", "/config/identree.db"),
            ("postgresql://u:geheim@db/x", "postgresql://u:***@db/x"),
            ("postgresql://u:ge/h@im@db/x", "postgresql://u:***@db/x"),
            ("postgresql://u@db/x?password=geheim&a=b", "postgresql://u@db/x?password=***&a=b"),
            ("host=db password=geheim user=u", "host=db password=*** user=u"),
            ("password = 'ge he\\'im' host=db", "password = *** host=db"),
        ):
            text = show(loaded(DATABASE_DRIVER="postgres", DATABASE_DSN=dsn))
            [line] = [line for line in text.split("\n") if line.startswith("IDENTREE_DATABASE_DSN ")]
            self.assertIn(f"  {shown}  ", line)
