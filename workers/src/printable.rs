//! Text from outside, made safe to print: ids and messages may hold line ends, colours, and characters that turn the reading order.

/// UTF-8 on one line: whatever would end it, move the cursor or hide a part is written as an escape. Other bytes in hexadecimal.
pub fn line(bytes: impl AsRef<[u8]>) -> String {
    written(bytes.as_ref(), false)
}

/// As [`line()`], with its line ends.
pub fn text(bytes: impl AsRef<[u8]>) -> String {
    written(bytes.as_ref(), true)
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
    fn a_line_stays_one_line() {
        let forged = "A-1\n2030-01-01 ERROR forged\r\u{85}\u{2028}\u{9b}31m";
        let expected = "A-1\\n2030-01-01 ERROR forged\\r\\u{85}\\u{2028}\\u{9b}31m";
        assert_eq!(line(forged), expected);
        assert_eq!(line("C:\\'\"żółw"), "C:\\'\"żółw");
    }
}
