"""
``client.conf`` (spec/host-agent section 3): what this host knows about its server.

The file decides who is believed, so it is believed only when nobody but its owner can have written it.
"""

from __future__ import annotations

import errno
import os
import stat

from identree.agent.text import clean, duration

DEFAULT_PATH = "/etc/identree/client.conf"

# Larger is not a configuration file.
MAX_FILE_BYTES = 65536

# A shorter secret can be guessed; the server refuses it as well.
MIN_SECRET_BYTES = 32

# Bounds of what the server may push (section 7), in seconds.
MIN_POLL, MIN_TIMEOUT, MAX_TIMEOUT = 1.0, 5.0, 600.0

# Break-glass (section 3). A cost above the greatest keeps a person waiting for seconds at the worst moment.
DEFAULT_BREAKGLASS_FILE = "/etc/identree-breakglass"
DEFAULT_ROTATION_DAYS, GREATEST_ROTATION_DAYS = 90, 36500
DEFAULT_COST, LEAST_COST, GREATEST_COST = 12, 10, 15
PASSWORD_TYPES = ("random", "passphrase", "alphanumeric")

_TRUE = ("1", "t", "T", "TRUE", "true", "True")

_HOST_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")

# What a caller's environment could turn against a root helper (section 1).
_STRIPPED = (
    "HTTP_PROXY HTTPS_PROXY NO_PROXY ALL_PROXY LD_PRELOAD LD_LIBRARY_PATH LD_AUDIT LD_BIND_NOW LD_DEBUG LD_PROFILE "
    "SSL_CERT_FILE SSL_CERT_DIR SSLKEYLOGFILE OPENSSL_CONF OPENSSL_MODULES OPENSSL_ENGINES RES_OPTIONS HOSTALIASES "
    "LOCALDOMAIN RESOLV_HOST_CONF GCONV_PATH LOCPATH NLSPATH TZDIR TMPDIR"
).split()


class ConfigError(Exception):
    """The configuration cannot be used; the text names the file or key and what would be right."""


