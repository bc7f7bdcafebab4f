-- Null would mean to an earlier release that the user was never registered.
comment on column users.email is 'empty once the user was erased';
