//! Netlink requests by a thread that blocks until the kernel answers.

use std::io;

use rtnetlink::packet_core::{
    DecodeError, NetlinkBuffer, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use rtnetlink::sys::{Socket, SocketAddr};

/// The kernel sends a dump in pieces of at most 32 KiB.
const BUFFER: usize = 64 * 1024;

/// A netlink socket that is connected to the kernel. It belongs to the network namespace in which
/// it was opened.
pub(crate) struct Connection {
    socket: Socket,
    sequence_number: u32,
    buffer: Vec<u8>,
}

impl Connection {
    /// Opens a connection for a netlink protocol (`NETLINK_ROUTE` ...), in the calling thread's
    /// namespace.
    pub(crate) fn open(protocol: isize) -> io::Result<Self> {
        let socket = Socket::new(protocol)?;
        // From now on only the kernel can send to this socket.
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            sequence_number: 0,
            buffer: Vec::with_capacity(BUFFER),
        })
    }

    /// Enables strict checking: the kernel refuses attributes that it does not know, and applies
    /// the filters of dump requests.
    pub(crate) fn be_strict(&self) -> io::Result<()> {
        self.socket.set_netlink_get_strict_chk(true)
    }

    /// Sends a message with these flags (`NLM_F_*`).
    pub(crate) fn send<M: NetlinkSerializable>(&mut self, message: M, flags: u16) -> io::Result<()>
    where
        NetlinkPayload<M>: From<M>,
    {
        self.sequence_number = self.sequence_number.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence_number;
        let mut message = NetlinkMessage::new(header, message.into());
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(drop)
    }

    /// Reads the next part of the answer. Returns true if it was the last part.
    pub(crate) fn receive<M>(&mut self, mut take: impl FnMut(M)) -> io::Result<bool>
    where
        M: NetlinkDeserializable<Error = DecodeError>,
    {
        self.buffer.clear();
        self.socket.recv(&mut self.buffer, 0)?;
        let mut rest = self.buffer.as_slice();
        while !rest.is_empty() {
            let length = NetlinkBuffer::new_checked(&rest).map_err(invalid)?.length();
            let message = NetlinkMessage::<M>::deserialize(rest).map_err(invalid)?;
            let is_end = match message.payload {
                NetlinkPayload::InnerMessage(message) => {
                    take(message);
                    false
                }
                NetlinkPayload::Done(done) => check(done.code)?,
                NetlinkPayload::Error(error) => check(error.code.map_or(0, |code| code.get()))?,
                _ => false,
            };
            if is_end {
                return Ok(true);
            }
            let length = (length as usize).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
        }
        Ok(false)
    }
}

/// Evaluates the status at the end of an answer: 0 or a negative errno value.
fn check(code: i32) -> io::Result<bool> {
    match code {
        0.. => Ok(true),
        _ => Err(io::Error::from_raw_os_error(code.saturating_neg())),
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
