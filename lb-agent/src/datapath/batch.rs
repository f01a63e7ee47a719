//! Arrays that are read and written in bulk: Maglev tables and Services are large, and aya has a system call for each
//! element.
#![expect(unsafe_code, reason = "aya has no batch operations")]

use std::os::fd::{AsFd as _, AsRawFd as _};

use std::marker::PhantomData;

use aya::Pod;
use aya::maps::MapData;
use nix::errno::Errno;
use nix::libc;

/// An array map of elements of one type.
#[derive(Debug)]
pub(super) struct BatchArray<T> {
    map: MapData,
    length: u32,
    element: PhantomData<T>,
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

impl<T: Pod + Default> BatchArray<T> {
    /// The array in a map; `None` if the map is not such an array.
    pub(super) fn new(map: MapData) -> Option<Self> {
        let info = map.info().ok()?;
        let fits =
            info.key_size() as usize == size_of::<u32>() && info.value_size() as usize == size_of::<T>();
        fits.then_some(Self {
            length: info.max_entries(),
            map,
            element: PhantomData,
        })
    }

    /// Number of elements.
    pub(super) fn length(&self) -> u32 {
        self.length
    }

    /// Writes consecutive elements. If it fails, a first part of them may be written.
    pub(super) fn write(&self, base: u32, elements: &[T]) -> Result<(), Errno> {
        self.write_some((base..).take(elements.len()).collect(), elements.to_vec())
            .map_err(|(_, error)| error)
    }

    /// Writes the elements at these indices. If it fails, so many of the first are written.
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

    /// Handles as many elements as there are keys; both slices have the same length. If it fails, so many of the first
    /// are handled.
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
        // The kernel says how many it handled, unless it refused the whole.
        let handled = attribute.count;
        match Errno::result(result) {
            Ok(_) if handled == count => Ok(()),
            // The end of the array.
            Ok(_) => Err((handled as usize, Errno::ENOENT)),
            Err(error) if handled < count => Err((handled as usize, error)),
            Err(error) => Err((0, error)),
        }
    }
}

fn address<T>(pointer: *const T) -> u64 {
    pointer.expose_provenance() as u64
}
