-- no-transaction
-- `verify --watch` looks at what has changed since it last looked. Rows are written almost in the order of their time, so that an
-- index of a few pages does, and costs those who write next to nothing.
create index concurrently if not exists ticket_change_log_changed_at on ticket_change_log using brin (changed_at) with (autosummarize = on);
