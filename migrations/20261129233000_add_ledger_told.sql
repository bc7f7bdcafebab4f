-- Whether the topic `ledger.entries` tells of the movement. Releases before this column wrote movements that no entry tells of.
alter table ledger add column told boolean not null default false;
