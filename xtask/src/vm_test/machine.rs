//! A virtual machine: QEMU, with KVM if available.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

const PROGRAM: &str = "qemu-system-x86_64";

/// Options of the kernel: use the first serial port as the console, and end the machine on a panic.
/// The others disable features that are slow on an emulated CPU and not needed here: mitigations
/// against other users of the machine, clearing of memory, normal RCU grace periods, and copying
/// memory with one repeated instruction (`X86_FEATURE_REP_GOOD`, `ERMS` and `FSRM`). `tsc=unstable`
/// selects another clock than the CPU's counter, whose calibration fails if the host's CPUs are
/// busy.
const KERNEL_OPTIONS: &str = "console=ttyS0 loglevel=6 panic=-1 random.trust_cpu=on mitigations=off init_on_alloc=0 \
                              rcupdate.rcu_expedited=1 nohz=off highres=off tsc=unstable clearcpuid=112,297,580";

/// The files that a machine boots.
pub(super) struct Boot<'a> {
    /// The kernel.
    pub(super) image: &'a Path,
    /// The initial file system.
    pub(super) initramfs: &'a Path,
    /// The file for the kernel's console output.
    pub(super) console: &'a Path,
}

/// Runs a machine until it switches itself off or the timeout expires. Passes the lines of its
/// second serial port to `line`. Returns whether it ended by itself.
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

/// A running machine. It ends when this is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn command(boot: &Boot<'_>) -> Command {
    // An emulator uses the simplest CPU, because additional features make it slower.
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

/// Whether the CPU supports virtualization and this user may use it. The device alone is not
/// enough: some virtual machines have it too.
fn has_kvm() -> bool {
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let can = |flag| processor.split_whitespace().any(|word| word == flag);
    let device = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    (can("vmx") || can("svm")) && device.is_ok()
}
