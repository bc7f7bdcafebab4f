//! The window of the gate, without Kafka: it takes records in, and has the records to send, the offsets to commit and those to
//! seek back to.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use holdfast_schemas::{DeadLetter, DeadLetterReason, Event, EventData, Key, Origin, Record, Refusal, decode};
use time::OffsetDateTime;

use super::Route;
use crate::traces::{self, AdmittedRecord, ReadEvent, Traced};

/// Bounds of one window; each may be passed by one record.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Records read.
    pub records: usize,
    /// Bytes of keys, values and headers read.
    pub bytes: usize,
    /// Admitted records made.
    pub admitted: usize,
}

/// Bounds of one admitted record, which is one delivery to a handler. What a delivery costs besides its events is shared by them; with
/// its key it is smaller than 1 MiB, the least that `--admitted-record-bytes` may be.
const EVENTS_PER_RECORD: usize = 2_000;
const BYTES_PER_RECORD: usize = 1_000 * 1024;

/// Records that were read together, and the records that are sent for them.
#[derive(Debug)]
pub(super) struct Window {
    bounds: Bounds,
    /// An event older than this may be a repeat whose idempotency record was swept.
    retention: Duration,
    admitted: Vec<Admitted>,
    /// Index in `admitted` of the record that gets a key's next event.
    open: HashMap<TopicKey, usize>,
    records: usize,
    bytes: usize,
    spans: Spans,
}

/// An admitted topic, and a key there.
pub(super) type TopicKey = (&'static str, String);

/// The offsets that a window covers, by topic and partition.
pub(super) type Spans = BTreeMap<(&'static str, i32), Span>;

/// A stretch of one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    /// The first offset read: the one to seek back to.
    pub first: i64,
    /// The offset after the last one read: the one to commit.
    pub next: i64,
}

/// Events of one key that are sent as one record: a JSON batch of CloudEvents.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Admitted {
    pub topic: &'static str,
    pub key: String,
    pub value: Vec<u8>,
    pub events: usize,
    /// Those of its events whose traces are recorded.
    pub traced: Vec<ReadEvent>,
}

/// A decoder of records: it gives the event in its normalised form.
pub(super) type Decoder = fn(&Record<'_>, &Origin, OffsetDateTime, Duration) -> Result<Clean, Refusal>;

/// An event that was decoded and checked.
#[derive(Debug)]
pub(super) struct Clean {
    key: String,
    json: Vec<u8>,
    traced: Option<ReadEvent>,
}

/// The decision about one record.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Admitted,
    /// It is dead-lettered at once, with its original bytes and these headers.
    Rejected(DeadLetter),
}

impl Window {
    pub(super) fn new(bounds: Bounds, retention: Duration) -> Self {
        Self {
            bounds,
            retention,
            admitted: Vec::new(),
            open: HashMap::new(),
            records: 0,
            bytes: 0,
            spans: Spans::new(),
        }
    }

    /// Takes the next record of its partition, of so many bytes. `record` is the refusal when it could not even be read, or when
    /// what was made of it is known to be refused.
    pub(super) fn take(
        &mut self,
        route: &Route,
        origin: Origin,
        bytes: usize,
        record: Result<Record<'_>, Refusal>,
        now: OffsetDateTime,
    ) -> Verdict {
        self.records += 1;
        self.bytes += bytes;
        self.cover(route.public, origin.partition, origin.offset);
        let event = record.and_then(|record| (route.read)(&record, &origin, now, self.retention));
        match event {
            Ok(event) => {
                self.admit(route.admitted, event);
                Verdict::Admitted
            }
            Err(Refusal { reason, detail }) => Verdict::Rejected(DeadLetter { reason, detail, origin }),
        }
    }

    /// The keys of its events.
    pub(super) fn keys(&self) -> impl Iterator<Item = &TopicKey> {
        self.open.keys()
    }

    /// The records to send, in the order in which the keys first appeared; of one key in the order of its events.
    pub(super) fn admitted(&self) -> &[Admitted] {
        &self.admitted
    }

