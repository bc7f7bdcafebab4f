//! The simulated provider's books: payments and their transitions, every movement of money, and the events for webhooks.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};

use crate::load::now;

/// A refused request: HTTP status and `error`.
pub(super) struct Refused {
    pub(super) status: u16,
    pub(super) error: Value,
    /// True when the provider had begun the request before it refused it, so that the answer is kept for the idempotency key.
    pub(super) kept: bool,
}

pub(super) type Answer = Result<Value, Refused>;

/// A form or a query, in order.
pub(super) type Fields = [(String, String)];

#[derive(Default)]
pub(super) struct Books {
    pub(super) payments: Vec<Payment>,
    pub(super) refunds: Vec<Refund>,
    /// Index of each payment, by id.
    places: HashMap<String, usize>,
    pub(super) ledger: Vec<Movement>,
    /// The events for webhooks, oldest first.
    pub(super) events: Vec<Value>,
    ids: u64,
}

/// One payment, as the provider knows it. Amounts are minor units.
#[derive(Clone, Debug)]
pub struct Payment {
    pub id: String,
    pub checkout: String,
    pub status: Status,
    pub amount: i64,
    pub currency: String,
    /// What the bank has set aside, if it is not all that was asked for.
    pub authorised: Option<i64>,
    pub captured: i64,
    pub refunded: i64,
    charge: Option<String>,
    /// The page to which the customer is sent back.
    pub return_url: Option<String>,
    /// The parameters of its creation.
    asked: Vec<(String, String)>,
    pub livemode: bool,
    method: Option<String>,
    failure: Option<String>,
    metadata: BTreeMap<String, String>,
    created: i64,
    disputes: Vec<Dispute>,
}

/// A refund, as the provider knows it.
#[derive(Clone, Debug)]
pub struct Refund {
    pub id: String,
    pub payment: String,
    pub amount: i64,
    pub status: RefundStatus,
    /// The number of the repayment of Holdfast's that it is, as its metadata say.
    pub repayment: Option<String>,
    currency: String,
    charge: Option<String>,
    created: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefundStatus {
    Pending,
    Succeeded,
    Failed,
}

/// A dispute of a payment: an inquiry, as long as its status begins with `warning_`.
#[derive(Clone, Debug)]
struct Dispute {
    id: String,
    amount: i64,
    status: &'static str,
    /// What was withdrawn and reinstated, one after the other.
    moved: Vec<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    RequiresPaymentMethod,
    RequiresConfirmation,
    RequiresAction,
    Processing,
    RequiresCapture,
    Canceled,
    Succeeded,
}

/// Money that moved, or an authorisation made or cancelled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Movement {
    pub payment: String,
    pub checkout: String,
    pub kind: Kind,
    pub amount: i64,
    pub currency: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Authorised,
    Released,
    Captured,
    Refunded,
    /// A refund has failed: the money came back.
    RefundFailed,
    /// Withdrawn by the customer's bank when a dispute is opened.
    Disputed,
    /// Given back after a dispute was won.
    Reinstated,
}

impl Kind {
    /// 1 where the shop gets the amount, -1 where it gives it, 0 where nothing changes hands.
    pub fn sign(self) -> i64 {
        match self {
            Kind::Authorised | Kind::Released => 0,
            Kind::Captured | Kind::RefundFailed | Kind::Reinstated => 1,
            Kind::Refunded | Kind::Disputed => -1,
        }
    }
}

impl Status {
    fn as_str(self) -> &'static str {
        match self {
            Status::RequiresPaymentMethod => "requires_payment_method",
            Status::RequiresConfirmation => "requires_confirmation",
            Status::RequiresAction => "requires_action",
            Status::Processing => "processing",
            Status::RequiresCapture => "requires_capture",
            Status::Canceled => "canceled",
            Status::Succeeded => "succeeded",
        }
    }
}

impl Books {
    /// New ids differ from those of an earlier simulator: a stack that keeps its data still has those.
    pub(super) fn open() -> Books {
        let milliseconds = now().unix_timestamp_nanos() / 1_000_000;
        Books {
            ids: u64::try_from(milliseconds).unwrap_or_default(),
            ..Books::default()
        }
    }

