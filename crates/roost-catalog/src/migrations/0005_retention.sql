-- How far retention was counted when a database was deleted, in microseconds: deletions expire by that count and not by
-- `deleted_at`, which is for people. Those that were deleted before it was counted begin anew.

ALTER TABLE databases ADD COLUMN deleted_count INTEGER;
UPDATE databases SET deleted_count = 0 WHERE deleted_at IS NOT NULL;
DROP INDEX databases_deleted_at;
CREATE INDEX databases_deleted_count ON databases (deleted_count) WHERE deleted_at IS NOT NULL;
