//! ServiceCIDRs, which a server may not have or may not allow to read.

use super::cluster::{Cluster, service_cidr};

const V1: &str = "networking.k8s.io/v1";
const BETA: &str = "networking.k8s.io/v1beta1";

/// Asserts the first lists, of which only that of ServiceCIDRs is not empty.
async fn expect_lists(cluster: &mut Cluster, cidrs: &str) {
    assert_eq!(
        cluster.next_sorted(4).await,
        [
            "replace EndpointSlice []",
            "replace Node []",
            "replace Service []",
            &format!("replace ServiceCIDR [{cidrs}]"),
        ]
    );
}

#[tokio::test]
async fn added_and_deleted_service_cidrs_are_reported() {
    let (server, directory) = Cluster::server().await;
    let both = ["10.96.0.0/16", "fd00:10:96::/112"];
    server.apply(&service_cidr(V1, "kubernetes", &both)).unwrap();
    let mut cluster = Cluster::start(server, directory);
    expect_lists(
        &mut cluster,
        "ServiceCIDR kubernetes 10.96.0.0/16,fd00:10:96::/112",
    )
    .await;
    let more = service_cidr(V1, "more", &["10.97.0.0/24"]);
    cluster.server.apply(&more).unwrap();
    assert_eq!(cluster.next().await, "apply ServiceCIDR more 10.97.0.0/24");
    cluster.server.delete(&more).unwrap();
    assert_eq!(cluster.next().await, "delete ServiceCIDR more");
    cluster.expect_alive("web", 80).await;
    assert_eq!(cluster.log.count("WARN"), 0, "{}", cluster.log.text());
}

#[tokio::test]
async fn the_beta_version_is_used_if_the_server_has_no_other() {
    let (server, directory) = Cluster::server().await;
    server.set_absent(V1, true);
    server
        .apply(&service_cidr(BETA, "kubernetes", &["10.96.0.0/16"]))
        .unwrap();
    let mut cluster = Cluster::start(server, directory);
    expect_lists(&mut cluster, "ServiceCIDR kubernetes 10.96.0.0/16").await;
    let changed = service_cidr(BETA, "kubernetes", &["10.96.0.0/16", "fd00::/112"]);
    cluster.server.apply(&changed).unwrap();
    assert_eq!(
        cluster.next().await,
        "apply ServiceCIDR kubernetes 10.96.0.0/16,fd00::/112"
    );
    assert_eq!(cluster.log.count("WARN"), 0, "{}", cluster.log.text());
}

#[tokio::test]
async fn without_service_cidrs_other_kinds_work_and_the_source_retries() {
    let (server, directory) = Cluster::server().await;
    for version in [V1, BETA] {
        server.set_absent(version, true);
    }
    let mut cluster = Cluster::start(server, directory);
    expect_lists(&mut cluster, "").await;
    cluster.expect_alive("web", 80).await;
    cluster.wait_for_log("has no ServiceCIDRs").await;
    cluster.wait_for_log("--service-cidr").await;
    // The cluster is upgraded.
    cluster.server.set_absent(V1, false);
    let cidr = service_cidr(V1, "kubernetes", &["10.96.0.0/16"]);
    cluster.server.apply(&cidr).unwrap();
    assert_eq!(
        cluster.next().await,
        "replace ServiceCIDR [ServiceCIDR kubernetes 10.96.0.0/16]"
    );
    assert_eq!(cluster.log.count("WARN"), 0, "{}", cluster.log.text());
    assert_eq!(
        cluster.log.count("has no ServiceCIDRs"),
        1,
        "{}",
        cluster.log.text()
    );
}

#[tokio::test]
async fn a_missing_permission_is_named_and_known_cidrs_stay() {
    let (server, directory) = Cluster::server().await;
    let cidr = service_cidr(V1, "kubernetes", &["10.96.0.0/16"]);
    server.apply(&cidr).unwrap();
    server.set_forbidden("servicecidrs", true);
    let mut cluster = Cluster::start(server, directory);
    expect_lists(&mut cluster, "").await;
    cluster
        .wait_for_log("allow the agent's service account to list and watch servicecidrs")
        .await;
    cluster.wait_for_log("servicecidrs is forbidden").await;
    cluster.expect_alive("web", 80).await;
    cluster.server.set_forbidden("servicecidrs", false);
    assert_eq!(
        cluster.next().await,
        "replace ServiceCIDR [ServiceCIDR kubernetes 10.96.0.0/16]"
    );
    // The permission is removed again: the source does not report the ServiceCIDRs as deleted.
    cluster.server.set_forbidden("servicecidrs", true);
    cluster.server.end_watches();
    cluster.expect_alive("web", 81).await;
}