    pub(super) fn create(&mut self, fields: &Fields) -> Answer {
        const KNOWN: &[&str] = &[
            "amount",
            "currency",
            "capture_method",
            "payment_method",
            "payment_method_types[]",
            "payment_method_options[card][capture_method]",
            "customer",
            "receipt_email",
            "on_behalf_of",
            "transfer_data[destination]",
            "application_fee_amount",
            "statement_descriptor_suffix",
            "description",
        ];
        only(KNOWN, fields)?;
        let amount = field(fields, "amount").and_then(|text| text.parse().ok());
        let amount: i64 = amount.ok_or_else(|| invalid("parameter_invalid_integer", "amount"))?;
        if amount < 1 {
            return Err(invalid("amount_too_small", "amount"));
        }
        if amount > 99_999_999 {
            return Err(invalid("amount_too_large", "amount"));
        }
        let currency = field(fields, "currency").unwrap_or_default();
        if currency.len() != 3 {
            return Err(invalid("parameter_invalid", "currency"));
        }
        if !is_taken(currency, amount) {
            return Err(invalid("parameter_invalid_integer", "amount"));
        }
        let method = field(fields, "payment_method").map(String::from);
        if method.as_ref().is_some_and(|method| !is_known(method)) {
            return Err(invalid("resource_missing", "payment_method"));
        }
        if !is_captured_as_it_must(fields, method.as_deref().unwrap_or_default()) {
            return Err(invalid("parameter_invalid", "capture_method"));
        }
        if field(fields, "customer").is_some_and(|customer| !customer.starts_with("cus_")) {
            return Err(invalid("resource_missing", "customer"));
        }
        // Stripe takes fewer addresses than the standards allow.
        let receipt = field(fields, "receipt_email").and_then(|address| address.rsplit_once('@'));
        if receipt.is_some_and(|(_, domain)| !domain.contains('.')) {
            return Err(invalid("email_invalid", "receipt_email"));
        }
        let metadata = fields.iter().filter_map(|(name, value)| {
            let name = name.strip_prefix("metadata[")?.strip_suffix(']')?;
            Some((name.to_owned(), value.clone()))
        });
        let metadata: BTreeMap<_, _> = metadata.collect();
        let id = self.id("pi");
        let payment = Payment {
            id,
            checkout: metadata.get("holdfast_checkout").cloned().unwrap_or_default(),
            asked: fields.to_vec(),
            status: match method {
                Some(_) => Status::RequiresConfirmation,
                None => Status::RequiresPaymentMethod,
            },
            amount,
            currency: currency.to_owned(),
            authorised: None,
            captured: 0,
            refunded: 0,
            charge: None,
            return_url: None,
            livemode: false,
            method,
            failure: None,
            metadata,
            created: now().unix_timestamp(),
            disputes: vec![],
        };
        let told = payment.tell();
        self.places.insert(payment.id.clone(), self.payments.len());
        self.payments.push(payment);
        Ok(told)
    }

    /// `decline` is a reason to decline whatever the card.
    pub(super) fn confirm(&mut self, id: &str, fields: &Fields, decline: Option<&str>) -> Answer {
        only(&["return_url", "payment_method"], fields)?;
        let other = field(fields, "payment_method").map(String::from);
        let open = match &other {
            Some(_) => &[Status::RequiresConfirmation, Status::RequiresPaymentMethod][..],
            None => &[Status::RequiresConfirmation],
        };
        self.at(id, open, "confirm")?;
        if other.as_ref().is_some_and(|method| !is_known(method)) {
            return Err(invalid("resource_missing", "payment_method"));
        }
        let payment = self.payment(id);
        payment.method = other.or(payment.method.take());
        payment.failure = None;
        payment.return_url = field(fields, "return_url").map(String::from);
        let method = payment.method.clone().unwrap_or_default();
        match decline.or_else(|| declined_card(&method)) {
            Some(reason) => Err(self.decline(id, reason)),
            None if is_debit(&method) => Ok(self.change(id, "payment_intent.processing", |payment| {
                payment.status = Status::Processing;
            })),
            None if method.contains("authenticationRequired") => {
                Ok(self.change(id, "payment_intent.requires_action", |payment| {
                    payment.status = Status::RequiresAction;
                }))
            }
            None => Ok(self.authorise(id)),
        }
    }

