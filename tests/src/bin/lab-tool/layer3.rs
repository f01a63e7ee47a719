//! A link without Ethernet headers, or with them: two tun or tap devices, between which this
//! process forwards packets.
#![expect(unsafe_code, reason = "no dependency supports TUNSETIFF")]

use std::ffi::c_char;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::thread;

use anyhow::{Context, Result, ensure};
use lb_tests::lab::namespace;
use nix::errno::Errno;
use nix::libc;

/// Size of the packet buffer in bytes.
const LARGEST_PACKET: usize = 65536;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Name of the near device
    #[arg(long)]
    device: String,
    /// Use tap devices, which have Ethernet headers
    #[arg(long)]
    ethernet: bool,
    /// Network namespace of the far device
    #[arg(long)]
    far_netns: String,
    /// Name of the far device
    #[arg(long)]
    far_device: String,
}

/// Creates the devices and forwards packets until it is killed.
pub(crate) fn run(options: &Options) -> Result<()> {
    let kind = match options.ethernet {
        true => libc::IFF_TAP,
        false => libc::IFF_TUN,
    };
    let near = open(&options.device, kind)?;
    namespace::enter(&options.far_netns)?;
    let far = open(&options.far_device, kind)?;
    println!("ready");
    thread::scope(|scope| {
        scope.spawn(|| carry(&near, &far));
        carry(&far, &near);
    });
    Ok(())
}

/// Creates a tun or tap device in the namespace of this thread. The kernel removes it when the file
/// is closed.
fn open(name: &str, kind: i32) -> Result<File> {
    const PATH: &str = "/dev/net/tun";
    ensure!(
        name.len() < libc::IFNAMSIZ,
        "the name {name} of a device is too long"
    );
    let file = File::options()
        .read(true)
        .write(true)
        .open(PATH)
        .with_context(|| format!("open {PATH}"))?;
    let mut ifr_name: [c_char; libc::IFNAMSIZ] = [0; libc::IFNAMSIZ];
    for (to, from) in ifr_name.iter_mut().zip(name.bytes()) {
        *to = c_char::from_ne_bytes([from]);
    }
    let flags = i16::try_from(kind | libc::IFF_NO_PI)?;
    let request = libc::ifreq {
        ifr_name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: flags },
    };
    // SAFETY: the request points to an `ifreq` that outlives the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw const request) };
    Errno::result(result).with_context(|| format!("make the device {name}"))?;
    Ok(file)
}

/// Forwards packets in one direction until the process ends. While a device is down, its packets
/// are lost, as on any link.
fn carry(mut from: &File, mut to: &File) {
    let mut packet = vec![0; LARGEST_PACKET];
    while let Ok(length) = from.read(&mut packet) {
        let _ = to.write(&packet[..length]);
    }
}
