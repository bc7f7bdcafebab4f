-- no-transaction
-- Counts the tickets of a show. The tickets of one show are listed together, so what a block range holds is known by few shows; a hold or
-- a sale adds no entry, as it would to a tree.
create index concurrently if not exists tickets_show on tickets using brin (show) with (pages_per_range = 32, autosummarize = on);
