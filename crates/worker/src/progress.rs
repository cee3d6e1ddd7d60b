//! What a person sees while a command runs: a bar on a terminal, plain lines elsewhere, both on
//! standard error. It computes no figure that a report holds.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Between two refreshes on a terminal, and between two lines elsewhere.
const REFRESH: Duration = Duration::from_millis(500);
const LINE: Duration = Duration::from_secs(10);

/// Progress of one run through the data.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    doing: &'static str,
    rows: u64,
    started: Instant,
    told: Instant,
    rows_told: u64,
}

impl Progress {
    /// Starts to show; `rows_total` is given where it is known.
    pub(crate) fn new(doing: &'static str, rows_total: Option<u64>) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| match rows_total {
            Some(rows) => ProgressBar::with_draw_target(Some(rows), ProgressDrawTarget::stderr())
                .with_style(style("{prefix} {bar:30} {percent:>3}% eta {eta} {msg}"))
                .with_prefix(doing),
            None => ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr())
                .with_style(style("{prefix} {spinner} {human_pos} rows {elapsed} {msg}"))
                .with_prefix(doing),
        });
        let now = Instant::now();
        Self { bar, doing, rows: 0, started: now, told: now, rows_told: 0 }
    }

    /// Counts `rows` more. `detail` is asked for only when it is time to show something.
    pub(crate) fn advance(&mut self, rows: u64, detail: impl FnOnce() -> String) {
        self.rows += rows;
        let now = Instant::now();
        let since = now - self.told;
        if since < if self.bar.is_some() { REFRESH } else { LINE } {
            return;
        }
        let rate = (self.rows - self.rows_told) as f64 / since.as_secs_f64();
        let message = format!("{rate:.0} samples/s {}", detail());
        match &self.bar {
            Some(bar) => {
                bar.set_position(self.rows);
                bar.set_message(message);
            }
            None => self.line(&message),
        }
        (self.told, self.rows_told) = (now, self.rows);
    }

    /// Takes the bar away, or writes the last line.
    pub(crate) fn finish(self, detail: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let seconds = self.started.elapsed().as_secs_f64();
        self.line(&format!("{:.0} samples/s {detail}", self.rows as f64 / seconds));
    }

    /// Tells a line whatever the time, above the bar where there is one.
    pub(crate) fn tell(&self, message: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.line(message)),
            None => self.line(message),
        }
    }

    fn line(&self, message: &str) {
        let seconds = self.started.elapsed().as_secs_f64();
        let line = format!("{} {} rows in {seconds:.1} s: {message}\n", self.doing, self.rows);
        let _ = std::io::stderr().write_all(line.as_bytes()); // nobody to tell when stderr is gone
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
