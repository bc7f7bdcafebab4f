//! The provider's webhooks: checks the signature and decodes the event. Pure: the caller has the clock and the secret.
//!
//! Stripe signs `t` (seconds since 1970), a full stop and the body with HMAC-SHA256 under the endpoint's secret, and sends it as
//! `Stripe-Signature: t=...,v1=...`; while a secret is being replaced there is one `v1` for each. Stripe signs every attempt
//! anew, so that an old `t` means a replay attack. Source: Stripe's documentation, "Verify webhook signatures manually".

use hmac::{Hmac, Mac};
use holdfast_schemas::{DeclineCode, DisputeId, EventId, Price};
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::Sha256;
use time::{Duration, OffsetDateTime};

use super::stripe::{Wrong, text};
use super::{CheckoutId, Currency, PaymentId, UserId};

/// The header that the signatures come in.
pub const SIGNATURE: &str = "stripe-signature";

/// The `source` of the events that webhooks become.
pub const SOURCE: &str = "stripe";

/// An event of the provider about a payment, as the payment was then; the same in each delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub id: EventId,
    pub created: OffsetDateTime,
    pub payment: PaymentId,
    pub buyer: Buyer,
    pub what: What,
}

/// The buyer whom the payment was made for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Buyer {
    Known {
        checkout: CheckoutId,
        user: UserId,
    },
    /// Holdfast did not make the payment.
    Stranger,
    /// A dispute does not name the buyer; [`super::Provider::get`] tells.
    Unsaid,
}

impl Buyer {
    pub fn new(checkout: Option<CheckoutId>, user: Option<UserId>) -> Self {
        match (checkout, user) {
            (Some(checkout), Some(user)) => Self::Known { checkout, user },
            _ => Self::Stranger,
        }
    }
}

/// The change of the payment. Amounts are totals of the payment so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    Authorized(Price),
    Captured(Price),
    Failed(DeclineCode),
    /// The payment was cancelled: nothing was captured, and nothing will be.
    Canceled,
    /// The captured amount that was refunded so far.
    Refunded(Price),
    Disputed {
        id: DisputeId,
        amount: Price,
        status: Dispute,
    },
}

/// The state of a dispute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dispute {
    /// An inquiry, or contested; money that is withdrawn meanwhile may come back.
    Open,
    Won,
    Lost,
}

/// The reason why a request is not the provider's, or cannot be decoded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the signature header is absent or not of the form t=...,v1=...")]
    Unsigned,
    #[error("no signature fits the body and the secret")]
    Forged,
    #[error("signed {0} away from now")]
    Old(Duration),
    #[error("the body is no event")]
    Unreadable(#[source] serde_json::Error),
    #[error("the event's {0} is missing or wrong")]
    Incomplete(&'static str),
}

/// Checks that a holder of one of the `secrets` signed this body, at most `tolerance` before or after `now`.
///
/// # Errors
/// [`Error::Unsigned`], [`Error::Forged`], [`Error::Old`].
pub fn verify<'s>(
    header: &str,
    body: &[u8],
    secrets: impl IntoIterator<Item = &'s str>,
    now: OffsetDateTime,
    tolerance: Duration,
) -> Result<(), Error> {
    let parts = || header.split(',').filter_map(|part| part.trim().split_once('='));
    let signed_at = parts().find_map(|(name, value)| (name == "t").then_some(value));
    let signed_at = signed_at.ok_or(Error::Unsigned)?;
    let signatures = || parts().filter_map(|(name, value)| (name == "v1").then_some(value));
    signatures().next().ok_or(Error::Unsigned)?;
    let fits = |secret: &str| {
        let mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes a key of any length");
        let mac = mac.chain_update(signed_at).chain_update(".").chain_update(body);
        // Compared in constant time.
        signatures().any(|text| hex::decode(text).is_ok_and(|signature| mac.clone().verify_slice(&signature).is_ok()))
    };
    if !secrets.into_iter().any(fits) {
        return Err(Error::Forged);
    }
    // Checked last: only a signed request gets this reason.
    let moment = signed_at
        .parse()
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    let away = (now - moment.ok_or(Error::Unsigned)?).abs();
    if away > tolerance {
        Err(Error::Old(away))
    } else {
        Ok(())
    }
}

