-- host registry, enrolment tokens
-- Only additions: rows of version 5 stay valid, and so does a program that knows only version 5.

-- The hosts that have a secret of their own.
CREATE TABLE registry_hosts (
    hostname TEXT PRIMARY KEY,                      -- normalised: lower case, without a trailing dot
    secret_sha256 TEXT NOT NULL,                    -- lower-case hex
    users TEXT NOT NULL,                            -- JSON array of names, sorted; ["*"] is everybody, [] nobody
    host_group TEXT NOT NULL DEFAULT '',            -- the label that policies match, or empty
    registered_at BIGINT NOT NULL DEFAULT 0,        -- unix seconds, 0 = not known
    cert_expires_at BIGINT NOT NULL DEFAULT 0       -- unix seconds, as the file had it; host_certificates knows better
);

-- One row, which every change of the registry moves: it orders them, and says to who follows that there was one.
CREATE TABLE registry_state (
    name TEXT PRIMARY KEY,                          -- always 'default'
    revision BIGINT NOT NULL,                       -- 0: no host was ever registered
    imported SMALLINT NOT NULL                      -- 1: the file of earlier versions was taken over
);
INSERT INTO registry_state (name, revision, imported) VALUES ('default', 0, 0);

-- What gives a host a secret, once.
CREATE TABLE enrolment_tokens (
    token_sha256 TEXT PRIMARY KEY,                  -- lower-case hex
    hostname TEXT NOT NULL,                         -- normalised; the only one that it is good for
    users TEXT NOT NULL DEFAULT '',                 -- JSON array as above; empty: everybody, or as they are
    host_group TEXT NOT NULL DEFAULT '',            -- empty: none, or as it is
    again SMALLINT NOT NULL DEFAULT 0,              -- 1: also for a host that is registered, which gets a new secret
    created_by TEXT NOT NULL DEFAULT '',
    created_at BIGINT NOT NULL,                     -- unix seconds
    expires_at BIGINT NOT NULL,                     -- unix seconds; at that second it is too late
    used_at BIGINT NOT NULL DEFAULT 0               -- unix seconds, 0 = not used
);
CREATE INDEX idx_enrolment_tokens_hostname ON enrolment_tokens (hostname);
CREATE INDEX idx_enrolment_tokens_expires ON enrolment_tokens (expires_at);

-- What programs beside the server have done. They have no audit log, so a server takes these over into its chain.
CREATE TABLE outside_events (
    id {id},
    kind TEXT NOT NULL,                             -- of the audit catalogue
    fields TEXT NOT NULL,                           -- JSON of core.audit.fields
    created_at BIGINT NOT NULL                      -- unix seconds
);
