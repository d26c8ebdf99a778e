-- approval policies with versions, notifications, push devices
-- Only additions: rows of version 8 stay valid, and so does a program that knows only version 8.

-- What the policy said at creation beyond the columns of its own, and why it applied: JSON, or empty.
ALTER TABLE challenges ADD COLUMN policy_json TEXT NOT NULL DEFAULT '';

-- What a grace session was opened by. Without a genuine strength_mac it is as weak as its owner's own approval.
ALTER TABLE grace_sessions ADD COLUMN policy_name TEXT NOT NULL DEFAULT '';
ALTER TABLE grace_sessions ADD COLUMN approvals INTEGER NOT NULL DEFAULT 1;
ALTER TABLE grace_sessions ADD COLUMN by_admin SMALLINT NOT NULL DEFAULT 0;
ALTER TABLE grace_sessions ADD COLUMN by_other SMALLINT NOT NULL DEFAULT 0;
ALTER TABLE grace_sessions ADD COLUMN strength_mac TEXT NOT NULL DEFAULT '';

ALTER TABLE browser_sessions ADD COLUMN groups_json TEXT NOT NULL DEFAULT '[]'; -- of the sign-in
ALTER TABLE browser_sessions ADD COLUMN authenticated_at BIGINT NOT NULL DEFAULT 0; -- unix seconds, 0 = unknown
ALTER TABLE session_nonces ADD COLUMN fresh_since BIGINT NOT NULL DEFAULT 0; -- unix seconds, 0 = an ordinary sign-in

CREATE TABLE policy_versions (
    version BIGINT PRIMARY KEY,                     -- 1, 2, ...; the greatest is in force
    document TEXT NOT NULL,                         -- JSON, as in a policy file
    author TEXT NOT NULL,
    note TEXT NOT NULL DEFAULT '',
    saved_at BIGINT NOT NULL
);

CREATE TABLE notification_deliveries (
    id {id},
    delivery_key TEXT NOT NULL UNIQUE,              -- the same for the same message
    channel TEXT NOT NULL,
    target TEXT NOT NULL DEFAULT '',                -- id of a push device, or empty
    event TEXT NOT NULL,
    username TEXT NOT NULL DEFAULT '',
    hostname TEXT NOT NULL DEFAULT '',
    code TEXT NOT NULL DEFAULT '',
    notice TEXT NOT NULL,                           -- JSON
    if_pending TEXT NOT NULL DEFAULT '',            -- only while this challenge is pending
    replaces BIGINT NOT NULL DEFAULT 0,             -- id of the delivery whose message is brought up to date
    until_at BIGINT NOT NULL,                       -- not sent after this
    state TEXT NOT NULL,                            -- queued, sending, sent, failed, skipped
    owner TEXT NOT NULL DEFAULT '',                 -- the process that has it in hand
    attempts INTEGER NOT NULL DEFAULT 0,
    due_at BIGINT NOT NULL,                         -- queued: not before; sending: end of the lease
    created_at BIGINT NOT NULL,
    finished_at BIGINT NOT NULL DEFAULT 0,
    error TEXT NOT NULL DEFAULT '',
    reference TEXT NOT NULL DEFAULT ''              -- by which the receiver knows the message
);
CREATE INDEX idx_notification_deliveries_due ON notification_deliveries (state, due_at);
CREATE INDEX idx_notification_deliveries_code ON notification_deliveries (code);
CREATE INDEX idx_notification_deliveries_channel ON notification_deliveries (channel, id);
CREATE INDEX idx_notification_deliveries_finished ON notification_deliveries (finished_at);

CREATE TABLE push_devices (
    id TEXT PRIMARY KEY,                            -- SHA-256 of the endpoint, hex
    username TEXT NOT NULL,
    endpoint TEXT NOT NULL,                         -- secret: whoever knows it can bother the person
    p256dh TEXT NOT NULL,                           -- RFC 8291
    auth TEXT NOT NULL,
    label TEXT NOT NULL DEFAULT '',
    events_json TEXT NOT NULL DEFAULT '[]',
    created_at BIGINT NOT NULL,
    last_sent_at BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX idx_push_devices_username ON push_devices (username);

-- Which replica asks the people's source: the one that has set this.
ALTER TABLE directory_state ADD COLUMN asked_at BIGINT NOT NULL DEFAULT 0; -- when one has begun to ask; unix seconds
