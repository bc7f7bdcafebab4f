//! The templates of mails, with the seller's identity: those of a folder, or those that come with Holdfast. All is checked when they
//! are loaded, before any socket opens: each language is complete, and each template is rendered with examples of every mail, so
//! that a mistake stops the start and not a mail.
//!
//! A folder has `seller.json`; for each language `words.<language>.json` and the subject, text and HTML of each mail
//! (`completed.en.subject`, `completed.en.txt`, `completed.en.html`); and any other template of text or HTML, for these to include.
//! docs/mails.md describes it for shops.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use holdfast_schemas::{CheckoutFailure, Language};
use minijinja::value::{Serde, Value, ValueKind};
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior, escape_formatter};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::facts::{Facts, Words, is_plain};
use super::shipped;
use crate::config::Invalid;
use crate::store::mails::{Contents, Kind};

/// Largest file of a folder, in bytes.
const LARGEST_FILE: u64 = 64 << 10;

/// Most files of a folder.
const MOST_FILES: usize = 1_000;

/// Largest text or HTML of a mail, in bytes. The example of an order with most tickets must fit.
const LARGEST_PART: usize = 1 << 20;

/// Longest subject, in characters.
const LONGEST_SUBJECT: usize = 200;

/// Longest display name of the sender, in characters: a name of one word in a header is not folded.
const LONGEST_SENDER: usize = 64;

/// Longest line of the seller's, and longest sentence of a language's words, in characters.
const LONGEST_LINE: usize = 500;

/// The bound of one rendering's work: its instructions, and 64 bytes of memory for each.
const FUEL: u64 = 500_000;

/// Stands in each text of an example that others write. It must not come out of HTML as it is.
const MARK: &str = "<\"&'>";

/// The file of the seller's identity.
const SELLER: &str = "seller.json";

/// The mails that there are templates for, by the first part of their files' names.
const MAILS: [&str; 3] = ["completed", "failed", "refunded"];

/// The parts of a mail, by the last part of their files' names.
const PARTS: [&str; 3] = ["subject", "txt", "html"];

/// The templates of all mails, in every language, each of which renders.
pub struct Templates {
    environment: Environment<'static>,
    /// By language tag, in lower case.
    languages: BTreeMap<String, Words>,
    seller: Seller,
}

/// Who sells, and who the mails are from.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Seller {
    /// Display name of the sender.
    sender: Option<String>,
    /// The language for users whose own has no templates.
    language: String,
    name: Option<String>,
    #[serde(default)]
    address: Vec<String>,
    contact: Option<String>,
    /// What the law wants to be said, such as a register's number.
    legal: Option<String>,
}

/// A mail without its addresses.
pub(super) struct RenderedMail {
    /// The recipient's name, as [`super::shown::name`] leaves it.
    pub(super) name: Option<String>,
    pub(super) subject: String,
    pub(super) text: String,
    pub(super) html: String,
}

/// The reason why a mail cannot be rendered.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("a template cannot be rendered")]
    Template(#[from] minijinja::Error),
    #[error("{file}: {what}")]
    Bound { file: String, what: &'static str },
}

/// What is wrong with a folder: the file, its line if one is to blame, and the mend.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Mistake {
    file: String,
    line: Option<usize>,
    what: String,
}

type Files = BTreeMap<String, String>;

impl Templates {
    /// Loads the templates of a folder; without one, those that come with Holdfast.
    ///
    /// # Errors
    /// Everything that is wrong with the folder.
    pub fn load(folder: Option<&Path>) -> Result<Self, Vec<Invalid>> {
        let loaded = match folder {
            Some(folder) => read(folder).and_then(Self::of),
            // A test has tried these.
            None => Self::untried(shipped::files()),
        };
        loaded.map_err(|mistakes| {
            mistakes
                .into_iter()
                .map(|mistake| mistake.into_setting(folder))
                .collect()
        })
    }

    fn of(files: Files) -> Result<Self, Vec<Mistake>> {
        let templates = Self::untried(files)?;
        let mistakes = templates.try_examples();
        if mistakes.is_empty() {
            Ok(templates)
        } else {
            Err(mistakes)
        }
    }

