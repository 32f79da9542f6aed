//! What a run prints: small tables, each measured value against its bar, and the summary of all bars at the end.

use crate::samples::Samples;

/// On which side of its bar a measured value must be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Limit {
    /// No larger than this.
    AtMost(f64),
    /// No smaller than this.
    AtLeast(f64),
}

/// One promise and what was measured.
#[derive(Debug, Clone)]
pub(crate) struct Bar {
    /// What is promised, a short phrase.
    pub(crate) what: String,
    /// What was measured.
    pub(crate) measured: f64,
    /// The promise.
    pub(crate) limit: Limit,
    /// The unit of both: `x` for a ratio.
    pub(crate) unit: &'static str,
}

impl Bar {
    /// Whether the promise holds. No number holds nothing.
    pub(crate) fn is_met(&self) -> bool {
        match self.limit {
            Limit::AtMost(limit) => self.measured <= limit,
            Limit::AtLeast(limit) => self.measured >= limit,
        }
    }

    fn line(&self) -> String {
        let verdict = if self.is_met() { "met   " } else { "MISSED" };
        let (word, limit) = match self.limit {
            Limit::AtMost(limit) => ("at most", limit),
            Limit::AtLeast(limit) => ("at least", limit),
        };
        let Self { what, measured, unit, .. } = self;
        format!(
            "  {verdict}  {what:<64} {:>9} {unit:<4} ({word} {} {unit})",
            number(*measured),
            number(limit)
        )
    }
}

/// The bars of a run, in the order in which they were measured, and what could not be measured.
#[derive(Debug, Default)]
pub(crate) struct Report {
    bars: Vec<Bar>,
    skipped: Vec<String>,
}

impl Report {
    /// Begins a section.
    pub(crate) fn section(&self, title: &str) {
        println!("\n== {title}");
    }

    /// One line of text within a section.
    pub(crate) fn note(&self, text: &str) {
        println!("  {text}");
    }

    /// A table; the first column is left-aligned, the others to the right.
    pub(crate) fn table(&self, head: &[&str], rows: &[Vec<String>]) {
        let widths: Vec<usize> = head
            .iter()
            .enumerate()
            .map(|(at, title)| {
                let cells = rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count());
                cells.chain([title.chars().count()]).max().unwrap_or(0)
            })
            .collect();
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            let cells = cells.zip(&widths).enumerate().map(|(at, (cell, &width))| {
                if at == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            });
            cells.collect::<Vec<_>>().join("  ")
        };
        println!("  {}", line(&mut head.iter().copied()));
        for row in rows {
            println!("  {}", line(&mut row.iter().map(String::as_str)));
        }
    }

    /// A table of durations: median, p90, p99 and how many samples they are from.
    pub(crate) fn durations(&self, title: &str, rows: &[(&str, &Samples)]) {
        let rows: Vec<Vec<String>> = rows
            .iter()
            .map(|(what, samples)| {
                let values = [samples.median(), samples.p90(), samples.p99()];
                let mut row = vec![(*what).to_owned()];
                row.extend(values.map(number));
                row.push(samples.len().to_string());
                row
            })
            .collect();
        self.table(&[title, "median ms", "p90", "p99", "samples"], &rows);
    }

    /// Holds a measured value against its bar, and prints the verdict.
    pub(crate) fn bar(&mut self, what: impl Into<String>, measured: f64, limit: Limit, unit: &'static str) {
        let bar = Bar { what: what.into(), measured, limit, unit };
        println!("{}", bar.line());
        self.bars.push(bar);
    }

    /// Says that something could not be measured on this machine, and why.
    pub(crate) fn skip(&mut self, what: &str, why: &str) {
        println!("  skipped {what}: {why}");
        self.skipped.push(format!("{what}: {why}"));
    }

    /// Prints every bar again. True if none was missed.
    pub(crate) fn summary(&self) -> bool {
        self.section("summary");
        for bar in &self.bars {
            println!("{}", bar.line());
        }
        for skipped in &self.skipped {
            println!("  skipped {skipped}");
        }
        let missed = self.bars.iter().filter(|bar| !bar.is_met()).count();
        println!(
            "  {} of {} bars met, {} skipped",
            self.bars.len() - missed,
            self.bars.len(),
            self.skipped.len()
        );
        missed == 0
    }
}

/// A number with as many decimals as it deserves.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 100.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_met_up_to_its_very_limit_and_never_by_no_number() {
        let bar = |measured, limit| Bar { what: String::new(), measured, limit, unit: "x" };
        assert!(bar(1.3, Limit::AtMost(1.3)).is_met());
        assert!(!bar(1.31, Limit::AtMost(1.3)).is_met());
        assert!(bar(0.8, Limit::AtLeast(0.8)).is_met());
        assert!(!bar(f64::NAN, Limit::AtMost(1.3)).is_met());
        assert!(!bar(f64::NAN, Limit::AtLeast(0.8)).is_met());
    }
}
