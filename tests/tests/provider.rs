//! The payment provider's adapter: its requests and its reading of answers; no fault makes a payment twice or loses its state.

mod conversation;
mod receiver;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use futures::future::try_join_all;
use holdfast::metrics::Metrics;
use holdfast::provider::webhook::What;
use holdfast::provider::{Error, Payment, Provider, RefundOrder, State};
use holdfast_schemas::{CheckoutId, Currency, DisputeFunds, DisputeStatus, PaymentId, Price, RefundId, RefundStatus};
use holdfast_tests::kit::provider::{Call, Delivery, Fault, KEY, Kind, Simulator};
use holdfast_tests::kit::{Kit, until};
use holdfast_tests::load::now;

use crate::support::DEADLINE;
use crate::{Test, tests};
use conversation::{AMOUNT, Buyer, EXACT, TALKS, hold, settings};
use receiver::{Receiver, SECRET};

pub(crate) const TESTS: &[Test] = tests![
    the_simulator_answers_as_real_servers_do,
    whatever_breaks_in_whichever_call_money_moves_once_and_its_fate_can_be_asked,
    a_failure_that_the_provider_repeats_does_not_hold_up_a_step,
    however_often_a_step_has_failed_it_is_taken_once_the_provider_is_well,
    what_was_done_by_hand_while_a_step_fails_is_noticed,
    a_repayment_that_is_refused_again_and_again_stays_refused_and_is_made_once,
    a_call_that_is_still_under_way_is_not_made_twice,
    a_payment_is_found_among_many_after_its_key_is_forgotten,
    what_no_repetition_mends_is_said_at_once,
    calls_wait_for_their_turn_and_for_a_provider_that_has_too_many,
    under_faults_at_random_the_books_agree_to_the_last_cent,
    what_happens_to_a_payment_is_told_signed_until_it_is_acknowledged,
];

const PATIENCE: Duration = Duration::from_secs(5);

fn provider(simulator: &Simulator, patience: Duration) -> anyhow::Result<(Provider, Arc<Metrics>)> {
    let metrics = Arc::new(Metrics::new()?);
    let settings = settings(&simulator.url(), KEY, patience)?;
    let provider = Provider::new(&settings, metrics.clone())?;
    Ok((provider.context("no provider")?, metrics))
}

fn the_simulator_answers_as_real_servers_do(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let simulator = Simulator::start().await?;
        let (provider, _) = provider(&simulator, PATIENCE)?;
        hold(&provider, &simulator, TALKS).await?;
        hold(&provider, &simulator, EXACT).await?;
        let open = simulator.open_authorisations();
        ensure!(open.is_empty(), "{open:?}");
        Ok(())
    })
}

/// A step of a checkout at the provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Create,
    Authorise,
    Capture,
    Cancel,
    Refund,
}

impl Step {
    fn call(self) -> Call {
        match self {
            Step::Create => Call::Create,
            Step::Authorise => Call::Confirm,
            Step::Capture => Call::Capture,
            Step::Cancel => Call::Cancel,
            Step::Refund => Call::Refund,
        }
    }

    fn goal(self) -> State {
        match self {
            Step::Create => State::Unconfirmed,
            Step::Authorise => State::Authorized,
            Step::Capture | Step::Refund => State::Captured,
            Step::Cancel => State::Canceled,
        }
    }
}

const SALE: &[Step] = &[Step::Create, Step::Authorise, Step::Capture, Step::Refund];
const LET_GO: &[Step] = &[Step::Create, Step::Authorise, Step::Cancel];

const SOLD: &[(Kind, i64)] = &[
    (Kind::Authorised, AMOUNT),
    (Kind::Captured, AMOUNT),
    (Kind::Refunded, AMOUNT),
];
const RELEASED: &[(Kind, i64)] = &[(Kind::Authorised, AMOUNT), (Kind::Released, AMOUNT)];

