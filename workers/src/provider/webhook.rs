//! The provider's webhooks: checks the signature and decodes the event. Pure: the caller has the clock and the secret.
//!
//! Stripe signs `t` (seconds since 1970), a full stop and the body with HMAC-SHA256 under the endpoint's secret, and sends it as
//! `Stripe-Signature: t=...,v1=...`; while a secret is being replaced there is one `v1` for each. Stripe signs every attempt
//! anew, so that an old `t` means a replay attack. Source: Stripe's documentation, "Verify webhook signatures manually".

use hmac::{Hmac, Mac};
use holdfast_schemas::{DeclineCode, DisputeFunds, DisputeId, DisputeStatus, EventId, Price, RefundId, RefundStatus};
use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::Sha256;
use time::{Duration, OffsetDateTime};

use super::stripe::{Wrong, buyer, refunds};
use super::{CheckoutId, Currency, PaymentId, UserId};
use crate::config::ProviderMode;

/// The header that the signatures come in.
pub const SIGNATURE: &str = "stripe-signature";

/// The `source` of the events that webhooks become.
pub const SOURCE: &str = "stripe";

/// An event of the provider about a payment of ours, as the payment was then; the same in each delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub id: EventId,
    pub created: OffsetDateTime,
    pub payment: PaymentId,
    pub what: What,
}

/// Whose payment a webhook is about; nothing else of it has been decoded.
#[derive(Debug)]
pub enum Notification {
    /// An event of no interest.
    Ignored,
    /// About a payment that somebody else made.
    Foreign,
    /// An event of the mode that the account is not in.
    OtherMode,
    /// About a payment that was made for this checkout of this user.
    Ours(Payload, CheckoutId, UserId),
    /// Refunds and disputes do not name the buyer; [`super::Provider::buyer`] tells.
    Unnamed(Payload, PaymentId),
}

/// An event that is not decoded yet.
#[derive(Debug, Clone)]
pub struct Payload {
    kind: Kind,
    id: Option<Value>,
    created: Option<Value>,
    object: Map<String, Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Authorized,
    Captured,
    Failed,
    Canceled,
    Refunded,
    RefundChanged,
    /// With the money that it says has moved.
    Disputed(Option<DisputeFunds>),
}

impl Kind {
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "payment_intent.amount_capturable_updated" => Self::Authorized,
            "payment_intent.succeeded" => Self::Captured,
            "payment_intent.payment_failed" => Self::Failed,
            "payment_intent.canceled" => Self::Canceled,
            "charge.refunded" => Self::Refunded,
            "refund.created" | "refund.updated" | "refund.failed" | "charge.refund.updated" => Self::RefundChanged,
            "charge.dispute.created" | "charge.dispute.updated" | "charge.dispute.closed" => Self::Disputed(None),
            "charge.dispute.funds_withdrawn" => Self::Disputed(Some(DisputeFunds::Withdrawn)),
            "charge.dispute.funds_reinstated" => Self::Disputed(Some(DisputeFunds::Reinstated)),
            _ => return None,
        })
    }
}

/// The change of the payment. Amounts are totals of the payment so far, unless they are those of a refund or a dispute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    Authorized(Price),
    Captured(Price),
    Failed(DeclineCode),
    /// The payment was cancelled: nothing was captured, and nothing will be.
    Canceled,
    /// The captured amount that was refunded so far.
    Refunded(Price),
    RefundChanged {
        id: RefundId,
        amount: Price,
        status: RefundStatus,
    },
    Disputed {
        id: DisputeId,
        amount: Price,
        status: DisputeStatus,
        /// The money that the event says has moved.
        funds: Option<DisputeFunds>,
    },
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

