-- POSIX ids and the directory
-- Only additions: rows of version 2 stay valid, and so does a program that knows only version 2.

-- Who has which number. Nothing is ever deleted or changed here: a number that was given away owns files on hosts, so
-- it is never given to anybody else, and who comes back gets it back.
CREATE TABLE posix_ids (
    kind TEXT NOT NULL,                             -- uid or gid; two spaces that do not know each other
    source_id TEXT NOT NULL,                        -- PocketID's id of a person or a group; opaque, case counts
    number BIGINT NOT NULL,                         -- 1 to 4294967294
    revision BIGINT NOT NULL,                       -- of its kind's counter, that this row came with
    PRIMARY KEY (kind, source_id)
);
CREATE UNIQUE INDEX idx_posix_ids_number ON posix_ids (kind, number);
CREATE INDEX idx_posix_ids_revision ON posix_ids (kind, revision, number);

-- What the next newcomer gets. Every transaction that inserts ids of a kind moves the revision from the one that it has
-- read by one, so whoever gave out numbers without knowing all others writes nothing.
CREATE TABLE posix_counters (
    kind TEXT PRIMARY KEY,                          -- uid or gid
    next_number BIGINT NOT NULL,                    -- only grows
    revision BIGINT NOT NULL
);

-- The directory that is served, one row; everything large stands in pieces beside it, named by content.
CREATE TABLE directory_state (
    name TEXT PRIMARY KEY,                          -- always 'default'
    version BIGINT NOT NULL,                        -- of what is published; plus one with each publication
    usn BIGINT NOT NULL,                            -- the greatest change number (entryUSN) ever shown; unix seconds
    manifest TEXT NOT NULL,                         -- JSON: the names of the pieces, see identree.directory.archive
    fetched_at BIGINT NOT NULL,                     -- when the source last confirmed it; unix seconds, 0 = never
    published_at BIGINT NOT NULL,                   -- unix seconds
    people_count BIGINT NOT NULL DEFAULT 0,         -- how many are served
    group_count BIGINT NOT NULL DEFAULT 0,          -- the same, without private groups
    refusal TEXT NOT NULL DEFAULT ''                -- JSON: a smaller directory that waits for acceptance; or empty
);

-- Pieces of the source and of the stamps. Written before the row above names them, so that a publication is one small
-- update however large the directory is; removed some time after nothing names them any more.
CREATE TABLE directory_pieces (
    name TEXT PRIMARY KEY,                          -- lower-case hex of the content's BLAKE2b-128
    content TEXT NOT NULL,                          -- base64 of zlib of JSON
    written_at BIGINT NOT NULL                      -- unix seconds, of the last time that somebody wanted it
);
CREATE INDEX idx_directory_pieces_written ON directory_pieces (written_at);
