//! The options of the allocation.

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::Args;

use super::range::ServiceCidrs;
use crate::network::Cidr;
use crate::service_cidr::{ServiceCidr, ServiceCidrError};

/// The networks if `--service-cidr` is not set.
const DEFAULT: [&str; 2] = ["10.96.0.0/16", "fd00:10:96::/112"];

/// The networks of cluster IPs.
#[derive(Args, Clone, Debug)]
pub struct ServiceCidrArguments {
    /// Networks of cluster IPs, at most one of each IP version; a list, or repeated. Packets to
    /// their addresses that no Service has are dropped. Services of `--manifests` without a
    /// clusterIP get one, from the first network if they name no IP version. Without this option,
    /// Services of `--manifests` get addresses of 10.96.0.0/16 and fd00:10:96::/112, and only
    /// packets to unused addresses of the Kubernetes API's ServiceCIDRs are dropped
    #[arg(long, value_name = "NETWORKS", value_delimiter = ',')]
    service_cidr: Vec<ServiceCidr>,
}

impl ServiceCidrArguments {
    /// The networks from which Services get addresses.
    ///
    /// # Errors
    ///
    /// If two of them have the same family.
    pub fn cidrs(&self) -> Result<ServiceCidrs, ServiceCidrError> {
        if !self.service_cidr.is_empty() {
            return ServiceCidrs::new(&self.service_cidr);
        }
        let default: Result<Vec<_>, _> = DEFAULT.iter().map(|text| text.parse()).collect();
        ServiceCidrs::new(&default?)
    }

    /// The networks from the command line. Only these certainly belong to the cluster.
    pub fn named(&self) -> BTreeSet<Cidr> {
        self.service_cidr.iter().map(ServiceCidr::network).collect()
    }
}

/// The networks for the allocation, and the directory of its state.
#[derive(Clone, Debug)]
pub struct AllocationOptions {
    /// The networks.
    pub cidrs: ServiceCidrs,
    /// The directory of the state's file.
    pub state_directory: PathBuf,
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use crate::cli::{Arguments, Command};

    /// Whether the command line and its networks are valid.
    fn is_taken(line: &str) -> bool {
        match Arguments::try_parse_from(line.split(' ')).map(|arguments| arguments.command) {
            Ok(Command::Run(arguments)) => arguments.service_cidr.cidrs().is_ok(),
            _ => false,
        }
    }

    #[test]
    fn invalid_service_cidr_options_are_rejected() {
        for (line, expected) in [
            ("lb-agent run --manifests m", true),
            ("lb-agent run --manifests m --service-cidr 10.96.0.0/28", true),
            (
                "lb-agent run --manifests m --service-cidr 10.96.0.0/28,fd00::/112",
                true,
            ),
            (
                "lb-agent run --manifests m --service-cidr 10.96.0.0/28,10.97.0.0/28",
                false,
            ),
            ("lb-agent run --manifests m --service-cidr 10.96.0.1/28", false),
            ("lb-agent run --manifests m --service-cidr 10.96.0.0/28,", false),
            ("lb-agent run --kube --service-cidr 10.96.0.0/28", true),
            ("lb-agent run --service-cidr 10.96.0.0/28", true),
            (
                "lb-agent run --kube --service-cidr 10.96.0.0/28,10.97.0.0/28",
                false,
            ),
            ("lb-agent run --kube", true),
        ] {
            assert_eq!(is_taken(line), expected, "{line}");
        }
    }
}
