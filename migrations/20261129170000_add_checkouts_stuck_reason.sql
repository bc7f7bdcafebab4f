-- Why a checkout waits for an operator, where stuck_at says that it does: 'step_fails' (or null, as earlier releases write it),
-- 'amount_differs'.
alter table checkouts add column stuck_reason text;
