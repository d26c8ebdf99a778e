-- certificates of hosts
-- Only additions: rows of version 3 stay valid, and so does a program that knows only version 3.

-- The last client certificate that each host was given.
CREATE TABLE host_certificates (
    hostname TEXT PRIMARY KEY,                      -- normalised: lower case, without a trailing dot
    serial TEXT NOT NULL,                           -- lower-case hex without leading zeros
    issued_at BIGINT NOT NULL,                      -- unix seconds
    expires_at BIGINT NOT NULL                      -- unix seconds
);
CREATE INDEX idx_host_certificates_expires ON host_certificates (expires_at);
