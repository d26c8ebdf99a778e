"""
The settings as the rest of the program sees them: typed and frozen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from identree.core.addresses import Network
from identree.core.tokens import Keys
from identree.settings.mask import masked
from identree.settings.registry import SETTINGS

ENVIRONMENT, CONF, TOML, DEFAULT = "environment", "identree.conf", "toml", "default"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Settings:
    """
    One attribute per entry of the registry, which says what each means; all of them are checked.

    :ivar external_url, install_url: without trailing slash.
    :ivar ldap_listen_addr: empty: that listener stays closed.
    :ivar database_max_open_conns: resolved; never 0.
    :ivar toml_config_file: the file that was read, or would be.
    :ivar warnings: one sentence each, for the log; no secret in any.
    :ivar sources: setting name -> where its value is from.
    :ivar secret_files: setting name -> the file that its value was read from.
    """

    # Signing in (OIDC) and PocketID
    oidc_issuer_url: str
    oidc_issuer_public_url: str
    oidc_client_id: str
    oidc_client_secret: str
    oidc_insecure_skip_verify: bool
    oidc_enforce_ip_binding: bool
    oidc_clock_leeway: timedelta
    pocketid_api_key: str
    pocketid_api_url: str

    # HTTP server and TLS
    listen_addr: str
    external_url: str
    install_url: str
    tls_cert_file: str
    tls_key_file: str
    trusted_proxies: tuple[Network, ...]
    agent_file: str
    install_signing_key: str
    install_verify_key: str
    api_keys: tuple[str, ...]
    metrics_token: str
    webhook_secret: str

    # Secrets
    shared_secret: str
    session_secret: str
    hmac_secret: str
    escrow_secret: str
    ldap_secret: str

    # Challenges and administration
    challenge_ttl: timedelta
    grace_period: timedelta
    one_tap_max_age: timedelta
    require_justification: bool
    justification_choices: tuple[str, ...]
    admin_groups: tuple[str, ...]
    approval_policies_file: str
    policy_source: str
    session_max_age: timedelta
    max_pending_per_user: int
    max_pending: int

    # LDAP
    ldap_enabled: bool
    ldap_listen_addr: str
    ldap_tls_listen_addr: str
    ldap_base_dn: str
    ldap_bind_dn: str
    ldap_bind_password: str
    ldap_refresh_interval: timedelta
    ldap_uid_map_file: str
    ldap_uid_base: int
    ldap_gid_base: int
    ldap_default_shell: str
    ldap_default_home: str
    ldap_allow_anonymous: bool
    ldap_sudo_no_authenticate: str
    sudo_rules_file: str
    ldap_provision_enabled: bool
    ldap_external_url: str
    ldap_tls_ca_cert: str
    ldap_tls_client_auth: str
    ldap_schema: str
    ldap_nested_groups: bool
    ldap_host_views: bool
    ldap_max_shrink: int
    ldap_max_connections: int
    ldap_max_connections_per_address: int
    ldap_idle_timeout: timedelta
    ldap_size_limit: int
    ldap_time_limit: timedelta
    ldap_reply_memo: int

    # Client certificates (mTLS)
    mtls_ca_cert: str
    mtls_ca_key: str
    mtls_cert_ttl: timedelta
    mtls_kms_backend: str
    mtls_vault_addr: str
    mtls_vault_token: str
    mtls_vault_key_name: str
    mtls_vault_mount: str
    mtls_vault_namespace: str
    mtls_crl_file: str
    mtls_strict_provision: bool

    # Database and files
    database_driver: str
    database_dsn: str
    database_max_open_conns: int
    read_connections: int
    host_registry: str
    host_registry_file: str
    session_state_file: str
    default_page_size: int

    # Notifications
    notification_config_file: str
    admin_notify_file: str
    notify_timeout: timedelta
    notify_allowed_networks: tuple[Network, ...]
    notify_give_up_after: timedelta
    notify_retention: timedelta
    webpush_contact: str

    # Audit
    audit_log: str
    audit_log_max_size: int
    audit_log_max_files: int
    audit_log_fsync: str
    audit_log_format: str
    audit_syslog_url: str
    audit_syslog_framing: str
    audit_syslog_max_udp_bytes: int
    audit_syslog_format: str
    audit_syslog_ca_file: str
    audit_syslog_cert_file: str
    audit_syslog_key_file: str
    audit_splunk_hec_url: str
    audit_splunk_token: str
    audit_splunk_gzip: bool
    audit_splunk_format: str
    audit_splunk_ca_file: str
    audit_splunk_cert_file: str
    audit_splunk_key_file: str
    audit_loki_url: str
    audit_loki_token: str
    audit_loki_tenant: str
    audit_loki_gzip: bool
    audit_loki_format: str
    audit_loki_ca_file: str
    audit_loki_cert_file: str
    audit_loki_key_file: str
    audit_buffer_size: int
    audit_retention: timedelta
    audit_retention_rows: int
    audit_signing_key: str
    audit_verify_key: str
    audit_checkpoint_interval: timedelta

    # Break-glass escrow
    escrow_backend: str
    escrow_url: str
    escrow_web_url: str
    escrow_auth_id: str
    escrow_auth_secret: str
    escrow_path: str
    escrow_encryption_key: str
    escrow_hkdf_salt: str
    escrow_vault_map: Mapping[str, str]
    escrow_command: str
    escrow_namespace: str
    escrow_rotate_after_reveal: bool
    escrow_command_env: tuple[str, ...]
    breakglass_rotate_before: datetime | None

    # Defaults pushed to hosts
    client_poll_interval: timedelta
    client_timeout: timedelta
    client_breakglass_enabled: bool | None
    client_breakglass_password_type: str
    client_breakglass_rotation_days: int
    client_token_cache_enabled: bool | None

    # Process and limits
    toml_config_file: str
    log_level: str
    log_format: str
    dev_login: bool
    max_waiters: int
    max_streams: int
    max_streams_per_user: int
    max_connections_per_address: int
    listen_backlog: int
    shutdown_timeout: timedelta

    warnings: tuple[str, ...] = ()
    sources: Mapping[str, str]
    secret_files: Mapping[str, str]

    def source(self, name: str) -> str:
        """``environment``, ``identree.conf``, ``toml`` or ``default``. :raise KeyError: there is no such setting."""
        return self.sources[name]

    @property
    def https(self) -> bool:
        """Whether browsers come by https: then cookies are secure and plain requests are redirected."""
        return self.external_url.lower().startswith("https://")

    @property
    def serves_tls(self) -> bool:
        """Whether identree itself speaks TLS."""
        return bool(self.tls_cert_file and self.tls_key_file)

    @property
    def mtls_enabled(self) -> bool:
        return bool(self.mtls_ca_cert or self.mtls_ca_key or self.mtls_kms_backend == "vault-transit")

    @property
    def full_mode(self) -> bool:
        """Whether identree manages the directory through PocketID's API, or only is a bridge to it."""
        return bool(self.pocketid_api_key)

    def keys(self) -> Keys:
        """The keys of cookies, forms and tokens (spec/configuration section 7)."""
        return Keys.from_secrets(shared=self.shared_secret, session=self.session_secret, hmac=self.hmac_secret)

    @property
    def effective_escrow_secret(self) -> str:
        return self.escrow_secret or self.shared_secret

    @property
    def effective_ldap_secret(self) -> str:
        return self.ldap_secret or self.shared_secret

    def __repr__(self) -> str:
        plain = ", ".join(
            f"{setting.attribute}={masked(repr(getattr(self, setting.attribute)))}"
            for setting in SETTINGS
            if not setting.secret and self.sources.get(setting.name) != DEFAULT
        )
        return f"Settings({plain})"
