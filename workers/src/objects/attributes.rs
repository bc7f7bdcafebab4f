//! A ticket's attributes: HTTP requests to the Ticket object that no decision depends on.

use holdfast_schemas::TicketId;
use restate_sdk::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::caller::{answer_caller, tool_failed};
use crate::metrics::Metrics;
use crate::store::mechanisms::Error;
use crate::store::ticket_attributes::{self, Access};

/// Adds a tag.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Tag {
    tag: String,
}

/// Describes the ticket: writes what `to` names, as far as it changes.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Describe {
    /// The description as the caller saw it; a field that is not named was empty. With it, nothing is written if another
    /// caller has since changed a field that this changes.
    #[serde(default)]
    from: Option<Description>,
    to: Description,
}

/// An empty text: none.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Description {
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    entrance: Option<String>,
}

impl From<Description> for ticket_attributes::Description {
    fn from(Description { description, entrance }: Description) -> Self {
        Self { description, entrance }
    }
}

/// The result of a description.
#[derive(Serialize, JsonSchema)]
#[serde(tag = "status", rename_all = "snake_case")]
pub(super) enum Described {
    /// These fields were written.
    Applied { fields: Vec<&'static str> },
    /// The ticket is described so already, perhaps by an earlier try of the same request.
    Unchanged,
    /// Another caller changed what this would have changed; nothing was written.
    Differs,
    /// The ticket has no attributes, so `from` cannot have been seen.
    Gone,
}

/// The attributes of a ticket, as readers see them.
#[derive(Serialize, JsonSchema)]
pub(super) struct Attributes {
    ticket: TicketId,
    /// Counts the changes of the attributes; independent of the ticket's own version.
    version: i64,
    description: String,
    entrance: String,
    /// Each tag once, in the order in which they were added.
    tags: Vec<String>,
}

pub(super) async fn tag(access: &Access, metrics: &Metrics, ticket: &TicketId, asked: Tag) -> HandlerResult<()> {
    let tagged = access.tag(ticket, &asked.tag).await;
    tagged.map_err(|error| answer(&error, metrics))
}

pub(super) async fn describe(
    access: &Access,
    metrics: &Metrics,
    ticket: &TicketId,
    Describe { from, to }: Describe,
) -> HandlerResult<Json<Described>> {
    let from = from.map(ticket_attributes::Description::from);
    let described = access.describe(ticket, from.as_ref(), &to.into()).await;
    Ok(Json(match described.map_err(|error| answer(&error, metrics))? {
        ticket_attributes::Described::Applied(fields) => Described::Applied { fields },
        ticket_attributes::Described::Unchanged => Described::Unchanged,
        ticket_attributes::Described::Differs => Described::Differs,
        ticket_attributes::Described::Gone => Described::Gone,
    }))
}

pub(super) async fn get(access: &Access, metrics: &Metrics, ticket: TicketId) -> HandlerResult<Json<Attributes>> {
    let found = access.get(&ticket).await;
    let Some(found) = found.map_err(|error| answer(&error, metrics))? else {
        return Err(answer_caller(
            404,
            "nothing is told of this ticket: tag or describe it first",
        ));
    };
    Ok(Json(Attributes {
        ticket,
        version: found.version,
        description: found.description,
        entrance: found.entrance,
        tags: found.tags,
    }))
}

/// Answers the caller about a value that a constraint forbids; has Restate retry after any other error.
fn answer(error: &Error, metrics: &Metrics) -> HandlerError {
    let Error::Forbidden { constraint, .. } = error else {
        return tool_failed(metrics, error);
    };
    let rule = constraint.as_deref().unwrap_or("a character that no text can hold");
    let rule = rule.strip_prefix("ticket_attributes_").unwrap_or(rule);
    answer_caller(
        400,
        format!("body: a value is against the rule `{rule}`; mend it and send it again"),
    )
}
