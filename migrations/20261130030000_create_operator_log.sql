-- What operators did, by whom and why: one row for each thing that a command settled. What they did with keys in quarantine stands in
-- quarantine_log, among the steps that Holdfast took by itself. Never changed, never deleted.
create table operator_log (
    id      bigint generated always as identity constraint operator_log_pkey primary key,
    at      timestamptz      not null default clock_timestamp(),
    command text             not null, -- 'dead-letters replay', 'outbox drop', ...
    subject text collate "C" not null, -- what it was done to: an origin, the id of an outbox row, checkout/place of a mail, a checkout, ...
    who     text             not null, -- the operator
    why     text             not null, -- the operator's reason
    details text                       -- what was done beyond what the command says; no value of an event
);
create index operator_log_subject on operator_log (subject, id);
create index operator_log_at on operator_log (at);
