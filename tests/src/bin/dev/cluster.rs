//! How long answers stay away when a part of a cluster is lost: each node is killed, frozen and cut off in turn while events flow, and
//! comes back, and clocks are set apart. Every event must be answered, and `verify` judges after each row of the table.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, ensure};
use holdfast_tests::kit::clock::Clock;
use holdfast_tests::kit::cluster::{Node, Strike};
use holdfast_tests::kit::worker::clean_by;
use holdfast_tests::kit::{Cluster, until};
use holdfast_tests::traffic::{Outage, Traffic};
use tokio::time::{Instant, sleep};
use tracing::info;

/// Two or three events each time.
const BEAT: Duration = Duration::from_millis(100);
/// Longest wait for an answer once everything is whole again.
const WITHIN: Duration = Duration::from_secs(180);
/// Events flow for so long before anything is lost.
const BEFORE: Duration = Duration::from_secs(5);
/// What is lost stays away for so long: longer than anything takes to be replaced.
const AWAY: Duration = Duration::from_secs(45);
/// Longest wait for a successor of the database that led.
const SUCCEEDED_WITHIN: Duration = Duration::from_secs(60);

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only the rows whose name holds this text
    #[arg(long, default_value = "")]
    only: String,
}

pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let cluster = Cluster::start().await?;
    let mut traffic = Traffic::new(&cluster.stack, "cluster")?.paced(BEAT, WITHIN);
    if !cluster.network.can_cut() {
        info!("nothing is cut off: that needs root");
    }
    println!("| what is lost | no answer for | slowest answer |\n| --- | ---: | ---: |");
    let rows = rows(cluster.network.can_cut());
    for row in rows.iter().filter(|row| row.to_string().contains(&arguments.only)) {
        let measured = row.measure(&cluster, &mut traffic).await;
        let (what, Outage { silence, slowest }) = measured.with_context(|| row.to_string())?;
        println!("| {what} | {} | {} |", seconds(silence), seconds(slowest));
    }
    traffic.settled().await?;
    println!("\nevery event was answered, and verify finds every promise kept");
    cluster.stop().await
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// What happens while events flow.
enum Row {
    Nothing,
    Lost(Node, Strike),
    /// The leader's Patroni is frozen, and its PostgreSQL goes on.
    KeeperFrozen,
    /// Each node is restarted in good order, one after the other.
    Restarted,
    /// Most nodes are restarted with this clock: see [`set_clocks`].
    Clocks(Clock),
}

fn rows(can_cut: bool) -> Vec<Row> {
    let strikes = [Strike::Kill, Strike::Freeze, Strike::CutOff];
    let lost = strikes.into_iter().flat_map(|strike| {
        let nodes = Node::all().into_iter();
        let nodes = nodes.filter(move |_| can_cut || strike != Strike::CutOff);
        nodes.map(move |node| Row::Lost(node, strike))
    });
    let first = [Row::Nothing].into_iter();
    let last = [
        Row::KeeperFrozen,
        Row::Restarted,
        Row::Clocks(Clock::Ahead),
        Row::Clocks(Clock::True),
    ];
    first.chain(lost).chain(last).collect()
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Row::Nothing => f.write_str("nothing"),
            Row::Lost(node, Strike::Kill) => write!(f, "{node} killed"),
            Row::Lost(node, Strike::Freeze) => write!(f, "{node} frozen"),
            Row::Lost(node, Strike::CutOff) => write!(f, "{node} cut off"),
            Row::KeeperFrozen => f.write_str("the leader's Patroni frozen, its PostgreSQL alive"),
            Row::Restarted => f.write_str("each node restarted, one after the other"),
            Row::Clocks(Clock::Ahead) => f.write_str("clocks set two minutes apart"),
            Row::Clocks(Clock::True) => f.write_str("clocks set right again"),
        }
    }
}

impl Row {
    /// The row's name, with what the node was to the others, and how long answers stayed away.
    async fn measure(&self, cluster: &Cluster, traffic: &mut Traffic<'_>) -> anyhow::Result<(String, Outage)> {
        let what = match self {
            Row::Lost(Node::Database(number), _) => format!("{self} ({})", cluster.role(*number).await?),
            _ => self.to_string(),
        };
        info!("{what}");
        let since = Instant::now();
        let happens = async {
            sleep(BEFORE).await;
            self.happen(cluster).await?;
            cluster.whole().await
        };
        traffic.during(happens).await?;
        traffic.answered().await?;
        let outage = traffic.outage(since);
        clean_by(|| cluster.stack.holdfast("verify", "verify")).await?;
        Ok((what, outage))
    }

    async fn happen(&self, cluster: &Cluster) -> anyhow::Result<()> {
        match self {
            Row::Nothing => sleep(AWAY).await,
            Row::Lost(node, strike) => lose(cluster, *node, *strike).await?,
            Row::KeeperFrozen => {
                let former = cluster.leader().await?;
                cluster.freeze_keeper(former)?;
                succeeded(cluster, former).await?;
                cluster.refuses_writes(former).await?;
                cluster.heal(Node::Database(former)).await?;
            }
            Row::Restarted => {
                for node in Node::all() {
                    cluster.restart(node).await?;
                    cluster.whole().await?;
                }
            }
            Row::Clocks(clock) => {
                set_clocks(cluster, *clock).await?;
                sleep(AWAY).await;
            }
        }
        Ok(())
    }
}

/// Restarts each node whose clock can be set with this clock, but one of each kind with a true one. That is the database that leads, and
/// comes last: one whose clock is this takes its place.
async fn set_clocks(cluster: &Cluster, clock: Clock) -> anyhow::Result<()> {
    let leader = cluster.leader().await?;
    let stays_true = |node: &Node| match node {
        Node::Broker(number) | Node::Worker(_, number) => *number == 1,
        Node::Database(number) => *number == leader,
        Node::Engine(_) => true,
    };
    let nodes = Node::all().into_iter().filter(|node| !matches!(node, Node::Engine(_)));
    let (last, first): (Vec<_>, Vec<_>) = nodes.partition(stays_true);
    let clocks = first.into_iter().map(|node| (node, clock));
    for (node, clock) in clocks.chain(last.into_iter().map(|node| (node, Clock::True))) {
        cluster.set_clock(node, clock).await?;
        cluster.whole().await?;
    }
    Ok(())
}

/// The node is away for a while. A database that led has a successor then, and acknowledges nothing any more.
async fn lose(cluster: &Cluster, node: Node, strike: Strike) -> anyhow::Result<()> {
    let leader = cluster.leader().await?;
    let away = sleep(AWAY);
    cluster.strike(node, strike)?;
    if node == Node::Database(leader) {
        succeeded(cluster, leader).await?;
        if strike == Strike::CutOff {
            cluster.refuses_writes(leader).await?;
        }
    }
    away.await;
    cluster.heal(node).await
}

async fn succeeded(cluster: &Cluster, former: usize) -> anyhow::Result<()> {
    until("another database leads", SUCCEEDED_WITHIN, async || {
        let leader = cluster.leader().await?;
        ensure!(leader != former, "the former one leads");
        anyhow::Ok(())
    })
    .await
}