    /// The customer passes or fails the authentication (3D Secure) that the bank asks for.
    pub(super) fn authenticate(&mut self, id: &str, success: bool) -> Answer {
        self.at(id, &[Status::RequiresAction], "authenticate")?;
        match success {
            true => Ok(self.authorise(id)),
            false => Err(self.decline(id, "authentication_failed")),
        }
    }

    /// The bank pays a debit, or returns it, which takes days.
    pub(super) fn end_debit(&mut self, id: &str, success: bool) -> Answer {
        let amount = self.at(id, &[Status::Processing], "end")?.amount;
        if !success {
            // Nobody has asked, who could be told by the answer.
            self.decline(id, "insufficient_funds");
            return Ok(Value::Null);
        }
        let charge = self.id("py");
        self.book(id, Kind::Captured, amount);
        Ok(self.change(id, "payment_intent.succeeded", |payment| {
            payment.status = Status::Succeeded;
            payment.captured = amount;
            payment.charge = Some(charge);
        }))
    }

    pub(super) fn come_through(&mut self, id: &str) -> Answer {
        self.at(id, &[Status::RequiresPaymentMethod], "confirm")?;
        Ok(self.authorise(id))
    }

    /// `amount`: `None` captures all that is authorised.
    pub(super) fn capture(&mut self, id: &str, amount: Option<i64>) -> Answer {
        let payment = self.at(id, &[Status::RequiresCapture], "capture")?;
        if payment.method.as_deref() == Some(NEVER_CAPTURED) {
            return Err(Refused {
                status: 503,
                error: json!({ "type": "api_error", "message": "Try again later." }),
                kept: false,
            });
        }
        let amount = amount.unwrap_or(payment.capturable());
        self.book(id, Kind::Captured, amount);
        Ok(self.change(id, "payment_intent.succeeded", |payment| {
            payment.status = Status::Succeeded;
            payment.captured = amount;
        }))
    }

    pub(super) fn cancel(&mut self, id: &str) -> Answer {
        let open = [
            Status::RequiresPaymentMethod,
            Status::RequiresConfirmation,
            Status::RequiresAction,
            Status::RequiresCapture,
        ];
        let (status, amount) = {
            let payment = self.at(id, &open, "cancel")?;
            (payment.status, payment.amount)
        };
        let told = self.change(id, "payment_intent.canceled", |payment| {
            payment.status = Status::Canceled;
        });
        if status == Status::RequiresCapture {
            self.book(id, Kind::Released, amount);
            let charge = self.payment(id).tell_charge();
            self.announce("charge.refunded", charge);
        }
        Ok(told)
    }

    /// A refund by the fields of a request.
    pub(super) fn refund_by(&mut self, id: &str, fields: &[(String, String)]) -> Answer {
        let field = |name: &str| {
            fields
                .iter()
                .find(|(other, _)| other == name)
                .map(|(_, value)| value.as_str())
        };
        let amount = field("amount").map(str::parse).transpose();
        let amount = amount.map_err(|_| invalid("parameter_invalid_integer", "amount"))?;
        self.refund(id, amount, field("metadata[holdfast_repayment]"))
    }

    /// The refunds of a payment, the newest first.
    pub(super) fn list_refunds(&self, id: &str) -> Answer {
        let of_payment = self.refunds.iter().rev().filter(|refund| refund.payment == id);
        let data: Vec<_> = of_payment.map(Refund::tell).collect();
        Ok(json!({ "object": "list", "url": "/v1/refunds", "has_more": false, "data": data }))
    }