const FAULTS: &[Fault] = &[
    Fault::RequestLost,
    Fault::AnswerLost,
    Fault::Garbled,
    Fault::Slow(Duration::from_millis(600)),
    Fault::Busy,
    Fault::TooMany,
    Fault::Broken { done: false },
    Fault::Broken { done: true },
    Fault::Unavailable,
];

async fn take(provider: &Provider, buyer: &Buyer, step: Step, id: Option<&PaymentId>) -> Result<Payment, Error> {
    let checkout = &buyer.checkout;
    match (step, id) {
        (Step::Authorise, Some(id)) => provider.authorise(id, &buyer.order()).await,
        (Step::Capture, Some(id)) => provider.capture(id, checkout).await,
        (Step::Cancel, Some(id)) => provider.cancel(id, checkout).await,
        (Step::Refund, Some(id)) => provider.refund(id, checkout).await,
        _ => provider.create(&buyer.order()).await,
    }
}

/// Repeats the step while its result is unknown; any other failure is an error.
async fn persist(provider: &Provider, buyer: &Buyer, step: Step, id: Option<&PaymentId>) -> anyhow::Result<Payment> {
    until(&format!("{step:?} has its answer"), DEADLINE, async || {
        match take(provider, buyer, step, id).await {
            Err(error @ Error::Unknown { .. }) => Err(error),
            answer => Ok(answer),
        }
    })
    .await?
    .with_context(|| format!("{step:?}"))
}

fn whatever_breaks_in_whichever_call_money_moves_once_and_its_fate_can_be_asked(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let simulator = Simulator::start().await?;
        let (provider, _) = provider(&simulator, Duration::from_millis(300))?;
        for (steps, movements) in [(SALE, SOLD), (LET_GO, RELEASED)] {
            for (place, broken) in steps.iter().enumerate() {
                for fault in FAULTS {
                    let checkout = format!("broken-{}-{place}-{fault:?}", steps.len());
                    let broken = (*broken, *fault);
                    let run = under_fault(&simulator, &provider, &checkout, steps, broken).await;
                    run.with_context(|| checkout.clone())?;
                    let payments = simulator.payments_of(&checkout);
                    // A 500 that is kept for the key hides the payment that was made: the adapter makes another, and no
                    // money moves by the first.
                    let hidden = broken == (Step::Create, Fault::Broken { done: true });
                    ensure!(payments.len() == 1 + usize::from(hidden), "{checkout}: {payments:?}");
                    let moved = simulator.movements(&checkout);
                    ensure!(moved == movements, "{checkout}: {moved:?}");
                }
            }
        }
        let buyer = Buyer::new("looked-for", "pm_card_visa")?;
        let made = provider.create(&buyer.order()).await?;
        for fault in FAULTS.iter().filter(|fault| **fault != Fault::TooMany) {
            simulator.fail(Call::Retrieve, Some("looked-for"), *fault, 1);
            let answer = provider.get(&made.id).await;
            ensure!(matches!(answer, Err(Error::Unknown { .. })), "{fault:?}: {answer:?}");
            simulator.fail(Call::List, None, *fault, 1);
            let answer = provider.find(&buyer.checkout, now()).await;
            ensure!(matches!(answer, Err(Error::Unknown { .. })), "{fault:?}: {answer:?}");
        }
        ensure!(provider.get(&made.id).await? == made, "it has changed");
        Ok(())
    })
}

