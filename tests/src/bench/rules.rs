//! The same Services as rules of the kernel's packet filters, as kube-proxy writes them.
//!
//! Chains, rules and their order follow kube-proxy 1.36
//! (`pkg/proxy/{iptables,nftables}/proxier.go`), for Services with a cluster IP and one port. Names
//! are shorter: they are not evaluated when a packet passes.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use super::objects::{Made, PORT};

/// Addresses of the cluster's Pods. Packets from other addresses are masqueraded.
const POD_CIDR: &str = "10.128.0.0/9";
const SERVICE_CIDR: &str = "10.96.0.0/12";
/// kube-proxy's table in nftables.
const TABLE: &str = "ip kube-proxy";
/// With more endpoints than this, kube-proxy omits comments.
const MANY_ENDPOINTS: usize = 1000;

pub(super) fn nftables_base() -> String {
    const LINES: &[&str] = &[
        "add table {}",
        "add set {} cluster-ips { type ipv4_addr ; }",
        "add set {} nodeport-ips { type ipv4_addr ; }",
        "add map {} firewall-ips { type ipv4_addr . inet_proto . inet_service : verdict ; }",
        "add map {} no-endpoint-nodeports { type inet_proto . inet_service : verdict ; }",
        "add map {} no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict ; }",
        "add map {} service-ips { type ipv4_addr . inet_proto . inet_service : verdict ; }",
        "add map {} service-nodeports { type inet_proto . inet_service : verdict ; }",
        "add chain {} filter-prerouting-pre-dnat { type filter hook prerouting priority -110 ; }",
        "add chain {} filter-output-pre-dnat { type filter hook output priority -110 ; }",
        "add chain {} filter-forward { type filter hook forward priority 0 ; }",
        "add chain {} filter-input { type filter hook input priority 0 ; }",
        "add chain {} filter-output { type filter hook output priority 0 ; }",
        "add chain {} nat-output { type nat hook output priority -100 ; }",
        "add chain {} nat-postrouting { type nat hook postrouting priority 100 ; }",
        "add chain {} nat-prerouting { type nat hook prerouting priority -100 ; }",
        "add chain {} cluster-ips-check",
        "add chain {} firewall-check",
        "add chain {} mark-for-masquerade",
        "add chain {} masquerading",
        "add chain {} nodeport-endpoints-check",
        "add chain {} reject-chain",
        "add chain {} services",
        "add chain {} service-endpoints-check",
        "add rule {} cluster-ips-check ip daddr @cluster-ips reject",
        "add rule {} filter-prerouting-pre-dnat ct state new jump firewall-check",
        "add rule {} filter-forward ct state new jump service-endpoints-check",
        "add rule {} filter-forward ct state new jump cluster-ips-check",
        "add rule {} filter-input ct state new jump nodeport-endpoints-check",
        "add rule {} filter-input ct state new jump service-endpoints-check",
        "add rule {} filter-output ct state new jump service-endpoints-check",
        "add rule {} filter-output-pre-dnat ct state new jump firewall-check",
        "add rule {} filter-output ct state new jump cluster-ips-check",
        "add rule {} firewall-check ip daddr . meta l4proto . th dport vmap @firewall-ips",
        "add rule {} mark-for-masquerade mark set mark or 0x4000",
        "add rule {} masquerading mark and 0x4000 == 0 return",
        "add rule {} masquerading mark set mark xor 0x4000",
        "add rule {} masquerading masquerade fully-random",
        "add rule {} nat-output jump services",
        "add rule {} nat-postrouting jump masquerading",
        "add rule {} nat-prerouting jump services",
        "add rule {} nodeport-endpoints-check ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports",
        "add rule {} reject-chain reject",
        "add rule {} services ip daddr . meta l4proto . th dport vmap @service-ips",
        "add rule {} services ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports",
        "add rule {} service-endpoints-check ip daddr . meta l4proto . th dport vmap @no-endpoint-services",
    ];
    let mut base = String::new();
    for line in LINES {
        base.push_str(&line.replace("{}", TABLE));
        base.push('\n');
    }
    let _ = writeln!(
        base,
        "add rule {TABLE} cluster-ips-check ip daddr {{ {SERVICE_CIDR} }} drop"
    );
    base
}

