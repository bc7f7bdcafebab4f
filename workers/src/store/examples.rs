//! The tables of the example handlers, declared for the tools of [`super::mechanisms`].

use serde::{Deserialize, Serialize};

use super::mechanisms::idempotency::Keys;
use super::mechanisms::{Column, Table, Values};

/// Idempotency keys of the example handlers.
pub const KEYS: Keys = Keys::in_table("example_keys");

/// A row of `example_users`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, sqlx::FromRow)]
#[serde(rename_all = "camelCase")]
pub struct User {
    pub user_id: String,
    pub name: String,
    pub address: String,
    pub credits: i64,
    #[serde(default)]
    pub tags: Vec<String>,
    /// 0 as inserted; each update raises it by one. Not written by hand.
    #[serde(default)]
    pub version: i64,
}

impl User {
    pub const NAME: Column<User, String> = Column::new("name");
    pub const ADDRESS: Column<User, String> = Column::new("address");
    pub const CREDITS: Column<User, i64> = Column::new("credits");
    pub const TAGS: Column<User, Vec<String>> = Column::new("tags");
}

impl Table for User {
    type Key = String;
    const TABLE: &'static str = "example_users";
    const KEY: &'static str = "user_id";
    const COLUMNS: &'static [&'static str] = &["name", "address", "credits", "tags"];
    const MARKED: bool = true;

    fn key(&self) -> String {
        self.user_id.clone()
    }

    fn values(&self) -> Values<User> {
        let (name, address) = (
            User::NAME.is(self.name.as_str()),
            User::ADDRESS.is(self.address.as_str()),
        );
        let (credits, tags) = (User::CREDITS.is(self.credits), User::TAGS.is(self.tags.clone()));
        name.and(address).and(credits).and(tags)
    }
}
