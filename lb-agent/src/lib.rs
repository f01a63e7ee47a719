//! The agent: translates Services and EndpointSlices into the contents of the BPF maps.
//!
//! ```text
//! source (kube | manifests) -> state -> model -> install -> maps (trait) <- datapath
//! ```
//! The tables in ARCHITECTURE.md say which module may use which. Only `datapath` uses aya.

pub mod arguments;
pub mod check;
pub mod cleanup;
pub mod cli;
pub mod conntrack;
pub mod controller;
pub mod datapath;
pub mod desired;
pub mod devices;
pub mod explain;
pub mod health;
pub mod inspect;
pub mod install;
pub mod logging;
pub mod maglev;
pub mod maps;
pub mod metrics;
pub mod model;
pub mod mounts;
pub mod namespace;
mod netlink;
pub mod network;
pub mod object;
pub mod output;
pub mod ports;
pub mod privileges;
pub mod reassembly;
pub mod run;
pub mod service_cidr;
pub mod show;
pub mod sockets;
pub mod source;
pub mod state;

/// Returns an error and its causes in one line. Omits a cause if the text of the error before it
/// already ends with it.
pub fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::describe;

    #[derive(Debug, thiserror::Error)]
    enum Step {
        #[error("map X: {0}")]
        WithCause(#[source] std::io::Error),
        #[error("map X")]
        WithoutCause(#[source] std::io::Error),
    }

    #[test]
    fn a_cause_is_named_once() {
        let cause = || std::io::Error::from_raw_os_error(2);
        for step in [Step::WithCause(cause()), Step::WithoutCause(cause())] {
            let error = anyhow::Error::from(step).context("no agent has run");
            assert_eq!(
                describe(error.as_ref()),
                "no agent has run: map X: No such file or directory (os error 2)"
            );
        }
    }
}
