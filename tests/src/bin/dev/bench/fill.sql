insert into idempotency_records (source, id, topic, key, hash, reply, aged_from, written_at)
select 'aged', md5(n::text), 'reservations', 'aged-' || n % 1000000, '\x01'::bytea || sha256(n::text::bytea),
    json_build_object('outcomes', json_build_array(json_build_object(
        'id', md5('outcome' || n)::uuid, 'type', 'holdfast.outcome.ticket.held.v1', 'sequence', n / 1000000 + 1,
        'data', json_build_object('user', 'user-' || n, 'hold', md5('hold' || n)::uuid, 'until', '2026-01-01T00:00:00Z')
    ))),
    at, at
from generate_series($first, $last) n,
     lateral (select now() - interval '$retention' * (1 - n::float8 / $records) as at) age;

insert into ticket_change_log (ticket, version, outcome, type, data, cause_source, cause_id, changed_at)
select 'aged-' || n % 1000000, n / 1000000 + 1, md5('outcome' || n)::uuid, 'holdfast.outcome.ticket.held.v1',
    json_build_object('user', 'user-' || n, 'hold', md5('hold' || n)::uuid, 'until', '2026-01-01T00:00:00Z'),
    'aged', md5(n::text), now()
from generate_series($first, $last) n;

insert into outbox (topic, key, message, headers, value, written_at)
select 'reservations.outcomes', 'aged', md5('outcome' || n)::uuid, '{"ce_type":"holdfast.outcome.ticket.held.v1"}',
    convert_to(repeat('x', 400), 'UTF8'), now()
from generate_series($first, $last) n;
delete from outbox where key = 'aged'
