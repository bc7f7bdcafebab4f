//! Postgres behind locked doors: TLS and a password or certificate for everybody, and roles that may do what they must and nothing
//! else.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use futures::try_join;
use holdfast::metrics::Metrics;
use holdfast::store;
use holdfast::store::mechanisms::two_phase::{self, Outcome, TransactionId};
use holdfast::store::mechanisms::{Error, raw};
use holdfast::store::ticket_attributes::Access;
use holdfast_schemas::TicketId;
use holdfast_tests::kit::certs::{Authority, Certificate};
use holdfast_tests::kit::postgres::{ADMIN, APP, BOOKS, TABLES_OWNER, VERIFY, password};
use holdfast_tests::kit::worker::Launch;
use holdfast_tests::kit::{Kit, PgBouncer, Postgres, Server, checkout, until};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};
use tokio::sync::{MappedMutexGuard, Mutex, MutexGuard};
use uuid::Uuid;

use crate::pool::settings;
use crate::workers::done;
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![
    each_role_works_over_tls_with_no_rights_but_its_own,
    whoever_cannot_be_let_in_ends_at_the_start_and_says_why,
    the_roles_have_the_rights_that_the_file_lists_and_every_table_is_in_it,
    each_right_is_needed_by_a_statement_that_names_what_it_lacks,
    who_may_not_migrate_says_who_must_and_works_on_tables_that_are_up_to_date,
    a_password_is_rotated_without_a_restart_by_its_file,
    a_pooler_that_shares_sessions_or_drops_settings_is_refused_by_name,
];

const DATABASE: &str = "holdfast";
const LOYALTY: &str = "loyalty";
const WITHIN: Duration = Duration::from_secs(20);

/// One server for all proofs here, which take turns.
static LOCKED: Mutex<Option<Server<Postgres>>> = Mutex::const_new(None);

type Locked = MappedMutexGuard<'static, Server<Postgres>>;

/// The server, with the tables made by their owner, and every role's rights.
async fn locked(kit: &Kit) -> anyhow::Result<Locked> {
    let mut there = LOCKED.lock().await;
    if there.is_none() {
        let server = Postgres::start_locked(&kit.stack).await?;
        done(holdfast(kit, &server, TABLES_OWNER, "migrate").arg("--grants")).await?;
        let print = holdfast(kit, &server, TABLES_OWNER, "migrate");
        let print = print.arg("--print-grants").arg("loyalty").output().await?;
        let loyalty = PgPool::connect(&server.loyalty_url()).await?;
        run(&loyalty, &String::from_utf8(print.stdout)?).await?;
        loyalty.close().await;
        *there = Some(server);
    }
    MutexGuard::try_map(there, Option::as_mut).map_err(|_none| anyhow!("no server"))
}

/// The product as one of the roles.
fn holdfast<'a>(kit: &'a Kit, server: &Postgres, role: &str, subcommand: &str) -> Launch<'a> {
    at(kit, &server.url_as(role, DATABASE), subcommand).env("HOLDFAST_LOYALTY_URL", &server.url_as(APP, LOYALTY))
}

fn at<'a>(kit: &'a Kit, url: &str, subcommand: &str) -> Launch<'a> {
    let launch = kit.stack.holdfast(subcommand, "locked-postgres");
    launch.env("HOLDFAST_DATABASE_URL", url).without("HOLDFAST_LOYALTY_URL")
}

async fn run(pool: &PgPool, statements: &str) -> anyhow::Result<()> {
    let statements = AssertSqlSafe(statements.to_owned());
    sqlx::raw_sql(statements).execute(pool).await?;
    Ok(())
}

