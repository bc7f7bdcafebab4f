-- The change log of a portion of the users, and each user's row beside the log row of the same version; a user's row that fits none
-- stands alone.
select
    user_id        as "user_id!",
    version        as "version!",
    l.outcome      as "outcome?",
    l.type         as "type?",
    l.data::text   as "data?",
    l.cause_source as "cause_source?",
    l.cause_id     as "cause_id?",
    l.changed_at   as "changed_at?",
    u.changed_at   as "row_changed_at?",
    u.email <> '' or u.name is not null or u.language is not null as "row_has_profile?",
    u.customer is not null as "row_has_customer?"
from (
    select * from user_change_log
    where $2::bigint - $1::bigint = 4294967296 or ('x' || encode(substring(sha256(convert_to(user_id, 'UTF8')) for 4), 'hex'))::bit(32)::bigint between $1 and $2 - 1
) l
full join (
    select * from users
    where $2::bigint - $1::bigint = 4294967296 or ('x' || encode(substring(sha256(convert_to(user_id, 'UTF8')) for 4), 'hex'))::bit(32)::bigint between $1 and $2 - 1
) u using (user_id, version)
order by user_id, version
