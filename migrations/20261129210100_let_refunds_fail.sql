-- A refund that was told may fail later. What an earlier release writes satisfies both.
alter table checkouts add column refunds_undone bigint not null default 0;
comment on column checkouts.refunds_undone is 'refunds that were booked and have failed since, in minor units: all; of a failed checkout those that no other has replaced';
alter table ledger drop constraint ledger_kind;
alter table ledger add constraint ledger_kind check (
    kind in (
        'capture', 'credit', 'credit_back', 'refund', 'partial_refund', 'refund_failed', 'dispute', 'dispute_won', 'dispute_lost',
        'dispute_regained'
    )
) not valid;