/// Takes the steps; after the one that breaks, the payment is retrieved before the step is repeated.
async fn under_fault(
    simulator: &Simulator,
    provider: &Provider,
    checkout: &str,
    steps: &[Step],
    (broken, fault): (Step, Fault),
) -> anyhow::Result<()> {
    let buyer = Buyer::new(checkout, "pm_card_visa")?;
    let since = now();
    let mut id = None;
    for step in steps {
        if *step == broken {
            simulator.fail(step.call(), Some(checkout), fault, 1);
            let answer = take(provider, &buyer, *step, id.as_ref()).await;
            // The adapter does not read a refund's answer: it retrieves the payment.
            let is_passed_over = (*step, fault) == (Step::Refund, Fault::Garbled);
            // A call that was one too many is made again.
            let told = (is_passed_over || fault == Fault::TooMany) && answer.is_ok();
            ensure!(
                told || matches!(answer, Err(Error::Unknown { .. })),
                "{step:?}: {answer:?}"
            );
            let fate = match &id {
                Some(id) => Some(provider.get(id).await?),
                None => provider.find(&buyer.checkout, since).await?,
            };
            let truth = simulator.payments_of(checkout).first().cloned();
            let told = fate
                .as_ref()
                .map(|fate| (fate.id.as_str(), fate.captured, fate.refunded));
            let known = truth
                .as_ref()
                .map(|truth| (truth.id.as_str(), truth.captured, truth.refunded));
            ensure!(told == known, "{fate:?} is told of {truth:?}");
        }
        let payment = persist(provider, &buyer, *step, id.as_ref()).await?;
        ensure!(payment.state == step.goal(), "{step:?}: {payment:?}");
        id = Some(payment.id);
    }
    Ok(())
}

fn a_failure_that_the_provider_repeats_does_not_hold_up_a_step(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let simulator = Simulator::start().await?;
        let (provider, metrics) = provider(&simulator, PATIENCE)?;
        let buyer = Buyer::new("repeated-failure", "pm_card_visa")?;
        let id = provider.create(&buyer.order()).await?.id;
        provider.authorise(&id, &buyer.order()).await?;
        simulator.fail(Call::Capture, None, Fault::Broken { done: false }, 1);
        let first = provider.capture(&id, &buyer.checkout).await;
        ensure!(matches!(first, Err(Error::Unknown { .. })), "{first:?}");
        let second = provider.capture(&id, &buyer.checkout).await?;
        ensure!(second.state == State::Captured, "{second:?}");
        let text = String::from_utf8(metrics.render()?)?;
        for line in [
            r#"holdfast_provider_calls_total{answer="unknown",call="capture"} 1"#,
            r#"holdfast_provider_calls_total{answer="ok",call="capture"} 1"#,
        ] {
            ensure!(text.contains(line), "{text}");
        }
        Ok(())
    })
}

/// More tries of a step than it has keys from the beginning.
const TRIES: usize = 5;

fn however_often_a_step_has_failed_it_is_taken_once_the_provider_is_well(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let simulator = Simulator::start().await?;
        let (provider, _) = provider(&simulator, PATIENCE)?;
        for (steps, movements) in [(SALE, SOLD), (LET_GO, RELEASED)] {
            for (place, broken) in steps.iter().enumerate() {
                let checkout = format!("failed-long-{}-{place}", steps.len());
                let run = after_many_failures(&simulator, &provider, &checkout, steps, *broken).await;
                run.with_context(|| checkout.clone())?;
                let payments = simulator.payments_of(&checkout);
                ensure!(payments.len() == 1, "{checkout}: {payments:?}");
                let moved = simulator.movements(&checkout);
                ensure!(moved == movements, "{checkout}: {moved:?}");
            }
        }
        Ok(())
    })
}

/// Takes the steps; the one that breaks is taken again and again before the provider is well.
async fn after_many_failures(
    simulator: &Simulator,
    provider: &Provider,
    checkout: &str,
    steps: &[Step],
    broken: Step,
) -> anyhow::Result<()> {
    let mut buyer = Buyer::new(checkout, "pm_card_visa")?;
    let mut id = None;
    for step in steps {
        if *step == broken {
            simulator.fail(step.call(), Some(checkout), Fault::Broken { done: false }, 1_000);
            fails(provider, &buyer, *step, id.as_ref()).await?;
            simulator.heal();
        }
        if (*step, broken) == (Step::Create, Step::Create) {
            // As young as it is the payment has no other key.
            fails(provider, &buyer, *step, None).await?;
            buyer.age = Duration::from_secs(60);
        }
        let payment = take(provider, &buyer, *step, id.as_ref()).await?;
        ensure!(payment.state == step.goal(), "{step:?}: {payment:?}");
        if *step == Step::Create {
            // Whoever may use more keys comes to the same payment.
            buyer.age = Duration::from_secs(3_600);
            let again = take(provider, &buyer, *step, None).await?;
            ensure!(again.id == payment.id, "{again:?}, not {payment:?}");
        }
        id = Some(payment.id);
    }
    Ok(())
}