fn each_role_works_over_tls_with_no_rights_but_its_own(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let server = locked(kit).await?;
        let statements = statements()?;
        for (role, files) in [(APP, APP_FILES), (VERIFY, VERIFY_FILES), (ADMIN, ADMIN_FILES)] {
            let mut session = PgConnection::connect(&server.url_as(role, DATABASE)).await?;
            let encrypted: bool = sqlx::query_scalar("select ssl from pg_stat_ssl where pid = pg_backend_pid()")
                .fetch_one(&mut session)
                .await?;
            ensure!(encrypted, "{role} speaks in the clear");
            let sources = sources(files)?;
            let theirs = statements.iter().filter(|statement| {
                let not_theirs = NOT_THEIRS
                    .iter()
                    .any(|(who, text)| *who == role && statement.contains(text));
                sources.iter().any(|text| text.contains(*statement)) && !not_theirs
            });
            let mut count = 0;
            for statement in theirs {
                if let Some(refused) = refusal(&mut session, statement).await? {
                    bail!("{role} may not: {refused}: {statement}");
                }
                count += 1;
            }
            ensure!(count > 10, "only {count} statements of {role} were found");
            session.close().await?;
        }
        let commands = [
            &["checkout", "list"][..],
            &["outbox", "list"],
            &["mail", "list"],
            &["log"],
            &["orders", "--user", "ann"],
            &["orders", "--show", "gala"],
            &["sales", "--show", "gala"],
        ];
        for command in commands {
            let launch = holdfast(kit, &server, ADMIN, "admin");
            done(command.iter().fold(launch, |launch, word| launch.arg(word))).await?;
        }
        let mut books = PgConnection::connect(&server.url_as(BOOKS, DATABASE)).await?;
        let read = sqlx::query("select * from ledger_entries").fetch_all(&mut books).await;
        ensure!(read.is_ok(), "{BOOKS} may not read the ledger's view: {read:?}");
        for table in ["ledger", "checkouts", "users"] {
            let read = sqlx::query(AssertSqlSafe(format!("select from {table}")))
                .fetch_all(&mut books)
                .await;
            ensure!(read.is_err(), "{BOOKS} may read {table}");
        }
        what_the_tools_send_works(&server).await
    })
}

/// The statements that are put together at run time: attributes, and credits in the loyalty database.
async fn what_the_tools_send_works(server: &Postgres) -> anyhow::Result<()> {
    let metrics = Metrics::new()?;
    let main = store::connect(&settings(&server.url_as(APP, DATABASE)), &metrics).await?;
    let other = store::connect(&settings(&server.url_as(APP, LOYALTY)), &metrics).await?;
    let (attributes, batching) = Access::new(main.clone());
    let ticket = TicketId::parse("locked-1").context("a ticket's id")?;
    let tagged = async {
        attributes.tag(&ticket, "stalls").await?;
        let found = attributes.get(&ticket).await?.context("no attributes")?;
        drop(attributes);
        ensure!(found.tags == ["stalls"], "{found:?}");
        anyhow::Ok(())
    };
    let (tagged, ()) = tokio::join!(tagged, batching);
    tagged?;
    let transaction = TransactionId::parse("locked/credits").context("a name")?;
    let there = async |other: &mut PgConnection| {
        let add = "insert into accounts as a (user_id, credits) values ('locked', 1)
                   on conflict (user_id) do update set credits = a.credits + excluded.credits";
        raw::run("accounts", sqlx::query(add).execute(other)).await.map(drop)
    };
    let here = async |_: &mut PgConnection| Ok::<_, Error>(());
    let done = two_phase::run::<Error>(&main, &other, &transaction, Uuid::new_v4(), here, there).await?;
    ensure!(done == Outcome::Now, "{done:?}");
    Ok(())
}