    fn untried(files: Files) -> Result<Self, Vec<Mistake>> {
        let mut mistakes = Vec::new();
        let seller = seller(&files, &mut mistakes);
        let languages = languages(&files, &mut mistakes);
        if let Some(seller) = &seller
            && !languages.contains_key(&seller.language)
        {
            let what = format!(
                "the language {:?} has no words: write words.{}.json, or name a language that has",
                seller.language, seller.language
            );
            mistakes.push(Mistake::new(SELLER, what));
        }
        complete(&files, &languages, &mut mistakes);
        let environment = environment(files, &mut mistakes);
        let Some(seller) = seller.filter(|_| mistakes.is_empty()) else {
            return Err(mistakes);
        };
        Ok(Self {
            environment,
            languages,
            seller,
        })
    }

    /// The display name of the sender, if it has one.
    pub(super) fn sender(&self) -> Option<&str> {
        self.seller.sender.as_deref()
    }

    /// Writes a mail. `amount`: the refund, in minor units.
    pub(super) fn render(&self, kind: Kind, amount: Option<i64>, contents: &Contents) -> Result<RenderedMail, Error> {
        let (language, words) = self.language(contents.user.language.as_ref());
        let facts = Facts::new(kind, amount, contents, words);
        let [subject, text, html] = PARTS.map(|part| self.part(&file(kind, language, part), part, &facts));
        Ok(RenderedMail {
            subject: subject?,
            text: text?,
            html: html?,
            name: facts.name,
        })
    }

    /// The words of the language that fits best: that of the whole tag, then of what is left without its last parts (RFC 4647,
    /// 3.4), then the seller's.
    fn language(&self, tag: Option<&Language>) -> (&str, &Words) {
        let tag = tag.map_or_else(String::new, |tag| tag.as_str().to_ascii_lowercase());
        let ends = tag.rmatch_indices('-').map(|(end, _)| end);
        let tags = [tag.len()].into_iter().chain(ends).map(|end| &tag[..end]);
        let known = tags.chain([self.seller.language.as_str()]);
        let (language, words) = known
            .filter_map(|tag| self.languages.get_key_value(tag))
            .next()
            .expect("the seller's language has words: they were looked at when the templates were loaded");
        (language, words)
    }

    fn part(&self, file: &str, part: &str, facts: &Facts) -> Result<String, Error> {
        #[derive(Serialize)]
        struct Context<'a> {
            facts: &'a Facts,
            seller: &'a Seller,
        }
        let context = Value::from(Serde(Context {
            facts,
            seller: &self.seller,
        }));
        let rendered = self.environment.get_template(file)?.render(context)?;
        let fault = match part {
            "subject" => bad_subject(&rendered),
            _ => (rendered.len() > LARGEST_PART).then_some("the mail is larger than 1 MiB: write less"),
        };
        match fault {
            Some(what) => Err(Error::Bound {
                file: file.to_owned(),
                what,
            }),
            None => Ok(rendered),
        }
    }

    /// Renders every template with examples of every mail.
    fn try_examples(&self) -> Vec<Mistake> {
        let mut mistakes = BTreeSet::new();
        for ((language, words), kind) in self.languages.iter().flat_map(|of| Kind::ALL.map(|kind| (of, kind))) {
            for facts in Facts::examples(kind, words, MARK) {
                for part in PARTS {
                    let file = file(kind, language, part);
                    match self.part(&file, part, &facts) {
                        Ok(html) if part == "html" && html.contains(MARK) => {
                            let what = "prints what customers or shops wrote without escaping it: include .html and not .txt, \
                                        and leave `autoescape` and `safe` out";
                            mistakes.insert(Mistake::new(&file, what));
                        }
                        Ok(_) => {}
                        Err(error) => {
                            mistakes.insert(Mistake::of_rendering(&file, &error));
                        }
                    }
                }
            }
        }
        mistakes.into_iter().collect()
    }
}

/// The name of a template's file.
fn file(kind: Kind, language: &str, part: &str) -> String {
    let mail = match kind {
        Kind::Completed => "completed",
        Kind::Failed => "failed",
        Kind::RefundedInPart | Kind::Refunded => "refunded",
    };
    format!("{mail}.{language}.{part}")
}

