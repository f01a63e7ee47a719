//! Tests with valid and broken files that are added, changed and removed.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;

use super::*;
use crate::object::{Object, ObjectKind};

/// A timeout that only expires on failure.
const TIMEOUT: Duration = Duration::from_secs(20);

struct Source {
    path: PathBuf,
    changes: Receiver<Change>,
    problems: watch_channel::Receiver<Vec<Problem>>,
    _directory: TempDir,
}

impl Source {
    /// Starts with these files. Returns the source and its first changes.
    async fn start(files: &[(&str, &str)]) -> (Self, Vec<String>) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("manifests");
        fs::create_dir(&path).unwrap();
        for (name, text) in files {
            fs::write(path.join(name), text).unwrap();
        }
        Self::start_in(directory, path).await
    }

    async fn start_in(directory: TempDir, path: PathBuf) -> (Self, Vec<String>) {
        let options = allocation(&directory.path().join("state"));
        let manifests = Manifests::open_with_limit(&path, options, 1 << 20).unwrap();
        let problems = manifests.problems();
        let (sender, changes) = mpsc::channel(100);
        tokio::spawn(manifests.run(sender));
        let mut source = Self {
            path,
            changes,
            problems,
            _directory: directory,
        };
        let mut loaded = Vec::new();
        for _ in ObjectKind::ALL {
            loaded.push(source.next().await);
        }
        (source, loaded)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path.join(name), text).unwrap();
    }

    /// Replaces a file atomically, as most editors do.
    fn replace(&self, name: &str, text: &str) {
        let new = self.path.join(".new");
        fs::write(&new, text).unwrap();
        fs::rename(new, self.path.join(name)).unwrap();
    }

    async fn next(&mut self) -> String {
        let change = timeout(TIMEOUT, self.changes.recv())
            .await
            .expect("no change arrived");
        show(&change.expect("the source ended"))
    }

    /// Waits until these are the problems, with file names instead of paths.
    async fn expect_problems(&mut self, expected: &[&str]) {
        let prefix = format!("{}/", self.path.display());
        let show = |problems: &Vec<Problem>| -> Vec<String> {
            problems
                .iter()
                .map(|problem| problem.to_string().replace(&prefix, ""))
                .collect()
        };
        let found = timeout(
            TIMEOUT,
            self.problems.wait_for(|problems| show(problems) == expected),
        )
        .await
        .is_ok();
        assert!(
            found,
            "expected {expected:#?}, found {:#?}",
            show(&self.problems.borrow())
        );
    }

    /// Checks that nothing is reported before a new file named `marker`.
    async fn expect_no_change(&mut self, marker: &str) {
        self.replace(&format!("{marker}.yaml"), &service(marker, 1));
        assert_eq!(self.next().await, format!("apply Service default/{marker}:1"));
    }
}

fn allocation(state_directory: &Path) -> AllocationOptions {
    AllocationOptions {
        cidrs: ServiceCidrs::new(&["10.96.0.0/16", "fd00:10:96::/112"].map(|text| text.parse().unwrap()))
            .unwrap(),
        state_directory: state_directory.to_owned(),
    }
}

fn show(change: &Change) -> String {
    let object = |object: &Object| match object {
        Object::Service(service) => {
            let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref());
            let port = ports.and_then(|ports| ports.first()).map_or(0, |port| port.port);
            format!("{}:{port}", object.reference())
        }
        _ => object.reference().to_string(),
    };
    match change {
        Change::Apply(applied) => format!("apply {}", object(applied)),
        Change::Delete(reference) => format!("delete {reference}"),
        Change::Replace { kind, objects } => {
            let objects: Vec<_> = objects.iter().map(object).collect();
            format!("replace {kind} [{}]", objects.join(", "))
        }
    }
}

fn service(name: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: {port}}}]}}\n"
    )
}

fn services(services: &[(&str, u16)]) -> String {
    let documents: Vec<_> = services.iter().map(|(name, port)| service(name, *port)).collect();
    documents.join("---\n")
}

const BROKEN: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: abc}]}\n";
const BROKEN_FAULT: &str = "4: Service web: spec.ports[0].port: invalid type: string \"abc\", expected i32";
const STALE: &str = "(the file's last valid content stays in effect)";