fn whoever_cannot_be_let_in_ends_at_the_start_and_says_why(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let server = locked(kit).await?;
        done(kit.stack.holdfast("migrate", "locked-postgres")).await?;
        let folder = kit.stack.folder().join("wrong");
        let stranger = Authority::new("a stranger")?;
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("root.crt"), &stranger.certificate)?;
        let owner = server.url_as(TABLES_OWNER, DATABASE);
        let ours = |url: &str| url.split("&sslcert").next().unwrap_or_default().to_owned();
        let with = |certificate: &Certificate, name: &str| {
            let files = certificate.write(&folder, name)?;
            let (certificate, key) = (files.certificate.display(), files.key.display());
            let url = ours(&server.url_as(VERIFY, DATABASE));
            anyhow::Ok(format!("{url}&sslcert={certificate}&sslkey={key}"))
        };
        let root = format!("sslrootcert={}", folder.join("root.crt").display());
        let (before, _) = owner.split_once("sslrootcert=").context("no root certificate")?;
        let wrong = [
            (format!("{before}{root}"), "UnknownIssuer"),
            (
                owner.replace(&password(TABLES_OWNER), "guess"),
                "password authentication failed",
            ),
            (owner.replace(TABLES_OWNER, "nobody"), "password authentication failed"),
            (owner.replace("/holdfast?", "/nowhere?"), "\"nowhere\" does not exist"),
            (
                owner.replace("sslmode=verify-full&sslrootcert=", "sslmode=disable&x="),
                "no encryption",
            ),
            (
                ours(&server.url_as(VERIFY, DATABASE)),
                "requires a valid client certificate",
            ),
            (
                with(&server.authority()?.sign(APP, &[])?, "another")?,
                "authentication failed",
            ),
            (
                format!("{}?sslmode=require", kit.stack.postgres.url()),
                "does not support TLS",
            ),
        ];
        // One after the other: each is two processes, and each must end in time.
        for (url, said) in &wrong {
            refused_by_both(kit, url, said).await?;
        }
        let localhost = &server.certificate()?;
        for (certificate, said) in [
            (
                server.authority()?.sign("db.example", &["db.example"])?,
                "not valid for name",
            ),
            (
                server
                    .authority()?
                    .sign_expired("localhost", &["localhost", "127.0.0.1"])?,
                "xpired",
            ),
        ] {
            show(&server, &certificate, Some(said)).await?;
            refused_by_both(kit, &owner, said).await?;
            if said == "not valid for name" {
                done(at(kit, &owner.replace("verify-full", "verify-ca"), "migrate")).await?;
            }
        }
        show(&server, localhost, None).await?;
        done(at(kit, &owner, "migrate")).await
    })
}

/// The start must end by itself and say this, with the address.
async fn refused(kit: &Kit, url: &str, said: &str) -> anyhow::Result<()> {
    ends(at(kit, url, "migrate"), url, said).await
}

/// As [`refused`], and likewise where this is the address of the loyalty database; the main one is the stack's.
async fn refused_by_both(kit: &Kit, url: &str, said: &str) -> anyhow::Result<()> {
    let serve = kit.stack.holdfast("serve", "locked-postgres");
    let serve = serve.env("HOLDFAST_SERVE_LISTEN", "127.0.0.1:0");
    let serve = serve.env("HOLDFAST_HTTP_LISTEN", "127.0.0.1:0");
    let loyalty = serve.env("HOLDFAST_LOYALTY_URL", url);
    try_join!(refused(kit, url, said), ends(loyalty, url, said)).map(drop)
}

async fn ends(launch: Launch<'_>, url: &str, said: &str) -> anyhow::Result<()> {
    let ended = tokio::time::timeout(WITHIN, launch.output()).await;
    let ended = ended.with_context(|| format!("{said}: it is waited for"))??;
    let text = String::from_utf8_lossy(&ended.stderr).into_owned();
    let address = url.split(['@', '/', '?']).find(|word| word.starts_with("127."));
    ensure!(
        ended.status.code() == Some(2) && text.contains(said) && text.contains(address.context("no address")?),
        "{said}: {} {text}",
        ended.status
    );
    ensure!(!text.contains("sesame"), "it prints a password: {text}");
    Ok(())
}

