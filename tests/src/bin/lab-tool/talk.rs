//! A TCP connection or UDP socket that standard input controls.

use std::net::SocketAddr;

use anyhow::Result;
use lb_tests::lab::report::TalkEvent;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, stdin};
use tokio::net::UdpSocket;

use crate::source::Source;
use crate::{print, reason};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Address and port of the server
    to: SocketAddr,
    #[command(flatten)]
    source: Source,
    /// Use UDP: each line is a datagram
    #[arg(long)]
    udp: bool,
    /// Pass the server's address with each datagram, although the socket is connected
    #[arg(long, requires = "udp")]
    named: bool,
    /// Do not connect the socket: each line is the address of a server, and each answer is followed
    /// by its source address
    #[arg(long, requires = "udp", conflicts_with = "named")]
    unconnected: bool,
}

/// Sends lines and prints events, until one side ends.
pub(crate) async fn run(options: &Options) -> Result<()> {
    if options.unconnected {
        ask(options).await
    } else if options.udp {
        run_udp(options).await
    } else {
        run_tcp(options).await
    }
}

async fn run_tcp(options: &Options) -> Result<()> {
    let stream = match options.source.connect(0, options.to).await {
        Ok(stream) => stream,
        Err(error) => return print(&TalkEvent::Error(reason("connect", &error))),
    };
    print(&TalkEvent::Connected {
        local: stream.local_addr()?,
        peer: stream.peer_addr()?,
    })?;
    let (reader, mut writer) = stream.into_split();
    let mut received = BufReader::new(reader).lines();
    let mut orders = BufReader::new(stdin()).lines();
    loop {
        tokio::select! {
            order = orders.next_line() => match order? {
                Some(line) => {
                    if let Err(error) = writer.write_all(format!("{line}\n").as_bytes()).await {
                        return print(&TalkEvent::Error(reason("write", &error)));
                    }
                }
                None => return Ok(()),
            },
            line = received.next_line() => match line {
                Ok(Some(line)) => print(&TalkEvent::Line(line))?,
                Ok(None) => return print(&TalkEvent::End),
                Err(error) => return print(&TalkEvent::Error(reason("read", &error))),
            },
        }
    }
}

async fn run_udp(options: &Options) -> Result<()> {
    let socket = UdpSocket::bind(options.source.of(0, options.to)).await?;
    if let Err(error) = socket.connect(options.to).await {
        return print(&TalkEvent::Error(reason("connect", &error)));
    }
    print(&TalkEvent::Connected {
        local: socket.local_addr()?,
        peer: socket.peer_addr()?,
    })?;
    let mut orders = BufReader::new(stdin()).lines();
    let mut buffer = vec![0; 65536];
    loop {
        tokio::select! {
            order = orders.next_line() => match order? {
                Some(line) => {
                    let sent = match options.named {
                        true => socket.send_to(line.as_bytes(), options.to).await,
                        false => socket.send(line.as_bytes()).await,
                    };
                    if let Err(error) = sent {
                        return print(&TalkEvent::Error(reason("write", &error)));
                    }
                }
                None => return Ok(()),
            },
            received = socket.recv(&mut buffer) => match received {
                Ok(length) => {
                    let line = String::from_utf8_lossy(&buffer[..length]).into_owned();
                    print(&TalkEvent::Line(line))?;
                }
                Err(error) => return print(&TalkEvent::Error(reason("read", &error))),
            },
        }
    }
}

/// Sends a request to the address in each line, all with one socket.
async fn ask(options: &Options) -> Result<()> {
    let socket = UdpSocket::bind(options.source.of(0, options.to)).await?;
    let mut orders = BufReader::new(stdin()).lines();
    let mut buffer = vec![0; 65536];
    while let Some(line) = orders.next_line().await? {
        let answer = async {
            socket.send_to(b"hello", line.parse::<SocketAddr>()?).await?;
            anyhow::Ok(socket.recv_from(&mut buffer).await?)
        };
        match answer.await {
            Ok((length, from)) => {
                let name = String::from_utf8_lossy(&buffer[..length]).into_owned();
                let name = name.split(' ').next().unwrap_or_default();
                print(&TalkEvent::Line(format!("{name} {from}")))?;
            }
            Err(error) => print(&TalkEvent::Error(error.to_string()))?,
        }
    }
    Ok(())
}
