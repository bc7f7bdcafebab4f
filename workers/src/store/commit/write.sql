-- Writes a batch of decided units in one statement. Everything is gated by the unit's ordinal, never by its key: a unit passes
-- when its row is locked and still has the version that was read, when its new row was inserted by this statement, or when it
-- has no row and makes none. Units that do not pass write nothing and are not named in the answer.
with unit as materialized (
    select *
    from unnest(
        $1::int[], $2::text[], $3::bigint[], $4::bigint[], $5::text[], $6::text[], $7::bigint[], $8::text[], $9::text[],
        $10::uuid[], $11::text[], $12::timestamptz[], $13::text[], $14::timestamptz[], $15::int[], $16::int[], $17::int[]
    ) as u (
        ordinal, ticket, read_version, version, show, seat, price_amount, price_currency, status,
        hold, holder, held_until, checkout, decided_at, records, changes, messages
    )
),
locked as materialized (
    select u.ordinal
    from unit u join tickets t on t.ticket = u.ticket and t.version = u.read_version
    order by t.ticket
    for no key update of t skip locked
),
inserted as (
    insert into tickets (
        ticket, version, show, seat, price_amount, price_currency, status, hold, holder, held_until, checkout, changed_at
    )
    select ticket, version, show, seat, price_amount, price_currency, status, hold, holder, held_until, checkout, decided_at
    from unit
    where read_version is null and version is not null
    order by ticket
    on conflict do nothing
    returning ticket
),
passed as materialized (
    select ordinal from locked
    union all
    select u.ordinal from unit u join inserted i on i.ticket = u.ticket
    union all
    select ordinal from unit where read_version is null and version is null
),
updated as (
    update tickets t
    set version = u.version, show = u.show, seat = u.seat, price_amount = u.price_amount, price_currency = u.price_currency,
        status = u.status, hold = u.hold, holder = u.holder, held_until = u.held_until, checkout = u.checkout,
        changed_at = u.decided_at
    from unit u join passed p on p.ordinal = u.ordinal
    where t.ticket = u.ticket and t.version = u.read_version and u.version is not null
    returning t.ticket
),
recorded as (
    insert into idempotency_records (source, id, ticket, hash, reply, aged_from, written_at)
    select r.source, r.id, u.ticket, r.hash, r.reply::json, r.aged_from, u.decided_at
    from unnest($18::int[], $19::text[], $20::text[], $21::bytea[], $22::text[], $23::timestamptz[])
             as r (ordinal, source, id, hash, reply, aged_from)
         join passed p on p.ordinal = r.ordinal
         join unit u on u.ordinal = r.ordinal
    returning 1
),
logged as (
    insert into change_log (ticket, version, outcome, type, data, cause_source, cause_id, changed_at)
    select u.ticket, c.version, c.outcome, c.type, c.data::json, c.cause_source, c.cause_id, u.decided_at
    from unnest($24::int[], $25::bigint[], $26::uuid[], $27::text[], $28::text[], $29::text[], $30::text[])
             with ordinality as c (ordinal, version, outcome, type, data, cause_source, cause_id, place)
         join passed p on p.ordinal = c.ordinal
         join unit u on u.ordinal = c.ordinal
    order by c.place
    returning 1
),
queued as (
    insert into outbox (topic, key, message, headers, value, written_at)
    select m.topic, u.ticket, m.message, m.headers::json, m.value, u.decided_at
    from unnest($31::int[], $32::text[], $33::uuid[], $34::text[], $35::bytea[])
             with ordinality as m (ordinal, topic, message, headers, value, place)
         join passed p on p.ordinal = m.ordinal
         join unit u on u.ordinal = m.ordinal
    order by m.place
    returning 1
),
meant as (
    select count(u.version) as tickets, sum(u.records) as records, sum(u.changes) as changes, sum(u.messages) as messages
    from unit u join passed p on p.ordinal = u.ordinal
)
select
    array(select ordinal from passed) as "passed!",
    check_rows('tickets', m.tickets, (select count(*) from inserted) + (select count(*) from updated))
        and check_rows('idempotency_records', coalesce(m.records, 0), (select count(*) from recorded))
        and check_rows('change_log', coalesce(m.changes, 0), (select count(*) from logged))
        and check_rows('outbox', coalesce(m.messages, 0), (select count(*) from queued))
        and pg_notify('outbox', '') is not null as "written!"
from meant m
