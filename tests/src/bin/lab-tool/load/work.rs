//! The operations.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use lb_tests::bench::load::{CHUNK, Mode, Order};

/// Size of requests, answers and datagrams.
const SIZE: usize = 64;
/// Maximum number of datagrams in flight.
const WINDOW: u32 = 32;
/// The time after which a datagram counts as lost.
const PATIENCE: Duration = Duration::from_millis(100);
/// The first source port of new flows: the first one that needs no privilege.
const FIRST_PORT: u16 = 1024;

/// Executes one operation after another.
pub(super) trait Worker: Send {
    /// Executes one operation and returns its duration.
    fn operate(&mut self) -> io::Result<Duration>;

    /// Waits until everything that was sent has arrived.
    fn finish(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Creates a worker whose persistent connections are already open.
pub(super) fn worker(order: &Order, number: u32) -> io::Result<Box<dyn Worker>> {
    let mut targets = Targets {
        to: order.to.clone(),
        next: number as usize,
    };
    Ok(match order.mode {
        Mode::Connect => Box::new(Connect { targets }),
        Mode::Request => Box::new(Request(connect(targets.next())?)),
        Mode::Datagram => Box::new(Datagram::new(targets.next())?),
        Mode::NewFlow => Box::new(NewFlow { targets }),
        Mode::Stream => Box::new(Stream(connect(targets.next())?)),
    })
}

/// The targets, used in turn.
struct Targets {
    to: Vec<SocketAddr>,
    next: usize,
}

impl Targets {
    fn next(&mut self) -> SocketAddr {
        let target = self.to[self.next % self.to.len()];
        self.next += 1;
        target
    }
}

fn connect(target: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(target)?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

struct Connect {
    targets: Targets,
}

impl Worker for Connect {
    /// The server closes first, like HTTP servers without keep-alive. So the server's side is in
    /// TIME_WAIT, and the client can reuse the port immediately. A RST would also allow that, but
    /// connections do not normally end with one.
    fn operate(&mut self) -> io::Result<Duration> {
        let start = Instant::now();
        let mut stream = TcpStream::connect(self.targets.next())?;
        let taken = start.elapsed();
        expect_end(&mut stream)?;
        Ok(taken)
    }
}

/// Waits until the server closes.
fn expect_end(stream: &mut TcpStream) -> io::Result<()> {
    match stream.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(ErrorKind::InvalidData.into()),
    }
}

struct Request(TcpStream);

impl Worker for Request {
    fn operate(&mut self) -> io::Result<Duration> {
        let start = Instant::now();
        self.0.write_all(&[7; SIZE])?;
        self.0.read_exact(&mut [0; SIZE])?;
        Ok(start.elapsed())
    }
}

struct Datagram {
    socket: UdpSocket,
    under_way: u32,
}

impl Datagram {
    fn new(target: SocketAddr) -> io::Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(target)?;
        Ok(Self { socket, under_way: 0 })
    }
}

impl Worker for Datagram {
    fn operate(&mut self) -> io::Result<Duration> {
        let start = Instant::now();
        while self.under_way < WINDOW {
            self.socket.send(&[7; SIZE])?;
            self.under_way += 1;
        }
        let received = self.socket.recv(&mut [0; SIZE]);
        // After a failure all datagrams count as lost. Late ones are counted as answers to later
        // datagrams.
        self.under_way = received.as_ref().map_or(0, |_| self.under_way - 1);
        received.map(|_| start.elapsed())
    }
}

struct NewFlow {
    targets: Targets,
}

impl Worker for NewFlow {
    fn operate(&mut self) -> io::Result<Duration> {
        let start = Instant::now();
        let socket = next_socket()?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(self.targets.next())?;
        socket.send(&[7; SIZE])?;
        socket.recv(&mut [0; SIZE])?;
        Ok(start.elapsed())
    }
}

/// A socket at the next port. A port is reused only after all others, when its flow has expired.
fn next_socket() -> io::Result<UdpSocket> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST_PORT + number % (u16::MAX - FIRST_PORT);
        match UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            other => return other,
        }
    }
}

struct Stream(TcpStream);

impl Worker for Stream {
    fn operate(&mut self) -> io::Result<Duration> {
        let start = Instant::now();
        self.0.write_all(&[7; CHUNK])?;
        Ok(start.elapsed())
    }

    /// The server closes when it has read everything.
    fn finish(&mut self) -> io::Result<()> {
        self.0.shutdown(Shutdown::Write)?;
        expect_end(&mut self.0)
    }
}
