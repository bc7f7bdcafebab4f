//! How the gate finds a record that Kafka refuses for good: whatever the cause, the windows become smaller until one record is
//! left, and that one goes to the dead letters. A Kafka that is away refuses nothing, and begins no search.

use std::collections::BTreeMap;

use holdfast_schemas::{DeadLetterReason, Refusal};
use rdkafka::error::RDKafkaErrorCode;

use super::window::Spans;
use crate::transience::{self, Fault};

/// True if Kafka would refuse this record, or another of its produce batch, again. Any other error passes, or is an operator's
/// to mend, and puts no record aside.
pub(super) fn refuses_record(code: RDKafkaErrorCode) -> bool {
    transience::kafka(code) == Fault::Content
}

/// A record, by topic, partition and offset.
pub(super) type RecordPosition = (&'static str, i32, i64);

/// What is known of records that Kafka refuses for good.
#[derive(Debug, Default)]
pub(super) struct Search {
    /// Most records of a window while one is looked for.
    limit: Option<usize>,
    /// Records of the refused window that have not passed since. None left: the next windows may grow again.
    suspects: usize,
    found: BTreeMap<RecordPosition, RefusedRecord>,
}

/// A record that was refused by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RefusedRecord {
    /// What Kafka said to what was made of it; none when nothing was made, since the gate refuses the record itself.
    pub code: Option<RDKafkaErrorCode>,
    /// Its dead letter was refused as well, and goes out without its bytes.
    pub bare: bool,
}

impl Search {
    /// How many records the next window may have.
    pub(super) fn limit(&self, most: usize) -> usize {
        self.limit.map_or(most, |limit| limit.min(most))
    }

    /// The record, if it was found to be refused.
    pub(super) fn found(&self, place: RecordPosition) -> Option<RefusedRecord> {
        self.found.get(&place).copied()
    }

    /// Kafka refused a window for good: the same is tried once more, then halves of it, and one record twice. `letters`: what
    /// was refused holds dead letters alone. Answers the record once it is found.
    pub(super) fn refused(
        &mut self,
        records: usize,
        spans: &Spans,
        letters: bool,
        code: RDKafkaErrorCode,
    ) -> Option<RecordPosition> {
        self.suspects = records;
        match self.limit {
            None => self.limit = Some(records.max(1)),
            Some(_) if records > 1 => self.limit = Some(records / 2),
            Some(_) => {
                let ((topic, partition), span) = spans.first_key_value()?;
                let place = (*topic, *partition, span.first);
                let code = Some(code).filter(|_| !letters);
                let found = self.found.entry(place);
                let found = found.and_modify(|found| found.bare = true);
                found.or_insert(RefusedRecord { code, bare: letters });
                return Some(place);
            }
        }
        None
    }

    /// A window came through: what was found in it is settled. Once all that was refused has passed, windows grow again.
    pub(super) fn passed(&mut self, records: usize, spans: &Spans, most: usize) {
        let before = self.found.len();
        self.found.retain(|(topic, partition, offset), _| {
            let span = spans.get(&(*topic, *partition));
            !span.is_some_and(|span| (span.first..span.next).contains(offset))
        });
        self.suspects = match self.found.len() < before {
            true => 0,
            false => self.suspects.saturating_sub(records),
        };
        if self.suspects == 0 {
            self.limit = self.limit.map(|limit| 2 * limit).filter(|limit| *limit < most);
        }
    }
}

impl RefusedRecord {
    /// Why it is not admitted, if it would be otherwise.
    pub(super) fn refusal(self) -> Option<Refusal> {
        let code = self.code?;
        let detail = format!(
            "value: Kafka refused what the gate made of it, twice and alone ({code}); mend that, then replay the record"
        );
        Some(Refusal::new(DeadLetterReason::NotAdmitted, detail))
    }
}

#[cfg(test)]
mod tests {
    use super::super::window::Span;
    use super::*;

    const CODE: RDKafkaErrorCode = RDKafkaErrorCode::MessageSizeTooLarge;
    const MOST: usize = 20_000;

    fn spans(first: i64, next: i64) -> Spans {
        Spans::from([(("reservations", 0), Span { first, next })])
    }

    /// Sends records 0 to 99 in windows, of which any with one of `bad` is refused; how many windows it took, and what was put
    /// aside.
    fn run(bad: &[i64]) -> (usize, Vec<i64>) {
        let (mut search, mut windows, mut aside) = (Search::default(), 0, Vec::new());
        let mut first = 0;
        while first < 100 {
            windows += 1;
            assert!(windows < 1_000, "no end: {search:?}");
            let next = (first + search.limit(MOST) as i64).min(100);
            let admits = |offset: &i64| search.found(("reservations", 0, *offset)).is_none();
            let refused = (first..next).filter(admits).any(|offset| bad.contains(&offset));
            let records = (next - first) as usize;
            if refused {
                search.refused(records, &spans(first, next), false, CODE);
            } else {
                aside.extend((first..next).filter(|offset| !admits(offset)));
                search.passed(records, &spans(first, next), MOST);
                first = next;
            }
        }
        (windows, aside)
    }

    #[test]
    fn the_refused_records_alone_are_put_aside() {
        for bad in [&[][..], &[0], &[99], &[42], &[42, 43], &[1, 50, 98]] {
            let (windows, aside) = run(bad);
            assert_eq!(aside, bad);
            assert!(windows <= 1 + 25 * bad.len(), "{bad:?}: {windows} windows");
        }
    }

    #[test]
    fn nothing_is_put_aside_before_it_was_refused_twice() {
        let mut search = Search::default();
        assert_eq!(search.refused(1, &spans(7, 8), false, CODE), None);
        assert_eq!(search.found(("reservations", 0, 7)), None);
        assert_eq!(
            search.refused(1, &spans(7, 8), false, CODE),
            Some(("reservations", 0, 7))
        );
    }

    #[test]
    fn a_dead_letter_that_is_refused_goes_out_without_its_bytes() {
        let mut search = Search::default();
        for (letters, bare) in [(false, None), (false, Some(false)), (true, Some(true))] {
            search.refused(1, &spans(7, 8), letters, CODE);
            assert_eq!(search.found(("reservations", 0, 7)).map(|found| found.bare), bare);
        }
    }

    #[test]
    fn windows_grow_again_once_all_that_was_refused_has_passed() {
        let mut search = Search::default();
        for _ in 0..3 {
            search.refused(search.limit(1_000), &spans(0, 1_000), false, CODE);
        }
        assert_eq!(search.limit(MOST), 250);
        search.passed(250, &spans(0, 250), MOST);
        assert_eq!(search.limit(MOST), 250);
        search.passed(250, &spans(250, 500), MOST);
        assert_eq!(search.limit(MOST), 500);
        for first in [500, 1_000, 2_000, 4_000, 8_000, 16_000] {
            search.passed(search.limit(MOST), &spans(first, 2 * first), MOST);
        }
        assert_eq!(search.limit, None);
    }
}