    /// The records that have events whose traces are recorded, once they were sent.
    pub(super) fn into_traced(self, sent_at: u64) -> Vec<AdmittedRecord> {
        let traced = self.admitted.into_iter().filter(|record| !record.traced.is_empty());
        let traced = traced.map(|record| AdmittedRecord {
            topic: record.topic,
            key: record.key,
            events: record.events,
            traced: record.traced,
            sent_at,
        });
        traced.collect()
    }

    /// The offsets covered.
    pub(super) fn spans(&self) -> &Spans {
        &self.spans
    }

    /// Records taken.
    pub(super) fn records(&self) -> usize {
        self.records
    }

    pub(super) fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// True if nothing more fits: the gate sends the window before it reads on.
    pub(super) fn is_full(&self) -> bool {
        self.records >= self.bounds.records
            || self.bytes >= self.bounds.bytes
            || self.admitted.len() >= self.bounds.admitted
    }

    fn cover(&mut self, topic: &'static str, partition: i32, offset: i64) {
        let span = self.spans.entry((topic, partition)).or_insert(Span {
            first: offset,
            next: offset,
        });
        span.next = offset + 1;
    }

    fn admit(&mut self, topic: &'static str, Clean { key, json, traced }: Clean) {
        let key = (topic, key);
        if let Some(place) = self.open.get(&key)
            && self.admitted[*place].append(&json)
        {
            self.admitted[*place].traced.extend(traced);
            return;
        }
        let mut admitted = Admitted::new(topic, key.1.clone(), &json);
        admitted.traced.extend(traced);
        self.admitted.push(admitted);
        self.open.insert(key, self.admitted.len() - 1);
    }
}

impl Admitted {
    fn new(topic: &'static str, key: String, first: &[u8]) -> Self {
        let mut value = Vec::with_capacity(first.len() + 2);
        value.push(b'[');
        value.extend_from_slice(first);
        value.push(b']');
        Self {
            topic,
            key,
            value,
            events: 1,
            traced: Vec::new(),
        }
    }

    /// Adds an event, unless the record is full.
    fn append(&mut self, json: &[u8]) -> bool {
        let fits = self.events < EVENTS_PER_RECORD && self.value.len() + 1 + json.len() <= BYTES_PER_RECORD;
        if fits {
            self.value.pop();
            self.value.push(b',');
            self.value.extend_from_slice(json);
            self.value.push(b']');
            self.events += 1;
        }
        fits
    }
}

/// Decodes a record as what `A` asks, as [`check`] lets it pass.
pub(super) fn read<A: EventData>(
    record: &Record<'_>,
    origin: &Origin,
    now: OffsetDateTime,
    retention: Duration,
) -> Result<Clean, Refusal> {
    let event = check::<A>(record, origin, now, retention)?;
    let traced = Traced::of(&event.traceparent, event.source.as_str(), event.id.as_str());
    Ok(Clean {
        key: event.subject.as_str().to_owned(),
        json: event.to_json(),
        traced: traced.map(|traced| ReadEvent {
            traced,
            event_type: event.event_type(),
            origin: origin.clone(),
            read_at: traces::now(),
        }),
    })
}

/// Decodes a record, and refuses an event whose repeats are no longer recognised, or would be for ever. Its age
/// counts from the earlier of its own time and the broker's: a producer that repeats an id keeps its time.
pub(super) fn check<A: EventData>(
    record: &Record<'_>,
    origin: &Origin,
    now: OffsetDateTime,
    retention: Duration,
) -> Result<Event<A>, Refusal> {
    let mut event = decode::<A>(record)?;
    let aged_from = event.time.min(origin.time);
    if now - aged_from > retention {
        let days = retention.as_secs_f64() / 86_400.0;
        return Err(Refusal::new(
            DeadLetterReason::TooOld,
            format!(
                "time: more than {days} days ago, by the event's time or the broker's; look up what became of the event, \
                 then send it anew with a new id and time"
            ),
        ));
    }
    event.check_time(origin.time)?;
    event.origin = Some(origin.clone());
    Ok(event)
}

