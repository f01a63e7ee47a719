//! HTTP servers that slow clients cannot block, at addresses that may be in use.

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
use hyper_util::rt::TokioIo;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Answers a request for a path.
pub(super) type Handler = Arc<dyn Fn(String) -> BoxFuture<'static, Response<String>> + Send + Sync>;

/// The delay before an address that is in use is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// The maximum number of open connections of a listener. Further ones wait.
const CONNECTIONS: usize = 64;
/// The longest time that a connection may stay open, even if its client is slow.
const CONNECTION_LIMIT: Duration = Duration::from_secs(30);
/// The maximum number of connections that wait to be accepted.
const BACKLOG: u32 = 128;

/// Serves at an address as soon as it is free. Never returns; dropping the future stops the server.
/// `what` names the server in the log.
pub(super) async fn serve(what: String, address: SocketAddr, handler: Handler) {
    let listener = bind(&what, address).await;
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if connections.len() >= CONNECTIONS {
            connections.join_next().await;
        }
        match listener.accept().await {
            Ok((stream, _)) => {
                connections.spawn(timeout(CONNECTION_LIMIT, connection(stream, handler.clone())));
            }
            Err(error) => {
                tracing::debug!("{what}: cannot accept a connection at {address}: {error}");
                sleep(RETRY).await;
            }
        }
    }
}

/// Serves one request. Keep-alive is off: idle connections would use up the limit, and probes open
/// new connections anyway.
async fn connection(stream: TcpStream, handler: Handler) {
    let service = service_fn(|request: Request<Incoming>| {
        let answer = handler(request.uri().path().to_owned());
        async { Ok::<_, hyper::Error>(answer.await.map(|body| Full::new(Bytes::from(body)))) }
    });
    let mut server = http1::Builder::new();
    server.keep_alive(false);
    if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
        tracing::trace!("a client's connection failed: {error}");
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
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn ask(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    fn echo() -> Handler {
        Arc::new(|path| Box::pin(async move { Response::new(format!("at {path}")) }))
    }

    #[tokio::test]
    async fn silent_clients_do_not_block_others() {
        let free = listen(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let server = tokio::spawn(serve("the test".to_owned(), address, echo()));
        tokio::task::yield_now().await;
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS - 1 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let answer = ask(address, "/a?b").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\nat /a"), "{answer}");
        server.abort();
    }

    #[tokio::test]
    async fn the_unspecified_address_accepts_both_families() {
        let listener = listen(SocketAddr::from(([0, 0, 0, 0], 0))).unwrap();
        let port = listener.local_addr().unwrap().port();
        for address in ["127.0.0.1", "::1"] {
            let address: IpAddr = address.parse().unwrap();
            TcpStream::connect((address, port)).await.unwrap();
        }
    }
}
