//! What every session with Postgres has, those of the workers and that of `verify`: keep-alives, and the words for its server and for
//! silence.

use std::io;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;

/// After how long the server gives up a client that has vanished: idle, and with an answer on its way.
pub const SERVER_KEEPALIVE: [(&str, &str); 4] = [
    ("tcp_keepalives_idle", "30"),
    ("tcp_keepalives_interval", "10"),
    ("tcp_keepalives_count", "3"),
    ("tcp_user_timeout", "60000"),
];

/// The server and database, without user and password.
pub fn address(options: &PgConnectOptions) -> String {
    let database = options.get_database().unwrap_or_default();
    format!("{}:{}/{database}", options.get_host(), options.get_port())
}

/// No answer came for so long.
pub fn silent(limit: Duration) -> sqlx::Error {
    let what = format!("no answer within {limit:?}: the connection is given up");
    sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, what))
}
