//! One conversation with a payment provider, as lists of steps with the answer that each must get. The answers are the same from
//! every server of the API: the kit's simulator in the proofs, a third party's in `make conformance`.

use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use holdfast::config;
use holdfast::provider::{About, Error, Order, Payment, Provider, State};
use holdfast_schemas::{CheckoutId, Currency, PaymentId, UserId};
use holdfast_tests::kit::provider::Simulator;

pub(crate) const AMOUNT: i64 = 4_500;

/// A customer's card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Card {
    Good,
    /// Its bank declines the authorisation.
    Declined,
    /// Its bank asks the customer for authentication (3D Secure).
    Asks,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    Create,
    Authorise,
    Get,
    Capture,
    Cancel,
    Refund,
    /// The customer passes or fails the authentication.
    Customer(bool),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Is(State),
    Refunded,
    Declined,
    Conflict(State),
}

pub(crate) struct Talk {
    pub(crate) name: &'static str,
    pub(crate) card: Card,
    pub(crate) steps: &'static [(Step, Seen)],
}

/// The far end of the conversation.
pub(crate) trait Party {
    /// Its name for such a card.
    async fn card(&self, card: Card) -> anyhow::Result<String>;

    async fn customer(&self, payment: &PaymentId, success: bool) -> anyhow::Result<()>;
}

impl Party for Simulator {
    async fn card(&self, card: Card) -> anyhow::Result<String> {
        Ok(String::from(match card {
            Card::Good => "pm_card_visa",
            Card::Declined => "pm_card_visa_chargeDeclined",
            Card::Asks => "pm_card_authenticationRequired",
        }))
    }

    async fn customer(&self, payment: &PaymentId, success: bool) -> anyhow::Result<()> {
        self.authenticate(payment.as_str(), success)
    }
}

const UNCONFIRMED: Seen = Seen::Is(State::Unconfirmed);
const ACTION: Seen = Seen::Is(State::ActionRequired);
const AUTHORIZED: Seen = Seen::Is(State::Authorized);
const CAPTURED: Seen = Seen::Is(State::Captured);
const CANCELED: Seen = Seen::Is(State::Canceled);

pub(crate) const TALKS: &[Talk] = &[
    Talk {
        name: "captured-and-given-back",
        card: Card::Good,
        steps: &[
            (Step::Create, UNCONFIRMED),
            (Step::Get, UNCONFIRMED),
            (Step::Authorise, AUTHORIZED),
            (Step::Get, AUTHORIZED),
            (Step::Authorise, AUTHORIZED),
            (Step::Capture, CAPTURED),
            (Step::Get, CAPTURED),
            (Step::Capture, CAPTURED),
            (Step::Authorise, CAPTURED),
            (Step::Cancel, Seen::Conflict(State::Captured)),
            (Step::Refund, Seen::Refunded),
            (Step::Get, Seen::Refunded),
            (Step::Refund, Seen::Refunded),
        ],
    },
    Talk {
        name: "let-go",
        card: Card::Good,
        steps: &[
            (Step::Create, UNCONFIRMED),
            (Step::Authorise, AUTHORIZED),
            (Step::Refund, Seen::Conflict(State::Authorized)),
            (Step::Cancel, CANCELED),
            (Step::Cancel, CANCELED),
            (Step::Capture, Seen::Conflict(State::Canceled)),
            (Step::Authorise, Seen::Conflict(State::Canceled)),
            (Step::Refund, Seen::Conflict(State::Canceled)),
        ],
    },
    Talk {
        name: "never-authorised",
        card: Card::Good,
        steps: &[
            (Step::Create, UNCONFIRMED),
            (Step::Refund, Seen::Conflict(State::Unconfirmed)),
            (Step::Cancel, CANCELED),
            (Step::Authorise, Seen::Conflict(State::Canceled)),
        ],
    },
    Talk {
        name: "declined",
        card: Card::Declined,
        steps: &[
            (Step::Create, UNCONFIRMED),
            (Step::Authorise, Seen::Declined),
            (Step::Get, UNCONFIRMED),
            (Step::Authorise, Seen::Declined),
            (Step::Cancel, CANCELED),
        ],
    },
    Talk {
        name: "proved",
        card: Card::Asks,
        steps: &[
            (Step::Create, UNCONFIRMED),
            (Step::Authorise, ACTION),
            (Step::Authorise, ACTION),
            (Step::Customer(true), AUTHORIZED),
            (Step::Authorise, AUTHORIZED),
            (Step::Capture, CAPTURED),
        ],
    },
    Talk {
        name: "not-proved",
        card: Card::Asks,
        steps: &[
            (Step::Create, UNCONFIRMED),
            (Step::Authorise, ACTION),
            (Step::Customer(false), UNCONFIRMED),
            (Step::Authorise, Seen::Declined),
            (Step::Cancel, CANCELED),
        ],
    },
    Talk {
        name: "given-up",
        card: Card::Asks,
        steps: &[
            (Step::Create, UNCONFIRMED),
            (Step::Authorise, ACTION),
            (Step::Cancel, CANCELED),
        ],
    },
];

