//! The client: threads that repeat one operation for some time.

use std::io;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use lb_tests::bench::load::{Order, Sample};

use super::meter::Meter;
use super::work::{self, Worker};

/// The result of one thread.
struct Done {
    /// In nanoseconds; a u32 holds up to four seconds.
    latencies: Vec<u32>,
    failures: u64,
    failure: Option<io::Error>,
    /// Start and end.
    time: [Instant; 2],
}

/// Executes an order.
pub(super) fn ask(order: &Order) -> Result<Sample> {
    let workers = (0..order.threads)
        .map(|number| work::worker(order, number))
        .collect::<io::Result<Vec<_>>>()
        .with_context(|| format!("prepare {:?} to {:?}", order.mode, order.to))?;
    let meter = Meter::new(&order.cgroups)?;
    let barrier = Barrier::new(workers.len() + 1);
    let duration = Duration::from_millis(order.milliseconds.into());

    let (done, usage) = thread::scope(|scope| {
        let threads: Vec<_> = workers
            .into_iter()
            .map(|worker| scope.spawn(|| work(worker, &barrier, duration)))
            .collect();
        // All threads wait at the barrier, or will soon.
        let before = meter.read()?;
        barrier.wait();
        let done: Vec<Done> = threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect();
        anyhow::Ok((done, meter.read()?.since(&before)))
    })?;
    Ok(Sample {
        client_cpu: usage.client,
        lab_cpu: usage.lab,
        machine_cpu: usage.machine,
        ..summary(done)
    })
}

fn work(mut worker: Box<dyn Worker>, barrier: &Barrier, duration: Duration) -> Done {
    // Large enough for all latencies: reallocation would be part of the measurement.
    let latencies = Vec::with_capacity(1 << 17);
    barrier.wait();
    let start = Instant::now();
    let mut done = Done {
        latencies,
        failures: 0,
        failure: None,
        time: [start; 2],
    };
    while done.time[1] < start + duration {
        match worker.operate() {
            Ok(taken) => done
                .latencies
                .push(u32::try_from(taken.as_nanos()).unwrap_or(u32::MAX)),
            Err(error) => done.fail(error),
        }
        done.time[1] = Instant::now();
    }
    if let Err(error) = worker.finish() {
        done.fail(error);
    }
    done.time[1] = Instant::now();
    done
}

impl Done {
    fn fail(&mut self, error: io::Error) {
        self.failures += 1;
        self.failure.get_or_insert(error);
    }
}

fn summary(done: Vec<Done>) -> Sample {
    let mut sample = Sample::default();
    let mut latencies = Vec::new();
    let starts = done.iter().map(|done| done.time[0]).min();
    let ends = done.iter().map(|done| done.time[1]).max();
    let elapsed = ends.zip(starts).map(|(end, start)| end - start);
    for done in done {
        latencies.extend(done.latencies);
        sample.failures += done.failures;
        sample.failure = sample
            .failure
            .or_else(|| done.failure.map(|error| error.to_string()));
    }
    latencies.sort_unstable();
    let at = |percent: usize| {
        let last = latencies.len().saturating_sub(1);
        let index = (latencies.len() * percent / 100).min(last);
        latencies.get(index).copied().unwrap_or_default().into()
    };
    Sample {
        operations: latencies.len() as u64,
        elapsed: elapsed.map_or(0, |elapsed| u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)),
        p50: at(50),
        p99: at(99),
        ..sample
    }
}