/// Tells whose payment the event is about. Only an event about a payment of ours must be decodable: other payments of the account
/// may have amounts, currencies and forms that this build does not know. Events of another mode than ours are not looked at.
///
/// # Errors
/// [`Error::Unreadable`]: the body is no event at all.
pub fn read(body: &[u8], ours: Option<ProviderMode>) -> Result<Notification, Error> {
    /// The provider sends events of many kinds and forms; all that is certain is that each names its kind.
    #[derive(Deserialize)]
    struct Envelope {
        #[serde(rename = "type")]
        kind: String,
        id: Option<Value>,
        created: Option<Value>,
        data: Option<Value>,
        livemode: Option<bool>,
    }
    let told: Envelope = serde_json::from_slice(body).map_err(Error::Unreadable)?;
    if ProviderMode::differ(told.livemode.map(ProviderMode::of_livemode), ours) {
        return Ok(Notification::OtherMode);
    }
    let Some(kind) = Kind::of(&told.kind) else {
        return Ok(Notification::Ignored);
    };
    let object = told.data.as_ref().and_then(|data| data.get("object")?.as_object());
    let payload = Payload {
        kind,
        id: told.id,
        created: told.created,
        object: object.cloned().unwrap_or_default(),
    };
    Ok(payload.told())
}

impl Payload {
    fn told(self) -> Notification {
        if matches!(self.kind, Kind::RefundChanged | Kind::Disputed(_)) {
            // Refunds and disputes have metadata of their own, not the payment's. Payments of ours have ids that can be parsed.
            return match self.payment() {
                Ok(payment) => Notification::Unnamed(self, payment),
                Err(_foreign) => Notification::Foreign,
            };
        }
        let metadata = self.object.get("metadata").and_then(Value::as_object);
        let captured = Object(&self.object).amount("amount_captured").ok();
        match buyer(metadata) {
            // Stripe reports a cancelled authorisation as refunded too; nothing was captured then.
            Some(_) if self.kind == Kind::Refunded && captured == Some(0) => Notification::Ignored,
            Some((checkout, user)) => Notification::Ours(self, checkout, user),
            None => Notification::Foreign,
        }
    }

    /// Decodes the event.
    ///
    /// # Errors
    /// [`Error::Incomplete`].
    pub fn event(&self) -> Result<Event, Error> {
        let object = Object(&self.object);
        let what = match self.kind {
            Kind::Authorized => What::Authorized(object.price("amount_capturable")?),
            Kind::Captured => What::Captured(object.price("amount_received").or_else(|_| object.price("amount"))?),
            Kind::Failed => What::Failed(object.reason()?),
            Kind::Canceled => What::Canceled,
            Kind::Refunded => What::Refunded(object.price("amount_refunded")?),
            Kind::RefundChanged => What::RefundChanged {
                id: object.parsed("id", RefundId::parse)?,
                amount: object.price("amount")?,
                status: object.refund()?,
            },
            Kind::Disputed(funds) => What::Disputed {
                id: object.parsed("id", DisputeId::parse)?,
                amount: object.price("amount")?,
                status: object.dispute()?,
                funds,
            },
        };
        let id = self.id.as_ref().and_then(Value::as_str);
        let id = id.and_then(|id| EventId::parse(id).ok());
        let created = self.created.as_ref().and_then(Value::as_i64);
        let created = created.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
        Ok(Event {
            id: id.ok_or(Error::Incomplete("id"))?,
            created: created.ok_or(Error::Incomplete("created"))?,
            payment: self.payment()?,
            what,
        })
    }

    fn payment(&self) -> Result<PaymentId, Error> {
        let name = match self.kind {
            Kind::Authorized | Kind::Captured | Kind::Failed | Kind::Canceled => "id",
            Kind::Refunded | Kind::RefundChanged | Kind::Disputed(_) => "payment_intent",
        };
        Object(&self.object).parsed(name, PaymentId::parse)
    }
}