    /// `amount`: `None` refunds all that is left.
    pub(super) fn refund(&mut self, id: &str, amount: Option<i64>, repayment: Option<&str>) -> Answer {
        let payment = self.find(id)?;
        if payment.status != Status::Succeeded {
            return Err(taken_up(json!({
                "type": "invalid_request_error",
                "message": "This PaymentIntent does not have a successful charge to refund.",
            })));
        }
        let left = payment.captured - payment.refunded;
        let amount = amount.unwrap_or(left);
        if left == 0 {
            let error = json!({ "type": "invalid_request_error", "code": "charge_already_refunded" });
            return Err(taken_up(error));
        }
        if payment.disputes.iter().any(Dispute::bars_refunds) {
            let error = json!({ "type": "invalid_request_error", "code": "charge_disputed" });
            return Err(taken_up(error));
        }
        if amount < 1 || amount > left {
            return Err(invalid("amount_too_large", "amount"));
        }
        if !is_taken(&payment.currency, amount) {
            return Err(invalid("parameter_invalid_integer", "amount"));
        }
        let method = payment.method.clone().unwrap_or_default();
        let is_slow = [SLOW_REFUND, FAILING_REFUND].contains(&method.as_str());
        let refund = Refund {
            payment: id.to_owned(),
            amount,
            status: if is_slow {
                RefundStatus::Pending
            } else {
                RefundStatus::Succeeded
            },
            repayment: repayment.map(str::to_owned),
            currency: payment.currency.clone(),
            charge: payment.charge.clone(),
            created: now().unix_timestamp(),
            id: self.id("re"),
        };
        self.book(id, Kind::Refunded, amount);
        let payment = self.payment(id);
        payment.refunded += amount;
        let charge = payment.tell_charge();
        let told = refund.tell();
        self.refunds.push(refund);
        self.announce("refund.created", told.clone());
        self.announce("charge.refunded", charge);
        Ok(told)
    }

    /// A refund comes to an end. One that has failed is refunded no more, and its money is back.
    pub(super) fn end_refund(&mut self, id: &str, success: bool) -> Answer {
        let place = self.refunds.iter().position(|refund| refund.id == id);
        let refund = place.map(|place| &mut self.refunds[place]);
        let refund = refund.filter(|refund| refund.status != RefundStatus::Failed);
        let refund = refund.ok_or_else(|| invalid("resource_missing", "refund"))?;
        refund.status = if success {
            RefundStatus::Succeeded
        } else {
            RefundStatus::Failed
        };
        let (payment, amount, told) = (refund.payment.clone(), refund.amount, refund.tell());
        if success {
            self.announce("refund.updated", told.clone());
        } else {
            self.book(&payment, Kind::RefundFailed, amount);
            self.payment(&payment).refunded -= amount;
            self.announce("refund.failed", told.clone());
        }
        self.announce("charge.refund.updated", told.clone());
        Ok(told)
    }

    pub(super) fn retrieve(&self, id: &str) -> Answer {
        Ok(self.find(id)?.tell())
    }

    /// Newest first.
    pub(super) fn list(&self, fields: &Fields) -> Answer {
        only(&["limit", "created[gte]", "created[lt]", "starting_after"], fields)?;
        let number =
            |name| field(fields, name).map(|text| text.parse::<i64>().map_err(|_| invalid("parameter_invalid", name)));
        let since = number("created[gte]").transpose()?.unwrap_or(0);
        let before = number("created[lt]").transpose()?.unwrap_or(i64::MAX);
        let limit = usize::try_from(number("limit").transpose()?.unwrap_or(10)).unwrap_or(0);
        if !(1..=100).contains(&limit) {
            return Err(invalid("parameter_invalid", "limit"));
        }
        let mut listed: Vec<&Payment> = self
            .payments
            .iter()
            .rev()
            .filter(|payment| (since..before).contains(&payment.created))
            .collect();
        if let Some(last) = field(fields, "starting_after") {
            let place = listed.iter().position(|payment| payment.id == last);
            let place = place.ok_or_else(|| invalid("resource_missing", "starting_after"))?;
            listed.drain(..=place);
        }
        let page: Vec<Value> = listed.iter().take(limit).map(|payment| payment.tell()).collect();
        Ok(json!({ "object": "list", "data": page, "has_more": listed.len() > limit, "url": "/v1/payment_intents" }))
    }

    /// The customer's bank asks about a payment; it takes no money.
    pub(super) fn inquire(&mut self, id: &str) -> Answer {
        self.open_dispute(id, "warning_needs_response")
    }

    /// The customer's bank opens a dispute, or makes one of an inquiry, and withdraws the money.
    pub(super) fn dispute(&mut self, id: &str) -> Answer {
        self.open_dispute(id, "needs_response")?;
        self.withdraw(id)
    }

    pub(super) fn escalate(&mut self, id: &str) -> Answer {
        let told = self.turn(id, "needs_response")?;
        self.announce("charge.dispute.updated", told);
        self.withdraw(id)
    }