#[tokio::test]
async fn the_first_load_replaces_all_kinds() {
    let (source, loaded) = Source::start(&[
        ("a.yaml", &services(&[("web", 80), ("api", 81)])),
        ("b.yml", "apiVersion: v1\nkind: Node\nmetadata: {name: n}\n"),
        (
            "c.json",
            r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "x"}}"#,
        ),
        (
            "d.yaml",
            "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {name: c}\nspec: {cidrs: [10.96.0.0/16]}\n",
        ),
        ("d.txt", &service("text", 1)),
        (".hidden.yaml", &service("hidden", 1)),
        ("empty.yaml", ""),
    ])
    .await;
    assert_eq!(
        loaded,
        [
            "replace Node [Node n]",
            "replace Service [Service default/api:81, Service default/web:80]",
            "replace EndpointSlice []",
            "replace Pod [Pod x/p]",
            "replace ServiceCIDR [ServiceCIDR c]"
        ]
    );
    assert_eq!(*source.problems.borrow(), []);
}

#[tokio::test]
async fn edits_report_only_what_changed() {
    let (mut source, _) = Source::start(&[("a.yaml", &services(&[("web", 80), ("api", 81)]))]).await;
    source.replace("a.yaml", &services(&[("web", 80), ("api", 82)]));
    assert_eq!(source.next().await, "apply Service default/api:82");
    source.write("a.yaml", &services(&[("web", 83), ("api", 82)]));
    assert_eq!(source.next().await, "apply Service default/web:83");
    source.write("b.yaml", &service("new", 84));
    assert_eq!(source.next().await, "apply Service default/new:84");
    source.replace("a.yaml", &service("web", 83));
    assert_eq!(source.next().await, "delete Service default/api");
    fs::remove_file(source.path.join("b.yaml")).unwrap();
    assert_eq!(source.next().await, "delete Service default/new");
    fs::rename(source.path.join("a.yaml"), source.path.join("c.yaml")).unwrap();
    source.expect_no_change("marker").await;
}

#[tokio::test]
async fn writing_in_place_never_shows_half_a_file() {
    use std::io::Write;
    let (mut source, _) = Source::start(&[("a.yaml", &services(&[("web", 80), ("api", 81)]))]).await;
    let mut file = fs::File::create(source.path.join("a.yaml")).unwrap();
    // The file is empty now. Another change makes the source read the directory.
    source.expect_no_change("marker").await;
    file.write_all(service("web", 80).as_bytes()).unwrap();
    source.expect_no_change("another").await;
    file.write_all(format!("---\n{}", service("api", 82)).as_bytes())
        .unwrap();
    drop(file);
    assert_eq!(source.next().await, "apply Service default/api:82");
}

#[tokio::test]
async fn a_file_that_stays_open_is_read_after_a_timeout() {
    use std::io::Write;
    let (mut source, _) = Source::start(&[]).await;
    let mut file = fs::File::create(source.path.join("a.yaml")).unwrap();
    file.write_all(service("web", 80).as_bytes()).unwrap();
    assert_eq!(source.next().await, "apply Service default/web:80");
}

#[tokio::test]
async fn broken_files_keep_their_last_valid_content() {
    let (mut source, _) = Source::start(&[("a.yaml", &services(&[("web", 80), ("api", 81)]))]).await;
    source.replace("a.yaml", BROKEN);
    source
        .expect_problems(&[&format!("a.yaml:{BROKEN_FAULT} {STALE}")])
        .await;
    source.expect_no_change("one").await;
    source.replace("a.yaml", "a: b: c\n");
    source
        .expect_problems(&[&format!(
            "a.yaml:1: mapping values are not allowed in this context {STALE}"
        )])
        .await;
    source.expect_no_change("two").await;
    source.replace("a.yaml", &service("web", 82));
    assert_eq!(source.next().await, "apply Service default/web:82");
    assert_eq!(source.next().await, "delete Service default/api");
    source.expect_problems(&[]).await;
}

#[tokio::test]
async fn valid_documents_of_a_file_that_was_never_valid_are_used() {
    let text = format!("{BROKEN}---\n{}", service("api", 81));
    let (mut source, loaded) = Source::start(&[("a.yaml", &text), ("b.yaml", &service("other", 82))]).await;
    assert_eq!(
        loaded[1],
        "replace Service [Service default/api:81, Service default/other:82]"
    );
    source.expect_problems(&[&format!("a.yaml:{BROKEN_FAULT}")]).await;
    source.replace("a.yaml", &services(&[("web", 80), ("api", 81)]));
    assert_eq!(source.next().await, "apply Service default/web:80");
    source.expect_problems(&[]).await;
}

