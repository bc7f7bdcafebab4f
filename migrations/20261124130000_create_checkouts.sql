-- One row per checkout that was ever opened; its id is used once, for ever. Whoever takes it a step further does so against
-- `version`, so that two who try do it once.
create table checkouts (
    checkout       text collate "C" constraint checkouts_pkey primary key,
    version        bigint           not null default 1,
    user_id        text collate "C" not null,
    hash           bytea            not null, -- SHA-256 of what was asked: tells the same request from another one
    state          text             not null,
    total_amount   bigint           not null, -- the held prices together, in minor units of total_currency
    total_currency text             not null, -- ISO 4217
    credits        bigint,                    -- the part of the total that credits pay, in minor units
    payment_method text,                      -- a token of the payment provider
    payment        text,                      -- the payment provider's id of the payment
    until          timestamptz      not null, -- when the first of the holds ends
    called_at      timestamptz,               -- just before the first call to the payment provider
    unknown_since  timestamptz,               -- since when its next step has not come through
    stuck_at       timestamptz,               -- since when an operator is asked for
    sold_at        timestamptz,               -- seats sold and credits spent, unless they were given back
    failure        text,                      -- why it is undone
    failure_code   text,                      -- what the payment provider says to that
    refunded       bigint           not null default 0, -- given back of what was captured, in minor units
    opened_at      timestamptz      not null default clock_timestamp(),
    moved_at       timestamptz      not null default clock_timestamp(),
    ended_at       timestamptz,
    constraint checkouts_state check (
        state in ('opened', 'created', 'waiting', 'authorised', 'sold', 'undoing', 'completed', 'refunded', 'failed')
    ),
    constraint checkouts_failure check ((failure is not null) = (state in ('undoing', 'failed'))),
    constraint checkouts_ended check ((ended_at is not null) = (state in ('completed', 'refunded', 'failed'))),
    constraint checkouts_refunded check (refunded between 0 and total_amount),
    constraint checkouts_credits check (credits between 1 and total_amount)
);

-- Who looks after checkouts that nobody takes further, and who lists those that are stuck.
create index checkouts_unfinished on checkouts (moved_at)
    where ended_at is null or (state = 'refunded' and sold_at is not null and credits is not null);
create index checkouts_stuck on checkouts (stuck_at) where stuck_at is not null;

-- The tickets of a checkout, at the prices of their holds.
create table checkout_seats (
    checkout     text collate "C" not null,
    place        integer          not null,
    ticket       text collate "C" not null,
    hold         uuid             not null,
    show         text             not null,
    seat         text,
    price_amount bigint           not null, -- minor units of the checkout's currency
    open         boolean          not null default true, -- until the checkout has ended
    constraint checkout_seats_pkey primary key (checkout, place)
);

-- No hold is bought by two checkouts at once.
create unique index checkout_seats_open on checkout_seats (hold) where open;

-- How many tickets of a show a user has bought. Locked by the transaction that sells, so that a limit is exact.
create table purchases (
    user_id text collate "C" not null,
    show    text             not null,
    tickets integer          not null,
    constraint purchases_pkey primary key (user_id, show),
    constraint purchases_tickets_not_negative check (tickets >= 0)
);

-- Every movement of money or credits: the amounts of one movement add up to zero. Never changed, never deleted.
create table ledger (
    id       bigint generated always as identity constraint ledger_pkey primary key,
    movement uuid             not null, -- the lines of one movement share it
    checkout text collate "C" not null,
    kind     text             not null,
    account  text             not null,
    amount   bigint           not null, -- minor units of currency; what an account gets is positive
    currency text             not null, -- ISO 4217
    moved_at timestamptz      not null default clock_timestamp(),
    constraint ledger_kind check (
        kind in ('capture', 'credit', 'credit_back', 'refund', 'partial_refund', 'dispute', 'dispute_won', 'dispute_lost')
    ),
    constraint ledger_account check (account in ('provider', 'credits', 'sales', 'refunds', 'disputes', 'losses')),
    constraint ledger_amount_not_zero check (amount <> 0),
    constraint ledger_one_line_per_account unique (movement, account)
);
create index ledger_checkout on ledger (checkout);

-- Disputes, by the payment provider's id.
create table disputes (
    dispute  text collate "C" constraint disputes_pkey primary key,
    checkout text collate "C" not null,
    amount   bigint           not null, -- minor units of the checkout's currency
    status   text             not null,
    constraint disputes_status check (status in ('opened', 'won', 'lost'))
);
create index disputes_checkout on disputes (checkout);
