with unit as materialized (
    select unnest($1::int[]) as ordinal, unnest($2::text[]) as key, unnest($3::bigint[]) as read_version, unnest($4::bigint[]) as version,
           unnest($5::timestamptz[]) as decided_at, unnest($6::int[]) as records, unnest($7::int[]) as changes, unnest($8::int[]) as messages,
           unnest($28::text[]) as show, unnest($29::text[]) as seat, unnest($30::bigint[]) as price_amount,
           unnest($31::text[]) as price_currency, unnest($32::text[]) as status, unnest($33::uuid[]) as hold,
           unnest($34::text[]) as holder, unnest($35::timestamptz[]) as held_until, unnest($36::text[]) as checkout,
           unnest($37::uuid[]) as lengthened, unnest($38::uuid[]) as priced, unnest($39::bigint[]) as hold_price,
           unnest($40::uuid[]) as off_sale
),
record as (
    select unnest($9::int[]) as ordinal, unnest($10::text[]) as source, unnest($11::text[]) as id, unnest($12::text[]) as topic,
           unnest($13::bytea[]) as hash, unnest($14::text[]) as reply, unnest($15::timestamptz[]) as aged_from
),
change as (
    select unnest($16::int[]) as ordinal, unnest($17::bigint[]) as version, unnest($18::uuid[]) as outcome, unnest($19::text[]) as type,
           unnest($20::text[]) as data, unnest($21::text[]) as cause_source, unnest($22::text[]) as cause_id
),
message as (
    select unnest($23::int[]) as ordinal, unnest($24::text[]) as topic, unnest($25::uuid[]) as message, unnest($26::text[]) as headers,
           unnest($27::bytea[]) as value, generate_subscripts($23::int[], 1) as place
),
locked as materialized (
    select u.ordinal, u.key, u.decided_at
    from unit u join tickets t on t.ticket = u.key and t.version = u.read_version
    order by t.ticket
    for no key update of t skip locked
),
inserted as (
    insert into tickets (ticket, version, changed_at, show, seat, price_amount, price_currency, status, hold, holder, held_until, checkout, lengthened, priced, hold_price, off_sale)
    select key, version, decided_at, show, seat, price_amount, price_currency, status, hold, holder, held_until, checkout, lengthened, priced, hold_price, off_sale
    from unit
    where read_version is null and version is not null
    order by key
    on conflict do nothing
    returning ticket as key
),
passed as materialized (
    select ordinal, key, decided_at from locked
    union all
    select u.ordinal, u.key, u.decided_at from unit u join inserted i on i.key = u.key
    union all
    select ordinal, key, decided_at from unit where read_version is null and version is null
),
updated as (
    update tickets t
    set version = u.version, changed_at = u.decided_at, show = u.show, seat = u.seat, price_amount = u.price_amount, price_currency = u.price_currency,
            status = u.status, hold = u.hold, holder = u.holder, held_until = u.held_until, checkout = u.checkout, lengthened = u.lengthened, priced = u.priced, hold_price = u.hold_price, off_sale = u.off_sale
    from unit u join passed p on p.ordinal = u.ordinal
    where t.ticket = u.key and t.version = u.read_version and u.version is not null
    returning 1
),
recorded as (
    insert into idempotency_records (source, id, topic, key, hash, reply, aged_from, written_at)
    select r.source, r.id, r.topic, p.key, r.hash, r.reply::json, r.aged_from, p.decided_at
    from record r join passed p on p.ordinal = r.ordinal
    returning 1
),
logged as (
    insert into ticket_change_log (ticket, version, outcome, type, data, cause_source, cause_id, changed_at)
    select p.key, c.version, c.outcome, c.type, c.data::json, c.cause_source, c.cause_id, p.decided_at
    from change c join passed p on p.ordinal = c.ordinal
    returning 1
),
queued as (
    insert into outbox (topic, key, message, headers, value, written_at)
    select m.topic, p.key, m.message, m.headers::json, m.value, p.decided_at
    from message m join passed p on p.ordinal = m.ordinal
    order by m.place
    returning 1
),
meant as (
    select count(u.version) as rows, coalesce(sum(u.records), 0) as records, coalesce(sum(u.changes), 0) as changes,
           coalesce(sum(u.messages), 0) as messages
    from unit u join passed p on p.ordinal = u.ordinal
),
done as (
    select count(*) filter (where what = 'row') as rows, count(*) filter (where what = 'record') as records,
           count(*) filter (where what = 'change') as changes, count(*) filter (where what = 'message') as messages
    from (
        select 'row' as what from inserted
        union all select 'row' from updated
        union all select 'record' from recorded
        union all select 'change' from logged
        union all select 'message' from queued
    ) as written
)
select
    array(select ordinal from passed) as "passed!",
    -- Each call of the function costs more than all the comparisons: only what differs is told.
    case when (m.rows, m.records, m.changes, m.messages) = (d.rows, d.records, d.changes, d.messages) then true
         else check_rows('tickets', m.rows, d.rows) and check_rows('idempotency_records', m.records, d.records)
              and check_rows('ticket_change_log', m.changes, d.changes) and check_rows('outbox', m.messages, d.messages)
    end and pg_notify('outbox', '') is not null as "written!"
from meant m, done d
