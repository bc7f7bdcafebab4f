-- The ledger for whoever keeps the books: one row for each movement, as the topic `ledger.entries` has it. Stable: columns are added at
-- its end, and none is changed or taken away. docs/ledger.md describes it.
create view ledger_entries as
select
    gets.id       as number,
    gets.movement as movement,
    gets.checkout as checkout,
    c.user_id     as user_id,
    c.payment     as payment,
    gets.kind     as kind,
    gets.account  as to_account,
    gives.account as from_account,
    gets.amount   as amount,
    gets.currency as currency,
    gets.moved_at as moved_at,
    gets.told     as told
from ledger gets
join ledger gives on gives.movement = gets.movement and gives.amount < 0
left join checkouts c on c.checkout = gets.checkout
where gets.amount > 0;

comment on view ledger_entries is 'Every movement of money or credits, one row each. Stable; read it in the order of number.';
comment on column ledger_entries.number is 'Rises; has gaps. A lower number may become visible a little later than a higher one.';
comment on column ledger_entries.movement is 'Names the movement for ever: the id of its event on the topic ledger.entries.';
comment on column ledger_entries.checkout is 'The checkout whose money or credits moved.';
comment on column ledger_entries.user_id is 'The buyer, by the id that the shop gave.';
comment on column ledger_entries.payment is 'The payment provider''s id of the payment; null where nothing was charged.';
comment on column ledger_entries.kind is 'Why it moved: capture, credit, credit_back, refund, partial_refund, dispute, dispute_won, dispute_lost. Others may come.';
comment on column ledger_entries.to_account is 'The account that got the amount: provider, credits, sales, refunds, disputes, losses. Others may come.';
comment on column ledger_entries.from_account is 'The account that the amount came from.';
comment on column ledger_entries.amount is 'Minor units of currency, more than 0.';
comment on column ledger_entries.currency is 'ISO 4217.';
comment on column ledger_entries.moved_at is 'When it was written.';
comment on column ledger_entries.told is 'Whether the topic ledger.entries tells of it: false for what releases before that topic wrote.';
