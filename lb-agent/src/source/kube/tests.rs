//! Tests watches against a server that is a function. The clock is paused and advances when all
//! tasks wait for it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper::{Request, Response, StatusCode};
use k8s_openapi::api::core::v1::Service;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::watch::Watch;
use crate::object::Change;

type Reply = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// The answer to a watch.
#[derive(Clone)]
enum Answer {
    /// Sends the lines, and stays open.
    Open(Vec<Value>),
    /// Sends the lines, and closes.
    Lines(Vec<Value>),
    /// Fails with this HTTP status.
    Status(u16),
}

/// A request to the server, and when it arrived.
#[derive(Clone, Debug)]
struct Asked {
    after: Duration,
    query: String,
}

impl Asked {
    fn is_watch(&self) -> bool {
        self.query.contains("watch=true")
    }

    /// Whether the request is the check of the server's current version.
    fn is_version_check(&self) -> bool {
        !self.is_watch() && self.value("limit") == Some("1")
    }

    fn value(&self, key: &str) -> Option<&str> {
        let mut pairs = self.query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(name, _)| *name == key).map(|(_, value)| value)
    }
}

struct Server {
    begin: Instant,
    state: Mutex<State>,
}

struct State {
    asked: Vec<Asked>,
    version: u64,
    /// The statuses of the next lists.
    lists: VecDeque<u16>,
    /// The answers to the next watches. The last one is repeated.
    watches: VecDeque<Answer>,
}

impl Server {
    fn new(watches: impl IntoIterator<Item = Answer>) -> Arc<Self> {
        Arc::new(Self {
            begin: Instant::now(),
            state: Mutex::new(State {
                asked: Vec::new(),
                version: 100,
                lists: VecDeque::new(),
                watches: watches.into_iter().collect(),
            }),
        })
    }

    fn answer(&self, request: &Request<Body>) -> Reply {
        let mut state = self.state.lock().unwrap();
        let asked = Asked {
            after: self.begin.elapsed(),
            query: request.uri().query().unwrap_or_default().to_owned(),
        };
        state.asked.push(asked.clone());
        if asked.is_watch() {
            let answer = state.watches.pop_front().expect("an answer to a watch");
            if state.watches.is_empty() {
                state.watches.push_back(answer.clone());
            }
            return match answer {
                Answer::Open(lines) => stream(lines, false),
                Answer::Lines(lines) => stream(lines, true),
                Answer::Status(code) => failed(code),
            };
        }
        match state.lists.pop_front() {
            Some(code) if code != 200 => failed(code),
            _ => list(state.version),
        }
    }

    fn asked(&self) -> Vec<Asked> {
        self.state.lock().unwrap().asked.clone()
    }

    fn watches(&self) -> Vec<Asked> {
        let asked = self.asked();
        asked.into_iter().filter(Asked::is_watch).collect()
    }

    fn lists(&self) -> Vec<Asked> {
        let asked = self.asked().into_iter();
        asked
            .filter(|asked| !asked.is_watch() && !asked.is_version_check())
            .collect()
    }

    fn version_checks(&self) -> Vec<Asked> {
        self.asked().into_iter().filter(Asked::is_version_check).collect()
    }

    /// Watches Services for this long. Returns the changes that were sent.
    async fn watch(self: &Arc<Self>, time: Duration) -> Vec<Change> {
        let server = self.clone();
        let service = tower::service_fn(move |request| {
            let response = server.answer(&request);
            async move { Ok::<_, Infallible>(response) }
        });
        let (sender, mut changes) = mpsc::channel(10_000);
        let client = Client::new(service, "default");
        let watch = Watch::<Service>::new(client, "https://api.example/".to_owned(), None, sender);
        assert!(timeout(time, watch.run()).await.is_err(), "the watch never ends");
        let mut sent = Vec::new();
        while let Ok(change) = changes.try_recv() {
            sent.push(change);
        }
        sent
    }
}

fn status(code: u16) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code,
        "message": "the message", "reason": "Because"})
}

fn whole(object: &Value) -> Reply {
    Response::new(Full::from(object.to_string()).boxed_unsync())
}

fn failed(code: u16) -> Reply {
    let mut response = whole(&status(code));
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
}

fn list(version: u64) -> Reply {
    let list = json!({"kind": "ServiceList", "apiVersion": "v1", "items": [],
        "metadata": {"resourceVersion": version.to_string()}});
    whole(&list)
}

fn stream(lines: Vec<Value>, ends: bool) -> Reply {
    let frames = lines
        .into_iter()
        .map(|line| Ok::<_, Infallible>(Frame::data(Bytes::from(format!("{line}\n")))));
    let frames = futures::stream::iter(frames);
    Response::new(match ends {
        true => StreamBody::new(frames).boxed_unsync(),
        false => StreamBody::new(frames.chain(futures::stream::pending())).boxed_unsync(),
    })
}

fn gone() -> Answer {
    Answer::Lines(vec![json!({"type": "ERROR", "object": status(410)})])
}

fn closed() -> Answer {
    Answer::Lines(Vec::new())
}

fn silent() -> Answer {
    Answer::Open(Vec::new())
}

fn bookmark(version: u64) -> Value {
    json!({"type": "BOOKMARK", "object": {"kind": "Service", "apiVersion": "v1",
        "metadata": {"resourceVersion": version.to_string()}}})
}

