//! Tests of Services whose manifests leave fields to the API server.

use std::net::IpAddr;

use super::*;

const PLAIN: &str = "apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80}]}
";

/// Returns the cluster IP and the NodePort of the Service in the next change.
async fn next_service(source: &mut Source) -> (IpAddr, i32) {
    loop {
        let change = timeout(TIMEOUT, source.changes.recv()).await.unwrap().unwrap();
        let objects = match change {
            Change::Apply(object) => vec![object],
            Change::Replace { objects, .. } => objects,
            Change::Delete(_) => continue,
        };
        for object in objects {
            let Object::Service(service) = object else {
                continue;
            };
            let spec = service.spec.unwrap();
            let ports = spec.ports.unwrap();
            return (
                spec.cluster_ip.unwrap().parse().unwrap(),
                ports[0].node_port.unwrap(),
            );
        }
    }
}

/// Starts a source with the directories of an earlier one.
fn start(directory: &Path) -> Source {
    let path = directory.join("manifests");
    fs::create_dir_all(&path).unwrap();
    let manifests = Manifests::open(&path, allocation(&directory.join("state"))).unwrap();
    let problems = manifests.problems();
    let (sender, changes) = mpsc::channel(100);
    tokio::spawn(manifests.run(sender));
    Source {
        path,
        changes,
        problems,
        _directory: tempfile::tempdir().unwrap(),
    }
}

async fn expect_problem(source: &mut Source, text: &str, expected: bool) {
    let is_there =
        |problems: &Vec<Problem>| problems.iter().any(|problem| problem.to_string().contains(text));
    let found = timeout(
        TIMEOUT,
        source
            .problems
            .wait_for(|problems| is_there(problems) == expected),
    )
    .await
    .is_ok();
    assert!(
        found,
        "{text:?} is a problem: expected {expected}; {:?}",
        source.problems.borrow()
    );
}

#[tokio::test]
async fn allocated_values_survive_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let mut source = start(directory.path());
    source.write("web.yaml", PLAIN);
    let given = next_service(&mut source).await;
    drop(source);
    let text = fs::read_to_string(directory.path().join("state/allocations.json")).unwrap();
    assert!(
        text.contains(&given.0.to_string()) && text.contains(&given.1.to_string()),
        "{text}"
    );
    // The file takes precedence over the hash.
    fs::write(
        directory.path().join("state/allocations.json"),
        text.replace(&given.0.to_string(), "10.96.77.77"),
    )
    .unwrap();
    let mut source = start(directory.path());
    assert_eq!(
        next_service(&mut source).await,
        ("10.96.77.77".parse().unwrap(), given.1)
    );
}

#[tokio::test]
async fn nodes_with_the_same_files_allocate_the_same_values() {
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut given = Vec::new();
    for directory in &directories {
        let mut source = start(directory.path());
        source.write("web.yaml", PLAIN);
        given.push(next_service(&mut source).await);
    }
    assert_eq!(given[0], given[1]);
}

#[tokio::test]
async fn an_edit_of_other_fields_keeps_the_allocated_values() {
    let directory = tempfile::tempdir().unwrap();
    let mut source = start(directory.path());
    source.write("web.yaml", PLAIN);
    let given = next_service(&mut source).await;
    source.replace("web.yaml", &PLAIN.replace("app: web", "app: other"));
    assert_eq!(next_service(&mut source).await, given);
    // A comment does not change the object.
    source.replace(
        "web.yaml",
        &format!("# hello\n{}", PLAIN.replace("app: web", "app: other")),
    );
    source.expect_no_change("marker").await;
}

#[tokio::test]
async fn without_a_state_file_values_come_from_the_hash() {
    let directory = tempfile::tempdir().unwrap();
    let mut sound = start(directory.path());
    sound.write("web.yaml", PLAIN);
    let given = next_service(&mut sound).await;
    drop(sound);
    fs::remove_dir_all(directory.path().join("state")).unwrap();
    fs::write(directory.path().join("state"), "in the way").unwrap();
    let mut source = start(directory.path());
    assert_eq!(next_service(&mut source).await, given);
    let fault = "state/allocations.json: cannot be written";
    expect_problem(&mut source, fault, true).await;
    // When saving works again, the allocations are saved without another change.
    fs::remove_file(directory.path().join("state")).unwrap();
    expect_problem(&mut source, fault, false).await;
    assert!(directory.path().join("state/allocations.json").exists());
}

#[tokio::test]
async fn a_failed_allocation_is_a_problem_of_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let mut source = start(directory.path());
    let both = PLAIN.replace("type: NodePort", "ipFamilies: [IPv7]");
    source.write("web.yaml", &format!("# hello\n---\n{both}"));
    let fault =
        "web.yaml:3: Service default/web: spec.ipFamilies \"IPv7\" is unknown and ignored: use IPv4 or IPv6";
    expect_problem(&mut source, fault, true).await;
}

#[tokio::test]
async fn only_the_first_problems_are_reported() {
    let directory = tempfile::tempdir().unwrap();
    let mut source = start(directory.path());
    let documents = (100..160).map(|number| {
        let name = format!("name: s{number}");
        PLAIN
            .replace("name: web", &name)
            .replace("type: NodePort", "ipFamilies: [IPv7]")
    });
    let documents: Vec<_> = documents.collect();
    source.write("web.yaml", &documents.join("---\n"));
    let more = "web.yaml:96: Service default/s119: spec.ipFamilies \"IPv7\" is unknown and ignored: use IPv4 or IPv6 (and 40 \
                more messages about this and other Services)";
    expect_problem(&mut source, more, true).await;
    assert_eq!(source.problems.borrow().len(), 20);
}
