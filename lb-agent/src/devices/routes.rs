//! Queries of the routing tables. A node at the edge of a network may have a million routes.
//!
//! The kernel only dumps whole tables. But it skips routes that do not match a filter, and it looks
//! up routes only as fast as they are read. Apart from default routes, the agent therefore queries
//! only for a single route: any that leads out through a given device.

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

/// Returns the default routes of both families from all tables.
pub(super) async fn default_routes() -> Result<Vec<DefaultRoute>, DeviceError> {
    ask(all_default_routes).await
}

/// Returns whether a route of any table leads out through a device. Routes to link-local and
/// multicast addresses, which every device has, do not count. Returns false if the device does not
/// exist.
pub(super) async fn leads_out(device: u32) -> Result<bool, DeviceError> {
    ask(move || {
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            if has_route_through(family, device)? {
                return Ok(true);
            }
        }
        Ok(false)
    })
    .await
}

/// Runs a query on a blocking thread, since the kernel walks through whole tables.
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

fn has_route_through(family: AddressFamily, device: u32) -> io::Result<bool> {
    let mut connection = request(family, Some(device))?;
    let mut found = false;
    loop {
        match connection.receive(|Answer(route)| found |= may_lead_anywhere(&route)) {
            // The kernel does not look up the routes that are not read.
            Ok(_) if found => return Ok(true),
            Ok(true) => return Ok(false),
            Ok(false) => {}
            Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}

/// Requests the routes to other machines, optionally only those through a device.
fn request(family: AddressFamily, device: Option<u32>) -> io::Result<Connection> {
    let mut connection = Connection::open(NETLINK_ROUTE)?;
    // Otherwise the kernel ignores the filter.
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

/// A route if it is a default route. Others are not parsed.
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

fn may_lead_anywhere(route: &RouteMessage) -> bool {
    let to = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(to) => ip_address(to),
        _ => None,
    });
    route.header.kind == RouteType::Unicast && to.is_none_or(|to| !is_link_local(to) && !to.is_multicast())
}

/// The next hops of a route. Empty unless it is a unicast default route.
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
