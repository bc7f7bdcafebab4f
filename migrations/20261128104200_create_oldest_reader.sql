-- The oldest release that reads and writes these tables as they are. A release that knows no migration as new as `migration` does
-- not start on them, and names `release`. Raised by a migration that takes away what earlier releases need, and by no other.
create table oldest_reader (
    only_row  boolean default true constraint oldest_reader_pkey primary key,
    migration bigint not null, -- the number in the name of a migration
    release   text   not null, -- the first release that has it
    constraint oldest_reader_one_row check (only_row)
);
insert into oldest_reader (migration, release) values (20261128020000, '0.1.0');
