//! Questions to the kernel over netlink by a thread that waits for the answer.

use std::io;

use rtnetlink::packet_core::{
    DecodeError, NetlinkBuffer, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use rtnetlink::sys::{Socket, SocketAddr};

/// The kernel hands out a dump in pieces of at most 32 KiB.
const BUFFER: usize = 64 * 1024;

/// A connection with the kernel about the network namespace that it was opened in.
pub(crate) struct Connection {
    socket: Socket,
    sequence_number: u32,
    buffer: Vec<u8>,
}

impl Connection {
    /// For a netlink protocol (`NETLINK_ROUTE` ...), in the namespace that the calling thread is
    /// in.
    pub(crate) fn open(protocol: isize) -> io::Result<Self> {
        let socket = Socket::new(protocol)?;
        // From now on only the kernel can send to it.
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            sequence_number: 0,
            buffer: Vec::with_capacity(BUFFER),
        })
    }

    /// Has the kernel take requests by the letter: it refuses what it does not know, and heeds the
    /// filters of dumps.
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

    /// Reads what the kernel has to say next. True once it has said everything.
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

/// The end of an answer: an error's number as the kernel returns it, or 0.
fn check(code: i32) -> io::Result<bool> {
    match code {
        0.. => Ok(true),
        _ => Err(io::Error::from_raw_os_error(code.saturating_neg())),
    }
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
