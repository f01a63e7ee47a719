//! What nodes, Pods and outside clients have in common.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::address::Addresses;
use super::namespace::Namespace;

/// A state of a TCP socket (include/net/tcp_states.h).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum TcpState {
    /// It is open.
    Established = 1,
    /// It has asked for a connection.
    SynSent = 2,
    /// It has been asked.
    SynReceived = 3,
}

/// A place where processes run: the host side of a node, a Pod or an outside client.
///
/// A clone is the same place. Once its lab is gone, nothing can be started in it any more.
#[derive(Clone, Debug)]
pub struct Machine {
    pub(super) name: String,
    pub(super) namespace: Namespace,
    pub(super) cgroup: PathBuf,
    pub(super) addresses: Addresses,
    pub(super) far_device: String,
    /// Which one outside it is, if it is outside.
    pub(super) outside_index: Option<u8>,
    /// Where processes write their logs.
    pub(super) logs: PathBuf,
}

impl Machine {
    /// Its name; servers answer with it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its network namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The control group of its processes.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Its addresses.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Name of the other end of its link `eth0`: of a Pod in its node's namespace, of a node or an
    /// outside client in the fabric.
    pub fn far_device(&self) -> &str {
        &self.far_device
    }

    /// How many UDP datagrams its sockets have received, over both IP versions.
    ///
    /// # Errors
    ///
    /// If the kernel does not say.
    pub fn received_datagrams(&self) -> Result<u64> {
        self.namespace.run(|| {
            let ipv4 = fs::read_to_string("/proc/thread-self/net/snmp")?;
            let ipv6 = fs::read_to_string("/proc/thread-self/net/snmp6")?;
            // The second line of a protocol has the numbers, the first of them what we look for.
            let ipv4 = ipv4.lines().filter(|line| line.starts_with("Udp:")).nth(1);
            let ipv6 = ipv6.lines().find(|line| line.starts_with("Udp6InDatagrams"));
            let number = |line: Option<&str>| -> Result<u64> {
                let word = line.and_then(|line| line.split_whitespace().nth(1));
                Ok(word.context("no counter of datagrams")?.parse()?)
            };
            Ok(number(ipv4)? + number(ipv6)?)
        })
    }

    /// How many TCP sockets are in one of these states, over both IP versions.
    ///
    /// # Errors
    ///
    /// If the kernel does not say.
    pub fn tcp_sockets(&self, states: &[TcpState]) -> Result<usize> {
        let tables = self.namespace.run(|| {
            let ipv4 = fs::read_to_string("/proc/thread-self/net/tcp")?;
            Ok(ipv4 + &fs::read_to_string("/proc/thread-self/net/tcp6")?)
        })?;
        let is_one = |line: &&str| {
            let state = line
                .split_whitespace()
                .nth(3)
                .map(|word| u8::from_str_radix(word, 16));
            states.iter().any(|&wanted| state == Some(Ok(wanted as u8)))
        };
        Ok(tables.lines().filter(is_one).count())
    }
}