/// A header has one line.
fn bad_subject(subject: &str) -> Option<&'static str> {
    if !subject.chars().all(is_plain) {
        return Some("the subject has several lines or control characters: write one line");
    }
    let is_fit = (1..=LONGEST_SUBJECT).contains(&subject.chars().count()) && !subject.trim().is_empty();
    (!is_fit).then_some("the subject is empty or longer than 200 characters: write 1 to 200")
}

/// The files of a folder whose names mean something.
fn read(folder: &Path) -> Result<Files, Vec<Mistake>> {
    let unread = |file: &str, error: std::io::Error| {
        let what = format!("cannot be read ({error}): `holdfast admin mail templates --to FOLDER` writes a start");
        vec![Mistake::new(file, what)]
    };
    let mut files = Files::new();
    for entry in fs::read_dir(folder).map_err(|error| unread("", error))? {
        let path = entry.map_err(|error| unread("", error))?.path();
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        let means = ["json", "subject", "txt", "html"];
        let extension = path.extension().and_then(|extension| extension.to_str());
        if name.starts_with('.') || !extension.is_some_and(|extension| means.contains(&extension)) {
            continue;
        }
        let bytes = fs::metadata(&path).map_err(|error| unread(&name, error))?.len();
        if bytes > LARGEST_FILE || files.len() == MOST_FILES {
            let what = "is larger than 64 KiB, or the folder has more than 1000 files: shorten it";
            return Err(vec![Mistake::new(&name, what)]);
        }
        let text = fs::read_to_string(&path).map_err(|error| unread(&name, error))?;
        files.insert(name, text);
    }
    Ok(files)
}

fn seller(files: &Files, mistakes: &mut Vec<Mistake>) -> Option<Seller> {
    let seller: Seller = parsed(files, SELLER, mistakes)?;
    let of_sender = (seller.sender.iter()).map(|sender| ("sender", sender, LONGEST_SENDER));
    let lines = [
        ("name", &seller.name),
        ("contact", &seller.contact),
        ("legal", &seller.legal),
    ];
    let lines = (lines.into_iter()).filter_map(|(field, line)| Some((field, line.as_ref()?, LONGEST_LINE)));
    let address = (seller.address.iter()).map(|line| ("address", line, LONGEST_LINE));
    for (field, line, longest) in of_sender.chain(lines).chain(address) {
        if !is_line(line, longest) {
            let what = format!("`{field}`: give one line of 1 to {longest} characters, or null");
            mistakes.push(Mistake::new(SELLER, what));
        }
    }
    let says_more = !seller.address.is_empty() || seller.contact.is_some() || seller.legal.is_some();
    if says_more && seller.name.is_none() {
        mistakes.push(Mistake::new(SELLER, "`name`: give the seller's name, too"));
    }
    Some(seller)
}

/// The words of each language, which are what makes it one.
fn languages(files: &Files, mistakes: &mut Vec<Mistake>) -> BTreeMap<String, Words> {
    let mut languages = BTreeMap::new();
    for name in files.keys().filter(|name| name.ends_with(".json") && *name != SELLER) {
        let tag = name.strip_prefix("words.").and_then(|name| name.strip_suffix(".json"));
        let is_tag = |tag: &&str| Language::parse(tag).is_ok() && **tag == tag.to_ascii_lowercase();
        let Some(tag) = tag.filter(is_tag) else {
            let what = "means nothing: name it seller.json, or words.<language>.json with a language tag in lower case";
            mistakes.push(Mistake::new(name, what));
            continue;
        };
        let Some(words) = parsed::<Words>(files, name, mistakes) else {
            continue;
        };
        if !is_line(&words.decimal_point, 1) {
            mistakes.push(Mistake::new(name, "`decimal_point`: give one character"));
        }
        let reasons: BTreeSet<&str> = CheckoutFailure::ALL.iter().map(|reason| reason.as_str()).collect();
        let given: BTreeSet<&str> = words.failures.keys().map(String::as_str).collect();
        for reason in reasons.difference(&given) {
            mistakes.push(Mistake::new(
                name,
                format!("`failures` has no {reason:?}: write the sentence for it"),
            ));
        }
        for reason in given.difference(&reasons) {
            mistakes.push(Mistake::new(
                name,
                format!("`failures` has {reason:?}, which is no reason: leave it out"),
            ));
        }
        for (reason, sentence) in &words.failures {
            if !is_line(sentence, LONGEST_LINE) {
                let what = format!("`failures`, {reason:?}: give one line of 1 to {LONGEST_LINE} characters");
                mistakes.push(Mistake::new(name, what));
            }
        }
        languages.insert(tag.to_owned(), words);
    }
    languages
}

