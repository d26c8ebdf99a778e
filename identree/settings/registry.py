"""
Every setting of the server, declared once (spec/configuration section 4).

From this table come loading, validation, ``identree check-config``, ``docs/configuration.md`` and the settings page.
The attributes of :class:`~identree.settings.values.Settings` mirror it; a test holds the two together.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import Any

from identree.core import durations

PREFIX = "IDENTREE_"


class Kind(Enum):
    """The syntaxes of spec/configuration section 2; the value is what documentation calls it."""

    TEXT = "text"
    PATH = "path"
    BOOL = "bool"
    TRISTATE = "bool or unset"
    INT = "int"
    DURATION = "duration"
    SIZE = "size"
    LIST = "list"
    NETWORKS = "list of networks"
    TIME = "time"
    MAP = "JSON map"
    URL = "URL"
    LISTEN = "listen address"
    CHOICE = "choice"


class Live(Enum):
    """When a change made on the settings page counts."""

    AT_ONCE = "live"
    RESTART = "restart"
    PART = "part"
    NOT_EDITABLE = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """
    :ivar name: without prefix.
    :ivar toml: ``section.key``, or empty when it cannot stand in the TOML file.
    :ivar default: a value of the kind's type; what other settings decide is described by ``default_text``.
    :ivar minimum, maximum: bounds beyond which the value is an error; in the kind's type.
    :ivar adjust: what deployed versions do with values that they do not accept; a change gives a warning.
    :ivar bounds: the limits in words.
    :ivar choices: the accepted texts of a choice.
    :ivar folded: the choice's case and the spaces around it do not matter.
    :ivar aliases: other accepted texts and what they mean.
    :ivar secret: never shown, logged or written to TOML; may be given as ``NAME_FILE``.
    :ivar from_environment_only: not read from identree.conf.
    :ivar blank_counts: an empty value is a value, not "unset".
    """

    name: str
    group: str
    kind: Kind
    default: Any
    help: str
    example: str
    default_text: str = ""
    toml: str = ""
    live: Live = Live.NOT_EDITABLE
    secret: bool = False
    minimum: Any = None
    maximum: Any = None
    adjust: Callable[[Any], Any] | None = None
    bounds: str = ""
    choices: tuple[str, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()
    folded: bool = False
    from_environment_only: bool = False
    blank_counts: bool = False

    @property
    def variable(self) -> str:
        return PREFIX + self.name

    @property
    def attribute(self) -> str:
        return self.name.lower()


def _clamp(low: Any, high: Any) -> Callable[[Any], Any]:
    return lambda value: min(max(value, low), high)


def _positive_or(default: Any, zero: Any) -> Callable[[Any], Any]:
    return lambda value: value if value > zero else default


def _not_negative(zero: Any) -> Callable[[Any], Any]:
    return lambda value: max(value, zero)


def _refresh_interval(value: timedelta) -> timedelta:
    return timedelta(seconds=300) if value <= ZERO else max(value, timedelta(seconds=10))


def _poll_interval(value: timedelta) -> timedelta:
    return ZERO if value <= ZERO else max(value, timedelta(seconds=1))


ZERO = timedelta()
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)

BUILT_IN_CHOICES = (
    "Routine maintenance",
    "Incident response",
    "Deployment",
    "Debugging / troubleshooting",
    "Security investigation",
    "Configuration change",
)

YES, NO, PART = Live.AT_ONCE, Live.RESTART, Live.PART
TEXT, PATH, BOOL, TRISTATE, INT = Kind.TEXT, Kind.PATH, Kind.BOOL, Kind.TRISTATE, Kind.INT
DURATION, SIZE, LIST, URL, CHOICE = Kind.DURATION, Kind.SIZE, Kind.LIST, Kind.URL, Kind.CHOICE

_table: list[Setting] = []
_group = ""


def _s(name: str, kind: Kind, default: Any, help: str, example: str, **rest: Any) -> None:
    _table.append(Setting(name=name, group=_group, kind=kind, default=default, help=help, example=example, **rest))


def _secret(name: str, help: str, example: str = "$(openssl rand -hex 32)", **rest: Any) -> None:
    _s(name, TEXT, "", help, example, secret=True, **rest)


_group = "Signing in (OIDC) and PocketID"
_s(
    "OIDC_ISSUER_URL",
    URL,
    "",
    "The OIDC provider. Discovery and token exchange go here; required unless dev login is on.",
    "https://id.example.com",
    toml="oidc.issuer_url",
    live=NO,
)
_s(
    "OIDC_ISSUER_PUBLIC_URL",
    URL,
    "",
    "The provider's address as browsers see it, where it differs. Tokens must then name exactly this issuer.",
    "https://id.example.com",
    toml="oidc.issuer_public_url",
    live=NO,
)
_s(
    "OIDC_CLIENT_ID",
    TEXT,
    "",
    "The client registered at the provider; required unless dev login is on.",
    "identree",
    toml="oidc.client_id",
    live=NO,
)
_secret(
    "OIDC_CLIENT_SECRET", "The client's secret; required unless dev login is on.", "the secret that the provider shows"
)
_s("OIDC_INSECURE_SKIP_VERIFY", BOOL, False, "Do not verify the provider's TLS certificate. For tests only.", "false")
_s(
    "OIDC_ENFORCE_IP_BINDING",
    BOOL,
    False,
    "Refuse a sign-in that ends at another client address than it began at; otherwise this is only logged.",
    "true",
)
_s(
    "OIDC_CLOCK_LEEWAY",
    DURATION,
    60 * SECOND,
    "How far the provider's clock may be from ours when an ID token is checked.",
    "60s",
    minimum=ZERO,
    maximum=5 * MINUTE,
    bounds="0s to 5m",
)
_secret(
    "POCKETID_API_KEY",
    "PocketID's API key. When set, identree manages the directory in full mode; without it, it works as a bridge.",
    "the key that PocketID shows",
)
_s(
    "POCKETID_API_URL",
    URL,
    "",
    "PocketID's API.",
    "https://id.example.com",
    toml="pocketid.api_url",
    live=NO,
    default_text="the issuer URL",
)

_group = "HTTP server and TLS"
_s(
    "LISTEN_ADDR",
    Kind.LISTEN,
    ":8090",
    "Where the HTTP server listens. An empty host means all interfaces.",
    "127.0.0.1:8090",
    toml="server.listen_addr",
    live=NO,
)
_s(
    "EXTERNAL_URL",
    URL,
    "",
    "The address that browsers and hosts use; required. With https, cookies are secure and plain http is redirected. "
    "The redirect URI at the provider is this address followed by /callback. It may have a path, which the reverse "
    "proxy takes off before it asks identree.",
    "https://identree.example.com",
    toml="server.external_url",
    live=NO,
    bounds="none of \" ' < >; trailing slashes are removed",
)
_s(
    "INSTALL_URL",
    URL,
    "",
    "The address that install scripts use, where it differs.",
    "https://identree.example.com",
    toml="server.install_url",
    live=NO,
    default_text="the external URL",
)
_s(
    "TLS_CERT_FILE",
    PATH,
    "",
    "Certificate chain (PEM). With the key it turns on HTTPS; both are needed.",
    "/config/tls.crt",
)
_s("TLS_KEY_FILE", PATH, "", "Private key of the certificate (PEM).", "/config/tls.key")
_s(
    "TRUSTED_PROXIES",
    Kind.NETWORKS,
    "127.0.0.0/8, ::1/128",
    "Proxies whose X-Forwarded-For is believed, as networks. "
    "Limits and audit records then see the client's own address.",
    "10.0.0.0/8, ::1/128",
)
_s(
    "AGENT_FILE",
    PATH,
    "",
    "The agent that hosts fetch (identree.pyz). Empty: beside the server's program.",
    "/usr/local/lib/identree/identree.pyz",
)
_s(
    "INSTALL_SIGNING_KEY",
    PATH,
    "/config/install-signing.key",
    "Private key that signs install scripts; generated when missing.",
    "/config/install-signing.key",
)
_s(
    "INSTALL_VERIFY_KEY",
    PATH,
    "/config/install-signing.pub",
    "Public key for install scripts; generated when missing.",
    "/config/install-signing.pub",
)
_s(
    "API_KEYS",
    LIST,
    (),
    "Keys for the history export, separated by commas.",
    "$(openssl rand -hex 32)",
    secret=True,
    bounds="each at least 32 characters",
)
_secret("METRICS_TOKEN", "Bearer token for /metrics. Without it, anybody may read the metrics.")
_secret(
    "WEBHOOK_SECRET",
    "Key of the signature on PocketID's webhook. Without it, the webhook is refused.",
    bounds="at least 32 characters",
)

_group = "Secrets"
_secret(
    "SHARED_SECRET",
    "What hosts without a secret of their own send to authenticate; required unless mTLS is on.",
    bounds="at least 32 bytes, unless mTLS is on",
)
_secret(
    "SESSION_SECRET",
    "Signs browser sessions and grace sessions. "
    "Set it: otherwise every host, which knows the shared secret, can forge an administrator's session.",
    default_text="the shared secret",
)
_secret("HMAC_SECRET", "Old override of the session secret for cookies and tokens.", default_text="the session secret")
_secret("ESCROW_SECRET", "Signs the escrow requests of hosts.", default_text="the shared secret")
_secret(
    "LDAP_SECRET",
    "Derives the LDAP passwords of hosts. After a change every host must be provisioned again.",
    default_text="the shared secret",
)

_group = "Challenges and administration"
_s(
    "CHALLENGE_TTL",
    DURATION,
    120 * SECOND,
    "How long a sudo request waits for its decision.",
    "120s",
    toml="auth.challenge_ttl",
    live=PART,
    adjust=_clamp(30 * SECOND, 24 * HOUR),
    bounds="30s to 24h",
)
_s(
    "GRACE_PERIOD",
    DURATION,
    ZERO,
    "How long after an approval the same person needs none on the same host; 0 turns this off.",
    "1h",
    toml="auth.grace_period",
    live=PART,
    adjust=_not_negative(ZERO),
    bounds="not negative",
)
_s(
    "ONE_TAP_MAX_AGE",
    DURATION,
    24 * HOUR,
    "How recent a sign-in must be for a one-tap approval link.",
    "24h",
    toml="auth.onetap_max_age",
    live=YES,
    adjust=_positive_or(24 * HOUR, ZERO),
    bounds="more than 0",
)
_s(
    "REQUIRE_JUSTIFICATION",
    BOOL,
    False,
    "Refuse requests without a reason.",
    "true",
    toml="auth.require_justification",
    live=PART,
)
_s(
    "JUSTIFICATION_CHOICES",
    LIST,
    BUILT_IN_CHOICES,
    "The reasons that are offered, separated by commas.",
    "Maintenance, Incident",
    toml="auth.justification_choices",
    live=PART,
)
_s(
    "ADMIN_GROUPS",
    LIST,
    (),
    "Groups of the provider whose members are administrators; names must be exact. Without any, nobody is.",
    "admins",
    toml="admin.groups",
    live=YES,
)
_s(
    "APPROVAL_POLICIES_FILE",
    PATH,
    "/config/approval-policies.json",
    "The approval policies.",
    "/config/approval-policies.json",
    toml="admin.approval_policies_file",
    live=YES,
)
_s(
    "POLICY_SOURCE",
    CHOICE,
    "database",
    "Where the approval policies are kept: database, where the policies page edits them and every version is kept (a "
    "policy file is taken over once, when the database has none), or file: the file of IDENTREE_APPROVAL_POLICIES_FILE "
    "counts, is followed while identree runs, and the page only shows it.",
    "file",
    choices=("database", "file"),
)
_s(
    "SESSION_MAX_AGE",
    DURATION,
    12 * HOUR,
    "After this time a browser session ends, however active it is.",
    "12h",
    minimum=5 * MINUTE,
    maximum=720 * HOUR,
    bounds="5m to 720h",
)
_s(
    "MAX_PENDING_PER_USER",
    INT,
    10,
    "How many sudo requests of one person may wait at a time.",
    "10",
    minimum=1,
    maximum=1000,
    bounds="1 to 1000",
)
_s(
    "MAX_PENDING",
    INT,
    10_000,
    "How many sudo requests may wait at a time.",
    "10000",
    minimum=1,
    maximum=1_000_000,
    bounds="1 to 1000000",
)

_group = "LDAP"
_s("LDAP_ENABLED", BOOL, True, "Serve the directory over LDAP.", "false", toml="ldap.enabled", live=NO)
_s(
    "LDAP_LISTEN_ADDR",
    Kind.LISTEN,
    ":389",
    "Where LDAP listens. Set to nothing, this listener stays closed.",
    "127.0.0.1:389",
    toml="ldap.listen_addr",
    live=NO,
    blank_counts=True,
)
_s(
    "LDAP_TLS_LISTEN_ADDR",
    Kind.LISTEN,
    ":636",
    "Where LDAPS listens, when there are a certificate and a CA for clients. Set to nothing, it stays closed.",
    ":636",
    blank_counts=True,
)
_s(
    "LDAP_BASE_DN",
    TEXT,
    "",
    "Root of the directory tree; required when LDAP is on.",
    "dc=example,dc=com",
    toml="ldap.base_dn",
    live=NO,
    bounds="at most 512 bytes",
)
_s(
    "LDAP_BIND_DN",
    TEXT,
    "",
    "DN of the read-only account; together with its password, or neither.",
    "cn=readonly,dc=example,dc=com",
    toml="ldap.bind_dn",
    live=NO,
)
_secret("LDAP_BIND_PASSWORD", "Password of the read-only account.")
_s(
    "LDAP_REFRESH_INTERVAL",
    DURATION,
    300 * SECOND,
    "How often the directory is read from PocketID.",
    "300s",
    toml="ldap.refresh_interval",
    live=NO,
    adjust=_refresh_interval,
    bounds="at least 10s",
)
_s(
    "LDAP_UID_MAP_FILE",
    PATH,
    "/config/uidmap.json",
    "Where assigned POSIX ids are kept.",
    "/config/uidmap.json",
    toml="ldap.uid_map_file",
    live=NO,
)
_s(
    "LDAP_UID_BASE",
    INT,
    200_000,
    "First user id to assign.",
    "200000",
    toml="ldap.uid_base",
    live=NO,
    adjust=_positive_or(200_000, 0),
    bounds="at least 1000",
)
_s(
    "LDAP_GID_BASE",
    INT,
    200_000,
    "First group id to assign.",
    "200000",
    toml="ldap.gid_base",
    live=NO,
    adjust=_positive_or(200_000, 0),
    bounds="at least 1000",
)
_s(
    "LDAP_DEFAULT_SHELL",
    PATH,
    "/bin/bash",
    "Login shell of people who have none of their own.",
    "/bin/bash",
    toml="ldap.default_shell",
    live=YES,
    bounds="absolute, without special characters",
)
_s(
    "LDAP_DEFAULT_HOME",
    TEXT,
    "/home/%s",
    "Home directory; %s stands for the user name.",
    "/home/%s",
    toml="ldap.default_home",
    live=YES,
    bounds="at most one %s",
)
_s(
    "LDAP_ALLOW_ANONYMOUS",
    BOOL,
    False,
    "Answer searches without a bind. Everybody who reaches the port can then list the directory.",
    "false",
)
_s(
    "LDAP_SUDO_NO_AUTHENTICATE",
    CHOICE,
    "false",
    "Whether sudo rules say !authenticate: never, always, or as a group's claims say.",
    "claims",
    toml="ldap.sudo_no_authenticate",
    live=YES,
    choices=("false", "true", "claims"),
)
_s(
    "SUDO_RULES_FILE",
    PATH,
    "/config/sudorules.json",
    "Sudo rules of bridge mode.",
    "/config/sudorules.json",
    toml="ldap.sudo_rules_file",
    live=NO,
)
_s(
    "LDAP_PROVISION_ENABLED",
    BOOL,
    False,
    "Let hosts fetch their LDAP configuration, with a password of their own.",
    "true",
    toml="ldap.provision_enabled",
    live=YES,
)
_s(
    "LDAP_EXTERNAL_URL",
    TEXT,
    "",
    "The LDAP address that is given to hosts.",
    "ldaps://identree.example.com",
    toml="ldap.external_url",
    live=YES,
)
_s(
    "LDAP_TLS_CA_CERT",
    TEXT,
    "",
    "The CA that LDAPS clients must be signed by, and that is given to hosts: a path, or the PEM text itself. With "
    "mTLS on, identree's own CA counts too, and only its certificates say which host a client is.",
    "/config/ca.crt",
    toml="ldap.tls_ca_cert",
    live=YES,
)

_s(
    "LDAP_TLS_CLIENT_AUTH",
    CHOICE,
    "required",
    "Whether LDAPS and StartTLS clients must show a certificate of the CA: required or optional. With optional, LDAPS "
    "opens without a CA too, and whoever shows none must bind with a password.",
    "optional",
    choices=("required", "optional"),
)
_s(
    "LDAP_SCHEMA",
    CHOICE,
    "rfc2307",
    "How groups name their members: rfc2307 (memberUid, what sssd expects by default), or rfc2307bis (member DNs, with "
    "memberOf on people).",
    "rfc2307bis",
    choices=("rfc2307", "rfc2307bis"),
)
_s(
    "LDAP_NESTED_GROUPS",
    BOOL,
    False,
    "Let a group's claim memberGroups name other groups whose people are members too.",
    "true",
)
_s(
    "LDAP_HOST_VIEWS",
    BOOL,
    False,
    "Show a host that has bound as itself only the people and sudo rules that concern it.",
    "true",
)
_s(
    "LDAP_MAX_SHRINK",
    INT,
    30,
    "A refresh that would lose more than this share of the people, in percent, is refused until an administrator "
    "accepts it; 100 accepts everything.",
    "30",
    minimum=0,
    maximum=100,
    bounds="0 to 100",
)
_s(
    "LDAP_MAX_CONNECTIONS",
    INT,
    20_000,
    "LDAP connections at a time, on both listeners together.",
    "20000",
    minimum=1,
    maximum=1_000_000,
    bounds="1 to 1000000",
)
_s(
    "LDAP_MAX_CONNECTIONS_PER_ADDRESS",
    INT,
    1024,
    "LDAP connections of one address at a time.",
    "1024",
    minimum=1,
    maximum=1_000_000,
    bounds="1 to 1000000",
)
_s(
    "LDAP_IDLE_TIMEOUT",
    DURATION,
    20 * MINUTE,
    "An LDAP connection without a request for this long is closed. sssd itself closes its own after 15 minutes.",
    "20m",
    minimum=MINUTE,
    maximum=24 * HOUR,
    bounds="1m to 24h",
)
_s(
    "LDAP_SIZE_LIMIT",
    INT,
    0,
    "Most entries in one LDAP answer; 0 means as many as there are.",
    "10000",
    minimum=0,
    maximum=10_000_000,
    bounds="0 to 10000000",
)
_s(
    "LDAP_TIME_LIMIT",
    DURATION,
    60 * SECOND,
    "Longest time of one LDAP search.",
    "60s",
    minimum=SECOND,
    maximum=HOUR,
    bounds="1s to 1h",
)
_s(
    "LDAP_REPLY_MEMO",
    SIZE,
    32 << 20,
    "Memory for answers to LDAP searches that are repeated; 0 keeps none.",
    "32MB",
    minimum=0,
    maximum=1 << 30,
    bounds="0 to 1GB",
)

_group = "Client certificates (mTLS)"
_s(
    "MTLS_CA_CERT",
    PATH,
    "",
    "CA certificate for hosts. This or the key turns mTLS on; the missing one is generated.",
    "/config/mtls-ca.crt",
    default_text="/config/mtls-ca.crt when mTLS is on",
)
_s(
    "MTLS_CA_KEY",
    PATH,
    "",
    "Private key of that CA.",
    "/config/mtls-ca.key",
    default_text="/config/mtls-ca.key when mTLS is on",
)
_s(
    "MTLS_CERT_TTL",
    DURATION,
    8760 * HOUR,
    "How long a host's certificate is valid.",
    "8760h",
    adjust=_positive_or(8760 * HOUR, ZERO),
    bounds="more than 0",
)
_s(
    "MTLS_KMS_BACKEND",
    CHOICE,
    "local",
    "Where the CA's key lives. vault-transit turns mTLS on and needs the next three settings.",
    "vault-transit",
    choices=("local", "vault-transit"),
)
_s("MTLS_VAULT_ADDR", URL, "", "Vault's address.", "https://vault.example.com:8200")
_secret("MTLS_VAULT_TOKEN", "Vault token that may sign.", "the token that Vault shows")
_s("MTLS_VAULT_KEY_NAME", TEXT, "", "Name of the key in Vault's transit engine.", "identree-ca")
_s("MTLS_VAULT_MOUNT", TEXT, "transit", "Where Vault's transit engine is mounted.", "transit")
_s("MTLS_VAULT_NAMESPACE", TEXT, "", "Vault namespace, where the server has them.", "platform/identree")
_s(
    "MTLS_CRL_FILE",
    PATH,
    "",
    "Certificate revocation list (PEM), signed by the CA; followed while identree runs. Without it, removing a host "
    "from the registry is what revokes its certificate.",
    "/config/mtls-ca.crl",
)
_s(
    "MTLS_STRICT_PROVISION",
    BOOL,
    False,
    "A host whose last certificate is still valid gets another one only when it shows that certificate or its own "
    "secret; the shared secret alone no longer does.",
    "true",
)

_group = "Database and files"
_s(
    "DATABASE_DRIVER",
    CHOICE,
    "sqlite",
    "sqlite for one server, postgres for several.",
    "postgres",
    choices=("sqlite", "postgres"),
    folded=True,
    aliases=(("sqlite3", "sqlite"), ("postgresql", "postgres"), ("pg", "postgres"), ("pgx", "postgres")),
)
_secret(
    "DATABASE_DSN",
    "File of SQLite, or URL of PostgreSQL (required there).",
    "postgresql://identree@db.example.com/identree",
    default_text="/config/identree.db for SQLite",
)
_s(
    "DATABASE_MAX_OPEN_CONNS",
    INT,
    0,
    "Connections to PostgreSQL.",
    "25",
    default_text="25 for PostgreSQL, 1 for SQLite",
    minimum=0,
    maximum=1000,
    bounds="for PostgreSQL 2 to 1000",
)
_s(
    "READ_CONNECTIONS",
    INT,
    4,
    "Threads that read from SQLite beside the one that writes.",
    "4",
    minimum=1,
    maximum=64,
    bounds="1 to 64",
)
_s(
    "HOST_REGISTRY",
    CHOICE,
    "auto",
    "Whether only registered hosts are served. auto: as soon as one host was ever registered.",
    "on",
    choices=("auto", "on", "off"),
    folded=True,
)
_s(
    "HOST_REGISTRY_FILE",
    PATH,
    "/config/hosts.json",
    "The host registry's file: taken over into the database once, afterwards an export of it. Change hosts with "
    "identree add-host and its siblings.",
    "/config/hosts.json",
    toml="misc.host_registry_file",
    live=NO,
    bounds="no . or .. in the path",
)
_s(
    "SESSION_STATE_FILE",
    PATH,
    "/config/sessions.json",
    "The file itself is no longer used; its directory is where the health check writes.",
    "/config/sessions.json",
    toml="misc.session_state_file",
    live=NO,
)
_s(
    "DEFAULT_PAGE_SIZE",
    INT,
    15,
    "Rows per page of long lists.",
    "25",
    toml="misc.default_page_size",
    live=YES,
    adjust=lambda value: 15 if value < 1 else min(value, 500),
    bounds="1 to 500",
)

_group = "Notifications"
_s(
    "NOTIFICATION_CONFIG_FILE",
    PATH,
    "/config/notification-channels.json",
    "Channels and routes.",
    "/config/notification-channels.json",
    toml="notifications.config_file",
    live=PART,
)
_s(
    "ADMIN_NOTIFY_FILE",
    PATH,
    "/config/admin-notifications.json",
    "What each administrator wants to be told.",
    "/config/admin-notifications.json",
    toml="notifications.admin_notify_file",
    live=PART,
)
_s(
    "NOTIFY_TIMEOUT",
    DURATION,
    15 * SECOND,
    "How long one delivery may take.",
    "15s",
    toml="notifications.timeout",
    live=YES,
    adjust=_positive_or(15 * SECOND, ZERO),
    bounds="more than 0",
)

_s(
    "NOTIFY_ALLOWED_NETWORKS",
    Kind.NETWORKS,
    "",
    "Networks of private addresses that channels may reach all the same, such as a ntfy server in the own network. "
    "Without them messages go to public addresses only, so that nobody can use identree to reach what only it can.",
    "10.20.0.0/16, fd00:20::/64",
)
_s(
    "NOTIFY_GIVE_UP_AFTER",
    DURATION,
    10 * MINUTE,
    "How long a message that a receiver does not take is tried again. One about a waiting request is given up when the "
    "request is over.",
    "30m",
    minimum=10 * SECOND,
    maximum=24 * HOUR,
    bounds="10s to 24h",
)
_s(
    "NOTIFY_RETENTION",
    DURATION,
    720 * HOUR,
    "How long the delivery log keeps what became of a message.",
    "168h",
    minimum=HOUR,
    maximum=8760 * HOUR,
    bounds="1h to 8760h",
)
_s(
    "WEBPUSH_CONTACT",
    TEXT,
    "",
    "Whom the push services of browsers may write to about messages from here: mailto: and an address, or an https "
    "address. Empty: IDENTREE_EXTERNAL_URL.",
    "mailto:ops@example.com",
)

_group = "Audit"
_s(
    "AUDIT_LOG",
    TEXT,
    "",
    "The JSON log: stdout, or file: and a path. Empty: off.",
    "file:/var/log/identree/audit.jsonl",
)
_s(
    "AUDIT_LOG_MAX_SIZE",
    SIZE,
    100 * 1024 * 1024,
    "At this size the log file is rotated; 0: never.",
    "100MB",
    minimum=0,
    maximum=2**50,
    bounds="not negative",
)
_s(
    "AUDIT_LOG_MAX_FILES",
    INT,
    5,
    "How many rotated files are kept.",
    "5",
    adjust=_positive_or(5, 0),
    maximum=10_000,
    bounds="1 to 10000",
)
_s(
    "AUDIT_LOG_FSYNC",
    CHOICE,
    "always",
    "When the log file is flushed to the disk: before each answer, once a second, or when the system likes. "
    "Only always survives a power cut without loss.",
    "interval",
    choices=("always", "interval", "off"),
    folded=True,
)
_s(
    "AUDIT_LOG_FORMAT",
    CHOICE,
    "native",
    "How the JSON log is written: identree's own record, or mapped to OCSF or CEF (docs/audit.md).",
    "ocsf",
    choices=("native", "ocsf", "cef"),
    folded=True,
)
_s(
    "AUDIT_SYSLOG_URL",
    TEXT,
    "",
    "A syslog receiver: udp://host:port, tcp://host:port or tcp+tls://host:port. Empty: off.",
    "tcp://syslog.example.com:601",
)
_s(
    "AUDIT_SYSLOG_FRAMING",
    CHOICE,
    "",
    "How messages are told apart on a connection: a newline after each, or its length before it (RFC 6587).",
    "octet-counting",
    choices=("newline", "octet-counting"),
    default_text="newline; over TLS octet-counting",
    folded=True,
)
_s(
    "AUDIT_SYSLOG_MAX_UDP_BYTES",
    INT,
    8192,
    "A longer message is cut on UDP, and says so in its structured data.",
    "2048",
    minimum=480,
    maximum=65_507,
    bounds="480 to 65507",
)
_s(
    "AUDIT_SYSLOG_FORMAT",
    CHOICE,
    "native",
    "What syslog messages hold: identree's own record, or mapped to OCSF or CEF (docs/audit.md).",
    "ocsf",
    choices=("native", "ocsf", "cef"),
    folded=True,
)
_s(
    "AUDIT_SYSLOG_CA_FILE",
    PATH,
    "",
    "CA certificates (PEM) that the syslog receiver is checked against. Empty: those of the system.",
    "/etc/identree/syslog-ca.pem",
)
_s(
    "AUDIT_SYSLOG_CERT_FILE",
    PATH,
    "",
    "Client certificate (PEM) for the syslog receiver, with its key below.",
    "/etc/identree/syslog.crt",
)
_s("AUDIT_SYSLOG_KEY_FILE", PATH, "", "Private key (PEM) of that client certificate.", "/etc/identree/syslog.key")
_s(
    "AUDIT_SPLUNK_HEC_URL",
    URL,
    "",
    "Splunk's HTTP event collector. Empty: off.",
    "https://splunk.example.com:8088/services/collector/event",
)
_secret("AUDIT_SPLUNK_TOKEN", "Token of the collector.", "the token that Splunk shows")
_s("AUDIT_SPLUNK_GZIP", BOOL, True, "Send compressed bodies to Splunk.", "false")
_s(
    "AUDIT_SPLUNK_FORMAT",
    CHOICE,
    "native",
    "What events in Splunk hold: identree's own record, or mapped to OCSF or CEF (docs/audit.md).",
    "ocsf",
    choices=("native", "ocsf", "cef"),
    folded=True,
)
_s(
    "AUDIT_SPLUNK_CA_FILE",
    PATH,
    "",
    "CA certificates (PEM) that Splunk's collector is checked against. Empty: those of the system.",
    "/etc/identree/splunk-ca.pem",
)
_s(
    "AUDIT_SPLUNK_CERT_FILE",
    PATH,
    "",
    "Client certificate (PEM) for Splunk's collector, with its key below.",
    "/etc/identree/splunk.crt",
)
_s("AUDIT_SPLUNK_KEY_FILE", PATH, "", "Private key (PEM) of that client certificate.", "/etc/identree/splunk.key")
_s("AUDIT_LOKI_URL", URL, "", "Loki. Empty: off.", "https://loki.example.com")
_secret("AUDIT_LOKI_TOKEN", "Bearer token for Loki.", "the token that Loki shows")
_s("AUDIT_LOKI_TENANT", TEXT, "", "Tenant, sent as X-Scope-OrgID. Empty: none.", "operations")
_s("AUDIT_LOKI_GZIP", BOOL, True, "Send compressed bodies to Loki.", "false")
_s(
    "AUDIT_LOKI_FORMAT",
    CHOICE,
    "native",
    "What lines in Loki hold: identree's own record, or mapped to OCSF or CEF (docs/audit.md).",
    "ocsf",
    choices=("native", "ocsf", "cef"),
    folded=True,
)
_s(
    "AUDIT_LOKI_CA_FILE",
    PATH,
    "",
    "CA certificates (PEM) that Loki is checked against. Empty: those of the system.",
    "/etc/identree/loki-ca.pem",
)
_s("AUDIT_LOKI_CERT_FILE", PATH, "", "Client certificate (PEM) for Loki, with its key below.", "/etc/identree/loki.crt")
_s("AUDIT_LOKI_KEY_FILE", PATH, "", "Private key (PEM) of that client certificate.", "/etc/identree/loki.key")
_s(
    "AUDIT_BUFFER_SIZE",
    INT,
    4096,
    "Events kept in memory for the sinks; more wait in the database.",
    "8192",
    adjust=_positive_or(4096, 0),
    maximum=1_000_000,
    bounds="1 to 1000000",
)
_s(
    "AUDIT_RETENTION",
    DURATION,
    168 * HOUR,
    "After this time an event that a sink has not taken is given up and counted as dropped.",
    "168h",
    minimum=HOUR,
    maximum=87_600 * HOUR,
    bounds="1h to 87600h",
)
_s(
    "AUDIT_RETENTION_ROWS",
    INT,
    1_000_000,
    "Beyond this number of waiting events the oldest are given up and counted as dropped.",
    "1000000",
    minimum=1000,
    maximum=1_000_000_000,
    bounds="1000 to 1000000000",
)
_s(
    "AUDIT_SIGNING_KEY",
    PATH,
    "/config/audit-signing.key",
    "Private key (Ed25519, PEM) that signs the checkpoints of the audit chain; generated when missing.",
    "/config/audit-signing.key",
)
_s(
    "AUDIT_VERIFY_KEY",
    PATH,
    "/config/audit-signing.pub",
    "Its public key, for identree audit verify; written when missing. Keep a copy where identree cannot write.",
    "/config/audit-signing.pub",
)
_s(
    "AUDIT_CHECKPOINT_INTERVAL",
    DURATION,
    HOUR,
    "How often a signed checkpoint is added to the audit chain.",
    "15m",
    minimum=MINUTE,
    maximum=24 * HOUR,
    bounds="1m to 24h",
)

_group = "Break-glass escrow"
_s(
    "ESCROW_BACKEND",
    CHOICE,
    "",
    "Where break-glass passwords of hosts are kept. Empty: nowhere.",
    "local",
    toml="escrow.backend",
    live=PART,
    choices=("local", "vault", "1password-connect", "bitwarden", "infisical"),
)
_s("ESCROW_URL", URL, "", "The back end's API.", "https://vault.example.com:8200", toml="escrow.url", live=YES)
_s(
    "ESCROW_WEB_URL",
    URL,
    "",
    "The back end's pages, for the link on the hosts page.",
    "https://vault.example.com",
    toml="escrow.web_url",
    live=YES,
)
_s("ESCROW_AUTH_ID", TEXT, "", "The account at the back end.", "identree", toml="escrow.auth_id", live=YES)
_secret(
    "ESCROW_AUTH_SECRET",
    "The account's secret: a token of Vault or Connect, a secret id, an access token of Bitwarden, a client secret.",
    "the secret that the back end shows",
    bounds="at least 16 characters are advised",
)
_s(
    "ESCROW_PATH",
    TEXT,
    "",
    "Path or container at the back end.",
    "secret/identree",
    toml="escrow.path",
    live=YES,
    bounds="for vault no . or .. in it",
)
_secret(
    "ESCROW_ENCRYPTION_KEY",
    "Encrypts the passwords of the local back end.",
    bounds="at least 32 characters with the local back end",
)
_secret(
    "ESCROW_HKDF_SALT",
    "Salt of that key, in hexadecimal digits. Changed or lost, stored passwords cannot be read.",
    bounds="at least 16 bytes, that is 32 digits",
)
_s(
    "ESCROW_VAULT_MAP",
    Kind.MAP,
    {},
    "Which vault belongs to which host group, as a JSON object.",
    '{"production": "vault-1"}',
)
_s("ESCROW_COMMAND", TEXT, "", "A command that stores the password, instead of a back end.", "/usr/local/bin/escrow")
_s("ESCROW_NAMESPACE", TEXT, "", "Namespace in Vault, sent as X-Vault-Namespace. Empty: none.", "operations")
_s(
    "ESCROW_ROTATE_AFTER_REVEAL",
    BOOL,
    True,
    "A break-glass password that somebody was shown is replaced at the host's next contact.",
    "false",
)
_s("ESCROW_COMMAND_ENV", LIST, (), "Prefixes of the environment variables that the command gets.", "AWS_,VAULT_")
_s(
    "BREAKGLASS_ROTATE_BEFORE",
    Kind.TIME,
    None,
    "Hosts whose break-glass password is older than this rotate it at their next contact.",
    "2026-01-15T00:00:00Z",
)

_group = "Defaults pushed to hosts"
_s(
    "CLIENT_POLL_INTERVAL",
    DURATION,
    ZERO,
    "How often hosts ask for a decision; 0: not pushed.",
    "2s",
    toml="client_defaults.poll_interval",
    live=YES,
    adjust=_poll_interval,
    bounds="0 or at least 1s",
)
_s(
    "CLIENT_TIMEOUT",
    DURATION,
    ZERO,
    "How long hosts wait for a decision; 0: not pushed. Hosts keep it between 5s and 10m.",
    "120s",
    toml="client_defaults.timeout",
    live=YES,
    adjust=_not_negative(ZERO),
    bounds="not negative",
)
_s(
    "CLIENT_BREAKGLASS_ENABLED",
    TRISTATE,
    None,
    "Whether hosts may use the break-glass password when the server cannot be reached.",
    "true",
    toml="client_defaults.breakglass_enabled",
    live=PART,
)
_s(
    "CLIENT_BREAKGLASS_PASSWORD_TYPE",
    CHOICE,
    "",
    "The kind of password that hosts make.",
    "passphrase",
    toml="client_defaults.breakglass_password_type",
    live=YES,
    choices=("random", "passphrase", "alphanumeric"),
)
_s(
    "CLIENT_BREAKGLASS_ROTATION_DAYS",
    INT,
    0,
    "After how many days hosts make a new one; 0: not pushed.",
    "90",
    toml="client_defaults.breakglass_rotation_days",
    live=YES,
    adjust=_not_negative(0),
    maximum=36_500,
    bounds="0 to 36500",
)
_s(
    "CLIENT_TOKEN_CACHE_ENABLED",
    TRISTATE,
    None,
    "Whether hosts keep tokens of approvals.",
    "true",
    toml="client_defaults.token_cache_enabled",
    live=PART,
)

_group = "Process and limits"
_s(
    "TOML_CONFIG_FILE",
    PATH,
    "/etc/identree/identree.toml",
    "The TOML file, which the settings page writes.",
    "/config/identree.toml",
    from_environment_only=True,
    default_text="/etc/identree/identree.toml, or config.toml beside it when only that one exists",
)
_s(
    "LOG_LEVEL",
    CHOICE,
    "info",
    "What is logged.",
    "debug",
    choices=("debug", "info", "warn", "error"),
    aliases=(("warning", "warn"),),
    folded=True,
    from_environment_only=True,
)
_s(
    "LOG_FORMAT",
    CHOICE,
    "text",
    "How it is logged: readable lines, or one JSON object per line.",
    "json",
    choices=("text", "json"),
)
_s(
    "DEV_LOGIN",
    BOOL,
    False,
    "Sign in without a provider and without a password. "
    "Never on a machine that others can reach; refused with an https external URL.",
    "false",
)
_s(
    "MAX_WAITERS",
    INT,
    20_000,
    "How many hosts may hold a request open at a time; further ones are answered at once.",
    "20000",
    minimum=0,
    maximum=1_000_000,
    bounds="0 to 1000000",
)
_s(
    "MAX_STREAMS",
    INT,
    6000,
    "How many live pages may be open at a time.",
    "6000",
    minimum=1,
    maximum=1_000_000,
    bounds="1 to 1000000",
)
_s(
    "MAX_STREAMS_PER_USER",
    INT,
    10,
    "How many live pages one person may have open.",
    "10",
    minimum=1,
    maximum=1000,
    bounds="1 to 1000",
)
_s(
    "MAX_CONNECTIONS_PER_ADDRESS",
    INT,
    2000,
    "How many connections one address may have open, of IPv6 one /64 network; trusted proxies have no such bound. "
    "Raise it when more hosts than this wait behind one NAT.",
    "2000",
    minimum=10,
    maximum=1_000_000,
    bounds="10 to 1000000",
)
_s(
    "LISTEN_BACKLOG",
    INT,
    1024,
    "Connections that may wait to be accepted.",
    "1024",
    minimum=1,
    maximum=65_535,
    bounds="1 to 65535",
)
_s(
    "SHUTDOWN_TIMEOUT",
    DURATION,
    10 * SECOND,
    "How long running requests may take to end when the server stops.",
    "10s",
    minimum=ZERO,
    maximum=100 * SECOND,
    bounds="0s to 100s",
)

SETTINGS: tuple[Setting, ...] = tuple(_table)
BY_NAME: dict[str, Setting] = {setting.name: setting for setting in SETTINGS}
BY_TOML: dict[str, Setting] = {setting.toml: setting for setting in SETTINGS if setting.toml}

# Sections in the order in which the settings page writes them.
TOML_SECTIONS = (
    "oidc",
    "pocketid",
    "server",
    "auth",
    "ldap",
    "admin",
    "notifications",
    "escrow",
    "client_defaults",
    "misc",
)

# Names that are still found in examples and charts, and what to do instead.
_CHANNELS = "notifications are configured by channels, in the file that IDENTREE_NOTIFICATION_CONFIG_FILE names"
DEAD_NAMES: dict[str, str] = {
    "NOTIFY_BACKEND": _CHANNELS,
    "NOTIFY_URL": _CHANNELS,
    "NOTIFY_TOKEN": _CHANNELS,
    "NOTIFY_COMMAND": _CHANNELS,
    "AUTH_PROTOCOL": "OIDC is the only protocol",
    "INSECURE": "to skip TLS verification of the provider, for tests only, there is IDENTREE_OIDC_INSECURE_SKIP_VERIFY",
    "ESCROW_ENV": "the setting is IDENTREE_ESCROW_COMMAND_ENV",
}
DEAD_PREFIXES: dict[str, str] = {"SAML_": "SAML is not supported; OIDC is"}

# Settings of hosts, which belong into client.conf there (spec/host-agent sections 2 and 3).
AGENT_NAMES = frozenset(
    {
        "SERVER_URL",
        "POLL_INTERVAL",
        "TIMEOUT",
        "CLIENT_CERT",
        "CLIENT_KEY",
        "CA_CERT",
        "BREAKGLASS_ENABLED",
        "BREAKGLASS_FILE",
        "BREAKGLASS_ROTATION_DAYS",
        "BREAKGLASS_PASSWORD_TYPE",
        "BREAKGLASS_BCRYPT_COST",
        "INSECURE_ALLOW_HTTP_ESCROW",
        "TOKEN_CACHE_ENABLED",
        "TOKEN_CACHE_DIR",
        "TOKEN_CACHE_ISSUER",
        "TOKEN_CACHE_CLIENT_ID",
        "HOSTNAME",
        "SYSLOG",
        "COLOR",
    }
)
# Read by the test suite only.
TEST_NAMES = frozenset({"TEST_BACKEND", "TEST_POSTGRES_DSN"})


def written(setting: Setting, value: Any) -> str:
    """A value as it would be written in a file, exact; secrets too, so only for those that are not."""
    match setting.kind:
        case Kind.DURATION:
            return durations.render(value)
        case Kind.BOOL | Kind.TRISTATE:
            return "" if value is None else "true" if value else "false"
        case Kind.LIST:
            return ", ".join(value)
        case Kind.NETWORKS:
            return value if isinstance(value, str) else ", ".join(str(network) for network in value)
        case Kind.TIME:
            return "" if value is None else value.strftime("%Y-%m-%dT%H:%M:%SZ")
        case Kind.MAP:
            return json.dumps(dict(value), sort_keys=True) if value else ""
        case Kind.SIZE:
            for unit, name in ((2**30, "GB"), (2**20, "MB"), (2**10, "KB")):
                if value and value % unit == 0:
                    return f"{value // unit}{name}"
    return str(value)
