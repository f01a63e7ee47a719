//! HTTP servers for load balancers, the kubelet and Prometheus: can this node take traffic?
//!
//! ```text
//! loop -> Monitor -> Health (the last pulse), Checks, Metrics -> servers, on a dedicated thread
//! ```
//! The servers answer even while the loop hangs, when the answer matters most.

mod answer;
mod arguments;
mod checks;
mod connections;
mod http;
mod pulse;

use std::sync::Arc;
use std::time::Instant;

use futures::future::BoxFuture;
use hyper::Response;
use k8s_openapi::jiff::Timestamp;
use tokio::sync::watch;

pub use self::arguments::{BindAddress, HealthArguments};
pub use self::checks::Checks;
use self::connections::Connections;
use self::http::Handler;
pub use self::pulse::{Health, LIMIT, Pulse};
use crate::datapath::readings::Readings;
use crate::metrics::{Metrics, MetricsError};

/// The maximum number of open connections of `/healthz` and `/livez`, and of `/metrics`. They are
/// counted separately, so that one server's clients cannot block the others.
const CONNECTIONS: usize = 128;
/// The maximum number of open connections of all health check ports together. All three limits fit
/// into the usual limit of 1024 open files.
const CHECK_CONNECTIONS: usize = 256;

/// The data that the servers serve, and the addresses where.
#[derive(Clone)]
pub struct Served {
    /// The addresses.
    pub arguments: HealthArguments,
    /// The health of the agent.
    pub health: Arc<Health>,
    /// The health check ports of Services.
    pub checks: watch::Receiver<Checks>,
    /// The metrics that the loop updates.
    pub metrics: Arc<Metrics>,
    /// The metrics that are read from the kernel's maps.
    pub readings: Arc<Readings>,
}

/// Starts the servers, which run until the process ends. If an address is in use, logs a warning
/// and tries again.
///
/// # Errors
///
/// If the runtime or its thread cannot be started.
pub fn start(served: Served) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let run = move || runtime.block_on(serve(served));
    std::thread::Builder::new().name("health".to_owned()).spawn(run)?;
    Ok(())
}

async fn serve(served: Served) {
    let HealthArguments {
        healthz_bind_address: BindAddress(healthz),
        metrics_bind_address: BindAddress(metrics),
    } = served.arguments;
    if let Some(address) = healthz {
        let handler = health_handler(served.health.clone(), served.metrics.clone());
        let connections = Connections::new(CONNECTIONS);
        tokio::spawn(http::serve(
            "/healthz and /livez".to_owned(),
            address,
            handler,
            connections,
        ));
    }
    if let Some(address) = metrics {
        let (metrics, readings) = (served.metrics, served.readings);
        let handler = metrics_handler(Arc::new(move || metrics.text(&readings)), Turn::default());
        let connections = Connections::new(CONNECTIONS);
        tokio::spawn(http::serve("/metrics".to_owned(), address, handler, connections));
    }
    checks::serve(served.checks, served.health, &Connections::new(CHECK_CONNECTIONS)).await;
    // The main loop has ended, and so will the process.
    std::future::pending::<()>().await;
}

fn health_handler(health: Arc<Health>, metrics: Arc<Metrics>) -> Handler {
    Arc::new(move |path| {
        let pulse = health.pulse();
        let is_healthy = pulse.is_healthy(Instant::now());
        let answer = match path.as_str() {
            "/healthz" => answer::healthz(&pulse, is_healthy, Timestamp::now()),
            "/livez" => answer::livez(&pulse, is_healthy, Timestamp::now()),
            _ => answer::not_found(),
        };
        metrics.kube_proxy.answered(&path, answer.status().as_u16());
        Box::pin(std::future::ready(answer))
    })
}

/// Reads all metrics.
type Read = Arc<dyn Fn() -> Result<String, MetricsError> + Send + Sync>;

/// Who may read. Reading the maps takes time: one scrape runs at a time, and not on the thread that
/// answers health checks.
type Turn = Arc<tokio::sync::Mutex<()>>;

fn metrics_handler(read: Read, turn: Turn) -> Handler {
    Arc::new(move |path| -> BoxFuture<'static, Response<String>> {
        if path != "/metrics" {
            return Box::pin(std::future::ready(answer::not_found()));
        }
        let (read, turn) = (read.clone(), turn.clone());
        Box::pin(async move {
            let turn = turn.lock_owned().await;
            let scrape = move || {
                // The turn ends with the reading, even if the connection was closed before.
                let _turn = turn;
                read()
            };
            match tokio::task::spawn_blocking(scrape).await {
                Ok(Ok(text)) => answer::metrics(text),
                Ok(Err(error)) => answer::failed(&crate::describe(&error)),
                Err(error) => answer::failed(&crate::describe(&error)),
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc};

    use super::*;

    #[tokio::test]
    async fn one_scrape_runs_at_a_time_even_if_its_client_has_gone() {
        let (started, mut starts) = tokio::sync::mpsc::unbounded_channel();
        let (end, ends) = mpsc::channel::<()>();
        let ends = Mutex::new(ends);
        let read = move || {
            started.send(()).unwrap();
            ends.lock().unwrap().recv().unwrap();
            Ok(String::new())
        };
        let turn = Turn::default();
        let handler = metrics_handler(Arc::new(read), turn.clone());
        let scrape = || tokio::spawn(handler("/metrics".to_owned()));
        let first = scrape();
        starts.recv().await.unwrap();
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        assert!(turn.try_lock().is_err());
        let second = scrape();
        for _ in 0..2 {
            end.send(()).unwrap();
        }
        assert_eq!(second.await.unwrap().status(), 200);
        assert!(turn.try_lock().is_ok());
    }

    #[tokio::test]
    async fn healthz_and_livez_fail_while_the_loop_hangs() {
        let now = Instant::now();
        let health = Arc::new(Health::new(now, Timestamp::now()));
        let metrics = Arc::new(Metrics::new().unwrap());
        let handler = health_handler(health.clone(), metrics.clone());
        let status = async |path: &str| handler(path.to_owned()).await.status().as_u16();
        assert_eq!((status("/healthz").await, status("/livez").await), (200, 200));
        assert_eq!(status("/").await, 404);
        health.set(Pulse {
            beat: now.checked_sub(LIMIT).unwrap(),
            ..health.pulse()
        });
        assert_eq!((status("/healthz").await, status("/livez").await), (503, 503));
        health.set(Pulse {
            beat: now,
            node_is_leaving: true,
            ..health.pulse()
        });
        assert_eq!((status("/healthz").await, status("/livez").await), (503, 200));
        let reported = metrics.reported().unwrap();
        for (name, code, count) in [
            ("healthz", 200, 1),
            ("healthz", 503, 2),
            ("livez", 200, 2),
            ("livez", 503, 1),
        ] {
            let line = format!("kubeproxy_proxy_{name}_total{{code=\"{code}\"}} {count}\n");
            assert!(reported.contains(&line), "{line}{reported}");
        }
    }
}