async fn fails(provider: &Provider, buyer: &Buyer, step: Step, id: Option<&PaymentId>) -> anyhow::Result<()> {
    for _ in 0..TRIES {
        let answer = take(provider, buyer, step, id).await;
        ensure!(matches!(answer, Err(Error::Unknown { .. })), "{step:?}: {answer:?}");
    }
    Ok(())
}

fn what_was_done_by_hand_while_a_step_fails_is_noticed(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let simulator = Simulator::start().await?;
        let (provider, _) = provider(&simulator, PATIENCE)?;
        let buyer = Buyer::new("by-hand", "pm_card_visa")?;
        let id = provider.create(&buyer.order()).await?.id;
        provider.authorise(&id, &buyer.order()).await?;
        simulator.fail(Call::Capture, None, Fault::Broken { done: false }, 1_000);
        fails(&provider, &buyer, Step::Capture, Some(&id)).await?;
        simulator.capture(id.as_str(), AMOUNT)?;
        let captured = provider.capture(&id, &buyer.checkout).await?;
        ensure!(
            (captured.state, captured.captured) == (State::Captured, AMOUNT),
            "{captured:?}"
        );
        simulator.fail(Call::Refund, None, Fault::Broken { done: false }, 1_000);
        fails(&provider, &buyer, Step::Refund, Some(&id)).await?;
        simulator.refund(id.as_str(), AMOUNT)?;
        let refunded = provider.refund(&id, &buyer.checkout).await?;
        ensure!(refunded.refunded == AMOUNT, "{refunded:?}");
        let moved = simulator.movements("by-hand");
        ensure!(moved == SOLD, "{moved:?}");
        Ok(())
    })
}

fn a_repayment_that_is_refused_again_and_again_stays_refused_and_is_made_once(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let simulator = Simulator::start().await?;
        let (provider, _) = provider(&simulator, PATIENCE)?;
        let buyer = Buyer::new("repaid", "pm_card_visa")?;
        let id = provider.create(&buyer.order()).await?.id;
        provider.authorise(&id, &buyer.order()).await?;
        provider.capture(&id, &buyer.checkout).await?;
        let repayment = |number| RefundOrder {
            checkout: &buyer.checkout,
            number,
            amount: AMOUNT / 3,
        };
        simulator.fail(Call::Refund, None, Fault::Broken { done: false }, 1_000);
        for _ in 0..TRIES {
            let answer = provider.refund_part(&id, &repayment(1)).await;
            ensure!(matches!(answer, Err(Error::Unknown { .. })), "{answer:?}");
        }
        simulator.heal();
        provider.refund_part(&id, &repayment(1)).await?;
        simulator.dispute(id.as_str())?;
        // Until every key repeats a refusal, and longer; then also though the dispute was won, for as long as the keys last.
        for is_won in [false, true] {
            if is_won {
                simulator.close_dispute(id.as_str(), true)?;
            }
            for _ in 0..15 {
                let answer = provider.refund_part(&id, &repayment(2)).await;
                ensure!(matches!(answer, Err(Error::Refused { .. })), "{answer:?}");
            }
        }
        simulator.forget_keys();
        let made = provider.refund_part(&id, &repayment(2)).await?;
        for number in [1, 2] {
            let again = provider.refund_part(&id, &repayment(number)).await?;
            ensure!((number == 2) == (again == made), "{number}: {again:?}");
        }
        let refunds = simulator.refunds_of(id.as_str());
        ensure!(refunds.len() == 2, "{refunds:?}");
        Ok(())
    })
}

