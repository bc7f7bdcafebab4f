//! From bytes to events: CloudEvents 1.0 as Kafka carries them, in structured and in binary content mode.
//!
//! `time` is required: `too_old` needs it, and a producer that repeats an id must repeat it. Unknown fields inside `data`
//! are refused, since a mistyped optional field would silently become its default; unknown CloudEvents attributes are
//! ignored, as the specification demands.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::error::Category;
use serde_json::value::RawValue;

use crate::event::{Content, Event, Origin};
use crate::moment;
use crate::refusal::{DeadLetterReason, Refusal};
use crate::stream::{EventData, Key};
use crate::text::{Invalid, NUL, Source};
use crate::trace::Traceparent;
use crate::version::Version;

/// Deepest nesting of JSON that is accepted; events of the catalogue nest 3 deep.
const MAX_NESTING: usize = 32;

/// A Kafka record as a client hands it over.
#[derive(Debug, Clone)]
pub struct Record<'a> {
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    pub headers: Vec<(&'a str, Option<&'a [u8]>)>,
}

/// Decodes a record of the public topic on which `A` is asked.
///
/// The content mode is structured if the content type says so, else binary if there is a header `ce_specversion`. A record
/// with neither is taken as structured if its value looks like it, so that a plain console client can send events.
/// A claimed origin is not believed: [`Event::origin`] is none.
pub fn decode<A: EventData>(record: &Record) -> Result<Event<A>, Refusal> {
    let key: A::Key = key(record.key)?;
    let value = value(record.value)?;
    let headers = Headers(&record.headers);
    let event = match headers.content_mode()? {
        ContentMode::Structured => structured(value)?,
        ContentMode::Binary => headers.binary(value)?,
        ContentMode::Unsaid => {
            let event = structured(value)?;
            event.must_be_one(headers)?;
            event
        }
    }
    .check()?;
    match event.subject == key {
        true => Ok(event),
        false => Err(refuse(
            DeadLetterReason::KeyMismatch,
            mismatch(key.as_str(), event.subject.as_str()),
        )),
    }
}

/// What stands in a gathered record and cannot be taken, for example because this build does not know its type yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undecoded {
    pub refusal: Refusal,
    /// Where the gate had it from, if that can be read.
    pub origin: Option<Origin>,
    /// Its JSON.
    pub value: Vec<u8>,
}

/// Decodes a delivery to a handler: `[` opens a record of the gate, events of one key each with its origin; `{` one event
/// in structured mode, straight from a public topic. In a record of the gate each event stands or falls by itself.
///
/// # Errors
/// The delivery as a whole cannot be read, or it is one event that cannot be taken.
pub fn decode_delivery<A: EventData>(value: &[u8]) -> Result<Vec<Result<Event<A>, Undecoded>>, Refusal> {
    let text = utf8(value)?;
    if !text.trim_ascii_start().starts_with('[') {
        return Ok(vec![Ok(structured(text)?.check()?)]);
    }
    let gathered: Vec<&RawValue> = serde_json::from_str(text).map_err(malformed)?;
    Ok(gathered.into_iter().map(RawValue::get).map(decode_gathered).collect())
}

fn decode_gathered<A: EventData>(json: &str) -> Result<Event<A>, Undecoded> {
    let undecoded = |origin, refusal| Undecoded {
        refusal,
        origin,
        value: json.as_bytes().to_vec(),
    };
    let envelope = structured(json).map_err(|refusal| undecoded(None, refusal))?;
    let origin = envelope.origin().map_err(|refusal| undecoded(None, refusal))?;
    match envelope.check::<A>() {
        Ok(mut event) => {
            event.origin = Some(origin);
            Ok(event)
        }
        Err(refusal) => Err(undecoded(Some(origin), refusal)),
    }
}

fn refuse(reason: DeadLetterReason, detail: impl Into<String>) -> Refusal {
    Refusal::new(reason, detail)
}

fn key<K: Key>(key: Option<&[u8]>) -> Result<K, Refusal> {
    let bytes = key.ok_or_else(|| refuse(DeadLetterReason::KeyMissing, "key: missing; set it to the subject"))?;
    if bytes.is_empty() {
        return Err(refuse(DeadLetterReason::KeyEmpty, "key: empty; set it to the subject"));
    }
    let key = std::str::from_utf8(bytes).map_err(|_| {
        refuse(
            DeadLetterReason::KeyNotUtf8,
            "key: not UTF-8; write it with a string serializer",
        )
    })?;
    K::parse(key).map_err(|invalid| invalid_as(DeadLetterReason::KeyInvalid, "key", &invalid))
}