/// Has the running server show another certificate, with which clients fail so, or not at all.
async fn show(server: &Server<Postgres>, certificate: &Certificate, error: Option<&str>) -> anyhow::Result<()> {
    // Whatever the server shows: the reload must be asked for.
    let trusting = server.url().replace("verify-full", "require");
    let trusting = trusting.split("&sslrootcert").next().unwrap_or_default().to_owned();
    let mut session = PgConnection::connect(&trusting).await?;
    server.show(certificate)?;
    sqlx::query("select pg_reload_conf()").execute(&mut session).await?;
    session.close().await?;
    until("the server shows its new certificate", WITHIN, async || {
        let seen = PgConnection::connect(&server.url())
            .await
            .err()
            .map(|error| error.to_string());
        let as_expected = match (&seen, error) {
            (None, None) => true,
            (Some(seen), Some(error)) => seen.contains(error),
            _ => false,
        };
        ensure!(as_expected, "{seen:?}");
        anyhow::Ok(())
    })
    .await
}

fn the_roles_have_the_rights_that_the_file_lists_and_every_table_is_in_it(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let server = locked(kit).await?;
        let pool = PgPool::connect(&server.url()).await?;
        let given: Vec<(String, String, String)> = sqlx::query_as(
            "select coalesce(r.rolname, 'public')::text, c.relname::text, lower(a.privilege_type)
             from pg_class c cross join lateral aclexplode(c.relacl) a left join pg_roles r on r.oid = a.grantee
             where c.relnamespace = 'public'::regnamespace and a.grantee <> c.relowner
             union all
             select coalesce(r.rolname, 'public'), p.proname, lower(a.privilege_type)
             from pg_proc p cross join lateral aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
             left join pg_roles r on r.oid = a.grantee
             where p.pronamespace = 'public'::regnamespace and a.grantee <> p.proowner",
        )
        .fetch_all(&pool)
        .await?;
        let given: BTreeSet<_> = given.into_iter().collect();
        let listed: BTreeSet<_> = rights()?.into_iter().collect();
        ensure!(given == listed, "given {given:?}\nlisted {listed:?}");
        let tables: Vec<String> = sqlx::query_scalar(
            "select relname::text from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'p', 'v')",
        )
        .fetch_all(&pool)
        .await?;
        let file = grants()?;
        let (revoked, _) = file.split_once("from public").context("nothing is revoked")?;
        for table in &tables {
            ensure!(
                listed.iter().any(|(_, on, _)| on == table),
                "no role has a right on {table}"
            );
            let is_revoked = revoked.split([',', '\n', ' ']).any(|word| word == table);
            ensure!(is_revoked, "the rights on {table} are never taken away");
        }
        // A second time, and for whoever had more: exactly these rights again.
        run(&pool, &format!("grant all on tickets to {VERIFY}, public")).await?;
        done(holdfast(kit, &server, TABLES_OWNER, "migrate").arg("--grants")).await?;
        for role in [VERIFY, APP] {
            let may: bool = sqlx::query_scalar("select has_table_privilege($1, 'tickets', 'delete')")
                .bind(role)
                .fetch_one(&pool)
                .await?;
            ensure!(!may, "{role} may delete tickets");
        }
        let app = PgPool::connect(&server.url_as(APP, DATABASE)).await?;
        for statement in [
            "create table t ()",
            "drop table mails",
            "alter table mails add x int",
            "truncate mails",
        ] {
            ensure!(run(&app, statement).await.is_err(), "{APP} may {statement}");
        }
        Ok(())
    })
}