/// The rules of a Service. Since 1.36 it has one chain, with a map of its endpoints.
pub(super) fn nftables_service(made: &Made, is_new: bool) -> String {
    let (vip, protocol) = (made.vip(), made.protocol_in_rules());
    let chain = format!("service-{}/{}/{protocol}/http", made.namespace(), made.name());
    let mut rules = format!("add chain {TABLE} {chain}\n");
    if is_new {
        let _ = writeln!(rules, "add element {TABLE} cluster-ips {{ {vip} }}");
        let _ = writeln!(
            rules,
            "add element {TABLE} service-ips {{ {vip} . {protocol} . {PORT} : goto {chain} }}"
        );
    } else {
        let _ = writeln!(rules, "flush chain {TABLE} {chain}");
    }
    let _ = writeln!(
        rules,
        "add rule {TABLE} {chain} ip daddr {vip} ip saddr != {POD_CIDR} jump mark-for-masquerade"
    );
    let endpoints: Vec<String> = (0..)
        .zip(&made.endpoints)
        .map(|(index, address): (u32, _)| format!("{index} : {address} . {}", made.target_port))
        .collect();
    let _ = writeln!(
        rules,
        "add rule {TABLE} {chain} meta l4proto {protocol} dnat ip addr . port to numgen random mod {} map {{ {} }}",
        endpoints.len(),
        endpoints.join(" , ")
    );
    rules
}

pub(super) const IPTABLES_BASE: &str = "*filter
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
-A INPUT -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
-A INPUT -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES
-A FORWARD -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
-A FORWARD -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -j KUBE-SERVICES
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
COMMIT
";

const IPTABLES_FILTER: &str = "*filter
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
";

const IPTABLES_NAT: &str = "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
";

fn service_chain(made: &Made) -> String {
    format!("KUBE-SVC-{:016X}", made.number)
}

pub(super) fn endpoint_chain(made: &Made, address: Ipv4Addr) -> String {
    format!("KUBE-SEP-{:08X}{:08X}", made.number, u32::from(address))
}

/// The rules of changed Services. `KUBE-SERVICES` is always written completely, the chains of a
/// Service only if it changed.
pub(super) fn iptables(services: &[Made], changed: &[Made], stale: &[String]) -> String {
    let mut rules = IPTABLES_FILTER.to_owned();
    let endpoints: usize = services.iter().map(|made| made.endpoints.len()).sum();
    let with_comments = endpoints <= MANY_ENDPOINTS;
    for made in changed {
        let _ = writeln!(rules, ":{} - [0:0]", service_chain(made));
        for address in &made.endpoints {
            let _ = writeln!(rules, ":{} - [0:0]", endpoint_chain(made, *address));
        }
    }
    for chain in stale {
        let _ = writeln!(rules, ":{chain} - [0:0]");
    }
    rules.push_str(IPTABLES_NAT);
    for made in services {
        let protocol = made.protocol_in_rules();
        let _ = writeln!(
            rules,
            "-A KUBE-SERVICES -m comment --comment \"{}/{}:http cluster IP\" -m {protocol} -p {protocol} -d {} --dport {PORT} -j {}",
            made.namespace(),
            made.name(),
            made.vip(),
            service_chain(made)
        );
    }
    for made in changed {
        iptables_service(&mut rules, made, with_comments);
    }
    rules.push_str("-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n");
    for chain in stale {
        let _ = writeln!(rules, "-X {chain}");
    }
    rules.push_str("COMMIT\n");
    rules
}

fn iptables_service(rules: &mut String, made: &Made, with_comments: bool) {
    let (chain, vip, protocol) = (service_chain(made), made.vip(), made.protocol_in_rules());
    let comment = if with_comments {
        format!("-m comment --comment {}/{}:http ", made.namespace(), made.name())
    } else {
        String::new()
    };
    let _ = writeln!(
        rules,
        "-A {chain} -m comment --comment \"{}/{}:http cluster IP\" -m {protocol} -p {protocol} -d {vip} --dport {PORT} ! -s {POD_CIDR} -j KUBE-MARK-MASQ",
        made.namespace(),
        made.name()
    );
    let mut left = made.endpoints.len();
    for address in &made.endpoints {
        let endpoint = endpoint_chain(made, *address);
        let chance = match left {
            1 => String::new(),
            left => format!(
                "-m statistic --mode random --probability {:.10} ",
                1.0 / left as f64
            ),
        };
        left -= 1;
        let _ = writeln!(rules, "-A {chain} {comment}{chance}-j {endpoint}");
    }
    for address in &made.endpoints {
        let endpoint = endpoint_chain(made, *address);
        let _ = writeln!(rules, "-A {endpoint} {comment}-s {address} -j KUBE-MARK-MASQ");
        let _ = writeln!(
            rules,
            "-A {endpoint} {comment}-m {protocol} -p {protocol} -j DNAT --to-destination {address}:{}",
            made.target_port
        );
    }
}