/// Names the mistakes that producers make with keys.
fn mismatch(key: &str, subject: &str) -> &'static str {
    if serde_json::from_str::<String>(key).is_ok_and(|unquoted| unquoted == subject) {
        return "key: the subject in JSON quotes; write the key with a string serializer, not with one for JSON";
    }
    if key.trim() == subject.trim() {
        return "subject: differs from the record's key by blanks at an end; make them equal";
    }
    "subject: differs from the record's key; make them equal"
}

fn value(value: Option<&[u8]>) -> Result<&str, Refusal> {
    let reason = DeadLetterReason::Tombstone;
    utf8(value.ok_or_else(|| refuse(reason, "value: null, a tombstone, says nothing here; send an event"))?)
}

fn utf8(value: &[u8]) -> Result<&str, Refusal> {
    std::str::from_utf8(value).map_err(|error| {
        let place = error.valid_up_to();
        let mend = match value {
            [0x1f, 0x8b, ..] => "it is compressed by gzip; let the Kafka client compress, and send JSON",
            [0, ..] => SCHEMA_REGISTRY,
            _ => "send JSON in UTF-8",
        };
        refuse(
            DeadLetterReason::Undecodable,
            format!("value: not UTF-8 from byte {place}; {mend}"),
        )
    })
}

/// U+0000 has its own reason wherever it stands.
fn invalid_as(reason: DeadLetterReason, place: &str, invalid: &Invalid) -> Refusal {
    let reason = if invalid.0 == NUL {
        DeadLetterReason::NulCharacter
    } else {
        reason
    };
    refuse(reason, format!("{place}: {invalid}"))
}

/// What Avro, Protobuf and JSON Schema serializers with a schema registry write first.
const SCHEMA_REGISTRY: &str = "it begins with byte 0, the mark of a schema registry's serializer; send plain JSON";

enum ContentMode {
    Structured,
    Binary,
    Unsaid,
}

#[derive(Clone, Copy)]
struct Headers<'r>(&'r [(&'r str, Option<&'r [u8]>)]);

impl<'r> Headers<'r> {
    fn content_mode(self) -> Result<ContentMode, Refusal> {
        let content_type = self.text("content-type")?.unwrap_or_default();
        let media_type = media_type(content_type);
        if media_type.eq_ignore_ascii_case("application/cloudevents+json") {
            return Ok(ContentMode::Structured);
        }
        if media_type.to_ascii_lowercase().starts_with("application/cloudevents") {
            let detail = "content-type: neither a batch nor another format than JSON is taken; send one event per record, \
                          with application/cloudevents+json";
            return Err(refuse(DeadLetterReason::ContentMode, detail));
        }
        match self.text("ce_specversion")? {
            Some(version) if version.starts_with('"') => Err(refuse(
                DeadLetterReason::InvalidAttribute,
                "header ce_specversion: in JSON quotes; write header values as plain text, not by a mapper to JSON",
            )),
            Some(_) => Ok(ContentMode::Binary),
            None => Ok(ContentMode::Unsaid),
        }
    }

    fn binary(self, value: &'r str) -> Result<Envelope<'r>, Refusal> {
        for (name, value) in self.0 {
            if name.starts_with("ce_") && value.is_some_and(|value| value.contains(&0)) {
                return Err(refuse(DeadLetterReason::NulCharacter, format!("header {name}: {NUL}")));
            }
        }
        let attribute = |name| Ok(self.text(name)?.map(|text| Attribute::Text(text.into())));
        Ok(Envelope {
            specversion: attribute("ce_specversion")?,
            id: attribute("ce_id")?,
            source: attribute("ce_source")?,
            event_type: attribute("ce_type")?,
            subject: attribute("ce_subject")?,
            time: attribute("ce_time")?,
            datacontenttype: attribute("content-type")?,
            traceparent: self.last("ce_traceparent").and_then(as_text),
            data: match value {
                // In this mode an empty value is an event without data, which some types allow.
                "" => None,
                json => {
                    let data = serde_json::from_str(json).map_err(malformed)?;
                    inspect(json)?;
                    data
                }
            },
            ..Envelope::default()
        })
    }

    /// The prefix of another protocol's binding of CloudEvents, where headers bear it.
    fn strange_prefix(self) -> Option<&'static str> {
        let prefixes = ["ce-", "cloudEvents:", "cloudEvents_"];
        let bears = |prefix: &&str| {
            let mut names = self.0.iter().map(|(name, _)| name.get(..prefix.len()));
            names.any(|start| start.is_some_and(|start| start.eq_ignore_ascii_case(prefix)))
        };
        prefixes.into_iter().find(bears)
    }

