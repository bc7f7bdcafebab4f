//! The payments at the provider, compared with the database's checkouts: each that has ended must have the same money, to
//! the last minor unit, and no open authorisation.

use std::collections::{BTreeMap, HashMap, HashSet};

use holdfast_schemas::{CheckoutId, Currency};
use time::OffsetDateTime;

use super::report::{Promise, Report};
use crate::provider::{Payment, State};

/// Every checkout, also one for which the provider was never called as far as the database knows.
#[derive(Default)]
pub(super) struct Payments {
    checkouts: HashMap<CheckoutId, Booked>,
    /// The time of the earliest call to the provider for one of them.
    pub(super) since: Option<OffsetDateTime>,
    /// The provider's payments for checkouts that the snapshot does not have: in a live system these may be younger.
    strangers: BTreeMap<CheckoutId, (Promise, String)>,
}

/// One checkout, in minor units of its currency.
struct Booked {
    row: Row,
    /// What was captured and not refunded, by the provider's payments so far.
    told: i64,
    told_disputed: bool,
}

/// The database's disputes of a checkout.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Disputes {
    None,
    /// All were won, or inquiries: the provider may report the payment as disputed or not.
    Harmless,
    /// One was lost, or is undecided.
    Standing,
}

impl Disputes {
    pub(super) fn new(all: i64, harmless: i64) -> Self {
        match (all, all - harmless) {
            (0, _) => Self::None,
            (_, 0) => Self::Harmless,
            _ => Self::Standing,
        }
    }
}

/// What a checkout has in the database.
#[derive(Clone, Copy)]
pub(super) struct Row {
    pub(super) since: OffsetDateTime,
    pub(super) currency: Currency,
    pub(super) ended: bool,
    /// Captured and not refunded, by the ledger. A disputed amount counts: the provider reports it elsewhere.
    pub(super) kept: i64,
    /// Refunds on their way: the provider counts them as refunded, the ledger has them once they have succeeded.
    pub(super) pending: i64,
    pub(super) disputes: Disputes,
}

impl Payments {
    pub(super) fn book(&mut self, checkout: CheckoutId, row: Row) {
        let since = row.since;
        self.since = Some(self.since.map_or(since, |earliest| earliest.min(since)));
        let booked = Booked {
            row,
            told: 0,
            told_disputed: false,
        };
        self.checkouts.insert(checkout, booked);
    }

    /// Records one payment. It was read later than the database: a checkout that had ended has not changed since.
    pub(super) fn hear(&mut self, payment: &Payment, report: &mut Report) {
        // A payment that Holdfast did not make.
        let Some(checkout) = &payment.checkout else { return };
        let open = payment.state == State::Authorized;
        let kept = payment.captured - payment.refunded;
        let key = checkout.as_str();
        let Some(booked) = self.checkouts.get_mut(checkout) else {
            let (id, never) = (&payment.id, "for a checkout that was never opened");
            let found = match open {
                true => (
                    Promise::OpenAuthorisations,
                    format!("the payment provider has set money aside by {id}, {never}"),
                ),
                false if kept != 0 => (
                    Promise::MoneyMismatch,
                    format!("the payment provider took {kept} by {id}, {never}"),
                ),
                false => return,
            };
            self.strangers.insert(checkout.clone(), found);
            return;
        };
        if payment.currency != booked.row.currency {
            report.broken(Promise::MoneyMismatch, key, || {
                format!("{} is not in the currency of the checkout", payment.id)
            });
        }
        booked.told += kept;
        booked.told_disputed |= payment.disputed;
        if booked.row.ended && open {
            report.broken(Promise::OpenAuthorisations, key, || {
                format!("the checkout has ended, but money is still set aside by {}", payment.id)
            });
        }
    }

    /// The checkouts that were not known.
    pub(super) fn strangers(&self) -> Vec<&str> {
        self.strangers.keys().map(CheckoutId::as_str).collect()
    }

