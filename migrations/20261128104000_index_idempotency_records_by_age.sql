-- no-transaction
-- The sweep walks by age. A record ages from the later of both: an event's time may lie ahead of when it was written, and a
-- release before this one wrote the earlier of its time and its broker's. What is written now goes to the end of the index.
create index concurrently if not exists idempotency_records_age on idempotency_records (greatest(aged_from, written_at));
