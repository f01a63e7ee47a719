//! Arrays that are read and written in bulk. Maglev tables and Services have many elements, and aya
//! makes a system call for each element.
#![expect(unsafe_code, reason = "aya has no batch operations")]

use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::atomic::{Ordering, fence};

use aya::Pod;
use aya::maps::MapData;
use nix::errno::Errno;
use nix::libc;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::unistd::{SysconfVar, sysconf};

use super::bpf::{Command, address, bpf};

/// Runs of at least this many elements are written through a memory mapping, if the map supports
/// it. In a batch call the kernel takes 150 ns for each element. Mapping and unmapping pages takes
/// some microseconds.
const MAPPED: usize = 64;

/// The flag of arrays that can be mapped into memory
/// (<https://github.com/torvalds/linux/blob/v5.5/include/uapi/linux/bpf.h>).
const BPF_F_MMAPABLE: u32 = 1 << 10;

/// The kernel rounds the size of elements up to a multiple of this (`array_map_alloc`,
/// <https://github.com/torvalds/linux/blob/v6.18/kernel/bpf/arraymap.c>).
const ALIGNMENT: usize = 8;

/// An array map of elements of one type.
#[derive(Debug)]
pub(super) struct BatchArray<T> {
    map: MapData,
    length: u32,
    /// Whether the array can be mapped into memory. Arrays pinned by an older agent cannot.
    is_mappable: bool,
    element: PhantomData<T>,
}

/// The part of `union bpf_attr` that the batch commands use (Linux 5.6).
#[repr(C)]
struct BatchAttribute {
    /// Pointer to the key after which to begin. Null begins with the first key.
    in_batch: u64,
    /// Pointer to where the kernel writes the last key.
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    element_flags: u64,
    flags: u64,
}

impl<T: Pod + Default> BatchArray<T> {
    /// Wraps a map. `None` if the map is not an array with elements of this type.
    pub(super) fn new(map: MapData) -> Option<Self> {
        let info = map.info().ok()?;
        let fits =
            info.key_size() as usize == size_of::<u32>() && info.value_size() as usize == size_of::<T>();
        fits.then_some(Self {
            length: info.max_entries(),
            is_mappable: info.map_flags() & BPF_F_MMAPABLE != 0 && size_of::<T>().is_multiple_of(ALIGNMENT),
            map,
            element: PhantomData,
        })
    }

    /// Number of elements.
    pub(super) fn length(&self) -> u32 {
        self.length
    }

    /// Writes consecutive elements. If this fails, a prefix of them may be written.
    pub(super) fn write(&self, base: u32, elements: &[T]) -> Result<(), Errno> {
        if self.is_mappable && elements.len() >= MAPPED {
            return self.write_mapped(base, elements);
        }
        self.write_some((base..).take(elements.len()).collect(), elements.to_vec())
            .map_err(|(_, error)| error)
    }

    /// Writes consecutive elements through a memory mapping. A program that sees what a later
    /// system call publishes also sees these elements.
    fn write_mapped(&self, base: u32, elements: &[T]) -> Result<(), Errno> {
        let end = (base as usize).checked_add(elements.len());
        if end.is_none_or(|end| end > self.length as usize) {
            return Err(Errno::ENOENT);
        }
        let page = sysconf(SysconfVar::PAGE_SIZE)?.and_then(|size| usize::try_from(size).ok());
        let start = base as usize * size_of::<T>();
        let before = start % page.ok_or(Errno::EINVAL)?;
        let length = NonZeroUsize::new(before + size_of_val(elements)).ok_or(Errno::EINVAL)?;
        let offset = libc::off_t::try_from(start - before).map_err(|_| Errno::EOVERFLOW)?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: the kernel chooses the address, so no existing mapping is replaced.
        let pages = unsafe {
            mmap(
                None,
                length,
                protection,
                MapFlags::MAP_SHARED,
                self.map.fd(),
                offset,
            )
        }?;
        // SAFETY: `before` is within the mapping. The pages and `start` are aligned for any element
        // that is aligned to [`ALIGNMENT`].
        let first = unsafe { pages.byte_add(before) }.cast::<T>();
        for (position, element) in elements.iter().enumerate() {
            // SAFETY: the mapping holds all elements after `before`, and the check above proves
            // that the array does too.
            unsafe { first.add(position).write_volatile(*element) }
        }
        fence(Ordering::Release);
        // SAFETY: the pages were mapped above with this length, and no reference into them is left.
        unsafe { munmap(pages, length.get()) }
    }

    /// Writes the elements at these indices. If this fails, returns how many of them, from the
    /// first on, are written.
    pub(super) fn write_some(
        &self,
        mut indices: Vec<u32>,
        mut elements: Vec<T>,
    ) -> Result<(), (usize, Errno)> {
        self.execute(Command::UpdateBatch, None, &mut indices, &mut elements)
    }

    /// Reads consecutive elements.
    pub(super) fn read(&self, base: u32, length: u32) -> Result<Vec<T>, Errno> {
        let mut values = vec![T::default(); length as usize];
        let mut keys = vec![0; length as usize];
        self.execute(Command::LookupBatch, base.checked_sub(1), &mut keys, &mut values)
            .map_err(|(_, error)| error)?;
        Ok(values)
    }

    /// Processes as many elements as there are keys. Both slices have the same length. If this
    /// fails, returns how many elements, from the first on, were processed.
    fn execute(
        &self,
        command: Command,
        before: Option<u32>,
        keys: &mut [u32],
        values: &mut [T],
    ) -> Result<(), (usize, Errno)> {
        let count = u32::try_from(keys.len().min(values.len())).map_err(|_| (0, Errno::E2BIG))?;
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
        // SAFETY: the kernel reads or writes `count` keys and values, and both slices have at least
        // that many. `new` has checked the sizes of keys and values. `in_batch` and `out_batch`
        // point to one key each. All of them outlive the call.
        let result = unsafe { bpf(command, &mut attribute) };
        // The kernel writes how many elements it processed, unless it rejected the whole call.
        let handled = attribute.count;
        match result {
            Ok(_) if handled == count => Ok(()),
            // The array ended early.
            Ok(_) => Err((handled as usize, Errno::ENOENT)),
            Err(error) if handled < count => Err((handled as usize, error)),
            Err(error) => Err((0, error)),
        }
    }
}
