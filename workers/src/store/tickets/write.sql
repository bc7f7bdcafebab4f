with unit as materialized (
    select *
    from unnest(
        $1::int[], $2::text[], $3::bigint[], $4::bigint[], $5::timestamptz[], $6::int[], $7::int[], $8::int[],
        $28::text[], $29::text[], $30::bigint[], $31::text[], $32::text[], $33::uuid[], $34::text[],
            $35::timestamptz[], $36::text[], $37::uuid[], $38::uuid[], $39::bigint[], $40::uuid[]
    ) as u (ordinal, key, read_version, version, decided_at, records, changes, messages, show, seat, price_amount, price_currency, status, hold, holder, held_until, checkout, lengthened, priced, hold_price, off_sale)
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
    from unnest($9::int[], $10::text[], $11::text[], $12::text[], $13::bytea[], $14::text[], $15::timestamptz[])
             as r (ordinal, source, id, topic, hash, reply, aged_from)
         join passed p on p.ordinal = r.ordinal
    returning 1
),
logged as (
    insert into ticket_change_log (ticket, version, outcome, type, data, cause_source, cause_id, changed_at)
    select p.key, c.version, c.outcome, c.type, c.data::json, c.cause_source, c.cause_id, p.decided_at
    from unnest($16::int[], $17::bigint[], $18::uuid[], $19::text[], $20::text[], $21::text[], $22::text[])
             as c (ordinal, version, outcome, type, data, cause_source, cause_id)
         join passed p on p.ordinal = c.ordinal
    returning 1
),
queued as (
    insert into outbox (topic, key, message, headers, value, written_at)
    select m.topic, p.key, m.message, m.headers::json, m.value, p.decided_at
    from unnest($23::int[], $24::text[], $25::uuid[], $26::text[], $27::bytea[])
             with ordinality as m (ordinal, topic, message, headers, value, place)
         join passed p on p.ordinal = m.ordinal
    order by m.place
    returning 1
),
meant as (
    select count(u.version) as rows, coalesce(sum(u.records), 0) as records, coalesce(sum(u.changes), 0) as changes,
           coalesce(sum(u.messages), 0) as messages
    from unit u join passed p on p.ordinal = u.ordinal
),
done as (
    select (select count(*) from inserted) + (select count(*) from updated) as rows, (select count(*) from recorded) as records,
           (select count(*) from logged) as changes, (select count(*) from queued) as messages
)
select
    array(select ordinal from passed) as "passed!",
    -- Each call of the function costs more than all the comparisons: only what differs is told.
    case when (m.rows, m.records, m.changes, m.messages) = (d.rows, d.records, d.changes, d.messages) then true
         else check_rows('tickets', m.rows, d.rows) and check_rows('idempotency_records', m.records, d.records)
              and check_rows('ticket_change_log', m.changes, d.changes) and check_rows('outbox', m.messages, d.messages)
    end and pg_notify('outbox', '') is not null as "written!"
from meant m, done d
