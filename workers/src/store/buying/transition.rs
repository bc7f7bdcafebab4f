//! What follows from a fact, written: in one transaction, against the version of the checkout that was read.

use holdfast_schemas::UserOutcome;
use sqlx::PgConnection;

use super::credits::WithCredits;
use super::{Buying, Written, id, seats, source, took_effect, transaction};
use crate::domain::checkout::{Checkout, CreditsChange, Fact, Line, Refund, Seats, Transition, apply, shows};
use crate::domain::{User, user};
use crate::store::commit::{self, Admission, Answer, Command, Unit, Work};
use crate::store::{Error, checkouts, disputes, ledger, mails, on_session, purchases, refunds, repayments};

/// The result of recording a fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// The checkout's row is this now.
    Written(Box<Checkout>),
    /// The fact changes nothing.
    Unchanged,
    /// Another caller has changed the row since it was read: nothing was written.
    Overtaken,
}

impl Buying {
    /// Writes what follows from a fact about a checkout, with all that belongs to it, or nothing.
    ///
    /// # Errors
    /// One of the databases does not answer, or others change the same rows all the time.
    pub async fn record(&self, from: &Checkout, fact: Fact) -> Result<Recorded, Error> {
        let transition = apply(from, fact, (self.now)());
        if transition.is_nothing() {
            return Ok(Recorded::Unchanged);
        }
        let write = async |main: &mut PgConnection| self.write_and_tell(main, from, transition.clone()).await;
        let written = match transition.credits {
            Some(change) => self.with_credits(from, change, write).await?.written(),
            None if transition.is_row_alone() => on_session(&self.main, Error::Write, write).await?,
            None => transaction(&self.main, write).await?,
        };
        Ok(self.recorded(written))
    }

    /// Sells the seats and spends the credits, all or nothing; what comes of it is recorded in the same transaction.
    ///
    /// # Errors
    /// As [`Buying::record`].
    pub async fn sell(&self, from: &Checkout) -> Result<Recorded, Error> {
        let sell = async |main: &mut PgConnection| self.sell_within(main, from).await;
        let Some(credits) = from.credits else {
            let written = transaction(&self.main, sell).await?;
            return Ok(self.recorded(written));
        };
        match self.with_credits(from, CreditsChange::Spent(credits), sell).await? {
            WithCredits::Decided(written) => Ok(self.recorded(written)),
            WithCredits::Missing => self.record(from, Fact::CreditsMissing).await,
        }
    }

    async fn sell_within(&self, main: &mut PgConnection, from: &Checkout) -> Result<Option<Written>, Error> {
        if !checkouts::lock_version(main, from).await? {
            return Ok(None);
        }
        let (fact, answers) = seats::sell(main, from, self.terms.show_limit).await?;
        let transition = apply(from, fact, (self.now)());
        let written = self.write_and_tell(main, from, transition).await?;
        let mut written = written.ok_or(Error::Moved)?;
        written.answers.extend(answers);
        Ok(Some(written))
    }

    /// Records that the provider has made a refund of a repayment; none where nothing was left to refund.
    ///
    /// # Errors
    /// As [`Buying::record`].
    pub async fn refund_made(&self, from: &Checkout, number: usize, made: Option<Refund>) -> Result<Recorded, Error> {
        let write = async |main: &mut PgConnection| {
            if !checkouts::lock_version(main, from).await? {
                return Ok(None);
            }
            let made = match &made {
                Some(refund) => Some((refund.clone(), refunds::known(main, from, Some(&refund.id)).await?)),
                None => None,
            };
            let transition = apply(from, Fact::RefundMade { number, made }, (self.now)());
            self.write_and_tell(main, from, transition).await
        };
        let written = transaction(&self.main, write).await?;
        Ok(self.recorded(written))
    }

