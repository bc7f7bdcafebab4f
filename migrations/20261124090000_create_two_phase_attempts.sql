-- What became of the attempts at a transaction that also changes another database. An attempt without a row is undecided;
-- its fate is decided by whoever inserts the row first: the attempt itself, with the rows that belong to it, or the sweeper.
create table two_phase_attempts (
    transaction text collate "C" not null, -- names what is to happen once
    attempt     uuid             not null, -- names one try at it, and its prepared transaction in the other database
    fate        text             not null,
    decided_at  timestamptz      not null default clock_timestamp(),
    constraint two_phase_attempts_pkey primary key (transaction, attempt),
    constraint two_phase_attempts_fate check (fate in ('committed', 'aborted'))
);

-- What is to happen once is committed by one attempt.
create unique index two_phase_attempts_committed on two_phase_attempts (transaction) where fate = 'committed';
