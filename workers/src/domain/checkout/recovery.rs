//! Checkouts as they must have been by what was told of them, for a database that was put back to an earlier time.
//!
//! Outcomes tell how a checkout was opened and how it ended, its tickets that they were sold, and the entries of the ledger what money
//! moved. What lies between is asked of the payment provider by the next step.

use holdfast_schemas::{
    CheckoutId, Credits, PaymentMethod, Price, TicketId, TicketOutcome, UserId, UserOutcome, outcomes,
};
use time::OffsetDateTime;

use super::{
    Checkout, CustomerMail, Failure, KEY_LIVES, Known, Line, Matter, Repaid, State, StuckReason, Transition, apply,
};
use crate::domain::{History, State as TicketState, Ticket, Unrecoverable};

/// What an opened checkout had beside its outcome.
#[derive(Clone, Debug)]
pub struct Opening {
    pub lines: Vec<Line>,
    pub until: OffsetDateTime,
    /// None where the request is gone.
    pub method: Option<PaymentMethod>,
}

/// What the event has changed, decided once more: the provider's reports and the shop's returns tell more than their outcomes do. None for
/// another event.
///
/// # Errors
/// It has not the outcomes that were told.
pub fn decided_again(
    checkout: &Checkout,
    matter: Matter<'_>,
    known: Known,
    told: &[&UserOutcome],
    at: OffsetDateTime,
) -> Result<Option<Transition>, Unrecoverable> {
    let fact = match matter {
        Matter::Reported(report) => checkout.hear(&report, known),
        // It was told, so the provider's limits did not forbid it then.
        Matter::Returned(returned) => checkout.hear_of_return(returned, |_| Ok(())).map(Some),
        Matter::Requested(_) | Matter::Retried(_) | Matter::Cancelled(_) => return Ok(None),
    };
    let fact = fact.ok().flatten().ok_or(Unrecoverable::MoneyMoved)?;
    let transition = apply(checkout, fact, at);
    match transition.outcomes.iter().eq(told.iter().copied()) {
        true => Ok(Some(transition)),
        false => Err(Unrecoverable::MoneyMoved),
    }
}

/// What is known of a checkout besides its outcomes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Evidence {
    /// How many of its tickets are sold by it.
    pub sold: usize,
    /// What the ledger has of its money, and of its credits.
    pub money: i64,
    pub credits: i64,
    /// What was refunded of a payment that was captured although the checkout fails.
    pub refunded: i64,
}

/// The checkout that a user opened. A payment whose request is gone is never made again: it is looked for.
///
/// # Errors
/// The tickets' prices are not what was told.
pub fn opened(
    user: &UserId,
    told: &outcomes::CheckoutOpened,
    opening: Opening,
    at: OffsetDateTime,
) -> Result<Checkout, Unrecoverable> {
    let prices: i64 = opening.lines.iter().map(|line| line.price.amount()).sum();
    let is_so = Price::new(prices, told.total.currency()) == Ok(told.total)
        && opening
            .lines
            .iter()
            .all(|line| line.price.currency() == told.total.currency());
    if !is_so {
        return Err(Unrecoverable::Astray);
    }
    let mut checkout = Checkout {
        credits: told.credits,
        method: opening.method,
        ..Checkout::new(&told.checkout, user, opening.lines, told.total, opening.until)
    };
    let called_at = if checkout.method.is_some() { at } else { at - KEY_LIVES };
    checkout.called_at = (checkout.due() > 0).then_some(called_at);
    Ok(checkout)
}

/// The checkout after one more outcome about it, and the mail that the customer gets.
///
/// # Errors
/// The outcome does not tell all that it changed.
pub fn after(checkout: Checkout, told: &UserOutcome) -> Result<(Checkout, Option<CustomerMail>), Unrecoverable> {
    let moved = |checkout: Checkout, state| Checkout {
        state,
        ask_at: None,
        unknown_since: None,
        stuck: None,
        ..checkout
    };
    Ok(match told {
        UserOutcome::CheckoutActionRequired(outcomes::CheckoutActionRequired { payment, .. }) => {
            let payment = Some(payment.clone());
            (
                Checkout {
                    payment,
                    ..moved(checkout, State::Waiting)
                },
                None,
            )
        }
        UserOutcome::CheckoutPaymentDeclined(outcomes::CheckoutPaymentDeclined { code, .. }) => {
            (moved(checkout, State::Declined(code.clone())), None)
        }
        UserOutcome::CheckoutStuck(_) => {
            let stuck = Some(StuckReason::StepFails);
            (Checkout { stuck, ..checkout }, None)
        }
        UserOutcome::CheckoutCompleted(outcomes::CheckoutCompleted { payment, .. }) => {
            let (payment, sold) = (payment.clone(), true);
            let next = moved(checkout, State::Completed);
            (Checkout { payment, sold, ..next }, Some(CustomerMail::Completed))
        }
        UserOutcome::CheckoutFailed(outcomes::CheckoutFailed { reason, code, .. }) => {
            let (reason, code) = (*reason, code.clone());
            let mut next = moved(checkout, State::Failed(Failure { reason, code }));
            if std::mem::take(&mut next.sold) {
                next = next.without(|_| true);
            }
            (next, Some(CustomerMail::Failed))
        }
        _ => return Err(Unrecoverable::MoneyMoved),
    })
}

