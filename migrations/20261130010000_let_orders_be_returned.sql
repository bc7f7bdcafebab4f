-- Orders are returned from the shop's side: seats of a checkout that has sold them are taken back, and each amount that is given back for
-- them is a repayment. What an earlier release writes satisfies all of it.
alter table checkout_seats add column returned boolean not null default false;
comment on column checkout_seats.returned is 'sold by the checkout, and the user''s no more; of a checkout that is refunded every seat is';
alter table checkouts add column repayments integer not null default 0;
comment on column checkouts.repayments is 'number of its rows in repayments';
alter table checkouts add column owes boolean not null default false;
comment on column checkouts.owes is 'a repayment is open';
create table repayments (
    checkout   text collate "C" not null,
    number     integer          not null, -- from 1 on
    kind       text             not null,
    amount     bigint           not null, -- minor units of the checkout's currency
    decided_at timestamptz      not null default clock_timestamp(),
    settled_at timestamptz,               -- the provider was asked for the refund, or the credits are returned
    constraint repayments_pkey primary key (checkout, number),
    constraint repayments_kind check (kind in ('money', 'credits')),
    constraint repayments_amount check (amount > 0)
);