fn a_call_that_is_still_under_way_is_not_made_twice(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let simulator = Simulator::start().await?;
        let (provider, _) = provider(&simulator, Duration::from_millis(200))?;
        let buyer = Buyer::new("under-way", "pm_card_visa")?;
        simulator.fail(Call::Create, None, Fault::Slow(Duration::from_secs(1)), 1);
        let late = provider.create(&buyer.order()).await;
        ensure!(
            late.as_ref()
                .is_err_and(|error| error.to_string().contains("no answer from")),
            "{late:?}"
        );
        let busy = provider.create(&buyer.order()).await;
        ensure!(
            busy.as_ref().is_err_and(|error| error.to_string().contains("409")),
            "{busy:?}"
        );
        let made = persist(&provider, &buyer, Step::Create, None).await?;
        let payments = simulator.payments();
        ensure!(
            payments.len() == 1 && payments[0].id == made.id.as_str(),
            "{payments:?}"
        );
        Ok(())
    })
}

fn a_payment_is_found_among_many_after_its_key_is_forgotten(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let simulator = Simulator::start().await?;
        let (provider, _) = provider(&simulator, PATIENCE)?;
        let (since, lost) = (now(), Buyer::new("found", "pm_card_visa")?);
        simulator.fail(Call::Create, Some("found"), Fault::AnswerLost, 1);
        let answer = provider.create(&lost.order()).await;
        ensure!(matches!(answer, Err(Error::Unknown { .. })), "{answer:?}");
        // More than two pages of others.
        for other in 0..201 {
            provider
                .create(&Buyer::new(&format!("other-{other}"), "pm_card_visa")?.order())
                .await?;
        }
        simulator.forget_keys();
        let found = provider
            .find(&lost.checkout, since)
            .await?
            .context("it was not found")?;
        ensure!(found.checkout.as_ref() == Some(&lost.checkout), "{found:?}");
        // All of them are seen once, whatever windows they are read in.
        for days in [0, 1, 2] {
            let mut seen = BTreeSet::new();
            let mut twice = 0;
            let mut see = |payment: &Payment| twice += u32::from(!seen.insert(payment.id.clone()));
            provider
                .each(since - Duration::from_secs(days * 86_400), now(), &mut see)
                .await?;
            ensure!(
                (seen.len(), twice) == (202, 0),
                "{days}: {} and {twice} twice",
                seen.len()
            );
        }
        let never = provider.find(&CheckoutId::parse("never")?, since).await?;
        ensure!(never.is_none(), "{never:?}");
        let later = provider
            .find(&lost.checkout, since + Duration::from_secs(3_600))
            .await?;
        ensure!(later.is_none(), "{later:?}");
        // Of two payments for one checkout, the one with money on it counts.
        let twin = provider.create(&lost.order()).await?;
        provider.authorise(&twin.id, &lost.order()).await?;
        let found = provider
            .find(&lost.checkout, since)
            .await?
            .context("it was not found")?;
        ensure!(found.id == twin.id && found.state == State::Authorized, "{found:?}");
        Ok(())
    })
}

