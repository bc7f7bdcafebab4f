-- Outcomes and mails that do not belong together: each row names a checkout, and says what is wrong. An outcome that a customer
-- is to be written about has exactly one mail, whether or not a mail server was set when it was written.
with told as (
    select
        data ->> 'checkout' as checkout,
        user_id,
        case split_part(type, '.', 4)
            when 'completed' then 'completed'
            when 'failed' then 'failed'
            when 'refunded' then 'refunded/' || sum((data -> 'amount' ->> 'amount')::bigint) filter (where type like '%.refunded.%')
                over (partition by data ->> 'checkout' order by version)
        end as place
    from user_change_log
    where type like 'holdfast.outcome.checkout.completed.v%'
       or type like 'holdfast.outcome.checkout.failed.v%'
       or type like 'holdfast.outcome.payment.refunded.v%'
)
select
    coalesce(t.checkout, m.checkout) as "key!",
    case
        when m.checkout is null then 'no mail tells the customer: ' || t.place
        when t.checkout is null then 'a mail is about what was never told: ' || m.place
        when t.user_id <> m.user_id then 'a mail is for somebody else: ' || m.place
        else 'a mail was sent, but nobody knows when: ' || m.place
    end as "what!"
from told t
full join mails m on m.checkout = t.checkout and m.place = t.place
where m.checkout is null or t.checkout is null or t.user_id <> m.user_id or (m.state = 'sent' and m.sent_at is null)
