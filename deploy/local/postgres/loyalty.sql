-- The loyalty database of the local stack: somebody else's, which knows nothing of Holdfast. Run in it at each start.
create table if not exists accounts (
    user_id text   primary key,
    credits bigint not null check (credits >= 0)
);
