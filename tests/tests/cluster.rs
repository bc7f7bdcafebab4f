//! Several of everything, on servers of their own: none is missed. `make cluster` has all of it.

use std::time::Duration;

use holdfast_tests::kit::cluster::{Node, Strike};
use holdfast_tests::kit::{Cluster, Kit};
use holdfast_tests::traffic::Traffic;

use crate::{Test, tests};

pub(crate) const TESTS: &[Test] = tests![a_cluster_answers_every_event_without_any_one_of_its_nodes];

/// Two or three events each time.
const BEAT: Duration = Duration::from_millis(100);
/// Longer than a database is without a leader.
const WITHIN: Duration = Duration::from_secs(120);

fn a_cluster_answers_every_event_without_any_one_of_its_nodes(kit: &Kit) -> anyhow::Result<()> {
    kit.block_on(async {
        let cluster = Cluster::start().await?;
        let mut traffic = Traffic::new(&cluster.stack, "cluster")?.paced(BEAT, WITHIN);
        let leader = cluster.leader().await?;
        for node in [Node::Broker(0), Node::Engine(0), Node::Database(leader)] {
            traffic.burst(20)?;
            cluster.strike(node, Strike::Kill)?;
            traffic.burst(20)?;
            // It is not back yet.
            traffic.answered().await?;
            let back = async {
                cluster.heal(node).await?;
                cluster.whole().await
            };
            traffic.during(back).await?;
            traffic.answered().await?;
        }
        traffic.settled().await?;
        cluster.stop().await
    })
}
