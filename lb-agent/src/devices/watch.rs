//! Follows the devices of the network namespace that the agent runs in.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::sync::watch;

use super::dump::Dumper;
use super::events::{Changes, Events, NewRoutes};
use super::{Attachment, DeviceError, DeviceOptions, Link, Snapshot, classify, routes};

/// How long to wait before netlink is tried again after it failed, which it should not.
const RETRY: Duration = Duration::from_secs(1);
/// For how long routes are not asked for after they were, in relation to what that took: some nodes
/// have a million, which change all the time.
const ROUTES_PAUSE: u32 = 9;
/// The longest such pause.
const LONGEST_ROUTES_PAUSE: Duration = Duration::from_secs(10);

/// The devices of this node and what they are to carry.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct View {
    /// What there is.
    pub snapshot: Snapshot,
    /// What follows from it, by index of the device.
    pub attachments: BTreeMap<u32, Attachment>,
}

/// Follows the devices of the calling thread's network namespace until every receiver is dropped.
/// The first view is there on return; a new one is published whenever it differs, also when the
/// options change.
///
/// The threads that the runtime starts for what takes long must be in that namespace, too.
pub async fn watch(options: watch::Receiver<DeviceOptions>) -> Result<watch::Receiver<View>, DeviceError> {
    let mut watcher = Watcher {
        netlink: Netlink::open()?,
        options,
        snapshot: Snapshot::default(),
        instances: Instances::default(),
        asked: BTreeSet::new(),
        routes: PendingRoutes::default(),
    };
    watcher.refresh(Changes::everything()).await?;
    let (publisher, receiver) = watch::channel(watcher.view());
    tokio::spawn(watcher.run(publisher));
    Ok(receiver)
}

/// The devices of the calling thread's network namespace at this moment, for a thread that may
/// wait.
pub fn look() -> Result<Snapshot, DeviceError> {
    let mut snapshot = look_without_default_routes()?;
    snapshot.default_routes = runtime()?.block_on(routes::default_routes())?;
    Ok(snapshot)
}

/// The same, faster where there are very many routes: enough to tell which devices lead out.
pub fn look_without_default_routes() -> Result<Snapshot, DeviceError> {
    runtime()?.block_on(look_at_devices())
}

fn runtime() -> Result<Runtime, DeviceError> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().map_err(DeviceError::Open)
}

async fn look_at_devices() -> Result<Snapshot, DeviceError> {
    let mut dumper = Dumper::connect()?;
    let mut snapshot = Snapshot {
        links: dumper.links().await?,
        addresses: dumper.addresses().await?,
        ..Snapshot::default()
    };
    let asked: Vec<u32> = snapshot.asks_for_routes().collect();
    for device in asked {
        if routes::leads_out(device).await? {
            snapshot.routed.insert(device);
        }
    }
    Ok(snapshot)
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
    /// Instances of the devices whose routes were asked for: of others than these events tell.
    asked: BTreeSet<u64>,
    routes: PendingRoutes,
}

/// What is to be asked of the routing tables, and when.
#[derive(Default)]
struct PendingRoutes {
    default: bool,
    new: NewRoutes,
    /// Not before this time.
    due: Option<Instant>,
}

impl PendingRoutes {
    fn add(&mut self, changes: &mut Changes) {
        self.default |= changes.default_routes;
        self.new.join(std::mem::take(&mut changes.routes));
    }
}

impl Watcher {
    async fn run(mut self, publisher: watch::Sender<View>) {
        loop {
            tokio::select! {
                () = publisher.closed() => return,
                is_new = self.follow() => if !is_new {
                    continue;
                }
            }
            let view = self.view();
            publisher.send_if_modified(|published| {
                let changed = *published != view;
                *published = view;
                changed
            });
        }
    }

