//! Questions about the routing tables of a node that may have a million routes, as one on the edge
//! of a network has.
//!
//! The kernel hands out whole tables only, but it leaves out what does not match a filter, and what
//! nobody reads it does not look up. So of routes that are no default route only one is ever asked
//! for: any that leads out by a certain device.

use std::io;
use std::net::IpAddr;

use nix::errno::Errno;
use rtnetlink::packet_core::{
    DecodeError, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, Parseable,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::protocols::NETLINK_ROUTE;

use super::dump::ATTEMPTS;
use super::{DefaultRoute, DeviceError, is_link_local};
use crate::netlink::Connection;
use crate::network::Family;

/// The default routes of both families, of all tables.
pub(super) async fn default_routes() -> Result<Vec<DefaultRoute>, DeviceError> {
    ask(all_default_routes).await
}

/// Whether a route of any table leads out by a device, other than those to link-local and multicast
/// addresses that every device has. False if there is no such device.
pub(super) async fn leads_out(device: u32) -> Result<bool, DeviceError> {
    ask(move || {
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            if has_route(family, device)? {
                return Ok(true);
            }
        }
        Ok(false)
    })
    .await
}

/// Asks on a thread that may wait, since the kernel walks through whole tables.
async fn ask<T: Send + 'static>(
    question: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, DeviceError> {
    let answer = tokio::task::spawn_blocking(question).await;
    let answer = answer.unwrap_or_else(|error| Err(io::Error::other(error)));
    answer.map_err(|source| DeviceError::Dump {
        what: "routes",
        source,
    })
}

fn all_default_routes() -> io::Result<Vec<DefaultRoute>> {
    let mut routes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut found = Vec::new();
        for _ in 0..ATTEMPTS {
            let mut consistent = true;
            found.clear();
            let mut connection = request(family, None)?;
            let take = |answer: IfDefault| {
                consistent &= !answer.interrupted;
                found.extend(answer.route.iter().flat_map(read_default_route));
            };
            read_all(&mut connection, take)?;
            if consistent {
                break;
            }
        }
        routes.append(&mut found);
    }
    Ok(routes)
}

fn read_all(connection: &mut Connection, mut take: impl FnMut(IfDefault)) -> io::Result<()> {
    while !connection.receive(&mut take)? {}
    Ok(())
}

fn has_route(family: AddressFamily, device: u32) -> io::Result<bool> {
    let mut connection = request(family, Some(device))?;
    let mut found = false;
    loop {
        match connection.receive(|Answer(route)| found |= leads_anywhere(&route)) {
            // What was not read is not looked up either.
            Ok(_) if found => return Ok(true),
            Ok(true) => return Ok(false),
            Ok(false) => {}
            Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}

/// Asks for the routes that lead to other machines, those by a device only if one is given.
fn request(family: AddressFamily, device: Option<u32>) -> io::Result<Connection> {
    let mut connection = Connection::open(NETLINK_ROUTE)?;
    // Else the kernel ignores the filter.
    connection.be_strict()?;
    let mut request = RouteMessage::default();
    request.header.address_family = family;
    request.header.kind = RouteType::Unicast;
    request.attributes.extend(device.map(RouteAttribute::Oif));
    connection.send(RouteNetlinkMessage::GetRoute(request), NLM_F_REQUEST | NLM_F_DUMP)?;
    Ok(connection)
}

/// A route.
struct Answer(RouteMessage);

impl NetlinkDeserializable for Answer {
    type Error = DecodeError;

    fn deserialize(_header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        RouteMessage::parse(payload).map(Self)
    }
}

/// A route if it is a default route; what else there is, is not read.
struct IfDefault {
    route: Option<RouteMessage>,
    interrupted: bool,
}

impl NetlinkDeserializable for IfDefault {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let route = match is_default_route(payload) {
            true => Some(RouteMessage::parse(payload)?),
            false => None,
        };
        Ok(Self {
            route,
            interrupted: header.flags & NLM_F_DUMP_INTR != 0,
        })
    }
}

/// Whether a `struct rtmsg` has destination prefix length 0.
pub(super) fn is_default_route(payload: &[u8]) -> bool {
    payload.get(1).is_none_or(|&prefix_length| prefix_length == 0)
}

fn leads_anywhere(route: &RouteMessage) -> bool {
    let to = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(to) => ip_address(to),
        _ => None,
    });
    route.header.kind == RouteType::Unicast && to.is_none_or(|to| !is_link_local(to) && !to.is_multicast())
}

/// The next hops of a route, if it is a default route that leads anywhere.
fn read_default_route(message: &RouteMessage) -> Vec<DefaultRoute> {
    let header = &message.header;
    let family = match header.address_family {
        AddressFamily::Inet => Family::V4,
        AddressFamily::Inet6 => Family::V6,
        _ => return Vec::new(),
    };
    if header.destination_prefix_length != 0 || header.kind != RouteType::Unicast {
        return Vec::new();
    }
    let mut route = DefaultRoute {
        family,
        main: header.table == RouteHeader::RT_TABLE_MAIN,
        metric: 0,
        device: 0,
        preferred_source: None,
    };
    let mut devices = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(device) => devices.push(*device),
            RouteAttribute::MultiPath(hops) => devices.extend(hops.iter().map(|hop| hop.interface_index)),
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::PrefSource(source) => route.preferred_source = ip_address(source),
            _ => {}
        }
    }
    let hops = devices.into_iter();
    hops.map(|device| DefaultRoute { device, ..route }).collect()
}

fn ip_address(address: &RouteAddress) -> Option<IpAddr> {
    match *address {
        RouteAddress::Inet(address) => Some(address.into()),
        RouteAddress::Inet6(address) => Some(address.into()),
        _ => None,
    }
}
