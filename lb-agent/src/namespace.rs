//! The network namespace that the agent runs in.
#![expect(unsafe_code, reason = "none of the libraries in use supports SO_NETNS_COOKIE")]

use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// Returns the kernel's cookie of this thread's network namespace (`SO_NETNS_COOKIE`).
/// `bpf_get_netns_cookie` returns the same number for sockets of the namespace. `None` on kernels
/// before 5.14, which do not have this option.
pub fn cookie() -> nix::Result<Option<u64>> {
    match ask() {
        Err(Errno::ENOPROTOOPT) => Ok(None),
        cookie => cookie.map(Some),
    }
}

fn ask() -> nix::Result<u64> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let mut cookie: u64 = 0;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).map_err(|_| nix::Error::EINVAL)?;
    // SAFETY: the pointers are to a value of `length` bytes and to its length.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    nix::Error::result(result)?;
    Ok(cookie)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_cookie_of_a_namespace_stays_the_same() {
        let cookie = super::cookie().unwrap();
        assert_ne!(cookie, Some(0));
        assert_eq!(super::cookie(), Ok(cookie));
    }
}
