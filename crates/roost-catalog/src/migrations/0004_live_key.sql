-- Live databases in order of creation, so that a listing passes over none of those that are deleted.

CREATE INDEX databases_live_key ON databases (key) WHERE deleted_at IS NULL;
