//! ServiceCIDRs. An API server may not have them (before Kubernetes 1.31), may have only `v1beta1`
//! (before 1.33), or may not allow the agent to read them. The agent works without them.

use std::borrow::Cow;
use std::fmt::Debug;
use std::marker::PhantomData;
use std::ops::Range;
use std::time::Duration;

use k8s_openapi::ClusterResourceScope;
use k8s_openapi::api::networking::v1::{ServiceCIDR, ServiceCIDRSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Client, Resource};
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::watch::{Watch, Watched};
use crate::object::{Change, Object, ObjectKind};

/// A version of the API.
trait Version: Clone + Debug + Send + 'static {
    /// The version as in URLs.
    const NAME: &'static str;
}

#[derive(Clone, Debug)]
struct V1;

impl Version for V1 {
    const NAME: &'static str = "v1";
}

#[derive(Clone, Debug)]
struct V1Beta1;

impl Version for V1Beta1 {
    const NAME: &'static str = "v1beta1";
}

/// The parts of a ServiceCIDR that the agent reads. They are the same in all API versions.
#[derive(Clone, Debug, Deserialize)]
#[serde(bound = "")]
struct CidrObject<V> {
    #[serde(default)]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Spec,
    #[serde(skip)]
    version: PhantomData<V>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Spec {
    #[serde(default)]
    cidrs: Vec<String>,
}

impl<V: Version> Resource for CidrObject<V> {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "ServiceCIDR".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "networking.k8s.io".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        V::NAME.into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "servicecidrs".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl<V: Version> Watched for CidrObject<V> {
    const KIND: ObjectKind = ObjectKind::ServiceCidr;

    fn into_object(self) -> Object {
        let cidrs = Some(self.spec.cidrs);
        Object::ServiceCidr(Box::new(ServiceCIDR {
            metadata: self.metadata,
            spec: Some(ServiceCIDRSpec { cidrs }),
            status: None,
        }))
    }
}

/// Sends changes indefinitely. If the server refuses, the agent assumes that there are no
/// ServiceCIDRs. If an earlier list succeeded, the agent keeps the ServiceCIDRs of that list.
pub(super) async fn run(
    client: Client,
    place: String,
    leisure: Range<Duration>,
    changes: mpsc::Sender<Change>,
) {
    let mut has_listed = false;
    let mut known = None;
    loop {
        let mut newest = Watch::<CidrObject<V1>>::new(client.clone(), place.clone(), None, changes.clone());
        let mut refusal = newest.run_until_refused().await;
        has_listed |= newest.has_listed();
        if refusal.code == NOT_FOUND {
            let mut beta =
                Watch::<CidrObject<V1Beta1>>::new(client.clone(), place.clone(), None, changes.clone());
            refusal = beta.run_until_refused().await;
            has_listed |= beta.has_listed();
        }
        if known != Some(refusal.code) {
            tell(&place, refusal.code, &refusal.message);
        }
        known = Some(refusal.code);
        if !has_listed {
            has_listed = true;
            let kind = ObjectKind::ServiceCidr;
            let objects = Vec::new();
            // If the receiver is closed, the source ends.
            let _ = changes.send(Change::Replace { kind, objects }).await;
        }
        sleep(leisure.start + (leisure.end - leisure.start).mul_f32(fastrand::f32())).await;
    }
}

/// The HTTP status of a server that does not have the resource.
const NOT_FOUND: u16 = 404;

fn tell(place: &str, code: u16, message: &str) {
    const LOST: &str = "packets to addresses of Services that do not exist are dropped in the networks of --service-cidr only";
    if code == NOT_FOUND {
        tracing::info!(
            "the API server at {place} has no ServiceCIDRs (Kubernetes has them since 1.31): {LOST}; name the cluster's \
             networks there"
        );
    } else {
        tracing::warn!(
            "cannot watch ServiceCIDRs at {place}, so {LOST}: allow the agent's service account to list and watch \
             servicecidrs of networking.k8s.io, or name the networks: {message}"
        );
    }
}
