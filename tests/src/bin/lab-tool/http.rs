//! HTTP server and client.

use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Bytes;
use hyper::header::{HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, client, server};
use hyper_util::rt::TokioIo;
use lb_tests::lab::report::{HttpReport, Latency, PageReport};
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, timeout};

use crate::serve::Ending;
use crate::source::Source;
use crate::{print, reason};

/// The response header with the client's address as the server saw it.
const CLIENT_HEADER: HeaderName = HeaderName::from_static("x-client");

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Address and port of the server
    to: SocketAddr,
    /// Number of requests
    #[arg(long, default_value_t = 1)]
    count: u32,
    /// Number of concurrent requests
    #[arg(long, default_value_t = 1)]
    concurrency: u32,
    /// Milliseconds that each concurrent client waits before its next request
    #[arg(long, default_value_t = 0)]
    interval_ms: u64,
    /// Timeout of a request in milliseconds
    #[arg(long, default_value_t = 2000)]
    timeout_ms: u64,
    /// Interval of intermediate reports in milliseconds; 0 means none
    #[arg(long, default_value_t = 0)]
    progress_ms: u64,
    #[command(flatten)]
    source: Source,
}

#[derive(clap::Args)]
pub(crate) struct GetOptions {
    /// Address and port of the server
    to: SocketAddr,
    /// Path of the page
    #[arg(long)]
    path: String,
}

/// The timeout of connecting to the server, and of fetching the page.
const GET_TIMEOUT: Duration = Duration::from_secs(5);

