-- Idempotency keys of the example handlers, each written in the transaction that does what the key stands for.
create table example_keys (
    key        text collate "C" constraint example_keys_pkey primary key,
    hash       bytea       not null, -- SHA-256 of the request, to tell a repeat from another request under the same key
    reply      json        not null, -- given again to a repeat
    expires_at timestamptz not null, -- not ended before
    constraint example_keys_key_length check (octet_length(key) between 1 and 255)
);

-- The sweep walks by age.
create index example_keys_expires_at on example_keys (expires_at);