    fn has_attributes(self) -> bool {
        self.0
            .iter()
            .any(|(name, value)| name.starts_with("ce_") && value.is_some())
    }

    /// A header that must be there once at most and be UTF-8. Null is absent.
    fn text(self, wanted: &str) -> Result<Option<&'r str>, Refusal> {
        let Some(value) = self.last(wanted) else {
            return Ok(None);
        };
        let wrong = |why: &str| refuse(DeadLetterReason::InvalidAttribute, format!("header {wanted}: {why}"));
        if self.named(wanted).count() > 1 {
            return Err(wrong("given more than once; send one"));
        }
        std::str::from_utf8(value)
            .map(Some)
            .map_err(|_| wrong("not UTF-8; send text"))
    }

    fn last(self, wanted: &str) -> Option<&'r [u8]> {
        self.named(wanted).last()
    }

    fn named(self, wanted: &str) -> impl Iterator<Item = &'r [u8]> {
        let named = self.0.iter().filter(move |(name, _)| name.eq_ignore_ascii_case(wanted));
        named.filter_map(|(_, value)| *value)
    }
}

fn media_type(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim_ascii()
}

fn as_text(bytes: &[u8]) -> Option<Attribute<'_>> {
    std::str::from_utf8(bytes).ok().map(|text| Attribute::Text(text.into()))
}

fn structured(text: &str) -> Result<Envelope<'_>, Refusal> {
    if text.trim_ascii_start().starts_with('{') {
        let envelope = serde_json::from_str(text).map_err(malformed)?;
        inspect(text)?;
        return Ok(envelope);
    }
    match text.as_bytes() {
        [0, ..] => {
            return Err(refuse(
                DeadLetterReason::Undecodable,
                format!("value: no JSON; {SCHEMA_REGISTRY}"),
            ));
        }
        [0xef, 0xbb, 0xbf, ..] => {
            let detail = "value: begins with a byte order mark; send JSON without one";
            return Err(refuse(DeadLetterReason::Undecodable, detail));
        }
        _ => serde_json::from_str::<IgnoredAny>(text).map_err(malformed)?,
    };
    let detail = match serde_json::from_str::<String>(text) {
        Ok(inner) if inner.trim_ascii_start().starts_with('{') => {
            "value: an object inside of a JSON text: it was serialised twice; send the object itself"
        }
        _ => "value: JSON, but no object; send one CloudEvent per record",
    };
    Err(refuse(DeadLetterReason::ContentMode, detail))
}

/// An error of JSON itself, or of the shape of the envelope.
fn malformed(error: serde_json::Error) -> Refusal {
    match error.classify() {
        Category::Data => refuse(DeadLetterReason::InvalidAttribute, format!("value: {error}")),
        _ => refuse(
            DeadLetterReason::Undecodable,
            format!("value: {error}; send one CloudEvent as JSON"),
        ),
    }
}

