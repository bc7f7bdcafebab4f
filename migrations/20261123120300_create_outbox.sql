-- Records waiting for the relay. Ids of one key are in commit order, because each is drawn after the key's row was locked:
-- the identity sequence must keep its cache of 1.
create table outbox (
    id         bigint generated always as identity (cache 1) constraint outbox_pkey primary key,
    topic      text        not null,
    key        text collate "C" not null,
    message    uuid        not null, -- outcome id, or an id derived from a dead letter's origin; the relay hashes these
    headers    json        not null, -- record headers: an object of strings
    value      bytea       not null,
    written_at timestamptz not null,
    refused    text                  -- why Kafka refused the row; it and the later rows of its topic and key wait for an operator
) with (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000);

create index outbox_refused on outbox (topic, key, id) where refused is not null;

-- How far the relay is: the number of the last batch whose rows were deleted. Kafka carries the same number.
create table relay_state (
    only_row boolean default true constraint relay_state_pkey primary key,
    batch    bigint not null,
    constraint relay_state_one_row check (only_row)
);
insert into relay_state (batch) values (0);