#[tokio::test]
async fn the_first_file_wins_if_two_contain_the_same_object() {
    let (mut source, loaded) = Source::start(&[
        ("b.yaml", &service("web", 80)),
        ("c.yaml", &services(&[("api", 1), ("web", 81), ("api", 2)])),
    ])
    .await;
    assert_eq!(
        loaded[1],
        "replace Service [Service default/api:1, Service default/web:80]"
    );
    source
        .expect_problems(&[
            "c.yaml:6: Service default/web is ignored: it is already in b.yaml:1",
            "c.yaml:11: Service default/api is ignored: it is already in c.yaml:1",
        ])
        .await;
    fs::remove_file(source.path.join("b.yaml")).unwrap();
    assert_eq!(source.next().await, "apply Service default/web:81");
    source.write("a.yaml", &service("web", 79));
    assert_eq!(source.next().await, "apply Service default/web:79");
}

#[tokio::test]
async fn unknown_kinds_do_not_affect_other_documents() {
    let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\n";
    let (mut source, loaded) =
        Source::start(&[("a.yaml", &format!("{secret}---\n{}", service("web", 80)))]).await;
    assert_eq!(loaded[1], "replace Service [Service default/web:80]");
    source
        .expect_problems(&[
            "a.yaml:1: v1 Secret s is ignored: only v1 Service, Node, Pod and discovery.k8s.io/v1 \
             EndpointSlice are read",
        ])
        .await;
}

#[tokio::test]
async fn unreadable_files_keep_their_last_valid_content() {
    let (mut source, _) = Source::start(&[("a.yaml", &service("web", 80))]).await;
    let file = source.path.join("a.yaml");
    source.replace("a.yaml", &format!("# {}", "x".repeat(1 << 20)));
    source
        .expect_problems(&[&format!(
            "a.yaml: 1048578 bytes are more than the limit of 1048576: split the file {STALE}"
        )])
        .await;
    let new = source.path.join(".new");
    fs::write(&new, b"ab\xff").unwrap();
    fs::rename(&new, &file).unwrap();
    source
        .expect_problems(&[&format!("a.yaml: byte 2 is not UTF-8 {STALE}")])
        .await;
    fs::remove_file(&file).unwrap();
    assert_eq!(source.next().await, "delete Service default/web");
    source.expect_problems(&[]).await;
    fs::create_dir(&file).unwrap();
    source.expect_problems(&["a.yaml: not a regular file"]).await;
    fs::remove_dir(&file).unwrap();
    symlink("nowhere", &file).unwrap();
    source
        .expect_problems(&["a.yaml: cannot be read: No such file or directory (os error 2)"])
        .await;
    source.replace("a.yaml", &service("web", 80));
    assert_eq!(source.next().await, "apply Service default/web:80");
    source.expect_problems(&[]).await;
}

#[tokio::test]
async fn changed_permissions_are_noticed() {
    let (mut source, _) = Source::start(&[("a.yaml", &service("web", 80))]).await;
    let file = source.path.join("a.yaml");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).unwrap();
    if fs::read(&file).is_ok() {
        // Root can read every file.
        return;
    }
    source
        .expect_problems(&[&format!(
            "a.yaml: cannot be read: Permission denied (os error 13) {STALE}"
        )])
        .await;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    source.expect_problems(&[]).await;
    source.expect_no_change("marker").await;
}

#[tokio::test]
async fn an_update_of_a_config_map_volume_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_owned();
    let version = |version: &str, port| {
        fs::create_dir(path.join(version)).unwrap();
        fs::write(path.join(version).join("web.yaml"), service("web", port)).unwrap();
    };
    let switch = |version: &str| {
        symlink(version, path.join("..data_tmp")).unwrap();
        fs::rename(path.join("..data_tmp"), path.join("..data")).unwrap();
    };
    version("..1", 80);
    switch("..1");
    symlink(Path::new("..data/web.yaml"), path.join("web.yaml")).unwrap();
    let (mut source, loaded) = Source::start_in(directory, path.clone()).await;
    assert_eq!(loaded[1], "replace Service [Service default/web:80]");
    version("..2", 81);
    switch("..2");
    assert_eq!(source.next().await, "apply Service default/web:81");
}

