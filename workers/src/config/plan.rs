//! The command line of `plan`.

use std::path::PathBuf;

use clap::Args;

/// The load to plan for, and on which terms. Retention, replicas, partitions, connections and the calls to the payment provider are those
/// of the settings.
#[derive(Args, Debug, Clone)]
pub struct Plan {
    /// Events a second at the peak; several, separated by commas, have a column each. Without it, the measured costs are printed.
    #[arg(long, value_name = "PER_SECOND", value_delimiter = ',', value_parser = rate)]
    pub events: Vec<f64>,
    /// The mean rate over the days, in percent of the peak: what is kept on disk grows with it.
    #[arg(long, value_name = "PERCENT", default_value_t = 100.0, value_parser = percent)]
    pub mean: f64,
    /// Share of the events that are about the one hottest ticket, from 0 to 1.
    #[arg(long, value_name = "SHARE", default_value_t = 0.01, value_parser = share)]
    pub hot: f64,
    /// Checkouts for each event, from 0 to 1.
    #[arg(long, value_name = "SHARE", default_value_t = 0.01, value_parser = share)]
    pub checkouts: f64,
    /// Tickets in a checkout.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub tickets: u32,
    /// Bytes of an event, key and value; without it, those of the events that were measured.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=16 << 20))]
    pub event_bytes: Option<u32>,
    /// Days for which to plan what is never deleted: the change logs and the orders.
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub days: u32,
    /// Cores of a pod of a gate or a serve.
    #[arg(long, value_name = "CORES", default_value_t = 1.0, value_parser = cores)]
    pub pod_cores: f64,
    /// Cores of the largest machine that Postgres can have.
    #[arg(long, value_name = "CORES", default_value_t = 32.0, value_parser = cores)]
    pub postgres_cores: f64,
    /// Percent of the cores that are in use at the peak.
    #[arg(long, value_name = "PERCENT", default_value_t = 60.0, value_parser = percent)]
    pub busy: f64,
    /// The costs to plan with, a report of the benchmark; without it, those that were measured of this release.
    #[arg(long, value_name = "FILE")]
    pub costs: Option<PathBuf>,
    /// Print the plan as one JSON object, with the costs.
    #[arg(long)]
    pub json: bool,
}

fn rate(text: &str) -> Result<f64, String> {
    bounded(
        text,
        |number| number > 0.0 && number <= 1e9,
        "give more than 0, at most 1000000000",
    )
}

fn cores(text: &str) -> Result<f64, String> {
    bounded(text, |number| (0.1..=10_000.0).contains(&number), "give 0.1 to 10000")
}

fn percent(text: &str) -> Result<f64, String> {
    bounded(
        text,
        |number| number > 0.0 && number <= 100.0,
        "give more than 0, at most 100",
    )
}

fn share(text: &str) -> Result<f64, String> {
    bounded(text, |number| (0.0..=1.0).contains(&number), "give 0 to 1")
}

fn bounded(text: &str, is_within: impl Fn(f64) -> bool, mend: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| is_within(*number));
    number.ok_or_else(|| mend.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{Cli, Role};
    use super::Plan;

    fn read(args: &[&str]) -> Result<Plan, clap::Error> {
        let cli = Cli::try_parse_from([&["holdfast", "plan"], args].concat())?;
        assert_eq!(cli.check(), Ok(()));
        match cli.command {
            Role::Plan(plan) => Ok(plan),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_load_is_read_or_refused_with_its_bounds() {
        let plan = read(&["--events", "100,2.5e3", "--hot", "0", "--mean", "10"]).unwrap();
        assert_eq!((plan.events, plan.hot, plan.mean), (vec![100.0, 2_500.0], 0.0, 10.0));
        assert_eq!(read(&[]).unwrap().events, Vec::<f64>::new());
        for (flag, wrong, mend) in [
            ("--events", "0", "give more than 0"),
            ("--events", "100,many", "give more than 0"),
            ("--events", "inf", "give more than 0"),
            ("--mean", "101", "at most 100"),
            ("--busy", "NaN", "at most 100"),
            ("--hot", "1.1", "give 0 to 1"),
            ("--checkouts=-1", "", "give 0 to 1"),
            ("--tickets", "0", "1..=100"),
            ("--days", "0", "1..=36500"),
        ] {
            let args: Vec<&str> = [flag, wrong].into_iter().filter(|arg| !arg.is_empty()).collect();
            let error = read(&args).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{flag} {wrong}");
            assert!(error.to_string().contains(mend), "{error}");
        }
    }
}
