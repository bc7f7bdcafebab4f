//! The previous release and this one take over from each other, there and back, role by role in the order of docs/runbook.md, while
//! events flow and holds, timers, carts and checkouts are in flight.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use holdfast_tests::kit::provider::{Call, Delivery, Fault, Kind, WEBHOOK_SECRET};
use holdfast_tests::kit::worker::Launch;
use holdfast_tests::kit::{Holdfast, Kit, Name, previous, until};
use holdfast_tests::traffic::Traffic;
use serde_json::{Value, json};

use crate::checkout::{CARD, CONFIRMED, PRICE, check_out, ends, fill, free, list, reaches, sold};
use crate::in_flight::{deployment_of, kept_cart};
use crate::support::{DEADLINE, clean_by, pay};
use crate::users::{call, none_prepared, registered, view};
use crate::workers::done;
use crate::{Test, tests};

pub(crate) const TESTS: &[Test] =
    tests![a_release_takes_over_from_the_one_before_and_gives_back_and_nothing_is_lost_or_stuck,];

/// Of the shortest holds, in seconds: they end under the release after the one that gave them.
const SOON: i64 = 10;

fn a_release_takes_over_from_the_one_before_and_gives_back_and_nothing_is_lost_or_stuck(_: &Kit) -> anyhow::Result<()> {
    let binary = previous::binary()?;
    // The tables must be the previous release's own, and so must all else.
    let kit = Kit::start(Name::Upgrades)?;
    kit.block_on(async {
        there_and_back(&kit, binary).await?;
        kit.stack.stop().await
    })
}

async fn there_and_back(kit: &Kit, binary: PathBuf) -> anyhow::Result<()> {
    let old = Release::new(kit, "old", Some(binary))?;
    let new = Release::new(kit, "new", None)?;
    let mut workers = Installed::new(&old).await?;
    kit.provider.webhooks_to(&kit.stack.webhook_url()?, WEBHOOK_SECRET);
    kit.provider.deliver_always(Delivery::InOrder);
    let mut traffic = Traffic::new(&kit.stack, "upgrade")?;
    for (round, from, to) in [("there", &old, &new), ("back", &new, &old), ("again", &old, &new)] {
        let roll = async {
            let begun = InFlight::begin(kit, round).await?;
            // Stays until nothing is left that began there.
            let serve = match round {
                "back" => workers.go_back(to).await?,
                _ => workers.upgrade(to).await?,
            };
            let kept = new.prune(to).await?;
            ensure!(
                kept.contains(&from.line("kept")) && kept.contains(" of Checkout/run,"),
                "{kept}"
            );
            begun.end().await?;
            until("what began there has ended", DEADLINE, async || {
                let pruned = new.prune(to).await?;
                ensure!(pruned.contains(&from.line("removed")), "{pruned}");
                anyhow::Ok(())
            })
            .await?;
            serve.stop().await?;
            Ok(begun)
        };
        let ended = traffic.during(roll).await.context(round)?;
        traffic.answered().await.context(round)?;
        ended.told().await.context(round)?;
        let report = clean_by(|| new.launch("verify")).await.context(round)?;
        ensure!(report["stuck"] == 0, "{round}: {report}");
    }
    traffic.settled().await?;
    none_prepared(kit).await?;
    let report = clean_by(|| new.launch("verify")).await?;
    ensure!(report["stuck"] == 0 && report["unfinished"] == 0, "{report}");
    ensure!(kit.provider.open_authorisations().is_empty(), "money is set aside");
    kit.provider.webhooks_to_nobody();
    workers.stop().await
}

/// A release, with the address at which its handlers are served.
struct Release<'a> {
    kit: &'a Kit,
    name: &'static str,
    /// Absent for the current one.
    binary: Option<PathBuf>,
    serve: String,
}

impl<'a> Release<'a> {
    fn new(kit: &'a Kit, name: &'static str, binary: Option<PathBuf>) -> anyhow::Result<Self> {
        let serve = format!("127.0.0.1:{}", kit.stack.ports.get(&format!("{name}-serve"))?);
        Ok(Self {
            kit,
            name,
            binary,
            serve,
        })
    }

