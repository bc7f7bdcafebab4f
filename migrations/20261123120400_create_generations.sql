-- The generation that outcomes carry: raised by an operator when this database was put back to an earlier state.
-- Consumers order by generation, then sequence.
create table generations (
    generation bigint constraint generations_pkey primary key,
    reason     text        not null,
    started_at timestamptz not null default clock_timestamp()
);
insert into generations (generation, reason) values (1, 'first start');
