//! The checkouts and their money, by the outcomes: the payment provider's books must say the same, to the last cent.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use holdfast_tests::kit::provider::Simulator;
use holdfast_tests::load::{Outcome, Tally};
use tokio::time::Instant;

#[derive(Default)]
pub(super) struct Money {
    orders: BTreeMap<String, Order>,
    failed: Tally,
    declines: u64,
    /// Payments that their customers had to confirm.
    confirmations: u64,
    /// Checkouts that were refunded, or are to be, and have no outcome that says so yet.
    regretted: BTreeSet<String>,
    /// Outcomes that customers get a mail about.
    mails: usize,
    /// Time of each checkout from its request to its end.
    took: Vec<Duration>,
}

/// One checkout, in cents.
struct Order {
    tickets: Vec<String>,
    /// Those that the shop has taken back.
    returned: BTreeSet<String>,
    total: i64,
    credits: i64,
    refunded: i64,
    fate: Fate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Open,
    Completed,
    Failed,
    /// Paid, then refunded in full.
    Refunded,
}

/// A checkout to refund.
pub(super) struct Regret {
    pub(super) checkout: String,
    /// The amount to refund, in cents.
    pub(super) amount: i64,
}

impl Money {
    /// Records an outcome about a checkout; `asked`: when the checkout was requested.
    pub(super) fn outcome(&mut self, outcome: &Outcome, asked: Option<Instant>, at: Instant) -> anyhow::Result<()> {
        let told = &outcome.data;
        let Some(checkout) = &told.checkout else { return Ok(()) };
        if outcome.verb() == "opened" {
            let order = Order {
                tickets: told.tickets.clone(),
                returned: BTreeSet::new(),
                total: told.total.as_ref().context("a checkout without a price")?.amount,
                credits: told.credits.unwrap_or_default(),
                refunded: 0,
                fate: Fate::Open,
            };
            let other = self.orders.insert(checkout.clone(), order);
            ensure!(other.is_none(), "checkout {checkout} is opened twice");
            return Ok(());
        }
        let order = self.orders.get_mut(checkout);
        let order = order.with_context(|| format!("{} of {checkout}, which was never opened", outcome.kind))?;
        match outcome.verb() {
            "payment_declined" => self.declines += 1,
            "action_required" => self.confirmations += 1,
            "returned" => {
                order.returned.extend(told.tickets.iter().cloned());
                if told.refund.as_ref().is_some_and(|refund| refund["amount"] != 0) {
                    self.regretted.insert(checkout.clone());
                }
            }
            _ => return self.moved(outcome, asked, at),
        }
        Ok(())
    }

    /// Records an outcome that changes a checkout's fate or its money.
    fn moved(&mut self, outcome: &Outcome, asked: Option<Instant>, at: Instant) -> anyhow::Result<()> {
        let told = &outcome.data;
        let checkout = told.checkout.as_ref().context("an outcome without a checkout")?;
        let order = self
            .orders
            .get_mut(checkout)
            .context("a checkout that was never opened")?;
        let (before, after) = match outcome.verb() {
            "completed" => (Fate::Open, Fate::Completed),
            "failed" => (Fate::Open, Fate::Failed),
            "refunded" if told.full == Some(true) => (Fate::Completed, Fate::Refunded),
            "refunded" => (Fate::Completed, Fate::Completed),
            other => bail!("checkout {checkout} is {other}"),
        };
        ensure!(
            order.fate == before,
            "checkout {checkout} was {:?} and is {after:?}",
            order.fate
        );
        order.fate = after;
        self.mails += 1;
        self.regretted.remove(checkout);
        order.refunded += told.amount.as_ref().map_or(0, |amount| amount.amount);
        if before == Fate::Open {
            self.took.extend(asked.map(|asked| at.duration_since(asked)));
        }
        if let (Fate::Failed, Some(reason)) = (after, &told.reason) {
            self.failed.add(reason);
        }
        Ok(())
    }

    /// The tickets of a checkout.
    pub(super) fn tickets(&self, checkout: &str) -> &[String] {
        self.orders.get(checkout).map_or(&[], |order| &order.tickets)
    }

    pub(super) fn ended(&self) -> usize {
        self.orders.len() - self.count(Fate::Open)
    }

    /// Records that this checkout was refunded at the provider.
    pub(super) fn regret(&mut self, checkout: &str) {
        self.regretted.insert(checkout.to_owned());
    }

    /// True once every checkout has ended and every refund has its outcome.
    pub(super) fn is_settled(&self) -> bool {
        self.open() == 0 && self.regretted.is_empty()
    }

    /// Mails that customers must get: one for each end of a checkout, and one for each refund.
    pub(super) fn mails(&self) -> usize {
        self.mails
    }

    pub(super) fn open(&self) -> usize {
        self.count(Fate::Open)
    }