fn each_right_is_needed_by_a_statement_that_names_what_it_lacks(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let server = locked(kit).await?;
        let mut owner = PgConnection::connect(&server.url()).await?;
        let put_together = PUT_TOGETHER.iter().map(|text| String::from(*text));
        let statements: Vec<String> = statements()?.into_iter().chain(put_together).collect();
        let mut unneeded = Vec::new();
        for role in [APP, VERIFY, ADMIN, BOOKS] {
            let mut theirs = Vec::new();
            for statement in &statements {
                if as_role(&mut owner, role, None, statement).await?.is_none() {
                    theirs.push(statement);
                }
            }
            for (_, object, right) in rights()?.iter().filter(|(who, _, _)| who == role) {
                let kind = if right == "execute" { "function" } else { "table" };
                let signature = if right == "execute" {
                    "(text, bigint, bigint)"
                } else {
                    ""
                };
                let revoke = format!("revoke {right} on {kind} {object}{signature} from {role}");
                let what = if object == "ledger_entries" { "view" } else { kind };
                let lacks = format!("permission denied for {what} {object}");
                let mut is_needed = false;
                for statement in theirs.iter().filter(|statement| statement.contains(object.as_str())) {
                    let refused = as_role(&mut owner, role, Some(&revoke), statement).await?;
                    if refused.as_deref() == Some(&lacks) {
                        is_needed = true;
                        break;
                    }
                }
                if !is_needed {
                    unneeded.push(format!("{right} on {object} to {role}"));
                }
            }
        }
        ensure!(unneeded.is_empty(), "no statement needs {unneeded:?}");
        Ok(())
    })
}

fn who_may_not_migrate_says_who_must_and_works_on_tables_that_are_up_to_date(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let server = locked(kit).await?;
        let pool = PgPool::connect(&server.url()).await?;
        run(&pool, "drop database if exists unmigrated with (force)").await?;
        run(&pool, &format!("create database unmigrated owner {TABLES_OWNER}")).await?;
        let (app, owner) = (
            server.url_as(APP, "unmigrated"),
            server.url_as(TABLES_OWNER, "unmigrated"),
        );
        let ends = async |launch: Launch<'_>, said: &str| {
            let ended = tokio::time::timeout(WITHIN, launch.output())
                .await
                .context("it goes on")??;
            let text = String::from_utf8_lossy(&ended.stderr).into_owned();
            let is_said = ended.status.code() == Some(2) && text.contains(said);
            ensure!(is_said, "{said}: {} {text}", ended.status);
            anyhow::Ok(())
        };
        let must = "run `holdfast migrate` as the owner";
        ends(at(kit, &app, "run"), must).await?;
        done(at(kit, &owner, "migrate")).await?;
        // Without grants, not even what is there can be read.
        ends(at(kit, &app, "run"), "permission denied for table oldest_reader").await?;
        let nobody = at(kit, &owner, "migrate")
            .arg("--grants")
            .arg("--role-admin")
            .arg("nobody");
        ends(nobody, "role \"nobody\" does not exist").await?;
        let itself = at(kit, &owner, "migrate")
            .arg("--grants")
            .arg("--role-app")
            .arg(TABLES_OWNER);
        ends(itself, "owns the tables").await?;
        done(at(kit, &owner, "migrate").arg("--grants")).await?;
        done(at(kit, &app, "migrate")).await?;
        let owners = PgPool::connect(&owner).await?;
        run(
            &owners,
            "delete from _sqlx_migrations where version = (select max(version) from _sqlx_migrations)",
        )
        .await?;
        ends(at(kit, &app, "run"), must).await?;
        owners.close().await;
        Ok(())
    })
}

fn a_password_is_rotated_without_a_restart_by_its_file(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let server = locked(kit).await?;
        let superuser = PgPool::connect(&server.url()).await?;
        let file = kit.stack.folder().join("database-url");
        let url = server.url_as(APP, DATABASE);
        fs::write(&file, format!("{url}\n"))?;
        // The engine does not know this address: no other proof's work comes here.
        let worker = at(kit, &url, "serve")
            .without("HOLDFAST_DATABASE_URL")
            .env("HOLDFAST_DATABASE_URL_FILE", &file.display().to_string())
            .env("HOLDFAST_SERVE_LISTEN", "127.0.0.1:0")
            .start()
            .await?;
        run(&superuser, &format!("alter role {APP} password 'another'")).await?;
        let end = format!("select pg_terminate_backend(pid) from pg_stat_activity where usename = '{APP}'");
        run(&superuser, &end).await?;
        until("it says that its password is wrong", WITHIN, async || {
            let ready = reqwest::get(format!("{}/readyz", worker.http)).await?;
            let (status, text) = (ready.status(), ready.text().await?);
            ensure!(!status.is_success() && text.contains("postgres"), "{status} {text}");
            let log = fs::read_to_string(worker.log())?;
            ensure!(log.contains("password authentication failed"), "it is not said");
            anyhow::Ok(())
        })
        .await?;
        fs::write(&file, format!("{}\n", url.replace(&password(APP), "another")))?;
        worker.ready().await?;
        ensure!(
            !fs::read_to_string(worker.log())?.contains("sesame"),
            "it prints a password"
        );
        worker.stop().await?;
        run(&superuser, &format!("alter role {APP} password '{}'", password(APP))).await
    })
}