    pub(super) fn close_inquiry(&mut self, id: &str) -> Answer {
        let told = self.turn(id, "warning_closed")?;
        self.announce("charge.dispute.closed", told.clone());
        Ok(told)
    }

    pub(super) fn close_dispute(&mut self, id: &str, won: bool) -> Answer {
        let mut told = self.turn(id, if won { "won" } else { "lost" })?;
        if won {
            told = self.move_disputed(id, Kind::Reinstated)?;
            self.announce("charge.dispute.funds_reinstated", told.clone());
        }
        self.announce("charge.dispute.closed", told.clone());
        Ok(told)
    }

    fn open_dispute(&mut self, id: &str, status: &'static str) -> Answer {
        let payment = self.at(id, &[Status::Succeeded], "dispute")?;
        let amount = payment.captured - payment.refunded;
        let dispute = Dispute {
            id: self.id("du"),
            amount,
            status,
            moved: vec![],
        };
        let payment = self.payment(id);
        payment.disputes.push(dispute);
        let told = payment.tell_dispute()?;
        self.announce("charge.dispute.created", told.clone());
        Ok(told)
    }

    fn withdraw(&mut self, id: &str) -> Answer {
        let told = self.move_disputed(id, Kind::Disputed)?;
        self.announce("charge.dispute.funds_withdrawn", told.clone());
        Ok(told)
    }

    /// The last dispute gets another status.
    fn turn(&mut self, id: &str, status: &'static str) -> Answer {
        self.at(id, &[Status::Succeeded], "dispute")?;
        let payment = self.payment(id);
        if let Some(dispute) = payment.disputes.last_mut() {
            dispute.status = status;
        }
        payment.tell_dispute()
    }

    /// The money of the last dispute moves.
    fn move_disputed(&mut self, id: &str, kind: Kind) -> Answer {
        let payment = self.payment(id);
        let Some(dispute) = payment.disputes.last_mut() else {
            return payment.tell_dispute();
        };
        let amount = dispute.amount;
        dispute.moved.push(kind.sign() * amount);
        let told = payment.tell_dispute();
        self.book(id, kind, amount);
        told
    }

    fn authorise(&mut self, id: &str) -> Value {
        let amount = self.payment(id).amount;
        let charge = self.id("ch");
        self.book(id, Kind::Authorised, amount);
        self.change(id, "payment_intent.amount_capturable_updated", |payment| {
            payment.status = Status::RequiresCapture;
            payment.charge = Some(charge);
            payment.failure = None;
        })
    }

    fn decline(&mut self, id: &str, reason: &str) -> Refused {
        let told = self.change(id, "payment_intent.payment_failed", |payment| {
            payment.status = Status::RequiresPaymentMethod;
            payment.method = None;
            payment.failure = Some(reason.to_owned());
        });
        let mut error = decline_error(reason);
        error["payment_intent"] = told;
        Refused {
            status: 402,
            error,
            kept: true,
        }
    }

    fn change(&mut self, id: &str, event: &str, change: impl FnOnce(&mut Payment)) -> Value {
        let payment = self.payment(id);
        change(payment);
        let told = payment.tell();
        let mut object = told.clone();
        // In an event nothing is expanded.
        object["latest_charge"] = json!(payment.charge);
        self.announce(event, object);
        told
    }

    fn announce(&mut self, kind: &str, object: Value) {
        let id = self.id("evt");
        self.events.push(json!({
            "id": id, "object": "event", "type": kind, "created": now().unix_timestamp(), "livemode": false,
            "data": { "object": object },
        }));
    }

    fn book(&mut self, id: &str, kind: Kind, amount: i64) {
        let payment = self.payment(id);
        let movement = Movement {
            payment: payment.id.clone(),
            checkout: payment.checkout.clone(),
            kind,
            amount,
            currency: payment.currency.clone(),
        };
        self.ledger.push(movement);
    }

    /// A payment that is known to exist.
    pub(super) fn payment(&mut self, id: &str) -> &mut Payment {
        let place = self.places.get(id).expect("it was found before");
        &mut self.payments[*place]
    }

    pub(super) fn find(&self, id: &str) -> Result<&Payment, Refused> {
        let place = self.places.get(id);
        place.map(|place| &self.payments[*place]).ok_or_else(|| Refused {
            status: 404,
            error: json!({
                "type": "invalid_request_error", "code": "resource_missing", "param": "intent",
                "message": format!("No such payment_intent: '{id}'"),
            }),
            kept: false,
        })
    }

