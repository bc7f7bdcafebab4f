//! The words in a mail that its recipient or a stranger chose, in a form that does no harm. Whoever may register a user chooses a
//! name and an address, and whoever checks out chooses the order's id: neither must make the shop send an advertisement or a link
//! to somebody else's address.

use holdfast_schemas::{CheckoutId, Name};

/// Most characters of a name or an order's id. Servers refuse lines of more than 998 octets (RFC 5322, 2.1.1), and a name of one
/// word in a header is not folded.
pub(super) const MOST: usize = 64;

/// The name on one line, without words that mail programs make links of; none when nothing of it is left.
pub(super) fn name(name: &Name) -> Option<String> {
    let visible: String = name.as_str().chars().filter_map(visible).collect();
    let words: Vec<_> = visible.split_whitespace().filter(|word| !is_link(word)).collect();
    let shown: String = words.join(" ").chars().take(MOST).collect();
    let has_letters = shown.chars().any(char::is_alphanumeric);
    has_letters.then(|| shown.trim_end().to_owned())
}

/// The order's id; none when it is more than an id.
pub(super) fn order(checkout: &CheckoutId) -> Option<String> {
    let id = checkout.as_str();
    let is_id =
        id.chars().count() <= MOST && id.chars().all(|c| visible(c) == Some(c) && !c.is_whitespace()) && !is_link(id);
    is_id.then(|| id.to_owned())
}

/// Line ends and their like become spaces; characters that cannot be seen or that turn the reading order are left out.
fn visible(c: char) -> Option<char> {
    match c {
        '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' => None,
        '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}' => None,
        '\u{2028}' | '\u{2029}' => Some(' '),
        _ if c.is_control() => Some(' '),
        _ => Some(c),
    }
}

/// True for an address of the web or of mail, written out or not: an `@`, a scheme, `www.`, or a dot between two parts of which
/// one has several characters. Initials (`J.R.R.`) are none.
fn is_link(word: &str) -> bool {
    let word = word
        .to_lowercase()
        .replace(['\u{ff0e}', '\u{3002}', '\u{ff61}', '\u{2024}', '\u{fe52}'], ".");
    let parts = || {
        word.split('.')
            .map(|part| part.trim_matches(|c: char| !c.is_alphanumeric()))
    };
    let parts = || parts().filter(|part| !part.is_empty());
    word.contains(['@', '\u{ff20}', '\u{fe6b}'])
        || word.contains("://")
        || word.contains("\u{ff1a}/")
        || word.contains("www.")
        || (parts().count() > 1 && parts().any(|part| part.chars().nth(1).is_some()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_short_line_without_links() {
        for (given, expected) in [
            ("Ann", Some("Ann")),
            ("  Ann \t O'Hara ", Some("Ann O'Hara")),
            ("Änne Müller-Łukasiewicz", Some("Änne Müller-Łukasiewicz")),
            ("J.R.R. Tolkien", Some("J.R.R. Tolkien")),
            ("Dr. Anna Meier jr.", Some("Dr. Anna Meier jr.")),
            ("عائشة", Some("عائشة")),
            ("<b>Ann</b> \"O'Hara\" & Sons", Some("<b>Ann</b> \"O'Hara\" & Sons")),
            ("Win a prize at http://evil.example", Some("Win a prize at")),
            ("Ann (evil.example)", Some("Ann")),
            ("Ann www.evil", Some("Ann")),
            ("Ann bit.ly/3x", Some("Ann")),
            ("Ann HTTPS://EVIL", Some("Ann")),
            ("Ann 93.184.216.34", Some("Ann")),
            ("Ann evil\u{3002}example eve\u{ff20}evil", Some("Ann")),
            ("Ann ev\u{200b}il.exa\u{2060}mple", Some("Ann")),
            ("Ann\r\nBcc: eve@example.org\u{2028}Pay here", Some("Ann Bcc: Pay here")),
            ("\u{202e}nnA", Some("nnA")),
            ("http://evil.example", None),
            ("-- \u{200b} !", None),
        ] {
            assert_eq!(name(&given.parse().unwrap()).as_deref(), expected, "{given:?}");
        }
        let long = name(&"ä ".repeat(300).parse().unwrap()).unwrap();
        assert_eq!(long.chars().count(), MOST - 1);
    }

    #[test]
    fn an_order_is_named_only_by_an_id() {
        for (given, shown) in [
            ("order-17", true),
            ("shop/2026/17", true),
            ("inv_1hT9dK0aaf3Y5b2", true),
            ("urn:uuid:6ba7b810-9dad-11d1-80b4-00c04fd430c8", true),
            ("order<1>", true),
            ("see http://evil.example", false),
            ("http://evil.example", false),
            ("evil.example", false),
            ("Call me", false),
            ("a\nb", false),
            ("a\u{202e}b", false),
            (&"x".repeat(65), false),
        ] {
            let id = CheckoutId::parse(given).unwrap();
            assert_eq!(order(&id).as_deref(), shown.then_some(given), "{given:?}");
        }
    }
}
