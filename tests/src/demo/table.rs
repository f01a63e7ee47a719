//! The table of answers by client and Pod.

use std::fmt::Write;

use crate::lab::report::HttpReport;

/// Widest text in the first two columns. The whole table fits into 80 columns.
const FROM_WIDTH: usize = 14;
const TO_WIDTH: usize = 19;

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row<'a> {
    /// The client.
    pub(super) from: &'a str,
    /// The destination address and port.
    pub(super) to: &'a str,
    /// The client's report.
    pub(super) report: &'a HttpReport,
}

/// The table with these Pods' columns.
pub(super) fn table(pods: &[String], rows: &[Row<'_>]) -> String {
    let mut text = format!("{:FROM_WIDTH$} {:TO_WIDTH$}", "from", "to");
    for pod in pods {
        text += &format!(" {pod:>5}");
    }
    text += " errors  median";
    for row in rows {
        line(&mut text, pods, row);
    }
    text
}

fn line(text: &mut String, pods: &[String], row: &Row<'_>) {
    let HttpReport {
        answers,
        errors,
        latency,
        ..
    } = row.report;
    let mut line = format!("\n{:FROM_WIDTH$} {:TO_WIDTH$}", row.from, row.to);
    for pod in pods {
        let cell = answers
            .get(pod)
            .filter(|count| **count > 0)
            .map_or_else(|| "·".to_owned(), u64::to_string);
        // Writing to a String does not fail.
        let _ = write!(line, " {cell:>width$}", width = pod.len().max(5));
    }
    let errors: u64 = errors.values().sum();
    let _ = write!(line, " {errors:>6} {:>7}", milliseconds(latency.p50));
    text.push_str(&line);
}

/// Formats microseconds as milliseconds with one decimal.
pub(super) fn milliseconds(microseconds: u64) -> String {
    let tenths = (microseconds + 50) / 100;
    format!("{}.{} ms", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::report::Latency;

    #[test]
    fn columns_are_aligned() {
        let report = HttpReport {
            answers: [("web-1".to_owned(), 12), ("web-2".to_owned(), 0)].into(),
            errors: [("connect: ConnectionRefused".to_owned(), 3)].into(),
            latency: Latency {
                p50: 1250,
                ..Latency::default()
            },
            ..HttpReport::default()
        };
        let row = Row {
            from: "outside client",
            to: "[fd00:30::b]:30080",
            report: &report,
        };
        let pods = ["web-1".to_owned(), "web-2".to_owned(), "web-3".to_owned()];
        let text = table(&pods, &[row]);
        let expected = "\
from           to                  web-1 web-2 web-3 errors  median
outside client [fd00:30::b]:30080     12     ·     ·      3  1.3 ms";
        assert_eq!(text, expected);
    }
}
