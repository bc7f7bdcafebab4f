-- What was answered to each event, known by its CloudEvents (source, id). Written in the statement that applies the event,
-- swept once the event is older than the idempotency retention.
create table idempotency_records (
    source     text collate "C" not null,
    id         text collate "C" not null,
    ticket     text collate "C" not null, -- the key that the event was for
    hash       bytea            not null, -- version tag (1 byte) and digest of type, subject and data
    reply      json             not null, -- the outcomes told, given again to a repeat
    aged_from  timestamptz      not null, -- the earlier of the event's time and its broker time; HTTP: time of writing
    written_at timestamptz      not null,
    constraint idempotency_records_pkey primary key (source, id)
);

-- The sweep walks by age; records are written almost in that order.
create index idempotency_records_aged_from on idempotency_records using brin (aged_from);
