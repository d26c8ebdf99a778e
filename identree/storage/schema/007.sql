-- host keys of SSH servers
-- Only additions: rows of version 6 stay valid, and so does a program that knows only version 6.

-- The key that an administrator has confirmed for a place. Another one is refused.
CREATE TABLE ssh_host_keys (
    hostname TEXT NOT NULL,                         -- what SSH connects to, normalised; an alias is another place
    port INTEGER NOT NULL,
    key_type TEXT NOT NULL,                         -- ssh-ed25519, ecdsa-sha2-nistp256, ...
    public_key TEXT NOT NULL,                       -- base64 of RFC 4253 section 6.6
    confirmed_by TEXT NOT NULL,
    confirmed_at BIGINT NOT NULL,                   -- unix seconds
    used_at BIGINT NOT NULL,                        -- unix seconds, of the last connection that it was checked for
    PRIMARY KEY (hostname, port)
);
CREATE INDEX idx_ssh_host_keys_used ON ssh_host_keys (used_at);
