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
    /// Where the objects come from.
    #[command(flatten)]
    pub source: SourceArguments,
    /// Where the agent pins.
    #[command(flatten)]
    pub pins: PinArguments,
    /// Directory for what an agent must remember when the machine starts again: with `--manifests`,
    /// what Services were given
    #[arg(long, value_name = "DIR", default_value = "/var/lib/lb-agent")]
    pub state_directory: PathBuf,
    /// Of what Services in manifests get addresses.
    #[command(flatten)]
    pub service_cidr: ServiceCidrArguments,
    /// Name of this node's Node object; the host name by default
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// Address of this node, one for each family; by default those of the Node object, else of the
    /// default route
    #[arg(long, value_name = "ADDRESS")]
    pub node_address: Vec<IpAddr>,
    /// Translate at the sockets of all processes, of those in the host's network namespace only, or
    /// not at all
    #[arg(long, value_enum, default_value_t)]
    pub socket_lb: SocketLb,
    /// Directory of the cgroup whose processes' sockets are translated; the root of cgroup v2 by
    /// default
    #[arg(long, value_name = "DIR")]
    pub cgroup: Option<PathBuf>,
    /// What happens to TCP connections whose backend was removed
    #[arg(long, value_enum, default_value_t)]
    pub on_removed_backend: OnRemovedBackend,
    /// Seconds that open connections go on after their backend vanished from the objects, in which
    /// it may come back; those with a Pod that is known to be gone end at once
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=3600))]
    pub removed_backend_grace: u32,
    /// Handle only Services whose label `service.kubernetes.io/service-proxy-name` has this value,
    /// instead of those without the label
    #[arg(long, value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub service_proxy_name: Option<String>,
    /// Addresses of the node that take NodePorts: `primary` (the Node's), `all` (of its devices),
    /// `localhost` (for sockets of the node itself) or networks, which leave a family that none of
    /// them is of at the default; a list, or repeated
    #[arg(
        long,
        value_name = "ADDRESSES",
        value_delimiter = ',',
        default_value = "primary,localhost"
    )]
    pub nodeport_addresses: Vec<NodePortAddresses>,
    /// What becomes of packets to a load balancer address or an external IP that are for no port of
    /// a Service
    #[arg(long, value_enum, default_value_t)]
    pub unknown_port: UnknownPort,
    /// Text that decides, with their addresses, which backends clients outside get: the same on all
    /// nodes, and a secret from these clients; by default the UID of the cluster's namespace
    /// kube-system, or what the last agent had
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub hash_seed: Option<String>,
    /// How to attach XDP to network devices
    #[arg(long, value_enum, default_value_t)]
    pub xdp: XdpAttach,
    /// How to attach TC programs
    #[arg(long, value_enum, default_value_t)]
    pub tc: TcAttach,
    /// Hand what Pods send to Services with a Pod of this node over to that Pod, and its answers
    /// back, without the node's stack: faster, but the node's netfilter rules and reverse path
    /// filter, and the TC egress programs of the Pods' devices, do not see them
    #[arg(long)]
    pub local_redirect: bool,
    /// Which devices.
    #[command(flatten)]
    pub devices: DeviceArguments,
    /// Sizes of the maps.
    #[command(flatten)]
    pub sizes: SizeArguments,
    /// Lifetimes of idle flows.
    #[command(flatten)]
    pub lifetimes: LifetimeArguments,
    /// Where to answer health checks and to tell metrics.
    #[command(flatten)]
    pub health: HealthArguments,
}

/// What happens to TCP connections whose backend was removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum OnRemovedBackend {
    /// Their next packet is answered with RST.
    #[default]
    Reset,
    /// Their packets go on to the backend as long as it is there.
    Forward,
}

/// Where the objects come from.
#[derive(Args, Clone, Debug)]
#[group(multiple = false)]
pub struct SourceArguments {
    /// Directory of YAML files with Services, EndpointSlices, Nodes and Pods
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// The Kubernetes API; the default inside a cluster
    #[arg(long)]
    pub kube: bool,
}

/// Whose sockets are translated.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum SocketLb {
    /// Those of all processes, Pods included.
    #[default]
    All,
    /// Those in the agent's own network namespace.
    Host,
    /// None: TC translates what Pods send.
    Off,
}

