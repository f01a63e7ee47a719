//! The seed of the hash that selects backends for clients outside.

use std::path::Path;

use tokio::sync::watch;

use crate::datapath::live::LiveMaps;

/// The current seed, and whether it is final, so that programs can be attached.
pub(super) struct Seed {
    now: u64,
    /// Receives the cluster's UID. The outer value is `None` until the API server answers, the
    /// inner one if it refuses.
    cluster: Option<watch::Receiver<Option<Option<String>>>>,
    is_settled: bool,
}

impl Seed {
    /// Starts with the seed of the operator's text. Without a text, starts with the seed of the
    /// previous agent, whose maps are pinned in `directory`.
    pub(super) fn new(text: Option<&str>, directory: &Path) -> Self {
        let given = text.map(of);
        let kept = || {
            let settings = *LiveMaps::open(directory).ok()?.settings();
            // The clock rate is 0 in a row that was never written.
            (settings.jiffies_per_second != 0).then_some(settings.hash_seed)
        };
        let kept = given.is_none().then(kept).flatten();
        Self {
            now: given.or(kept).unwrap_or_default(),
            cluster: None,
            is_settled: given.is_some() || kept.is_some(),
        }
    }

    /// Without a cluster, makes the current seed final. With one, its UID becomes the seed, unless
    /// the operator set one (`is_given`).
    pub(super) fn follow(
        &mut self,
        cluster: Option<watch::Receiver<Option<Option<String>>>>,
        is_given: bool,
    ) {
        self.is_settled |= cluster.is_none();
        self.cluster = cluster.filter(|_| !is_given);
    }

    /// Returns the seed if it is final.
    pub(super) fn settled(&mut self) -> Option<u64> {
        if let Some(cluster) = &self.cluster
            && let Some(answer) = &*cluster.borrow()
        {
            if let Some(uid) = answer {
                self.now = of(uid);
            }
            self.is_settled = true;
        }
        self.is_settled.then_some(self.now)
    }

    /// Returns the current seed, even if it is not final.
    pub(super) fn now(&self) -> u64 {
        self.now
    }

    /// Waits for the API server's answer. Never returns if there is none to wait for.
    pub(super) async fn changed(&mut self) {
        if let Some(cluster) = &mut self.cluster
            && cluster.changed().await.is_ok()
        {
            return;
        }
        // The sender is gone: there will be no more answers.
        self.cluster = None;
        std::future::pending::<()>().await;
    }
}

/// Returns the seed for a text: its FNV-1a hash, which is the same in every version and on every
/// machine.
fn of(text: &str) -> u64 {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    text.bytes()
        .fold(OFFSET, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_has_the_same_seed_in_every_version() {
        // Test vectors of the FNV reference.
        for (text, seed) in [
            ("", 0xcbf2_9ce4_8422_2325),
            ("a", 0xaf63_dc4c_8601_ec8c),
            ("foobar", 0x8594_4171_f739_67e8),
        ] {
            assert_eq!(of(text), seed, "{text}");
        }
    }

    #[test]
    fn the_operators_seed_takes_precedence_over_the_cluster() {
        let nowhere = Path::new("/nowhere");
        let (answer, cluster) = watch::channel(None);
        let mut seed = Seed::new(None, nowhere);
        seed.follow(Some(cluster.clone()), false);
        assert_eq!(seed.settled(), None);
        answer.send_replace(Some(Some("a".to_owned())));
        assert_eq!(seed.settled(), Some(of("a")));
        answer.send_replace(Some(None));
        assert_eq!(seed.settled(), Some(of("a")));

        let mut refused = Seed::new(None, nowhere);
        refused.follow(Some(cluster.clone()), false);
        assert_eq!(refused.settled(), Some(0));

        let mut given = Seed::new(Some("b"), nowhere);
        answer.send_replace(Some(Some("a".to_owned())));
        given.follow(Some(cluster), true);
        assert_eq!(given.settled(), Some(of("b")));

        let mut alone = Seed::new(None, nowhere);
        alone.follow(None, false);
        assert_eq!(alone.settled(), Some(0));
    }
}
