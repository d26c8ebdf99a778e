-- records that a sink will not take
-- Only additions: rows of version 4 stay valid, and so does a program that knows only version 4.

-- Audit records that a receiver has refused for what is in them. They are set aside so that those behind them go on, and
-- are offered once more at each start.
CREATE TABLE parked_records (
    instance TEXT NOT NULL,                         -- whose chain
    sink TEXT NOT NULL,
    seq BIGINT NOT NULL,
    record TEXT NOT NULL,                           -- P-form
    hash TEXT NOT NULL,                             -- lower-case hex SHA-256 of its C-form
    reason TEXT NOT NULL,                           -- what the receiver said
    parked_at BIGINT NOT NULL,                      -- unix seconds
    PRIMARY KEY (instance, sink, seq)
);
CREATE INDEX idx_parked_records_at ON parked_records (parked_at);

-- Who writes which chain, and whether they still do: the sinks of a living replica take over what a dead one has left.
CREATE TABLE chain_writers (
    instance TEXT PRIMARY KEY,
    seen_at BIGINT NOT NULL,                        -- when its process last said that it runs; unix seconds
    adopted_by TEXT NOT NULL DEFAULT '',            -- the chain of the process that looks after what is left
    adopted_at BIGINT NOT NULL DEFAULT 0            -- when that one last said so; unix seconds
);
