-- What changes often and may lose a moment, apart from the registry so that its rows stay small.

CREATE TABLE usage (
    database     INTEGER PRIMARY KEY REFERENCES databases (key) ON DELETE CASCADE,
    sessions     INTEGER NOT NULL,
    bytes_in     INTEGER NOT NULL,
    bytes_out    INTEGER NOT NULL,
    cpu_us       INTEGER NOT NULL,
    running_us   INTEGER NOT NULL,
    last_used_at INTEGER,
    size_bytes   INTEGER,
    xid_age      INTEGER
) STRICT;

-- The latest steps of each database on the ladder, numbered from 1 and pruned from the front.
CREATE TABLE history (
    database   INTEGER NOT NULL REFERENCES databases (key) ON DELETE CASCADE,
    number     INTEGER NOT NULL,
    at         INTEGER NOT NULL,
    from_state TEXT    NOT NULL,
    to_state   TEXT    NOT NULL,
    took_us    INTEGER NOT NULL,
    reason     TEXT    NOT NULL,
    PRIMARY KEY (database, number)
) STRICT, WITHOUT ROWID;
