-- Refunds, by the payment provider's id.
create table refunds (
    refund     text collate "C" constraint refunds_pkey primary key,
    checkout   text collate "C" not null,
    amount     bigint           not null, -- minor units of the checkout's currency
    status     text             not null, -- 'asked': by us, and the provider has yet to answer
    written_at timestamptz      not null default clock_timestamp(),
    changed_at timestamptz      not null default clock_timestamp(),
    constraint refunds_status check (status in ('asked', 'pending', 'succeeded', 'failed')),
    constraint refunds_amount_not_negative check (amount >= 0)
);
create index refunds_checkout on refunds (checkout);
