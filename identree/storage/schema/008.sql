-- ID tokens for hosts
-- Only additions: rows of version 7 stay valid, and so does a program that knows only version 7.

-- The ID token that the person signed in with, sealed (base64 of nonce and AES-256-GCM); empty: it is not kept.
ALTER TABLE browser_sessions ADD COLUMN id_token TEXT NOT NULL DEFAULT '';