fn what_no_repetition_mends_is_said_at_once(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let simulator = Simulator::start().await?;
        let (provider, _) = provider(&simulator, PATIENCE)?;
        let unknown = PaymentId::parse("pi_none")?;
        let buyer = Buyer::new("at-once", "pm_card_visa")?;
        for answer in [
            provider.get(&unknown).await,
            provider.capture(&unknown, &buyer.checkout).await,
            provider.refund(&unknown, &buyer.checkout).await,
        ] {
            ensure!(matches!(answer, Err(Error::NotFound { .. })), "{answer:?}");
        }
        let nobodys = provider.create(&Buyer::new("nobodys-card", "nonsense")?.order()).await;
        ensure!(matches!(nobodys, Err(Error::Declined { .. })), "{nobodys:?}");
        for amount in [0, 100_000_000] {
            let mut order = buyer.order();
            order.amount = amount;
            let answer = provider.create(&order).await;
            ensure!(matches!(answer, Err(Error::Declined { .. })), "{amount}: {answer:?}");
        }
        for (url, key) in [
            (simulator.url(), "sk_wrong"),
            (format!("{}/other", simulator.url()), KEY),
        ] {
            let wrong = Provider::new(&settings(&url, key, PATIENCE)?, Arc::new(Metrics::new()?))?;
            let answer = wrong.context("no provider")?.create(&buyer.order()).await;
            let error = answer.err().context("it was taken")?;
            ensure!(matches!(error, Error::Misconfigured { .. }), "{error:?}");
            ensure!(!format!("{error:?}").contains(key), "{error:?}");
        }
        // A payment of live mode is not taken for one of ours, in whatever answer it comes.
        let live = provider.create(&buyer.order()).await?.id;
        simulator.alter(live.as_str(), |payment| payment.livemode = true);
        for answer in [
            provider.get(&live).await.map(Some),
            provider.authorise(&live, &buyer.order()).await.map(Some),
            provider.find(&buyer.checkout, now()).await,
        ] {
            ensure!(matches!(answer, Err(Error::Misconfigured { .. })), "{answer:?}");
        }
        ensure!(provider.buyer(&live).await.is_err() && provider.client_secret(&live).await.is_err());
        simulator.away(true);
        let away = provider.create(&buyer.order()).await;
        ensure!(matches!(away, Err(Error::Unknown { .. })), "{away:?}");
        Ok(())
    })
}

fn calls_wait_for_their_turn_and_for_a_provider_that_has_too_many(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let simulator = Simulator::start().await?;
        let (provider, metrics) = provider(&simulator, Duration::from_millis(300))?;
        let delayed = |kind: &str, why: &str| metrics.provider_delays.with_label_values(&[kind, why]).get();
        let buyer = Buyer::new("too-many", "pm_card_visa")?;
        let since = now();
        let id = provider.create(&buyer.order()).await?.id;
        simulator.too_many_for(Duration::from_millis(1_200));
        // The provider asks for 2 seconds: longer than anybody waits for a step, but not for a list.
        let answer = provider.get(&id).await;
        let said = answer.err().map(|error| error.to_string()).unwrap_or_default();
        ensure!(said.contains("429"), "{said}");
        let mut listed = 0;
        provider.each(since, now(), &mut |_| listed += 1).await?;
        ensure!(listed == 1, "{listed} payments");
        // Nothing was asked in vain meanwhile: one call was too many.
        ensure!(
            (delayed("read", "too_many"), delayed("read", "rate")) == (1, 1),
            "{:?}",
            simulator.asked()
        );
        simulator.fail(Call::Confirm, Some("too-many"), Fault::TooMany, 2);
        provider.authorise(&id, &buyer.order()).await?;
        ensure!(delayed("write", "too_many") == 2, "it is not counted");

        let mut settings = settings(&simulator.url(), KEY, PATIENCE)?;
        settings.calls_per_second = Some(20);
        let slow = Provider::new(&settings, Arc::new(Metrics::new()?))?.context("no provider")?;
        let begin = Instant::now();
        let buyers = (0..24).map(|number| Buyer::new(&format!("turn-{number}"), "pm_card_visa"));
        let buyers = buyers.collect::<anyhow::Result<Vec<_>>>()?;
        try_join_all(buyers.iter().map(async |buyer| slow.create(&buyer.order()).await)).await?;
        let took = begin.elapsed();
        ensure!(
            took >= Duration::from_millis(900),
            "24 calls took {took:?} at 20 a second"
        );
        Ok(())
    })
}

