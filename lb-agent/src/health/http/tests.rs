//! Clients that are silent, slow or many.

use std::net::Ipv4Addr;
use std::sync::mpsc;
use std::time::Instant;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::super::connections::PER_CLIENT;
use super::*;

/// Silent connections, half of them for each address family.
const SILENT: u16 = 2_000;
/// Like that of the servers.
const LIMIT: usize = 128;
/// The kernel chooses a port.
const ANY_PORT: u16 = 0;

/// Stops tokio's clock while this exists. No deadline passes.
struct StoppedClock(#[expect(dead_code, reason = "dropped at the end")] mpsc::Sender<()>);

impl StoppedClock {
    fn new() -> Self {
        tokio::time::pause();
        // While a blocking task runs, tokio does not advance the clock either.
        let (end, ended) = mpsc::channel::<()>();
        tokio::task::spawn_blocking(move || ended.recv());
        Self(end)
    }
}

fn echo() -> Handler {
    Arc::new(|path| Box::pin(async move { Response::new(format!("at {path}")) }))
}

/// Serves at a free port of all addresses.
fn start() -> (u16, JoinHandle<()>) {
    let all = SocketAddr::from((Ipv4Addr::UNSPECIFIED, ANY_PORT));
    let listener = listen(all).unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let connections = Connections::new(LIMIT);
        accept("the test", address, &listener, &echo(), &connections).await;
    });
    (address.port(), server)
}

/// Connects to the port at `::1`, or at 127.0.0.1 from this address.
async fn connect(port: u16, from: Option<Ipv4Addr>) -> TcpStream {
    let Some(from) = from else {
        return TcpStream::connect((Ipv6Addr::LOCALHOST, port)).await.unwrap();
    };
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    socket.connect((Ipv4Addr::LOCALHOST, port).into()).await.unwrap()
}

async fn ask(mut stream: TcpStream) -> String {
    let request = b"GET /a?b HTTP/1.1\r\nhost: test\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[track_caller]
fn assert_answer(answer: &str) {
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nat /a"), "{answer}");
}

/// Waits until the server has closed the connection.
async fn wait_until_closed(stream: &mut TcpStream) {
    // A reset means the same: the server did not read all.
    let read = stream.read(&mut [0]).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
}

fn allow_open_files(count: u64) {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(count.min(hard)), hard).unwrap();
}

#[tokio::test]
async fn every_question_is_answered_beside_silent_connections() {
    let _clock = StoppedClock::new();
    allow_open_files(u64::from(SILENT) + 1024);
    let (port, server) = start();
    let mut silent = Vec::new();
    let mut longest = Duration::ZERO;
    for number in 0..SILENT {
        let [high, low] = (number / 2).to_be_bytes();
        // Every IPv4 client opens one connection; the IPv6 client opens all of its own.
        let from = (number % 2 == 0).then_some(Ipv4Addr::new(127, 9, high, low));
        let mut stream = connect(port, from).await;
        if number % 4 < 2 {
            stream.write_all(b"GET /a").await.unwrap();
        }
        silent.push(stream);
        if number % 20 == 0 || number + 1 == SILENT {
            for from in [None, Some(Ipv4Addr::LOCALHOST), Some(Ipv4Addr::new(127, 8, 0, 1))] {
                let start = Instant::now();
                assert_answer(&ask(connect(port, from).await).await);
                longest = longest.max(start.elapsed());
            }
        }
    }
    println!("the slowest answer beside up to {SILENT} silent connections took {longest:?}");
    server.abort();
}

#[tokio::test]
async fn a_client_with_too_many_connections_does_not_displace_those_of_others() {
    let _clock = StoppedClock::new();
    let (port, server) = start();
    for (other, many) in [
        (Some(Ipv4Addr::LOCALHOST), None),
        (None, Some(Ipv4Addr::new(127, 9, 0, 1))),
    ] {
        let patient = connect(port, other).await;
        let mut open = Vec::new();
        for _ in 0..2 * PER_CLIENT {
            open.push(connect(port, many).await);
        }
        let newest = open.split_off(PER_CLIENT);
        for mut stream in open {
            wait_until_closed(&mut stream).await;
        }
        for stream in newest.into_iter().chain([patient]) {
            assert_answer(&ask(stream).await);
        }
    }
    server.abort();
}

#[tokio::test]
async fn a_burst_of_requests_is_answered_completely() {
    let _clock = StoppedClock::new();
    let (port, server) = start();
    // More than a client may have open. All requests arrive before the server runs again.
    let mut streams = Vec::new();
    for _ in 0..4 * PER_CLIENT {
        let stream = std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        let request = b"GET /a HTTP/1.1\r\nhost: test\r\n\r\n";
        io::Write::write_all(&mut &stream, request).unwrap();
        stream.set_nonblocking(true).unwrap();
        streams.push(stream);
    }
    for stream in streams {
        let mut answer = String::new();
        let mut stream = TcpStream::from_std(stream).unwrap();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_answer(&answer);
    }
    server.abort();
}

/// Serves a connection whose buffers hold 16 bytes. Returns its client and the task.
fn start_narrow(handler: Handler) -> (DuplexStream, JoinHandle<()>) {
    let (client, server) = duplex(16);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    let (place, displaced) = Connections::new(1).admit(address, address.ip()).unwrap();
    let task = tokio::spawn(connection(server, handler, place, displaced));
    (client, task)
}

#[tokio::test(start_paused = true)]
async fn a_request_has_to_be_complete_within_two_seconds() {
    let request = b"GET / HTTP/1.1\r\nhost: test\r\n";
    for (bytes, interval) in [
        (0, REQUEST_LIMIT),
        (1, REQUEST_LIMIT),
        (28, Duration::from_secs(1)),
    ] {
        let start = tokio::time::Instant::now();
        let (mut client, task) = start_narrow(echo());
        let sender = tokio::spawn(async move {
            for byte in &request[..bytes] {
                if client.write_all(&[*byte]).await.is_err() {
                    break;
                }
                sleep(interval).await;
            }
            client.read(&mut [0]).await
        });
        task.await.unwrap();
        let took = start.elapsed();
        let range = REQUEST_LIMIT..REQUEST_LIMIT + Duration::from_millis(10);
        assert!(range.contains(&took), "{bytes} bytes: {took:?}");
        // The client reads the end, and no answer.
        assert!(!matches!(sender.await.unwrap(), Ok(1..)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_the_answer_is_closed() {
    let start = tokio::time::Instant::now();
    let (mut client, task) = start_narrow(echo());
    client
        .write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    task.await.unwrap();
    let took = start.elapsed();
    let range = CONNECTION_LIMIT..CONNECTION_LIMIT + Duration::from_millis(10);
    assert!(range.contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn an_answer_may_take_longer_than_a_request() {
    let late: Handler = Arc::new(|path| {
        Box::pin(async move {
            sleep(5 * REQUEST_LIMIT).await;
            Response::new(path)
        })
    });
    let (mut client, task) = start_narrow(late);
    client
        .write_all(b"GET /late HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("/late"), "{answer}");
    task.await.unwrap();
}

#[tokio::test]
async fn the_unspecified_address_accepts_both_families() {
    let listener = listen(SocketAddr::from(([0, 0, 0, 0], ANY_PORT))).unwrap();
    let port = listener.local_addr().unwrap().port();
    for address in ["127.0.0.1", "::1"] {
        let address: IpAddr = address.parse().unwrap();
        TcpStream::connect((address, port)).await.unwrap();
    }
}