    fn at(&self, id: &str, allowed: &[Status], verb: &str) -> Result<&Payment, Refused> {
        let payment = self.find(id)?;
        if allowed.contains(&payment.status) {
            return Ok(payment);
        }
        let status = payment.status.as_str();
        Err(taken_up(json!({
            "type": "invalid_request_error", "code": "payment_intent_unexpected_state", "payment_intent": payment.tell(),
            "message": format!("You cannot {verb} this PaymentIntent because it has a status of {status}."),
        })))
    }

    fn id(&mut self, prefix: &str) -> String {
        self.ids += 1;
        format!("{prefix}_{:012}", self.ids)
    }
}

impl Payment {
    fn capturable(&self) -> i64 {
        self.authorised.unwrap_or(self.amount)
    }

    fn tell(&self) -> Value {
        json!({
            "id": self.id,
            "object": "payment_intent",
            "status": self.status.as_str(),
            "amount": self.amount,
            "amount_capturable": if self.status == Status::RequiresCapture { self.capturable() } else { 0 },
            "amount_received": self.captured,
            "capture_method": self.asked_for("capture_method"),
            "customer": self.asked_for("customer"),
            "receipt_email": self.asked_for("receipt_email"),
            "client_secret": self.client_secret(),
            "created": self.created,
            "currency": self.currency,
            "last_payment_error": self.failure.as_deref().map(decline_error),
            "latest_charge": self.charge.as_ref().map(|_| self.tell_charge()),
            "livemode": self.livemode,
            "metadata": self.metadata,
            "next_action": (self.status == Status::RequiresAction).then(|| json!({ "type": "use_stripe_sdk" })),
            "payment_method": self.method,
            "on_behalf_of": self.asked_for("on_behalf_of"),
            "transfer_data": self.asked_for("transfer_data[destination]").map(|account| json!({ "destination": account })),
            "application_fee_amount": self.asked_for("application_fee_amount").and_then(|fee| fee.parse::<i64>().ok()),
        })
    }

    /// A parameter of its creation.
    pub fn asked_for(&self, name: &str) -> Option<&str> {
        field(&self.asked, name)
    }

    /// What the customer's page must show to confirm it.
    pub fn client_secret(&self) -> String {
        format!("{}_secret_{:x}", self.id, self.created)
    }

    /// As versions of the API before 2025-03-31 tell it, a cancelled authorisation is refunded, though nothing was captured; later
    /// ones do not. A reader must not mind.
    fn tell_charge(&self) -> Value {
        let is_released = self.status == Status::Canceled && self.charge.is_some();
        let refunded = if is_released { self.amount } else { self.refunded };
        json!({
            "id": self.charge,
            "object": "charge",
            "amount": self.amount,
            "amount_captured": self.captured,
            "amount_refunded": refunded,
            "captured": self.captured > 0,
            "created": self.created,
            "currency": self.currency,
            "disputed": !self.disputes.is_empty(),
            "metadata": self.metadata,
            "payment_intent": self.id,
            "refunded": is_released || self.captured > 0 && self.refunded == self.captured,
            "status": "succeeded",
        })
    }

    /// The last dispute.
    fn tell_dispute(&self) -> Answer {
        let dispute = self.disputes.last();
        let dispute = dispute.ok_or_else(|| invalid("resource_missing", "dispute"))?;
        let moved = dispute.moved.iter();
        let moved =
            moved.map(|amount| json!({ "object": "balance_transaction", "amount": amount, "type": "adjustment" }));
        Ok(json!({
            "id": dispute.id,
            "object": "dispute",
            "amount": dispute.amount,
            "balance_transactions": moved.collect::<Vec<_>>(),
            "charge": self.charge,
            "currency": self.currency,
            "is_charge_refundable": !dispute.bars_refunds(),
            "livemode": false,
            "metadata": {},
            "payment_intent": self.id,
            "reason": "fraudulent",
            "status": dispute.status,
        }))
    }
}

impl Dispute {
    /// An inquiry, and a dispute that was won, do not.
    fn bars_refunds(&self) -> bool {
        !self.status.starts_with("warning_") && self.status != "won"
    }
}