/// Sizes of the maps. They count when the maps are made; maps that are pinned keep theirs.
#[derive(Args, Clone, Debug)]
pub struct SizeArguments {
    /// Addresses and ports that clients connect to, for each family
    #[arg(long, value_name = "N", default_value_t = DEFAULT_CAPACITY.frontends, value_parser = clap::value_parser!(u32).range(2..))]
    pub max_frontends: u32,
    /// Slots in which the Services name their backends
    #[arg(long, value_name = "N", default_value_t = DEFAULT_CAPACITY.slots, value_parser = clap::value_parser!(u32).range(2..))]
    pub max_slots: u32,
    /// Backends, for each family
    #[arg(long, value_name = "N", default_value_t = DEFAULT_CAPACITY.backends, value_parser = clap::value_parser!(u32).range(2..))]
    pub max_backends: u32,
    /// Ports of Services
    #[arg(long, value_name = "N", default_value_t = DEFAULT_CAPACITY.services, value_parser = clap::value_parser!(u32).range(2..))]
    pub max_services: u32,
    /// Networks in `loadBalancerSourceRanges`, for each family
    #[arg(long, value_name = "N", default_value_t = DEFAULT_CAPACITY.source_ranges, value_parser = clap::value_parser!(u32).range(2..))]
    pub max_source_ranges: u32,
    /// Entries of each family's flow table; a connection takes two
    #[arg(long, value_name = "N", default_value_t = DEFAULT_TABLES.flows, value_parser = clap::value_parser!(u32).range(64..))]
    pub max_flows: u32,
    /// Rows of sockets that are translated, for each family: one for a TCP socket, three for one of
    /// UDP
    #[arg(long, value_name = "N", default_value_t = DEFAULT_TABLES.sockets, value_parser = clap::value_parser!(u32).range(64..))]
    pub max_sockets: u32,
    /// Clients with session affinity, for each family
    #[arg(long, value_name = "N", default_value_t = DEFAULT_TABLES.affinities, value_parser = clap::value_parser!(u32).range(64..))]
    pub max_affinities: u32,
    /// Datagrams whose fragments are on their way, for each family
    #[arg(long, value_name = "N", default_value_t = DEFAULT_TABLES.fragments, value_parser = clap::value_parser!(u32).range(64..))]
    pub max_fragments: u32,
}

/// How long flows are remembered without a packet.
#[derive(Args, Clone, Debug)]
pub struct LifetimeArguments {
    /// Seconds that an idle TCP connection is remembered
    #[arg(long, value_name = "SECONDS", default_value_t = Lifetimes::DEFAULT_SECONDS.tcp_established, value_parser = lifetime())]
    pub tcp_established_timeout: u32,
    /// Seconds that a TCP connection is remembered that is not established: the client has not
    /// acknowledged an answer
    #[arg(long, value_name = "SECONDS", default_value_t = Lifetimes::DEFAULT_SECONDS.tcp_opening, value_parser = lifetime())]
    pub tcp_opening_timeout: u32,
    /// Seconds that an idle TCP connection is remembered that one side has closed
    #[arg(long, value_name = "SECONDS", default_value_t = Lifetimes::DEFAULT_SECONDS.tcp_half_closed, value_parser = lifetime())]
    pub tcp_half_closed_timeout: u32,
    /// Seconds that a TCP connection is remembered that both sides have closed
    #[arg(long, value_name = "SECONDS", default_value_t = Lifetimes::DEFAULT_SECONDS.tcp_closing, value_parser = lifetime())]
    pub tcp_closing_timeout: u32,
    /// Seconds that a TCP connection is remembered that was reset
    #[arg(long, value_name = "SECONDS", default_value_t = Lifetimes::DEFAULT_SECONDS.tcp_reset, value_parser = lifetime())]
    pub tcp_reset_timeout: u32,
    /// Seconds that an idle UDP flow is remembered whose backend has answered
    #[arg(long, value_name = "SECONDS", default_value_t = Lifetimes::DEFAULT_SECONDS.udp_answered, value_parser = lifetime())]
    pub udp_answered_timeout: u32,
    /// Seconds that an idle UDP flow is remembered whose backend has not answered
    #[arg(long, value_name = "SECONDS", default_value_t = Lifetimes::DEFAULT_SECONDS.udp_unanswered, value_parser = lifetime())]
    pub udp_unanswered_timeout: u32,
}

/// A second to a month: the clock of the flows wraps after years.
fn lifetime() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=2_592_000)
}

impl LifetimeArguments {
    /// All of them, in seconds.
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