const HOUR: Duration = Duration::from_secs(3600);
/// The number of attempts in an hour with backoff up to 30 seconds plus jitter: about 80 to 125.
const TRIES_IN_AN_HOUR: std::ops::Range<usize> = 60..130;

fn seconds(from: u64, to: u64) -> std::ops::RangeInclusive<Duration> {
    Duration::from_secs(from)..=Duration::from_secs(to)
}

/// The pauses between consecutive requests.
fn pauses(asked: &[Asked]) -> Vec<Duration> {
    asked
        .windows(2)
        .map(|pair| pair[1].after - pair[0].after)
        .collect()
}

#[tokio::test(start_paused = true)]
async fn an_expired_version_is_listed_immediately_then_with_backoff() {
    let server = Server::new([gone()]);
    server.watch(HOUR).await;
    let lists = server.lists();
    let pauses = pauses(&lists);
    assert_eq!(pauses[0], Duration::ZERO);
    assert!(
        seconds(0, 2).contains(&pauses[1]) && !pauses[1].is_zero(),
        "{pauses:?}"
    );
    assert!(TRIES_IN_AN_HOUR.contains(&lists.len()), "{pauses:?}");
}

#[tokio::test(start_paused = true)]
async fn a_closed_watch_is_resumed_immediately_then_with_backoff() {
    let server = Server::new([closed()]);
    server.watch(HOUR).await;
    let watches = server.watches();
    assert_eq!(pauses(&watches)[0], Duration::ZERO);
    assert!(
        TRIES_IN_AN_HOUR.contains(&watches.len()),
        "{:?}",
        pauses(&watches)
    );
    assert_eq!(server.lists().len(), 1);
    assert!(
        watches
            .iter()
            .all(|watch| watch.value("resourceVersion") == Some("100"))
    );
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_sends_and_closes_is_resumed_with_backoff() {
    let server = Server::new([Answer::Lines(vec![bookmark(100)])]);
    server.watch(HOUR).await;
    let watches = server.watches();
    assert!(
        TRIES_IN_AN_HOUR.contains(&watches.len()),
        "{:?}",
        pauses(&watches)
    );
}

#[tokio::test(start_paused = true)]
async fn an_error_event_leads_to_a_list_with_backoff() {
    let server = Server::new([Answer::Lines(vec![
        json!({"type": "ERROR", "object": status(500)}),
    ])]);
    server.watch(HOUR).await;
    let lists = server.lists();
    assert!(TRIES_IN_AN_HOUR.contains(&lists.len()), "{:?}", pauses(&lists));
}

#[tokio::test(start_paused = true)]
async fn pauses_grow_with_errors_and_success_resets_them() {
    let server = Server::new([silent()]);
    let failures = |count| std::iter::repeat_n(503, count);
    // Seven errors come before the first list succeeds. Then the version check after the silence
    // fails once.
    let lists = failures(7).chain([200]).chain(failures(1));
    server.state.lock().unwrap().lists = lists.collect();
    server.watch(Duration::from_secs(600)).await;
    let pauses = pauses(&server.lists());
    assert_eq!(pauses.len(), 7);
    assert!(seconds(30, 60).contains(&pauses[6]), "{pauses:?}");
    let version_checks = server.version_checks();
    let pause = version_checks[1].after - version_checks[0].after;
    assert!(pause < Duration::from_secs(2), "{pause:?}");
}

#[tokio::test(start_paused = true)]
async fn new_credentials_are_tried_every_ten_seconds() {
    let server = Server::new([silent()]);
    server.state.lock().unwrap().lists = std::iter::repeat_n(401, 30).collect();
    server.watch(HOUR).await;
    let pauses = pauses(&server.lists());
    assert_eq!(pauses.len(), 30);
    assert!(
        pauses.iter().all(|pause| seconds(0, 10).contains(pause)),
        "{pauses:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn the_version_of_a_silent_server_is_checked() {
    let server = Server::new([silent()]);
    server.watch(HOUR).await;
    let version_checks = server.version_checks().len();
    assert!((10..=20).contains(&version_checks), "{version_checks}");
    assert_eq!(server.lists().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_restored_server_is_listed_again() {
    let server = Server::new([Answer::Open(vec![bookmark(200)]), silent()]);
    let sent = server.watch(HOUR).await;
    // The first list, and the one after the silence. Nothing is deleted in between.
    let lists = server.lists();
    assert_eq!(lists.len(), 2);
    assert!(lists[1].after < Duration::from_secs(300), "{lists:?}");
    assert!(
        matches!(sent[..], [Change::Replace { .. }, Change::Replace { .. }]),
        "{sent:?}"
    );
    let versions: Vec<_> = server.watches().into_iter().map(|watch| watch.query).collect();
    assert!(versions.iter().all(|query| query.contains("resourceVersion=100")));
}

#[tokio::test(start_paused = true)]
async fn watches_end_at_different_times() {
    let mut times = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let server = Server::new([silent()]);
        server.watch(Duration::from_secs(1)).await;
        let time = server.watches()[0]
            .value("timeoutSeconds")
            .unwrap()
            .parse()
            .unwrap();
        assert!((300_u32..600).contains(&time), "{time}");
        times.insert(time);
    }
    assert!(times.len() > 1, "{times:?}");
}

#[tokio::test(start_paused = true)]
async fn a_refused_version_is_listed_immediately() {
    let server = Server::new([Answer::Status(410), silent()]);
    server.watch(Duration::from_secs(1)).await;
    assert_eq!(pauses(&server.lists()), [Duration::ZERO]);
}
