//! Network namespaces for tests that need no lab.

use std::fs::File;
use std::marker::PhantomData;
use std::rc::Rc;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

use super::Lab;
use super::id::LabId;
use super::namespace::{self, Namespace};

/// A network namespace outside any lab. The thread that created it is in it. Dropping it moves the
/// thread back and removes the namespace. If the process is killed, the next lab removes it.
#[derive(Debug)]
pub struct LoneNamespace {
    id: LabId,
    namespace: Namespace,
    home: File,
    thread: PhantomData<Rc<()>>,
}

impl LoneNamespace {
    /// Creates a namespace and moves the calling thread into it; `purpose` is part of its name.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn enter(purpose: &str) -> Result<Self> {
        Lab::remove_leftovers()?;
        let home = File::open("/proc/thread-self/ns/net").context("open the thread's network namespace")?;
        let id = LabId::new();
        let namespace = Namespace::create(id.part(purpose))?;
        let alone = Self {
            id,
            namespace,
            home,
            thread: PhantomData,
        };
        namespace::enter(alone.namespace.name())?;
        Ok(alone)
    }

    /// The namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }
}

impl Drop for LoneNamespace {
    fn drop(&mut self) {
        let removed = setns(&self.home, CloneFlags::CLONE_NEWNET)
            .context("go back")
            .and_then(|()| namespace::remove(|name| self.id.owns(name)));
        if let Err(error) = removed {
            // A panic here would hide an earlier panic that may be the cause.
            eprintln!("{} is not removed: {error:#}", self.namespace.name());
        }
    }
}
