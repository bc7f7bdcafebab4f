//! The payment provider and the mail server.

use std::sync::Arc;

use holdfast_schemas::PaymentId;

use super::report::Check;
use crate::config::{self, Part};
use crate::error;
use crate::metrics::Metrics;
use crate::provider::{Error, Provider};
use crate::{mail, transience::Fault};

/// A payment that no provider has: the answer tells whether the key is taken.
const NOBODYS_PAYMENT: &str = "pi_holdfast_doctor";

pub(super) async fn provider(settings: &config::Provider) -> Check {
    let Some(url) = &settings.url else {
        return Check::sound(
            Part::Provider,
            "the provider",
            "none is set: checkouts that need money are refused",
        );
    };
    let what = format!("the provider at {url}");
    let asked = match (Metrics::new().map(Arc::new), PaymentId::parse(NOBODYS_PAYMENT)) {
        (Ok(metrics), Ok(payment)) => match Provider::new(settings, metrics) {
            Ok(Some(provider)) => provider.get(&payment).await.map(drop),
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        },
        _ => return Check::unknown(Part::Provider, what, "no question could be made"),
    };
    match asked {
        Ok(()) | Err(Error::NotFound { .. } | Error::Conflict { .. } | Error::Declined { .. }) => {
            Check::sound(Part::Provider, what, "it answers, and takes the key")
        }
        Err(error) if error.fault() == Fault::Setting => Check::wrong(
            Part::Provider,
            what,
            error::chain(&error),
            "set --provider-key (HOLDFAST_PROVIDER_KEY) to the secret key of this account, at --provider-url (HOLDFAST_PROVIDER_URL)",
        ),
        Err(error) => Check::wrong(
            Part::Provider,
            what,
            error::chain(&error),
            "check --provider-url (HOLDFAST_PROVIDER_URL), the way there, and that the system trusts its certificate",
        ),
    }
}

pub(super) async fn mail_server(settings: &config::Mail) -> Check {
    let Some(server) = settings.server() else {
        return Check::sound(Part::Mail, "the mail server", "none is set: no mails are sent");
    };
    let what = format!("the mail server at {}:{}", server.host, server.port);
    let Err(error) = mail::reach(settings).await else {
        return Check::sound(Part::Mail, what, "it answers, and lets us in");
    };
    let mend = match error.fault() {
        Fault::Setting => "set user, password and protection in --smtp-url (HOLDFAST_SMTP_URL) as the server has them",
        _ => {
            "check the address in --smtp-url (HOLDFAST_SMTP_URL), the way there, and that the system trusts its certificate"
        }
    };
    Check::wrong(Part::Mail, what, error::chain(&error), mend)
}