    /// Judges, once all payments were recorded. `younger`: the strangers that the database has by now.
    pub(super) fn judge(&self, younger: &HashSet<String>, report: &mut Report) {
        let strangers = self.strangers.iter();
        for (checkout, (promise, what)) in strangers.filter(|(checkout, _)| !younger.contains(checkout.as_str())) {
            report.broken(*promise, checkout.as_str(), || what.clone());
        }
        for (checkout, booked) in self.checkouts.iter().filter(|(_, booked)| booked.row.ended) {
            let Booked { row, told, .. } = booked;
            let Row { kept, pending, .. } = row;
            if !(kept - pending..=*kept).contains(told) {
                report.broken(Promise::MoneyMismatch, checkout.as_str(), || {
                    let on_its_way = match pending {
                        0 => String::new(),
                        pending => format!(", {pending} of it on its way back"),
                    };
                    format!("the ledger says that {kept} was taken and not given back, in minor units{on_its_way}, but the payment provider says {told}")
                });
            }
            let missing = match (row.disputes, booked.told_disputed) {
                (Disputes::None, true) => "the payment provider says that it is disputed, but no dispute was heard of",
                (Disputes::Standing, false) => "it is disputed, but the payment provider does not say so",
                _ => continue,
            };
            report.broken(Promise::MoneyMismatch, checkout.as_str(), || missing.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_schemas::PaymentId;

    use super::*;

    /// The offences of a checkout that has ended, or not, with its payment at the provider.
    fn compared(ended: bool, kept: i64, payment: Option<(State, i64, i64)>) -> (u64, u64) {
        let (mut payments, mut report) = (Payments::default(), Report::default());
        payments.book(checkout("c-1"), Row { ended, ..row(kept) });
        if let Some((state, captured, refunded)) = payment {
            payments.hear(&told("c-1", state, captured, refunded), &mut report);
        }
        payments.judge(&HashSet::new(), &mut report);
        (report.money_mismatch, report.open_authorisations)
    }

    /// A checkout that has ended.
    fn row(kept: i64) -> Row {
        Row {
            since: OffsetDateTime::UNIX_EPOCH,
            currency: Currency::EUR,
            ended: true,
            kept,
            pending: 0,
            disputes: Disputes::None,
        }
    }

    #[test]
    fn a_refund_on_its_way_is_refunded_to_the_provider_and_not_yet_to_the_ledger() {
        for (kept, pending, refunded, named) in [
            (100, 30, 30, 0),
            (100, 30, 0, 0),
            (100, 30, 31, 1),
            (70, 30, 30, 0),
            (70, 30, 0, 1),
            // It has failed: the money is here again.
            (100, 0, 0, 0),
            (100, 0, 30, 1),
        ] {
            let (mut payments, mut report) = (Payments::default(), Report::default());
            payments.book(checkout("c-1"), Row { pending, ..row(kept) });
            payments.hear(&told("c-1", State::Captured, 100, refunded), &mut report);
            payments.judge(&HashSet::new(), &mut report);
            assert_eq!(report.money_mismatch, named, "{kept} {pending} {refunded}");
        }
    }

    fn told(of: &str, state: State, captured: i64, refunded: i64) -> Payment {
        Payment {
            id: PaymentId::parse("pi_1").unwrap(),
            state,
            amount: 100,
            currency: Currency::EUR,
            authorised: captured,
            captured,
            refunded,
            disputed: false,
            failure: None,
            checkout: Some(checkout(of)),
            user: None,
        }
    }

    fn checkout(id: &str) -> CheckoutId {
        CheckoutId::parse(id).unwrap()
    }

    #[test]
    fn what_has_ended_must_agree_to_the_last_minor_unit() {
        assert_eq!(compared(true, 100, Some((State::Captured, 100, 0))), (0, 0));
        assert_eq!(compared(true, 30, Some((State::Captured, 100, 70))), (0, 0));
        assert_eq!(compared(true, 0, Some((State::Canceled, 0, 0))), (0, 0));
        assert_eq!(compared(true, 0, None), (0, 0));
        assert_eq!(compared(true, 99, Some((State::Captured, 100, 0))), (1, 0));
        assert_eq!(compared(true, 100, Some((State::Canceled, 0, 0))), (1, 0));
        assert_eq!(compared(true, 100, None), (1, 0));
        assert_eq!(compared(true, 0, Some((State::Authorized, 0, 0))), (0, 1));
    }

    #[test]
    fn what_has_not_ended_is_left_alone() {
        assert_eq!(compared(false, 0, Some((State::Authorized, 0, 0))), (0, 0));
        assert_eq!(compared(false, 0, Some((State::Captured, 100, 0))), (0, 0));
    }

    #[test]
    fn a_payment_for_a_checkout_that_never_was_is_named() {
        let (mut payments, mut report) = (Payments::default(), Report::default());
        payments.hear(&told("c-2", State::Authorized, 0, 0), &mut report);
        payments.hear(&told("c-3", State::Captured, 100, 0), &mut report);
        payments.hear(&told("c-4", State::Captured, 100, 100), &mut report);
        payments.hear(&told("c-5", State::Captured, 100, 0), &mut report);
        assert_eq!(payments.strangers(), ["c-2", "c-3", "c-5"]);
        // One was opened after the database was read.
        payments.judge(&HashSet::from(["c-5".to_owned()]), &mut report);
        assert_eq!((report.money_mismatch, report.open_authorisations), (1, 1));
        assert_eq!(report.offence(Promise::MoneyMismatch).unwrap().key, "c-3");
    }

    #[test]
    fn a_payment_in_another_currency_is_named() {
        let (mut payments, mut report) = (Payments::default(), Report::default());
        let currency = Currency::USD;
        payments.book(checkout("c-1"), Row { currency, ..row(100) });
        payments.hear(&told("c-1", State::Captured, 100, 0), &mut report);
        assert_eq!(report.money_mismatch, 1);
    }

    #[test]
    fn a_dispute_that_only_one_of_both_knows_of_is_named() {
        for (all, won, theirs, named) in [
            (0, 0, false, 0),
            (0, 0, true, 1),
            (1, 0, false, 1),
            (1, 0, true, 0),
            (2, 1, false, 1),
            (1, 1, false, 0),
            (1, 1, true, 0),
        ] {
            let (mut payments, mut report) = (Payments::default(), Report::default());
            let disputes = Disputes::new(all, won);
            payments.book(checkout("c-1"), Row { disputes, ..row(100) });
            let payment = Payment {
                disputed: theirs,
                ..told("c-1", State::Captured, 100, 0)
            };
            payments.hear(&payment, &mut report);
            payments.judge(&HashSet::new(), &mut report);
            assert_eq!(report.money_mismatch, named, "{all} {won} {theirs}");
        }
    }
}
