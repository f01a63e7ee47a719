//! The lab keeps its own promises.
#[test]
fn t() {
    let start = std::time::Instant::now();
    let lab = lb_tests::lab::Lab::new("x").unwrap();
    for n in ["node-1", "node-2"] {
        let node = lab.node(n).unwrap();
        for p in ["a", "b", "c"] {
            node.pod(&format!("{p}-{n}")).unwrap();
        }
    }
    lab.outside_client("client-1").unwrap();
    println!("{:?}", start.elapsed());
    let start = std::time::Instant::now();
    drop(lab);
    println!("{:?}", start.elapsed());
}
