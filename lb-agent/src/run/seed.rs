//! The seed of the hash by which clients outside get their backends.

use std::path::Path;

use tokio::sync::watch;

use crate::datapath::live::LiveMaps;

/// The seed: what is known of it, and whether it is enough to attach programs.
pub(super) struct Seed {
    now: u64,
    /// The UID of the cluster, once the API has answered; nothing inside if it refuses.
    cluster: Option<watch::Receiver<Option<Option<String>>>>,
    is_settled: bool,
}

impl Seed {
    /// The seed of a text that the operator has given, else that of the agent before, whose maps
    /// are pinned in `directory`.
    pub(super) fn new(text: Option<&str>, directory: &Path) -> Self {
        let given = text.map(of);
        let kept = || {
            let settings = *LiveMaps::open(directory).ok()?.settings();
            // A row that was never written has no clock.
            (settings.jiffies_per_second != 0).then_some(settings.hash_seed)
        };
        let kept = given.is_none().then(kept).flatten();
        Self {
            now: given.or(kept).unwrap_or_default(),
            cluster: None,
            is_settled: given.is_some() || kept.is_some(),
        }
    }

    /// Without a cluster there is nothing to wait for; with one, its UID is the seed unless the
    /// operator has said another.
    pub(super) fn follow(
        &mut self,
        cluster: Option<watch::Receiver<Option<Option<String>>>>,
        is_given: bool,
    ) {
        self.is_settled |= cluster.is_none();
        self.cluster = cluster.filter(|_| !is_given);
    }

    /// The seed, if enough is known.
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

    /// The seed as far as it is known.
    pub(super) fn now(&self) -> u64 {
        self.now
    }

    /// Waits for an answer that is not known yet.
    pub(super) async fn changed(&mut self) {
        if let Some(cluster) = &mut self.cluster
            && cluster.changed().await.is_ok()
        {
            return;
        }
        // Nobody will answer any more.
        self.cluster = None;
        std::future::pending::<()>().await;
    }
}

/// The seed that a text stands for (FNV-1a): the same in every version, on every machine.
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
    fn every_version_makes_the_same_of_a_text() {
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
    fn what_the_operator_says_counts_before_the_cluster() {
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
