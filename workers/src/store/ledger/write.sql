with movement as (
    select *
    from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::bytea[])
             with ordinality as m (movement, kind, receiver, giver, amount, entry, place)
),
moved as (
    insert into ledger (movement, checkout, kind, account, amount, currency, moved_at, told)
    select m.movement, $7::text, m.kind, line.account, line.amount, $8::text, $9::timestamptz, true
    from movement m
         cross join lateral (values (1, m.receiver, m.amount), (2, m.giver, -m.amount)) as line (number, account, amount)
    order by m.place, line.number
),
queued as (
    insert into outbox (topic, key, message, headers, value, written_at)
    select $10::text, $7::text, m.movement, $11::text::json, m.entry, $9::timestamptz
    from movement m
    order by m.place
)
select pg_notify('outbox', '') is not null as "written!"
