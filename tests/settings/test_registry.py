"""The table of settings, and what is made from it."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from identree.core.addresses import Network
from identree.settings import docs
from identree.settings.parse import parse
from identree.settings.registry import BUILT_IN_CHOICES, BY_NAME, SETTINGS, TOML_SECTIONS, Kind, Live, written
from identree.settings.values import Settings

TYPES: dict[Kind, object] = {
    Kind.TEXT: str,
    Kind.PATH: str,
    Kind.URL: str,
    Kind.LISTEN: str,
    Kind.CHOICE: str,
    Kind.BOOL: bool,
    Kind.TRISTATE: bool | None,
    Kind.INT: int,
    Kind.SIZE: int,
    Kind.DURATION: timedelta,
    Kind.LIST: tuple[str, ...],
    Kind.NETWORKS: tuple[Network, ...],
    Kind.TIME: datetime | None,
    Kind.MAP: Mapping[str, str],
}

# name | TOML | default in text | secret | live: spec/configuration section 4
SPECIFIED = """
OIDC_ISSUER_URL|oidc.issuer_url|||restart
OIDC_ISSUER_PUBLIC_URL|oidc.issuer_public_url|||restart
OIDC_CLIENT_ID|oidc.client_id|||restart
OIDC_CLIENT_SECRET|||S|-
OIDC_INSECURE_SKIP_VERIFY||false||-
OIDC_ENFORCE_IP_BINDING||false||-
POCKETID_API_KEY|||S|-
POCKETID_API_URL|pocketid.api_url|||restart
LISTEN_ADDR|server.listen_addr|:8090||restart
EXTERNAL_URL|server.external_url|||restart
INSTALL_URL|server.install_url|||restart
TLS_CERT_FILE||||-
TLS_KEY_FILE||||-
INSTALL_SIGNING_KEY||/config/install-signing.key||-
INSTALL_VERIFY_KEY||/config/install-signing.pub||-
API_KEYS|||S|-
METRICS_TOKEN|||S|-
WEBHOOK_SECRET|||S|-
SHARED_SECRET|||S|-
HMAC_SECRET|||S|-
SESSION_SECRET|||S|-
ESCROW_SECRET|||S|-
LDAP_SECRET|||S|-
CHALLENGE_TTL|auth.challenge_ttl|2m0s||part
GRACE_PERIOD|auth.grace_period|0s||part
ONE_TAP_MAX_AGE|auth.onetap_max_age|24h0m0s||live
REQUIRE_JUSTIFICATION|auth.require_justification|false||part
ADMIN_GROUPS|admin.groups|||live
APPROVAL_POLICIES_FILE|admin.approval_policies_file|/config/approval-policies.json||live
LDAP_ENABLED|ldap.enabled|true||restart
LDAP_LISTEN_ADDR|ldap.listen_addr|:389||restart
LDAP_TLS_LISTEN_ADDR||:636||-
LDAP_BASE_DN|ldap.base_dn|||restart
LDAP_BIND_DN|ldap.bind_dn|||restart
LDAP_BIND_PASSWORD|||S|-
LDAP_REFRESH_INTERVAL|ldap.refresh_interval|5m0s||restart
LDAP_UID_MAP_FILE|ldap.uid_map_file|/config/uidmap.json||restart
LDAP_UID_BASE|ldap.uid_base|200000||restart
LDAP_GID_BASE|ldap.gid_base|200000||restart
LDAP_DEFAULT_SHELL|ldap.default_shell|/bin/bash||live
LDAP_DEFAULT_HOME|ldap.default_home|/home/%s||live
LDAP_ALLOW_ANONYMOUS||false||-
LDAP_SUDO_NO_AUTHENTICATE|ldap.sudo_no_authenticate|false||live
SUDO_RULES_FILE|ldap.sudo_rules_file|/config/sudorules.json||restart
LDAP_PROVISION_ENABLED|ldap.provision_enabled|false||live
LDAP_EXTERNAL_URL|ldap.external_url|||live
LDAP_TLS_CA_CERT|ldap.tls_ca_cert|||live
MTLS_CA_CERT||||-
MTLS_CA_KEY||||-
MTLS_CERT_TTL||8760h0m0s||-
MTLS_KMS_BACKEND||local||-
MTLS_VAULT_ADDR||||-
MTLS_VAULT_TOKEN|||S|-
MTLS_VAULT_KEY_NAME||||-
DATABASE_DRIVER||sqlite||-
DATABASE_DSN|||S|-
DATABASE_MAX_OPEN_CONNS||0||-
HOST_REGISTRY_FILE|misc.host_registry_file|/config/hosts.json||restart
SESSION_STATE_FILE|misc.session_state_file|/config/sessions.json||restart
DEFAULT_PAGE_SIZE|misc.default_page_size|15||live
NOTIFICATION_CONFIG_FILE|notifications.config_file|/config/notification-channels.json||part
ADMIN_NOTIFY_FILE|notifications.admin_notify_file|/config/admin-notifications.json||part
NOTIFY_TIMEOUT|notifications.timeout|15s||live
AUDIT_LOG||||-
AUDIT_LOG_MAX_SIZE||100MB||-
AUDIT_LOG_MAX_FILES||5||-
AUDIT_SYSLOG_URL||||-
AUDIT_SPLUNK_HEC_URL||||-
AUDIT_SPLUNK_TOKEN|||S|-
AUDIT_LOKI_URL||||-
AUDIT_LOKI_TOKEN|||S|-
AUDIT_BUFFER_SIZE||4096||-
ESCROW_BACKEND|escrow.backend|||part
ESCROW_URL|escrow.url|||live
ESCROW_WEB_URL|escrow.web_url|||live
ESCROW_AUTH_ID|escrow.auth_id|||live
ESCROW_AUTH_SECRET|||S|-
ESCROW_PATH|escrow.path|||live
ESCROW_ENCRYPTION_KEY|||S|-
ESCROW_HKDF_SALT|||S|-
ESCROW_VAULT_MAP||||-
ESCROW_COMMAND||||-
ESCROW_COMMAND_ENV||||-
BREAKGLASS_ROTATE_BEFORE||||-
CLIENT_POLL_INTERVAL|client_defaults.poll_interval|0s||live
CLIENT_TIMEOUT|client_defaults.timeout|0s||live
CLIENT_BREAKGLASS_ENABLED|client_defaults.breakglass_enabled|||part
CLIENT_BREAKGLASS_PASSWORD_TYPE|client_defaults.breakglass_password_type|||live
CLIENT_BREAKGLASS_ROTATION_DAYS|client_defaults.breakglass_rotation_days|0||live
CLIENT_TOKEN_CACHE_ENABLED|client_defaults.token_cache_enabled|||part
LOG_LEVEL||info||-
DEV_LOGIN||false||-
TRUSTED_PROXIES||127.0.0.0/8, ::1/128||-
LOG_FORMAT||text||-
SESSION_MAX_AGE||12h0m0s||-
POLICY_SOURCE||database||-
NOTIFY_ALLOWED_NETWORKS||||-
NOTIFY_GIVE_UP_AFTER||10m0s||-
NOTIFY_RETENTION||720h0m0s||-
WEBPUSH_CONTACT||||-
AUDIT_RETENTION||168h0m0s||-
AUDIT_RETENTION_ROWS||1000000||-
AUDIT_LOG_FSYNC||always||-
AUDIT_LOG_FORMAT||native||-
AUDIT_SYSLOG_FRAMING||||-
AUDIT_SYSLOG_MAX_UDP_BYTES||8192||-
AUDIT_SYSLOG_FORMAT||native||-
AUDIT_SYSLOG_CA_FILE||||-
AUDIT_SYSLOG_CERT_FILE||||-
AUDIT_SYSLOG_KEY_FILE||||-
AUDIT_SPLUNK_GZIP||true||-
AUDIT_SPLUNK_FORMAT||native||-
AUDIT_SPLUNK_CA_FILE||||-
AUDIT_SPLUNK_CERT_FILE||||-
AUDIT_SPLUNK_KEY_FILE||||-
AUDIT_LOKI_TENANT||||-
AUDIT_LOKI_GZIP||true||-
AUDIT_LOKI_FORMAT||native||-
AUDIT_LOKI_CA_FILE||||-
AUDIT_LOKI_CERT_FILE||||-
AUDIT_LOKI_KEY_FILE||||-
AUDIT_SIGNING_KEY||/config/audit-signing.key||-
AUDIT_VERIFY_KEY||/config/audit-signing.pub||-
AUDIT_CHECKPOINT_INTERVAL||1h0m0s||-
ESCROW_NAMESPACE||||-
ESCROW_ROTATE_AFTER_REVEAL||true||-
HOST_REGISTRY||auto||-
AGENT_FILE||||-
MAX_PENDING_PER_USER||10||-
MAX_PENDING||10000||-
MAX_WAITERS||20000||-
MAX_STREAMS||6000||-
MAX_STREAMS_PER_USER||10||-
MAX_CONNECTIONS_PER_ADDRESS||2000||-
LISTEN_BACKLOG||1024||-
READ_CONNECTIONS||4||-
SHUTDOWN_TIMEOUT||10s||-
OIDC_CLOCK_LEEWAY||1m0s||-
LDAP_TLS_CLIENT_AUTH||required||-
LDAP_SCHEMA||rfc2307||-
LDAP_NESTED_GROUPS||false||-
LDAP_HOST_VIEWS||false||-
LDAP_MAX_SHRINK||30||-
LDAP_MAX_CONNECTIONS||20000||-
LDAP_MAX_CONNECTIONS_PER_ADDRESS||1024||-
LDAP_IDLE_TIMEOUT||20m0s||-
LDAP_SIZE_LIMIT||0||-
LDAP_TIME_LIMIT||1m0s||-
LDAP_REPLY_MEMO||32MB||-
MTLS_VAULT_MOUNT||transit||-
MTLS_VAULT_NAMESPACE||||-
MTLS_CRL_FILE||||-
MTLS_STRICT_PROVISION||false||-
TOML_CONFIG_FILE||/etc/identree/identree.toml||-
"""


class RegistryTests(SynchronousTestCase):
    def test_as_specified(self) -> None:
        """Every setting of the contract, with its TOML name, default, secrecy and liveness."""
        specified = {line.split("|")[0]: line for line in SPECIFIED.splitlines() if line}
        for setting in SETTINGS:
            if setting.name == "JUSTIFICATION_CHOICES":
                continue
            default = written(setting, setting.default)
            live = "-" if setting.live is Live.NOT_EDITABLE else setting.live.value
            secret = "S" if setting.secret else ""
            line = f"{setting.name}|{setting.toml}|{default}|{secret}|{live}"
            self.assertEqual(line, specified.pop(setting.name, None))
        self.assertEqual(specified, {})

    def test_choices_of_justification(self) -> None:
        """The built-in reasons."""
        setting = BY_NAME["JUSTIFICATION_CHOICES"]
        self.assertEqual((setting.default, setting.toml), (BUILT_IN_CHOICES, "auth.justification_choices"))

    def test_typed(self) -> None:
        """Settings has one attribute per entry, of its kind's type, in the same order."""
        hints = typing.get_type_hints(Settings)
        fields = [field.name for field in dataclasses.fields(Settings)]
        self.assertEqual(fields, [s.attribute for s in SETTINGS] + ["warnings", "sources", "secret_files"])
        for setting in SETTINGS:
            self.assertEqual(hints[setting.attribute], TYPES[setting.kind], setting.name)

    def test_unique(self) -> None:
        """No name and no TOML key stands twice; no secret has a TOML key; sections are the known ones."""
        self.assertEqual(len(BY_NAME), len(SETTINGS))
        tomls = [setting.toml for setting in SETTINGS if setting.toml]
        self.assertEqual(len(set(tomls)), len(tomls))
        self.assertEqual({toml.split(".")[0] for toml in tomls}, set(TOML_SECTIONS))
        self.assertFalse([setting.name for setting in SETTINGS if setting.secret and setting.toml])

    def test_examples_are_right(self) -> None:
        """The example of every setting is a value that is taken as it is."""
        for setting in SETTINGS:
            _, adjusted = parse(setting, setting.example)
            self.assertFalse(adjusted, setting.name)

    def test_defaults_are_within_bounds(self) -> None:
        """A default read back from its text is itself."""
        for setting in SETTINGS:
            text = written(setting, setting.default)
            if text and setting.kind is not Kind.NETWORKS:
                self.assertEqual(parse(setting, text), (setting.default, False), setting.name)

    def test_documented(self) -> None:
        """docs/configuration.md is what `make docs` writes."""
        page = Path(__file__).parents[2] / "docs" / "configuration.md"
        self.assertEqual(page.read_text(encoding="utf-8"), docs.render())
