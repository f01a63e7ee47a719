//! The servers.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result};
use lb_tests::lab::report::Fragmentation;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::path_mtu::set_fragmentation;
use crate::{http, stream};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The name in answers; the last one given counts
    #[arg(long, overrides_with = "name")]
    name: String,
    /// Address to listen at; by default every address, IPv4 and IPv6
    #[arg(long, default_value_t = Ipv6Addr::UNSPECIFIED.into())]
    address: IpAddr,
    /// Port for HTTP
    #[arg(long)]
    http: Option<u16>,
    /// Port for UDP: every datagram is answered with name, client and the datagram
    #[arg(long)]
    udp: Option<u16>,
    /// Minimum size of UDP answers in bytes
    #[arg(long, default_value_t = 0)]
    udp_answer_size: usize,
    /// How to fragment large UDP answers, instead of the kernel's default
    #[arg(long)]
    udp_fragmentation: Option<Fragmentation>,
    /// Port for TCP, echoing lines
    #[arg(long)]
    echo: Option<u16>,
    /// Port for streams of bytes
    #[arg(long)]
    stream: Option<u16>,
}

/// The byte with which small UDP answers are padded.
pub(crate) const PADDING: u8 = b'.';

/// Becomes true when the server should end.
pub(crate) type Ending = watch::Receiver<bool>;

/// Serves until SIGTERM. Then accepts no new connections and finishes open requests.
pub(crate) async fn serve(options: Options) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let (end, ending) = watch::channel(false);
    let Options { name, address, .. } = options;
    let mut tasks = JoinSet::new();
    if let Some(port) = options.http {
        let (name, end) = (name.clone(), ending.clone());
        let handler = move |stream, client| http::serve_connection(stream, client, name.clone(), end.clone());
        tasks.spawn(accept(listen(address, port).await?, ending.clone(), handler));
    }
    if let Some(port) = options.echo {
        let name = name.clone();
        let handler = move |stream, _| echo(stream, name.clone());
        tasks.spawn(accept(listen(address, port).await?, ending.clone(), handler));
    }
    if let Some(port) = options.stream {
        let name = name.clone();
        let handler = move |stream, _| stream::serve_connection(stream, name.clone());
        tasks.spawn(accept(listen(address, port).await?, ending.clone(), handler));
    }
    if let Some(port) = options.udp {
        let socket = UdpSocket::bind((address, port))
            .await
            .with_context(|| format!("UDP port {port}"))?;
        if let Some(fragmentation) = options.udp_fragmentation {
            set_fragmentation(&socket, fragmentation)?;
        }
        tasks.spawn(answer_datagrams(socket, name, options.udp_answer_size, ending));
    }
    println!("ready");
    terminate.recv().await;
    end.send_replace(true);
    tasks.join_all().await.into_iter().collect()
}

async fn listen(address: IpAddr, port: u16) -> Result<TcpListener> {
    TcpListener::bind((address, port))
        .await
        .with_context(|| format!("TCP port {port}"))
}

/// Passes every connection to `handler`.
async fn accept<F: Future<Output = Result<()>> + Send + 'static>(
    listener: TcpListener,
    mut ending: Ending,
    handler: impl Fn(TcpStream, SocketAddr) -> F,
) -> Result<()> {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, client) = accepted?;
                connections.spawn(handler(stream, canonical(client)));
            }
            // Errors of single connections are ignored.
            Some(_) = connections.join_next() => {}
            _ = ending.wait_for(|ending| *ending) => break,
        }
    }
    drop(listener);
    connections.join_all().await;
    Ok(())
}

async fn echo(stream: TcpStream, name: String) -> Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    while let Some(line) = lines.next_line().await? {
        writer.write_all(format!("{name} {line}\n").as_bytes()).await?;
    }
    Ok(())
}

async fn answer_datagrams(
    socket: UdpSocket,
    name: String,
    least_size: usize,
    mut ending: Ending,
) -> Result<()> {
    let mut buffer = vec![0; 65536];
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => received,
            _ = ending.wait_for(|ending| *ending) => return Ok(()),
        };
        let (length, client) = received?;
        let mut answer = format!("{name} {} ", canonical(client)).into_bytes();
        answer.extend_from_slice(&buffer[..length]);
        answer.resize(answer.len().max(least_size), PADDING);
        // Fails if the client has ended, which is fine.
        let _ = socket.send_to(&answer, client).await;
    }
}

/// Converts an IPv4-mapped address, as a dual-stack socket returns it, to IPv4.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
