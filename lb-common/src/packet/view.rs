//! The bytes of a packet.
//!
//! A [`View`] proves with one bounds check that `N` bytes are there and then reads fields at
//! constant offsets that the compiler checks. It borrows the packet, so that it cannot outlive a
//! call that moves the packet's data.
#![expect(
    unsafe_code,
    reason = "accesses packet bytes after a bounds check by the constructor's caller"
)]

use core::marker::PhantomData;

/// `N` readable bytes of a packet.
#[derive(Clone, Copy)]
pub struct View<'packet, const N: usize> {
    start: *const u8,
    packet: PhantomData<&'packet [u8]>,
}

macro_rules! load {
    ($name:ident, $type:ty, $size:literal) => {
        /// The field at offset `AT`, in the byte order of the packet.
        #[inline(always)]
        pub fn $name<const AT: usize>(&self) -> $type {
            const { assert!(AT + size_of::<$type>() <= N) };
            // LLVM's BPF backend splits an unaligned read into single bytes. The kernel's verifier
            // allows the whole read.
            #[cfg(target_arch = "bpf")]
            {
                let value: u64;
                // SAFETY: the constant assertion keeps the read inside the N bytes that `new`
                // guarantees.
                unsafe {
                    core::arch::asm!(
                        concat!("{value} = *(", $size, " *)({start} + {at})"),
                        value = lateout(reg) value,
                        start = in(reg) self.start,
                        at = const AT,
                        options(pure, readonly, nostack, preserves_flags),
                    );
                }
                value as $type
            }
            #[cfg(not(target_arch = "bpf"))]
            {
                // SAFETY: the constant assertion keeps the read inside the N bytes that `new`
                // guarantees.
                unsafe { self.start.add(AT).cast::<$type>().read_unaligned() }
            }
        }
    };
}

impl<const N: usize> View<'_, N> {
    /// A view of the bytes at `start`.
    ///
    /// # Safety
    /// `N` bytes from `start` are readable while the returned value lives.
    #[inline(always)]
    pub unsafe fn new(start: *const u8) -> Self {
        Self {
            start,
            packet: PhantomData,
        }
    }

    load!(u8, u8, "u8");
    load!(u16, u16, "u16");
    load!(u32, u32, "u32");
}

/// `N` readable and writable bytes of a packet.
pub struct ViewMut<'packet, const N: usize> {
    start: *mut u8,
    packet: PhantomData<&'packet mut [u8]>,
}

macro_rules! store {
    ($name:ident, $type:ty, $size:literal) => {
        /// Writes the field at offset `AT`; the value is in the byte order of the packet.
        #[inline(always)]
        pub fn $name<const AT: usize>(&mut self, value: $type) {
            const { assert!(AT + size_of::<$type>() <= N) };
            #[cfg(target_arch = "bpf")]
            // SAFETY: the constant assertion keeps the write inside the N bytes that `new`
            // guarantees.
            unsafe {
                core::arch::asm!(
                    concat!("*(", $size, " *)({start} + {at}) = {value}"),
                    value = in(reg) u64::from(value),
                    start = in(reg) self.start,
                    at = const AT,
                    options(nostack, preserves_flags),
                );
            }
            #[cfg(not(target_arch = "bpf"))]
            // SAFETY: the constant assertion keeps the write inside the N bytes that `new`
            // guarantees.
            unsafe {
                self.start.add(AT).cast::<$type>().write_unaligned(value);
            }
        }
    };
}

impl<const N: usize> ViewMut<'_, N> {
    /// A view of the bytes at `start`.
    ///
    /// # Safety
    /// `N` bytes from `start` are readable, writable and not otherwise borrowed while the returned
    /// value lives.
    #[inline(always)]
    pub unsafe fn new(start: *mut u8) -> Self {
        Self {
            start,
            packet: PhantomData,
        }
    }

    /// The same bytes for reading.
    #[inline(always)]
    pub fn as_view(&self) -> View<'_, N> {
        View {
            start: self.start,
            packet: PhantomData,
        }
    }

    store!(set_u16, u16, "u16");
    store!(set_u32, u32, "u32");
}
