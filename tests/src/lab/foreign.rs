//! Programs that others have attached to a device beside the agent's.

use anyhow::{Context, Result};
use aya::Ebpf;
use aya::programs::tc::{NlOptions, TcAttachOptions, qdisc_add_clsact};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, Xdp, XdpMode};

use super::Lab;
use super::namespace::Namespace;
use crate::test_programs;

/// What a program says of every packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Says {
    /// It passes, and no program behind sees it (`TC_ACT_OK`).
    Pass,
    /// The programs behind decide (`TC_ACT_UNSPEC`).
    Continue,
    /// It is dropped (`TC_ACT_SHOT`).
    Drop,
}

impl Says {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Pass, Self::Continue, Self::Drop];

    /// The name of the program.
    pub fn program(self) -> &'static str {
        match self {
            Self::Pass => test_programs::EMPTY_TC_PASS,
            Self::Continue => test_programs::EMPTY_TC,
            Self::Drop => test_programs::EMPTY_TC_DROP,
        }
    }
}

/// Where the programs of others are attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum At {
    /// At the head of TCX.
    TcxHead,
    /// As clsact filters of the first priority.
    ClsactFirst,
}

/// Programs of others at both directions of devices. Dropping it detaches those at TCX.
#[derive(Debug)]
pub struct ForeignPrograms {
    _ebpf: Ebpf,
}

impl Lab {
    /// Attaches a program to both directions of these devices. What was attached in that way before
    /// comes behind it.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn attach_foreign(
        &self,
        namespace: &Namespace,
        devices: &[&str],
        says: Says,
        at: At,
    ) -> Result<ForeignPrograms> {
        let mut ebpf = test_programs::open()?;
        let name = says.program();
        let program: &mut SchedClassifier = ebpf
            .program_mut(name)
            .with_context(|| format!("the object has no program {name}"))?
            .try_into()?;
        namespace.run(|| {
            program.load()?;
            for device in devices {
                if at == At::ClsactFirst {
                    // It may be there.
                    let _ = qdisc_add_clsact(device);
                }
                for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
                    let options = match at {
                        At::TcxHead => TcAttachOptions::TcxOrder(LinkOrder::first()),
                        At::ClsactFirst => TcAttachOptions::Netlink(NlOptions {
                            priority: 1,
                            ..NlOptions::default()
                        }),
                    };
                    let id = program.attach_with_options(device, direction, options)?;
                    if at == At::ClsactFirst {
                        // Else it would be detached by whoever drops it, in a namespace that is
                        // another one.
                        std::mem::forget(program.take_link(id)?);
                    }
                }
            }
            Ok(())
        })?;
        Ok(ForeignPrograms { _ebpf: ebpf })
    }

    /// Attaches a program of others to a device's generic XDP hook. It passes every packet.
    ///
    /// # Errors
    ///
    /// If the kernel refuses.
    pub fn attach_foreign_xdp(&self, namespace: &Namespace, device: &str) -> Result<ForeignPrograms> {
        let mut ebpf = test_programs::open()?;
        let program: &mut Xdp = ebpf
            .program_mut(test_programs::EMPTY_XDP)
            .context("the object has no empty XDP program")?
            .try_into()?;
        namespace.run(|| {
            program.load()?;
            program.attach(device, XdpMode::Skb)?;
            Ok(())
        })?;
        Ok(ForeignPrograms { _ebpf: ebpf })
    }
}
