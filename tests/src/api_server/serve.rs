//! Connections, requests and the bodies of watches.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_rustls::TlsAcceptor;

use super::answer::{self, Answer, Failure, Watch};
use super::{Shared, Signal};

/// How long before the end of a watch the last bookmark is sent, as by a real API server.
const LAST_BOOKMARK: Duration = Duration::from_secs(2);

/// Accepts connections.
pub(super) async fn listen(listener: TcpListener, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(connection(stream, acceptor.clone(), shared.clone()));
    }
}

/// Serves one connection until the client or a signal ends it.
async fn connection(stream: TcpStream, acceptor: TlsAcceptor, shared: Arc<Shared>) {
    let mut signals = shared.signals.subscribe();
    // Set when the body that is being sent requests that its connection is cut.
    let (cut, mut is_cut) = watch::channel(false);
    let Ok(stream) = acceptor.accept(stream).await else {
        return;
    };
    let service = service_fn(|request| respond(request, shared.clone(), cut.clone()));
    let served = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let closed = async {
        loop {
            match signals.recv().await {
                Ok(Signal::Close) | Err(broadcast::error::RecvError::Closed) => break,
                _ => {}
            }
        }
    };
    tokio::select! {
        _ = served => {}
        _ = is_cut.wait_for(|cut| *cut) => {}
        () = closed => {}
    }
}

async fn respond(
    request: Request<Incoming>,
    shared: Arc<Shared>,
    cut: watch::Sender<bool>,
) -> Result<Response<Lines>, Infallible> {
    let target = request
        .uri()
        .path_and_query()
        .map_or("", |target| target.as_str());
    shared
        .requests
        .send_modify(|requests| requests.push(answer::decode(target)));
    let mut held = shared.held.subscribe();
    // An error means that the server ends.
    let _ = held.wait_for(|held| !held).await;
    // Subscribes before the answer is built, so that no signal is missed.
    let signals = shared.signals.subscribe();
    let (status, lines) = match answer(&request, &shared).unwrap_or_else(Answer::from) {
        Answer::Object(status, object) => (status, Lines::complete(&[object], cut)),
        Answer::Lines(lines) => (StatusCode::OK, Lines::complete(&lines, cut)),
        Answer::Watch(watch) => {
            let (sender, lines) = Lines::open(cut);
            tokio::spawn(carry_on(watch, shared, signals, sender));
            (StatusCode::OK, lines)
        }
    };
    let mut response = Response::new(lines);
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

fn answer(request: &Request<Incoming>, shared: &Shared) -> Result<Answer, Failure> {
    let state = shared.lock();
    if let Some(status) = state.failure {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        return Err(answer::failure(status, "InternalError", "the server is not well"));
    }
    let Some(authorization) = request.headers().get(AUTHORIZATION) else {
        let message = "User \"system:anonymous\" cannot do this";
        return Err(answer::failure(StatusCode::FORBIDDEN, "Forbidden", message));
    };
    if authorization.as_bytes() != format!("Bearer {}", state.token).as_bytes() {
        return Err(answer::failure(
            StatusCode::UNAUTHORIZED,
            "Unauthorized",
            "Unauthorized",
        ));
    }
    if request.uri().path() == answer::NAMESPACE && !state.forbidden.contains("namespaces") {
        return Ok(Answer::Object(StatusCode::OK, answer::namespace()));
    }
    let resource = answer::resource(request.uri());
    let Some(resource) = resource.filter(|resource| !state.absent.contains(resource.api_version)) else {
        let message = "the server could not find the requested resource";
        return Err(answer::failure(StatusCode::NOT_FOUND, "NotFound", message));
    };
    if request.method() != Method::GET {
        let message = "the server does not allow this method on the requested resource";
        return Err(answer::failure(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            message,
        ));
    }
    let plural = resource.path.rsplit('/').next().unwrap_or_default();
    if state.forbidden.contains(plural) {
        let message = format!("{plural} is forbidden: User \"agent\" cannot list resource \"{plural}\"");
        return Err(answer::failure(StatusCode::FORBIDDEN, "Forbidden", &message));
    }
    Ok(answer::get(&state.store, resource, request.uri()))
}

/// Sends the events of a watch until its timeout or until the client closes it.
async fn carry_on(
    mut watch: Watch,
    shared: Arc<Shared>,
    mut signals: broadcast::Receiver<Signal>,
    lines: mpsc::UnboundedSender<Piece>,
) {
    let mut version = shared.version.subscribe();
    let end = Instant::now() + Duration::from_secs(watch.seconds);
    let last_bookmark = sleep_until(end - LAST_BOOKMARK.min(Duration::from_secs(watch.seconds)));
    tokio::pin!(last_bookmark);
    let mut bookmark_is_due = watch.bookmarks;
    let send = |value: &Value| lines.send(Piece::Line(line(value))).is_ok();
    let send_bookmark = |watch: &Watch| {
        watch
            .bookmark(&shared.lock().store)
            .is_none_or(|line| send(&line))
    };
    let mut open = watch.lines.drain(..).all(|line| send(&line));
    while open {
        let events = {
            let state = shared.lock();
            version.mark_unchanged();
            let events = state.store.events(&watch.selection, watch.version);
            watch.version = watch.version.max(state.store.version());
            events
        };
        if !events.iter().all(&send) {
            break;
        }
        tokio::select! {
            // Biased: events before a bookmark must be sent before it.
            biased;
            changed = version.changed() => open = changed.is_ok(),
            signal = signals.recv() => match signal {
                Ok(Signal::Bookmark) if watch.bookmarks => open = send_bookmark(&watch),
                Ok(Signal::Bookmark) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Ok(Signal::CutWatches) => {
                    let half = Bytes::from_static(br#"{"type":"ADDED","object":{"metadata":{"na"#);
                    let _ = lines.send(Piece::Line(half));
                    let _ = lines.send(Piece::Cut);
                    open = false;
                }
                _ => open = false,
            },
            () = &mut last_bookmark, if bookmark_is_due => {
                bookmark_is_due = false;
                open = send_bookmark(&watch);
            }
            () = sleep_until(end) => open = false,
            () = lines.closed() => open = false,
        }
    }
}

fn line(value: &Value) -> Bytes {
    Bytes::from(format!("{value}\n"))
}

enum Piece {
    Line(Bytes),
    Cut,
}

/// A body that consists of lines.
struct Lines {
    pieces: mpsc::UnboundedReceiver<Piece>,
    cut: watch::Sender<bool>,
}

impl Lines {
    fn open(cut: watch::Sender<bool>) -> (mpsc::UnboundedSender<Piece>, Self) {
        let (sender, pieces) = mpsc::unbounded_channel();
        (sender, Self { pieces, cut })
    }

    fn complete(lines: &[Value], cut: watch::Sender<bool>) -> Self {
        let (sender, body) = Self::open(cut);
        for value in lines {
            // Cannot fail: `body` holds the receiver.
            let _ = sender.send(Piece::Line(line(value)));
        }
        body
    }
}

impl Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if *self.cut.borrow() {
            // The body must not end normally.
            return Poll::Pending;
        }
        match self.pieces.poll_recv(context) {
            Poll::Ready(Some(Piece::Line(line))) => Poll::Ready(Some(Ok(Frame::data(line)))),
            Poll::Ready(Some(Piece::Cut)) => {
                // Pending first lets the connection flush the earlier lines.
                self.cut.send_replace(true);
                Poll::Pending
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }
}
