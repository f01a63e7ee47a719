//! Socket options about the size of packets.

use std::os::fd::AsFd;

use anyhow::{Context, Result};
use lb_tests::lab::report::Fragmentation;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockaddrLike, SockaddrStorage, getsockname, getsockopt, setsockopt};
use nix::{getsockopt_impl, setsockopt_impl, sockopt_impl};
use std::os::fd::AsRawFd;

sockopt_impl!(
    /// How large packets over IPv4 are fragmented.
    MtuDiscover4,
    SetOnly,
    libc::IPPROTO_IP,
    libc::IP_MTU_DISCOVER,
    libc::c_int
);

sockopt_impl!(
    /// The same over IPv6.
    MtuDiscover6,
    SetOnly,
    libc::IPPROTO_IPV6,
    libc::IPV6_MTU_DISCOVER,
    libc::c_int
);

sockopt_impl!(
    /// The path MTU over IPv4.
    Mtu4,
    GetOnly,
    libc::IPPROTO_IP,
    libc::IP_MTU,
    libc::c_int
);

sockopt_impl!(
    /// The same over IPv6.
    Mtu6,
    GetOnly,
    libc::IPPROTO_IPV6,
    libc::IPV6_MTU,
    libc::c_int
);

/// Sets how large packets of a UDP socket are fragmented.
pub(crate) fn set_fragmentation(socket: &(impl AsFd + AsRawFd), fragmentation: Fragmentation) -> Result<()> {
    let mode = match fragmentation {
        Fragmentation::Allowed => libc::IP_PMTUDISC_DONT,
        Fragmentation::Forbidden => libc::IP_PMTUDISC_DO,
        Fragmentation::Probe => libc::IP_PMTUDISC_PROBE,
    };
    if is_ipv6(socket)? {
        setsockopt(socket, MtuDiscover6, &mode).context("IPV6_MTU_DISCOVER")?;
    }
    // Also for an IPv6 socket, which may be dual-stack.
    setsockopt(socket, MtuDiscover4, &mode).context("IP_MTU_DISCOVER")
}

/// The path MTU of a connected socket that the kernel knows.
pub(crate) fn path_mtu(socket: &(impl AsFd + AsRawFd)) -> Result<u32> {
    let mtu = match is_ipv6(socket)? {
        true => getsockopt(socket, Mtu6),
        false => getsockopt(socket, Mtu4),
    };
    Ok(u32::try_from(mtu.context("read the path MTU")?)?)
}

fn is_ipv6(socket: &impl AsRawFd) -> Result<bool> {
    let address: SockaddrStorage = getsockname(socket.as_raw_fd())?;
    Ok(address.family() == Some(AddressFamily::Inet6))
}
