//! `register --prune`: removes what earlier releases have registered, once nothing needs it any more.

use time::format_description::well_known::Rfc3339;

use super::Error;
use super::report::{Finding, PartReport};
use crate::objects::SERVICES;
use crate::restate_admin::{Deployment, Pinned, RestateAdmin, Service};

/// Removes each deployment of ours that no service is called at any more and no invocation is pinned to. Says of the others why they
/// stay, and of those in use nothing.
///
/// An attempt that begins there at this very moment, on a node that has not heard of the newer handlers, is not seen. It ends by itself
/// unless it has to be made again, so the processes behind a deployment stop after it was removed, and not before.
pub(super) async fn prune(admin: &RestateAdmin) -> Result<Vec<PartReport>, Error> {
    let services = admin.services().await?;
    let mut lines = Vec::new();
    for known in admin.deployments().await? {
        let finding = match Usage::of(&known, &services) {
            Usage::Foreign | Usage::InUse => continue,
            Usage::Needed(why) => Finding::Kept { why },
            Usage::Superseded => match admin.pinned(&known.id).await? {
                pinned if pinned.is_empty() => {
                    admin.remove_deployment(&known.id).await?;
                    Finding::Removed
                }
                pinned => Finding::Kept { why: waits(&pinned) },
            },
        };
        let address = known.uri.as_deref().unwrap_or(&known.id);
        lines.push(PartReport::new(format!("earlier handlers at {address}"), finding));
    }
    Ok(lines)
}

/// What a deployment is to us.
#[derive(Debug, PartialEq, Eq)]
enum Usage {
    /// It serves what is none of ours: the engine is shared, and this is somebody else's.
    Foreign,
    /// Calls from now on go there.
    InUse,
    /// They go elsewhere, but not all; and why it stays.
    Needed(String),
    /// They all go elsewhere.
    Superseded,
}

impl Usage {
    fn of(deployment: &Deployment, services: &[Service]) -> Self {
        let served: Vec<&str> = deployment
            .services
            .iter()
            .map(|service| service.name.as_str())
            .collect();
        let (ours, foreign): (Vec<&str>, Vec<&str>) = served.into_iter().partition(|name| SERVICES.contains(name));
        if ours.is_empty() {
            return Self::Foreign;
        }
        if !foreign.is_empty() {
            return Self::Needed(format!("it also serves {}, none of Holdfast's", foreign.join(", ")));
        }
        let is_called_here = |name: &&str| {
            let newest = services.iter().find(|service| service.name == **name);
            newest.is_some_and(|newest| newest.deployment_id == deployment.id)
        };
        let called: Vec<&str> = ours.iter().copied().filter(is_called_here).collect();
        match called.len() {
            0 => Self::Superseded,
            count if count == ours.len() => Self::InUse,
            _ => Self::Needed(format!("nothing else serves {}", called.join(", "))),
        }
    }
}

fn waits(pinned: &[Pinned]) -> String {
    let handlers = pinned.iter().map(|pinned| {
        let Pinned {
            service,
            handler,
            invocations,
            oldest,
        } = pinned;
        let since = oldest.format(&Rfc3339).unwrap_or_else(|_| oldest.to_string());
        format!("{invocations} of {service}/{handler}, the oldest since {since}")
    });
    let handlers: Vec<_> = handlers.collect();
    format!("invocations that began there have not ended: {}", handlers.join("; "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use time::macros::datetime;

    use super::*;

    fn usage(served: &[&str], called_here: &[&str]) -> Usage {
        let services: Vec<_> = served
            .iter()
            .map(|name| json!({ "name": name, "revision": 1 }))
            .collect();
        let deployment = json!({ "id": "dp_old", "uri": "http://old:9080/", "services": services });
        let services = served.iter().map(|name| {
            let deployment = if called_here.contains(name) { "dp_old" } else { "dp_new" };
            serde_json::from_value(json!({ "name": name, "deployment_id": deployment, "handlers": [] })).unwrap()
        });
        let services: Vec<Service> = services.collect();
        Usage::of(&serde_json::from_value(deployment).unwrap(), &services)
    }

    #[test]
    fn what_is_called_or_is_of_others_stays() {
        assert_eq!(usage(&["Ticket", "User"], &[]), Usage::Superseded);
        assert_eq!(usage(&["Ticket", "User"], &["Ticket", "User"]), Usage::InUse);
        assert_eq!(usage(&["Orders"], &[]), Usage::Foreign);
        let needed = |why: &str| Usage::Needed(why.to_owned());
        assert_eq!(
            usage(&["Ticket", "keyed"], &["keyed"]),
            needed("nothing else serves keyed")
        );
        assert_eq!(
            usage(&["Ticket", "Orders"], &[]),
            needed("it also serves Orders, none of Holdfast's")
        );
    }

    #[test]
    fn what_began_there_is_told_by_handler_with_its_age() {
        let pinned = |service: &str, handler: &str, invocations| Pinned {
            service: service.to_owned(),
            handler: handler.to_owned(),
            invocations,
            oldest: datetime!(2026-11-30 09:00 UTC),
        };
        assert_eq!(
            waits(&[pinned("Checkout", "run", 2), pinned("User", "addTicket", 1)]),
            "invocations that began there have not ended: 2 of Checkout/run, the oldest since 2026-11-30T09:00:00Z; \
             1 of User/addTicket, the oldest since 2026-11-30T09:00:00Z"
        );
    }
}
