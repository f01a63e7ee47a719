//! Developer and user tasks.
fn main() {}
