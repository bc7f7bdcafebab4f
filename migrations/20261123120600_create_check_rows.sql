-- Fails the statement that calls it when a write touched another number of rows than it meant to.
create function check_rows(what text, expected bigint, touched bigint) returns boolean
language plpgsql as $$
begin
    if expected <> touched then
        raise exception 'check_rows: % rows of % were to be written, but % were', expected, what, touched
            using errcode = 'HF001';
    end if;
    return true;
end
$$;
