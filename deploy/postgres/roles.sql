-- Accounts of the services on PostgreSQL: who makes the schema, who serves, who reads
-- from a replica, who removes what audit-service has archived. Run it in the database of each service as a superuser, as often as
-- you like:
--
--     psql --dbname audit --file roles.sql
--
-- The accounts come without passwords: set them (\password activity_writer), or let
-- pg_hba.conf tell who may be whom. What each may do with which table is granted by the
-- service itself when it migrates; this file only opens the door.

DO $$
DECLARE
    account text;
BEGIN
    FOREACH account IN ARRAY ARRAY['activity_migrator', 'activity_writer', 'activity_reader', 'activity_retention'] LOOP
        IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = account) THEN
            EXECUTE format('CREATE ROLE %I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE', account);
        END IF;
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), account);
    END LOOP;
    EXECUTE format('REVOKE ALL ON DATABASE %I FROM PUBLIC', current_database());
END $$;

-- Tables are made by the migrator alone, and belong to it.
REVOKE ALL ON SCHEMA public FROM PUBLIC;
GRANT USAGE, CREATE ON SCHEMA public TO activity_migrator;
GRANT USAGE ON SCHEMA public TO activity_writer, activity_reader, activity_retention;
REVOKE CREATE ON SCHEMA public FROM activity_writer, activity_reader, activity_retention;