/// Decodes an event; none when it is of no interest.
///
/// # Errors
/// [`Error::Unreadable`], [`Error::Incomplete`].
pub fn read(body: &[u8]) -> Result<Option<Event>, Error> {
    let told: Envelope = serde_json::from_slice(body).map_err(Error::Unreadable)?;
    let object = Object(&told.data.object);
    let payment = match told.kind.split_once('.') {
        Some(("payment_intent", _)) => "id",
        // A charge that no PaymentIntent made is none of ours.
        Some(("charge", _)) if object.0.get("payment_intent").is_some_and(|payment| !payment.is_null()) => {
            "payment_intent"
        }
        _ => return Ok(None),
    };
    let what = match told.kind.as_str() {
        "payment_intent.amount_capturable_updated" => What::Authorized(object.price("amount_capturable")?),
        "payment_intent.succeeded" => {
            What::Captured(object.price("amount_received").or_else(|_| object.price("amount"))?)
        }
        "payment_intent.payment_failed" => What::Failed(object.reason()?),
        "payment_intent.canceled" => What::Canceled,
        // Stripe reports a cancelled authorisation as refunded too; nothing was captured then.
        "charge.refunded" if object.amount("amount_captured").is_ok_and(|captured| captured == 0) => return Ok(None),
        "charge.refunded" => What::Refunded(object.price("amount_refunded")?),
        "charge.dispute.created" | "charge.dispute.funds_withdrawn" | "charge.dispute.closed" => What::Disputed {
            id: object.parsed("id", DisputeId::parse)?,
            amount: object.price("amount")?,
            status: object.dispute()?,
        },
        _ => return Ok(None),
    };
    let metadata = object.0.get("metadata").and_then(Value::as_object);
    let name = |name| text(metadata, name);
    let buyer = match &what {
        // A dispute has metadata of its own, not the payment's.
        What::Disputed { .. } => Buyer::Unsaid,
        _ => Buyer::new(
            name("checkout").and_then(|id| CheckoutId::parse(id).ok()),
            name("user").and_then(|id| UserId::parse(id).ok()),
        ),
    };
    Ok(Some(Event {
        id: EventId::parse(&told.id).map_err(|_| Error::Incomplete("id"))?,
        created: OffsetDateTime::from_unix_timestamp(told.created).map_err(|_| Error::Incomplete("created"))?,
        payment: object.parsed(payment, PaymentId::parse)?,
        buyer,
        what,
    }))
}

#[derive(Deserialize)]
struct Envelope {
    id: String,
    #[serde(rename = "type")]
    kind: String,
    created: i64,
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    object: Map<String, Value>,
}

/// The object of the event, as it was then: a PaymentIntent, a charge, or a dispute.
struct Object<'a>(&'a Map<String, Value>);

