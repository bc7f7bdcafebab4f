//! Settings: the roles of the databases.

use clap::{Args, ValueEnum};

use super::Checks;

/// Names of the roles that `migrate` gives their rights. They are there already: `deploy/postgres/roles.sql` makes them.
#[derive(Args, Debug, Clone)]
pub struct Roles {
    /// The role of `run`, `serve` and `relay`.
    #[arg(
        id = "role-app",
        long = "role-app",
        env = "HOLDFAST_ROLE_APP",
        default_value = "holdfast_app"
    )]
    pub app: String,
    /// The role of `verify`.
    #[arg(
        id = "role-verify",
        long = "role-verify",
        env = "HOLDFAST_ROLE_VERIFY",
        default_value = "holdfast_verify"
    )]
    pub verify: String,
    /// The role of `admin`.
    #[arg(
        id = "role-admin",
        long = "role-admin",
        env = "HOLDFAST_ROLE_ADMIN",
        default_value = "holdfast_admin"
    )]
    pub admin: String,
    /// The role of whoever keeps the books: it reads the view `ledger_entries`.
    #[arg(
        id = "role-books",
        long = "role-books",
        env = "HOLDFAST_ROLE_BOOKS",
        default_value = "holdfast_books"
    )]
    pub books: String,
    /// The role in the loyalty database.
    #[arg(
        id = "role-loyalty",
        long = "role-loyalty",
        env = "HOLDFAST_ROLE_LOYALTY",
        default_value = "holdfast_app"
    )]
    pub loyalty: String,
}

/// A database with grants.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granted {
    /// The database of Holdfast's tables.
    Main,
    /// The database of the users' credits.
    Loyalty,
}

impl Roles {
    /// Postgres cuts off what is longer, and so could mean another role.
    const LONGEST: usize = 63;

    pub(super) fn check(&self, checks: &mut Checks) {
        for (flag, name) in [
            ("role-app", &self.app),
            ("role-verify", &self.verify),
            ("role-admin", &self.admin),
            ("role-books", &self.books),
            ("role-loyalty", &self.loyalty),
        ] {
            let fits = (1..=Self::LONGEST).contains(&name.len()) && !name.contains('\0');
            checks.require(fits, flag, "give the name of a role: 1 to 63 bytes");
        }
    }
}
