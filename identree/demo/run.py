"""
What the demo needs besides the provider: the settings of a server that lives in one directory and on loopback only, and
the configuration of a pretended host. Starting them together is the composition root's work.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from identree.demo.provider import LOOPBACK, is_loopback, loopback_url

CLIENT_ID = "identree-demo"
ADMIN_GROUP = "admins"
HTTP_PORT = 8090
PROVIDER_PORT = 8091
LDAP_PORT = 8389
BASE_DN = "dc=demo,dc=invalid"

_USAGE = f"""\
usage: identree demo [--agent FILE] [--port PORT] [--provider-port PORT] [--ldap-port PORT]

  --agent FILE           the agent, for the command that plays a host (build/identree.pyz)
  --port PORT            where identree listens on {LOOPBACK} ({HTTP_PORT})
  --provider-port PORT   where the demo's identity provider listens on {LOOPBACK} ({PROVIDER_PORT})
  --ldap-port PORT       where the directory listens on {LOOPBACK} ({LDAP_PORT})
"""

# Settings whose default is a path in /config, and the file's name in the demo's directory.
_FILES = {
    "INSTALL_SIGNING_KEY": "install-signing.key",
    "INSTALL_VERIFY_KEY": "install-signing.pub",
    "AUDIT_SIGNING_KEY": "audit-signing.key",
    "AUDIT_VERIFY_KEY": "audit-signing.pub",
    "APPROVAL_POLICIES_FILE": "approval-policies.json",
    "LDAP_UID_MAP_FILE": "uidmap.json",
    "SUDO_RULES_FILE": "sudorules.json",
    "DATABASE_DSN": "identree.db",
    "HOST_REGISTRY_FILE": "hosts.json",
    "SESSION_STATE_FILE": "sessions.json",
    "NOTIFICATION_CONFIG_FILE": "notification-channels.json",
    "ADMIN_NOTIFY_FILE": "admin-notifications.json",
    "TOML_CONFIG_FILE": "identree.toml",
}
# Settings that say where something listens or is reached; in the demo all of them stay on this machine.
_LISTENING = ("LISTEN_ADDR", "LDAP_LISTEN_ADDR")
_URLS = ("EXTERNAL_URL", "OIDC_ISSUER_URL", "OIDC_ISSUER_PUBLIC_URL", "POCKETID_API_URL", "INSTALL_URL")


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """The demo's command line."""

    agent: Path | None = None
    http_port: int = HTTP_PORT
    provider_port: int = PROVIDER_PORT
    ldap_port: int = LDAP_PORT


def parse_arguments(arguments: Sequence[str]) -> DemoOptions:
    """
    The command line after ``identree demo``.

    :raise ValueError: with the mistake and the usage.
    """
    given: dict[str, str] = {}
    words = list(arguments)
    while words:
        name, joined, value = words.pop(0).partition("=")
        if name not in ("--agent", "--port", "--provider-port", "--ldap-port"):
            raise ValueError(f"{name!r} is unknown\n{_USAGE}")
        if not joined:
            if not words:
                raise ValueError(f"{name} needs a value\n{_USAGE}")
            value = words.pop(0)
        given[name] = value
    options = DemoOptions(
        agent=Path(given["--agent"]) if "--agent" in given else None,
        http_port=_port(given.get("--port"), HTTP_PORT),
        provider_port=_port(given.get("--provider-port"), PROVIDER_PORT),
        ldap_port=_port(given.get("--ldap-port"), LDAP_PORT),
    )
    if len({options.http_port, options.provider_port, options.ldap_port}) < 3:
        raise ValueError("identree, its identity provider and its directory need three different ports")
    return options


def _port(text: str | None, default: int) -> int:
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and 0 < int(text[:6]) < 65536):
        raise ValueError(f"{text!r} is no port; a port is a number from 1 to 65535")
    return int(text)


def demo_settings(directory: Path, http_port: int, provider_port: int, ldap_port: int = LDAP_PORT) -> dict[str, str]:
    """
    The environment of a demo server. Everything that it writes is in ``directory``; the secrets are new each time.
    Browsers must use the addresses as they stand here: a cookie for 127.0.0.1 is none for localhost.
    """
    environment = {
        "LISTEN_ADDR": f"{LOOPBACK}:{http_port}",
        "EXTERNAL_URL": f"http://{LOOPBACK}:{http_port}",
        "OIDC_ISSUER_URL": f"http://{LOOPBACK}:{provider_port}",
        "OIDC_CLIENT_ID": CLIENT_ID,
        "OIDC_CLIENT_SECRET": secrets.token_hex(32),
        "SHARED_SECRET": secrets.token_hex(32),
        "SESSION_SECRET": secrets.token_hex(32),
        "ADMIN_GROUPS": ADMIN_GROUP,
        "POCKETID_API_URL": f"http://{LOOPBACK}:{provider_port}",
        "POCKETID_API_KEY": secrets.token_hex(32),
        "WEBHOOK_SECRET": secrets.token_hex(32),
        "LDAP_LISTEN_ADDR": f"{LOOPBACK}:{ldap_port}",
        "LDAP_TLS_LISTEN_ADDR": "",
        "LDAP_BASE_DN": BASE_DN,
        # invented people, shown to this machine only
        "LDAP_ALLOW_ANONYMOUS": "true",
        "DATABASE_DRIVER": "sqlite",
        "AUDIT_LOG": f"file:{directory / 'audit.log'}",
        **{name: str(directory / file) for name, file in _FILES.items()},
    }
    return {f"IDENTREE_{name}": value for name, value in environment.items()}


def refuse_non_loopback(settings: Mapping[str, str]) -> None:
    """
    The demo signs in whoever clicks a name, so nobody from elsewhere may reach it.

    :param settings: an environment, as :func:`demo_settings` makes it.
    :raise ValueError: something listens beyond this machine, or would be reached there.
    """
    for name in _LISTENING:
        address = settings.get(f"IDENTREE_{name}", "")
        host = urlsplit(f"//{address}").hostname or ""
        if not is_loopback(host):
            raise ValueError(f"IDENTREE_{name}={address!r} listens beyond this machine; the demo listens on {LOOPBACK}")
    for name in _URLS:
        url = settings.get(f"IDENTREE_{name}", "")
        if url:
            try:
                loopback_url(url)
            except ValueError as e:
                raise ValueError(f"IDENTREE_{name}: {e}") from None
    if settings.get("IDENTREE_LDAP_TLS_LISTEN_ADDR") != "":
        raise ValueError("IDENTREE_LDAP_TLS_LISTEN_ADDR must be empty in the demo")


def write_host_config(directory: Path, server_url: str, secret: str) -> Path:
    """
    A ``client.conf`` that makes the agent play a host of the demo. It holds the shared secret: mode 0600.

    :returns: its path; an earlier one is replaced.
    """
    path = directory / "client.conf"
    path.unlink(missing_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(file, "w") as writer:
        writer.write(
            "# A pretended host of the identree demo\n"
            f"IDENTREE_SERVER_URL={server_url}\n"
            f"IDENTREE_SHARED_SECRET={secret}\n"
            # without TLS the agent speaks to its server only when told to; on loopback nobody listens in
            "IDENTREE_INSECURE_ALLOW_HTTP_ESCROW=true\n"
            "IDENTREE_TOKEN_CACHE_ENABLED=false\n"
        )
    return path