impl<'a> Object<'a> {
    fn word(&self, name: &str) -> Option<&'a str> {
        self.0.get(name).and_then(Value::as_str)
    }

    fn amount(&self, name: &'static str) -> Result<i64, Error> {
        self.0.get(name).and_then(Value::as_i64).ok_or(Error::Incomplete(name))
    }

    fn price(&self, name: &'static str) -> Result<Price, Error> {
        let currency = self.word("currency").map(str::to_ascii_uppercase);
        let currency = currency.and_then(|code| Currency::from_code(&code));
        let currency = currency.ok_or(Error::Incomplete("currency"))?;
        Price::new(self.amount(name)?, currency).map_err(|_| Error::Incomplete(name))
    }

    fn parsed<T, E>(&self, name: &'static str, parse: impl FnOnce(&str) -> Result<T, E>) -> Result<T, Error> {
        let parsed = self.word(name).and_then(|text| parse(text).ok());
        parsed.ok_or(Error::Incomplete(name))
    }

    fn reason(&self) -> Result<DeclineCode, Error> {
        let wrong = self.0.get("last_payment_error").cloned();
        let wrong: Wrong = wrong
            .and_then(|wrong| serde_json::from_value(wrong).ok())
            .unwrap_or_default();
        DeclineCode::parse(&wrong.reason()).map_err(|_| Error::Incomplete("last_payment_error"))
    }

    fn dispute(&self) -> Result<Dispute, Error> {
        match self.word("status") {
            Some("won" | "warning_closed" | "prevented") => Ok(Dispute::Won),
            Some("lost") => Ok(Dispute::Lost),
            Some(_) => Ok(Dispute::Open),
            None => Err(Error::Incomplete("status")),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: i64 = 1_790_000_000;
    const BODY: &[u8] = br#"{"id":"evt_1"}"#;
    /// Signature of `1790000000.` and the body, under `whsec_1`; made with another program.
    const SIGNATURE: &str = "ace72f9d559fb7bff58a31b5b3ac2ba03497737581c689dfe693de3df9ac4a1d";

    fn check(header: &str, body: &[u8], secret: &str, now: i64) -> Result<(), Error> {
        let now = OffsetDateTime::from_unix_timestamp(now).unwrap();
        verify(header, body, secret.split(','), now, Duration::minutes(5))
    }

    #[test]
    fn what_the_secret_signed_in_time_passes() {
        let header = format!("t={NOW},v1={SIGNATURE}");
        for now in [NOW - 300, NOW, NOW + 300] {
            assert!(check(&header, BODY, "whsec_1", now).is_ok(), "{now}");
        }
        let zeros = "0".repeat(64);
        for header in [
            format!("t={NOW},v1={zeros},v1={SIGNATURE},v0=6ffb"),
            format!("v0=x, v1={SIGNATURE}, t={NOW}"),
            format!("t={NOW},v1=nonsense,v1={}", SIGNATURE.to_uppercase()),
        ] {
            assert!(check(&header, BODY, "whsec_1", NOW).is_ok(), "{header}");
        }
        for secrets in ["whsec_1,whsec_2", "whsec_2,whsec_1"] {
            assert!(check(&header, BODY, secrets, NOW).is_ok(), "{secrets}");
        }
    }

    #[test]
    fn nothing_else_passes() {
        let header = format!("t={NOW},v1={SIGNATURE}");
        let forged = |answer| matches!(answer, Err(Error::Forged));
        assert!(forged(check(&header, BODY, "whsec_2", NOW)), "another secret");
        assert!(forged(check(&header, BODY, "whsec_2,whsec_3", NOW)), "two others");
        assert!(
            forged(check(&header, br#"{"id":"evt_2"}"#, "whsec_1", NOW)),
            "another body"
        );
        assert!(
            forged(check(&format!("t={},v1={SIGNATURE}", NOW + 1), BODY, "whsec_1", NOW)),
            "another time"
        );
        assert!(
            forged(check(&header[..header.len() - 2], BODY, "whsec_1", NOW)),
            "a part of it"
        );
        assert!(
            forged(check(&format!("t={NOW},v1="), BODY, "whsec_1", NOW)),
            "an empty one"
        );
        for now in [NOW - 301, NOW + 301] {
            assert!(
                matches!(check(&header, BODY, "whsec_1", now), Err(Error::Old(_))),
                "{now}"
            );
        }
        for header in [
            "",
            "t=1",
            &format!("v1={SIGNATURE}"),
            &format!("t={NOW},v0={SIGNATURE}"),
            "nonsense",
        ] {
            assert!(
                matches!(check(header, BODY, "whsec_1", NOW), Err(Error::Unsigned)),
                "{header}"
            );
        }
    }

    fn event(kind: &str, object: Value) -> Result<Option<Event>, Error> {
        let event = json!({ "id": "evt_1", "type": kind, "created": NOW, "data": { "object": object } });
        read(event.to_string().as_bytes())
    }

    #[test]
    fn each_event_says_what_happened_to_which_payment() {
        let price = |amount| Price::new(amount, Currency::EUR).unwrap();
        let intent = |more: Value| {
            let mut object = json!({
                "id": "pi_1", "amount": 4500, "amount_capturable": 4500, "amount_received": 4500, "currency": "eur",
                "metadata": { "checkout": "c-1", "user": "ann" },
            });
            object
                .as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            object
        };
        let charge = |refunded: i64| {
            intent(
                json!({ "id": "ch_1", "payment_intent": "pi_1", "amount_captured": 4500, "amount_refunded": refunded }),
            )
        };
        let dispute = |status: &str| json!({ "id": "du_1", "payment_intent": "pi_1", "amount": 4500, "currency": "eur", "status": status });
        let disputed = |status| What::Disputed {
            id: DisputeId::parse("du_1").unwrap(),
            amount: price(4_500),
            status,
        };
        let failure = |code, decline| json!({ "last_payment_error": { "code": code, "decline_code": decline } });
        let failed = |code| What::Failed(DeclineCode::parse(code).unwrap());
        for (kind, object, what) in [
            (
                "payment_intent.amount_capturable_updated",
                intent(json!({})),
                What::Authorized(price(4_500)),
            ),
            (
                "payment_intent.succeeded",
                intent(json!({})),
                What::Captured(price(4_500)),
            ),
            (
                "payment_intent.payment_failed",
                intent(failure("card_declined", json!("lost_card"))),
                failed("lost_card"),
            ),
            (
                "payment_intent.payment_failed",
                intent(failure("Not a code!", Value::Null)),
                failed("unspecified"),
            ),
            ("payment_intent.canceled", intent(json!({})), What::Canceled),
            ("charge.refunded", charge(500), What::Refunded(price(500))),
            ("charge.refunded", charge(4500), What::Refunded(price(4_500))),
            (
                "charge.dispute.created",
                dispute("needs_response"),
                disputed(Dispute::Open),
            ),
            (
                "charge.dispute.funds_withdrawn",
                dispute("under_review"),
                disputed(Dispute::Open),
            ),
            ("charge.dispute.closed", dispute("won"), disputed(Dispute::Won)),
            ("charge.dispute.closed", dispute("lost"), disputed(Dispute::Lost)),
        ] {
            let event = event(kind, object).unwrap().unwrap();
            assert_eq!(event.what, what, "{kind}");
            assert_eq!((event.id.as_str(), event.payment.as_str()), ("evt_1", "pi_1"), "{kind}");
            match event.buyer {
                Buyer::Known { checkout, user } => assert_eq!((checkout.as_str(), user.as_str()), ("c-1", "ann")),
                buyer => assert!(buyer == Buyer::Unsaid && kind.contains("dispute"), "{kind}: {buyer:?}"),
            }
        }
    }

    #[test]
    fn a_payment_without_both_names_is_a_strangers() {
        for metadata in [
            json!(null),
            json!({}),
            json!({ "checkout": "c-1" }),
            json!({ "user": "ann" }),
            json!({ "checkout": "", "user": "ann" }),
            json!({ "checkout": "c-1", "user": "a\u{0}n" }),
            json!({ "checkout": 1, "user": "ann" }),
        ] {
            let object = json!({ "id": "pi_1", "metadata": metadata });
            let event = event("payment_intent.canceled", object).unwrap().unwrap();
            assert_eq!(event.buyer, Buyer::Stranger, "{metadata}");
        }
    }

    #[test]
    fn what_is_none_of_ours_is_passed_over_and_what_is_broken_is_refused() {
        let released =
            json!({ "payment_intent": "pi_1", "amount_captured": 0, "amount_refunded": 4500, "currency": "eur" });
        assert!(event("charge.refunded", released).unwrap().is_none());
        assert!(event("customer.created", json!({})).unwrap().is_none());
        let foreign = json!({ "payment_intent": null, "amount": 1, "currency": "eur", "status": "lost" });
        assert!(event("charge.dispute.closed", foreign).unwrap().is_none());
        for (kind, object, wrong) in [
            (
                "payment_intent.succeeded",
                json!({ "id": "pi_1", "currency": "eur" }),
                "amount",
            ),
            (
                "payment_intent.succeeded",
                json!({ "id": "pi_1", "currency": "eur", "amount_received": -1, "amount": -1 }),
                "amount",
            ),
            (
                "payment_intent.succeeded",
                json!({ "id": "pi_1", "currency": "zzz", "amount": 1 }),
                "currency",
            ),
            ("payment_intent.canceled", json!({ "id": "" }), "id"),
            (
                "charge.refunded",
                json!({ "payment_intent": "..", "amount_refunded": 1, "currency": "eur" }),
                "payment_intent",
            ),
            (
                "charge.dispute.closed",
                json!({ "id": "du_1", "payment_intent": "pi_1", "amount": 1, "currency": "eur" }),
                "status",
            ),
        ] {
            let told = event(kind, object.clone());
            assert!(
                matches!(told, Err(Error::Incomplete(missing)) if missing == wrong),
                "{object}: {told:?}"
            );
        }
        for body in ["", "{", "[]", "null", r#"{"id":"evt_1"}"#] {
            assert!(matches!(read(body.as_bytes()), Err(Error::Unreadable(_))), "{body}");
        }
    }
}
