-- The steps of checkouts by which credits were spent or returned, by the ledger and the repayments.
with repaid as (
    select checkout, number, amount from repayments where kind = 'credits' and settled_at is not null
)
select distinct checkout as "checkout!", 'spend' as "step!" from ledger where kind = 'credit'
union all
select checkout, 'repay/' || number from repaid
union all
-- What was returned beside the repayments: by a checkout that was undone, or refunded by hand.
select l.checkout, 'return'
from ledger l
where l.kind = 'credit_back' and l.account = 'sales'
group by l.checkout
having sum(l.amount) > (select coalesce(sum(r.amount), 0) from repaid r where r.checkout = l.checkout)
