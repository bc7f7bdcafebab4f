-- Mails that are never sent, beside those that the mail server refused. 'limited': one mail about a failure more than a user may
-- get within an hour. 'no_address': the user was erased. What the constraint before let in, this one does.
alter table mails drop constraint mails_state;
alter table mails add constraint mails_state
    check (state in ('waiting', 'sent', 'refused', 'off', 'limited', 'no_address')) not valid;
