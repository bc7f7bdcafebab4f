-- What readers are told of a ticket beside its state. A side table: no decision reads it, so a change of it neither raises the
-- ticket's version nor tells an outcome, and the attributes of a ticket may be there before it is listed.
create table ticket_attributes (
    ticket      text collate "C" constraint ticket_attributes_pkey primary key,
    description text   not null default '', -- empty: none
    entrance    text   not null default '', -- where to go in; empty: none
    tags        text[] not null default '{}', -- in the order in which they came, each once
    constraint ticket_attributes_ticket_length check (octet_length(ticket) between 1 and 255),
    constraint ticket_attributes_description_length check (octet_length(description) <= 4000),
    constraint ticket_attributes_entrance_length check (octet_length(entrance) <= 255),
    constraint ticket_attributes_tags_few check (cardinality(tags) <= 100),
    constraint ticket_attributes_tags_length check (octet_length(array_to_string(tags, '')) <= 4000),
    constraint ticket_attributes_tags_not_empty check (array_position(tags, '') is null and array_position(tags, null) is null)
);
