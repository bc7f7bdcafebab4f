-- An earlier release leaves it as it is, also when it erases the user: erase anew with this one.
alter table users add column customer text;
comment on column users.customer is 'the payment provider''s id of the customer that the user is there';
