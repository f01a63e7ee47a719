//! What the command line says about it.

use std::path::PathBuf;

use clap::Args;

use super::range::{ServiceCidr, ServiceCidrError, ServiceCidrs};

/// Of what Services get addresses.
#[derive(Args, Clone, Debug)]
pub struct ServiceCidrArguments {
    /// Networks of which Services of `--manifests` that name no clusterIP get one, at most one of each IP version; a
    /// Service that names no IP version has the first one's; a list, or repeated
    #[arg(
        long,
        value_name = "NETWORKS",
        value_delimiter = ',',
        requires = "manifests",
        conflicts_with = "kube",
        default_value = "10.96.0.0/16,fd00:10:96::/112"
    )]
    service_cidr: Vec<ServiceCidr>,
}

impl ServiceCidrArguments {
    /// The networks.
    ///
    /// # Errors
    ///
    /// If two of them are of one family.
    pub fn cidrs(&self) -> Result<ServiceCidrs, ServiceCidrError> {
        ServiceCidrs::new(&self.service_cidr)
    }
}

/// Of what Services get addresses, and where it is remembered.
#[derive(Clone, Debug)]
pub struct AllocationOptions {
    /// The networks.
    pub cidrs: ServiceCidrs,
    /// The directory with the file that remembers.
    pub state_directory: PathBuf,
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use crate::cli::{Arguments, Command};

    /// Whether the command line is taken, and the networks too.
    fn is_taken(line: &str) -> bool {
        match Arguments::try_parse_from(line.split(' ')).map(|arguments| arguments.command) {
            Ok(Command::Run(arguments)) => arguments.service_cidr.cidrs().is_ok(),
            _ => false,
        }
    }

    #[test]
    fn only_services_of_manifests_are_given_addresses() {
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
            ("lb-agent run --kube --service-cidr 10.96.0.0/28", false),
            ("lb-agent run --service-cidr 10.96.0.0/28", false),
            ("lb-agent run --kube", true),
        ] {
            assert_eq!(is_taken(line), expected, "{line}");
        }
    }
}
