//! The kernel's packet filters that kube-proxy uses to translate Services.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use super::objects::Made;
use super::rules;

/// A packet filter.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Filter {
    /// nftables
    Nftables,
    /// iptables
    Iptables,
}

impl std::fmt::Display for Filter {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
        })
    }
}

impl Filter {
    /// Both.
    pub(super) const ALL: [Self; 2] = [Self::Nftables, Self::Iptables];

    /// Loads rules into the network namespace of the calling thread. Returns the time that it took.
    pub(super) fn load(self, rules: &str) -> Result<Duration> {
        let [program, arguments @ ..] = self.command() else {
            unreachable!("every filter has a program")
        };
        let start = Instant::now();
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {program}"))?;
        // The input ends when this is dropped.
        let written = child
            .stdin
            .take()
            .map(|mut input| input.write_all(rules.as_bytes()));
        let status = child.wait()?;
        ensure!(status.success(), "{program} refused the rules: {status}");
        written.transpose().context("write the rules")?;
        Ok(start.elapsed())
    }

    /// The command that loads rules from its input.
    fn command(self) -> &'static [&'static str] {
        match self {
            Self::Nftables => &["nft", "-f", "-"],
            Self::Iptables => &["iptables-restore", "-w", "5", "--noflush", "--counters"],
        }
    }

    /// The rules that are loaded once, before [`Self::all`].
    pub(super) fn base(self) -> String {
        match self {
            Self::Nftables => rules::nftables_base(),
            Self::Iptables => rules::IPTABLES_BASE.to_owned(),
        }
    }

    /// The rules of all Services.
    pub(super) fn all(self, services: &[Made]) -> String {
        match self {
            Self::Nftables => services
                .iter()
                .map(|made| rules::nftables_service(made, true))
                .collect(),
            Self::Iptables => rules::iptables(services, services, &[]),
        }
    }

    /// The rules that change one of these Services after one of its endpoints was replaced.
    pub(super) fn change(self, services: &[Made], before: &Made, after: &Made) -> String {
        match self {
            Self::Nftables => rules::nftables_service(after, false),
            Self::Iptables => {
                let stale: Vec<String> = before
                    .endpoints
                    .iter()
                    .filter(|address| !after.endpoints.contains(address))
                    .map(|address| rules::endpoint_chain(before, *address))
                    .collect();
                rules::iptables(services, std::slice::from_ref(after), &stale)
            }
        }
    }
}