/// Answers requests with the server's name.
pub(crate) async fn serve_connection(
    stream: TcpStream,
    client: SocketAddr,
    name: String,
    mut ending: Ending,
) -> Result<()> {
    let client = HeaderValue::try_from(client.to_string())?;
    let service = service_fn(|_| {
        let mut response = Response::new(Full::new(Bytes::from(format!("{name}\n"))));
        response.headers_mut().insert(CLIENT_HEADER, client.clone());
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let connection = server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    tokio::select! {
        result = connection.as_mut() => return Ok(result?),
        _ = ending.wait_for(|ending| *ending) => {}
    }
    connection.as_mut().graceful_shutdown();
    Ok(connection.await?)
}

/// State that the workers share.
struct Work {
    options: Options,
    started: AtomicU32,
    stopped: AtomicBool,
    results: Mutex<Results>,
}

/// The results of the requests so far.
#[derive(Default)]
struct Results {
    report: HttpReport,
    /// The latency of each answer in microseconds.
    latencies: Vec<u64>,
}

impl Work {
    fn results(&self) -> MutexGuard<'_, Results> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self) -> HttpReport {
        let results = self.results();
        HttpReport {
            latency: Latency::of(results.latencies.clone()),
            ..results.report.clone()
        }
    }
}

/// Sends the requests. SIGTERM ends it early.
pub(crate) async fn run(options: Options) -> Result<HttpReport> {
    let mut terminate = signal(SignalKind::terminate())?;
    println!("ready");
    let concurrency = options.concurrency;
    let shows_progress = options.progress_ms > 0;
    let mut progress = interval(Duration::from_millis(options.progress_ms.max(1)));
    let work = Arc::new(Work {
        options,
        started: AtomicU32::new(0),
        stopped: AtomicBool::new(false),
        results: Mutex::default(),
    });
    let mut workers = JoinSet::new();
    for _ in 0..concurrency {
        workers.spawn(send_requests(Arc::clone(&work)));
    }
    loop {
        tokio::select! {
            _ = terminate.recv() => work.stopped.store(true, Ordering::Relaxed),
            _ = progress.tick(), if shows_progress => print(&work.report())?,
            worker = workers.join_next() => match worker {
                Some(result) => result?,
                None => break,
            }
        }
    }
    Ok(work.report())
}

/// Runs one worker.
async fn send_requests(work: Arc<Work>) {
    let limit = Duration::from_millis(work.options.timeout_ms);
    while !work.stopped.load(Ordering::Relaxed) {
        let number = work.started.fetch_add(1, Ordering::Relaxed);
        if number >= work.options.count {
            break;
        }
        let start = Instant::now();
        let result = timeout(limit, request(&work.options, number))
            .await
            .unwrap_or_else(|_| Err("timeout".to_owned()));
        work.results().add(result, start.elapsed());
        sleep(Duration::from_millis(work.options.interval_ms)).await;
    }
}

impl Results {
    fn add(&mut self, result: Result<Answer, String>, elapsed: Duration) {
        match result {
            Ok(Answer {
                server,
                client,
                chosen,
            }) => {
                let microseconds = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
                self.latencies.push(microseconds);
                self.report.clients.insert(client);
                if let Some(chosen) = chosen {
                    self.report.servers.insert(chosen, server.clone());
                }
                *self.report.answers.entry(server).or_default() += 1;
            }
            Err(reason) => *self.report.errors.entry(reason).or_default() += 1,
        }
    }
}

struct Answer {
    server: String,
    /// The client's address as the server saw it.
    client: IpAddr,
    /// The client's address and port, if the caller chose them.
    chosen: Option<SocketAddr>,
}

/// Sends one request on a separate connection.
async fn request(options: &Options, number: u32) -> Result<Answer, String> {
    let (source, to) = (&options.source, options.to);
    let failed = |error: io::Error| reason("connect", &error);
    let stream = source.connect(number, to).await.map_err(failed)?;
    let mut chosen = None;
    if source.is_chosen() {
        chosen = Some(stream.local_addr().map_err(failed)?);
        // Ends with a RST, so that the port is free again immediately.
        stream.set_zero_linger().map_err(failed)?;
    }
    let answer = exchange(stream, to).await;
    let answer = answer.map(|(server, client)| Answer {
        server,
        client,
        chosen,
    });
    answer.map_err(|error| {
        match error
            .downcast_ref::<hyper::Error>()
            .and_then(Error::source)
            .and_then(<dyn Error>::downcast_ref)
        {
            Some(error) => reason("request", error as &io::Error),
            None => format!("request: {error}"),
        }
    })
}

async fn exchange(stream: TcpStream, to: SocketAddr) -> Result<(String, IpAddr)> {
    let response = fetch(stream, to, "/").await?;
    let client = response
        .headers()
        .get(CLIENT_HEADER)
        .context("the answer has no client header")?;
    let client: SocketAddr = client.to_str()?.parse()?;
    let name = String::from_utf8_lossy(response.body());
    Ok((name.trim().to_owned(), client.ip()))
}

/// Requests one page.
pub(crate) async fn get(options: &GetOptions) -> Result<PageReport> {
    println!("ready");
    let stream = timeout(GET_TIMEOUT, TcpStream::connect(options.to)).await?;
    let stream = stream.map_err(|error| anyhow!(reason("connect", &error)))?;
    let response = timeout(GET_TIMEOUT, fetch(stream, options.to, &options.path)).await??;
    let header = |(name, value): (&HeaderName, &HeaderValue)| {
        (
            name.to_string(),
            String::from_utf8_lossy(value.as_bytes()).into_owned(),
        )
    };
    Ok(PageReport {
        status: response.status().as_u16(),
        headers: response.headers().iter().map(header).collect(),
        body: String::from_utf8_lossy(response.body()).into_owned(),
    })
}

async fn fetch(stream: TcpStream, to: SocketAddr, path: &str) -> Result<Response<Bytes>> {
    let (mut sender, connection) = client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path)
        .header("host", to.to_string())
        .body(Empty::<Bytes>::new())?;
    let answer = async {
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        Ok::<_, anyhow::Error>(Response::from_parts(head, body))
    };
    let mut answer = pin!(answer);
    tokio::select! {
        // Biased to the answer: a server may close the connection immediately after it.
        biased;
        result = &mut answer => result,
        result = connection => {
            result?;
            answer.await
        }
    }
}
