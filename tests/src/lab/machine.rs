//! Common properties of nodes, Pods and outside clients.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::address::Addresses;
use super::namespace::Namespace;

/// A state of a TCP socket
/// (<https://github.com/torvalds/linux/blob/v6.18/include/net/tcp_states.h>).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum TcpState {
    /// The connection is open.
    Established = 1,
    /// The socket has sent a SYN.
    SynSent = 2,
    /// The socket has received a SYN.
    SynReceived = 3,
}

/// A place in which processes run: the host side of a node, a Pod or an outside client.
///
/// A clone is the same place. Nothing can be started in it after its lab is removed.
#[derive(Clone, Debug)]
pub struct Machine {
    pub(super) name: String,
    pub(super) namespace: Namespace,
    pub(super) cgroup: PathBuf,
    pub(super) addresses: Addresses,
    pub(super) far_device: String,
    /// The number of the outside machine, if it is one.
    pub(super) outside_index: Option<u8>,
    /// Where processes write their logs.
    pub(super) logs: PathBuf,
}

impl Machine {
    /// Its name, with which servers answer.
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

    /// Name of the other end of its link `eth0`. That end is in the node's namespace for a Pod, and
    /// in the fabric for a node or an outside client.
    pub fn far_device(&self) -> &str {
        &self.far_device
    }

    /// The number of UDP datagrams that its sockets have received, for both IP versions.
    ///
    /// # Errors
    ///
    /// If the kernel does not report it.
    pub fn received_datagrams(&self) -> Result<u64> {
        self.namespace.run(|| {
            let ipv4 = fs::read_to_string("/proc/thread-self/net/snmp")?;
            let ipv6 = fs::read_to_string("/proc/thread-self/net/snmp6")?;
            // The second line of a protocol contains the numbers; the first one is InDatagrams.
            let ipv4 = ipv4.lines().filter(|line| line.starts_with("Udp:")).nth(1);
            let ipv6 = ipv6.lines().find(|line| line.starts_with("Udp6InDatagrams"));
            let number = |line: Option<&str>| -> Result<u64> {
                let word = line.and_then(|line| line.split_whitespace().nth(1));
                Ok(word.context("no counter of datagrams")?.parse()?)
            };
            Ok(number(ipv4)? + number(ipv6)?)
        })
    }

    /// The number of TCP sockets in one of these states, for both IP versions.
    ///
    /// # Errors
    ///
    /// If the kernel does not report it.
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
