//! The Kubernetes API as the source, against a stand-in API server.
#![expect(clippy::unwrap_used, reason = "a test panics when something is wrong")]

mod cluster;
mod recovery;
mod service_cidrs;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use lb_agent::object::{Change, Object};
use lb_agent::source::kube::cluster_uid;
use lb_tests::api_server::CLUSTER_UID;
use tokio::time::timeout;

use self::cluster::{
    Cluster, HEADLESS, PROXY_NAME, TIMEOUT, is_watch, labelled_service, metadata, node, service, slice,
};

#[tokio::test]
async fn the_source_reports_first_lists_and_later_changes() {
    let (server, directory) = Cluster::server().await;
    server.apply(&service("web", 80)).unwrap();
    server
        .apply(&labelled_service("foreign", 81, &[(PROXY_NAME, "other")]))
        .unwrap();
    server.apply(&slice("web-1", &[])).unwrap();
    server.apply(&slice("headless-1", &[(HEADLESS, "")])).unwrap();
    server.apply(&node("here", "192.0.2.1")).unwrap();
    server.apply(&node("there", "192.0.2.2")).unwrap();
    let mut cluster = Cluster::start(server, directory);
    assert_eq!(
        cluster.next_sorted(4).await,
        [
            "replace EndpointSlice [EndpointSlice default/web-1]",
            "replace Node [Node here at 192.0.2.1, Node there at 192.0.2.2]",
            "replace Service [Service default/foreign:81, Service default/web:80]",
            "replace ServiceCIDR []"
        ]
    );
    cluster.expect_alive("web", 82).await;
    cluster.expect_alive("api", 83).await;
    cluster.server.delete(&service("web", 0)).unwrap();
    assert_eq!(cluster.next().await, "delete Service default/web");
    cluster.server.apply(&slice("api-1", &[])).unwrap();
    assert_eq!(cluster.next().await, "apply EndpointSlice default/api-1");
    cluster.server.delete(&slice("api-1", &[])).unwrap();
    assert_eq!(cluster.next().await, "delete EndpointSlice default/api-1");
    cluster.server.apply(&node("there", "192.0.2.3")).unwrap();
    assert_eq!(cluster.next().await, "apply Node there at 192.0.2.3");
    for name in ["here", "there"] {
        cluster.server.delete(&node(name, "")).unwrap();
        assert_eq!(cluster.next().await, format!("delete Node {name}"));
    }
}

#[tokio::test]
async fn the_source_requests_only_what_it_needs() {
    let cluster = Cluster::with_services(&["web"]).await;
    cluster.wait_for_watches(1).await;
    for request in cluster.server.requests().borrow().iter() {
        let (path, selector) = request.split_once('?').unwrap();
        let expected = match path {
            "/apis/discovery.k8s.io/v1/endpointslices" => format!("labelSelector=!{HEADLESS}"),
            // No selector: the agent needs the addresses of other Nodes and of Services of other
            // proxies.
            "/api/v1/services" | "/api/v1/nodes" | "/apis/networking.k8s.io/v1/servicecidrs" => {
                assert!(!selector.contains("Selector"), "{request}");
                continue;
            }
            other => panic!("{other} needs a permission that the agent does not have"),
        };
        assert!(selector.contains(&expected), "{request}");
    }
}

#[tokio::test]
async fn long_lists_are_read_in_pages() {
    let names: Vec<_> = (1000..2200).map(|number| format!("s{number}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let mut cluster = Cluster::with_services(&names).await;
    let pages = |requests: &[String]| {
        requests
            .iter()
            .filter(|request| request.contains("&continue="))
            .count()
    };
    cluster.wait_for_requests(|requests| pages(requests) == 2).await;
    cluster.expect_alive("web", 80).await;
}

#[tokio::test]
async fn managed_fields_are_dropped() {
    let (server, directory) = Cluster::server().await;
    let mut service = service("web", 80);
    service.metadata.managed_fields = Some(vec![ManagedFieldsEntry::default()]);
    server.apply(&service).unwrap();
    let mut cluster = Cluster::start(server, directory);
    loop {
        if let Some(Change::Replace { objects, .. }) = timeout(TIMEOUT, cluster.changes.recv()).await.unwrap()
            && let Some(Object::Service(service)) = objects.first()
        {
            assert_eq!(service.metadata.managed_fields, None);
            break;
        }
    }
}

#[tokio::test]
async fn services_of_other_proxies_are_still_reported() {
    let mut cluster = Cluster::with_services(&["web"]).await;
    let labelled = labelled_service("web", 80, &[(PROXY_NAME, "other")]);
    cluster.server.apply(&labelled).unwrap();
    // The Service is not deleted in between: its address stays allocated all the time.
    assert_eq!(cluster.next().await, "apply Service default/web:80");
    cluster.expect_alive("web", 82).await;
}

#[tokio::test]
async fn a_watch_resumes_from_the_last_bookmark() {
    let mut cluster = Cluster::with_services(&["web"]).await;
    cluster.wait_for_watches(1).await;
    // A change of a kind that the agent does not watch.
    cluster
        .server
        .apply(&Pod {
            metadata: metadata("pod", &[]),
            ..Pod::default()
        })
        .unwrap();
    cluster.server.expire_versions();
    let version = format!("resourceVersion={}", cluster.server.version());
    cluster.server.send_bookmarks();
    cluster.server.end_watches();
    let resumed = |request: &String| is_watch(request, "services") && request.contains(&version);
    cluster
        .wait_for_requests(|requests| requests.iter().any(resumed))
        .await;
    cluster.expect_alive("web", 81).await;
    assert_eq!(cluster.log.count("WARN"), 0, "{}", cluster.log.text());
}

#[tokio::test]
async fn an_object_that_cannot_be_decoded_does_not_stop_the_watch() {
    let mut cluster = Cluster::with_services(&["web"]).await;
    let strange = serde_json::json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"ports": [{"port": "abc"}]},
    });
    cluster.server.apply(&strange).unwrap();
    let complaint = "cannot decode /api/v1/namespaces/default/services/web";
    cluster.wait_for_log(complaint).await;
    cluster.wait_for_log("Service default/web").await;
    cluster.expect_alive("api", 81).await;
    cluster.server.delete(&strange).unwrap();
    assert_eq!(cluster.next().await, "delete Service default/web");
}

#[tokio::test]
async fn the_source_ends_when_its_receiver_is_dropped() {
    let cluster = Cluster::with_services(&[]).await;
    drop(cluster.changes);
    timeout(TIMEOUT, cluster.source).await.unwrap().unwrap();
}

#[tokio::test]
async fn the_cluster_is_identified_by_its_uid() {
    let (server, directory) = Cluster::server().await;
    let config = server.config(&directory.path().join("token")).unwrap();
    let ask = || timeout(TIMEOUT, cluster_uid(config.clone()));
    assert_eq!(ask().await, Ok(Some(CLUSTER_UID.to_owned())));
    server.set_forbidden("namespaces", true);
    assert_eq!(ask().await, Ok(None));
}