#[cfg(test)]
mod tests {
    use holdfast_schemas::{TicketEvent, UserEvent, decode_delivery};
    use time::macros::datetime;

    use super::*;

    const ROUTE: Route = Route::of::<TicketEvent>();
    const NOW: OffsetDateTime = datetime!(2030-01-31 12:00 UTC);
    const BOUNDS: Bounds = Bounds {
        records: 10_000,
        bytes: 16 << 20,
        admitted: 10_000,
    };

    fn window() -> Window {
        Window::new(BOUNDS, Duration::from_secs(7 * 86_400))
    }

    fn origin(partition: i32, offset: i64) -> Origin {
        Origin {
            topic: ROUTE.public.into(),
            partition,
            offset,
            time: NOW,
        }
    }

    fn event(key: &str, id: &str, time: &str) -> String {
        format!(
            r#"{{"specversion":"1.0","type":"holdfast.reservation.requested.v1","source":"shop","id":"{id}",
            "subject":"{key}","time":"{time}","data":{{"user":"ann"}}}}"#
        )
    }

    fn take(window: &mut Window, offset: i64, key: &str, value: &str) -> Verdict {
        let record = Record {
            key: Some(key.as_bytes()),
            value: Some(value.as_bytes()),
            headers: vec![],
        };
        window.take(&ROUTE, origin(0, offset), key.len() + value.len(), Ok(record), NOW)
    }

    fn request(window: &mut Window, offset: i64, key: &str) -> Verdict {
        take(
            window,
            offset,
            key,
            &event(key, &offset.to_string(), "2030-01-31T11:59:00Z"),
        )
    }

    #[test]
    fn events_of_one_key_leave_as_one_record_in_order_with_their_origins() {
        let mut window = window();
        for (offset, key) in ["B", "A", "B", "B", "A"].into_iter().enumerate() {
            assert_eq!(request(&mut window, offset as i64, key), Verdict::Admitted);
        }
        let keys: Vec<&str> = window.admitted().iter().map(|record| record.key.as_str()).collect();
        assert_eq!(keys, ["B", "A"]);
        let events = decode_delivery::<TicketEvent>(&window.admitted()[0].value).unwrap();
        let offsets: Vec<i64> = events
            .iter()
            .map(|event| event.as_ref().unwrap().origin.as_ref().unwrap().offset)
            .collect();
        assert_eq!(offsets, [0, 2, 3]);
        assert_eq!(window.admitted()[0].events, 3);
    }

    #[test]
    fn a_key_with_many_events_leaves_as_several_records_in_order() {
        let mut window = window();
        for offset in 0..4_500 {
            request(&mut window, offset, "A");
        }
        let sizes: Vec<usize> = window.admitted().iter().map(|record| record.events).collect();
        assert_eq!(sizes, [2_000, 2_000, 500]);
        let offsets: Vec<i64> = window
            .admitted()
            .iter()
            .flat_map(|record| decode_delivery::<TicketEvent>(&record.value).unwrap())
            .map(|event| event.unwrap().origin.unwrap().offset)
            .collect();
        assert!(offsets.is_sorted());
    }

    #[test]
    fn an_admitted_record_is_never_larger_than_its_bound() {
        let mut record = Admitted::new("t", "A".to_owned(), &vec![b'1'; BYTES_PER_RECORD - 10]);
        assert!(record.append(b"1234567"));
        assert!(!record.append(b""));
        assert_eq!(record.value.len(), BYTES_PER_RECORD);
    }

    #[test]
    fn a_record_that_cannot_be_decoded_is_a_dead_letter_and_the_next_goes_on() {
        let mut window = window();
        let Verdict::Rejected(letter) = take(&mut window, 7, "A", "{") else {
            panic!("it was admitted");
        };
        assert_eq!(letter.reason, DeadLetterReason::Undecodable);
        assert_eq!(letter.origin, origin(0, 7));
        assert_eq!(request(&mut window, 8, "A"), Verdict::Admitted);
        assert_eq!((window.records(), window.admitted().len()), (2, 1));
        assert_eq!(window.spans()[&(ROUTE.public, 0)], Span { first: 7, next: 9 });
    }

    #[test]
    fn age_counts_from_the_earlier_of_the_events_time_and_the_brokers() {
        let young = event("A", "1", "2030-01-24T12:00:00Z");
        let old = event("A", "1", "2030-01-24T11:59:59Z");
        let mut window = window();
        assert_eq!(take(&mut window, 0, "A", &young), Verdict::Admitted);
        assert!(
            matches!(take(&mut window, 1, "A", &old), Verdict::Rejected(letter) if letter.reason == DeadLetterReason::TooOld)
        );
        let late = Origin {
            time: datetime!(2030-01-20 12:00 UTC),
            ..origin(0, 2)
        };
        let record = Record {
            key: Some(b"A"),
            value: Some(young.as_bytes()),
            headers: vec![],
        };
        assert!(matches!(
            window.take(&ROUTE, late, 300, Ok(record), NOW),
            Verdict::Rejected(_)
        ));
    }

    #[test]
    fn an_event_more_than_an_hour_ahead_of_the_broker_is_a_dead_letter() {
        let mut window = window();
        let verdict = take(&mut window, 0, "A", &event("A", "1", "2030-01-31T13:00:01Z"));
        assert!(matches!(verdict, Verdict::Rejected(letter) if letter.reason == DeadLetterReason::TooEarly));
        assert_eq!(
            take(&mut window, 1, "A", &event("A", "1", "2030-01-31T13:00:00Z")),
            Verdict::Admitted
        );
    }

    #[test]
    fn a_record_that_cannot_be_read_counts_with_its_bytes() {
        let bounds = Bounds { bytes: 1_000, ..BOUNDS };
        let mut window = Window::new(bounds, Duration::from_secs(7 * 86_400));
        let refusal = Refusal::new(DeadLetterReason::InvalidAttribute, "headers");
        window.take(&ROUTE, origin(0, 0), 1_000, Err(refusal), NOW);
        assert!(window.is_full());
    }

    #[test]
    fn a_window_is_full_at_any_of_its_bounds() {
        let retention = Duration::from_secs(7 * 86_400);
        let bounds = |records, bytes, admitted| Bounds {
            records,
            bytes,
            admitted,
        };
        for (bounds, taken) in [
            (bounds(3, 1 << 20, 9), 3),
            (bounds(9, 300, 9), 2),
            (bounds(9, 1 << 20, 1), 1),
        ] {
            let mut window = Window::new(bounds, retention);
            let fits = (0..9).take_while(|offset| {
                let room = !window.is_full();
                if room {
                    request(&mut window, *offset, &offset.to_string());
                }
                room
            });
            assert_eq!(fits.count(), taken, "{bounds:?}");
        }
    }

    #[test]
    fn a_user_and_a_ticket_of_one_name_go_apart() {
        let mut window = window();
        request(&mut window, 0, "A");
        let value = r#"{"specversion":"1.0","type":"holdfast.credits.added.v1","source":"shop","id":"1","subject":"A",
            "time":"2030-01-31T11:59:00Z","data":{"amount":5}}"#;
        let record = Record {
            key: Some(b"A"),
            value: Some(value.as_bytes()),
            headers: vec![],
        };
        let taken = window.take(&Route::of::<UserEvent>(), origin(0, 1), 300, Ok(record), NOW);
        assert_eq!(taken, Verdict::Admitted);
        let topics: Vec<_> = window.admitted().iter().map(|record| record.topic).collect();
        assert_eq!(topics, ["reservations.admitted", "payments.admitted"]);
    }

    #[test]
    fn each_partition_has_its_own_span() {
        let mut window = window();
        for (partition, offset) in [(3, 10), (1, 5), (3, 12), (1, 6)] {
            let refusal = Refusal::new(DeadLetterReason::Undecodable, "");
            window.take(&ROUTE, origin(partition, offset), 1, Err(refusal), NOW);
        }
        assert_eq!(window.spans()[&(ROUTE.public, 3)], Span { first: 10, next: 13 });
        assert_eq!(window.spans()[&(ROUTE.public, 1)], Span { first: 5, next: 7 });
    }
}
