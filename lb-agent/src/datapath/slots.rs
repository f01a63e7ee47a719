//! The slots array, read and written in bulk: Maglev tables are large, and aya has a system call for each element.
#![expect(unsafe_code, reason = "aya has no batch operations")]

use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::maps::MapData;
use lb_common::layout::Slot;
use nix::errno::Errno;
use nix::libc;

/// The slots array.
#[derive(Debug)]
pub(super) struct SlotArray {
    map: MapData,
    length: u32,
}

/// Commands of bpf(2) (`enum bpf_cmd`, include/uapi/linux/bpf.h).
#[derive(Clone, Copy)]
enum Command {
    LookupBatch = 24,
    UpdateBatch = 26,
}

/// The part of `union bpf_attr` that the batch commands use (Linux 5.6).
#[repr(C)]
struct BatchAttribute {
    /// Where the key stands behind which to begin; null begins with the first.
    in_batch: u64,
    /// Where the last key is put.
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    element_flags: u64,
    flags: u64,
}

impl SlotArray {
    /// The array in a map; `None` if the map is not such an array.
    pub(super) fn new(map: MapData) -> Option<Self> {
        let info = map.info().ok()?;
        let fits =
            info.key_size() as usize == size_of::<u32>() && info.value_size() as usize == size_of::<Slot>();
        fits.then_some(Self {
            length: info.max_entries(),
            map,
        })
    }

    /// Number of slots.
    pub(super) fn length(&self) -> u32 {
        self.length
    }

    /// Writes consecutive slots. If it fails, a first part of them may be written.
    pub(super) fn write(&self, base: u32, slots: &[Slot]) -> Result<(), Errno> {
        let mut keys: Vec<u32> = (base..).take(slots.len()).collect();
        let mut values = slots.to_vec();
        self.execute(Command::UpdateBatch, None, &mut keys, &mut values)
    }

    /// Reads consecutive slots.
    pub(super) fn read(&self, base: u32, length: u32) -> Result<Vec<Slot>, Errno> {
        let mut values = vec![Slot::default(); length as usize];
        let mut keys = vec![0; length as usize];
        self.execute(Command::LookupBatch, base.checked_sub(1), &mut keys, &mut values)?;
        Ok(values)
    }

    /// Handles as many elements as there are keys; both slices have the same length.
    fn execute(
        &self,
        command: Command,
        before: Option<u32>,
        keys: &mut [u32],
        values: &mut [Slot],
    ) -> Result<(), Errno> {
        let count = u32::try_from(keys.len().min(values.len())).map_err(|_| Errno::E2BIG)?;
        if count == 0 {
            return Ok(());
        }
        let mut last = 0_u32;
        let mut attribute = BatchAttribute {
            in_batch: before.as_ref().map_or(0, |key| address(key)),
            out_batch: address(&raw mut last),
            keys: address(keys.as_mut_ptr()),
            values: address(values.as_mut_ptr()),
            count,
            map_fd: self.map.fd().as_fd().as_raw_fd().cast_unsigned(),
            element_flags: 0,
            flags: 0,
        };
        // SAFETY: the kernel reads or writes `count` keys and values, of which both slices have at least as many, of
        // the sizes checked by `new`, and one key behind `in_batch` and `out_batch`; all of them outlive the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                command as libc::c_long,
                &raw mut attribute,
                size_of::<BatchAttribute>(),
            )
        };
        Errno::result(result)?;
        // Fewer than asked for are the end of the array.
        if attribute.count == count {
            Ok(())
        } else {
            Err(Errno::ENOENT)
        }
    }
}

fn address<T>(pointer: *const T) -> u64 {
    pointer.expose_provenance() as u64
}
