//! Writes an error as one line, and knows where a thread panicked. [`transience`](crate::transience) decides which errors are
//! retried.

use std::cell::RefCell;
use std::fmt::Write;

thread_local! {
    /// Where this thread panicked last.
    static PANICKED_AT: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Notes the place of each panic from now on, for [`take_panic`]. The panic is printed as before.
pub fn note_panics() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let place = panic
            .location()
            .map(|place| format!("{}:{}", place.file(), place.line()));
        PANICKED_AT.set(place);
        print(panic);
    }));
}

/// The file and line of this thread's last panic, if that was noted and not taken before.
pub fn take_panic() -> Option<String> {
    PANICKED_AT.take()
}

/// An error with everything that caused it, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a string cannot fail.
        write!(text, ": {error}").unwrap_or_default();
        cause = error.source();
    }
    text
}
