//! Clients as identified by session affinity.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use lb_common::layout::{AffinityKey, cookie};

use crate::datapath::live::LiveFamily;

/// A client as identified by session affinity.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Client {
    /// An address.
    Address(IpAddr),
    /// The cookie of a network namespace: the client was translated at its socket.
    Namespace(u64),
}

impl Client {
    /// The client of a row.
    pub(super) fn of<A: LiveFamily>(key: &AffinityKey<A>) -> Self {
        match cookie(key.namespace) {
            0 => Self::Address(key.client.into()),
            cookie => Self::Namespace(cookie),
        }
    }
}

impl fmt::Display for Client {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(formatter),
            Self::Namespace(cookie) => write!(formatter, "network namespace {cookie}"),
        }
    }
}

impl FromStr for Client {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let address = text.parse().map(Self::Address).ok();
        let cookie = || {
            text.parse()
                .ok()
                .filter(|cookie| *cookie != 0)
                .map(Self::Namespace)
        };
        address
            .or_else(cookie)
            .ok_or_else(|| "expected an IP address or the cookie of a network namespace".to_owned())
    }
}

impl serde::Serialize for Client {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_parse_from_addresses_and_cookies() {
        for (text, shown) in [
            ("10.0.0.1", "10.0.0.1"),
            ("fd00::1", "fd00::1"),
            ("4026", "network namespace 4026"),
        ] {
            assert_eq!(text.parse::<Client>().unwrap().to_string(), shown);
        }
        for text in ["0", "web", "10.0.0", "-1"] {
            assert!(text.parse::<Client>().is_err(), "{text}");
        }
    }
}
