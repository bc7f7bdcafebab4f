with written as (
    insert into checkouts (
        checkout, version, user_id, hash, state, total_amount, total_currency, credits, payment_method, payment, until, called_at,
        stuck_at, stuck_reason, sold_at, failure, failure_code, refunded, opened_at, ended_at,
        refunds_undone, repayments, owes
    )
    values (
        $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12,
        case when $13::text is not null then $20::timestamptz end, $13, case when $14::boolean then $20 end, $15, $16, $17, $20,
        case when $18::boolean then $20 end, $26, $27, $28
    )
    on conflict (checkout) do update set
        version = excluded.version,
        state = excluded.state,
        payment = excluded.payment,
        unknown_since = null,
        ask_at = null,
        stuck_at = case when excluded.stuck_at is not null then coalesce(checkouts.stuck_at, excluded.stuck_at) end,
        stuck_reason = excluded.stuck_reason,
        sold_at = case when excluded.sold_at is not null then coalesce(checkouts.sold_at, excluded.sold_at) end,
        failure = excluded.failure,
        failure_code = excluded.failure_code,
        refunded = excluded.refunded,
        refunds_undone = excluded.refunds_undone,
        repayments = excluded.repayments,
        owes = excluded.owes,
        moved_at = clock_timestamp(),
        ended_at = case when excluded.ended_at is not null then coalesce(checkouts.ended_at, excluded.ended_at) end
    returning 1
),
seats as (
    insert into checkout_seats (checkout, place, ticket, hold, show, seat, price_amount, open, returned)
    select $1, u.place, u.ticket, u.hold, u.show, u.seat, u.price, not $18, u.returned
    from unnest($19::text[], $21::uuid[], $22::text[], $23::text[], $24::bigint[], $25::boolean[])
         with ordinality u (ticket, hold, show, seat, price, returned, place)
    on conflict (checkout, place) do update set open = excluded.open, returned = excluded.returned
    returning 1
)
select check_rows('checkouts', 1, (select count(*) from written))
    and check_rows('checkout_seats', cardinality($19), (select count(*) from seats)) as "written!"
