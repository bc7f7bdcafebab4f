-- A checkout puts off the end of a hold, once. An earlier release leaves the column alone: a hold of its own is another one than that in
-- the column, and counts as not lengthened.
alter table tickets add column lengthened uuid;
comment on column tickets.lengthened is 'the hold whose end a checkout has put off; another hold than the one in hold was left as it was asked for';
