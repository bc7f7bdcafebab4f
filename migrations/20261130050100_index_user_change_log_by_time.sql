-- no-transaction
-- As ticket_change_log_changed_at, of users.
create index concurrently if not exists user_change_log_changed_at on user_change_log using brin (changed_at) with (autosummarize = on);
