//! The texts of mails: one template for each kind, language and form, in `templates/`.

use askama::Template;
use holdfast_schemas::{CheckoutFailure, Currency, Language as Tag, Name};

use super::shown;
use crate::domain::checkout::{Checkout, State};
use crate::store::mails::{Contents, Kind};

/// A mail without its addresses.
pub(super) struct RenderedMail {
    /// The recipient's name, as [`shown::name`] leaves it.
    pub(super) name: Option<String>,
    /// A fixed text, without anything that a customer or a shop wrote.
    pub(super) subject: &'static str,
    pub(super) text: String,
    pub(super) html: String,
}

/// The languages that there are templates for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Language {
    English,
    German,
}

/// The values for the templates. Each has one line at most, so that no customer or shop can add paragraphs to a mail; what
/// customers chose is as [`shown`] leaves it, and may be missing.
struct Facts {
    name: Option<String>,
    order: Option<String>,
    seats: Vec<Seat>,
    total: String,
    credits: Option<String>,
    /// The part of the price that credits do not pay.
    due: String,
    /// The refund.
    amount: String,
    in_part: bool,
    /// The reason of the failure, as a sentence.
    why: &'static str,
}

struct Seat {
    show: String,
    seat: String,
    price: String,
}

macro_rules! templates {
    ($($name:ident = $path:literal;)+) => {$(
        #[derive(Template)]
        #[template(path = $path)]
        struct $name<'a> {
            facts: &'a Facts,
        }
    )+};
}

templates! {
    CompletedEnText = "completed.en.txt";
    CompletedEnHtml = "completed.en.html";
    CompletedDeText = "completed.de.txt";
    CompletedDeHtml = "completed.de.html";
    FailedEnText = "failed.en.txt";
    FailedEnHtml = "failed.en.html";
    FailedDeText = "failed.de.txt";
    FailedDeHtml = "failed.de.html";
    RefundedEnText = "refunded.en.txt";
    RefundedEnHtml = "refunded.en.html";
    RefundedDeText = "refunded.de.txt";
    RefundedDeHtml = "refunded.de.html";
}

impl RenderedMail {
    /// Writes a mail. `amount`: the refund, in minor units.
    pub(super) fn write(kind: Kind, amount: Option<i64>, contents: &Contents) -> askama::Result<Self> {
        use Language::{English, German};
        let Contents { checkout, user } = contents;
        let language = Language::of(user.language.as_ref());
        let facts = Facts::new(kind, amount, checkout, user.name.as_ref(), language);
        let facts = &facts;
        let (subject, text, html) = match (kind, language) {
            (Kind::Completed, English) => (
                "Your tickets",
                CompletedEnText { facts }.render()?,
                CompletedEnHtml { facts }.render()?,
            ),
            (Kind::Completed, German) => (
                "Ihre Karten",
                CompletedDeText { facts }.render()?,
                CompletedDeHtml { facts }.render()?,
            ),
            (Kind::Failed, English) => (
                "Your order could not be completed",
                FailedEnText { facts }.render()?,
                FailedEnHtml { facts }.render()?,
            ),
            (Kind::Failed, German) => (
                "Ihre Bestellung konnte nicht abgeschlossen werden",
                FailedDeText { facts }.render()?,
                FailedDeHtml { facts }.render()?,
            ),
            (Kind::Refunded | Kind::RefundedInPart, English) => (
                "Your refund",
                RefundedEnText { facts }.render()?,
                RefundedEnHtml { facts }.render()?,
            ),
            (Kind::Refunded | Kind::RefundedInPart, German) => (
                "Ihre Erstattung",
                RefundedDeText { facts }.render()?,
                RefundedDeHtml { facts }.render()?,
            ),
        };
        Ok(Self {
            name: facts.name.clone(),
            subject,
            text,
            html,
        })
    }
}

