-- What does not agree about money: each row names a checkout, a ticket or a user, and says what is wrong.
with sums as (
    select
        checkout,
        coalesce(sum(amount) filter (where account = 'sales'), 0)   as sales,
        coalesce(sum(amount) filter (where account = 'credits'), 0) as credits,
        coalesce(sum(amount) filter (where account = 'refunds'), 0) as refunds,
        -- Where money lies that was captured, or should lie.
        coalesce(sum(amount) filter (where account in ('provider', 'disputes', 'losses')), 0) as captured
    from ledger
    group by checkout
),
-- What returns have given back of the credits, and whether something is still to be given back.
repaid as (
    select
        checkout,
        coalesce(sum(amount) filter (where kind = 'credits' and settled_at is not null), 0) as credits,
        count(*) filter (where settled_at is null) > 0                                     as open
    from repayments
    group by checkout
),
books as (
    select
        c.*,
        c.sold_at is not null         as sold,
        coalesce(c.credits, 0)        as spent,
        coalesce(s.sales, 0)          as sales_sum,
        coalesce(s.credits, 0)        as credits_sum,
        coalesce(s.refunds, 0)        as refunds_sum,
        coalesce(s.captured, 0)       as captured_sum,
        coalesce(r.credits, 0)        as credits_repaid,
        coalesce(r.open, false)       as repaying
    from checkouts c
    left join sums s using (checkout)
    left join repaid r using (checkout)
),
-- The disputes whose money is with the bank. Earlier releases wrote only the status: until it was won, the money was taken.
contested as (
    select
        checkout,
        coalesce(sum(amount) filter (where status <> 'lost'), 0) as open,
        coalesce(sum(amount) filter (where status = 'lost'), 0)  as lost
    from disputes
    where funds = 'withdrawn' or (funds is null and status in ('opened', 'lost'))
    group by checkout
),
contested_sums as (
    select
        checkout,
        coalesce(sum(amount) filter (where account = 'disputes'), 0) as open,
        coalesce(sum(amount) filter (where account = 'losses'), 0)   as lost,
        -- What left the provider by disputes, and did not come back.
        coalesce(sum(amount) filter (where account = 'provider'), 0) as gone
    from ledger
    where kind in ('dispute', 'dispute_won', 'dispute_lost', 'dispute_regained')
    group by checkout
),
seats as (
    select s.checkout, s.ticket, s.show, s.seat, c.user_id, c.state, c.sold_at is not null and c.state <> 'refunded' and not s.returned as bought
    from checkout_seats s
    join checkouts c using (checkout)
),
told as (
    select data ->> 'checkout' as checkout, count(*) as times
    from user_change_log
    where type like 'holdfast.outcome.checkout.completed.v%' or type like 'holdfast.outcome.checkout.failed.v%'
    group by 1
)
select movement::text as "key!", 'the lines of this movement do not add up to zero in one currency' as "what!"
from ledger
group by movement
having sum(amount) <> 0 or min(currency) <> max(currency)
union all
select checkout, 'it has entries in the ledger, but was never opened'
from sums
where not exists (select 1 from checkouts c where c.checkout = sums.checkout)
union all
select c.checkout, 'its total is not what the holds of its seats cost'
from checkouts c
where c.total_amount <> (select coalesce(sum(s.price_amount), 0) from checkout_seats s where s.checkout = c.checkout)
union all
select checkout, 'what the ledger has of its disputes is not how they stand'
from contested
full join contested_sums using (checkout)
where coalesce(contested.open, 0) <> coalesce(contested_sums.open, 0)
   or coalesce(contested.lost, 0) <> coalesce(contested_sums.lost, 0)
   or coalesce(contested_sums.gone, 0) <> -(coalesce(contested.open, 0) + coalesce(contested.lost, 0))
union all
select checkout, 'completed, but what was captured and spent is not what the holds cost'
from books
where state = 'completed'
  and (sales_sum <> credits_repaid - total_amount or credits_sum <> spent - credits_repaid or refunds_sum <> refunded
       or captured_sum + refunded <> total_amount - spent)
union all
select checkout, 'whether something is to be given back of its returns is not what its repayments say'
from books
where owes <> repaying
union all
select checkout, 'refunded wholly, but something of it was kept'
from books
where state = 'refunded'
  and (captured_sum <> total_amount - spent - refunded or captured_sum > refunds_undone
       or credits_sum <> case when sold then spent else 0 end)
union all
select checkout, 'it came to nothing or has not ended, but money was kept'
from books
where state not in ('completed', 'refunded')
  and (captured_sum <> -refunds_sum or captured_sum not between 0 and refunds_undone
       or credits_sum <> case when sold then spent else 0 end or sales_sum <> -credits_sum)
union all
select checkout, 'a refund has failed, so money is kept for seats that are not given, but no operator was asked for'
from books
where state in ('refunded', 'failed') and captured_sum > 0 and stuck_at is null
  and not exists (
      select from user_change_log l
      where l.user_id = books.user_id and l.type like 'holdfast.outcome.checkout.stuck.v%' and l.data ->> 'checkout' = books.checkout
  )
union all
select books.checkout, 'a refund has succeeded that is not booked'
from books
join (select checkout, sum(amount) as succeeded from refunds where status = 'succeeded' group by checkout) r using (checkout)
where state in ('completed', 'refunded') and least(succeeded, total_amount - spent) > refunded
union all
select books.checkout, 'it has ended, but not exactly one outcome says how'
from books
left join told using (checkout)
where ended_at is not null and coalesce(times, 0) <> 1
union all
select t.ticket, 'sold, but not by exactly one checkout that has sold it'
from tickets t
left join (
    select ticket, checkout, user_id, count(*) as times
    from seats
    where bought
    group by ticket, checkout, user_id
) s on s.ticket = t.ticket and s.checkout = t.checkout and s.user_id = t.holder
where t.status = 'sold' and coalesce(s.times, 0) <> 1
union all
select s.ticket, 'a checkout has sold it, but it is not that checkout''s, or not that seat any more'
from seats s
where s.bought
  and not exists (
      select 1 from tickets t
      where t.ticket = s.ticket and t.status = 'sold' and t.checkout = s.checkout
        and t.show = s.show and t.seat is not distinct from s.seat
  )
union all
select coalesce(b.user_id, p.user_id), 'the count of tickets bought of a show is not what checkouts have sold'
from (select user_id, show, count(*) as tickets from seats where bought group by user_id, show) b
full join purchases p on p.user_id = b.user_id and p.show = b.show
where coalesce(b.tickets, 0) <> coalesce(p.tickets, 0)
union all
select checkout, 'it has neither ended nor gone on for a day, and no operator is asked for'
from checkouts
where (ended_at is null or owes or (state = 'refunded' and sold_at is not null and credits is not null)) and stuck_at is null
  and greatest(moved_at, until) < clock_timestamp() - interval '1 day'
