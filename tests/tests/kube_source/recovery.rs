//! Failures between the agent and the API server, and how the agent recovers from them.

use lb_tests::connect_proxy::ConnectProxy;

use super::cluster::{Cluster, node, service, slice};

#[tokio::test]
async fn objects_deleted_during_an_outage_are_missing_in_the_new_list() {
    let mut cluster = Cluster::with_services(&["api", "web"]).await;
    cluster.server.stop().await;
    cluster.server.delete(&service("web", 0)).unwrap();
    cluster.server.expire_versions();
    cluster.server.restart().await.unwrap();
    assert_eq!(
        cluster.next_sorted(4).await,
        [
            "replace EndpointSlice []",
            "replace Node []",
            "replace Service [Service default/api:80]",
            "replace ServiceCIDR []"
        ]
    );
    cluster.expect_alive("api", 81).await;
}

#[tokio::test]
async fn a_resource_version_ahead_of_the_server_is_discarded() {
    let mut cluster = Cluster::with_services(&["web"]).await;
    let backup = cluster.server.version();
    cluster.expect_alive("lost", 81).await;
    cluster.server.stop().await;
    cluster.server.restore(backup);
    cluster.server.restart().await.unwrap();
    assert_eq!(cluster.next().await, "replace Service [Service default/web:80]");
}

#[tokio::test]
async fn a_watch_cut_within_an_object_is_resumed() {
    let mut cluster = Cluster::with_services(&["web"]).await;
    for (n_watches, port) in (1..).zip(81..84) {
        // The server can only cut a watch that has begun.
        cluster.wait_for_watches(n_watches).await;
        cluster.server.cut_watches();
        cluster.expect_alive("web", port).await;
    }
    assert_eq!(cluster.log.count("WARN"), 0, "{}", cluster.log.text());
}

#[tokio::test]
async fn an_outage_is_reported_once() {
    let mut cluster = Cluster::with_services(&["web"]).await;
    cluster.server.stop().await;
    for kind in ["Services", "EndpointSlices", "Nodes", "ServiceCIDRs"] {
        cluster
            .wait_for_log(&format!("cannot watch {kind} at https://127.0.0.1:"))
            .await;
    }
    cluster.wait_for_log("Connection refused").await;
    cluster.server.restart().await.unwrap();
    for kind in ["Services", "EndpointSlices", "Nodes", "ServiceCIDRs"] {
        cluster
            .wait_for_log(&format!("watching {kind} at https://127.0.0.1:"))
            .await;
    }
    cluster.expect_alive("web", 81).await;
    assert_eq!(cluster.log.count("cannot watch"), 4, "{}", cluster.log.text());
    assert_eq!(cluster.log.count(" again"), 4, "{}", cluster.log.text());
}

#[tokio::test]
async fn the_source_waits_for_a_server_that_is_down_at_startup() {
    let (mut server, directory) = Cluster::server().await;
    server.apply(&node("here", "192.0.2.1")).unwrap();
    server.stop().await;
    let mut cluster = Cluster::start(server, directory);
    cluster.wait_for_log("cannot watch Nodes").await;
    cluster.server.restart().await.unwrap();
    assert_eq!(
        cluster.next_sorted(4).await,
        [
            "replace EndpointSlice []",
            "replace Node [Node here at 192.0.2.1]",
            "replace Service []",
            "replace ServiceCIDR []"
        ]
    );
}

#[tokio::test]
async fn the_source_waits_for_slow_responses() {
    let (server, directory) = Cluster::server().await;
    server.hold_answers(true);
    let mut cluster = Cluster::start(server, directory);
    cluster.wait_for_requests(|requests| requests.len() == 4).await;
    cluster.server.hold_answers(false);
    assert_eq!(
        cluster.next_sorted(4).await,
        [
            "replace EndpointSlice []",
            "replace Node []",
            "replace Service []",
            "replace ServiceCIDR []"
        ]
    );
}

#[tokio::test]
async fn a_token_that_changes_on_disk_is_read_again() {
    let mut cluster = Cluster::with_services(&["web"]).await;
    cluster.server.set_token("rotated");
    cluster.server.stop().await;
    cluster.server.restart().await.unwrap();
    cluster.wait_for_log("is the agent's token valid?").await;
    std::fs::write(&cluster.token_file, "rotated").unwrap();
    cluster.wait_for_log("watching Services").await;
    cluster.expect_alive("web", 81).await;
}

