-- The events in quarantine, of a portion of the keys.
select id, topic, source, event, hash, partition, "offset"
from parked_events
where $2::bigint - $1::bigint = 4294967296 or ('x' || encode(substring(sha256(convert_to(key, 'UTF8')) for 4), 'hex'))::bit(32)::bigint between $1 and $2 - 1
