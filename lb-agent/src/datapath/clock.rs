//! The kernel's clock as the programs note it in the maps: jiffies, which user space cannot read.
//!
//! The kernel's `jiffies_64` begins at `INITIAL_JIFFIES`, which is `-300 * HZ` as an unsigned
//! number of 32 bits (include/linux/jiffies.h, Linux 6.18), and is counted from the time that
//! `CLOCK_MONOTONIC` shows (`tick_do_update_jiffies64`, kernel/time/tick-sched.c): neither counts
//! while the machine sleeps, and both begin with the kernel. Before its final clock source runs a
//! kernel may count the two a moment apart, so the result is good to about a second, which is what
//! a tick is.

use std::time::Duration;

use lb_common::settings::TICK_SHIFT;
use nix::time::{ClockId, clock_getres, clock_gettime};

/// What the kernel's clock shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Clock {
    /// Jiffies, which do not begin at 0.
    pub jiffies: u64,
    /// How many jiffies a second has.
    pub jiffies_per_second: u32,
}

impl Clock {
    /// What it shows now.
    ///
    /// # Errors
    /// If the kernel does not tell the time.
    pub fn read() -> nix::Result<Self> {
        let since_start = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
        Ok(Self::at(since_start, jiffy()))
    }

    /// What it shows so long after the kernel's start, with jiffies of this length.
    fn at(since_start: Duration, jiffy: Duration) -> Self {
        let rate = rate(jiffy);
        let passed = since_start.as_nanos() / jiffy.as_nanos().max(1);
        Self {
            jiffies: initial(rate).saturating_add(u64::try_from(passed).unwrap_or(u64::MAX)),
            jiffies_per_second: rate,
        }
    }

    /// The same in ticks, which flows are noted in.
    pub(crate) fn ticks(self) -> u32 {
        ticks(self.jiffies)
    }

    /// Seconds since this number of jiffies; 0 for what seems to lie ahead, as the clock is known
    /// to a second only.
    pub(crate) fn seconds_since(self, jiffies: u64) -> u64 {
        self.jiffies.saturating_sub(jiffies) / u64::from(self.jiffies_per_second.max(1))
    }

    /// Seconds since this tick; 0 for what seems to lie ahead.
    pub fn seconds_since_tick(self, tick: u32) -> u64 {
        let ticks = self.ticks().wrapping_sub(self.past_tick(tick));
        (u64::from(ticks) << TICK_SHIFT) / u64::from(self.jiffies_per_second.max(1))
    }

    /// A number of jiffies that has passed for certain although the clock is known to a second
    /// only: a program takes one that lies ahead for very old.
    pub fn passed_jiffies(self) -> u64 {
        const MARGIN_SECONDS: u64 = 2;
        self.jiffies
            .saturating_sub(MARGIN_SECONDS * u64::from(self.jiffies_per_second))
    }

    /// As [`Self::passed_jiffies`], in ticks: what may be noted for a program.
    pub(super) fn passed_ticks(self) -> u32 {
        ticks(self.passed_jiffies())
    }

    /// The tick that a program noted, or the current one if that seems to lie ahead.
    pub(crate) fn past_tick(self, noted: u32) -> u32 {
        // Half of the numbers lie ahead.
        if self.ticks().wrapping_sub(noted) > u32::MAX / 2 {
            self.ticks()
        } else {
            noted
        }
    }
}

fn ticks(jiffies: u64) -> u32 {
    // Ticks are cut to 32 bits: they wrap.
    u32::try_from(jiffies >> TICK_SHIFT & u64::from(u32::MAX)).unwrap_or_default()
}

/// How many jiffies a second has.
pub fn jiffies_per_second() -> u32 {
    rate(jiffy())
}

/// The length of a jiffy: the kernel's coarse clocks advance by one (`CLOCK_MONOTONIC_COARSE`,
/// clock_getres(2)).
fn jiffy() -> Duration {
    clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).map_or(Duration::from_millis(4), Duration::from)
}

fn rate(jiffy: Duration) -> u32 {
    let rate = 1_000_000_000 / jiffy.as_nanos().max(1);
    u32::try_from(rate).unwrap_or(u32::MAX).max(1)
}

/// What the clock shows when the kernel starts.
fn initial(rate: u32) -> u64 {
    const SECONDS: u32 = 300;
    u64::from(0_u32.wrapping_sub(SECONDS.wrapping_mul(rate)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Clock {
        Clock::at(Duration::from_secs(seconds), Duration::from_millis(4))
    }

    #[test]
    fn the_32_bit_counter_wraps_after_five_minutes() {
        assert_eq!(at(0).jiffies_per_second, 250);
        assert_eq!(at(300).jiffies, 1 << 32);
        assert_eq!(at(0).jiffies, (1 << 32) - 300 * 250);
        // Jiffies of 300 a second are a little short.
        assert_eq!(rate(Duration::from_nanos(3_333_333)), 300);
    }

    #[test]
    fn what_lies_ahead_was_just_now() {
        let now = at(1000);
        assert_eq!(now.seconds_since(now.jiffies - 2500), 10);
        assert_eq!(now.seconds_since(now.jiffies + 10), 0);
        assert_eq!(now.seconds_since_tick(now.ticks() - 125), 128);
        assert_eq!(now.seconds_since_tick(now.ticks().wrapping_add(1)), 0);
        assert_eq!(now.jiffies - now.passed_jiffies(), 500);
        assert!(now.ticks().wrapping_sub(now.passed_ticks()) >= 1);
    }

    #[test]
    fn ticks_wrap() {
        let clock = Clock {
            jiffies: (1 << (32 + TICK_SHIFT)) + 256,
            jiffies_per_second: 250,
        };
        assert_eq!(clock.ticks(), 1);
        assert_eq!(clock.seconds_since_tick(u32::MAX), 2);
    }
}