/// Each language has each part of each mail, and each part of a mail has a language.
fn complete(files: &Files, languages: &BTreeMap<String, Words>, mistakes: &mut Vec<Mistake>) {
    let expected = |language: &String| {
        let language = language.clone();
        MAILS
            .iter()
            .flat_map(|mail| PARTS.iter().map(move |part| (mail, part)))
            .map(move |(mail, part)| format!("{mail}.{language}.{part}"))
            .collect::<Vec<_>>()
    };
    let expected: BTreeSet<String> = languages.keys().flat_map(expected).collect();
    for name in expected.iter().filter(|name| !files.contains_key(*name)) {
        mistakes.push(Mistake::new(name, "is missing: each language with words has one"));
    }
    for name in files.keys().filter(|name| !expected.contains(*name)) {
        let is_mail = name.split('.').next().is_some_and(|first| MAILS.contains(&first));
        if is_mail || name.ends_with(".subject") {
            let what = "is of no mail in a language with words: name it <mail>.<language>.<part>, and write words.<language>.json";
            mistakes.push(Mistake::new(name, what));
        }
    }
}

fn environment(files: Files, mistakes: &mut Vec<Mistake>) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|name| match name.ends_with(".html") {
        true => AutoEscape::Html,
        false => AutoEscape::None,
    });
    environment.remove_filter("safe");
    environment.set_formatter(|out, state, value| match value.kind() {
        ValueKind::None => Err(unprintable("the value is missing here: print it inside `{% if %}`")),
        ValueKind::String | ValueKind::Number | ValueKind::Bool | ValueKind::Undefined => {
            escape_formatter(out, state, value)
        }
        _ => Err(unprintable("a list is no text: print its parts inside `{% for %}`")),
    });
    environment.set_fuel(Some(FUEL));
    for (name, text) in files {
        if name.ends_with(".json") {
            continue;
        }
        if let Err(error) = environment.add_template_owned(name.clone(), text) {
            mistakes.push(Mistake::of_template(&name, &error));
        }
    }
    environment
}

fn unprintable(what: &'static str) -> minijinja::Error {
    minijinja::Error::new(ErrorKind::InvalidOperation, what)
}

/// A file's JSON; none when it is not what it must be.
fn parsed<T: DeserializeOwned>(files: &Files, name: &str, mistakes: &mut Vec<Mistake>) -> Option<T> {
    let Some(text) = files.get(name) else {
        mistakes.push(Mistake::new(name, "is missing: take the shipped one as a start"));
        return None;
    };
    serde_json::from_str(text)
        .map_err(|error| {
            mistakes.push(Mistake {
                line: Some(error.line()),
                ..Mistake::new(name, format!("{error}: mend it, or take the shipped one as a start"))
            });
        })
        .ok()
}

fn is_line(text: &str, longest: usize) -> bool {
    (1..=longest).contains(&text.chars().count()) && text.chars().all(is_plain) && !text.trim().is_empty()
}

impl Mistake {
    fn new(file: &str, what: impl Into<String>) -> Self {
        Self {
            file: file.to_owned(),
            line: None,
            what: what.into(),
        }
    }

    fn of_rendering(file: &str, error: &Error) -> Self {
        match error {
            Error::Template(error) => Self::of_template(file, error),
            Error::Bound { what, .. } => Self::new(file, *what),
        }
    }

