//! Routes whose MTU is smaller than that of their devices.

use std::process::Command;

use anyhow::{Context, Result, bail};

use super::namespace::Namespace;

impl Namespace {
    /// Limits the size of forwarded packets in all directions. The namespace answers larger packets
    /// with ICMP errors, or fragments them if the sender allows it. It behaves as if all its
    /// devices had this MTU, except that they still receive larger packets. The limit applies to
    /// the current routes, until the next call. IPv6 needs 1280 or more.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn limit_mtu(&self, mtu: u16) -> Result<()> {
        self.limit_routes(&[], mtu)
    }

    /// The same for the route to one destination: its prefix as `ip route` shows it, or `default`.
    ///
    /// # Errors
    ///
    /// If there is no such route or the kernel refuses.
    pub fn limit_mtu_to(&self, destination: &str, mtu: u16) -> Result<()> {
        let limited = match destination {
            // The default routes of both IP versions.
            "default" => self.limit_routes(&["default"], mtu),
            _ => self.limit_routes(&["exact", destination], mtu),
        };
        limited.with_context(|| format!("limit the MTU towards {destination}"))
    }

    fn limit_routes(&self, selection: &[&str], mtu: u16) -> Result<()> {
        let lines = self.run(|| {
            let mut lines = Vec::new();
            for family in families(selection) {
                lines.extend(
                    routes(family, selection)?
                        .lines()
                        .map(|route| limited(route, mtu)),
                );
            }
            Ok(lines)
        })?;
        if lines.is_empty() {
            bail!("there is no such route in {}", self.name());
        }
        self.ip(&lines)
    }
}

/// The IP versions in which there may be such routes.
fn families(selection: &[&str]) -> &'static [&'static str] {
    match selection {
        ["exact", destination] if destination.contains(':') => &["-6"],
        ["exact", _] => &["-4"],
        _ => &["-4", "-6"],
    }
}

/// Routes of this thread's namespace, one per line.
fn routes(family: &str, selection: &[&str]) -> Result<String> {
    let output = Command::new("ip")
        .args([family, "route", "show"])
        .args(selection)
        .output()
        .context("run ip (package iproute2)")?;
    if !output.status.success() {
        bail!("ip route show: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// The `ip` command that replaces a route, given as `ip route` shows it, by the same route with
/// this MTU. IPv6 forwarding only honours a locked MTU.
fn limited(route: &str, mtu: u16) -> String {
    let route = match route.split_once(" mtu lock ") {
        None => route.trim_end().to_owned(),
        Some((before, after)) => {
            let after = after.trim_start().split_once(' ').map_or("", |(_, after)| after);
            format!("{before} {}", after.trim_end())
        }
    };
    format!("route replace {} mtu lock {mtu}", route.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_limit_replaces_the_previous_one() {
        let route = "10.244.1.2 dev lxc-web-1 scope link ";
        let narrow = "route replace 10.244.1.2 dev lxc-web-1 scope link mtu lock 1400";
        assert_eq!(limited(route, 1400), narrow);
        let shown = "10.244.1.2 dev lxc-web-1 scope link mtu lock 1300 ";
        assert_eq!(limited(shown, 1400), narrow);
        let shown = "default via fe80::1 dev eth0 metric 1024 mtu lock 1300 pref medium";
        assert_eq!(
            limited(shown, 1400),
            "route replace default via fe80::1 dev eth0 metric 1024 pref medium mtu lock 1400"
        );
    }
}