    /// The seats that must be sold.
    pub(super) fn seats(&self) -> BTreeSet<&String> {
        let bought = self.orders.values().filter(|order| order.fate == Fate::Completed);
        let kept = bought.flat_map(|order| order.tickets.iter().filter(|ticket| !order.returned.contains(*ticket)));
        kept.collect()
    }

    /// Captured and not refunded, in cents.
    pub(super) fn revenue(&self) -> i64 {
        self.orders.values().map(Order::kept).sum()
    }

    /// Chooses checkouts to refund: some in full, others in part.
    pub(super) fn regrets(&self, count: usize, part: i64) -> Vec<Regret> {
        let bought = self.orders.iter().filter(|(_, order)| order.fate == Fate::Completed);
        let regretted = bought.take(count).enumerate().map(|(place, (checkout, order))| Regret {
            checkout: checkout.clone(),
            amount: if place % 2 == 0 { order.due() } else { part },
        });
        regretted.collect()
    }

    /// Orders of several seats of which nothing was given back, each with a seat.
    pub(super) fn several(&self, count: usize) -> Vec<(String, String)> {
        let bought = self.orders.iter().filter(|(_, order)| order.fate == Fate::Completed);
        let several = bought.filter(|(_, order)| order.tickets.len() > 1 && order.refunded == 0);
        let several = several.map(|(checkout, order)| (checkout.clone(), order.tickets[0].clone()));
        several.take(count).collect()
    }

    pub(super) fn rows(&self) -> Vec<(&'static str, String, String)> {
        let completed = self.count(Fate::Completed) + self.count(Fate::Refunded);
        let sum = |what: fn(&Order) -> i64| self.orders.values().map(what).sum::<i64>();
        let paid = |order: &Order| if order.was_paid() { order.due() } else { 0 };
        let spent = |order: &Order| {
            if order.fate == Fate::Completed {
                order.credits
            } else {
                0
            }
        };
        let refunds = self.orders.values().filter(|order| order.refunded > 0).count();
        vec![
            (
                "checkouts",
                self.orders.len().to_string(),
                String::from("asked for by those who held seats"),
            ),
            (
                "  completed",
                completed.to_string(),
                format!("{} by card, and {} of credits", euros(sum(paid)), euros(sum(spent))),
            ),
            (
                "  declined",
                self.declines.to_string(),
                String::from("cards; their buyers gave another one, or gave up"),
            ),
            (
                "  confirmed",
                self.confirmations.to_string(),
                String::from("by their customers, as their banks asked (3-D Secure)"),
            ),
            ("  failed", self.failed.total().to_string(), self.failed.to_string()),
            (
                "  stuck",
                self.open().to_string(),
                String::from("nobody has to look after one"),
            ),
            (
                "refunds",
                euros(sum(|order| order.refunded)),
                format!("in {refunds} orders: all or a part"),
            ),
            (
                "seats returned",
                self.orders
                    .values()
                    .map(|order| order.returned.len())
                    .sum::<usize>()
                    .to_string(),
                String::from("taken back by the shop, those of the cancelled show among them"),
            ),
            (
                "revenue",
                euros(self.revenue()),
                String::from("as the provider's books have it"),
            ),
        ]
    }

    /// Time of each checkout from its request to its end.
    pub(super) fn took(&mut self) -> &mut [Duration] {
        &mut self.took
    }

    /// Compares the provider's books with the outcomes, checkout by checkout.
    pub(super) fn compare(&self, provider: &Simulator) -> anyhow::Result<()> {
        let mut theirs: BTreeMap<String, i64> = BTreeMap::new();
        for movement in provider.ledger() {
            *theirs.entry(movement.checkout).or_default() += movement.kind.sign() * movement.amount;
        }
        for (checkout, order) in &self.orders {
            let (ours, theirs) = (order.kept(), theirs.remove(checkout).unwrap_or_default());
            ensure!(
                ours == theirs,
                "{checkout}: the outcomes say that {ours} was kept, the provider says {theirs}"
            );
        }
        ensure!(
            theirs.values().all(|money| *money == 0),
            "the provider took money for no checkout: {theirs:?}"
        );
        let open = provider.open_authorisations();
        ensure!(open.is_empty(), "the provider still has money set aside: {open:?}");
        Ok(())
    }

    fn count(&self, fate: Fate) -> usize {
        self.orders.values().filter(|order| order.fate == fate).count()
    }
}

impl Order {
    fn due(&self) -> i64 {
        self.total - self.credits
    }

    fn was_paid(&self) -> bool {
        matches!(self.fate, Fate::Completed | Fate::Refunded)
    }

    fn kept(&self) -> i64 {
        if self.was_paid() { self.due() - self.refunded } else { 0 }
    }
}

pub(super) fn euros(cents: i64) -> String {
    format!("{}.{:02} EUR", cents / 100, cents % 100)
}
