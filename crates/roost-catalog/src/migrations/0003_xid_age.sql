-- Which databases must be vacuumed soon. Few reach such an age (Postgres' own autovacuum_freeze_max_age), so the index
-- stays small and most changes do not touch it.

CREATE INDEX usage_xid_age ON usage (xid_age) WHERE xid_age >= 200000000;
