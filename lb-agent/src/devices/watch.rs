//! Follows the devices of the network namespace that the agent runs in.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::sync::watch;

use super::dump::Dumper;
use super::events::{Changes, Events};
use super::{Attachment, DeviceError, DeviceOptions, Link, Snapshot, classify};

/// How long to wait before netlink is tried again after it failed, which it should not.
const RETRY: Duration = Duration::from_secs(1);

/// The devices of this node and what they are to carry.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct View {
    /// What there is.
    pub snapshot: Snapshot,
    /// What follows from it, by index of the device.
    pub attachments: BTreeMap<u32, Attachment>,
}

/// Follows the devices of the calling thread's network namespace until every receiver is dropped. The first view
/// is there on return; a new one is published whenever it differs, also when the options change.
pub async fn watch(options: watch::Receiver<DeviceOptions>) -> Result<watch::Receiver<View>, DeviceError> {
    let mut watcher = Watcher {
        netlink: Netlink::open()?,
        options,
        snapshot: Snapshot::default(),
        instances: Instances::default(),
    };
    watcher.refresh(&Changes::everything()).await?;
    let (publisher, receiver) = watch::channel(watcher.view());
    tokio::spawn(watcher.run(publisher));
    Ok(receiver)
}

struct Netlink {
    events: Events,
    dumper: Dumper,
}

impl Netlink {
    fn open() -> Result<Self, DeviceError> {
        Ok(Self {
            // Before the first dump, so that nothing is missed in between.
            events: Events::subscribe()?,
            dumper: Dumper::connect()?,
        })
    }
}

struct Watcher {
    netlink: Netlink,
    options: watch::Receiver<DeviceOptions>,
    snapshot: Snapshot,
    instances: Instances,
}

impl Watcher {
    async fn run(mut self, publisher: watch::Sender<View>) {
        loop {
            tokio::select! {
                () = publisher.closed() => return,
                () = self.follow() => {}
            }
            let view = self.view();
            publisher.send_if_modified(|published| {
                let changed = *published != view;
                *published = view;
                changed
            });
        }
    }

    /// Waits until something may be different and takes it in.
    async fn follow(&mut self) {
        let followed = tokio::select! {
            changes = self.netlink.events.next() => match changes {
                Ok(changes) => self.refresh(&changes).await,
                Err(error) => Err(error),
            },
            () = changed(&mut self.options) => Ok(()),
        };
        if let Err(error) = followed {
            self.recover(error).await;
        }
    }

    /// Starts again with new sockets.
    async fn recover(&mut self, mut error: DeviceError) {
        loop {
            let causes = crate::describe(&error);
            tracing::warn!(error = causes, retry = ?RETRY, "device changes go unnoticed");
            tokio::time::sleep(RETRY).await;
            match self.reopen().await {
                Ok(()) => return,
                Err(again) => error = again,
            }
        }
    }

    async fn reopen(&mut self) -> Result<(), DeviceError> {
        self.netlink = Netlink::open()?;
        self.refresh(&Changes::everything()).await
    }

    async fn refresh(&mut self, changes: &Changes) -> Result<(), DeviceError> {
        let dumper = &mut self.netlink.dumper;
        if changes.links {
            self.snapshot.links = dumper.links().await?;
            self.instances.number(&mut self.snapshot.links, &changes.deleted);
        }
        if changes.addresses {
            self.snapshot.addresses = dumper.addresses().await?;
        }
        if changes.default_routes || self.snapshot.has_stale_route() {
            self.snapshot.default_routes = dumper.default_routes().await?;
        }
        Ok(())
    }

    fn view(&mut self) -> View {
        let options = self.options.borrow_and_update();
        View {
            snapshot: self.snapshot.clone(),
            attachments: classify(&self.snapshot, &options),
        }
    }
}

/// Waits for other options; for ever once nobody can set them.
async fn changed(options: &mut watch::Receiver<DeviceOptions>) {
    if options.changed().await.is_err() {
        std::future::pending().await
    }
}

/// Numbers devices in the order in which they appear, so that index reuse shows.
#[derive(Debug, Default)]
struct Instances {
    last: u64,
    by_index: BTreeMap<u32, u64>,
}

impl Instances {
    fn number(&mut self, links: &mut BTreeMap<u32, Link>, deleted: &BTreeSet<u32>) {
        self.by_index
            .retain(|index, _| links.contains_key(index) && !deleted.contains(index));
        for link in links.values_mut() {
            link.instance = *self.by_index.entry(link.index).or_insert_with(|| {
                self.last += 1;
                self.last
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links(indexes: &[u32]) -> BTreeMap<u32, Link> {
        let link = |&index| {
            let link = Link {
                index,
                ..Link::default()
            };
            (index, link)
        };
        indexes.iter().map(link).collect()
    }

    fn numbered(instances: &mut Instances, indexes: &[u32], deleted: &[u32]) -> Vec<u64> {
        let mut links = links(indexes);
        instances.number(&mut links, &deleted.iter().copied().collect());
        links.values().map(|link| link.instance).collect()
    }

    #[test]
    fn a_device_keeps_its_number_and_no_other_gets_it() {
        let mut instances = Instances::default();
        assert_eq!(numbered(&mut instances, &[1, 2], &[]), [1, 2]);
        assert_eq!(numbered(&mut instances, &[1, 2, 3], &[]), [1, 2, 3]);
        assert_eq!(numbered(&mut instances, &[1, 2, 3], &[2]), [1, 4, 3]);
        assert_eq!(numbered(&mut instances, &[1, 3], &[2]), [1, 3]);
        assert_eq!(numbered(&mut instances, &[1, 2, 3], &[]), [1, 5, 3]);
    }
}
