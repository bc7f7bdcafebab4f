-- no-transaction
-- No statement ever went by it.
drop index concurrently if exists idempotency_records_aged_from;
