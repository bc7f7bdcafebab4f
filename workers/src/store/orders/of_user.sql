select
    c.checkout, c.user_id, c.state, c.total_amount, c.total_currency, c.credits, c.refunded, c.payment, c.failure, c.failure_code,
    c.stuck_at is not null as "stuck!", c.opened_at, c.ended_at, s.seats as "seats!: Json<Vec<OrderedSeat>>"
from (
    select c.*
    from checkouts c
    where c.user_id = $1
        and ($2::text is null or exists (select from checkout_seats w where w.checkout = c.checkout and w.show = $2))
        and ($3::text is null or (c.opened_at, c.checkout) < (select b.opened_at, b.checkout from checkouts b where b.checkout = $3))
    order by c.opened_at desc, c.checkout desc
    limit $4
) c
cross join lateral (
    select json_agg(
        json_build_object(
            'ticket', s.ticket, 'show', s.show, 'seat', s.seat, 'price', s.price_amount, 'returned', s.returned or c.state = 'refunded'
        ) order by s.place
    ) as seats
    from checkout_seats s
    where s.checkout = c.checkout
) s
order by c.opened_at desc, c.checkout desc