class Config:
    """
    The checked configuration.

    :ivar scheme, host, port, base: the parts of the server's URL; ``base`` has no trailing slash.
    :ivar secret: empty when this host authenticates by certificate alone.
    :ivar poll_interval, timeout: seconds.
    :ivar hostname: lower case, without trailing dot; empty when the kernel has none.
    :ivar breakglass_enabled, breakglass_file, rotation_days, password_type, bcrypt_cost: of the break-glass password;
        the type is checked where one is made.
    :ivar token_cache_enabled, token_cache_dir, token_cache_issuer, token_cache_client_id: of the token cache, which is
        off as long as issuer or client id are missing.
    :ivar warnings: for the log, not for the terminal.
    :param server: there must be a server; without, ``server_url`` may be empty.
    """

    def __init__(self, path: str, values: dict[str, str], *, server: bool = True) -> None:
        self.path = path
        self.warnings: list[str] = []
        self.server_url = values.get("IDENTREE_SERVER_URL", "").rstrip("/")
        if not self.server_url and server:
            raise ConfigError(f"IDENTREE_SERVER_URL is not set; write it to {path}")
        insecure = values.get("IDENTREE_INSECURE_ALLOW_HTTP_ESCROW", "") in _TRUE
        self.scheme, self.host, self.port, self.base = "", "", 0, ""
        if self.server_url:
            self.scheme, self.host, self.port, self.base = split_url(self.server_url, path)
        if self.scheme == "http" and not insecure:
            raise ConfigError(
                f"IDENTREE_SERVER_URL in {path} must begin with https:// ({self.server_url}); "
                "plain http lets the network approve, and only IDENTREE_INSECURE_ALLOW_HTTP_ESCROW=true permits it"
            )
        self.secret = values.get("IDENTREE_SHARED_SECRET", "")
        if self.secret and len(self.secret.encode()) < MIN_SECRET_BYTES:
            raise ConfigError(f"IDENTREE_SHARED_SECRET in {path} is shorter than {MIN_SECRET_BYTES} bytes")
        if not (self.secret.isascii() and self.secret.isprintable()):
            raise ConfigError(f"IDENTREE_SHARED_SECRET in {path} must consist of printable ASCII characters")
        self.poll_interval = self._seconds(values, "IDENTREE_POLL_INTERVAL", 2.0)
        if self.poll_interval < MIN_POLL:
            self.poll_interval = 2.0
        self.timeout = self._seconds(values, "IDENTREE_TIMEOUT", 120.0)
        self.client_cert = values.get("IDENTREE_CLIENT_CERT", "")
        self.client_key = values.get("IDENTREE_CLIENT_KEY", "")
        self.ca_cert = values.get("IDENTREE_CA_CERT", "")
        self.syslog = values.get("IDENTREE_SYSLOG", "true") in _TRUE
        self.color = values.get("IDENTREE_COLOR", "auto") not in ("never", "no", "false", "0")
        self.hostname = _hostname(values.get("IDENTREE_HOSTNAME", ""), path)
        self.breakglass_enabled = values.get("IDENTREE_BREAKGLASS_ENABLED", "true") in _TRUE
        self.breakglass_file = values.get("IDENTREE_BREAKGLASS_FILE", DEFAULT_BREAKGLASS_FILE)
        if not self.breakglass_file.startswith("/") or self.breakglass_file.endswith("/"):
            raise ConfigError(f"IDENTREE_BREAKGLASS_FILE in {path} must be the absolute path of a file")
        self.password_type = values.get("IDENTREE_BREAKGLASS_PASSWORD_TYPE", PASSWORD_TYPES[0])
        self.rotation_days = min(
            self._whole(values, "IDENTREE_BREAKGLASS_ROTATION_DAYS", DEFAULT_ROTATION_DAYS, 1), GREATEST_ROTATION_DAYS
        )
        self.bcrypt_cost = self._whole(values, "IDENTREE_BREAKGLASS_BCRYPT_COST", DEFAULT_COST, LEAST_COST)
        if self.bcrypt_cost > GREATEST_COST:
            self.warnings.append(f"IDENTREE_BREAKGLASS_BCRYPT_COST in {path} is cut to {GREATEST_COST}")
            self.bcrypt_cost = GREATEST_COST
        self.token_cache_enabled = values.get("IDENTREE_TOKEN_CACHE_ENABLED", "true") in _TRUE
        self.token_cache_dir = values.get("IDENTREE_TOKEN_CACHE_DIR", "/run/identree")
        self.token_cache_issuer = values.get("IDENTREE_TOKEN_CACHE_ISSUER", "")
        self.token_cache_client_id = values.get("IDENTREE_TOKEN_CACHE_CLIENT_ID", "")

    def _whole(self, values: dict[str, str], key: str, default: int, least: int) -> int:
        """A whole number; the default for what is none or less than ``least``."""
        text = values.get(key, "")
        if not text:
            return default
        if not (text.isascii() and text.isdigit() and len(text) < 10) or int(text) < least:
            self.warnings.append(f"{key} in {self.path} is not a number of at least {least}; using {default}")
            return default
        return int(text)

    def _seconds(self, values: dict[str, str], key: str, default: float) -> float:
        text = values.get(key, "")
        if not text:
            return default
        seconds = duration(text)
        if seconds is None:
            self.warnings.append(f"{key} in {self.path} is not a duration like 2s or 1m30s; using {default:g}s")
            return default
        return seconds

    def push(self, pushed: dict[str, object]) -> None:
        """
        Apply what the server pushed with a challenge (section 7), within bounds; nonsense is ignored.
        Only what cannot weaken the host is applied here, because nothing signs this object.
        """
        interval, timeout = pushed.get("poll_interval"), pushed.get("timeout")
        seconds = duration(interval) if isinstance(interval, str) else None
        if seconds is not None:
            self.poll_interval = min(max(seconds, MIN_POLL), MAX_TIMEOUT)
        seconds = duration(timeout) if isinstance(timeout, str) else None
        if seconds:
            if seconds > MAX_TIMEOUT:
                self.warnings.append(f"the server's timeout of {seconds:g}s was cut to {MAX_TIMEOUT:g}s")
            self.timeout = min(max(seconds, MIN_TIMEOUT), MAX_TIMEOUT)

    def push_verified(self, pushed: dict[str, object]) -> None:
        """
        Apply what the server pushed about break-glass and token cache. Nothing signs it either, so this is for pushes
        that came with a challenge whose approval was genuine; nonsense is ignored.
        """
        enabled, cache = pushed.get("breakglass_enabled"), pushed.get("token_cache_enabled")
        kind, days = pushed.get("breakglass_password_type"), pushed.get("breakglass_rotation_days")
        if isinstance(enabled, bool):
            self.breakglass_enabled = enabled
        if isinstance(cache, bool):
            self.token_cache_enabled = cache
        if kind in PASSWORD_TYPES:
            self.password_type = str(kind)
        if isinstance(days, int) and not isinstance(days, bool) and days > 0:
            self.rotation_days = min(days, GREATEST_ROTATION_DAYS)


