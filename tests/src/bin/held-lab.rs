//! Creates a small lab, prints its name and its server's process id, and keeps it until standard
//! input ends. A test kills this process.

use std::io::{Read as _, stdin};

use anyhow::Result;
use lb_tests::lab::Lab;

fn main() -> Result<()> {
    let lab = Lab::new("held")?;
    let node = lab.node("node-1")?;
    let server = node.pod("web-1")?.serve().http(8080).start()?;
    std::fs::create_dir_all(node.pin_path())?;
    println!("made {} {}", lab.name(), server.pid());
    stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}
