-- no-transaction
-- Finds the mails about failures that a user was sent within an hour.
create index concurrently if not exists mails_about_failures on mails (user_id, written_at) where kind = 'failed';