fn a_pooler_that_shares_sessions_or_drops_settings_is_refused_by_name(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let server = locked(kit).await?;
        let pooler = PgBouncer::start(&kit.stack, &server, "").await?;
        refused(kit, &pooler.url("session"), "ignore_startup_parameters = options").await?;
        pooler.stop().await?;
        let pooler = PgBouncer::start(&kit.stack, &server, "ignore_startup_parameters = options").await?;
        refused(kit, &pooler.url("transaction"), "pool_mode = session").await?;
        // The role has what a session must have.
        done(at(kit, &pooler.url("session"), "migrate")).await?;
        let superuser = PgPool::connect(&server.url()).await?;
        run(&superuser, &format!("alter role {APP} reset lock_timeout")).await?;
        pooler.restart().await?;
        refused(
            kit,
            &pooler.url("session"),
            "the session's lock_timeout is 0 and not 5000",
        )
        .await?;
        run(&superuser, &format!("alter role {APP} set lock_timeout = 5000")).await?;
        pooler.stop().await
    })
}

/// The files whose statements a role executes.
const APP_FILES: &[&str] = &["workers/src/store"];
const VERIFY_FILES: &[&str] = &["workers/src/verify"];
const ADMIN_FILES: &[&str] = &[
    "workers/src/store/settled_dead_letters.rs",
    "workers/src/store/operator_log.rs",
    "workers/src/store/idempotency.rs",
    "workers/src/store/mails",
    "workers/src/store/outcome_log.rs",
    "workers/src/store/outbox.rs",
    "workers/src/store/recovery",
    "workers/src/store/mechanisms/two_phase.rs",
    "workers/src/store/tickets",
    "workers/src/store/tickets.rs",
    "workers/src/store/users",
    "workers/src/store/users.rs",
    "workers/src/store/checkouts.rs",
    "workers/src/store/disputes.rs",
    "workers/src/store/refunds.rs",
    "workers/src/store/purchases.rs",
    "workers/src/store/ledger",
    "workers/src/store/loyalty.rs",
    "workers/src/store/orders",
    "workers/src/store/sales",
    "workers/src/store/sales.rs",
];

/// Statements in these files that only another role executes, by a text that is in no other.
const NOT_THEIRS: &[(&str, &str)] = &[
    // Operators' commands.
    (APP, "settled_dead_letters"),
    (APP, "operator_log"),
    (APP, "from quarantine_log where"),
    (APP, "log.outcome is distinct from told.outcome"),
    (APP, "outcome not in (select message from outbox)"),
    (APP, "type as outcome_type"),
    (APP, "where log.movement = told.outcome"),
    (APP, "movement not in (select message from outbox)"),
    (APP, "insert into generations"),
    (APP, "as lost (checkout, movement, place)"),
    (APP, "sum((data ->> 'added')::bigint)"),
    (APP, "filter (where kind = 'refund' and amount > 0)"),
    // The relay's.
    (ADMIN, "update relay_state"),
    // Needs no right, and cannot be explained.
    (APP, "set constraints all immediate"),
];

