-- One row per version of a ticket: what the outcome with this sequence said, and which event caused it. Never deleted.
create table change_log (
    ticket       text collate "C" not null,
    version      bigint           not null,
    outcome      uuid             not null, -- id of the outcome event
    type         text             not null, -- type of the outcome event
    data         json             not null, -- data of the outcome event
    cause_source text collate "C" not null,
    cause_id     text collate "C" not null,
    changed_at   timestamptz      not null,
    constraint change_log_pkey primary key (ticket, version)
);
