-- What exists and who may log in. Rows refer to each other by `key`, which is small and in order of creation;
-- the outside world sees `id` only (stored without its prefix). Times are microseconds since the Unix epoch.

CREATE TABLE projects (
    key        INTEGER PRIMARY KEY,
    id         TEXT    NOT NULL UNIQUE,
    name       TEXT    NOT NULL UNIQUE,
    created_at INTEGER NOT NULL
) STRICT;

-- A million rows of this: what most databases do not have is NULL, which takes one byte.
-- `project` is no foreign key: deleting a project would need an index over all of its rows, deleted ones included,
-- for a check that delete_project makes anyway through the two partial indexes.
CREATE TABLE databases (
    key               INTEGER PRIMARY KEY,
    id                TEXT    NOT NULL UNIQUE,
    project           INTEGER NOT NULL,
    name              TEXT    NOT NULL,
    major             INTEGER NOT NULL,
    settings          TEXT,    -- JSON; NULL when all are the node's defaults
    created_at        INTEGER NOT NULL,
    deleted_at        INTEGER,
    purging           INTEGER, -- 1 from the moment its files may be gone
    template          TEXT,
    system_identifier INTEGER  -- the 64 bits, as SQLite's signed integer
) STRICT;

-- A deleted database keeps its row and gives its name back. Every index ends in the row's key, so `(project)` also
-- pages through a project in order of creation.
CREATE UNIQUE INDEX databases_live_name ON databases (project, name) WHERE deleted_at IS NULL;
CREATE INDEX databases_live ON databases (project) WHERE deleted_at IS NULL;
CREATE INDEX databases_deleted ON databases (project) WHERE deleted_at IS NOT NULL;
CREATE INDEX databases_deleted_key ON databases (key) WHERE deleted_at IS NOT NULL;
CREATE INDEX databases_deleted_at ON databases (deleted_at) WHERE deleted_at IS NOT NULL;
CREATE INDEX databases_purging ON databases (key) WHERE purging IS NOT NULL;

CREATE TABLE connections (
    key        INTEGER PRIMARY KEY,
    id         TEXT    NOT NULL UNIQUE,
    database   INTEGER NOT NULL REFERENCES databases (key) ON DELETE CASCADE,
    name       TEXT    NOT NULL,
    role       TEXT    NOT NULL,
    verifier   TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    rotated_at INTEGER
) STRICT;

CREATE INDEX connections_database ON connections (database);

-- Roles made with SQL, as they were at the database's last stop.
CREATE TABLE roles (
    database    INTEGER NOT NULL REFERENCES databases (key) ON DELETE CASCADE,
    role        TEXT    NOT NULL,
    verifier    TEXT,
    can_login   INTEGER NOT NULL,
    valid_until INTEGER,
    PRIMARY KEY (database, role)
) STRICT, WITHOUT ROWID;

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- How many rows there are, so that nobody ever counts a million of them. Kept by the statements that add and remove
-- rows, and not by triggers: those would run, and journal the pages they touch, for every single row of a bulk load.
CREATE TABLE tally (
    projects    INTEGER NOT NULL,
    databases   INTEGER NOT NULL, -- live ones
    deleted     INTEGER NOT NULL, -- databases that are deleted and not purged
    connections INTEGER NOT NULL
) STRICT;

INSERT INTO tally VALUES (0, 0, 0, 0);
