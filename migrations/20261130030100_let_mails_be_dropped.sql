-- 'dropped': an operator gave the mail up. What the constraint before let in, this one does.
alter table mails drop constraint mails_state;
alter table mails add constraint mails_state
    check (state in ('waiting', 'sent', 'refused', 'off', 'limited', 'no_address', 'dropped')) not valid;