    /// Writes a transition and tells its outcomes in the checkout's own name. None when another caller was first.
    async fn write_and_tell(
        &self,
        main: &mut PgConnection,
        from: &Checkout,
        transition: Transition,
    ) -> Result<Option<Written>, Error> {
        let Some(mut answers) = self.write(main, from, &transition).await? else {
            return Ok(None);
        };
        if let Some(first) = transition.outcomes.first() {
            let unit = Unit {
                key: from.user.clone(),
                work: vec![Work::Command(Command {
                    source: source(),
                    id: id(from, &place(from, first)),
                    input: user::Input::Tell(transition.outcomes.clone()),
                    trace: from.trace.clone(),
                })],
            };
            let answer = first_answer(commit::within(main, &user::decide, self.admission, &[unit]).await?);
            if !took_effect(&answer) {
                return Err(Error::Moved);
            }
            answers.push(answer);
        }
        let transition = Box::new(transition);
        Ok(Some(Written { transition, answers }))
    }

    /// Writes a transition, whose outcomes are told in the same transaction, against the version that was read. Returns the
    /// answers of the tickets, or none when another caller was first: then nothing is written.
    pub(super) async fn write(
        &self,
        main: &mut PgConnection,
        from: &Checkout,
        transition: &Transition,
    ) -> Result<Option<Vec<Answer>>, Error> {
        if let Some(next) = &transition.next {
            if !checkouts::update(main, from, next).await? {
                return Ok(None);
            }
            repayments::write(main, from, next).await?;
        }
        let answers = match transition.seats {
            Seats::Kept => vec![],
            Seats::HeldUntil(until) => seats::lengthen(main, from, until).await?,
            Seats::Returned { resell } => {
                let lines = returned(from, transition);
                purchases::take_off(main, &from.user, &shows(&lines)).await?;
                seats::take_back(main, from, &lines, resell).await?
            }
        };
        ledger::write(main, self.new_id, from, &transition.movements, (self.now)()).await?;
        for mail in &transition.mails {
            mails::write(main, from, *mail, self.mails).await?;
        }
        if let Some(refund) = &transition.refund {
            refunds::write(main, refund).await?;
        }
        if let Some(dispute) = &transition.dispute {
            disputes::write(main, dispute).await?;
        }
        Ok(Some(answers))
    }

    /// Counts what was committed.
    fn recorded(&self, written: Option<Written>) -> Recorded {
        let Some(Written { transition, answers }) = written else {
            return Recorded::Overtaken;
        };
        self.count(&answers, &transition.outcomes);
        match transition.next {
            Some(next) => Recorded::Written(Box::new(next)),
            None => Recorded::Unchanged,
        }
    }
}

/// Tells the outcomes of an event about a checkout, under the event's own id. A repeat gets the first answer.
pub(super) async fn tell(
    main: &mut PgConnection,
    unit: &Unit<User>,
    told: &[UserOutcome],
    admission: Admission,
) -> Result<Answer, Error> {
    let rules = user::telling(told.to_vec());
    let answers = commit::within(main, &rules, admission, std::slice::from_ref(unit)).await?;
    Ok(first_answer(answers))
}

/// The name of a checkout's own outcome, different for each.
fn place(from: &Checkout, told: &UserOutcome) -> String {
    match told {
        UserOutcome::CheckoutCompleted(_) => "completed".to_owned(),
        UserOutcome::CheckoutFailed(_) => "failed".to_owned(),
        UserOutcome::PaymentRefunded(_) => format!("refunded/{}", from.version),
        UserOutcome::CheckoutPaymentDeclined(_) => format!("declined/{}", from.version),
        // It may be asked for again after the bank has worked on it.
        UserOutcome::CheckoutActionRequired(_) => format!("action/{}", from.version),
        // It may get stuck again after an operator has resumed it.
        _ => format!("stuck/{}", from.version),
    }
}

/// The tickets that a transition returns.
fn returned(from: &Checkout, transition: &Transition) -> Vec<Line> {
    let next = transition.next.iter().flat_map(|next| &next.lines);
    let lines = next
        .zip(&from.lines)
        .filter(|(next, from)| next.returned && !from.returned);
    lines.map(|(next, _)| next.clone()).collect()
}

fn first_answer(answers: Vec<Answer>) -> Answer {
    let answer = answers.into_iter().next();
    answer.expect("every piece of work is answered")
}
