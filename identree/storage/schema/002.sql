-- outbox, host context, browser sessions
-- Only additions, each with a default: rows of version 1 stay valid, and so does a program that knows only version 1.

-- What the host said about the command (unverified), where it asked from, and who refused.
ALTER TABLE challenges ADD COLUMN command TEXT NOT NULL DEFAULT '';
ALTER TABLE challenges ADD COLUMN cwd TEXT NOT NULL DEFAULT '';
ALTER TABLE challenges ADD COLUMN tty TEXT NOT NULL DEFAULT '';
ALTER TABLE challenges ADD COLUMN remote_host TEXT NOT NULL DEFAULT '';
ALTER TABLE challenges ADD COLUMN remote_addr TEXT NOT NULL DEFAULT '';
ALTER TABLE challenges ADD COLUMN denied_by TEXT NOT NULL DEFAULT '';

-- The local path that the person wanted before signing in.
ALTER TABLE session_nonces ADD COLUMN return_to TEXT NOT NULL DEFAULT '';

-- The first sight of a session cookie's nonce: gives the session an absolute end.
CREATE TABLE browser_sessions (
    nonce TEXT PRIMARY KEY,
    username TEXT NOT NULL,
    started_at BIGINT NOT NULL
);
CREATE INDEX idx_browser_sessions_started ON browser_sessions (started_at);

-- Events, written in the transaction that makes them true. On PostgreSQL a row is first unsealed (seq NULL) and gets its
-- place in the chain right after the commit; on SQLite both happen in one commit.
CREATE TABLE outbox (
    id {id},
    instance TEXT NOT NULL,                         -- whose chain
    seq BIGINT,                                     -- place in the chain
    fields TEXT NOT NULL DEFAULT '',                -- JSON of core.audit.fields while unsealed
    record TEXT NOT NULL DEFAULT '',                -- P-form of the audit record once sealed
    hash TEXT NOT NULL DEFAULT '',                  -- lower-case hex SHA-256 of its C-form
    created_at BIGINT NOT NULL
);
CREATE UNIQUE INDEX idx_outbox_seq ON outbox (instance, seq);
CREATE INDEX idx_outbox_unsealed ON outbox (instance, id) WHERE seq IS NULL;
CREATE INDEX idx_outbox_created ON outbox (created_at);

-- Where each chain stands.
CREATE TABLE chain_heads (
    instance TEXT PRIMARY KEY,
    next_seq BIGINT NOT NULL,                       -- what the next record gets
    hash TEXT NOT NULL DEFAULT ''                   -- of the last record
);

-- The last record that a sink has acknowledged.
CREATE TABLE sink_cursors (
    instance TEXT NOT NULL,
    sink TEXT NOT NULL,
    seq BIGINT NOT NULL,
    PRIMARY KEY (instance, sink)
);

-- The identity of the chain of a server that is alone with its database.
CREATE TABLE instance_identity (
    name TEXT PRIMARY KEY,                          -- always 'default'
    instance TEXT NOT NULL                          -- 16 random hex digits
);
