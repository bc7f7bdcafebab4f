-- The idempotency records of a portion of the keys; where a moment is given, those that were written since, and a few more.
select source, id, topic, key, hash, reply::text as "reply!", written_at
from idempotency_records
where ($2::bigint - $1::bigint = 4294967296 or ('x' || encode(substring(sha256(convert_to(key, 'UTF8')) for 4), 'hex'))::bit(32)::bigint between $1 and $2 - 1)
  and ($3::timestamptz is null or greatest(aged_from, written_at) >= $3)
