"""
Loading the settings: environment, then identree.conf, then the TOML file, then the default (spec/configuration
sections 1 and 5). All mistakes are collected in one report, which shows no secret.
"""

from __future__ import annotations

import difflib
import os.path
import re
from collections.abc import Mapping
from ipaddress import ip_address
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from identree.settings import registry
from identree.settings.files import Raw, Read, no_files, parse_conf, parse_toml, read_file
from identree.settings.mask import masked
from identree.settings.parse import default, parse
from identree.settings.registry import BY_NAME, BY_TOML, PREFIX, SETTINGS, Kind, Setting, written
from identree.settings.values import CONF, DEFAULT, ENVIRONMENT, TOML, Settings

__all__ = ["SettingsError", "load", "no_files"]

CONF_PATH = "/etc/identree/identree.conf"

MIN_SECRET = 32
MIN_AUTH_SECRET = 16
MIN_SALT_BYTES = 16
MAX_BASE_DN = 512
MIN_POSIX_ID = 1000
# Characters of a wrong value that a message repeats.
SHOWN = 80

_SHELL_FORBIDDEN = frozenset(" \t\r\n\0;|&$`'\"\\<>(){}*?[]!^%~@#")
_PLACEHOLDER = re.compile(r"change[-_ ]?me", re.IGNORECASE)
_SYSLOG = re.compile(r"(?:udp|tcp|tcp\+tls)://(?:\[[0-9a-fA-F:.]+\]|[a-zA-Z0-9._-]+):([0-9]{1,5})")
_CHANNEL = re.compile(r"NOTIFY_CHANNEL_.+_(?:TOKEN|COMMAND|SECRET)")
# Secrets that are keys of ours, not credentials at somebody else's.
_KEYS = (
    "SHARED_SECRET",
    "SESSION_SECRET",
    "HMAC_SECRET",
    "ESCROW_SECRET",
    "LDAP_SECRET",
    "WEBHOOK_SECRET",
    "METRICS_TOKEN",
    "ESCROW_ENCRYPTION_KEY",
)


