//! The commands by which records are read again.

use clap::{Args, Subcommand, ValueEnum};
use time::OffsetDateTime;

use super::choice::{Settle, moment};

/// Who reads records again. Nothing takes effect a second time: what was decided before is answered as a repeat.
#[derive(Subcommand, Debug, Clone)]
pub enum Reprocess {
    /// Move the gates' group back on a public topic. Every gate must be stopped.
    Gate {
        #[command(flatten)]
        beginning: Beginning,
        #[command(flatten)]
        settle: Settle,
    },
    /// Have the engine read again what the gates have admitted, by a new subscription that takes the place of the former one.
    Engine {
        #[command(flatten)]
        beginning: Beginning,
        /// The engine reads the public topic itself, as `register --direct` has it.
        #[arg(long)]
        direct: bool,
        #[command(flatten)]
        settle: Settle,
    },
}

/// From where on. What lies beyond the offset that the group has committed cannot be meant: what is between would be passed over.
#[derive(Args, Debug, Clone)]
#[command(group(clap::ArgGroup::new("beginning-meant").required(true).args(["beginning-time", "beginning-offsets"])))]
pub struct Beginning {
    /// The public topic, also where its admitted one is read.
    #[arg(long, value_enum)]
    pub topic: PublicTopic,
    /// From the first record of each partition that was written at this moment or later, such as 2030-01-31T19:30:00Z.
    #[arg(id = "beginning-time", long = "from", value_name = "TIME", value_parser = moment)]
    pub from: Option<OffsetDateTime>,
    /// From these records, each by its partition and offset, such as 3/17; several, separated by commas. The other partitions stay
    /// where they are.
    #[arg(id = "beginning-offsets", long = "offset", value_name = "PARTITION/OFFSET", value_delimiter = ',', value_parser = place)]
    pub offsets: Vec<PartitionOffset>,
}

/// A public topic by its name.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum PublicTopic {
    Reservations,
    Payments,
}

/// A place on a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionOffset {
    pub partition: i32,
    pub offset: i64,
}

fn place(text: &str) -> Result<PartitionOffset, String> {
    let malformed = || "give partition/offset, such as 3/17".to_owned();
    let (partition, offset) = text.split_once('/').ok_or_else(malformed)?;
    let (partition, offset) = (partition.parse::<u16>(), offset.parse::<u64>());
    let offset = offset.ok().and_then(|offset| i64::try_from(offset).ok());
    match (partition, offset) {
        (Ok(partition), Some(offset)) => Ok(PartitionOffset {
            partition: partition.into(),
            offset,
        }),
        _ => Err(malformed()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_written_partition_offset() {
        let third = PartitionOffset {
            partition: 3,
            offset: 17,
        };
        assert_eq!(place("3/17"), Ok(third));
        for text in [
            "",
            "3",
            "3/",
            "/17",
            "3/17/1",
            "-1/17",
            "3/-17",
            "3/x",
            "3/99999999999999999999",
        ] {
            assert!(place(text).unwrap_err().contains("partition/offset"), "{text}");
        }
    }
}