    /// A gate is called the same in every release: it takes its partitions back at once.
    fn launch(&self, subcommand: &str) -> Launch<'a> {
        let instance = match subcommand {
            "gate" => "gate".to_owned(),
            _ => format!("{subcommand}-{}", self.name),
        };
        let launch = self.kit.stack.holdfast(subcommand, &instance);
        let launch = launch
            .provider(&self.kit.provider)
            .env("HOLDFAST_SERVE_LISTEN", &self.serve)
            .env("HOLDFAST_SERVE_URL", &self.url())
            .env("HOLDFAST_RETRY_PAUSE", "1s");
        match &self.binary {
            Some(binary) => launch.binary(binary.clone()),
            None => launch,
        }
    }

    fn url(&self) -> String {
        format!("http://{}", self.serve)
    }

    /// The report of `register --prune`, where the handlers of `used` are in use.
    async fn prune(&self, used: &Release<'_>) -> anyhow::Result<String> {
        let register = self.launch("register").arg("--prune");
        let pruned = register.env("HOLDFAST_SERVE_URL", &used.url()).output().await?;
        let said = String::from_utf8_lossy(&pruned.stdout) + String::from_utf8_lossy(&pruned.stderr);
        ensure!(pruned.status.success(), "{}: {said}", pruned.status);
        Ok(said.into_owned())
    }

    /// The beginning of the line about its handlers in that report.
    fn line(&self, finding: &str) -> String {
        format!("{finding:<11}earlier handlers at {}", self.url())
    }
}

/// The processes of an installation, each of the release that has it now.
struct Installed {
    serve: Holdfast,
    gate: Holdfast,
    relay: Holdfast,
    webhook: Holdfast,
}

impl Installed {
    async fn new(release: &Release<'_>) -> anyhow::Result<Self> {
        done(release.launch("migrate")).await?;
        let serve = release.launch("serve").start().await?;
        done(release.launch("register")).await?;
        let (gate, relay, webhook) = tokio::try_join!(
            release.launch("gate").start(),
            release.launch("relay").start(),
            release.launch("webhook").webhooks().start(),
        )?;
        Ok(Self {
            serve,
            gate,
            relay,
            webhook,
        })
    }

    /// Returns the serve from before, which is still needed.
    async fn upgrade(&mut self, to: &Release<'_>) -> anyhow::Result<Holdfast> {
        done(to.launch("migrate")).await?;
        let before = self.replace_serve(to).await?;
        self.replace_gate(to).await?;
        self.replace_relay(to).await?;
        self.replace_webhook(to).await?;
        Ok(before)
    }

    /// The other way round. The tables stay as they are.
    async fn go_back(&mut self, to: &Release<'_>) -> anyhow::Result<Holdfast> {
        self.replace_webhook(to).await?;
        self.replace_relay(to).await?;
        self.replace_gate(to).await?;
        // It changes nothing, and a chart runs it.
        done(to.launch("migrate")).await?;
        self.replace_serve(to).await
    }

    async fn replace_serve(&mut self, to: &Release<'_>) -> anyhow::Result<Holdfast> {
        let serve = to.launch("serve").start().await?;
        let before = deployment_of(to.kit, "Checkout").await?;
        done(to.launch("register")).await?;
        let after = deployment_of(to.kit, "Checkout").await?;
        ensure!(
            before != after,
            "the handlers of the {} release are not in use",
            to.name
        );
        Ok(std::mem::replace(&mut self.serve, serve))
    }

    async fn replace_gate(&mut self, to: &Release<'_>) -> anyhow::Result<()> {
        self.gate.stop().await?;
        self.gate = to.launch("gate").start().await?;
        Ok(())
    }

    /// The other one takes over when the first ends.
    async fn replace_relay(&mut self, to: &Release<'_>) -> anyhow::Result<()> {
        let relay = to.launch("relay").start().await?;
        self.relay.stop().await?;
        self.relay = relay;
        Ok(())
    }

    async fn replace_webhook(&mut self, to: &Release<'_>) -> anyhow::Result<()> {
        self.webhook.stop().await?;
        self.webhook = to.launch("webhook").webhooks().start().await?;
        Ok(())
    }

    async fn stop(self) -> anyhow::Result<()> {
        self.webhook.stop().await?;
        self.gate.stop().await?;
        self.relay.stop().await?;
        self.serve.stop().await
    }
}

