-- The credits that change logs tell of, each beside the number of attempts at giving them that were committed.
select
    transaction             as "transaction!",
    told.user_id            as "user_id?",
    coalesce(a.attempts, 0) as "commits!"
from (
    select user_id, 'credits/' || outcome::text as transaction
    from user_change_log
    where type like 'holdfast.outcome.credits.changed.v%'
) told
full join (
    select transaction, count(*) as attempts
    from two_phase_attempts
    where fate = 'committed' and transaction like 'credits/%'
    group by transaction
) a using (transaction)
