//! The program that runs in the machines of a lab. It enters a machine, then acts as a server or
//! client. Every process ends by itself.

mod http;
mod layer3;
mod load;
mod path_mtu;
mod ping;
mod serve;
mod source;
mod stream;
mod talk;
mod udp;

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use lb_tests::lab::{cgroup, namespace};
use nix::libc;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{alarm, getppid};
use serde::Serialize;

/// Enters a network namespace and a control group, then runs a subcommand there.
#[derive(Parser)]
struct Options {
    /// Name of the network namespace
    #[arg(long)]
    netns: Option<String>,
    /// Path of the control group
    #[arg(long)]
    cgroup: Option<PathBuf>,
    /// End when this process, which must be the parent, ends
    #[arg(long)]
    parent: Option<i32>,
    /// End after this many seconds; 0 means never
    #[arg(long, default_value_t = 300)]
    time_limit: u32,
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Answer over HTTP, UDP and TCP; prints `ready`, ends gracefully on SIGTERM
    Serve(serve::Options),
    /// Send HTTP requests, each on a new connection, and report
    Http(http::Options),
    /// Request one page over HTTP and report all of it
    Get(http::GetOptions),
    /// Send UDP datagrams and report
    Udp(udp::Options),
    /// Send ICMP echo requests and report
    Ping(ping::Options),
    /// Send a stream of bytes, receive it back and report
    Stream(stream::Options),
    /// Send the lines of standard input over TCP or UDP, print events as JSON
    Talk(talk::Options),
    /// Create a link without Ethernet headers and forward its packets; prints `ready`
    Layer3(layer3::Options),
    /// Generate load for benchmarks, or serve it
    #[command(subcommand)]
    Load(load::Side),
    /// Execute another program
    Exec {
        /// The program and its arguments
        #[arg(required = true, trailing_var_arg = true)]
        command: Vec<OsString>,
    },
}

fn main() -> Result<()> {
    let options = Options::parse();
    take_place(&options)?;
    if let Role::Exec { command } = &options.role {
        let error = Command::new(&command[0]).args(&command[1..]).exec();
        return Err(error).with_context(|| format!("execute {}", command[0].display()));
    }
    if let Role::Load(side) = &options.role {
        return load::run(side);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let result = runtime.block_on(play(options.role));
    // Reading standard input blocks a thread: do not wait for it.
    runtime.shutdown_background();
    result
}

/// Must be called before any thread is started: only the calling thread enters the namespace.
fn take_place(options: &Options) -> Result<()> {
    if let Some(parent) = options.parent {
        prctl::set_pdeathsig(Signal::SIGKILL).context("request a signal at the end of the parent")?;
        if getppid().as_raw() != parent {
            bail!("process {parent} is not the parent: it has ended");
        }
    }
    // The alarm survives `exec`, as does the request above.
    match options.time_limit {
        0 => None,
        seconds => alarm::set(seconds),
    };
    if let Some(group) = &options.cgroup {
        cgroup::join(group)?;
    }
    options.netns.as_deref().map_or(Ok(()), namespace::enter)
}

async fn play(role: Role) -> Result<()> {
    match role {
        Role::Serve(options) => serve::serve(options).await,
        Role::Http(options) => print(&http::run(options).await?),
        Role::Get(options) => print(&http::get(&options).await?),
        Role::Udp(options) => print(&udp::run(&options).await?),
        Role::Layer3(options) => layer3::run(&options),
        Role::Ping(options) => print(&ping::run(&options)?),
        Role::Stream(options) => print(&stream::run(&options).await?),
        Role::Talk(options) => talk::run(&options).await,
        Role::Load(_) | Role::Exec { .. } => unreachable!("main handles these roles"),
    }
}

fn print(report: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(report)?);
    Ok(())
}

/// The reason of a failure, in the form that reports use.
fn reason(step: &str, error: &io::Error) -> String {
    match error.raw_os_error() {
        // `ErrorKind` has no stable variant for it.
        Some(libc::EMSGSIZE) => format!("{step}: MessageTooLong"),
        _ => format!("{step}: {:?}", error.kind()),
    }
}
