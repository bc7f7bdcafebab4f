-- One row per outcome that a customer is to be told of by mail, written in the transaction of the outcome. No address stands
-- here: it is read from `users` when the mail is sent.
create table mails (
    checkout   text collate "C" not null,
    place      text collate "C" not null, -- which outcome of the checkout: 'completed', 'failed', 'refunded/<refunded so far>'
    user_id    text collate "C" not null,
    kind       text             not null, -- what it tells
    amount     bigint,                    -- what was given back, in minor units of the checkout's currency
    state      text             not null, -- 'off': no mail server was set when the outcome was written
    attempts   integer          not null default 0, -- how often it was taken to be sent; whoever took it knows it by this number
    next_at    timestamptz      not null default clock_timestamp(), -- not before then, which is also how long it is taken
    code       smallint,                  -- the mail server's last answer, if it gave one
    written_at timestamptz      not null default clock_timestamp(),
    sent_at    timestamptz,               -- when the mail server had taken it
    constraint mails_pkey primary key (checkout, place),
    constraint mails_kind check (kind in ('completed', 'failed', 'refunded_in_part', 'refunded')),
    constraint mails_amount check ((amount is not null) = (kind in ('refunded_in_part', 'refunded'))),
    constraint mails_state check (state in ('waiting', 'sent', 'refused', 'off')),
    constraint mails_sent check ((sent_at is not null) = (state = 'sent'))
);

-- Who sends looks here, and who counts what waits.
create index mails_waiting on mails (next_at) where state = 'waiting';
