//! The kernel's clock in the unit that the programs store in maps: jiffies, which user space cannot
//! read.
//!
//! The kernel's `jiffies_64` starts at `INITIAL_JIFFIES`, which is `-300 * HZ` as an unsigned
//! 32-bit number (<https://github.com/torvalds/linux/blob/v6.18/include/linux/jiffies.h>). It
//! advances with `CLOCK_MONOTONIC` (`tick_do_update_jiffies64`,
//! <https://github.com/torvalds/linux/blob/v6.18/kernel/time/tick-sched.c>). Both start at boot,
//! and both stop during suspend. They may diverge slightly until the kernel has selected its final
//! clock source. The result is therefore accurate to about one second, which is one tick.

use std::time::Duration;

use lb_common::settings::TICK_SHIFT;
use nix::time::{ClockId, clock_getres, clock_gettime};

/// A reading of the kernel's clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Clock {
    /// Jiffies. They do not start at 0.
    pub jiffies: u64,
    /// Jiffies per second.
    pub jiffies_per_second: u32,
}

impl Clock {
    /// Reads the clock.
    ///
    /// # Errors
    /// If the kernel does not return the time.
    pub fn read() -> nix::Result<Self> {
        let since_start = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
        Ok(Self::at(since_start, jiffy()))
    }

    /// The reading at this time after boot, with jiffies of this length.
    fn at(since_start: Duration, jiffy: Duration) -> Self {
        let rate = rate(jiffy);
        let passed = since_start.as_nanos() / jiffy.as_nanos().max(1);
        Self {
            jiffies: initial(rate).saturating_add(u64::try_from(passed).unwrap_or(u64::MAX)),
            jiffies_per_second: rate,
        }
    }

    /// The reading in ticks, the unit of the times in flows.
    pub(crate) fn ticks(self) -> u32 {
        ticks(self.jiffies)
    }

    /// Seconds since this number of jiffies. 0 for times in the future, which occur because the
    /// clock is accurate only to a second.
    pub(crate) fn seconds_since(self, jiffies: u64) -> u64 {
        self.jiffies.saturating_sub(jiffies) / u64::from(self.jiffies_per_second.max(1))
    }

    /// Seconds since this tick. 0 for times in the future.
    pub fn seconds_since_tick(self, tick: u32) -> u64 {
        let ticks = self.ticks().wrapping_sub(self.past_tick(tick));
        (u64::from(ticks) << TICK_SHIFT) / u64::from(self.jiffies_per_second.max(1))
    }

    /// A number of jiffies that is certainly in the past, although the clock is accurate only to a
    /// second. A program would treat a time in the future as very old.
    pub fn passed_jiffies(self) -> u64 {
        const MARGIN_SECONDS: u64 = 2;
        self.jiffies
            .saturating_sub(MARGIN_SECONDS * u64::from(self.jiffies_per_second))
    }

    /// Like [`Self::passed_jiffies`], in ticks. Safe to store for a program.
    pub(super) fn passed_ticks(self) -> u32 {
        ticks(self.passed_jiffies())
    }

    /// The tick that a program stored, or the current tick if the stored one is in the future.
    pub(crate) fn past_tick(self, noted: u32) -> u32 {
        // Half of the 32-bit range counts as the future.
        if self.ticks().wrapping_sub(noted) > u32::MAX / 2 {
            self.ticks()
        } else {
            noted
        }
    }
}

fn ticks(jiffies: u64) -> u32 {
    // Ticks are truncated to 32 bits, so they wrap.
    u32::try_from(jiffies >> TICK_SHIFT & u64::from(u32::MAX)).unwrap_or_default()
}

/// Jiffies per second.
pub fn jiffies_per_second() -> u32 {
    rate(jiffy())
}

/// The length of a jiffy, which is the resolution of the kernel's coarse clocks
/// (`CLOCK_MONOTONIC_COARSE`, clock_getres(2)).
fn jiffy() -> Duration {
    clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).map_or(Duration::from_millis(4), Duration::from)
}

fn rate(jiffy: Duration) -> u32 {
    let rate = 1_000_000_000 / jiffy.as_nanos().max(1);
    u32::try_from(rate).unwrap_or(u32::MAX).max(1)
}

/// The value of jiffies at boot.
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
        // With 300 jiffies per second, a jiffy in whole nanoseconds is slightly too short.
        assert_eq!(rate(Duration::from_nanos(3_333_333)), 300);
    }

    #[test]
    fn times_in_the_future_count_as_now() {
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
