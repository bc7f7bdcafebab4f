-- The sweep's first walk passes what was deleted and not yet vacuumed; and the space is to be used again.
alter table idempotency_records set (autovacuum_vacuum_scale_factor = 0.05);
