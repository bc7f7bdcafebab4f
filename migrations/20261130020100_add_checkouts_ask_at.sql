-- An earlier release tries the step at once, and gets stuck as long as the bank is working on the payment.
alter table checkouts add column ask_at timestamptz;
comment on column checkouts.ask_at is 'when its next step is tried again, which the bank''s work on the payment holds up';