impl Facts {
    fn new(kind: Kind, amount: Option<i64>, checkout: &Checkout, name: Option<&Name>, language: Language) -> Self {
        let money = |amount| money(amount, checkout.currency(), language);
        let seats = checkout.lines.iter().map(|line| Seat {
            show: one_line(line.show.as_str()),
            seat: one_line(line.seat.as_ref().map_or(line.ticket.as_str(), |seat| seat.as_str())),
            price: money(line.price.amount()),
        });
        let why = match &checkout.state {
            State::Failed(failure) => why(failure.reason, language),
            _ => "",
        };
        Self {
            name: name.and_then(shown::name),
            order: shown::order(&checkout.id),
            seats: seats.collect(),
            total: money(checkout.total.amount()),
            credits: checkout.credits.map(|credits| money(credits.amount())),
            due: money(checkout.due()),
            amount: money(amount.unwrap_or_default()),
            in_part: kind == Kind::RefundedInPart,
            why,
        }
    }
}

impl Language {
    /// The language of the tag's first part; English when there is no tag or no template for it.
    fn of(tag: Option<&Tag>) -> Self {
        let primary = tag.and_then(|tag| tag.as_str().split('-').next());
        match primary {
            Some(primary) if primary.eq_ignore_ascii_case("de") => Self::German,
            _ => Self::English,
        }
    }
}

/// An amount in minor units, as it is written: 1234 of EUR is 12.34 EUR, of JPY 1234 JPY, of KWD 1.234 KWD.
fn money(amount: i64, currency: Currency, language: Language) -> String {
    let digits = usize::from(currency.exponent().unwrap_or(0));
    let code = currency.code();
    if digits == 0 {
        return format!("{amount} {code}");
    }
    let point = match language {
        Language::English => '.',
        Language::German => ',',
    };
    let figures = format!("{amount:0>width$}", width = digits + 1);
    let (whole, fraction) = figures.split_at(figures.len() - digits);
    format!("{whole}{point}{fraction} {code}")
}

/// Line ends and their like become spaces.
fn one_line(text: &str) -> String {
    let is_plain = |c: char| !c.is_control() && !matches!(c, '\u{2028}' | '\u{2029}');
    text.chars().map(|c| if is_plain(c) { c } else { ' ' }).collect()
}

fn why(reason: CheckoutFailure, language: Language) -> &'static str {
    use CheckoutFailure::{
        Abandoned, Cancelled, CreditsMissing, Declined, Misconfigured, NotCaptured, NotConfirmed, SeatsGone, Settled,
        ShowLimitReached,
    };
    match language {
        Language::English => match reason {
            Declined => "The payment was declined.",
            NotConfirmed => "The payment was not confirmed in time.",
            SeatsGone => "One of the seats was no longer reserved for you.",
            ShowLimitReached => "One person cannot buy as many tickets of one show.",
            CreditsMissing => "There were not enough credits.",
            Cancelled => "The order was cancelled.",
            NotCaptured | Abandoned | Misconfigured | Settled => "Something went wrong on our side.",
        },
        Language::German => match reason {
            Declined => "Die Zahlung wurde abgelehnt.",
            NotConfirmed => "Die Zahlung wurde nicht rechtzeitig bestätigt.",
            SeatsGone => "Einer der Plätze war nicht mehr für Sie reserviert.",
            ShowLimitReached => "So viele Karten einer Vorstellung kann eine Person nicht kaufen.",
            CreditsMissing => "Das Guthaben reichte nicht aus.",
            Cancelled => "Die Bestellung wurde storniert.",
            NotCaptured | Abandoned | Misconfigured | Settled => "Bei uns ist etwas schiefgegangen.",
        },
    }
}

#[cfg(test)]
mod tests {
    use holdfast_schemas::{CheckoutId, Credits, HoldId, Price, UserId};
    use time::macros::datetime;
    use uuid::Uuid;

    use super::*;
    use crate::domain::User;
    use crate::domain::checkout::Line;

    const ALL: [Kind; 4] = [Kind::Completed, Kind::Failed, Kind::RefundedInPart, Kind::Refunded];

