-- The roles, made once by who may create roles, before `holdfast migrate --grants`:
-- psql -v owner=... -v app=... -v verify=... -v admin=... -v books=... -f roles.sql; then \password for each, or a client certificate.
-- The owner needs a schema to make tables in: let it own the database (alter database ... owner to ...).

create role :"owner" login;
create role :"app" login;
create role :"verify" login;
create role :"admin" login;
create role :"books" login;

-- What every session of serve, run, relay and admin must have. Holdfast sends it when it connects; a pooler that drops what is sent
-- (PgBouncer with `ignore_startup_parameters = options`) is good enough with these, since the session's settings are what is
-- checked. Durations are in milliseconds, as --statement-timeout, --lock-timeout and --idle-in-transaction-timeout are.
alter role :"app" set statement_timeout = 30000;
alter role :"app" set lock_timeout = 5000;
alter role :"app" set idle_in_transaction_session_timeout = 30000;
alter role :"app" set synchronous_commit = on;
alter role :"app" set client_min_messages = error;
alter role :"app" set plan_cache_mode = force_generic_plan;
alter role :"app" set enable_seqscan = off;
alter role :"admin" set statement_timeout = 30000;
alter role :"admin" set lock_timeout = 5000;
alter role :"admin" set idle_in_transaction_session_timeout = 30000;
alter role :"admin" set synchronous_commit = on;
alter role :"admin" set client_min_messages = error;
alter role :"admin" set plan_cache_mode = force_generic_plan;
alter role :"admin" set enable_seqscan = off;
