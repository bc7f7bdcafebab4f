//! Text from outside, made safe to print: ids and messages may hold line ends, colours, and characters that turn the reading order.

/// UTF-8 on one line: whatever would end it, move the cursor or hide a part is written as an escape. Other bytes in hexadecimal.
pub fn line(bytes: impl AsRef<[u8]>) -> String {
    written(bytes.as_ref(), false)
}

/// As [`line()`], with its line ends.
pub fn text(bytes: impl AsRef<[u8]>) -> String {
    written(bytes.as_ref(), true)
}

/// JSON as it is, with the characters escaped that JSON allows and a terminal obeys.
pub fn json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '"' | '\'' | '\\' => out.push(character),
            _ if character.escape_debug().len() == 1 => out.push(character),
            _ => out.extend(
                character
                    .encode_utf16(&mut [0; 2])
                    .iter()
                    .map(|unit| format!("\\u{unit:04x}")),
            ),
        }
    }
    out
}

fn written(bytes: &[u8], keeps_line_ends: bool) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => escaped(text, keeps_line_ends),
        Err(_) => format!("0x{}", hex::encode(bytes)),
    }
}

fn escaped(text: &str, keeps_line_ends: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '"' | '\'' | '\\' => out.push(character),
            '\n' if keeps_line_ends => out.push(character),
            _ => out.extend(character.escape_debug()),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_printed_can_harm_a_terminal() {
        assert_eq!(text(b"{\"a\": \"b\"}"), "{\"a\": \"b\"}");
        assert_eq!(
            text("a\u{1b}[2J\u{202e}\0é\nb".as_bytes()),
            "a\\u{1b}[2J\\u{202e}\\0é\nb"
        );
        assert_eq!(line([0xff, 0x00, 0x7f]), "0xff007f");
    }

    #[test]
    fn json_means_the_same_and_harms_no_terminal() {
        let value = "A-1\u{9b}31m\u{202e}\u{2028}\u{85}é\"\\\u{e0001}";
        let written = json(&serde_json::to_string(value).unwrap());
        assert!(
            written
                .chars()
                .all(|character| !character.is_control() && !('\u{2000}'..'\u{2100}').contains(&character)),
            "{written}"
        );
        assert_eq!(serde_json::from_str::<String>(&written).unwrap(), value);
    }

    #[test]
    fn a_line_stays_one_line() {
        let forged = "A-1\n2030-01-01 ERROR forged\r\u{85}\u{2028}\u{9b}31m";
        let expected = "A-1\\n2030-01-01 ERROR forged\\r\\u{85}\\u{2028}\\u{9b}31m";
        assert_eq!(line(forged), expected);
        assert_eq!(line("C:\\'\"żółw"), "C:\\'\"żółw");
    }
}
