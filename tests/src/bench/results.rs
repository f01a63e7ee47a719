//! The output of a benchmark: text, JSON, and a section of a page.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use lb_agent::output::{self, OutputFormat};
use serde::Serialize;

use super::chart::Chart;

/// The results of a benchmark. They are serialized as JSON.
pub trait Results: Serialize {
    /// The name of the benchmark.
    const NAME: &str;

    /// The place, time and method of the measurement, and the main figures.
    fn summary(&self) -> String;

    /// All other figures.
    fn details(&self) -> Option<String> {
        None
    }

    /// The figures as charts.
    fn charts(&self) -> Vec<Chart> {
        Vec::new()
    }
}

/// Options for the output of a benchmark.
#[derive(clap::Args)]
#[expect(missing_debug_implementations, reason = "arguments of a program")]
pub struct Delivery {
    /// How to print the result
    #[arg(short, long, value_enum, default_value_t)]
    output: OutputFormat,
    /// A page to write the result to, between the lines that name the benchmark; charts and figures
    /// go to a directory next to it
    #[arg(long, value_name = "FILE", value_parser = existing)]
    page: Option<PathBuf>,
}

/// Checks that the page exists, before the measurements begin.
fn existing(path: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(path);
    match path.is_file() {
        true => Ok(path),
        false => Err("there is no such page".to_owned()),
    }
}

impl Delivery {
    /// Prints the results, and writes the page if the option is set.
    pub fn deliver(&self, results: &impl Results) -> Result<()> {
        match self.output {
            OutputFormat::Table => {
                let details = results.details().unwrap_or_default();
                output::print_line(&format!("{}\n{details}", results.summary()))?;
            }
            OutputFormat::Json => {
                output::print(self.output, results, |_| unreachable!("JSON needs no table"))?
            }
        }
        match &self.page {
            Some(page) => publish(results, page),
            None => Ok(()),
        }
    }
}

fn publish<R: Results>(results: &R, page: &Path) -> Result<()> {
    let name = R::NAME;
    let directory = page.with_extension("");
    fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    let write = |file: &str, content: &str| {
        let path = directory.join(file);
        fs::write(&path, content).with_context(|| format!("write {}", path.display()))
    };
    let text = fs::read_to_string(page).with_context(|| format!("read {}", page.display()))?;
    let beside = directory.file_name().unwrap_or_default().to_string_lossy();

    let mut section = format!("```text\n{}```\n\n", results.summary());
    for (number, chart) in (1..).zip(results.charts()) {
        let file = format!("{name}-{number}.svg");
        write(&file, &chart.svg()?)?;
        section += &format!("![{}]({beside}/{file})\n", chart.title);
    }
    if let Some(details) = results.details() {
        write(&format!("{name}.txt"), &details)?;
        section += &format!("\n[All figures as tables]({beside}/{name}.txt)\n");
    }
    write(
        &format!("{name}.json"),
        &(serde_json::to_string_pretty(results)? + "\n"),
    )?;
    section += &format!("\n[All figures as JSON]({beside}/{name}.json)\n");

    let text = with_section(&text, name, &section).with_context(|| {
        format!(
            "{} has no lines `{}` and `{}`",
            page.display(),
            begin(name),
            end(name)
        )
    })?;
    fs::write(page, text).with_context(|| format!("write {}", page.display()))
}

fn begin(name: &str) -> String {
    format!("<!-- {name}: written by `cargo xtask bench` -->\n")
}

fn end(name: &str) -> String {
    format!("<!-- {name}: end -->\n")
}

/// Replaces the section of this name. Returns `None` if the text has no such section.
fn with_section(text: &str, name: &str, section: &str) -> Option<String> {
    let (before, rest) = text.split_once(&begin(name))?;
    let (_, after) = rest.split_once(&end(name))?;
    Some(format!(
        "{before}{}\n{section}\n{}{after}",
        begin(name),
        end(name)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::chart::{Scale, Series};
    use crate::bench::statistics::Quartiles;

    #[derive(Serialize)]
    struct Speed(f64);

    impl Results for Speed {
        const NAME: &str = "speed";

        fn summary(&self) -> String {
            format!("{} m/s\n", self.0)
        }

        fn details(&self) -> Option<String> {
            Some("nothing else\n".to_owned())
        }

        fn charts(&self) -> Vec<Chart> {
            let points = [1.0, 2.0].map(|x| (x, Quartiles::single(self.0)));
            vec![Chart {
                title: "Speed & <haste>".to_owned(),
                x: "tries",
                y: "m/s".to_owned(),
                scale: Scale::Linear,
                series: vec![Series {
                    name: "snail".to_owned(),
                    points: points.into(),
                }],
            }]
        }
    }

    #[test]
    fn a_page_keeps_the_text_around_its_section() {
        let directory = tempfile::tempdir().unwrap();
        let page = directory.path().join("page.md");
        fs::write(
            &page,
            format!("before\n{}old\n{}after\n", begin("speed"), end("speed")),
        )
        .unwrap();
        publish(&Speed(1.5), &page).unwrap();
        publish(&Speed(2.5), &page).unwrap();
        let text = fs::read_to_string(&page).unwrap();
        assert!(
            text.starts_with("before\n") && text.ends_with("after\n"),
            "{text}"
        );
        assert!(
            text.contains("2.5 m/s") && !text.contains("1.5") && !text.contains("old"),
            "{text}"
        );
        for file in ["speed-1.svg", "speed.txt", "speed.json"] {
            assert!(text.contains(&format!("(page/{file})")), "{text}");
            assert!(directory.path().join("page").join(file).is_file(), "{file}");
        }
        let chart = fs::read_to_string(directory.path().join("page/speed-1.svg")).unwrap();
        assert!(chart.starts_with("<svg") && chart.contains("snail"), "{chart}");

        fs::write(&page, "no section\n").unwrap();
        publish(&Speed(1.0), &page).unwrap_err();
    }
}
