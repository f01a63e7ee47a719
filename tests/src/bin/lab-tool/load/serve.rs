//! The server.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::thread;

use anyhow::{Context as _, Result};
use lb_tests::bench::load::{CHUNK, Role};

/// Threads that accept connections or datagrams of one port.
const THREADS: usize = 4;

/// Serves until it is killed.
pub(super) fn serve() -> Result<()> {
    for role in Role::ALL {
        for port in [role.target_port(), role.bare_port()] {
            match role {
                Role::Datagram => serve_datagrams(port),
                _ => serve_connections(role, port),
            }
            .with_context(|| format!("serve at port {port}"))?;
        }
    }
    println!("ready");
    loop {
        thread::park();
    }
}

fn serve_connections(role: Role, port: u16) -> Result<()> {
    let listener = Arc::new(TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?);
    for _ in 0..THREADS {
        let listener = Arc::clone(&listener);
        thread::spawn(move || {
            // The client reports a connection that failed.
            for stream in listener.incoming().flatten() {
                if role != Role::Close {
                    thread::spawn(move || serve_connection(role, stream));
                }
            }
        });
    }
    Ok(())
}

fn serve_connection(role: Role, mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let mut buffer = vec![0; CHUNK];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if role == Role::Echo && stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}

fn serve_datagrams(port: u16) -> Result<()> {
    let socket = Arc::new(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?);
    for _ in 0..THREADS {
        let socket = Arc::clone(&socket);
        thread::spawn(move || {
            let mut buffer = [0; 2048];
            loop {
                // An error is about an earlier answer whose client has closed its socket.
                if let Ok((length, client)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(&buffer[..length], client);
                }
            }
        });
    }
    Ok(())
}
