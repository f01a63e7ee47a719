//! Watches the devices of the network namespace that the agent runs in.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::sync::watch;

use super::dump::Dumper;
use super::events::{Changes, Events, NewRoutes};
use super::{Attachment, DeviceError, DeviceOptions, Link, Snapshot, classify, routes};

/// The delay before a retry after a netlink error, which should not occur.
const RETRY: Duration = Duration::from_secs(1);
/// The pause after a query of routes, as a multiple of the query's duration. Some nodes have a
/// million routes that change all the time.
const ROUTES_PAUSE: u32 = 9;
/// The longest pause between queries of routes.
const LONGEST_ROUTES_PAUSE: Duration = Duration::from_secs(10);

/// The devices of this node and the programs that they must carry.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DeviceView {
    /// The state of the devices.
    pub snapshot: Snapshot,
    /// The resulting attachments, by index of the device.
    pub attachments: BTreeMap<u32, Attachment>,
}

/// Watches the devices of the calling thread's network namespace until every receiver is dropped.
/// The first view is available when this returns. A new one is published when it differs, also if
/// the options change.
///
/// The runtime's blocking threads must be in the same namespace.
pub async fn watch(
    options: watch::Receiver<DeviceOptions>,
) -> Result<watch::Receiver<DeviceView>, DeviceError> {
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

/// Returns the devices of the calling thread's network namespace. Blocks the thread.
pub fn look() -> Result<Snapshot, DeviceError> {
    let mut snapshot = look_without_default_routes()?;
    snapshot.default_routes = runtime()?.block_on(routes::default_routes())?;
    Ok(snapshot)
}

/// Like [`look`], but without the default routes, which is faster if there are very many routes.
/// The result shows which devices lead out.
pub fn look_without_default_routes() -> Result<Snapshot, DeviceError> {
    runtime()?.block_on(dump_devices())
}

fn runtime() -> Result<Runtime, DeviceError> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().map_err(DeviceError::Open)
}

async fn dump_devices() -> Result<Snapshot, DeviceError> {
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
            // This comes before the first dump, so that no change is missed in between.
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
    /// Instances of the devices whose routes were already queried. Events report new routes of
    /// these devices.
    asked: BTreeSet<u64>,
    routes: PendingRoutes,
}

/// Pending queries of the routing tables.
#[derive(Default)]
struct PendingRoutes {
    default: bool,
    new: NewRoutes,
    /// The earliest time for the next query.
    due: Option<Instant>,
}

impl PendingRoutes {
    fn add(&mut self, changes: &mut Changes) {
        self.default |= changes.default_routes;
        self.new.join(std::mem::take(&mut changes.routes));
    }
}

impl Watcher {
    async fn run(mut self, publisher: watch::Sender<DeviceView>) {
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

    /// Waits until the view may have changed, and updates the snapshot. Returns false if the change
    /// is irrelevant.
    async fn follow(&mut self) -> bool {
        let routes_due = self.routes.due.filter(|_| self.asks_for_routes());
        let followed = tokio::select! {
            changes = self.netlink.events.next() => match changes {
                Ok(changes) if !self.is_relevant(&changes) => return false,
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

    /// Whether changes are relevant. Most changes on some nodes are of routes that do not matter.
    fn is_relevant(&self, changes: &Changes) -> bool {
        let mut devices = self.snapshot.asks_for_routes();
        changes.links
            || changes.addresses
            || changes.default_routes
            || devices.any(|device| changes.routes.may_lead_by(device))
    }

    /// Reopens the sockets.
    async fn recover(&mut self, mut error: DeviceError) {
        loop {
            let causes = crate::describe(&error);
            tracing::warn!(error = causes, retry = ?RETRY, "cannot watch for device changes");
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

    /// Forgets the routes of devices that are down or deleted, as the kernel removes those routes.
    /// Other devices that lost their routes still count: routing protocols add and remove routes,
    /// and packets may still arrive.
    fn forget_routes(&mut self, deleted: &BTreeSet<u32>) {
        let links = &self.snapshot.links;
        let is_up = |index: &u32| links.get(index).is_some_and(|link| link.up) && !deleted.contains(index);
        self.snapshot.routed.retain(is_up);
        // Route events are only observed for devices whose routes matter. If another device starts
        // to matter, its routes are queried.
        let open: BTreeSet<u64> = self
            .snapshot
            .asks_for_routes()
            .map(|index| links[&index].instance)
            .collect();
        self.asked.retain(|instance| open.contains(instance));
    }

    fn asks_for_routes(&self) -> bool {
        self.routes.default || self.devices_to_query().next().is_some()
    }

    /// Devices that may have their first route now.
    fn devices_to_query(&self) -> impl Iterator<Item = u32> {
        let is_asked = |index: &u32| self.asked.contains(&self.snapshot.links[index].instance);
        self.snapshot
            .asks_for_routes()
            .filter(move |index| !is_asked(index) || self.routes.new.may_lead_by(*index))
    }

    /// Queries routes if they may have changed, then pauses further queries.
    async fn refresh_routes(&mut self) -> Result<(), DeviceError> {
        if !self.asks_for_routes() {
            // All routes of devices that appear later are queried anyway.
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
        let devices: Vec<u32> = self.devices_to_query().collect();
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

    fn view(&mut self) -> DeviceView {
        let options = self.options.borrow_and_update();
        DeviceView {
            snapshot: self.snapshot.clone(),
            attachments: classify(&self.snapshot, &options),
        }
    }
}

/// Waits until a time. Waits forever if there is none.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

/// Waits for a change of the options. Waits forever once the sender is dropped.
async fn changed(options: &mut watch::Receiver<DeviceOptions>) {
    if options.changed().await.is_err() {
        std::future::pending().await
    }
}

/// Numbers devices in the order of appearance, so that a reused index is noticed.
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
    fn instance_numbers_are_stable_and_never_reused() {
        let mut instances = Instances::default();
        assert_eq!(numbered(&mut instances, &[1, 2], &[]), [1, 2]);
        assert_eq!(numbered(&mut instances, &[1, 2, 3], &[]), [1, 2, 3]);
        assert_eq!(numbered(&mut instances, &[1, 2, 3], &[2]), [1, 4, 3]);
        assert_eq!(numbered(&mut instances, &[1, 3], &[2]), [1, 3]);
        assert_eq!(numbered(&mut instances, &[1, 2, 3], &[]), [1, 5, 3]);
    }
}
