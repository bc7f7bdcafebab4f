with order_of_show as (
    select
        c.checkout, c.state, c.total_currency, c.refunded,
        count(*) filter (where s.show = $1 and not r.returned) as seats,
        sum(s.price_amount) filter (where s.show = $1 and not r.returned) as amount,
        count(*) filter (where s.show = $1 and r.returned) as returned_seats,
        sum(s.price_amount) filter (where s.show = $1 and r.returned) as returned,
        bool_and(s.show = $1) as alone
    from (select distinct w.checkout from checkout_seats w where w.show = $1) w
         join checkouts c on c.checkout = w.checkout
         join checkout_seats s on s.checkout = w.checkout
         cross join lateral (select s.returned or c.state = 'refunded' as returned) r
    where c.state in ('sold', 'completed', 'refunded')
    group by c.checkout
)
select
    total_currency as currency,
    coalesce(sum(seats), 0)::bigint as "seats!",
    coalesce(sum(amount), 0)::bigint as "revenue!",
    coalesce(sum(returned_seats), 0)::bigint as "returned_seats!",
    coalesce(sum(returned), 0)::bigint as "returned!",
    coalesce(sum(refunded) filter (where state <> 'refunded' and alone), 0)::bigint as "refunded_in_part!",
    coalesce(sum(refunded) filter (where state <> 'refunded' and not alone), 0)::bigint as "refunded_in_part_of_mixed!"
from order_of_show
group by total_currency
order by total_currency
