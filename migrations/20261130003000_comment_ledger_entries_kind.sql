-- Kinds of movements that the view has had since refunds may fail and the money of disputes moves by itself.
comment on column ledger_entries.kind is 'Why it moved: capture, credit, credit_back, refund, partial_refund, refund_failed, dispute, dispute_won, dispute_lost, dispute_regained. Others may come.';