    /// Waits until something may be different and takes it in. False if it does not matter.
    async fn follow(&mut self) -> bool {
        let routes_due = self.routes.due.filter(|_| self.asks_for_routes());
        let followed = tokio::select! {
            changes = self.netlink.events.next() => match changes {
                Ok(changes) if !self.is_concerned(&changes) => return false,
                Ok(changes) => self.refresh(changes).await,
                Err(error) => Err(error),
            },
            () = until(routes_due) => self.refresh_routes().await,
            () = changed(&mut self.options) => Ok(()),
        };
        if let Err(error) = followed {
            self.recover(error).await;
        }
        true
    }

    /// Whether changes are not just those of a million routes that nobody asks for.
    fn is_concerned(&self, changes: &Changes) -> bool {
        let mut devices = self.snapshot.asks_for_routes();
        changes.links
            || changes.addresses
            || changes.default_routes
            || devices.any(|device| changes.routes.may_lead_by(device))
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
        self.asked.clear();
        self.refresh(Changes::everything()).await
    }

    async fn refresh(&mut self, mut changes: Changes) -> Result<(), DeviceError> {
        let dumper = &mut self.netlink.dumper;
        if changes.links {
            self.snapshot.links = dumper.links().await?;
            self.instances.number(&mut self.snapshot.links, &changes.deleted);
        }
        if changes.addresses {
            self.snapshot.addresses = dumper.addresses().await?;
        }
        self.forget_routes(&changes.deleted);
        self.routes.default |= self.snapshot.has_stale_route();
        self.routes.add(&mut changes);
        if self.routes.due.is_none_or(|due| due <= Instant::now()) {
            self.refresh_routes().await?;
        }
        Ok(())
    }

    /// Of a device that is down or gone the kernel has removed the routes. That others have lost
    /// theirs does not count: routes of a routing protocol come and go, and packets may still come.
    fn forget_routes(&mut self, deleted: &BTreeSet<u32>) {
        let links = &self.snapshot.links;
        let is_up = |index: &u32| links.get(index).is_some_and(|link| link.up) && !deleted.contains(index);
        self.snapshot.routed.retain(is_up);
        // Events are heeded of devices whose routes matter: if those of others come to matter, they
        // are asked for.
        let open: BTreeSet<u64> = self
            .snapshot
            .asks_for_routes()
            .map(|index| links[&index].instance)
            .collect();
        self.asked.retain(|instance| open.contains(instance));
    }

    fn asks_for_routes(&self) -> bool {
        self.routes.default || self.devices_to_ask_about().next().is_some()
    }

    /// Devices that may have got their first route.
    fn devices_to_ask_about(&self) -> impl Iterator<Item = u32> {
        let is_asked = |index: &u32| self.asked.contains(&self.snapshot.links[index].instance);
        self.snapshot
            .asks_for_routes()
            .filter(move |index| !is_asked(index) || self.routes.new.may_lead_by(*index))
    }

    /// Asks for routes if anything may be new, then rests.
    async fn refresh_routes(&mut self) -> Result<(), DeviceError> {
        if !self.asks_for_routes() {
            // Of devices that come later all routes are asked for.
            self.routes.new = NewRoutes::default();
            return Ok(());
        }
        let begun = Instant::now();
        if self.routes.default {
            self.snapshot.default_routes = routes::default_routes().await?;
            self.routes.default = false;
            let devices = self.snapshot.default_routes.iter().map(|route| route.device);
            self.snapshot.routed.extend(devices);
        }
        let devices: Vec<u32> = self.devices_to_ask_about().collect();
        self.routes.new = NewRoutes::default();
        for device in devices {
            if routes::leads_out(device).await? {
                self.snapshot.routed.insert(device);
            }
            self.asked.insert(self.snapshot.links[&device].instance);
        }
        let pause = (begun.elapsed() * ROUTES_PAUSE).min(LONGEST_ROUTES_PAUSE);
        self.routes.due = Some(Instant::now() + pause);
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

/// Waits until a time; for ever if there is none.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
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
