-- The database that keeps the users' credits: another system's, in production.
create database loyalty;
\connect loyalty
\i /loyalty.sql
