-- baseline schema
-- Version 1: the tables of deployed versions (spec/storage section 3). Every statement is create-if-not-exists, so a
-- database from before the framework of migrations is adopted unchanged.
-- All times are whole unix seconds, 0 = none; flags are 0 or 1; durations in nanoseconds.
-- {id} is the engine's growing primary key; BIGINT and SMALLINT are INTEGER on SQLite.

CREATE TABLE IF NOT EXISTS challenges (
    id TEXT PRIMARY KEY,                            -- 32 lower-case hex digits, the secret handle used by hosts
    user_code TEXT NOT NULL UNIQUE,                 -- ABCDEF-123456
    username TEXT NOT NULL,                         -- owner
    status TEXT NOT NULL,                           -- pending, approved, denied, expired, cancelled
    hostname TEXT NOT NULL DEFAULT '',              -- normalised, or empty
    reason TEXT NOT NULL DEFAULT '',                -- justification, at most 500 characters
    nonce TEXT NOT NULL DEFAULT '',                 -- reserved, never written
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    approved_by TEXT NOT NULL DEFAULT '',           -- last approver
    approved_at BIGINT NOT NULL DEFAULT 0,
    deny_reason TEXT NOT NULL DEFAULT '',
    breakglass_rotate_before TEXT NOT NULL DEFAULT '', -- RFC 3339 snapshot, exact text
    requested_grace_ns BIGINT NOT NULL DEFAULT 0,   -- reserved, never written
    revoke_tokens_before TEXT NOT NULL DEFAULT '',  -- RFC 3339 snapshot, exact text
    policy_name TEXT NOT NULL DEFAULT '',
    required_approvals INTEGER NOT NULL DEFAULT 0,  -- 0 means 1
    require_admin SMALLINT NOT NULL DEFAULT 0,
    breakglass_bypass_allowed SMALLINT NOT NULL DEFAULT 0,
    breakglass_override SMALLINT NOT NULL DEFAULT 0,
    one_tap_used SMALLINT NOT NULL DEFAULT 0,
    approvals_json TEXT NOT NULL DEFAULT '[]',      -- [{"approver","approved_at"}]
    raw_id_token TEXT NOT NULL DEFAULT ''           -- reserved, never written
);
CREATE INDEX IF NOT EXISTS idx_challenges_user_status ON challenges (username, status, expires_at);
CREATE INDEX IF NOT EXISTS idx_challenges_expires ON challenges (expires_at);
CREATE INDEX IF NOT EXISTS idx_challenges_status ON challenges (status, expires_at);

CREATE TABLE IF NOT EXISTS action_log (
    id {id},
    username TEXT NOT NULL,
    action TEXT NOT NULL,
    hostname TEXT NOT NULL DEFAULT '',
    code TEXT NOT NULL DEFAULT '',
    actor TEXT NOT NULL DEFAULT '',                 -- empty when equal to username
    reason TEXT NOT NULL DEFAULT '',
    ts_unix BIGINT NOT NULL
);
CREATE INDEX IF NOT EXISTS idx_action_log_user_ts ON action_log (username, ts_unix DESC);
CREATE INDEX IF NOT EXISTS idx_action_log_ts ON action_log (ts_unix DESC);
CREATE INDEX IF NOT EXISTS idx_action_log_host_ts ON action_log (hostname, ts_unix DESC);
CREATE INDEX IF NOT EXISTS idx_action_log_action ON action_log (action, ts_unix DESC);

CREATE TABLE IF NOT EXISTS grace_sessions (
    username TEXT NOT NULL,
    hostname TEXT NOT NULL DEFAULT '',
    expiry_unix BIGINT NOT NULL,
    hmac_hex TEXT NOT NULL DEFAULT '',              -- core.tokens.grace_mac
    PRIMARY KEY (username, hostname)
);
CREATE INDEX IF NOT EXISTS idx_grace_expiry ON grace_sessions (expiry_unix);
CREATE INDEX IF NOT EXISTS idx_grace_host ON grace_sessions (hostname);

CREATE TABLE IF NOT EXISTS revoked_nonces (         -- signed-out browser cookies
    nonce TEXT PRIMARY KEY,
    revoked_at BIGINT NOT NULL
);
CREATE INDEX IF NOT EXISTS idx_revoked_nonces_at ON revoked_nonces (revoked_at);

CREATE TABLE IF NOT EXISTS revoked_admin_sessions ( -- admin cookies issued at or before this second are a user's
    username TEXT PRIMARY KEY,
    revoked_at BIGINT NOT NULL
);

CREATE TABLE IF NOT EXISTS revoke_tokens_before (   -- host token caches and challenges older than this are void
    username TEXT PRIMARY KEY,
    revoked_at BIGINT NOT NULL
);

CREATE TABLE IF NOT EXISTS rotate_breakglass_before ( -- rotation requested for that host
    hostname TEXT PRIMARY KEY,
    rotated_at BIGINT NOT NULL
);

CREATE TABLE IF NOT EXISTS last_oidc_auth (         -- last completed login
    username TEXT PRIMARY KEY,
    at_unix BIGINT NOT NULL
);

CREATE TABLE IF NOT EXISTS escrowed_hosts (
    hostname TEXT PRIMARY KEY,
    ts_unix BIGINT NOT NULL,
    item_id TEXT NOT NULL DEFAULT '',
    vault_id TEXT NOT NULL DEFAULT ''
);

CREATE TABLE IF NOT EXISTS escrow_ciphertexts (
    hostname TEXT PRIMARY KEY,
    ciphertext TEXT NOT NULL                        -- base64
);

CREATE TABLE IF NOT EXISTS used_escrow_tokens (     -- replay guard
    token_key TEXT PRIMARY KEY,                     -- hostname:timestamp
    first_seen BIGINT NOT NULL
);
CREATE INDEX IF NOT EXISTS idx_used_escrow_tokens_at ON used_escrow_tokens (first_seen);

CREATE TABLE IF NOT EXISTS session_nonces (         -- logins under way
    nonce TEXT PRIMARY KEY,
    issued_at BIGINT NOT NULL,
    code_verifier TEXT NOT NULL DEFAULT '',
    client_ip TEXT NOT NULL DEFAULT '',
    expires_at BIGINT NOT NULL DEFAULT 0            -- 0 = no expiry
);
CREATE INDEX IF NOT EXISTS idx_session_nonces_exp ON session_nonces (expires_at);

CREATE TABLE IF NOT EXISTS agents (                 -- heartbeats
    hostname TEXT PRIMARY KEY,
    version TEXT NOT NULL DEFAULT '',
    os_info TEXT NOT NULL DEFAULT '',
    ip TEXT NOT NULL DEFAULT '',
    first_seen BIGINT NOT NULL,
    last_seen BIGINT NOT NULL
);
CREATE INDEX IF NOT EXISTS idx_agents_last_seen ON agents (last_seen);

CREATE TABLE IF NOT EXISTS cluster_messages (       -- bodies too long for NOTIFY
    id {id},
    topic TEXT NOT NULL,
    payload TEXT NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE INDEX IF NOT EXISTS idx_cluster_messages_at ON cluster_messages (created_at);

CREATE TABLE IF NOT EXISTS notify_admin_prefs (     -- placeholder
    username TEXT PRIMARY KEY,
    prefs_json TEXT NOT NULL DEFAULT '{}'
);

CREATE TABLE IF NOT EXISTS notify_config (          -- placeholder
    config_key TEXT PRIMARY KEY,
    config_json TEXT NOT NULL DEFAULT '{}'
);
