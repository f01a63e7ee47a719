//! The node's routing tables, queried over rtnetlink.

use std::net::IpAddr;
use std::path::PathBuf;

use futures::TryStreamExt as _;
use lb_common::packet::Route;
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use rtnetlink::{Handle, RouteMessageBuilder};
use tokio::runtime::Runtime;

use super::probe::{RouteLookup, Routes};
use crate::inspect;

/// The routing tables of the calling thread's network namespace. Policy rules that match the source
/// are ignored.
pub struct KernelRoutes {
    runtime: Runtime,
    handle: Handle,
    /// Index of the device that the packet arrives on; 0 if unknown.
    ingress: u32,
}

impl KernelRoutes {
    /// Opens the routing tables for packets from this address.
    ///
    /// # Errors
    /// If the netlink connection cannot be opened.
    pub fn connect(source: IpAddr) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let guard = runtime.enter();
        let (connection, handle, _) = rtnetlink::new_connection()?;
        drop(guard);
        // The task ends when the handle is dropped.
        runtime.spawn(connection);
        let mut routes = Self {
            runtime,
            handle,
            ingress: 0,
        };
        routes.ingress = routes.ask(source).device;
        Ok(routes)
    }

    /// Index of the device that packets from the source arrive on, according to the route back to
    /// the source; 0 if there is none.
    pub(super) fn ingress(&self) -> u32 {
        self.ingress
    }

    /// Looks up the route to an address, whether or not the node forwards packets.
    pub(super) fn ask(&self, destination: IpAddr) -> RouteLookup {
        let message = match destination {
            IpAddr::V4(address) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                .destination_prefix(address, 32)
                .build(),
            IpAddr::V6(address) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
                .destination_prefix(address, 128)
                .build(),
        };
        let mut found = self.handle.route().get(message).execute();
        // The kernel returns an error if there is no route.
        let answer = self.runtime.block_on(found.try_next()).ok().flatten();
        answer.map_or(RouteLookup::NONE, |message| way(&message))
    }

    /// The sysctl that disables forwarding of packets from the ingress device, if forwarding is
    /// off.
    fn forwarding_off(&self, destination: IpAddr) -> Option<String> {
        let family = if destination.is_ipv4() { "ipv4" } else { "ipv6" };
        let device = device_name(self.ingress);
        let path: PathBuf = ["/proc/sys/net", family, "conf", &device, "forwarding"]
            .iter()
            .collect();
        // If this file is missing, the kernel has no route through the device either.
        let is_off = std::fs::read_to_string(path).is_ok_and(|text| text.trim() == "0");
        // In a name with slashes, a dot belongs to the device's name (sysctl(8)).
        is_off.then(|| format!("net/{family}/conf/{device}/forwarding"))
    }
}

impl Routes for KernelRoutes {
    fn lookup(&self, destination: IpAddr) -> RouteLookup {
        if self.forwarding_disabled_by(destination).is_some() {
            return RouteLookup::NONE;
        }
        self.ask(destination)
    }

    fn forwarding_disabled_by(&self, destination: IpAddr) -> Option<String> {
        match self.ask(destination).route {
            Route::Ready => self.forwarding_off(destination),
            _ => None,
        }
    }
}

fn way(message: &RouteMessage) -> RouteLookup {
    let device = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    });
    let route = match message.header.kind {
        RouteType::Unicast => Route::Ready,
        RouteType::Local => Route::Local,
        _ => Route::None,
    };
    RouteLookup {
        route,
        device: device.unwrap_or_default(),
    }
}

/// The name of a device for users.
pub(super) fn device_name(index: u32) -> String {
    inspect::device_name(index).unwrap_or_else(|| format!("index {index}"))
}
