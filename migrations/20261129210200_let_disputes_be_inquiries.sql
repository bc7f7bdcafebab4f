-- A dispute may take no money: an inquiry never does. Without a value, as earlier releases write it, the status says where the money
-- is: taken while 'opened' or 'lost', given back when 'won'.
alter table disputes add column funds text;
comment on column disputes.funds is 'untouched, withdrawn or reinstated';
alter table disputes add constraint disputes_funds check (funds in ('untouched', 'withdrawn', 'reinstated')) not valid;
alter table disputes drop constraint disputes_status;
alter table disputes add constraint disputes_status check (status in ('inquiry', 'closed', 'opened', 'won', 'lost')) not valid;
