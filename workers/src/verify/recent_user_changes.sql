-- As user_changes.sql, of what was changed since a moment, each user with the last steps before.
with changed as materialized (
    select user_id, min(version) as version
    from user_change_log
    where changed_at >= $3
      and ($2::bigint - $1::bigint = 4294967296 or ('x' || encode(substring(sha256(convert_to(user_id, 'UTF8')) for 4), 'hex'))::bit(32)::bigint between $1 and $2 - 1)
    group by user_id
)
select
    l.user_id      as "user_id!",
    l.version      as "version!",
    l.outcome      as "outcome?",
    l.type         as "type?",
    l.data::text   as "data?",
    l.cause_source as "cause_source?",
    l.cause_id     as "cause_id?",
    l.changed_at   as "changed_at?",
    u.changed_at   as "row_changed_at?",
    u.email <> '' or u.name is not null or u.language is not null as "row_has_profile?",
    u.customer is not null as "row_has_customer?"
from changed c
join user_change_log l on l.user_id = c.user_id and l.version >= c.version - 4
left join users u on u.user_id = l.user_id and u.version = l.version
order by l.user_id, l.version
