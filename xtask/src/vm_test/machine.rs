//! A virtual machine: QEMU, with hardware's help where there is any.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

const PROGRAM: &str = "qemu-system-x86_64";

/// What the kernel is told: to talk to the first serial port, to end the machine when it panics,
/// and to leave out what takes longest where the processor is emulated and protects nobody here:
/// from others in the same machine, from reading memory of others, by waiting until all have seen a
/// change. Copying memory by one repeated instruction (`X86_FEATURE_REP_GOOD`, `ERMS` and `FSRM`)
/// is slow there too. And to take another clock than the processor's counter: how fast that counts
/// is found out wrongly where others use the host's processors meanwhile.
const KERNEL_OPTIONS: &str = "console=ttyS0 loglevel=6 panic=-1 random.trust_cpu=on mitigations=off init_on_alloc=0 \
                              rcupdate.rcu_expedited=1 nohz=off highres=off tsc=unstable clearcpuid=112,297,580";

/// What a machine boots.
pub(super) struct Boot<'a> {
    /// The kernel.
    pub(super) image: &'a Path,
    /// The first file system.
    pub(super) initramfs: &'a Path,
    /// The file that takes what the kernel says.
    pub(super) console: &'a Path,
}

/// Runs a machine until it switches itself off, or until the time is over; hands over what it
/// writes to its second serial port, line by line. Whether it ended by itself.
pub(super) fn run(boot: &Boot<'_>, limit: Duration, mut line: impl FnMut(&str)) -> Result<bool> {
    let deadline = Instant::now() + limit;
    let mut machine = Running(
        command(boot)
            .spawn()
            .with_context(|| format!("cannot start {PROGRAM}: run `cargo xtask setup`"))?,
    );
    let output = machine.0.stdout.take().context("the machine has no output")?;
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(bytes) => line(String::from_utf8_lossy(&bytes).trim_end_matches('\r')),
            Err(RecvTimeoutError::Disconnected) => return Ok(machine.0.wait()?.success()),
            Err(RecvTimeoutError::Timeout) => return Ok(false),
        }
    }
}

/// Dropping it ends it.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn command(boot: &Boot<'_>) -> Command {
    // What a processor can do beyond the least is work for an emulator.
    let (accelerator, processor) = if has_kvm() {
        ("kvm", "host")
    } else {
        ("tcg", "qemu64")
    };
    let mut command = Command::new(PROGRAM);
    command
        .args(["-accel", accelerator])
        .args(["-cpu", processor, "-smp", "1", "-m", "3G"])
        .args(["-nodefaults", "-display", "none", "-no-reboot"])
        .arg("-kernel")
        .arg(boot.image)
        .arg("-initrd")
        .arg(boot.initramfs)
        .args(["-append", KERNEL_OPTIONS])
        .arg("-serial")
        .arg(format!("file:{}", boot.console.display()))
        .args(["-serial", "stdio"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command
}

/// Whether the processor virtualizes and we may use it. The device alone does not say so: some
/// machines have it and are virtual themselves.
fn has_kvm() -> bool {
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let can = |flag| processor.split_whitespace().any(|word| word == flag);
    let device = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    (can("vmx") || can("svm")) && device.is_ok()
}
