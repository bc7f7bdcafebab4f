//! Refunds in part: each is a repayment of a checkout, whose number stands in the refund's metadata, so that it is found again when an
//! answer was lost and Stripe has forgotten the idempotency key.

use holdfast_schemas::{Price, RefundId, RefundStatus};
use hyper::Method;
use serde::Deserialize;
use uuid::Uuid;

use super::{Answered, IDEMPOTENCY, Metadata, PAGE, Page, Routed, Said, Stripe, read, read_payment, unknown};
use crate::provider::{Call, Currency, Error, MadeRefund, PaymentId, RefundOrder, State};

/// The name of a repayment's number in the metadata of its refund.
const REPAYMENT: &str = "holdfast_repayment";

/// Keys for one repayment, used one after the other where Stripe repeats a failure that it has kept; each costs two calls, again at each
/// try. More than one refund may be made of a payment, and only a key that two drivers at once have in common keeps them from
/// making two of one: so no call goes without a key, and when all of them are used up the repayment waits until Stripe forgets them.
const REPAYMENT_KEYS: u32 = 12;

/// A refund, as Stripe tells it.
#[derive(Deserialize)]
struct Told {
    id: RefundId,
    amount: i64,
    currency: String,
    status: String,
    #[serde(default)]
    metadata: Metadata,
}

impl Stripe {
    /// Makes the refund, or returns the one that an earlier call has made. Each driver goes through the same keys and past one only
    /// when Stripe repeats a failure under it. When that is all that Stripe does, and it has refused the call before, the call is refused.
    pub(in crate::provider) async fn refund_part(
        &self,
        payment: &PaymentId,
        order: &RefundOrder<'_>,
    ) -> Result<MadeRefund, Error> {
        let call = Call::Refund;
        let (number, amount) = (order.number.to_string(), order.amount.to_string());
        let body = self.fetch(call, payment).await?;
        let state = read_payment(call, &body)?.state;
        // A payment that is only authorised is never refunded: Stripe could understand such a call as something else.
        if state != State::Captured {
            return Err(Error::Conflict { call, state });
        }
        let mut fields = vec![
            ("payment_intent", payment.as_str()),
            ("amount", &amount),
            ("metadata[holdfast_repayment]", &number),
        ];
        fields.extend(read::<Routed>(call, &body)?.back());
        let mut refused = None;
        for attempt in 0..REPAYMENT_KEYS {
            // Before each call: whatever an answer that was lost has made is in the list.
            if let Some(made) = self.made(payment, &number).await? {
                return made.refund(call);
            }
            // Another amount is another call: less is asked for where others have refunded a part.
            let key = format!("repayment.{number}.{amount}:{attempt}:{}", order.checkout);
            let key = Some(Uuid::new_v5(&IDEMPOTENCY, key.as_bytes()));
            let Answered { said, replayed } = self.post(call, &["refunds"], &fields, key).await?;
            match said {
                Said::Unknown(_) if replayed => {}
                Said::Refused(message) if replayed => refused = Some(message),
                said => return read::<Told>(call, &said.done(call, Some(payment))?)?.refund(call),
            }
        }
        Err(match refused {
            Some(message) => Error::Refused { call, message },
            None => unknown(call, "an old failure is repeated"),
        })
    }

    /// The refund of a payment that was made for this repayment, if there is one.
    async fn made(&self, payment: &PaymentId, number: &str) -> Result<Option<Told>, Error> {
        let call = Call::List;
        let mut last: Option<RefundId> = None;
        loop {
            let mut query = vec![("payment_intent", payment.as_str()), ("limit", PAGE)];
            query.extend(last.as_ref().map(|last| ("starting_after", last.as_str())));
            let told = self.send(call, self.request(Method::GET, &["refunds"], &query, None));
            let page: Page<Told> = read(call, &told.await?.said.done(call, Some(payment))?)?;
            let mut refunds = page.data;
            let is_it = |told: &Told| {
                let named = told
                    .metadata
                    .as_ref()
                    .and_then(|metadata| metadata.get(REPAYMENT)?.as_str());
                named == Some(number)
            };
            if let Some(place) = refunds.iter().position(is_it) {
                return Ok(Some(refunds.swap_remove(place)));
            }
            match refunds.pop() {
                Some(told) if page.has_more => last = Some(told.id),
                _ => return Ok(None),
            }
        }
    }
}

impl Told {
    fn refund(self, call: Call) -> Result<MadeRefund, Error> {
        let currency = Currency::from_code(&self.currency.to_ascii_uppercase());
        let amount = currency.and_then(|currency| Price::new(self.amount, currency).ok());
        Ok(MadeRefund {
            id: self.id,
            amount: amount.ok_or_else(|| unknown(call, "the answer names no amount in a currency of ISO 4217"))?,
            status: status(&self.status),
        })
    }
}

/// A status that this build does not know, and one that asks for something, leave a refund on its way.
pub(in crate::provider) fn status(told: &str) -> RefundStatus {
    match told {
        "succeeded" => RefundStatus::Succeeded,
        "failed" | "canceled" => RefundStatus::Failed,
        _ => RefundStatus::Pending,
    }
}