    /// The place is that of the innermost cause: an included template's own.
    fn of_template(file: &str, error: &minijinja::Error) -> Self {
        let mut innermost = error;
        while let Some(cause) = std::error::Error::source(innermost).and_then(|cause| cause.downcast_ref()) {
            innermost = cause;
        }
        let what = innermost
            .detail()
            .map_or_else(String::new, |detail| format!(": {detail}"));
        Self {
            file: innermost.name().unwrap_or(file).to_owned(),
            line: innermost.line(),
            what: format!(
                "{}{what}; mend it, or take the shipped one as a start",
                innermost.kind()
            ),
        }
    }

    fn into_setting(self, folder: Option<&Path>) -> Invalid {
        let file = folder.map_or_else(
            || self.file.clone(),
            |folder| folder.join(&self.file).display().to_string(),
        );
        let line = self.line.map_or_else(String::new, |line| format!(":{line}"));
        Invalid {
            flag: "mail-templates",
            what: format!("{file}{line}: {}", self.what),
        }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_schemas::{CheckoutId, Credits, HoldId, Price};
    use time::macros::datetime;
    use uuid::Uuid;

    use super::*;
    use crate::domain::User;
    use crate::domain::checkout::{Checkout, Line, State};

    fn contents(name: &str, language: Option<&str>, state: State) -> Contents {
        let noon = datetime!(2030-01-31 12:00 UTC);
        let line = Line {
            ticket: "A-12".parse().unwrap(),
            hold: HoldId(Uuid::nil()),
            show: "<i>gala</i>".parse().unwrap(),
            seat: Some("Stalls & \"Row\" 4".parse().unwrap()),
            price: Price::parse(4_500, "EUR").unwrap(),
            returned: false,
        };
        let (id, user) = ("order<1>".parse().unwrap(), "ann".parse().unwrap());
        let total = Price::parse(4_500, "EUR").unwrap();
        Contents {
            checkout: Checkout {
                version: 9,
                credits: Some(Credits::new(500).unwrap()),
                state,
                sold: true,
                ..Checkout::new(&id, &user, vec![line], total, noon)
            },
            user: User {
                version: 1,
                email: Some("ann@example.org".parse().unwrap()),
                name: Some(name.parse().unwrap()),
                language: language.map(|language| language.parse().unwrap()),
                customer: None,
                changed_at: noon,
            },
        }
    }

    fn state(kind: Kind) -> State {
        match kind {
            Kind::Failed => State::Failed(CheckoutFailure::Declined.into()),
            _ => State::Completed,
        }
    }

    fn shipped_ones() -> Templates {
        Templates::of(shipped::files()).unwrap()
    }

    fn render(kind: Kind, name: &str, language: Option<&str>) -> RenderedMail {
        shipped_ones()
            .render(kind, Some(700), &contents(name, language, state(kind)))
            .unwrap()
    }

    /// The shipped files with changes: a text takes a file's place, none takes it away.
    fn changed(changes: &[(&str, Option<&str>)]) -> Result<Templates, Vec<String>> {
        let mut files = shipped::files();
        for (name, text) in changes {
            match text {
                Some(text) => drop(files.insert((*name).to_owned(), (*text).to_owned())),
                None => drop(files.remove(*name)),
            }
        }
        Templates::of(files).map_err(|mistakes| {
            let settings = mistakes.into_iter().map(|mistake| mistake.into_setting(None));
            settings.map(|setting| setting.what).collect()
        })
    }

    #[test]
    fn nothing_that_others_wrote_becomes_markup() {
        for (kind, language) in Kind::ALL.into_iter().flat_map(|kind| [(kind, "en"), (kind, "de-AT")]) {
            let mail = render(kind, "<b>Ann</b> \"O'Hara\" & Sons", Some(language));
            let html = &mail.html;
            for raw in ["<b>", "</b>", "<i>", "<1>", "\"O'", "& Sons", "& \"Row"] {
                assert!(!html.contains(raw), "{raw}: {html}");
            }
            assert!(html.contains("&lt;b&gt;Ann"), "{html}");
            assert!(mail.text.contains("<b>Ann</b> \"O'Hara\" & Sons"), "{}", mail.text);
            assert!(mail.text.contains("order<1>"), "{}", mail.text);
        }
    }

    #[test]
    fn a_name_stays_on_its_line_and_is_no_link() {
        let mail = render(Kind::Completed, "Ann\r\nBcc: eve@example.org\u{2028}Pay here", None);
        let name = "Ann Bcc: Pay here";
        assert_eq!(mail.name.as_deref(), Some(name));
        assert!(mail.text.starts_with(&format!("Hello {name},\n")), "{}", mail.text);
    }

    #[test]
    fn without_a_name_or_an_id_that_can_be_shown_the_sentences_are_whole() {
        let templates = shipped_ones();
        for (kind, language) in Kind::ALL.into_iter().flat_map(|kind| [(kind, "en"), (kind, "de")]) {
            let mut contents = contents("http://evil.example", Some(language), state(kind));
            contents.checkout.id = CheckoutId::parse("buy at http://evil.example").unwrap();
            let mail = templates.render(kind, Some(700), &contents).unwrap();
            for text in [&mail.text, &mail.html] {
                assert!(
                    !text.contains("evil") && !text.contains(" ,") && !text.contains(" ."),
                    "{text}"
                );
                assert!(!text.lines().any(|line| line.trim_start().contains("  ")), "{text}");
            }
            assert_eq!(mail.name, None);
        }
    }

    #[test]
    fn each_kind_says_what_happened_and_what_of_the_money() {
        let mail = render(Kind::Completed, "Ann", None);
        let lines = [
            "- <i>gala</i>, Stalls & \"Row\" 4: 45.00 EUR",
            "Total: 45.00 EUR",
            "Paid by credits: 5.00 EUR",
            "Charged: 40.00 EUR",
        ];
        for line in lines {
            assert!(mail.text.lines().any(|other| other == line), "{line}: {}", mail.text);
        }
        assert_eq!(mail.subject, "Your tickets");
        assert!(mail.text.trim_end().ends_with("Enjoy the show."), "{}", mail.text);
        let text = render(Kind::Failed, "Ann", Some("fr")).text;
        assert!(text.contains("The payment was declined."), "{text}");
        let text = render(Kind::RefundedInPart, "Ann", Some("DE")).text;
        assert!(text.contains("7,00 EUR") && text.contains("bleiben Ihre"), "{text}");
        let text = render(Kind::Refunded, "Ann", Some("en-GB")).text;
        assert!(text.contains("7.00 EUR") && text.contains("no longer yours"), "{text}");
    }

    #[test]
    fn the_sellers_identity_ends_each_mail_and_a_language_may_have_regions() {
        let seller = r#"{"sender": "Bühne & Co", "language": "de", "name": "Bühne <GmbH>", "address": ["Am Markt 1", "Wien"],
            "contact": "buero@example.org", "legal": "FN 1a"}"#;
        let mut changes = vec![("seller.json", Some(seller))];
        let files = shipped::files();
        let austrian = |name: &str| name.replace(".de.", ".de-at.");
        let added: Vec<_> = files.iter().filter(|(name, _)| name.contains(".de.")).collect();
        let added: Vec<_> = added
            .iter()
            .map(|(name, text)| (austrian(name), text.replace("Guten Tag", "Grüß Gott")))
            .collect();
        changes.extend(added.iter().map(|(name, text)| (name.as_str(), Some(text.as_str()))));
        let templates = changed(&changes).unwrap();
        assert_eq!(templates.sender(), Some("Bühne & Co"));
        for (tag, greeting) in [
            (None, "Guten Tag"),
            (Some("fr"), "Guten Tag"),
            (Some("de-AT-1996"), "Grüß Gott"),
            (Some("de-CH"), "Guten Tag"),
            (Some("EN-gb"), "Hello"),
        ] {
            let mail = templates
                .render(Kind::Failed, None, &contents("Ann", tag, state(Kind::Failed)))
                .unwrap();
            assert!(mail.text.starts_with(greeting), "{tag:?}: {}", mail.text);
            let end = "Bühne <GmbH>\nAm Markt 1\nWien\nbuero@example.org\nFN 1a";
            assert!(mail.text.ends_with(end), "{tag:?}: {}", mail.text);
            assert!(
                mail.html.contains("Bühne &lt;GmbH&gt;<br>Am Markt 1"),
                "{tag:?}: {}",
                mail.html
            );
        }
    }

