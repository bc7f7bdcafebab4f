//! The log: one line for each event, whatever its values hold.

use std::fmt;

use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::FmtContext;
use tracing_subscriber::fmt::format::{Format, FormatEvent, FormatFields, Full, Json, JsonFields, Writer};
use tracing_subscriber::registry::LookupSpan;

use crate::config::{LogFormat, Process};
use crate::printable;

/// Writes the log to standard error from now on.
pub fn start(process: &Process) {
    let logs = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(&process.log_filter))
        // It would be told on standard error as well, which panics where that cannot be written, on a full disk or to a reader that is gone.
        .log_internal_errors(false)
        .with_writer(std::io::stderr);
    match process.log_format {
        LogFormat::Text => logs.event_format(OneLine(Format::default())).init(),
        LogFormat::Json => {
            let json = OneLine(Format::default().json());
            logs.fmt_fields(JsonFields::new()).event_format(json).init();
        }
    }
}

/// An event as text on one line: a value from outside can neither end it nor pretend to be another.
struct OneLine<F>(Format<F>);

/// How a form of the log makes what is not safe to print harmless.
trait Harmless {
    fn harmless(line: &str) -> String;
}

impl Harmless for Full {
    fn harmless(line: &str) -> String {
        printable::line(line)
    }
}

impl Harmless for Json {
    fn harmless(line: &str) -> String {
        printable::json(line)
    }
}

impl<S, N, F> FormatEvent<S, N> for OneLine<F>
where
    Format<F>: FormatEvent<S, N>,
    F: Harmless,
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut text = String::new();
        self.0.format_event(context, Writer::new(&mut text), event)?;
        let line = text.strip_suffix('\n').unwrap_or(&text);
        writeln!(writer, "{}", F::harmless(line))
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex, PoisonError};

    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Written {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    #[test]
    fn a_value_cannot_forge_a_line() {
        let written = Written::default();
        let logs = tracing_subscriber::fmt()
            .event_format(OneLine(Format::default()))
            .with_writer(written.clone())
            .finish();
        let forged = "A-1\n2030-01-01T00:00:00Z ERROR holdfast: all is lost\u{1b}[2J";
        tracing::subscriber::with_default(logs, || {
            let span = tracing::info_span!("call", key = %forged);
            let _entered = span.enter();
            tracing::warn!(ticket = %forged, "about {forged}");
        });
        let bytes = written.0.lock().unwrap().clone();
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        assert!(text.ends_with('\n') && !text.contains('\u{1b}'), "{text}");
        assert_eq!(text.matches("A-1\\n2030").count(), 3, "{text}");
    }
}