def split_url(url: str, path: str) -> tuple[str, str, int, str]:
    """
    Scheme, host, port and base path of a server URL.

    :raise ConfigError: another scheme, credentials, a query or a fragment, no host, a bad port, unusable characters.
    """
    wrong = ConfigError(f"IDENTREE_SERVER_URL in {path} is not a URL like https://identree.example.com")
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("http", "https") or not url.isascii() or not url.isprintable():
        raise wrong
    authority, slash, base = rest.partition("/")
    if not authority or any(c in rest for c in '@?# \\"<>'):
        raise wrong
    port_text = ""
    if authority.startswith("["):
        host, bracket, port_text = authority[1:].partition("]")
        if not bracket or (port_text and not port_text.startswith(":")):
            raise wrong
        port_text = port_text[1:]
    else:
        host, _, port_text = authority.partition(":")
        if not set(host) <= _HOST_CHARACTERS:
            raise wrong
    port = 443 if scheme == "https" else 80
    if port_text:
        if not port_text.isdigit() or not 0 < int(port_text[:6]) < 65536:
            raise wrong
        port = int(port_text)
    if not host:
        raise wrong
    return scheme, host, port, (slash + base).rstrip("/")


def parse(text: str) -> dict[str, str]:
    """The file's keys and values: ``[export ]KEY=value``, one pair of quotes stripped, last wins, empty is unset."""
    values: dict[str, str] = {}
    for raw in text.splitlines():
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("export "):
            line = line[len("export ") :]
        key, equals, value = line.partition("=")
        if not equals:
            continue
        key, value = key.strip(), value.strip()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        values[key] = value
    return {key: value for key, value in values.items() if value}


def load(path: str, overrides: dict[str, str] | None = None, *, server: bool = True) -> Config:
    """
    The configuration in ``path``, a missing file being an empty one.

    :param server: whether there must be a server in it.
    :param overrides: an environment whose ``IDENTREE_*`` go before the file; none for everything that PAM starts.
    :raise ConfigError: the file is not trustworthy or not usable.
    """
    warnings: list[str] = []
    values = parse(_read(path, warnings))
    for key, value in (overrides or {}).items():
        if key.startswith("IDENTREE_") and value:
            values[key] = value
    config = Config(path, values, server=server)
    config.warnings[:0] = warnings
    return config


def _read(path: str, warnings: list[str]) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as e:
        if e.errno in (errno.ENOENT, errno.ENOTDIR):
            return ""
        if e.errno == errno.ELOOP:
            raise ConfigError(f"{path} is a symbolic link; put a regular file there") from None
        raise ConfigError(f"{path} cannot be read: {os.strerror(e.errno or 0)}") from None
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise ConfigError(f"{path} is not a regular file")
        if info.st_uid not in (0, os.geteuid()):
            raise ConfigError(f"{path} belongs to uid {info.st_uid}; run: chown root:root {path}")
        if info.st_mode & 0o022:
            raise ConfigError(f"{path} can be written by others than its owner; run: chmod 600 {path}")
        if info.st_mode & 0o044:
            warnings.append(f"{path} can be read by others, and holds the secret; run: chmod 600 {path}")
        data = b""
        while len(data) <= MAX_FILE_BYTES:
            chunk = os.read(fd, MAX_FILE_BYTES)
            if not chunk:
                break
            data += chunk
    finally:
        os.close(fd)
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_FILE_BYTES} bytes")
    return data.decode("utf-8", "replace")


def _hostname(configured: str, path: str) -> str:
    name = configured or os.uname().nodename
    if not configured and len(name) >= 64:  # uname cuts there
        try:
            with open("/proc/sys/kernel/hostname", "rb") as file:
                name = file.read(512).decode("utf-8", "replace").strip()
        except OSError:
            pass
    name = name.lower()
    if name.endswith("."):
        name = name[:-1]
    if len(name) > 253 or not set(name) <= _HOST_CHARACTERS:
        raise ConfigError(
            f"the host name {clean(name, 80)!r} has characters no server accepts; set IDENTREE_HOSTNAME in {path}"
        )
    return name


def strip_environment() -> None:
    """Remove from our own environment all that could redirect, preload or reconfigure (section 1)."""
    for key in list(os.environ):
        if key.startswith(("IDENTREE_", "PYTHON")) or key.upper() in _STRIPPED:
            del os.environ[key]
