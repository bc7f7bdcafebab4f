-- What was written of a ticket's attributes, version by version. The items of one version are written in the statement that
-- raises it; never changed, never deleted. What a release before this one writes meanwhile raises no version and is not logged.
create table ticket_attributes_change_log (
    ticket     text collate "C" not null,
    version    bigint           not null,
    data       jsonb            not null, -- the columns that were written, as this version has them
    changed_at timestamptz      not null, -- database clock, read once the row was locked
    constraint ticket_attributes_change_log_pkey primary key (ticket, version)
);

-- 1 as inserted; each change that changes something raises it by one.
alter table ticket_attributes add column version bigint not null default 1;

insert into ticket_attributes_change_log (ticket, version, data, changed_at)
select ticket, version, jsonb_build_object('description', description, 'entrance', entrance, 'tags', tags), clock_timestamp()
from ticket_attributes;
