//! UDP client.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use lb_tests::lab::report::{Fragmentation, UdpReport};
use tokio::net::UdpSocket;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, timeout_at};

use crate::path_mtu::{path_mtu, set_fragmentation};
use crate::reason;
use crate::serve::PADDING;
use crate::source::Source;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Address and port of the server
    to: SocketAddr,
    /// Number of datagrams from each socket
    #[arg(long, default_value_t = 1)]
    count: u32,
    /// Number of sockets, used one after another
    #[arg(long, default_value_t = 1)]
    sockets: u32,
    /// Use `connect` instead of `sendto`
    #[arg(long)]
    connected: bool,
    #[command(flatten)]
    source: Source,
    /// How to fragment large datagrams, instead of the kernel's default
    #[arg(long)]
    fragmentation: Option<Fragmentation>,
    /// Size of the payload in bytes
    #[arg(long, default_value_t = 16)]
    size: usize,
    /// Milliseconds to wait before the next datagram
    #[arg(long, default_value_t = 0)]
    interval_ms: u64,
    /// Timeout of an answer in milliseconds
    #[arg(long, default_value_t = 1000)]
    timeout_ms: u64,
}

/// Sends the datagrams, each after the answer to the previous one. SIGTERM ends it early.
pub(crate) async fn run(options: &Options) -> Result<UdpReport> {
    let mut terminate = signal(SignalKind::terminate())?;
    println!("ready");
    let mut report = UdpReport::default();
    tokio::select! {
        result = send_all(options, &mut report) => result?,
        _ = terminate.recv() => {}
    }
    Ok(report)
}

async fn send_all(options: &Options, report: &mut UdpReport) -> Result<()> {
    // All sockets stay open until the end: the kernel might give the port of a closed one to a
    // later one.
    let mut sockets = Vec::new();
    for number in 0..options.sockets {
        let socket = UdpSocket::bind(options.source.of(number, options.to))
            .await
            .context("bind")?;
        if let Some(fragmentation) = options.fragmentation {
            set_fragmentation(&socket, fragmentation)?;
        }
        if options.connected
            && let Err(error) = socket.connect(options.to).await
        {
            *report.errors.entry(reason("connect", &error)).or_default() += 1;
            continue;
        }
        for number in 0..options.count {
            match exchange(&socket, options, number).await {
                Ok(answer) => {
                    if options.source.is_chosen() {
                        let chosen = socket.local_addr()?;
                        report.servers.insert(chosen, answer.server.clone());
                    }
                    *report.answers.entry(answer.server).or_default() += 1;
                    report.clients.insert(answer.client);
                    report.sources.insert(answer.source);
                }
                Err(reason) => *report.errors.entry(reason).or_default() += 1,
            }
            // Even a sleep of 0 would take a millisecond.
            if options.interval_ms != 0 {
                sleep(Duration::from_millis(options.interval_ms)).await;
            }
        }
        if options.connected {
            report.path_mtu = Some(path_mtu(&socket)?);
        }
        sockets.push(socket);
    }
    Ok(())
}

struct Answer {
    server: String,
    client: SocketAddr,
    source: SocketAddr,
}

/// Sends one datagram and waits for the answer to it.
async fn exchange(socket: &UdpSocket, options: &Options, number: u32) -> Result<Answer, String> {
    let payload = format!("{number:0size$}", size = options.size);
    let sent = match options.connected {
        true => socket.send(payload.as_bytes()).await,
        false => socket.send_to(payload.as_bytes(), options.to).await,
    };
    sent.map_err(|error| reason("send", &error))?;
    let deadline = Instant::now() + Duration::from_millis(options.timeout_ms);
    let mut buffer = vec![0; 65536];
    loop {
        let received = timeout_at(deadline, receive(socket, options, &mut buffer))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let (length, source) = received.map_err(|error| reason("receive", &error))?;
        let text = String::from_utf8_lossy(&buffer[..length]);
        let (server, rest) = text.split_once(' ').ok_or("receive: not an answer")?;
        let (client, echoed) = rest.split_once(' ').ok_or("receive: not an answer")?;
        // A late answer to an earlier datagram that timed out is ignored.
        if echoed.trim_end_matches(char::from(PADDING)) == payload {
            return Ok(Answer {
                server: server.to_owned(),
                client: client.parse().map_err(|_| "receive: not an answer")?,
                source,
            });
        }
    }
}

async fn receive(
    socket: &UdpSocket,
    options: &Options,
    buffer: &mut [u8],
) -> io::Result<(usize, SocketAddr)> {
    if !options.connected {
        return socket.recv_from(buffer).await;
    }
    let length = socket.recv(buffer).await?;
    Ok((length, socket.peer_addr()?))
}