    fn contents(name: &str, language: Option<&str>, state: State) -> Contents {
        let noon = datetime!(2030-01-31 12:00 UTC);
        let line = Line {
            ticket: "A-12".parse().unwrap(),
            hold: HoldId(Uuid::nil()),
            show: "<i>gala</i>".parse().unwrap(),
            seat: Some("Stalls & \"Row\" 4".parse().unwrap()),
            price: Price::parse(4_500, "EUR").unwrap(),
        };
        Contents {
            checkout: Checkout {
                id: CheckoutId::parse("order<1>").unwrap(),
                version: 9,
                user: UserId::parse("ann").unwrap(),
                lines: vec![line],
                total: Price::parse(4_500, "EUR").unwrap(),
                credits: Some(Credits::new(500).unwrap()),
                method: None,
                attempt: 0,
                state,
                until: noon,
                called_at: None,
                payment: None,
                unknown_since: None,
                stuck: None,
                sold: true,
                refunded: 0,
                undone: 0,
            },
            user: User {
                version: 1,
                email: Some("ann@example.org".parse().unwrap()),
                name: Some(name.parse().unwrap()),
                language: language.map(|language| language.parse().unwrap()),
                changed_at: noon,
            },
        }
    }

    fn render(kind: Kind, name: &str, language: Option<&str>) -> RenderedMail {
        let state = match kind {
            Kind::Failed => State::Failed(CheckoutFailure::Declined.into()),
            _ => State::Completed,
        };
        RenderedMail::write(kind, Some(700), &contents(name, language, state)).unwrap()
    }

    #[test]
    fn nothing_that_others_wrote_becomes_markup() {
        for (kind, language) in ALL.into_iter().flat_map(|kind| [(kind, "en"), (kind, "de-AT")]) {
            let mail = render(kind, "<b>Ann</b> \"O'Hara\" & Sons", Some(language));
            let html = &mail.html;
            for raw in ["<b>", "</b>", "<i>", "<1>", "\"O'", "& Sons", "& \"Row"] {
                assert!(!html.contains(raw), "{raw}: {html}");
            }
            assert!(html.contains("&#60;b&#62;Ann"), "{html}");
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
        for (kind, language) in ALL.into_iter().flat_map(|kind| [(kind, "en"), (kind, "de")]) {
            let state = match kind {
                Kind::Failed => State::Failed(CheckoutFailure::Declined.into()),
                _ => State::Completed,
            };
            let mut contents = contents("http://evil.example", Some(language), state);
            contents.checkout.id = CheckoutId::parse("buy at http://evil.example").unwrap();
            let mail = RenderedMail::write(kind, Some(700), &contents).unwrap();
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
        let text = render(Kind::Completed, "Ann", None).text;
        let lines = [
            "- <i>gala</i>, Stalls & \"Row\" 4: 45.00 EUR",
            "Total: 45.00 EUR",
            "Paid by credits: 5.00 EUR",
            "Charged: 40.00 EUR",
        ];
        for line in lines {
            assert!(text.lines().any(|other| other == line), "{line}: {text}");
        }
        let text = render(Kind::Failed, "Ann", Some("fr")).text;
        assert!(text.contains("The payment was declined."), "{text}");
        let text = render(Kind::RefundedInPart, "Ann", Some("DE")).text;
        assert!(text.contains("7,00 EUR") && text.contains("bleiben Ihre"), "{text}");
        let text = render(Kind::Refunded, "Ann", Some("en-GB")).text;
        assert!(text.contains("7.00 EUR") && text.contains("no longer yours"), "{text}");
    }

    #[test]
    fn an_amount_has_as_many_decimals_as_its_currency() {
        let written = |amount, code, language| money(amount, Currency::from_code(code).unwrap(), language);
        assert_eq!(written(4_500, "JPY", Language::English), "4500 JPY");
        assert_eq!(written(4_500, "EUR", Language::English), "45.00 EUR");
        assert_eq!(written(4_500, "EUR", Language::German), "45,00 EUR");
        assert_eq!(written(4_500, "KWD", Language::English), "4.500 KWD");
        assert_eq!(written(5, "EUR", Language::English), "0.05 EUR");
        assert_eq!(written(0, "KWD", Language::German), "0,000 KWD");
    }

    #[test]
    fn there_is_a_reason_in_words_for_every_failure() {
        for reason in CheckoutFailure::ALL {
            for language in [Language::English, Language::German] {
                assert!(why(*reason, language).ends_with('.'), "{reason:?}");
            }
        }
    }
}