/// What one release begins and the next one takes to its end.
struct InFlight<'a> {
    kit: &'a Kit,
    round: &'static str,
    user: String,
    tickets: Vec<String>,
    /// The answer to a request that comes again.
    reserved: (u16, Value),
}

impl<'a> InFlight<'a> {
    /// A checkout that waits for its customer, and one that waits for the provider; in the cart a ticket that is not bought yet, one
    /// that stays there, and one whose hold is about to end; and a ticket that is held by itself.
    async fn begin(kit: &'a Kit, round: &'static str) -> anyhow::Result<Self> {
        let user = format!("upgrades/{round}/ann");
        pay(kit, &[registered(&format!("upgrades/{round}/registered"), &user)]).await?;
        let tickets: Vec<_> = (0..6).map(|place| format!("upgrades/{round}/seat-{place}")).collect();
        list(kit, &tickets, PRICE).await?;
        until("the user is registered", DEADLINE, async || {
            let (status, said) = view(kit, "User", &user).await?;
            ensure!(status == 200, "{status}: {said}");
            anyhow::Ok(())
        })
        .await?;
        fill(kit, &user, &tickets[3..4], Some(SOON)).await?;
        fill(kit, &user, &[&tickets[..3], &tickets[5..]].concat(), Some(3_600)).await?;
        let mut begun = Self {
            kit,
            round,
            user,
            tickets,
            reserved: (0, Value::Null),
        };
        kit.provider
            .fail(Call::Capture, Some(&begun.order("tries")), Fault::Unavailable, 1_000);
        begun.buy("waits", 0, CONFIRMED).await?;
        begun.buy("tries", 1, CARD).await?;
        reaches(kit, &begun.order("waits"), "waiting").await?;
        reaches(kit, &begun.order("tries"), "sold").await?;
        begun.reserved = begun.reserve().await?;
        ensure!(begun.reserved.0 == 200, "{:?}", begun.reserved);
        Ok(begun)
    }

    async fn end(&self) -> anyhow::Result<()> {
        let kit = self.kit;
        let again = self.reserve().await?;
        ensure!(
            again == self.reserved,
            "it was answered {:?}, and now {again:?}",
            self.reserved
        );
        self.buy("carried", 2, CARD).await?;
        ends(kit, &self.order("carried"), "completed").await?;
        let payments = kit.provider.payments_of(&self.order("waits"));
        let payment = payments.first().context("the provider has no such payment")?;
        // A webhook tells of it.
        kit.provider.authenticate(&payment.id, true)?;
        kit.provider.heal();
        for name in ["waits", "tries", "carried"] {
            ends(kit, &self.order(name), "completed").await?;
            let moved = kit.provider.movements(&self.order(name));
            let captured = moved.iter().filter(|(kind, _)| matches!(kind, Kind::Captured));
            let captured: Vec<_> = captured.map(|(_, amount)| amount.abs()).collect();
            ensure!(captured == [PRICE], "{name}: {moved:?}");
        }
        // Not by the Reaper alone: the timer of the cart has removed it.
        until("the cart lets go of what has ended", DEADLINE, async || {
            let cart = kept_cart(kit, &self.user).await?;
            ensure!(
                cart.contains(&self.tickets[5]) && !cart.contains(&self.tickets[3]),
                "{cart}"
            );
            Ok(())
        })
        .await
    }

    /// Once the topics are at rest.
    async fn told(&self) -> anyhow::Result<()> {
        sold(self.kit, &self.tickets[..3]).await?;
        free(self.kit, &self.tickets[3..4]).await
    }

    fn order(&self, name: &str) -> String {
        format!("upgrades/{}/{name}", self.round)
    }

    async fn buy(&self, name: &str, place: usize, method: &str) -> anyhow::Result<()> {
        let body = json!({ "checkout": self.order(name), "tickets": [self.tickets[place]], "payment_method": method });
        check_out(self.kit, &self.user, body).await.map(drop)
    }

    /// The same request each time.
    async fn reserve(&self) -> anyhow::Result<(u16, Value)> {
        let key = format!("upgrades-{}", self.round);
        let body = json!({ "user": self.user, "hold_for": 3_600 });
        let headers = [("idempotency-key", key.as_str())];
        call(self.kit, &headers, "Ticket", &self.tickets[4], "reserve", &body).await
    }
}
