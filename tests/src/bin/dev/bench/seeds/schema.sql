-- What the seeds' handler reads and writes. Room on the pages of tickets, so that an update needs no entry in the index.
drop schema if exists seeds cascade;

create schema seeds;

create table seeds.tickets (
    ticket text primary key,
    holder text,
    hold text,
    version bigint not null default 0
) with (fillfactor = 50);

create table seeds.idempotency_records (
    source text not null,
    id text not null,
    primary key (source, id)
);

create table seeds.outbox (
    id bigint generated always as identity primary key,
    ticket text not null,
    outcome bytea not null
);