fn under_faults_at_random_the_books_agree_to_the_last_cent(kit: &Kit) -> anyhow::Result<()> {
    const RATES: &[(Fault, u32)] = &[
        (Fault::RequestLost, 30),
        (Fault::AnswerLost, 60),
        (Fault::Garbled, 15),
        (Fault::Busy, 30),
        (Fault::TooMany, 30),
        (Fault::Unavailable, 30),
    ];
    kit.block_on(async {
        let simulator = Simulator::start().await?;
        let (provider, _) = provider(&simulator, PATIENCE)?;
        simulator.fail_at_random(7, RATES);
        for number in 0..40 {
            let checkout = format!("random-{number}");
            let buyer = Buyer::new(&checkout, "pm_card_visa")?;
            let (steps, movements) = if number % 3 == 0 {
                (LET_GO, RELEASED)
            } else {
                (SALE, SOLD)
            };
            let mut id = None;
            for step in steps {
                id = Some(persist(&provider, &buyer, *step, id.as_ref()).await?.id);
            }
            let moved = simulator.movements(&checkout);
            ensure!(moved == movements, "{checkout}: {moved:?}");
        }
        let payments = simulator.payments();
        ensure!(payments.len() == 40, "{} payments", payments.len());
        ensure!(simulator.open_authorisations().is_empty(), "something is left open");
        Ok(())
    })
}

fn what_happens_to_a_payment_is_told_signed_until_it_is_acknowledged(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let (simulator, receiver) = (Simulator::start().await?, Receiver::start(1).await?);
        let (provider, _) = provider(&simulator, PATIENCE)?;
        let buyer = Buyer::new("told", "pm_card_visa")?;
        let id = provider.create(&buyer.order()).await?.id;
        provider.authorise(&id, &buyer.order()).await?;
        provider.capture(&id, &buyer.checkout).await?;
        simulator.refund(id.as_str(), 500)?;
        simulator.dispute(id.as_str())?;
        simulator.close_dispute(id.as_str(), true)?;
        simulator.refund(id.as_str(), AMOUNT - 500)?;

        simulator.webhooks_to(&receiver.url(), SECRET);
        ensure!(
            simulator.deliver(Delivery::InOrder).await.is_err(),
            "nothing was refused"
        );
        // The one that was refused comes last, and then again with everything else.
        simulator.deliver(Delivery::InOrder).await?;
        let first = receiver.events()?;
        ensure!(simulator.untold().is_empty(), "{:?}", simulator.untold());
        simulator.deliver_again().await?;
        let all = receiver.events()?;
        let again: Vec<_> = all[first.len()..].iter().map(|told| &told.event.id).collect();
        let told: Vec<_> = first.iter().map(|told| &told.event.id).collect();
        ensure!(told == again, "{told:?}, then {again:?}");

        let what: Vec<_> = first.iter().map(|told| told.event.what.clone()).collect();
        let price = |amount| Price::new(amount, Currency::EUR);
        let id_of = |told: &What| match told {
            What::Disputed { id, .. } => Some(id.clone()),
            _ => None,
        };
        let dispute = what.iter().find_map(id_of).context("no dispute was told")?;
        let refunds = simulator.refunds_of(id.as_str());
        let refunded = |place: usize, amount| {
            anyhow::Ok(What::RefundChanged {
                id: RefundId::parse(&refunds[place].id)?,
                amount: price(amount)?,
                status: RefundStatus::Succeeded,
            })
        };
        let amount = price(AMOUNT - 500)?;
        let disputed = |status, funds| What::Disputed {
            id: dispute.clone(),
            amount,
            status,
            funds,
        };
        let expected = [
            What::Captured(price(AMOUNT)?),
            refunded(0, 500)?,
            What::Refunded(price(500)?),
            disputed(DisputeStatus::Opened, None),
            disputed(DisputeStatus::Opened, Some(DisputeFunds::Withdrawn)),
            disputed(DisputeStatus::Won, Some(DisputeFunds::Reinstated)),
            disputed(DisputeStatus::Won, None),
            refunded(1, AMOUNT - 500)?,
            What::Refunded(price(AMOUNT)?),
            What::Authorized(price(AMOUNT)?),
        ];
        ensure!(what == expected, "{what:?}");
        ensure!(first.iter().all(|told| told.event.payment == id), "{first:?}");
        let named = Some((buyer.checkout.clone(), buyer.user.clone()));
        ensure!(first[0].buyer == named, "{first:?}");
        let net: i64 = simulator
            .movements("told")
            .iter()
            .map(|(kind, amount)| kind.sign() * amount)
            .sum();
        ensure!(net == 0, "{net}");
        Ok(())
    })
}
