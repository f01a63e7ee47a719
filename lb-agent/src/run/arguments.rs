//! Arguments of `lb-agent run`.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use lb_common::settings::Lifetimes;

use crate::arguments::PinArguments;
use crate::datapath::attach::options::{TcAttach, XdpAttach};
use crate::datapath::object::settings::{DEFAULT_CAPACITY, DEFAULT_TABLES};
use crate::devices::DeviceArguments;
use crate::health::HealthArguments;
use crate::model::{NodePortAddresses, UnknownPort};
use crate::source::manifests::ServiceCidrArguments;

/// Arguments of `run`.
#[derive(Args, Clone, Debug)]
pub struct RunArguments {
    /// The source of the objects.
    #[command(flatten)]
    pub source: SourceArguments,
    /// Where the agent pins maps and links.
    #[command(flatten)]
    pub pins: PinArguments,
    /// Directory for state that must survive a reboot: the addresses and ports assigned to Services
    /// (only with `--manifests`)
    #[arg(long, value_name = "DIR", default_value = "/var/lib/lb-agent")]
    pub state_directory: PathBuf,
    /// Networks from which Services in manifests get their cluster IPs.
    #[command(flatten)]
    pub service_cidr: ServiceCidrArguments,
    /// Name of this node's Node object [default: the host name]
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// Address of this node, one per IP family, until the Node object has one [default: those of
    /// the default route's device]
    #[arg(long, value_name = "ADDRESS")]
    pub node_address: Vec<IpAddr>,
    /// Which processes' sockets the agent translates
    #[arg(long, value_enum, default_value_t)]
    pub socket_lb: SocketLb,
    /// Directory of the cgroup whose processes' sockets are translated [default: the root of cgroup
    /// v2]
    #[arg(long, value_name = "DIR")]
    pub cgroup: Option<PathBuf>,
    /// What happens to TCP connections whose backend was removed
    #[arg(long, value_enum, default_value_t)]
    pub on_removed_backend: OnRemovedBackend,
    /// Seconds that open connections are kept after their backend disappears from the objects, in
    /// case it comes back; connections to a Pod that is known to be gone end immediately
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=3600))]
    pub removed_backend_grace: u32,
    /// Handle only Services whose label `service.kubernetes.io/service-proxy-name` has this value,
    /// instead of those without the label
    #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub service_proxy_name: Option<String>,
    /// Addresses of the node that accept NodePorts: `primary` (those of the Node object), `all`
    /// (those of its devices), `localhost` (only for the node's own sockets) or networks in CIDR
    /// notation; networks of only one IP family leave the other family at the default;
    /// comma-separated
    #[arg(
        long,
        value_name = "ADDRESSES",
        value_delimiter = ',',
        default_value = "primary,localhost"
    )]
    pub nodeport_addresses: Vec<NodePortAddresses>,
    /// What happens to packets to a load balancer address or external IP, on a port that no Service
    /// has there
    #[arg(long, value_enum, default_value_t)]
    pub unknown_port: UnknownPort,
    /// Seed of the hash that selects backends for clients outside the cluster; use the same text on
    /// all nodes, and keep it secret from these clients [default: the UID of the namespace
    /// kube-system, otherwise the seed of the previous agent]
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub hash_seed: Option<String>,
    /// How to attach XDP to network devices
    #[arg(long, value_enum, default_value_t)]
    pub xdp: XdpAttach,
    /// How to attach TC programs
    #[arg(long, value_enum, default_value_t)]
    pub tc: TcAttach,
    /// Pass packets between a Pod and a Service's Pod on the same node directly from device to
    /// device, without the node's network stack; faster, but these packets bypass the node's
    /// netfilter rules, its reverse path filter, and the TC egress programs of the Pods' devices
    #[arg(long)]
    pub local_redirect: bool,
    /// Which network devices carry programs.
    #[command(flatten)]
    pub devices: DeviceArguments,
    /// Sizes of the maps.
    #[command(flatten)]
    pub sizes: SizeArguments,
    /// Lifetimes of idle flows.
    #[command(flatten)]
    pub lifetimes: LifetimeArguments,
    /// Where to serve health checks and metrics.
    #[command(flatten)]
    pub health: HealthArguments,
}

/// What happens to TCP connections whose backend was removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum OnRemovedBackend {
    /// The programs answer their next packet with RST.
    #[default]
    Reset,
    /// Their packets are still sent to the backend, for as long as it exists.
    Forward,
}

/// The source of the objects.
#[derive(Args, Clone, Debug)]
#[group(multiple = false)]
pub struct SourceArguments {
    /// Read Services, EndpointSlices, Nodes, Pods and ServiceCIDRs from the YAML files in this
    /// directory
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// Use the Kubernetes API; the default inside a cluster
    #[arg(long)]
    pub kube: bool,
}

