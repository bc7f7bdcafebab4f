//! Shows the progress of the on-sale: one line that changes on a terminal, a line now and then elsewhere.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;

use super::books::Books;

const LINE_EVERY: Duration = Duration::from_secs(2);

pub(super) struct Display {
    bar: ProgressBar,
    last_line: Instant,
}

impl Display {
    pub(super) fn new(steps: usize) -> Display {
        let style = ProgressStyle::with_template("{bar:24} {msg}").expect("the template is well formed");
        let bar = ProgressBar::with_draw_target(Some(steps as u64), ProgressDrawTarget::stderr_with_hz(10));
        Display {
            bar: bar.with_style(style),
            last_line: Instant::now(),
        }
    }

    pub(super) fn show(&mut self, books: &Books) {
        if self.last_line.elapsed() < LINE_EVERY && self.bar.is_hidden() {
            return;
        }
        self.last_line = Instant::now();
        if self.bar.is_hidden() {
            println!("{}", books.line());
        } else {
            // Releases and repeats come on top of what is scripted.
            self.bar
                .set_length(self.bar.length().unwrap_or_default().max(books.records() as u64));
            self.bar.set_position(books.records() as u64);
            self.bar.set_message(books.line());
        }
    }

    /// Prints a line about something that happens once.
    pub(super) fn say(&self, what: &str) {
        self.bar.suspend(|| println!("{what}"));
    }

    pub(super) fn end(&self, books: &Books) {
        self.bar.finish_and_clear();
        println!("{}", books.line());
    }
}
