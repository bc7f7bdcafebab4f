-- no-transaction
-- Finds the orders with seats of a show.
create index concurrently if not exists checkout_seats_show on checkout_seats (show, checkout);
