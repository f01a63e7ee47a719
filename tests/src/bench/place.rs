//! Place and time of a measurement.

use std::fs;

use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

/// The machine, its kernel, and the date.
#[derive(Clone, Debug, Serialize)]
pub struct Place {
    /// Model and number of the processors.
    pub machine: String,
    /// Release of the kernel.
    pub kernel: String,
    /// When the figures were taken.
    pub date: String,
}

impl Place {
    /// The current machine and time.
    pub fn here() -> Self {
        let kernel =
            fs::read_to_string("/proc/sys/kernel/osrelease").expect("the kernel's release is readable");
        Self {
            machine: machine(),
            kernel: kernel.trim_end().to_owned(),
            date: Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string(),
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            formatter,
            "{}, Linux {}, {}",
            self.machine, self.kernel, self.date
        )
    }
}

/// The processor's name and count.
fn machine() -> String {
    let information = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let fields = information.lines().filter_map(|line| line.split_once(':'));
    let name = fields
        .clone()
        .find(|(field, _)| field.trim() == "model name")
        .map(|(_, name)| name.trim());
    let count = fields.filter(|(field, _)| field.trim() == "processor").count();
    format!("{count} x {}", name.unwrap_or(std::env::consts::ARCH))
}