    #[test]
    fn each_mistake_is_named_with_its_file_its_line_and_its_mend() {
        let words = shipped::files()["words.de.json"].clone();
        let lacks = words.replace("\"settled\"", "\"unsettled\"");
        let broken = words.replace("\"failures\"", "failures");
        for (file, text, named, mend) in [
            (
                "completed.en.txt",
                Some("Hello\n{{ facts.nmae }}"),
                "completed.en.txt:2: ",
                "facts.nmae",
            ),
            (
                "completed.en.txt",
                Some("{% if facts.nmae %}x{% endif %}"),
                "completed.en.txt:1: ",
                "undefined",
            ),
            ("failed.de.html", Some("\n\n{% if %}"), "failed.de.html:3: ", "mend it"),
            ("seats.txt", Some("{{ facts.seats[0].row }}"), "seats.txt:1: ", "row"),
            (
                "refunded.de.txt",
                Some("Hallo\n{{ facts.name }}"),
                "refunded.de.txt:2: ",
                "inside `{% if %}`",
            ),
            (
                "refunded.de.txt",
                Some("{{ facts.seats }}"),
                "refunded.de.txt:1: ",
                "inside `{% for %}`",
            ),
            (
                "completed.en.html",
                Some("{{ facts.order|safe }}"),
                "completed.en.html:1: ",
                "safe",
            ),
            (
                "completed.en.html",
                Some("{% autoescape false %}{{ facts.seats[0].show }}{% endautoescape %}"),
                "completed.en.html: ",
                "without escaping",
            ),
            (
                "completed.en.html",
                Some("{% include \"seats.txt\" %}"),
                "completed.en.html: ",
                "include .html",
            ),
            (
                "completed.en.html",
                Some("{% include \"seat.html\" %}"),
                "completed.en.html:1: ",
                "seat.html",
            ),
            (
                "completed.en.txt",
                Some("{% for i in range(99999999) %}x{% endfor %}"),
                "completed.en.txt:1: ",
                "mend it",
            ),
            (
                "completed.en.subject",
                Some("Yours\nBcc: eve@example.org"),
                "completed.en.subject: ",
                "one line",
            ),
            ("completed.en.subject", Some("\n"), "completed.en.subject: ", "1 to 200"),
            ("failed.de.html", None, "failed.de.html: ", "is missing"),
            (
                "completed.fr.txt",
                Some("Bonjour"),
                "completed.fr.txt: ",
                "words.<language>.json",
            ),
            ("word.fr.json", Some("{}"), "word.fr.json: ", "words.<language>.json"),
            ("words.de.json", Some(&lacks), "words.de.json: ", "\"settled\""),
            ("words.de.json", Some(&broken), "words.de.json:3: ", "mend it"),
            ("words.en.json", None, "seller.json: ", "words.en.json"),
            ("seller.json", None, "seller.json: ", "is missing"),
            ("seller.json", Some("{\n\"sendr\": 1}"), "seller.json:2: ", "sendr"),
            (
                "seller.json",
                Some(r#"{"language": "en", "sender": "A\r\nBcc: eve@example.org"}"#),
                "seller.json: ",
                "`sender`",
            ),
            (
                "seller.json",
                Some(r#"{"language": "en", "legal": "FN 1a"}"#),
                "seller.json: ",
                "`name`",
            ),
        ] {
            let mistakes = changed(&[(file, text)]).err().unwrap_or_default();
            let is_named = |mistake: &String| mistake.starts_with(named) && mistake.contains(mend);
            assert!(mistakes.iter().any(is_named), "{file} {text:?}: {mistakes:#?}");
        }
    }

    #[test]
    fn an_order_with_most_tickets_and_the_longest_words_fits_a_mail() {
        let templates = shipped_ones();
        let (_, words) = templates.language(None);
        for facts in Facts::examples(Kind::Completed, words, MARK) {
            let html = templates.part("completed.en.html", "html", &facts).unwrap();
            assert!(html.len() <= LARGEST_PART);
        }
    }
}
