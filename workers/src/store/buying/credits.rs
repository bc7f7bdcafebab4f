//! The credits of a checkout: a two-phase commit around the transaction that records a fact.

use holdfast_schemas::CheckoutId;
use sqlx::PgConnection;

use super::{Buying, Written, uuid};
use crate::domain::checkout::{Checkout, CreditsChange};
use crate::store::Error;
use crate::store::credits::Changed;
use crate::store::mechanisms::two_phase::{Fate, TransactionId};

/// The result of a transaction with a change of credits.
pub(super) enum WithCredits {
    /// None: another caller was first, and neither is committed.
    Decided(Option<Written>),
    /// The user has fewer credits than were to be spent: nothing was done.
    Missing,
}

impl WithCredits {
    pub(super) fn written(self) -> Option<Written> {
        match self {
            Self::Decided(written) => written,
            Self::Missing => None,
        }
    }
}

impl Buying {
    /// Changes the user's credits together with what `here` writes. The change stands if the transition that was written asks for
    /// it.
    pub(super) async fn with_credits(
        &self,
        checkout: &Checkout,
        change: CreditsChange,
        here: impl AsyncFnOnce(&mut PgConnection) -> Result<Option<Written>, Error>,
    ) -> Result<WithCredits, Error> {
        let loyalty = self.loyalty.as_ref().ok_or(Error::NoLoyalty)?;
        let (name, by) = match change {
            CreditsChange::Spent(credits) => (SPEND.to_owned(), -credits.amount()),
            CreditsChange::Returned(credits) => (RETURN.to_owned(), credits.amount()),
            CreditsChange::Repaid { number, credits } => (repayment(number), credits.amount()),
        };
        let mut written = None;
        let decide = async |main: &mut PgConnection| {
            written = here(main).await?;
            let stands = written.as_ref().and_then(|written| written.transition.credits) == Some(change);
            Ok(if stands { Fate::Committed } else { Fate::Aborted })
        };
        let (transaction, attempt) = (transaction(&checkout.id, &name), (self.new_id)());
        let changed = loyalty
            .change(&transaction, attempt, &checkout.user, by, decide)
            .await?;
        Ok(match changed {
            Changed::Missing => WithCredits::Missing,
            Changed::Decided | Changed::Before => WithCredits::Decided(written),
        })
    }

    /// Settles credits of a try that died after it had prepared them: until then they lock the user's account.
    ///
    /// # Errors
    /// One of the databases does not answer.
    pub async fn settle_credits(&self, checkout: &Checkout) -> Result<(), Error> {
        if let (Some(_), Some(loyalty)) = (checkout.credits, &self.loyalty) {
            let repayments = (1..=checkout.repayments.len()).map(repayment);
            for name in [SPEND.to_owned(), RETURN.to_owned()].into_iter().chain(repayments) {
                loyalty.end_leftovers(&transaction(&checkout.id, &name)).await?;
            }
        }
        Ok(())
    }
}

/// The names of a checkout's changes of credits.
const SPEND: &str = "spend";
const RETURN: &str = "return";

fn repayment(number: usize) -> String {
    format!("repay/{number}")
}

fn transaction(checkout: &CheckoutId, name: &str) -> TransactionId {
    TransactionId::parse(&format!("checkout/{}/{name}", uuid(checkout))).expect("a short plain name")
}

/// The transaction that changed the credits which an entry of the ledger tells of, by its kind; none when it tells of money. Of a checkout
/// without repayments.
pub(in crate::store) fn of_entry(checkout: &CheckoutId, kind: &str) -> Option<TransactionId> {
    match kind {
        "credit" => Some(transaction(checkout, SPEND)),
        "credit_back" => Some(transaction(checkout, RETURN)),
        _ => None,
    }
}