/// Checks that a text is JSON without deep nesting and without U+0000, which only an escape can write.
fn inspect(json: &str) -> Result<(), Refusal> {
    let mut depth = 0_usize;
    let mut in_string = false;
    let mut bytes = json.as_bytes();
    while let [byte, rest @ ..] = bytes {
        bytes = rest;
        match byte {
            b'"' => in_string = !in_string,
            b'\\' if rest.starts_with(b"u0000") => {
                return Err(refuse(DeadLetterReason::NulCharacter, format!("value: {NUL}")));
            }
            b'\\' => bytes = rest.get(1..).unwrap_or_default(),
            b'[' | b'{' if !in_string => depth += 1,
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_NESTING {
            let detail = format!("value: nested more than {MAX_NESTING} deep; send an event of the catalogue");
            return Err(refuse(DeadLetterReason::Undecodable, detail));
        }
    }
    Ok(())
}

/// A CloudEvent before its checks: unknown attributes are ignored, as the specification demands.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Envelope<'a> {
    #[serde(borrow)]
    specversion: Option<Attribute<'a>>,
    id: Option<Attribute<'a>>,
    source: Option<Attribute<'a>>,
    #[serde(rename = "type")]
    event_type: Option<Attribute<'a>>,
    subject: Option<Attribute<'a>>,
    time: Option<Attribute<'a>>,
    datacontenttype: Option<Attribute<'a>>,
    traceparent: Option<Attribute<'a>>,
    origintopic: Option<Attribute<'a>>,
    originpartition: Option<Attribute<'a>>,
    originoffset: Option<Attribute<'a>>,
    origintime: Option<Attribute<'a>>,
    data: Option<&'a RawValue>,
    data_base64: Option<IgnoredAny>,
}

impl Envelope<'_> {
    /// For a record whose headers say nothing: is it a CloudEvent at all?
    fn must_be_one(&self, headers: Headers) -> Result<(), Refusal> {
        if self.specversion.is_some() {
            return Ok(());
        }
        if headers.has_attributes() {
            let detail = "header ce_specversion: missing; send it with 1.0";
            return Err(refuse(DeadLetterReason::MissingAttribute, detail));
        }
        if let Some(prefix) = headers.strange_prefix() {
            let detail = format!(
                "headers: named with {prefix}, as another protocol has it; in Kafka CloudEvents attributes are ce_specversion, \
                 ce_id, ce_source, ce_type, ce_subject and ce_time"
            );
            return Err(refuse(DeadLetterReason::ContentMode, detail));
        }
        if self.id.is_some() || self.source.is_some() || self.event_type.is_some() {
            return Ok(()); // and is told below what is missing
        }
        let detail =
            "value: no CloudEvent; send specversion, id, source, type, subject, time and data as one JSON object";
        Err(refuse(DeadLetterReason::ContentMode, detail))
    }

    fn check<A: EventData>(self) -> Result<Event<A>, Refusal> {
        self.must_be_complete()?;
        must_equal(
            "specversion",
            &self.specversion,
            |version| version == "1.0",
            "must be 1.0",
        )?;
        let version = version::<A>(&text("type", &self.event_type)?)?;
        let is_json = |content_type: &str| media_type(content_type).eq_ignore_ascii_case("application/json");
        must_equal(
            "datacontenttype",
            &self.datacontenttype,
            is_json,
            "must be application/json",
        )?;
        if self.data_base64.is_some() {
            return Err(refuse(
                DeadLetterReason::InvalidData,
                "data_base64: not taken; send JSON as data",
            ));
        }
        let source: Source = parse("source", &self.source, str::parse)?;
        if source.is_reserved() {
            return Err(refuse(
                DeadLetterReason::ReservedSource,
                "source: begins with holdfast or restate:, which only Holdfast itself may use; name the producer",
            ));
        }
        let id = parse("id", &self.id, str::parse)?;
        let subject = parse("subject", &self.subject, A::Key::parse)?;
        let time = parse("time", &self.time, moment::parse)?;
        // W3C Trace Context demands that an invalid one is ignored.
        let traceparent = match &self.traceparent {
            Some(Attribute::Text(text)) => Traceparent::parse(text).ok(),
            _ => None,
        };
        // Absent data means the same as an empty object.
        let data = (version.read)(self.data.map_or("{}", RawValue::get));
        let data = data.map_err(|detail| refuse(DeadLetterReason::InvalidData, detail))?;
        let content = Content::new(version.name, &subject, data.canonical);
        let event = Event::assemble(source, id, time, traceparent, subject, data.current, content);
        event.check_size()?;
        Ok(event)
    }

    fn origin(&self) -> Result<Origin, Refusal> {
        Ok(Origin {
            topic: text("origintopic", &self.origintopic)?.into_owned(),
            partition: number("originpartition", &self.originpartition)?,
            offset: number("originoffset", &self.originoffset)?,
            time: parse("origintime", &self.origintime, moment::parse)?,
        })
    }

    fn must_be_complete(&self) -> Result<(), Refusal> {
        let required = [
            ("specversion", &self.specversion),
            ("id", &self.id),
            ("source", &self.source),
            ("type", &self.event_type),
            ("subject", &self.subject),
            ("time", &self.time),
        ];
        let missing = required
            .iter()
            .filter(|(_, attribute)| attribute.is_none())
            .map(|(name, _)| *name);
        let missing = missing.collect::<Vec<_>>();
        match missing.is_empty() {
            true => Ok(()),
            false => Err(refuse(
                DeadLetterReason::MissingAttribute,
                format!("{}: missing; add it", missing.join(", ")),
            )),
        }
    }
}

