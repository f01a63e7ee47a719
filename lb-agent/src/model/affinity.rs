//! How long clients of a Service stay with their backends.

use k8s_openapi::api::core::v1::Service;

use super::Problems;
use super::values::quoted;

/// The default timeout of session affinity, in seconds.
const AFFINITY_DEFAULT: i32 = 10_800;
/// The longest timeout that Kubernetes allows, in seconds.
const AFFINITY_MAX: i32 = 86_400;

/// Returns how many seconds a client stays with its backend; 0 without session affinity.
pub(super) fn seconds(service: &Service, problems: &mut Problems) -> u32 {
    let Some(spec) = &service.spec else {
        return 0;
    };
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => return 0,
        Some("ClientIP") => {}
        Some(other) => {
            problems.add(format!(
                "spec.sessionAffinity {} is unknown and treated as None: use None or ClientIP",
                quoted(other)
            ));
            return 0;
        }
    }
    let config = spec
        .session_affinity_config
        .as_ref()
        .and_then(|config| config.client_ip.as_ref());
    let seconds = config
        .and_then(|config| config.timeout_seconds)
        .unwrap_or(AFFINITY_DEFAULT);
    let valid = u32::try_from(seconds)
        .ok()
        .filter(|_| (1..=AFFINITY_MAX).contains(&seconds));
    valid.unwrap_or_else(|| {
        problems.add(format!(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds {seconds} is out of range and taken as \
             {AFFINITY_DEFAULT}: use 1 to {AFFINITY_MAX}"
        ));
        AFFINITY_DEFAULT.unsigned_abs()
    })
}
