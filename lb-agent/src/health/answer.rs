//! HTTP responses with the same fields as kube-proxy's (`pkg/proxy/healthcheck` in its source),
//! because load balancers and probes read them.

use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::{Response, StatusCode};
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use super::Pulse;
use crate::desired::NamespacedName;

/// The weight of this node for load balancers that support weights.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// The body of `/healthz` and `/livez`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    last_updated: Timestamp,
    current_time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
}

/// The body of a `healthCheckNodePort`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Check<'a> {
    service: CheckedService<'a>,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct CheckedService<'a> {
    namespace: &'a str,
    name: &'a str,
}

/// `/healthz`: whether load balancers should send new connections to this node.
pub(super) fn healthz(pulse: &Pulse, is_healthy: bool, clock: Timestamp) -> Response<String> {
    let is_eligible = !pulse.node_is_leaving;
    let condition = condition(pulse, is_healthy, is_healthy && is_eligible, clock);
    json(
        is_healthy && is_eligible,
        &Condition {
            node_eligible: Some(is_eligible),
            ..condition
        },
    )
}

/// `/livez`: whether the agent works. The kubelet restarts it if not. This ignores whether the Node
/// is being deleted, because a restart would not help then.
pub(super) fn livez(pulse: &Pulse, is_healthy: bool, clock: Timestamp) -> Response<String> {
    json(is_healthy, &condition(pulse, is_healthy, is_healthy, clock))
}

/// A `healthCheckNodePort`: whether the Service's load balancer should send new connections to this
/// node.
pub(super) fn check(service: &NamespacedName, local_endpoints: usize, is_healthy: bool) -> Response<String> {
    let body = Check {
        service: CheckedService {
            namespace: &service.namespace,
            name: &service.name,
        },
        local_endpoints,
        service_proxy_healthy: is_healthy,
    };
    let mut response = json(local_endpoints > 0 && is_healthy, &body);
    response
        .headers_mut()
        .insert(WEIGHT, HeaderValue::from(local_endpoints));
    response
}

/// The metrics.
pub(super) fn metrics(text: String) -> Response<String> {
    let mut response = Response::new(text);
    let kind = HeaderValue::from_static(prometheus::TEXT_FORMAT);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// The response for an unknown path.
pub(super) fn not_found() -> Response<String> {
    plain(StatusCode::NOT_FOUND, "not found")
}

/// The response if the metrics cannot be read.
pub(super) fn failed(reason: &str) -> Response<String> {
    plain(StatusCode::INTERNAL_SERVER_ERROR, reason)
}

fn plain(status: StatusCode, text: &str) -> Response<String> {
    let mut response = Response::new(format!("{text}\n"));
    *response.status_mut() = status;
    response
}

/// If all is well, the last update is now. kube-proxy did the same when it synced everything
/// periodically.
fn condition(pulse: &Pulse, is_healthy: bool, is_well: bool, clock: Timestamp) -> Condition {
    Condition {
        last_updated: if is_well { clock } else { pulse.synced },
        current_time: clock,
        node_eligible: None,
        healthy: is_healthy,
    }
}

fn json(is_well: bool, body: &impl Serialize) -> Response<String> {
    // Serializing these structs does not fail.
    let mut response = Response::new(serde_json::to_string(body).unwrap_or_default());
    *response.status_mut() = match is_well {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    const SYNCED: &str = "2026-01-02T03:04:05.678Z";
    const NOW: &str = "2026-01-02T03:05:00Z";

    fn pulse(node_is_leaving: bool) -> Pulse {
        Pulse {
            beat: Instant::now(),
            fault_since: None,
            synced: SYNCED.parse().unwrap(),
            node_is_leaving,
        }
    }

    fn conditions(response: &Response<String>) -> (u16, String) {
        assert_eq!(response.headers()[CONTENT_TYPE], "application/json");
        (response.status().as_u16(), response.body().clone())
    }

    #[test]
    fn healthz_depends_on_the_node_and_livez_does_not() {
        let clock = NOW.parse().unwrap();
        for (is_healthy, is_leaving, status, updated) in [
            (true, false, 200, NOW),
            (true, true, 503, SYNCED),
            (false, false, 503, SYNCED),
            (false, true, 503, SYNCED),
        ] {
            let found = conditions(&healthz(&pulse(is_leaving), is_healthy, clock));
            let eligible = !is_leaving;
            let body = format!(
                "{{\"lastUpdated\":\"{updated}\",\"currentTime\":\"{NOW}\",\"nodeEligible\":{eligible},\
                 \"healthy\":{is_healthy}}}"
            );
            assert_eq!(found, (status, body));
        }
        for (is_healthy, status, updated) in [(true, 200, NOW), (false, 503, SYNCED)] {
            for is_leaving in [false, true] {
                let found = conditions(&livez(&pulse(is_leaving), is_healthy, clock));
                let body = format!(
                    "{{\"lastUpdated\":\"{updated}\",\"currentTime\":\"{NOW}\",\"healthy\":{is_healthy}}}"
                );
                assert_eq!(found, (status, body));
            }
        }
    }

    #[test]
    fn a_service_is_well_if_it_has_endpoints_and_the_agent_is_healthy() {
        let service = NamespacedName {
            namespace: "default".to_owned(),
            name: "web".to_owned(),
        };
        for (endpoints, is_healthy, status) in
            [(2, true, 200), (0, true, 503), (2, false, 503), (0, false, 503)]
        {
            let response = check(&service, endpoints, is_healthy);
            assert_eq!(response.headers()[WEIGHT], endpoints.to_string());
            let body = format!(
                "{{\"service\":{{\"namespace\":\"default\",\"name\":\"web\"}},\"localEndpoints\":{endpoints},\
                 \"serviceProxyHealthy\":{is_healthy}}}"
            );
            assert_eq!(conditions(&response), (status, body));
        }
    }
}
