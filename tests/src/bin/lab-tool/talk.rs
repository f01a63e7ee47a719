//! A TCP connection whose client does what standard input says.

use std::net::SocketAddr;

use anyhow::Result;
use lb_tests::lab::report::TalkEvent;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, stdin};

use crate::source::Source;
use crate::{print, reason};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Where to connect to
    to: SocketAddr,
    #[command(flatten)]
    source: Source,
}

/// Sends lines and prints what happens, until one side ends.
pub(crate) async fn run(options: &Options) -> Result<()> {
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