fn must_equal(
    name: &str,
    attribute: &Option<Attribute>,
    holds: impl Fn(&str) -> bool,
    expected: &str,
) -> Result<(), Refusal> {
    match attribute {
        Some(_) if !holds(&text(name, attribute)?) => Err(refuse(
            DeadLetterReason::InvalidAttribute,
            format!("{name}: {expected}"),
        )),
        _ => Ok(()),
    }
}

fn version<A: EventData>(name: &str) -> Result<&'static Version<A>, Refusal> {
    if let Some(version) = A::VERSIONS.iter().find(|version| version.name == name) {
        return Ok(version);
    }
    let shown: String = name.chars().take(100).collect();
    let known: Vec<_> = A::VERSIONS
        .iter()
        .map(|version| version.name)
        .filter(|known| stem(known) == stem(name))
        .collect();
    match stem(name).is_some() && !known.is_empty() {
        true => Err(refuse(
            DeadLetterReason::UnknownVersion,
            format!("type: {shown} is a version not known here; known: {}", known.join(", ")),
        )),
        false => {
            let all: Vec<_> = A::VERSIONS.iter().map(|version| version.name).collect();
            Err(refuse(
                DeadLetterReason::UnknownType,
                format!("type: {shown} is not known; known: {}", all.join(", ")),
            ))
        }
    }
}

/// A type without its version: `holdfast.ticket.listed` of `holdfast.ticket.listed.v12`.
fn stem(name: &str) -> Option<&str> {
    let (stem, number) = name.rsplit_once(".v")?;
    let is_number = !number.is_empty() && !number.starts_with('0') && number.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then_some(stem)
}

/// The value of an attribute, as far as CloudEvents values matter here.
enum Attribute<'a> {
    Text(Cow<'a, str>),
    Number(i64),
    Other,
}

fn parse<T>(
    name: &str,
    attribute: &Option<Attribute>,
    parse: impl Fn(&str) -> Result<T, Invalid>,
) -> Result<T, Refusal> {
    let text = text(name, attribute)?;
    parse(&text).map_err(|invalid| invalid_as(DeadLetterReason::InvalidAttribute, name, &invalid))
}

fn text<'a>(name: &str, attribute: &'a Option<Attribute>) -> Result<Cow<'a, str>, Refusal> {
    match attribute {
        Some(Attribute::Text(text)) => Ok(Cow::Borrowed(text)),
        Some(_) => Err(refuse(
            DeadLetterReason::InvalidAttribute,
            format!("{name}: not a text; send a JSON string"),
        )),
        None => Err(refuse(
            DeadLetterReason::MissingAttribute,
            format!("{name}: missing; add it"),
        )),
    }
}

/// A number that is written as number or as text.
fn number<T: TryFrom<i64>>(name: &str, attribute: &Option<Attribute>) -> Result<T, Refusal> {
    let number = match attribute {
        Some(Attribute::Text(text)) => text.parse().ok(),
        Some(Attribute::Number(number)) => Some(*number),
        _ => None,
    };
    let refusal = || refuse(DeadLetterReason::InvalidAttribute, format!("{name}: must be a number"));
    number.and_then(|number| T::try_from(number).ok()).ok_or_else(refusal)
}

impl<'de: 'a, 'a> Deserialize<'de> for Attribute<'a> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(AnyAttribute)
    }
}

struct AnyAttribute;

impl<'de> Visitor<'de> for AnyAttribute {
    type Value = Attribute<'de>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a CloudEvents attribute")
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Attribute::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Attribute::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Self::Value, E> {
        Ok(Attribute::Number(number))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
        Ok(i64::try_from(number).map_or(Attribute::Other, Attribute::Number))
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Attribute::Other)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Attribute::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Attribute::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
        while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Attribute::Other)
    }
}
