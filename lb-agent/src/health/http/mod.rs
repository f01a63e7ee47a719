//! HTTP servers that slow, silent or many clients cannot block, at addresses that may be in use.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::{JoinSet, yield_now};
use tokio::time::{sleep, timeout};

use super::connections::{Connections, Displaced, Place, Stage};

/// Answers a request for a path.
pub(super) type Handler = Arc<dyn Fn(String) -> BoxFuture<'static, Response<String>> + Send + Sync>;

/// The delay before an address that is in use is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// The delay after a connection could not be accepted, for example because the process has too many
/// open files, and no other one could be closed.
const ACCEPT_RETRY: Duration = Duration::from_millis(20);
/// The longest time until a client has sent its request.
const REQUEST_LIMIT: Duration = Duration::from_secs(2);
/// The longest time that a connection may stay open, even if its client reads slowly.
const CONNECTION_LIMIT: Duration = Duration::from_secs(30);
/// The maximum size of a request. Without it, hyper stores 400 kB for each connection.
const REQUEST_SIZE: usize = 16 << 10;
/// The maximum number of connections that wait to be accepted. If the queue is full, the kernel
/// drops SYNs, and the client sends the next one after a second.
const BACKLOG: u32 = 1024;

/// Serves at an address as soon as it is free. Never returns; dropping the future stops the server.
/// `what` names the server in the log.
pub(super) async fn serve(
    what: String,
    address: SocketAddr,
    handler: Handler,
    connections: Arc<Connections>,
) {
    let listener = bind(&what, address).await;
    accept(&what, address, &listener, &handler, &connections).await;
}

async fn accept(
    what: &str,
    address: SocketAddr,
    listener: &TcpListener,
    handler: &Handler,
    connections: &Arc<Connections>,
) {
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, client)) => {
                if let Some((place, displaced)) = connections.admit(address, client.ip()) {
                    tasks.spawn(connection(stream, handler.clone(), place, displaced));
                }
            }
            Err(error) => {
                tracing::debug!("{what}: cannot accept a connection at {address}: {error}");
                if !connections.displace_one() {
                    sleep(ACCEPT_RETRY).await;
                }
            }
        }
        // A request that has already arrived is read before the next connection can displace this
        // one: the runtime continues here after it has polled the sockets.
        yield_now().await;
    }
}

/// Serves one request. Keep-alive is off: idle connections would use up the limit, and probes open
/// new connections anyway.
async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    handler: Handler,
    place: Place,
    displaced: Displaced,
) {
    let service = service_fn(|request: Request<Incoming>| {
        place.enter(Stage::Answering);
        let answer = handler(request.uri().path().to_owned());
        async {
            let answer = answer.await;
            place.enter(Stage::Sending);
            Ok::<_, hyper::Error>(answer.map(|body| Full::new(Bytes::from(body))))
        }
    });
    let mut server = http1::Builder::new();
    server
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_LIMIT)
        .max_buf_size(REQUEST_SIZE);
    let served = timeout(
        CONNECTION_LIMIT,
        server.serve_connection(TokioIo::new(stream), service),
    );
    tokio::select! {
        result = served => match result {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::trace!("a client's connection failed: {error}"),
            Err(_) => tracing::trace!("a client did not read the answer in time"),
        },
        _ = displaced => tracing::trace!("a newer connection takes the place of a waiting one"),
    }
}

/// Tries to bind until it succeeds. Logs the first failure and the success after it.
async fn bind(what: &str, address: SocketAddr) -> TcpListener {
    let mut is_logged = false;
    loop {
        match listen(address) {
            Ok(listener) => {
                if is_logged {
                    tracing::info!("{what} is served at {address} now");
                }
                return listener;
            }
            Err(error) if !is_logged => {
                tracing::warn!("cannot serve {what} at {address}: {error}; trying again until it succeeds");
                is_logged = true;
            }
            Err(_) => {}
        }
        sleep(RETRY).await;
    }
}

/// Listens at an address. As in kube-proxy, 0.0.0.0 and :: both mean all addresses of both
/// families.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    if address.ip().is_unspecified() {
        // This fails on a host without IPv6.
        if let Ok(socket) = TcpSocket::new_v6() {
            setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
            let all = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), address.port());
            return bound(socket, all);
        }
    }
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    bound(socket, address)
}

fn bound(socket: TcpSocket, address: SocketAddr) -> io::Result<TcpListener> {
    // Without this, a new agent could not bind the port for a minute after connections to it ended.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests;
