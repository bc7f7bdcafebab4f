with movement as (
    select unnest($1::uuid[]) as movement, unnest($2::text[]) as kind, unnest($3::text[]) as receiver, unnest($4::text[]) as giver,
           unnest($5::bigint[]) as amount, unnest($6::bytea[]) as entry, generate_subscripts($1::uuid[], 1) as place
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
