-- What Holdfast may do in the loyalty database; its owner applies it (`holdfast migrate --print-grants loyalty` prints it). Whoever
-- prepares a transaction alone may end it, so serve, run and `holdfast admin checkout settle` use the same role there.
-- PREPARE TRANSACTION and the list of prepared transactions need no right.

revoke all on accounts from public, :"loyalty";
grant select, insert, update on accounts to :"loyalty";
