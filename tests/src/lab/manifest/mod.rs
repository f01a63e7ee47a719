//! The manifests that the agents of a lab read.

mod endpoint_slice;
mod node;
mod pod;
mod service;

use std::fmt::{self, Display};
use std::fs;
use std::io::Write;

use anyhow::{Context, Result};
use serde::Serialize;
use tempfile::NamedTempFile;

pub use endpoint_slice::{EndpointManifest, EndpointSliceManifest};
pub use node::NodeManifest;
pub use pod::PodManifest;
pub use service::{ServiceManifest, ServicePort};

use super::Lab;

/// The namespace of all namespaced objects.
const NAMESPACE: &str = "default";

impl Lab {
    /// Writes a manifest atomically.
    ///
    /// # Errors
    ///
    /// If the file system refuses.
    pub fn apply(&self, file: &str, manifest: impl Display) -> Result<()> {
        let path = self.manifests().join(file);
        // Not in the watched directory: the agents only see the complete file.
        let mut temporary = NamedTempFile::new_in(&self.directory).context("create a manifest")?;
        write!(temporary, "{manifest}").context("write a manifest")?;
        temporary
            .persist(&path)
            .with_context(|| format!("write {}", path.display()))?;
        Ok(())
    }

    /// Removes a manifest.
    ///
    /// # Errors
    ///
    /// If there is no file of that name.
    pub fn remove(&self, file: &str) -> Result<()> {
        fs::remove_file(self.manifests().join(file)).with_context(|| format!("remove manifest {file}"))
    }

    /// Writes a manifest of each node and each Pod so far: `node-NAME.yaml`, `pod-NAME.yaml`. All
    /// Pods are ready.
    ///
    /// # Errors
    ///
    /// If the file system refuses.
    pub fn apply_nodes_and_pods(&self) -> Result<()> {
        for node in self.nodes() {
            self.apply(&format!("node-{}.yaml", node.name()), node.manifest())?;
            for pod in node.pods() {
                self.apply(&format!("pod-{}.yaml", pod.name()), node.pod_manifest(&pod))?;
            }
        }
        Ok(())
    }
}

/// Writes an object as YAML.
fn write_yaml(object: &impl Serialize, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
    let yaml = serde_norway::to_string(object).map_err(|_| fmt::Error)?;
    formatter.write_str(&yaml)
}