#[tokio::test]
async fn a_recreated_directory_is_read_again() {
    let (mut source, _) = Source::start(&[("a.yaml", &service("web", 80))]).await;
    let aside = source.path.with_extension("aside");
    fs::rename(&source.path, &aside).unwrap();
    let reason =
        "cannot be read, so its previous content stays in effect: No such file or directory (os error 2)";
    let problem = format!("{}: {reason}", source.path.display());
    source.expect_problems(&[&problem]).await;
    fs::rename(&aside, &source.path).unwrap();
    source.expect_problems(&[]).await;
    source.expect_no_change("one").await;
    // The new directory may get the inode number of the old one.
    fs::rename(&source.path, &aside).unwrap();
    fs::remove_dir_all(&aside).unwrap();
    source.expect_problems(&[&problem]).await;
    fs::create_dir(&source.path).unwrap();
    source.write("a.yaml", &service("web", 81));
    let mut changes = [source.next().await, source.next().await];
    changes.sort();
    assert_eq!(
        changes,
        ["apply Service default/web:81", "delete Service default/one"]
    );
    source.expect_no_change("two").await;
}

#[tokio::test]
async fn the_directory_may_be_a_symbolic_link() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("current");
    for (release, port) in [("1", 80), ("2", 81)] {
        fs::create_dir(directory.path().join(release)).unwrap();
        fs::write(
            directory.path().join(release).join("a.yaml"),
            service("web", port),
        )
        .unwrap();
    }
    symlink("1", &path).unwrap();
    let (mut source, _) = Source::start_in(directory, path.clone()).await;
    symlink("2", path.with_extension("new")).unwrap();
    fs::rename(path.with_extension("new"), &path).unwrap();
    assert_eq!(source.next().await, "apply Service default/web:81");
    source.expect_no_change("marker").await;
}

#[tokio::test]
async fn a_directory_that_is_missing_at_the_start_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let error = Manifests::open(&directory.path().join("missing"), allocation(directory.path()))
        .err()
        .unwrap()
        .to_string();
    assert!(error.contains("missing: create it"), "{error}");
}

#[tokio::test]
async fn the_source_ends_when_its_receiver_closes() {
    let directory = tempfile::tempdir().unwrap();
    let (sender, mut changes) = mpsc::channel(100);
    let task = tokio::spawn(
        Manifests::open(directory.path(), allocation(directory.path()))
            .unwrap()
            .run(sender),
    );
    assert!(matches!(
        changes.recv().await,
        Some(Change::Replace {
            kind: ObjectKind::Node,
            ..
        })
    ));
    drop(changes);
    timeout(TIMEOUT, task).await.unwrap().unwrap().unwrap();
}

/// Directory events do not report changes behind a link.
#[tokio::test]
async fn changes_behind_symbolic_links_are_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let (path, elsewhere) = (
        directory.path().join("manifests"),
        directory.path().join("elsewhere"),
    );
    let (target, new) = (elsewhere.join("target"), elsewhere.join("new"));
    fs::create_dir(&path).unwrap();
    fs::create_dir(&elsewhere).unwrap();
    fs::write(&target, service("web", 80)).unwrap();
    symlink(&target, path.join("web.yaml")).unwrap();
    let (mut source, loaded) = Source::start_in(directory, path.clone()).await;
    assert_eq!(loaded[1], "replace Service [Service default/web:80]");

    fs::write(&target, service("web", 81)).unwrap();
    assert_eq!(source.next().await, "apply Service default/web:81");
    fs::write(&new, service("web", 82)).unwrap();
    fs::rename(&new, &target).unwrap();
    assert_eq!(source.next().await, "apply Service default/web:82");

    fs::rename(&target, &new).unwrap();
    let gone = "web.yaml: cannot be read: No such file or directory (os error 2) \
        (the file's last valid content stays in effect)";
    source.expect_problems(&[gone]).await;
    source.expect_no_change("marker").await;
    fs::write(&new, service("web", 83)).unwrap();
    fs::rename(&new, &target).unwrap();
    assert_eq!(source.next().await, "apply Service default/web:83");
    source.expect_problems(&[]).await;

    // A link that is added later, and then points to another target.
    symlink(&target, path.join("later.yaml")).unwrap();
    fs::remove_file(path.join("web.yaml")).unwrap();
    fs::write(&new, service("api", 1)).unwrap();
    symlink(&new, path.join(".later")).unwrap();
    fs::rename(path.join(".later"), path.join("later.yaml")).unwrap();
    assert_eq!(source.next().await, "apply Service default/api:1");
    assert_eq!(source.next().await, "delete Service default/web");
    fs::write(&new, service("api", 2)).unwrap();
    assert_eq!(source.next().await, "apply Service default/api:2");
}

mod given;
