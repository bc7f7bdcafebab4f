-- Keys whose events break the worker: whatever arrives for one is parked until an operator has it replayed or dropped.
create table quarantined_keys (
    topic        text             not null, -- the public topic of the key's events
    key          text collate "C" not null,
    cause        text             not null, -- what broke
    kind         text             not null, -- where it broke, without any value: failures of one kind are settled together
    error        text             not null, -- as the log has it; may quote a value
    since        timestamptz      not null default clock_timestamp(),
    replay_asked timestamptz,               -- an operator wants the parked events replayed, and they are not all replayed yet
    constraint quarantined_keys_pkey primary key (topic, key),
    constraint quarantined_keys_cause check (cause in ('panic', 'data', 'constraint'))
);

-- Their events, in order. An event leaves when it is decided, or dropped as a dead letter.
create table parked_events (
    id         bigint generated always as identity (cache 1) constraint parked_events_pkey primary key, -- the order within a key
    topic      text             not null,
    key        text collate "C" not null,
    source     text collate "C" not null,
    event      text collate "C" not null, -- its id, which names it together with the source
    hash       bytea            not null, -- version tag (1 byte) and digest of type, subject and data
    type       text             not null,
    value      bytea            not null, -- the event as serve has it: a CloudEvent in structured mode, with its origin
    partition  int,                       -- where its record lies on the topic
    "offset"   bigint,
    parked_at  timestamptz      not null default clock_timestamp(),
    constraint parked_events_identity unique (source, event, hash),
    -- No event is parked without the flag, and the flag does not go before the last event.
    constraint parked_events_quarantined_key foreign key (topic, key) references quarantined_keys
);
create index parked_events_key on parked_events (topic, key, id);

-- What became of each key: by whom, and why.
create table quarantine_log (
    id     bigint generated always as identity constraint quarantine_log_pkey primary key,
    at     timestamptz      not null default clock_timestamp(),
    topic  text             not null,
    key    text collate "C" not null,
    what   text             not null,
    events bigint           not null, -- how many events it was about
    who    text,                      -- the operator; null where Holdfast did it by itself
    why    text,                      -- the operator's reason, or the kind of the failure
    constraint quarantine_log_what check (what in ('quarantined', 'replay_asked', 'replayed', 'broke_again', 'dropped'))
);
create index quarantine_log_key on quarantine_log (topic, key, id);
