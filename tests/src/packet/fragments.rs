//! Splits packets into fragments.

use etherparse::IpNumber;

use super::build::{Build, checksum};

/// Offset of the IP header.
const NETWORK: usize = 14;

impl Build {
    /// The fragments of the packet, which has neither VLAN tags nor IP options. All but the last
    /// have `length` bytes of its content, a multiple of 8.
    pub fn split(&self, identification: u16, length: usize) -> Vec<Vec<u8>> {
        let bytes = self.bytes();
        let is_ipv4 = bytes[NETWORK] >> 4 == 4;
        let (header, content) = bytes.split_at(NETWORK + if is_ipv4 { 20 } else { 40 });
        let count = content.len().div_ceil(length);
        let fragment = |(index, part): (usize, &[u8])| {
            let offset = u16::try_from(index * length).expect("fits");
            let more = index + 1 < count;
            let header = if is_ipv4 {
                header4(header, identification, offset, more, part.len())
            } else {
                header6(header, identification, offset, more, part.len())
            };
            [header.as_slice(), part].concat()
        };
        content.chunks(length).enumerate().map(fragment).collect()
    }
}

fn header4(header: &[u8], identification: u16, offset: u16, more: bool, length: usize) -> Vec<u8> {
    const MORE: u16 = 0x2000;
    let total = u16::try_from(20 + length).expect("fits");
    let fragment = (offset / 8) | if more { MORE } else { 0 };
    let mut header = header.to_vec();
    set(&mut header, 2, total);
    set(&mut header, 4, identification);
    set(&mut header, 6, fragment);
    set(&mut header, 10, 0);
    let sum = checksum(&header[NETWORK..]);
    set(&mut header, 10, sum);
    header
}

fn header6(header: &[u8], identification: u16, offset: u16, more: bool, length: usize) -> Vec<u8> {
    const NEXT_HEADER: usize = NETWORK + 6;
    let mut header = header.to_vec();
    set(&mut header, 4, u16::try_from(8 + length).expect("fits"));
    let next = std::mem::replace(&mut header[NEXT_HEADER], IpNumber::IPV6_FRAGMENTATION_HEADER.0);
    header.extend_from_slice(&[next, 0]);
    header.extend_from_slice(&(offset | u16::from(more)).to_be_bytes());
    header.extend_from_slice(&u32::from(identification).to_be_bytes());
    header
}

/// Writes a field of the IP header.
fn set(header: &mut [u8], field: usize, value: u16) {
    header[NETWORK + field..NETWORK + field + 2].copy_from_slice(&value.to_be_bytes());
}
