-- The trace that a checkout belongs to, for its calls to the payment provider, its outcomes and its mails; written once, as it opens. Earlier
-- releases write none.
alter table checkouts add column traceparent text;
comment on column checkouts.traceparent is 'W3C Trace Context: the span that opened the checkout, or the event''s own where it is not recorded';
