-- A ticket can be withdrawn while it is sold: once it is returned, it is not for sale again. An earlier release leaves the column alone,
-- and puts a ticket that it returns on sale: the next sale is by another hold than that in the column, and counts as not withdrawn.
alter table tickets add column off_sale uuid;
comment on column tickets.off_sale is 'the hold by which the ticket was sold that is not for sale again once it is returned; another hold than the one in hold does not count';
