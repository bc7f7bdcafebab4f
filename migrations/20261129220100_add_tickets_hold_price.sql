-- A hold may have a price of its own. An earlier release leaves these columns alone, and sells at the ticket's price: a hold of its own is
-- another one than that in priced.
alter table tickets add column priced uuid, add column hold_price bigint;
comment on column tickets.priced is 'the hold whose price is hold_price; by another hold the ticket costs its own price';
comment on column tickets.hold_price is 'minor units of price_currency';