/// The object of the event, as it was then: a PaymentIntent, a charge, a refund, or a dispute.
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

    fn refund(&self) -> Result<RefundStatus, Error> {
        let status = self.word("status").ok_or(Error::Incomplete("status"))?;
        Ok(refunds::status(status))
    }

    fn dispute(&self) -> Result<DisputeStatus, Error> {
        match self.word("status") {
            Some("warning_needs_response" | "warning_under_review") => Ok(DisputeStatus::Inquiry),
            Some("warning_closed" | "prevented") => Ok(DisputeStatus::Closed),
            Some("won") => Ok(DisputeStatus::Won),
            Some("lost") => Ok(DisputeStatus::Lost),
            Some(_) => Ok(DisputeStatus::Opened),
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

    fn told(kind: &str, object: Value) -> Notification {
        let event = json!({ "id": "evt_1", "type": kind, "created": NOW, "data": { "object": object } });
        read(event.to_string().as_bytes(), None).unwrap()
    }

    #[test]
    fn an_event_of_the_other_mode_is_not_looked_at() {
        let metadata = json!({ "checkout": "c-1", "user": "ann" });
        for (livemode, ours, is_other) in [
            (json!(true), Some(ProviderMode::Test), true),
            (json!(false), Some(ProviderMode::Live), true),
            (json!(false), Some(ProviderMode::Test), false),
            (json!(true), Some(ProviderMode::Live), false),
            (json!(true), None, false),
            (Value::Null, Some(ProviderMode::Live), false),
        ] {
            for kind in ["payment_intent.succeeded", "customer.created"] {
                let object = json!({ "id": "pi_1", "metadata": metadata });
                let event = json!({ "id": "evt_1", "type": kind, "livemode": livemode, "data": { "object": object } });
                let told = read(event.to_string().as_bytes(), ours).unwrap();
                let other = matches!(told, Notification::OtherMode);
                assert_eq!(other, is_other, "{event} {ours:?}");
            }
        }
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
        let disputed = |status, funds| What::Disputed {
            id: DisputeId::parse("du_1").unwrap(),
            amount: price(4_500),
            status,
            funds,
        };
        let refund = |status: &str| json!({ "id": "re_1", "payment_intent": "pi_1", "charge": "ch_1", "amount": 500, "currency": "eur", "status": status });
        let refunded = |status| What::RefundChanged {
            id: RefundId::parse("re_1").unwrap(),
            amount: price(500),
            status,
        };
        let (withdrawn, reinstated) = (Some(DisputeFunds::Withdrawn), Some(DisputeFunds::Reinstated));
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
            ("refund.created", refund("pending"), refunded(RefundStatus::Pending)),
            (
                "refund.created",
                refund("requires_action"),
                refunded(RefundStatus::Pending),
            ),
            ("refund.updated", refund("succeeded"), refunded(RefundStatus::Succeeded)),
            (
                "charge.refund.updated",
                refund("canceled"),
                refunded(RefundStatus::Failed),
            ),
            ("refund.failed", refund("failed"), refunded(RefundStatus::Failed)),
            (
                "charge.dispute.created",
                dispute("warning_needs_response"),
                disputed(DisputeStatus::Inquiry, None),
            ),
            (
                "charge.dispute.updated",
                dispute("warning_under_review"),
                disputed(DisputeStatus::Inquiry, None),
            ),
            (
                "charge.dispute.closed",
                dispute("warning_closed"),
                disputed(DisputeStatus::Closed, None),
            ),
            (
                "charge.dispute.created",
                dispute("needs_response"),
                disputed(DisputeStatus::Opened, None),
            ),
            (
                "charge.dispute.funds_withdrawn",
                dispute("under_review"),
                disputed(DisputeStatus::Opened, withdrawn),
            ),
            (
                "charge.dispute.funds_reinstated",
                dispute("won"),
                disputed(DisputeStatus::Won, reinstated),
            ),
            (
                "charge.dispute.closed",
                dispute("won"),
                disputed(DisputeStatus::Won, None),
            ),
            (
                "charge.dispute.closed",
                dispute("lost"),
                disputed(DisputeStatus::Lost, None),
            ),
        ] {
            let payload = match told(kind, object) {
                Notification::Ours(payload, checkout, user) => {
                    assert_eq!((checkout.as_str(), user.as_str()), ("c-1", "ann"));
                    payload
                }
                Notification::Unnamed(payload, payment) => {
                    let is_unnamed = kind.contains("dispute") || kind.contains("refund.");
                    assert!(payment.as_str() == "pi_1" && is_unnamed, "{kind}");
                    payload
                }
                told => panic!("{kind}: {told:?}"),
            };
            let event = payload.event().unwrap();
            assert_eq!(event.what, what, "{kind}");
            assert_eq!((event.id.as_str(), event.payment.as_str()), ("evt_1", "pi_1"), "{kind}");
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
            let told = told("payment_intent.canceled", object);
            assert!(matches!(told, Notification::Foreign), "{metadata}: {told:?}");
        }
    }

    #[test]
    fn of_what_does_not_concern_us_nothing_else_need_be_understood() {
        for (kind, object) in [
            ("payment_intent.succeeded", json!({})),
            ("payment_intent.succeeded", json!(null)),
            (
                "payment_intent.succeeded",
                json!({ "id": "pi_1", "currency": "eur", "amount_received": 1e300 }),
            ),
            (
                "payment_intent.succeeded",
                json!({ "id": 7, "currency": "zzz", "amount": -1, "metadata": [] }),
            ),
            (
                "payment_intent.amount_capturable_updated",
                json!({ "id": "pi_1", "metadata": { "checkout": "c-1" } }),
            ),
            ("payment_intent.payment_failed", json!({ "last_payment_error": "none" })),
            (
                "charge.refunded",
                json!({ "payment_intent": null, "amount_refunded": "much" }),
            ),
            (
                "charge.dispute.closed",
                json!({ "payment_intent": null, "amount": 1, "currency": "eur", "status": "lost" }),
            ),
            (
                "charge.dispute.created",
                json!({ "payment_intent": "..", "currency": "zzz" }),
            ),
            ("refund.created", json!({ "payment_intent": null, "amount": "much" })),
        ] {
            let told = told(kind, object.clone());
            assert!(matches!(told, Notification::Foreign), "{kind} {object}: {told:?}");
        }
        // Whether a dispute is about a payment of ours has to be asked first.
        let odd = json!({ "payment_intent": "pi_1", "amount": "much", "currency": "zzz" });
        assert!(
            matches!(told("charge.dispute.created", odd), Notification::Unnamed(_, payment) if payment.as_str() == "pi_1")
        );
        for body in [
            json!({ "type": "customer.created", "data": { "object": {} } }),
            json!({ "type": "v1.billing.meter.no_meter_found", "created": "2026-11-28T18:00:00Z", "object": "v2.core.event" }),
            json!({ "type": "payment_intent.created", "id": 1, "created": null, "data": [] }),
        ] {
            let told = read(body.to_string().as_bytes(), None).unwrap();
            assert!(matches!(told, Notification::Ignored), "{body}: {told:?}");
        }
    }

    #[test]
    fn what_is_let_go_of_is_passed_over_and_what_is_broken_of_ours_is_refused() {
        let ours = json!({ "checkout": "c-1", "user": "ann" });
        let released = json!({
            "payment_intent": "pi_1", "amount_captured": 0, "amount_refunded": 4500, "currency": "eur", "metadata": ours,
        });
        assert!(matches!(told("charge.refunded", released), Notification::Ignored));
        for (kind, object, wrong) in [
            (
                "payment_intent.succeeded",
                json!({ "id": "pi_1", "currency": "eur", "metadata": ours }),
                "amount",
            ),
            (
                "payment_intent.succeeded",
                json!({ "id": "pi_1", "currency": "eur", "amount_received": -1, "amount": -1, "metadata": ours }),
                "amount",
            ),
            (
                "payment_intent.succeeded",
                json!({ "id": "pi_1", "currency": "zzz", "amount": 1, "metadata": ours }),
                "currency",
            ),
            ("payment_intent.canceled", json!({ "id": "", "metadata": ours }), "id"),
            (
                "charge.refunded",
                json!({ "payment_intent": "..", "amount_refunded": 1, "currency": "eur", "metadata": ours }),
                "payment_intent",
            ),
            (
                "charge.dispute.closed",
                json!({ "id": "du_1", "payment_intent": "pi_1", "amount": 1, "currency": "eur" }),
                "status",
            ),
            (
                "refund.failed",
                json!({ "payment_intent": "pi_1", "amount": 1, "currency": "eur", "status": "failed" }),
                "id",
            ),
        ] {
            let (Notification::Ours(payload, ..) | Notification::Unnamed(payload, _)) = told(kind, object.clone())
            else {
                panic!("{object}");
            };
            let event = payload.event();
            assert!(
                matches!(event, Err(Error::Incomplete(missing)) if missing == wrong),
                "{object}: {event:?}"
            );
        }
        for body in ["", "{", "[]", "null", r#"{"id":"evt_1"}"#] {
            assert!(
                matches!(read(body.as_bytes(), None), Err(Error::Unreadable(_))),
                "{body}"
            );
        }
    }
}