/// Whose sockets are translated.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum SocketLb {
    /// Those of all processes, Pods included.
    #[default]
    All,
    /// Only those of processes in the agent's own network namespace.
    Host,
    /// None; TC programs translate the packets of Pods.
    Off,
}

/// Sizes of the maps. They take effect when the maps are created; pinned maps keep their size.
#[derive(Args, Clone, Debug)]
pub struct SizeArguments {
    /// Maximum number of frontends (address, port and protocol that clients connect to), per IP
    /// family
    #[arg(long, value_name = "N", default_value_t = DEFAULT_CAPACITY.frontends, value_parser = clap::value_parser!(u32).range(2..))]
    pub max_frontends: u32,
    /// Maximum number of slots: entries in the backend lists of all Services
    #[arg(long, value_name = "N", default_value_t = DEFAULT_CAPACITY.slots, value_parser = clap::value_parser!(u32).range(2..))]
    pub max_slots: u32,
    /// Maximum number of backends, per IP family
    #[arg(long, value_name = "N", default_value_t = DEFAULT_CAPACITY.backends, value_parser = clap::value_parser!(u32).range(2..))]
    pub max_backends: u32,
    /// Maximum number of Service ports
    #[arg(long, value_name = "N", default_value_t = DEFAULT_CAPACITY.services, value_parser = clap::value_parser!(u32).range(2..))]
    pub max_services: u32,
    /// Maximum number of networks in `loadBalancerSourceRanges`, per IP family
    #[arg(long, value_name = "N", default_value_t = DEFAULT_CAPACITY.source_ranges, value_parser = clap::value_parser!(u32).range(2..))]
    pub max_source_ranges: u32,
    /// Maximum number of flows, per IP family; a connection takes two
    #[arg(long, value_name = "N", default_value_t = DEFAULT_TABLES.flows, value_parser = clap::value_parser!(u32).range(64..))]
    pub max_flows: u32,
    /// Maximum number of entries for translated sockets, per IP family; a TCP socket takes one, a
    /// UDP socket three
    #[arg(long, value_name = "N", default_value_t = DEFAULT_TABLES.sockets, value_parser = clap::value_parser!(u32).range(64..))]
    pub max_sockets: u32,
    /// Maximum number of session affinities, per IP family
    #[arg(long, value_name = "N", default_value_t = DEFAULT_TABLES.affinities, value_parser = clap::value_parser!(u32).range(64..))]
    pub max_affinities: u32,
    /// Maximum number of datagrams whose fragments are tracked at the same time, per IP family
    #[arg(long, value_name = "N", default_value_t = DEFAULT_TABLES.fragments, value_parser = clap::value_parser!(u32).range(64..))]
    pub max_fragments: u32,
}

/// How long idle flows are kept.
#[derive(Args, Clone, Debug)]
pub struct LifetimeArguments {
    /// Idle timeout of established TCP connections, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = Lifetimes::DEFAULT_SECONDS.tcp_established, value_parser = lifetime())]
    pub tcp_established_timeout: u32,
    /// Idle timeout of TCP connections that are not established yet (the client has not
    /// acknowledged a packet of the backend), in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = Lifetimes::DEFAULT_SECONDS.tcp_opening, value_parser = lifetime())]
    pub tcp_opening_timeout: u32,
    /// Idle timeout of TCP connections that one side has closed, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = Lifetimes::DEFAULT_SECONDS.tcp_half_closed, value_parser = lifetime())]
    pub tcp_half_closed_timeout: u32,
    /// Idle timeout of TCP connections that both sides have closed, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = Lifetimes::DEFAULT_SECONDS.tcp_closing, value_parser = lifetime())]
    pub tcp_closing_timeout: u32,
    /// Idle timeout of TCP connections that were reset, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = Lifetimes::DEFAULT_SECONDS.tcp_reset, value_parser = lifetime())]
    pub tcp_reset_timeout: u32,
    /// Idle timeout of UDP flows whose backend has answered, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = Lifetimes::DEFAULT_SECONDS.udp_answered, value_parser = lifetime())]
    pub udp_answered_timeout: u32,
    /// Idle timeout of UDP flows whose backend has not answered, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = Lifetimes::DEFAULT_SECONDS.udp_unanswered, value_parser = lifetime())]
    pub udp_unanswered_timeout: u32,
}

/// One second to one month (30 days). The clock of the flows wraps only after years.
fn lifetime() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=2_592_000)
}

impl LifetimeArguments {
    /// Returns all lifetimes, in seconds.
    pub fn seconds(&self) -> Lifetimes {
        Lifetimes {
            tcp_established: self.tcp_established_timeout,
            tcp_opening: self.tcp_opening_timeout,
            tcp_half_closed: self.tcp_half_closed_timeout,
            tcp_closing: self.tcp_closing_timeout,
            tcp_reset: self.tcp_reset_timeout,
            udp_answered: self.udp_answered_timeout,
            udp_unanswered: self.udp_unanswered_timeout,
        }
    }
}
