-- One row per user that was ever registered. Rows are never deleted; every change raises `version` by the number of outcomes
-- it caused, refusals included, so that `version` is also the sequence of the user's newest outcome. Credits are not here: the
-- loyalty database keeps them.
create table users (
    user_id    text collate "C" constraint users_pkey primary key,
    version    bigint      not null,
    email      text        not null,
    name       text,
    language   text,                 -- a tag of BCP 47
    changed_at timestamptz not null, -- database clock of the last change; never goes back
    constraint users_version_positive check (version > 0)
) with (fillfactor = 80);

-- Each kind of row has a change log of its own.
alter table change_log rename to ticket_change_log;
alter table ticket_change_log rename constraint change_log_pkey to ticket_change_log_pkey;

-- One row per version of a user: what the outcome with this sequence said, and which event caused it. Never deleted.
create table user_change_log (
    user_id      text collate "C" not null,
    version      bigint           not null,
    outcome      uuid             not null, -- id of the outcome event
    type         text             not null, -- type of the outcome event
    data         json             not null, -- data of the outcome event
    cause_source text collate "C" not null,
    cause_id     text collate "C" not null,
    changed_at   timestamptz      not null,
    constraint user_change_log_pkey primary key (user_id, version)
);

-- An event takes effect once, whatever it is about: tickets and users share the idempotency records.
alter table idempotency_records rename column ticket to key;
alter table idempotency_records add column topic text not null default 'reservations'; -- where such events are asked
alter table idempotency_records alter column topic drop default;
