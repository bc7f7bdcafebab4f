-- The movements of the ledger that are to be told, of a portion of the checkouts.
select gets.movement, gets.checkout, gets.kind, gets.account as "to", gives.account as "from", gets.amount, gets.currency, gets.moved_at
from ledger gets
join ledger gives on gives.movement = gets.movement and gives.amount < 0
where gets.amount > 0 and gets.told
  and ($2::bigint - $1::bigint = 4294967296 or ('x' || encode(substring(sha256(convert_to(gets.checkout, 'UTF8')) for 4), 'hex'))::bit(32)::bigint between $1 and $2 - 1)
