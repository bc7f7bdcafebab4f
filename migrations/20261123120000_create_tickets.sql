-- One row per ticket that was ever listed. Rows are never deleted; every change raises `version` by the number of outcomes
-- it caused, refusals included, so that `version` is also the sequence of the ticket's newest outcome.
create table tickets (
    ticket         text collate "C" constraint tickets_pkey primary key,
    version        bigint      not null,
    show           text        not null,
    seat           text,
    price_amount   bigint      not null, -- minor units of price_currency
    price_currency text        not null, -- ISO 4217
    status         text        not null,
    hold           uuid,                 -- the live or due hold, or the hold that was sold
    holder         text,                 -- user id: owner of the hold, or buyer
    held_until     timestamptz,          -- only while held
    checkout       text,                 -- only once sold
    changed_at     timestamptz not null, -- database clock of the last change; never goes back
    constraint tickets_version_positive check (version > 0),
    constraint tickets_price_not_negative check (price_amount >= 0),
    constraint tickets_status_fits check (
        case status
            when 'available' then num_nonnulls(hold, holder, held_until, checkout) = 0
            when 'held' then num_nonnulls(hold, holder, held_until) = 3 and checkout is null
            when 'sold' then num_nonnulls(hold, holder, checkout) = 3 and held_until is null
            when 'withdrawn' then num_nonnulls(hold, holder, held_until, checkout) = 0
            else false
        end
    )
) with (fillfactor = 80);

-- The Reaper reads the holds that are due, oldest first.
create index tickets_due on tickets (held_until, ticket) where status = 'held';
