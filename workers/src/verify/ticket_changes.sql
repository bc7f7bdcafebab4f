-- The change log of a portion of the tickets, and each ticket's row beside the log row of the same version; a ticket's row that fits
-- none stands alone.
select
    ticket         as "ticket!",
    version        as "version!",
    l.outcome      as "outcome?",
    l.type         as "type?",
    l.data::text   as "data?",
    l.cause_source as "cause_source?",
    l.cause_id     as "cause_id?",
    l.changed_at   as "changed_at?",
    t.show         as "show?",
    t.seat         as "seat?",
    t.price_amount as "price_amount?",
    t.price_currency as "price_currency?",
    t.status       as "status?",
    t.hold         as "hold?",
    t.holder       as "holder?",
    t.held_until   as "held_until?",
    t.checkout     as "checkout?",
    case when t.priced = t.hold then t.hold_price end as "hold_price?",
    coalesce(t.off_sale = t.hold, false) as "off_sale!",
    t.changed_at   as "row_changed_at?"
from (
    select * from ticket_change_log
    where $2::bigint - $1::bigint = 4294967296 or ('x' || encode(substring(sha256(convert_to(ticket, 'UTF8')) for 4), 'hex'))::bit(32)::bigint between $1 and $2 - 1
) l
full join (
    select * from tickets
    where $2::bigint - $1::bigint = 4294967296 or ('x' || encode(substring(sha256(convert_to(ticket, 'UTF8')) for 4), 'hex'))::bit(32)::bigint between $1 and $2 - 1
) t using (ticket, version)
order by ticket, version
