-- Dead letters that an operator has replayed or dropped, by origin; the dead-letters topic itself is never changed.
create table settled_dead_letters (
    topic       text        not null,
    partition   integer     not null,
    "offset"    bigint      not null,
    settlement  text        not null,
    settled_at  timestamptz not null default clock_timestamp(),
    constraint settled_dead_letters_pkey primary key (topic, partition, "offset"),
    constraint settled_dead_letters_settlement check (settlement in ('replayed', 'dropped'))
);
