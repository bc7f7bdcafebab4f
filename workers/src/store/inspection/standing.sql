-- What waits for an operator, or longer than it should. $1: how long a transaction may be open.
select 'refused' as kind, count(*) as count, min(written_at) as since, null as which
from outbox
where refused is not null
union all
select 'untold', count(*), min(written_at), null
from outbox row
where written_at < clock_timestamp() - interval '1 minute'
  and not exists (
      select from outbox held
      where held.refused is not null and held.topic = row.topic and held.key = row.key and held.id <= row.id
  )
union all
select 'quarantined', count(*), min(since), null
from quarantined_keys
union all
select 'stuck', count(*), min(stuck_at), null
from checkouts
where stuck_at is not null
union all
select 'due', count(*), min(held_until), null
from tickets
where status = 'held' and held_until < clock_timestamp() - interval '1 minute'
  and not exists (select from quarantined_keys q where q.topic = 'reservations' and q.key = ticket)
union all
select 'mails', count(*), min(written_at), null
from mails
where state = 'waiting' and written_at < clock_timestamp() - interval '10 minutes'
union all
-- Of others' sessions the server tells the times only to members of pg_read_all_stats.
select 'open', count(*), min(since), string_agg(who, ', ' order by since)
from (
    select xact_start as since, usename || ' (pid ' || pid || ')' as who
    from pg_stat_activity
    where datname = current_database() and pid <> pg_backend_pid() and xact_start < clock_timestamp() - $1
    union all
    select prepared, owner || ' (prepared as ' || quote_literal(gid) || ')'
    from pg_prepared_xacts
    where database = current_database() and prepared < clock_timestamp() - $1
) transactions
union all
select 'slots', count(*), null::timestamptz, string_agg(slot_name::text, ', ' order by slot_name)
from pg_replication_slots
where not active