/// The checkout with what is known besides of a sale that no outcome of the user's tells.
///
/// # Errors
/// Seats or money were told in part: nobody knows whether the rest took place.
pub fn settled(checkout: Checkout, evidence: Evidence) -> Result<Checkout, Unrecoverable> {
    let (all, spent) = (checkout.lines.len(), checkout.credits.map_or(0, Credits::amount));
    let kept = checkout.lines.iter().filter(|line| !line.returned).count();
    let left = checkout.due() - checkout.refunded;
    let repaid = checkout.repayments.iter().filter(|repayment| repayment.settled);
    let repaid = repaid.map(|repayment| match repayment.what {
        Repaid::Credits(credits) => credits.amount(),
        Repaid::Money(_) => 0,
    });
    let still_spent = spent - repaid.sum::<i64>();
    let has_ended = checkout.state.has_ended();
    let (seats, money, credits) = match checkout.state {
        State::Completed => (kept, left, still_spent),
        // The credits of one that was refunded are returned later, and no outcome tells of it.
        State::Refunded => (kept, left, if checkout.sold { evidence.credits } else { 0 }),
        State::Failed(_) => (0, 0, 0),
        _ if evidence.sold == 0 => (0, 0, 0),
        _ => (all, 0, spent),
    };
    if (evidence.sold, evidence.money, evidence.credits) != (seats, money, credits) {
        return Err(Unrecoverable::ToldInPart);
    }
    let (state, sold) = match checkout.state {
        State::Failed(failure) => (State::Failed(failure), false),
        State::Refunded => (State::Refunded, checkout.sold && (credits > 0 || spent == 0)),
        state if has_ended => (state, checkout.sold),
        _ if seats > 0 => (State::Sold, true),
        state => (state, false),
    };
    let refunded = match state {
        State::Failed(_) => evidence.refunded,
        _ => checkout.refunded,
    };
    Ok(Checkout {
        state,
        refunded,
        sold,
        ..checkout
    })
}

/// The ticket as the user held it at that moment, by all that was ever told of it, and the end of that hold, which opening a checkout may
/// have put off. None if the user did not hold it then.
pub fn held(
    ticket: &TicketId,
    user: &UserId,
    history: impl IntoIterator<Item = (TicketOutcome, i64, OffsetDateTime)>,
    at: OffsetDateTime,
) -> Option<(Line, OffsetDateTime)> {
    let (mut row, mut found): (_, Option<(Line, OffsetDateTime)>) = (None, None);
    for (told, version, changed_at) in history {
        let now = Ticket::after(row, told, version, changed_at)?;
        match &now.state {
            TicketState::Held(hold) if changed_at <= at && hold.user == *user => {
                let line = Line {
                    ticket: ticket.clone(),
                    hold: hold.id,
                    show: now.show.clone(),
                    seat: now.seat.clone(),
                    price: hold.price.unwrap_or(now.price),
                    returned: false,
                };
                found = Some((line, hold.until));
            }
            _ if changed_at <= at => found = None,
            TicketState::Held(hold) => {
                if let Some((line, until)) = &mut found
                    && line.hold == hold.id
                {
                    *until = hold.until;
                }
            }
            _ => {}
        }
        row = Some(now);
    }
    found
}

