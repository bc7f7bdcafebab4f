-- For the example handlers alone: some of them are unsafe on purpose, so they never touch what the product lives on.
create table example_users (
    user_id     text collate "C" constraint example_users_pkey primary key,
    name        text   not null,
    address     text   not null,
    credits     bigint not null,
    tags        text[] not null default '{}',
    version     bigint not null, -- 0 as inserted; each update raises it by one
    inserted_by text,            -- the attempt that inserted the row, if it named itself; never changes
    written_by  text,            -- the attempt that wrote this version, if it named itself
    constraint example_users_user_id_length check (octet_length(user_id) between 1 and 255),
    constraint example_users_name_length check (octet_length(name) between 1 and 1000),
    constraint example_users_address_length check (octet_length(address) between 1 and 1000),
    constraint example_users_credits_not_negative check (credits >= 0),
    constraint example_users_tags_few check (cardinality(tags) <= 1000),
    constraint example_users_version_not_negative check (version >= 0)
);
