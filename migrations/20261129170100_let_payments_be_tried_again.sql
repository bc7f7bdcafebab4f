-- A declined payment may be tried again with another payment method. What the constraint before let in, this one does; without a value
-- of its own an attempt is the first.
alter table checkouts add column attempt integer not null default 0;
comment on column checkouts.attempt is 'how many payment methods were tried before the one in payment_method';
alter table checkouts drop constraint checkouts_state;
alter table checkouts add constraint checkouts_state check (
    state in (
        'opened', 'created', 'waiting', 'processing', 'declined', 'authorised', 'sold', 'undoing', 'completed', 'refunded', 'failed'
    )
) not valid;