impl Refund {
    fn tell(&self) -> Value {
        let is_failed = self.status == RefundStatus::Failed;
        json!({
            "id": self.id,
            "object": "refund",
            "amount": self.amount,
            "charge": self.charge,
            "created": self.created,
            "currency": self.currency,
            "failure_reason": is_failed.then_some("expired_or_canceled_card"),
            "metadata": self.repayment.as_ref().map_or_else(|| json!({}), |number| json!({ "holdfast_repayment": number })),
            "payment_intent": self.payment,
            "pending_reason": (self.status == RefundStatus::Pending).then_some("processing"),
            "reason": null,
            "status": self.status.as_str(),
        })
    }
}

impl RefundStatus {
    fn as_str(self) -> &'static str {
        match self {
            RefundStatus::Pending => "pending",
            RefundStatus::Succeeded => "succeeded",
            RefundStatus::Failed => "failed",
        }
    }
}

/// Test cards of Stripe (4000 0000 0000 7726 and 4000 0000 0000 5126) whose refunds are pending, and succeed or fail later; here they
/// do so when [`Books::end_refund`] says so.
const SLOW_REFUND: &str = "pm_card_pendingRefund";
const FAILING_REFUND: &str = "pm_card_refundFail";

fn is_known(method: &str) -> bool {
    method.starts_with("pm_card_") || is_debit(method)
}

/// True of Stripe's test accounts for SEPA debits, such as `pm_successDelayed_de`; here they end when [`Books::end_debit`] says so.
fn is_debit(method: &str) -> bool {
    method.starts_with("pm_success") || method.starts_with("pm_failed")
}

/// Cards are captured later, whatever else may be paid by; debits cannot be.
fn is_captured_as_it_must(fields: &Fields, method: &str) -> bool {
    let cards = field(fields, "payment_method_options[card][capture_method]");
    match field(fields, "capture_method") {
        Some("manual") => !is_debit(method),
        Some("automatic") => cards == Some("manual"),
        _ => false,
    }
}

/// A card of this simulator alone: it can be authorised but never captured, so that a developer can look at a checkout that
/// stays under way.
const NEVER_CAPTURED: &str = "pm_card_captureUnavailable";

/// The decline code of a card that Stripe's page on testing names. `AmountTooLarge` is this simulator's alone: no other card would help.
fn declined_card(method: &str) -> Option<&'static str> {
    let (_, kind) = method.split_once("chargeDeclined")?;
    Some(match kind {
        "InsufficientFunds" => "insufficient_funds",
        "LostCard" => "lost_card",
        "ExpiredCard" => "expired_card",
        "AmountTooLarge" => "amount_too_large",
        _ => "generic_decline",
    })
}

fn decline_error(reason: &str) -> Value {
    let (code, decline_code) = match reason {
        "expired_card" => ("expired_card", None),
        "authentication_failed" => ("payment_intent_authentication_failure", None),
        reason => ("card_declined", Some(reason)),
    };
    json!({ "type": "card_error", "code": code, "decline_code": decline_code, "message": "Your card was declined." })
}

fn field<'a>(fields: &'a Fields, name: &str) -> Option<&'a str> {
    let found = fields.iter().find(|(key, _)| key == name);
    found.map(|(_, value)| value.as_str())
}

/// Refuses fields other than `known`, `expand` and `metadata`.
pub(super) fn only(known: &[&str], fields: &Fields) -> Result<(), Refused> {
    let is_known = |name: &str| known.contains(&name) || name == "expand[]" || name.starts_with("metadata[");
    match fields.iter().find(|(name, _)| !is_known(name)) {
        Some((name, _)) => Err(invalid("parameter_unknown", name)),
        None => Ok(()),
    }
}

fn invalid(code: &str, param: &str) -> Refused {
    Refused {
        status: 400,
        error: json!({ "type": "invalid_request_error", "code": code, "param": param }),
        kept: false,
    }
}

fn taken_up(error: Value) -> Refused {
    Refused {
        status: 400,
        error,
        kept: true,
    }
}

/// Of three decimals the last is 0.
fn is_taken(currency: &str, amount: i64) -> bool {
    let has_three = ["bhd", "jod", "kwd", "omr", "tnd"].contains(&currency.to_ascii_lowercase().as_str());
    !has_three || amount % 10 == 0
}
