-- What only a superuser may make: run in a worker's database, whose baseline is moved afterwards.
CREATE FUNCTION ddl_seen() RETURNS event_trigger LANGUAGE plpgsql AS
    'BEGIN INSERT INTO public.audit (what) VALUES (tg_tag); EXCEPTION WHEN OTHERS THEN NULL; END';
CREATE EVENT TRIGGER seen ON ddl_command_end EXECUTE FUNCTION ddl_seen();
