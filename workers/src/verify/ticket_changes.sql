-- The tickets' change log, and each ticket's row beside the log row of the same version; a ticket's row that fits none stands alone.
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
    t.changed_at   as "row_changed_at?"
from ticket_change_log l
full join tickets t using (ticket, version)
order by ticket, version