class SettingsError(Exception):
    """
    The server cannot start with these settings. The text has one line per mistake: the variable, what is wrong with
    its value, an example of a right one.

    :ivar settings: everything that could be read, to be shown and nothing else.
    :ivar wrong: names of the settings whose value there does not count, and where the wrong one is from.
    """

    def __init__(self, problems: tuple[str, ...], settings: Settings, wrong: Mapping[str, str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
        self.settings = settings
        self.wrong = wrong


def load(environ: Mapping[str, str], *, conf_path: str = CONF_PATH, read: Read = read_file) -> Settings:
    """
    :param environ: the process environment.
    :param conf_path: identree.conf; the TOML file is looked for beside it, unless the environment names it.
    :param read: reads a whole file; :func:`~identree.settings.files.no_files` for none.
    :raise SettingsError: with all mistakes.
    """
    return _Loading(environ, conf_path, read).settings()


def _length(text: str) -> int:
    return len(text.encode("utf-8", "surrogateescape"))


def _has_dots(path: str) -> bool:
    return any(segment in (".", "..") for segment in path.split("/"))


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


class _Loading:
    """One run of :func:`load`: what was found so far, and every mistake."""

    def __init__(self, environ: Mapping[str, str], conf_path: str, read: Read) -> None:
        self._environ, self._conf_path, self._read = environ, conf_path, read
        self._problems: list[str] = []
        self._warnings: list[str] = []
        self._values: dict[str, Any] = {}
        self._sources: dict[str, str] = {}
        self._files: dict[str, str] = {}
        # settings that already have a problem, and its source: no second one for the same reason
        self._bad: dict[str, str] = {}

    def settings(self) -> Settings:
        self._conf = self._read_conf()
        self._toml_path, self._toml = self._read_toml()
        for setting in SETTINGS:
            self._take(setting)
        self._values["TOML_CONFIG_FILE"] = self._toml_path
        self._derive_defaults()
        self._check()
        self._warn()
        self._check_names()
        settings = Settings(
            **{BY_NAME[name].attribute: value for name, value in self._values.items()},
            warnings=tuple(self._warnings),
            sources=MappingProxyType(self._sources),
            secret_files=MappingProxyType(self._files),
        )
        if self._problems:
            raise SettingsError(tuple(self._problems), settings, MappingProxyType(self._bad))
        return settings

    # -- sources ------------------------------------------------------------------------------------------------------

    def _read_conf(self) -> dict[str, str]:
        path = self._conf_path
        try:
            file = self._read(path)
            if file.mode & 0o022:
                self._problems.append(
                    f"{path}: others than its owner may write to it; it holds secrets. For example: chmod 0640 {path}"
                )
            elif file.mode & 0o004:
                self._warnings.append(f"{path} can be read by everybody and may hold secrets; chmod 0640 {path}")
            return parse_conf(file.raw)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as e:
            self._problems.append(f"{path}: cannot be read: {_reason(e)}")
            return {}

    def _read_toml(self) -> tuple[str, dict[str, Raw]]:
        directory = os.path.dirname(self._conf_path)
        first = os.path.join(directory, "identree.toml")
        named = self._environ.get(PREFIX + "TOML_CONFIG_FILE")
        # deployed versions wrote config.toml
        for path in (named,) if named else (first, os.path.join(directory, "config.toml")):
            try:
                file = self._read(path)
                values, warning = parse_toml(file.raw)
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as e:
                self._problems.append(f"{path}: cannot be read: {_reason(e)}")
                return path, {}
            if warning:
                self._warnings.append(f"{path} {warning}")
            if file.mode & 0o002:
                self._warnings.append(f"{path} can be written by everybody, who can so become administrator")
            return path, values
        return named or first, {}

    def _take(self, setting: Setting) -> None:
        """Find the setting's value and where it is from."""
        name = setting.name
        self._values[name], self._sources[name] = default(setting), DEFAULT
        raw, source = self._find(setting)
        if raw is None:
            return
        shown = "" if setting.secret else f"{_shown(raw)} "
        text = raw if isinstance(raw, str) else ",".join(raw)
        if any("\ud800" <= character <= "\udfff" for character in text):
            self._wrong(name, "is not UTF-8 text", source)
            return
        try:
            value, adjusted = parse(setting, raw)
        except ValueError as e:
            self._wrong(name, f"{shown}{e}", source)
            return
        if adjusted:
            self._warnings.append(
                f"{setting.variable}: {shown}is out of bounds ({setting.bounds}); {written(setting, value)} is used"
            )
        self._values[name], self._sources[name] = value, source

    def _find(self, setting: Setting) -> tuple[Raw | None, str]:
        for source, mapping in ((ENVIRONMENT, self._environ), (CONF, self._conf)):
            if source is CONF and setting.from_environment_only:
                continue
            value = mapping.get(setting.variable)
            file = mapping.get(setting.variable + "_FILE") if setting.secret else None
            if value and file:
                self._wrong(setting.name, f"is given, and {setting.variable}_FILE too; keep one of the two", source)
                return None, source
            if file:
                return self._read_secret(setting, file, source), source
            if value or (value == "" and setting.blank_counts):
                return value, source
            if value == "" and source is CONF:
                # an empty line hides what the TOML file says
                return None, source
        toml = self._toml.get(setting.toml) if setting.toml else None
        if toml or (toml == "" and setting.blank_counts):
            return toml, TOML
        return None, DEFAULT

    def _read_secret(self, setting: Setting, path: str, source: str) -> str | None:
        variable = setting.variable + "_FILE"
        if _has_dots(path):
            self._wrong(setting.name, f"{variable}: a path without . and .. is needed", source)
            return None
        try:
            text = self._read(path).raw.decode().rstrip("\r\n")
            if setting.name == "ESCROW_AUTH_SECRET":
                # the one such setting of deployed versions, which trimmed
                text = text.strip()
        except (OSError, UnicodeDecodeError) as e:
            self._wrong(setting.name, f"{variable}: {path} cannot be read: {_reason(e)}", source)
            return None
        if not text:
            self._wrong(setting.name, f"{variable}: {path} is empty", source)
            return None
        self._files[setting.name] = path
        return text.replace("\n", ",") if setting.kind is Kind.LIST else text

    def _derive_defaults(self) -> None:
        values = self._values
        values["EXTERNAL_URL"] = values["EXTERNAL_URL"].rstrip("/")
        values["INSTALL_URL"] = (values["INSTALL_URL"] or values["EXTERNAL_URL"]).rstrip("/")
        values["POCKETID_API_URL"] = values["POCKETID_API_URL"] or values["OIDC_ISSUER_URL"]
        postgres = values["DATABASE_DRIVER"] == "postgres"
        if not postgres:
            values["DATABASE_DSN"] = values["DATABASE_DSN"] or "/config/identree.db"
        values["DATABASE_MAX_OPEN_CONNS"] = values["DATABASE_MAX_OPEN_CONNS"] or (25 if postgres else 1)
        if self._mtls:
            values["MTLS_CA_CERT"] = values["MTLS_CA_CERT"] or "/config/mtls-ca.crt"
            values["MTLS_CA_KEY"] = values["MTLS_CA_KEY"] or "/config/mtls-ca.key"

    # -- rules --------------------------------------------------------------------------------------------------------

    @property
    def _mtls(self) -> bool:
        values = self._values
        return bool(values["MTLS_CA_CERT"] or values["MTLS_CA_KEY"] or values["MTLS_KMS_BACKEND"] == "vault-transit")

    def _wrong(self, name: str, problem: str, source: str = "") -> None:
        if name in self._bad:
            return
        setting = BY_NAME[name]
        source = self._bad[name] = source or self._sources[name]
        where = "" if source == DEFAULT else f" ({self._toml_path if source == TOML else source})"
        self._problems.append(f"{setting.variable}: {problem}{where}; for example {setting.variable}={setting.example}")

    def _value_wrong(self, name: str, problem: str) -> None:
        self._wrong(name, f"{_shown(written(BY_NAME[name], self._values[name]))} {problem}")

    def _require(self, name: str, why: str = "is required") -> bool:
        if not self._values[name]:
            self._wrong(name, why)
        return name not in self._bad

    def _check(self) -> None:
        """The rules that concern more than the syntax of one value (spec/configuration section 5)."""
        self._check_database()
        self._check_provider()
        self._check_secrets()
        self._check_server()
        self._check_ldap()
        self._check_escrow()
        self._check_audit()

    def _check_database(self) -> None:
        values = self._values
        if values["DATABASE_DRIVER"] == "postgres":
            self._require("DATABASE_DSN", "is required for PostgreSQL")
            if values["DATABASE_MAX_OPEN_CONNS"] < 2:
                self._value_wrong("DATABASE_MAX_OPEN_CONNS", "is too few for PostgreSQL, at least 2 are needed")
        if _has_dots(values["HOST_REGISTRY_FILE"]):
            self._value_wrong("HOST_REGISTRY_FILE", "has . or .. in it")

    def _check_provider(self) -> None:
        if not self._values["DEV_LOGIN"]:
            for name in ("OIDC_ISSUER_URL", "OIDC_CLIENT_ID", "OIDC_CLIENT_SECRET"):
                self._require(name)

    def _check_secrets(self) -> None:
        values = self._values
        shared = values["SHARED_SECRET"]
        if not self._mtls and self._require("SHARED_SECRET") and _length(shared) < MIN_SECRET:
            self._too_short("SHARED_SECRET", shared)
        if self._mtls and not (shared or values["SESSION_SECRET"] or values["HMAC_SECRET"]):
            self._wrong("SESSION_SECRET", "is required when there is no shared secret; nobody could sign in without it")
        if values["WEBHOOK_SECRET"] and len(values["WEBHOOK_SECRET"]) < MIN_SECRET:
            self._too_short("WEBHOOK_SECRET", values["WEBHOOK_SECRET"])
        for number, key in enumerate(values["API_KEYS"], 1):
            if len(key) < MIN_SECRET:
                self._wrong("API_KEYS", f"key {number} has {len(key)} characters; each needs at least {MIN_SECRET}")
        for name in _KEYS:
            if _PLACEHOLDER.match(values[name]):
                self._wrong(name, "is the placeholder of an example, which everybody knows")
        if any(_PLACEHOLDER.match(key) for key in values["API_KEYS"]):
            self._wrong("API_KEYS", "has the placeholder of an example, which everybody knows")

    def _too_short(self, name: str, value: str) -> None:
        self._wrong(name, f"has {_length(value)} characters; at least {MIN_SECRET} are needed")

    def _check_server(self) -> None:
        values = self._values
        url = values["EXTERNAL_URL"]
        if self._require("EXTERNAL_URL"):
            if any(character in url for character in "\"'<>"):
                self._value_wrong("EXTERNAL_URL", "has a quote or an angle bracket in it")
            if values["DEV_LOGIN"] and url.lower().startswith("https://"):
                self._wrong("DEV_LOGIN", "true is refused with an https external URL: it lets everybody in")
        for one, other in (("TLS_CERT_FILE", "TLS_KEY_FILE"), ("TLS_KEY_FILE", "TLS_CERT_FILE")):
            if values[other] and not values[one]:
                self._wrong(one, f"is required together with {PREFIX}{other}; one alone would mean plain HTTP")
        if values["MTLS_KMS_BACKEND"] == "vault-transit":
            for name in ("MTLS_VAULT_ADDR", "MTLS_VAULT_TOKEN", "MTLS_VAULT_KEY_NAME"):
                self._require(name, f"is required when {PREFIX}MTLS_KMS_BACKEND is vault-transit")

    def _check_ldap(self) -> None:
        values = self._values
        enabled = values["LDAP_ENABLED"]
        if enabled:
            self._require("LDAP_BASE_DN", "is required while LDAP is on")
        if _length(values["LDAP_BASE_DN"]) > MAX_BASE_DN:
            self._wrong("LDAP_BASE_DN", f"is longer than {MAX_BASE_DN} bytes")
        shell = values["LDAP_DEFAULT_SHELL"]
        if not shell.startswith("/") or _SHELL_FORBIDDEN & set(shell):
            self._value_wrong("LDAP_DEFAULT_SHELL", "is not an absolute path without blanks and special characters")
        for name in ("LDAP_UID_BASE", "LDAP_GID_BASE"):
            if enabled and values[name] < MIN_POSIX_ID:
                self._value_wrong(name, f"is below {MIN_POSIX_ID}, among the ids of the system")
        for one, other in (("LDAP_BIND_DN", "LDAP_BIND_PASSWORD"), ("LDAP_BIND_PASSWORD", "LDAP_BIND_DN")):
            if values[other] and not values[one]:
                self._wrong(one, f"is required together with {PREFIX}{other}")
        home = values["LDAP_DEFAULT_HOME"].replace("%%", "")
        if home.count("%s") > 1 or re.search(r"%[a-zA-Z]", home.replace("%s", "", 1)):
            self._value_wrong("LDAP_DEFAULT_HOME", "may have one %s and no other % with a letter")

    def _check_escrow(self) -> None:
        values = self._values
        backend, salt = values["ESCROW_BACKEND"], values["ESCROW_HKDF_SALT"]
        if backend and values["ESCROW_COMMAND"]:
            self._wrong("ESCROW_COMMAND", f"is given, and {PREFIX}ESCROW_BACKEND too; keep one of the two")
        if backend == "local" and len(values["ESCROW_ENCRYPTION_KEY"]) < MIN_SECRET:
            self._wrong(
                "ESCROW_ENCRYPTION_KEY", f"at least {MIN_SECRET} characters are required for the local back end"
            )
        if salt:
            if len(salt) % 2 or not re.fullmatch(r"[0-9a-fA-F]+", salt):
                self._wrong("ESCROW_HKDF_SALT", "is not an even number of hexadecimal digits")
            elif len(salt) // 2 < MIN_SALT_BYTES:
                self._wrong("ESCROW_HKDF_SALT", f"has {len(salt) // 2} bytes; at least {MIN_SALT_BYTES} are needed")
        if backend == "vault" and _has_dots(values["ESCROW_PATH"]):
            self._value_wrong("ESCROW_PATH", "has . or .. in it")

    def _check_audit(self) -> None:
        values = self._values
        syslog = values["AUDIT_SYSLOG_URL"]
        if syslog:
            match = _SYSLOG.fullmatch(syslog)
            if match is None or not 0 < int(match[1]) < 65_536:
                self._value_wrong("AUDIT_SYSLOG_URL", "is not udp://host:port, tcp://host:port or tcp+tls://host:port")
        if values["AUDIT_LOG"] == "file:":
            self._value_wrong("AUDIT_LOG", "names no file")
        for sink in ("SYSLOG", "SPLUNK", "LOKI"):
            certificate, key = f"AUDIT_{sink}_CERT_FILE", f"AUDIT_{sink}_KEY_FILE"
            if bool(values[certificate]) != bool(values[key]):
                missing, given = (key, certificate) if values[certificate] else (certificate, key)
                self._wrong(missing, f"is empty, while {PREFIX}{given} is set; a client certificate needs both")
        if (values["AUDIT_SYSLOG_CA_FILE"] or values["AUDIT_SYSLOG_CERT_FILE"]) and not syslog.startswith("tcp+tls:"):
            self._wrong("AUDIT_SYSLOG_URL", "is not tcp+tls://host:port, while certificates for it are set")

    # -- warnings -----------------------------------------------------------------------------------------------------

    def _warn(self) -> None:
        values, warn = self._values, self._warnings.append
        shared, url = values["SHARED_SECRET"], values["EXTERNAL_URL"]
        if shared and (values["HMAC_SECRET"] or values["SESSION_SECRET"] or shared) == shared:
            warn(
                f"{PREFIX}SHARED_SECRET also signs browser sessions: whoever is root on one host can forge an "
                f"administrator's session. Set {PREFIX}SESSION_SECRET."
            )
        if values["HMAC_SECRET"] and not (shared or values["SESSION_SECRET"]):
            warn(f"{PREFIX}SESSION_SECRET is not set: grace sessions are stored unsigned.")
        for name in ("SESSION_SECRET", "HMAC_SECRET", "ESCROW_SECRET", "LDAP_SECRET", "METRICS_TOKEN"):
            if values[name] and _length(values[name]) < MIN_SECRET:
                warn(f"{PREFIX}{name} has fewer than {MIN_SECRET} characters.")
        if values["ESCROW_AUTH_SECRET"] and len(values["ESCROW_AUTH_SECRET"]) < MIN_AUTH_SECRET:
            warn(f"{PREFIX}ESCROW_AUTH_SECRET has fewer than {MIN_AUTH_SECRET} characters.")
        if not values["ADMIN_GROUPS"] and not values["DEV_LOGIN"]:
            warn(f"{PREFIX}ADMIN_GROUPS is empty: nobody is an administrator.")
        if values["DEV_LOGIN"]:
            warn(f"{PREFIX}DEV_LOGIN is on: everybody who reaches the server can sign in as anybody.")
        if url.lower().startswith("http://") and not _is_loopback(url):
            warn(f"{PREFIX}EXTERNAL_URL is not https: cookies and secrets travel readable.")
        if values["OIDC_INSECURE_SKIP_VERIFY"]:
            warn(f"{PREFIX}OIDC_INSECURE_SKIP_VERIFY is on: the provider's certificate is not verified.")
        if values["POCKETID_API_KEY"] and not values["WEBHOOK_SECRET"]:
            warn(f"{PREFIX}WEBHOOK_SECRET is not set: PocketID's webhook is refused.")
        if values["LDAP_ENABLED"]:
            self._warn_of_directory()
        if values["ESCROW_BACKEND"] == "local" and not values["ESCROW_HKDF_SALT"]:
            warn(f"{PREFIX}ESCROW_HKDF_SALT is not set: the fixed salt of old versions is used.")
        if self._mtls and not (values["TLS_CERT_FILE"] and values["TLS_KEY_FILE"]):
            warn("mTLS is on, but identree does not serve TLS itself: client certificates can never arrive.")

    def _warn_of_directory(self) -> None:
        values, warn = self._values, self._warnings.append
        if values["LDAP_ALLOW_ANONYMOUS"]:
            warn(f"{PREFIX}LDAP_ALLOW_ANONYMOUS is on: everybody who reaches the LDAP port can list the directory.")
        elif not (values["LDAP_BIND_DN"] or values["LDAP_PROVISION_ENABLED"]):
            warn(
                f"nobody can bind to the directory: set {PREFIX}LDAP_BIND_DN and {PREFIX}LDAP_BIND_PASSWORD, or "
                f"{PREFIX}LDAP_PROVISION_ENABLED, or turn {PREFIX}LDAP_ENABLED off."
            )
        if values["LDAP_SUDO_NO_AUTHENTICATE"] == "true":
            warn(
                f"{PREFIX}LDAP_SUDO_NO_AUTHENTICATE is true: every sudo rule says !authenticate, so nobody is asked "
                "for an approval."
            )
        if values["LDAP_UID_BASE"] == values["LDAP_GID_BASE"] and self._sources["LDAP_UID_BASE"] != DEFAULT:
            warn(f"{PREFIX}LDAP_UID_BASE and {PREFIX}LDAP_GID_BASE are equal: a uid and an unrelated gid can be equal.")

    def _check_names(self) -> None:
        """Warn of names that mean nothing here, with the nearest that does."""
        known = {setting.variable for setting in SETTINGS}
        known |= {setting.variable + "_FILE" for setting in SETTINGS if setting.secret}
        for variable in sorted(self._environ):
            if variable.startswith(PREFIX) and variable not in known and self._environ[variable]:
                self._unknown(variable, "the environment", known)
        for key in sorted(self._conf):
            setting = BY_NAME.get(key.removeprefix(PREFIX)) if key.startswith(PREFIX) else None
            if setting is not None and setting.from_environment_only:
                self._warnings.append(f"{key} counts only in the environment, not in {self._conf_path}.")
            elif key not in known:
                self._unknown(key, self._conf_path, known)
        for key in sorted(self._toml):
            if key not in BY_TOML:
                self._warnings.append(f"{_shown(key)} in {self._toml_path} is not a setting{_near(key, BY_TOML)}.")

    def _unknown(self, variable: str, where: str, known: set[str]) -> None:
        name = variable.removeprefix(PREFIX)
        if name in registry.TEST_NAMES:
            return
        if _CHANNEL.fullmatch(name) and variable.startswith(PREFIX):
            if where == self._conf_path:
                self._warnings.append(f"{variable} counts only in the environment, not in {where}.")
            return
        dead = registry.DEAD_NAMES.get(name) or next(
            (hint for prefix, hint in registry.DEAD_PREFIXES.items() if name.startswith(prefix)), ""
        )
        if dead:
            hint = f" is no longer a setting: {dead}"
        elif name in registry.AGENT_NAMES:
            hint = " is a setting of hosts, for their client.conf, and means nothing to the server"
        else:
            hint = f" is not a setting{_near(variable, known)}"
        self._warnings.append(f"{_shown(variable)} in {where}{hint}.")


def _near(name: str, known: Mapping[str, object] | set[str]) -> str:
    near = difflib.get_close_matches(name, known, 1, 0.75)
    return f"; the nearest is {near[0]}" if near else ""


def _shown(raw: Raw) -> str:
    """A value for a message: on one line, not too long, without the password of a URL."""
    text = masked(raw if isinstance(raw, str) else ",".join(raw))
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "…")


def _reason(e: Exception) -> str:
    """What the system says, without the path, which stands before it already."""
    if isinstance(e, UnicodeDecodeError):
        return "it is not UTF-8 text"
    return (e.strerror or str(e)) if isinstance(e, OSError) else str(e)
