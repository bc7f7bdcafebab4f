-- What each role may do with the tables, and nothing beside: `holdfast migrate --grants` applies it as the tables' owner, in one
-- transaction, `--print-grants` prints it. Without `holdfast` too: psql -1 -v app=... -v verify=... -v admin=... -v books=... -f grants.sql
-- A table that is added gets a line here.

revoke all on
    _sqlx_migrations, checkout_seats, checkouts, disputes, example_keys, example_users, generations, idempotency_records, ledger,
    ledger_entries, mails, oldest_reader, operator_log, outbox, parked_events, purchases, quarantine_log, quarantined_keys, refunds, relay_state,
    repayments, settled_dead_letters, ticket_attributes,
    ticket_attributes_change_log, ticket_change_log, tickets, two_phase_attempts, user_change_log, users
from public, :"app", :"verify", :"admin", :"books";
revoke all on function check_rows(text, bigint, bigint) from public, :"app", :"verify", :"admin", :"books";

-- app: run, serve, relay. Reads and writes; makes, changes and drops no table.
grant select on _sqlx_migrations to :"app";
grant select, insert, update on checkout_seats to :"app";
grant select, insert, update on checkouts to :"app";
grant select, insert, update on disputes to :"app";
grant select, insert, update, delete on example_keys to :"app";
grant select, insert, update, delete on example_users to :"app";
grant select on generations to :"app";
grant select, insert, delete on idempotency_records to :"app";
grant insert on ledger to :"app";
grant select, insert, update on mails to :"app";
grant select on oldest_reader to :"app";
grant select, insert, update, delete on outbox to :"app";
grant select, insert, delete on parked_events to :"app";
grant select, insert, update on purchases to :"app";
grant insert on quarantine_log to :"app";
grant select, insert, update, delete on quarantined_keys to :"app";
grant select, insert, update on refunds to :"app";
grant select, update on relay_state to :"app";
grant select, insert, update on repayments to :"app";
grant select, insert, update on ticket_attributes to :"app";
grant select, insert on ticket_attributes_change_log to :"app";
grant insert on ticket_change_log to :"app";
grant select, insert, update on tickets to :"app";
grant select, insert, update on two_phase_attempts to :"app";
grant insert on user_change_log to :"app";
grant select, insert, update on users to :"app";
grant execute on function check_rows(text, bigint, bigint) to :"app";

-- verify: reads.
grant select on checkout_seats to :"verify";
grant select on checkouts to :"verify";
grant select on disputes to :"verify";
grant select on generations to :"verify";
grant select on idempotency_records to :"verify";
grant select on ledger to :"verify";
grant select on mails to :"verify";
grant select on outbox to :"verify";
grant select on parked_events to :"verify";
grant select on purchases to :"verify";
grant select on refunds to :"verify";
grant select on repayments to :"verify";
grant select on settled_dead_letters to :"verify";
grant select on ticket_change_log to :"verify";
grant select on tickets to :"verify";
grant select on two_phase_attempts to :"verify";
grant select on user_change_log to :"verify";
grant select on users to :"verify";

-- admin: the commands of operators. `checkout settle` takes the steps of a checkout, as app does.
grant select, insert, update on checkout_seats to :"admin";
grant select, insert, update on checkouts to :"admin";
grant select, insert, update on disputes to :"admin";
grant select, insert on generations to :"admin";
grant select, insert on idempotency_records to :"admin";
grant select, insert on ledger to :"admin";
grant select, insert, update on mails to :"admin";
grant select, insert on operator_log to :"admin";
grant select, insert, update, delete on outbox to :"admin";
grant select, delete on parked_events to :"admin";
grant select, insert, update on purchases to :"admin";
grant select, insert on quarantine_log to :"admin";
grant select, update, delete on quarantined_keys to :"admin";
grant select, insert, update on refunds to :"admin";
grant select, insert, update on repayments to :"admin";
grant select on relay_state to :"admin";
grant select, insert, update on settled_dead_letters to :"admin";
grant select on ticket_attributes to :"admin";
grant select on ticket_attributes_change_log to :"admin";
grant select, insert on ticket_change_log to :"admin";
grant select, insert, update on tickets to :"admin";
grant select, insert, update on two_phase_attempts to :"admin";
grant select, insert on user_change_log to :"admin";
grant select, insert, update on users to :"admin";
grant execute on function check_rows(text, bigint, bigint) to :"admin";

-- books: whoever keeps the books. Reads the ledger's view, and nothing else.
grant select on ledger_entries to :"books";
