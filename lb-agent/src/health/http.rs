//! HTTP servers that always answer, and addresses that may be taken.

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

/// How soon an address that is taken is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// Connections that may be open at a listener. Further ones wait.
const CONNECTIONS: usize = 64;
/// How long a connection may take, however slowly its client reads and writes.
const CONNECTION_LIMIT: Duration = Duration::from_secs(30);
/// Connections that may wait to be accepted.
const BACKLOG: u32 = 128;

/// Serves at an address, as soon as it can be had. Never ends; drop it to stop. `what` is for the
/// log.
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

/// One request: a connection that stays open would be one of the few, and whoever probes is after a
/// new one anyway.
async fn connection(stream: TcpStream, handler: Handler) {
    let service = service_fn(|request: Request<Incoming>| {
        let answer = handler(request.uri().path().to_owned());
        async { Ok::<_, hyper::Error>(answer.await.map(|body| Full::new(Bytes::from(body)))) }
    });
    let mut server = http1::Builder::new();
    server.keep_alive(false);
    if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
        tracing::trace!("a client went away: {error}");
    }
}

/// Tries until the address is free. The log tells the first failure and the end of it.
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
                tracing::warn!("cannot serve {what} at {address}: {error}; trying again until it can be had");
                is_logged = true;
            }
            Err(_) => {}
        }
        sleep(RETRY).await;
    }
}

/// The unspecified address of either family stands for all addresses of both, as with kube-proxy.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    if address.ip().is_unspecified() {
        // Fails without IPv6.
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
    // Else connections that have ended would keep a new agent from the port for a minute.
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
    async fn silent_clients_do_not_keep_others_from_an_answer() {
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
    async fn the_unspecified_address_is_that_of_both_families() {
        let listener = listen(SocketAddr::from(([0, 0, 0, 0], 0))).unwrap();
        let port = listener.local_addr().unwrap().port();
        for address in ["127.0.0.1", "::1"] {
            let address: IpAddr = address.parse().unwrap();
            TcpStream::connect((address, port)).await.unwrap();
        }
    }
}
