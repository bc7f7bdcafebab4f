-- no-transaction
-- Finds a user's orders, the newest first.
create index concurrently if not exists checkouts_user on checkouts (user_id, opened_at);