/// Further talks, for servers that are exact about states and idempotency keys.
pub(crate) const EXACT: &[Talk] = &[Talk {
    name: "in-another-order",
    card: Card::Good,
    steps: &[
        (Step::Create, UNCONFIRMED),
        (Step::Capture, Seen::Conflict(State::Unconfirmed)),
        (Step::Create, UNCONFIRMED),
        (Step::Authorise, AUTHORIZED),
        (Step::Create, AUTHORIZED),
        (Step::Capture, CAPTURED),
        (Step::Create, CAPTURED),
    ],
}];

/// Holds every talk, each for a checkout of its own.
pub(crate) async fn hold(provider: &Provider, party: &impl Party, talks: &[Talk]) -> anyhow::Result<()> {
    for talk in talks {
        let method = party.card(talk.card).await?;
        let buyer = Buyer::new(&format!("talk-{}", talk.name), &method)?;
        let mut id = None;
        for (place, (step, expected)) in talk.steps.iter().enumerate() {
            let said = || format!("{}, step {}: {step:?}", talk.name, place + 1);
            let answer = take(provider, party, &buyer, *step, id.as_ref())
                .await
                .with_context(said)?;
            if let Ok(payment) = &answer {
                buyer.owns(payment).with_context(said)?;
                ensure!(
                    id.as_ref().is_none_or(|id| *id == payment.id),
                    "{}: {payment:?}",
                    said()
                );
                id = Some(payment.id.clone());
            }
            ensure!(
                seen(&answer) == Some(*expected),
                "{}: {answer:?}, not {expected:?}",
                said()
            );
        }
    }
    Ok(())
}

async fn take(
    provider: &Provider,
    party: &impl Party,
    buyer: &Buyer,
    step: Step,
    id: Option<&PaymentId>,
) -> anyhow::Result<Result<Payment, Error>> {
    if let Step::Create = step {
        return Ok(provider.create(&buyer.order()).await);
    }
    let (id, checkout) = (id.context("nothing was created")?, &buyer.checkout);
    Ok(match step {
        Step::Create | Step::Get => provider.get(id).await,
        Step::Authorise => provider.authorise(id, &buyer.order()).await,
        Step::Capture => provider.capture(id, checkout).await,
        Step::Cancel => provider.cancel(id, checkout).await,
        Step::Refund => provider.refund(id, checkout).await,
        Step::Customer(success) => {
            party.customer(id, success).await?;
            provider.get(id).await
        }
    })
}

fn seen(answer: &Result<Payment, Error>) -> Option<Seen> {
    match answer {
        Ok(payment) => {
            let taken = if payment.state == State::Captured {
                payment.amount
            } else {
                0
            };
            match (payment.captured == taken, payment.refunded) {
                (true, 0) => Some(Seen::Is(payment.state)),
                (true, refunded) if refunded == taken => Some(Seen::Refunded),
                _ => None,
            }
        }
        Err(Error::Declined { .. }) => Some(Seen::Declined),
        Err(Error::Conflict { state, .. }) => Some(Seen::Conflict(*state)),
        Err(_) => None,
    }
}

/// The buyer of one checkout.
pub(crate) struct Buyer {
    pub(crate) checkout: CheckoutId,
    pub(crate) user: UserId,
    /// How long ago the payment was first asked for.
    pub(crate) age: Duration,
    method: String,
}

impl Buyer {
    pub(crate) fn new(checkout: &str, method: &str) -> anyhow::Result<Buyer> {
        Ok(Buyer {
            checkout: CheckoutId::parse(checkout)?,
            // With characters that a form has to escape.
            user: UserId::parse("Änn & Bob=100%/2+2?")?,
            age: Duration::ZERO,
            method: method.to_owned(),
        })
    }

    pub(crate) fn order(&self) -> Order<'_> {
        Order {
            checkout: &self.checkout,
            user: &self.user,
            amount: AMOUNT,
            currency: Currency::EUR,
            method: &self.method,
            attempt: 0,
            customer: None,
            receipt: None,
            about: About::default(),
            age: self.age,
        }
    }

    fn owns(&self, payment: &Payment) -> anyhow::Result<()> {
        let told = (payment.amount, payment.currency, &payment.checkout, &payment.user);
        let ordered = (
            AMOUNT,
            Currency::EUR,
            &Some(self.checkout.clone()),
            &Some(self.user.clone()),
        );
        ensure!(told == ordered, "{told:?}");
        Ok(())
    }
}

/// Settings by which the adapter reaches a provider.
pub(crate) fn settings(url: &str, key: &str, timeout: Duration) -> anyhow::Result<config::Provider> {
    Ok(config::Provider {
        url: Some(url.parse().map_err(|error| anyhow!("{url}: {error}"))?),
        key: Some(key.into()),
        key_file: None,
        return_url: None,
        timeout,
        calls_per_second: Some(100_000),
        mode: None,
        shows: None,
        receipts: false,
        methods: vec!["card".to_owned()],
    })
}
