//! Measures how long it takes to build Maglev tables. `cargo xtask bench maglev` builds and runs
//! this program.

use std::hint::black_box;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use lb_agent::maglev;
use lb_agent::output::{self, OutputFormat, Table};

/// How many tables of each size are built.
const ROUNDS: usize = 21;

fn main() -> io::Result<()> {
    let mut table = Table::new(&["backends", "entries", "best ms", "median ms"]);
    for n in [10, 100, 1000, 5000] {
        let backends: Vec<SocketAddr> = (0..n)
            .map(|number| (Ipv4Addr::from(0x0a01_0000 + number), 8080).into())
            .collect();
        let mut times: Vec<Duration> = (0..ROUNDS).map(|_| measure(&backends)).collect();
        times.sort();
        let milliseconds = |time: Duration| format!("{:.2}", time.as_secs_f64() * 1000.0);
        table.row([
            n.to_string(),
            maglev::size(backends.len()).to_string(),
            milliseconds(times[0]),
            milliseconds(times[ROUNDS / 2]),
        ]);
    }
    output::print(OutputFormat::Table, &(), |()| table)
}

fn measure(backends: &[SocketAddr]) -> Duration {
    let start = Instant::now();
    black_box(maglev::table(black_box(backends)));
    start.elapsed()
}