#[tokio::test]
async fn a_forbidden_kind_is_reported_and_the_others_work() {
    let (server, directory) = Cluster::server().await;
    server.apply(&slice("web-1", &[])).unwrap();
    server.set_forbidden("endpointslices", true);
    let mut cluster = Cluster::start(server, directory);
    assert_eq!(
        cluster.next_sorted(3).await,
        ["replace Node []", "replace Service []", "replace ServiceCIDR []"]
    );
    cluster
        .wait_for_log("allow the agent's service account to list and watch them")
        .await;
    cluster.wait_for_log("endpointslices is forbidden").await;
    cluster.expect_alive("web", 80).await;
    cluster.server.set_forbidden("endpointslices", false);
    assert_eq!(
        cluster.next().await,
        "replace EndpointSlice [EndpointSlice default/web-1]"
    );
    assert_eq!(cluster.log.count("cannot watch"), 1, "{}", cluster.log.text());
}

#[tokio::test]
async fn a_watch_ahead_of_the_server_lists_again_when_it_ends() {
    let mut cluster = Cluster::with_services(&["web"]).await;
    let backup = cluster.server.version();
    cluster.expect_alive("lost", 81).await;
    cluster.wait_for_watches(1).await;
    // The watches stay open without any events.
    cluster.server.restore(backup);
    cluster.server.end_watches();
    assert_eq!(cluster.next().await, "replace Service [Service default/web:80]");
    cluster.wait_for_log("went back from resource version").await;
    cluster.expect_alive("web", 83).await;
}

#[tokio::test]
async fn every_warning_names_the_server_and_a_remedy() {
    let mut cluster = Cluster::with_services(&["web"]).await;
    cluster.wait_for_watches(1).await;
    cluster.server.fail_with(Some(503));
    cluster.server.end_watches();
    cluster.wait_for_log("cannot watch Services").await;
    cluster.wait_for_log("see what the API server logs").await;
    cluster.server.fail_with(None);
    cluster.wait_for_log("watching Services").await;
    cluster.server.stop().await;
    cluster.wait_for_log("Connection refused").await;
    cluster.server.set_token("rotated");
    std::fs::remove_file(&cluster.token_file).unwrap();
    cluster.server.restart().await.unwrap();
    cluster.wait_for_log("give the file a token").await;
    cluster.wait_for_log("is the agent's token valid?").await;
    let log = cluster.log.text();
    let ours = |line: &&str| line.contains(" lb_agent::") && line.contains("https://127.0.0.1:");
    let warnings = || log.lines().filter(|line| !line.contains(" INFO "));
    assert_eq!(warnings().count(), warnings().filter(ours).count(), "{log}");
}

#[tokio::test]
async fn another_cause_of_failure_is_logged_again() {
    let mut cluster = Cluster::with_services(&["web"]).await;
    cluster.server.stop().await;
    cluster.wait_for_log("Connection refused").await;
    cluster.server.set_forbidden("services", true);
    cluster.server.restart().await.unwrap();
    cluster.wait_for_log("services is forbidden").await;
}

#[tokio::test]
async fn a_token_file_may_appear_later_and_end_with_a_newline() {
    let (server, directory) = Cluster::server().await;
    let file = directory.path().join("token");
    std::fs::remove_file(&file).unwrap();
    let mut cluster = Cluster::start(server, directory);
    cluster.wait_for_log("correct the token file").await;
    cluster.wait_for_log(file.to_str().unwrap()).await;
    std::fs::write(&file, "secret\n").unwrap();
    cluster.next_sorted(4).await;
    cluster.wait_for_watches(1).await;
    // An empty file, as while a process writes it.
    std::fs::write(&file, "").unwrap();
    cluster.server.end_watches();
    cluster.wait_for_log("using the previous one").await;
    cluster.wait_for_watches(2).await;
    cluster.expect_alive("web", 81).await;
}

#[tokio::test]
async fn the_source_reaches_the_server_through_a_proxy() {
    let (server, directory) = Cluster::server().await;
    let proxy = ConnectProxy::start().await.unwrap();
    let mut config = server.config(&directory.path().join("token")).unwrap();
    config.proxy_url = Some(format!("http://{}", proxy.address()).parse().unwrap());
    let mut cluster = Cluster::start_with(config, server, directory);
    cluster.next_sorted(4).await;
    cluster.expect_alive("web", 81).await;
    assert!(proxy.tunnels() > 0);
    drop(proxy);
    cluster.server.stop().await;
    cluster.wait_for_log("through the proxy 127.0.0.1:").await;
}
