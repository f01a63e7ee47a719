//! The lab keeps its own promises.
#[test]
fn t() {
    let start = std::time::Instant::now();
    let lab = lb_tests::lab::Lab::new("x").unwrap();
    let node1 = lab.node("node-1").unwrap();
    let node2 = lab.node("node-2").unwrap();
    let web = node1.pod("web-1").unwrap();
    let b = node2.pod("b").unwrap();
    let client = lab.outside_client("client-1").unwrap();
    println!("{:?}", start.elapsed());
    let server = web
        .serve()
        .http(8080)
        .udp(53)
        .stream(5001)
        .echo(7)
        .start()
        .unwrap();
    println!("{:?}", start.elapsed());
    for from in [&client, &b, node1.host(), node2.host(), &web] {
        for to in web.addresses().both() {
            let r = from.http(to, 8080).count(10).concurrency(2).run().unwrap();
            println!("{r:?}");
            let r = from.udp(to, 53).count(10).run().unwrap();
            println!("{r:?}");
            let r = from.udp(to, 53).connected().count(10).run().unwrap();
            println!("{r:?}");
            let r = from.stream(to, 5001).mebibytes(20).run().unwrap();
            println!("{r:?}");
            let mut t = from.talk(to, 7).unwrap();
            println!("{:?} {:?}", t.next_event().unwrap(), t.exchange("hi").unwrap());
        }
    }
    println!("{:?}", start.elapsed());
    let start = std::time::Instant::now();
    drop(lab);
    println!("{:?}", start.elapsed());
    drop(server);
}