/// What the tools for tables and the migrator put together at run time needs these.
const PUT_TOGETHER: &[&str] = &[
    "insert into ticket_attributes (ticket) values ($1) on conflict (ticket) do update set tags = '{}' returning ticket",
    "insert into ticket_attributes_change_log (ticket, version, data, changed_at) values ($1, 1, '{}', now())
     on conflict (ticket, version) do nothing",
    "select tags from ticket_attributes",
    "select data from ticket_attributes_change_log",
    "insert into example_users (user_id, name, address, credits) values ($1, 'a', 'a', 0)
     on conflict (user_id) do update set credits = 1 returning user_id",
    "delete from example_users where user_id = $1",
    "insert into example_keys (key, hash, reply, expires_at) values ($1, '', '{}', now())
     on conflict (key) do update set reply = '{}' returning key",
    "delete from example_keys where key = $1",
    "select version, checksum from _sqlx_migrations",
    "select number, movement from ledger_entries",
];

/// The statements that the product checks against the tables when it is built, on one line each.
fn statements() -> anyhow::Result<Vec<String>> {
    let mut statements = Vec::new();
    for entry in fs::read_dir(checkout().join(".sqlx"))? {
        let kept: serde_json::Value = serde_json::from_slice(&fs::read(entry?.path())?)?;
        statements.push(on_one_line(kept["query"].as_str().context("no statement")?));
    }
    Ok(statements)
}

/// Without the comments, which would hide the rest of the line.
fn on_one_line(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("--"));
    lines.flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ")
}

/// The files in these places, each on one line.
fn sources(places: &[&str]) -> anyhow::Result<Vec<String>> {
    let mut waiting: Vec<_> = places.iter().map(|place| checkout().join(place)).collect();
    let mut texts = Vec::new();
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            for entry in fs::read_dir(&path)? {
                waiting.push(entry?.path());
            }
        } else {
            texts.push(on_one_line(&fs::read_to_string(&path)?));
        }
    }
    Ok(texts)
}

/// Each right of `deploy/postgres/grants.sql`: role, table or function, right.
fn rights() -> anyhow::Result<Vec<(String, String, String)>> {
    let mut rights = Vec::new();
    let file = grants()?;
    for line in file.lines().filter_map(|line| line.strip_prefix("grant ")) {
        let (names, rest) = line.split_once(" on ").with_context(|| line.to_owned())?;
        let (object, role) = rest.split_once(" to ").with_context(|| line.to_owned())?;
        let object = object
            .trim_start_matches("function ")
            .split('(')
            .next()
            .unwrap_or_default();
        let role = match role {
            ":\"app\";" => APP,
            ":\"verify\";" => VERIFY,
            ":\"admin\";" => ADMIN,
            ":\"books\";" => BOOKS,
            _ => bail!("to whom? {line}"),
        };
        for right in names.split(", ") {
            rights.push((role.to_owned(), object.to_owned(), right.to_owned()));
        }
    }
    Ok(rights)
}

fn grants() -> anyhow::Result<String> {
    Ok(fs::read_to_string(
        checkout().join(Path::new("deploy/postgres/grants.sql")),
    )?)
}

/// What the server has against this statement, if anything; it is planned, checked and not executed.
async fn refusal(session: &mut PgConnection, statement: &str) -> anyhow::Result<Option<String>> {
    let explain = AssertSqlSafe(format!("explain (generic_plan) {statement}"));
    match sqlx::raw_sql(explain).execute(session).await {
        Ok(_) => Ok(None),
        Err(sqlx::Error::Database(error)) => Ok(Some(error.message().to_owned())),
        Err(error) => Err(error.into()),
    }
}

/// As [`refusal`], for a role from which this right is taken away, for that moment.
async fn as_role(
    superuser: &mut PgConnection,
    role: &str,
    revoke: Option<&str>,
    statement: &str,
) -> anyhow::Result<Option<String>> {
    let mut moment = superuser.begin().await?;
    let before = format!("{}; set local role {role}", revoke.unwrap_or("select 1"));
    sqlx::raw_sql(AssertSqlSafe(before)).execute(&mut *moment).await?;
    let refused = refusal(&mut moment, statement).await?;
    moment.rollback().await?;
    Ok(refused)
}
