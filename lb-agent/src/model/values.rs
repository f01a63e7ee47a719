//! Checks of single values.

use std::net::{IpAddr, Ipv4Addr};

use crate::maps::Protocol;
use crate::network::parse_address;

/// The maximum number of characters of a bad value in a message.
const SHOWN: usize = 80;

/// Formats a value for a message: quoted, escaped, and truncated if it is long.
pub fn quoted(value: &str) -> String {
    match value.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}... ({} bytes)", &value[..end], value.len()),
        None => format!("{value:?}"),
    }
}

/// Whether `name` is a DNS label (RFC 1123).
pub(super) fn is_dns_label(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&name.len())
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// Parses an address that a Service or an endpoint can have. The error describes what is wrong.
pub(super) fn unicast_address(text: &str) -> Result<IpAddr, String> {
    let Some(address) = parse_address(text) else {
        return Err(format!("{} is not an IP address: correct it", quoted(text)));
    };
    let fault = if address.is_unspecified() {
        "is the unspecified address"
    } else if address.is_loopback() {
        "is a loopback address"
    } else if address.is_multicast() {
        "is a multicast address"
    } else if address == IpAddr::V4(Ipv4Addr::BROADCAST) {
        "is the broadcast address"
    } else if matches!(address, IpAddr::V6(address) if address.is_unicast_link_local()) {
        "is a link-local address"
    } else {
        return Ok(address);
    };
    Err(format!(
        "{} {fault}: use a unicast address that can be routed",
        quoted(text)
    ))
}

/// Converts a port number. The error describes what is wrong.
pub(super) fn port_number(number: i32) -> Result<u16, String> {
    match u16::try_from(number) {
        Ok(number) if number != 0 => Ok(number),
        _ => Err(format!("port number {number} is out of range: use 1 to 65535")),
    }
}

/// Returns the protocol with this name in an object; an absent name means TCP. `None` if the
/// protocol is not supported.
pub(crate) fn protocol(name: Option<&str>) -> Option<Protocol> {
    match name {
        None | Some("" | "TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some("SCTP") => Some(Protocol::Sctp),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_are_truncated() {
        assert_eq!(quoted("a"), "\"a\"");
        assert!(quoted(&"\u{e9}".repeat(1000)).len() < 200);
    }

    #[test]
    fn labels() {
        for (name, valid) in [
            ("web-1", true),
            ("", false),
            ("-a", false),
            ("A", false),
            ("a.b", false),
        ] {
            assert_eq!(is_dns_label(name), valid, "{name}");
        }
        assert!(!is_dns_label(&"a".repeat(64)));
    }
}
