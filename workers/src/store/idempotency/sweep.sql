-- The clock of the statement, not of the moment: only what stays the same throughout bounds a walk by the index.
with due as materialized (
    select ctid, greatest(aged_from, written_at) as age
    from idempotency_records r
    where greatest(aged_from, written_at) >= coalesce($1::timestamptz, '-infinity')
      and greatest(aged_from, written_at) < least(statement_timestamp() - make_interval(secs => $2), $3::timestamptz)
      -- What is parked is known by its answer, if it has one, when it is replayed.
      and not exists (select from parked_events p where p.source = r.source and p.event = r.id)
    order by greatest(aged_from, written_at)
    limit $4
),
deleted as (
    delete from idempotency_records where ctid = any(array(select ctid from due))
    returning 1
)
select (select count(*) from deleted) as "deleted!", (select max(age) from due) as reached
