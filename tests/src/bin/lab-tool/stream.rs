//! Streams of bytes: large enough for segmentation offload, compared byte by byte.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use lb_tests::lab::report::StreamReport;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::path_mtu::path_mtu;
use crate::source::Source;

/// A prime, so that lost, repeated or moved segments are detected.
const PERIOD: usize = 251;

/// Bytes per read or write.
const CHUNK: usize = 64 * 1024;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Address and port of the server
    to: SocketAddr,
    /// Mebibytes in each direction
    #[arg(long, default_value_t = 1)]
    mebibytes: u32,
    #[command(flatten)]
    source: Source,
}

/// Receives as many bytes as the client announces, then sends the server's name and the same bytes
/// back.
pub(crate) async fn serve_connection(mut stream: TcpStream, name: String) -> Result<()> {
    let bytes = stream.read_u64().await?;
    receive(&mut stream, bytes).await?;
    stream.write_u8(u8::try_from(name.len())?).await?;
    stream.write_all(name.as_bytes()).await?;
    send(&mut stream, bytes).await
}

/// Sends a stream and compares what comes back.
pub(crate) async fn run(options: &Options) -> Result<StreamReport> {
    let bytes = u64::from(options.mebibytes) << 20;
    println!("ready");
    let start = Instant::now();
    let mut stream = options.source.connect(0, options.to).await.context("connect")?;
    stream.write_u64(bytes).await?;
    send(&mut stream, bytes).await.context("send")?;
    let mut name = vec![
        0;
        stream
            .read_u8()
            .await
            .context("the server closed the connection without an answer")?
            .into()
    ];
    stream.read_exact(&mut name).await?;
    receive(&mut stream, bytes).await.context("receive")?;
    Ok(StreamReport {
        server: String::from_utf8(name)?,
        bytes,
        microseconds: u64::try_from(start.elapsed().as_micros())?,
        path_mtu: path_mtu(&stream)?,
    })
}

/// The repeating content of the stream. A chunk starts where the previous one ended.
fn pattern() -> Vec<u8> {
    (0..=u8::MAX).take(PERIOD).cycle().take(CHUNK + PERIOD).collect()
}

async fn send(stream: &mut (impl AsyncWrite + Unpin), bytes: u64) -> Result<()> {
    let chunk = pattern();
    let mut sent = 0;
    while sent < bytes {
        let length = usize::try_from(bytes - sent).map_or(CHUNK, |left| left.min(CHUNK));
        let start = usize::try_from(sent)? % PERIOD;
        stream.write_all(&chunk[start..start + length]).await?;
        sent += length as u64;
    }
    Ok(stream.flush().await?)
}

async fn receive(stream: &mut (impl AsyncRead + Unpin), bytes: u64) -> Result<()> {
    let expected = pattern();
    let mut buffer = vec![0; CHUNK];
    let mut received = 0;
    while received < bytes {
        let wanted = usize::try_from(bytes - received).map_or(CHUNK, |left| left.min(CHUNK));
        let length = stream.read(&mut buffer[..wanted]).await?;
        ensure!(length > 0, "the stream ends after {received} of {bytes} bytes");
        let start = usize::try_from(received)? % PERIOD;
        ensure!(
            buffer[..length] == expected[start..start + length],
            "wrong bytes between {received} and {}",
            received + length as u64
        );
        received += length as u64;
    }
    Ok(())
}