/// The checkout that an outcome is about, if it is about one.
pub fn about(told: &UserOutcome) -> Option<&CheckoutId> {
    match told {
        UserOutcome::CheckoutOpened(told) => Some(&told.checkout),
        UserOutcome::CheckoutActionRequired(told) => Some(&told.checkout),
        UserOutcome::CheckoutPaymentDeclined(told) => Some(&told.checkout),
        UserOutcome::CheckoutCompleted(told) => Some(&told.checkout),
        UserOutcome::CheckoutFailed(told) => Some(&told.checkout),
        UserOutcome::CheckoutStuck(told) => Some(&told.checkout),
        UserOutcome::OrderReturned(told) => Some(&told.checkout),
        UserOutcome::PaymentRefunded(told) => Some(&told.checkout),
        UserOutcome::PaymentRefundFailed(told) => Some(&told.checkout),
        UserOutcome::PaymentDisputed(told) => Some(&told.checkout),
        UserOutcome::UserRegistered(_)
        | UserOutcome::ProfileChanged(_)
        | UserOutcome::UserErased(_)
        | UserOutcome::CustomerLinked(_)
        | UserOutcome::CreditsChanged(_)
        | UserOutcome::PaymentRefused(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use holdfast_schemas::{CheckoutFailure, hold_id};

    use super::*;

    const AT: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn price(amount: i64) -> Price {
        Price::parse(amount, "EUR").unwrap()
    }

    fn history() -> Vec<(TicketOutcome, i64, OffsetDateTime)> {
        let (user, hold, until) = (
            "ann".parse().unwrap(),
            hold_id("shop", "1", "A-1"),
            AT + time::Duration::HOUR,
        );
        let listed = outcomes::TicketListed {
            show: "gala".parse().unwrap(),
            seat: None,
            price: price(700),
        };
        let held = outcomes::TicketHeld { user, hold, until };
        vec![(listed.into(), 1, AT), (held.into(), 2, AT)]
    }

    fn told(method: Option<PaymentMethod>) -> Result<Checkout, Unrecoverable> {
        let user: UserId = "ann".parse().unwrap();
        let (line, until) = held(&"A-1".parse().unwrap(), &user, history(), AT).unwrap();
        let told = outcomes::CheckoutOpened {
            checkout: "c-1".parse().unwrap(),
            tickets: vec!["A-1".parse().unwrap()],
            total: price(700),
            credits: Some(Credits::new(200).unwrap()),
        };
        let lines = vec![line];
        opened(&user, &told, Opening { lines, until, method }, AT)
    }

    fn completed() -> Checkout {
        let told_of = outcomes::CheckoutCompleted {
            checkout: "c-1".parse().unwrap(),
            total: price(700),
            credits: Some(Credits::new(200).unwrap()),
            payment: Some("pi_1".parse().unwrap()),
        };
        let (checkout, mail) = after(told(None).unwrap(), &told_of.into()).unwrap();
        assert_eq!(mail, Some(CustomerMail::Completed));
        checkout
    }

    #[test]
    fn a_checkout_whose_request_is_gone_looks_for_its_payment_and_makes_none() {
        let method = Some("pm_1".parse().unwrap());
        assert!(told(method).unwrap().key_lives(AT));
        let checkout = told(None).unwrap();
        assert!(!checkout.key_lives(AT) && checkout.called_at.is_some());
        assert_eq!((checkout.due(), checkout.until), (500, AT + time::Duration::HOUR));
    }

    #[test]
    fn a_hold_of_somebody_else_or_of_later_is_not_what_was_bought() {
        let (ticket, bob) = ("A-1".parse().unwrap(), "bob".parse().unwrap());
        assert_eq!(held(&ticket, &bob, history(), AT), None);
        let ann = "ann".parse().unwrap();
        assert_eq!(held(&ticket, &ann, history(), AT - time::Duration::SECOND), None);
    }

    #[test]
    fn what_ended_has_its_seats_and_money_or_stops() {
        let all = Evidence {
            sold: 1,
            money: 500,
            credits: 200,
            refunded: 0,
        };
        assert!(settled(completed(), all).is_ok_and(|checkout| checkout.sold));
        for part in [
            Evidence { sold: 0, ..all },
            Evidence { money: 0, ..all },
            Evidence { credits: 0, ..all },
        ] {
            assert_eq!(settled(completed(), part), Err(Unrecoverable::ToldInPart));
        }
        let failed = outcomes::CheckoutFailed {
            checkout: "c-1".parse().unwrap(),
            reason: CheckoutFailure::Declined,
            code: None,
        };
        let (failed, _) = after(told(None).unwrap(), &failed.into()).unwrap();
        assert_eq!(settled(failed.clone(), all), Err(Unrecoverable::ToldInPart));
        assert!(settled(failed, Evidence::default()).is_ok_and(|checkout| !checkout.sold));
    }

    #[test]
    fn a_sale_that_only_tickets_and_ledger_tell_of_goes_on_with_the_capture() {
        let sold = Evidence {
            sold: 1,
            credits: 200,
            ..Evidence::default()
        };
        let checkout = settled(told(None).unwrap(), sold).unwrap();
        assert_eq!((checkout.state, checkout.sold), (State::Sold, true));
        let open = settled(told(None).unwrap(), Evidence::default()).unwrap();
        assert_eq!((open.state, open.sold), (State::Opened, false));
    }
}
