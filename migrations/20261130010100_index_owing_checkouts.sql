-- no-transaction
-- Finds the checkouts of which something is to be given back, beside checkouts_unfinished.
create index concurrently if not exists checkouts_owing on checkouts (moved_at) where owes;
