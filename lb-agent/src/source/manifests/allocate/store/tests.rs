//! Tests of a file that is valid, truncated, foreign, or not writable.

use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::super::pool::Value;
use super::super::state::{Given, Wish};
use super::*;
use crate::network::Family;

fn state(address: &str) -> AllocationState {
    let mut given = Given::default();
    let address = address.parse().unwrap();
    given.set(Wish::Address(Family::of(address)), Value::Address(address));
    given.set(Wish::NodePort(80), Value::Port(30_100));
    given.set(Wish::HealthCheck, Value::Port(30_101));
    AllocationState {
        services: [("default/web".to_owned(), given.clone())].into(),
        gone: vec![("default/old".to_owned(), given)],
    }
}

fn open(directory: &TempDir) -> (Store, AllocationState) {
    Store::open(&directory.path().join("state"))
}

fn file(directory: &TempDir) -> PathBuf {
    directory.path().join("state").join(FILE)
}

#[test]
fn a_saved_state_is_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, found) = open(&directory);
    assert_eq!(found, AllocationState::default());
    // An empty state creates no file.
    store.save(&AllocationState::default()).unwrap();
    assert!(!directory.path().join("state").exists());
    for address in ["10.96.7.8", "fd00::7"] {
        store.save(&state(address)).unwrap();
        assert_eq!(open(&directory).1, state(address));
    }
    let text = fs::read_to_string(file(&directory)).unwrap();
    for part in [
        "\"version\": 1",
        "\"default/web\"",
        "\"ipv6\": \"fd00::7\"",
        "\"80\": 30100",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn an_unchanged_state_is_not_written_again() {
    let directory = tempfile::tempdir().unwrap();
    open(&directory).0.save(&state("10.96.7.8")).unwrap();
    let written = fs::metadata(file(&directory)).unwrap().modified().unwrap();
    let (mut store, found) = open(&directory);
    store.save(&found).unwrap();
    assert_eq!(
        fs::metadata(file(&directory)).unwrap().modified().unwrap(),
        written
    );
    // It holds no lock, so it does not interfere with another agent.
    assert!(store.lock.is_none());
}

#[test]
fn an_unreadable_file_is_moved_aside() {
    let sound = String::from_utf8(encode(&state("10.96.7.8")).unwrap()).unwrap();
    let torn = (0..sound.len() - 2).step_by(7).map(|length| &sound[..length]);
    let newer = sound.replace("\"version\": 1", "\"version\": 2");
    let bad_address = sound.replace("10.96.7.8", "10.96.7.800");
    let bad_port = sound.replace("30100", "301000");
    let foreign = [
        "null",
        "[]",
        "{}",
        "\u{0}\u{0}",
        "{\"version\": -1}",
        &newer,
        &bad_address,
        &bad_port,
    ];
    for text in torn.chain(foreign) {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("state")).unwrap();
        fs::write(file(&directory), text).unwrap();
        let (mut store, found) = open(&directory);
        assert_eq!(found, AllocationState::default(), "{text}");
        assert_eq!(fs::read_to_string(file(&directory)).unwrap(), text);
        store.save(&state("10.96.7.9")).unwrap();
        assert_eq!(open(&directory).1, state("10.96.7.9"), "{text}");
        let aside = file(&directory).with_extension("json.unusable");
        assert_eq!(fs::read_to_string(aside).unwrap(), text);
    }
}

#[test]
fn a_directory_or_a_too_large_file_is_moved_aside_too() {
    let make: [fn(&Path); 3] = [
        |path| fs::create_dir(path).unwrap(),
        |path| File::create(path).unwrap().set_len(SIZE_LIMIT + 1).unwrap(),
        |path| symlink("/dev/zero", path).unwrap(),
    ];
    for make in make {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("state")).unwrap();
        make(&file(&directory));
        let (mut store, found) = open(&directory);
        assert_eq!(found, AllocationState::default());
        store.save(&state("10.96.7.9")).unwrap();
        assert_eq!(open(&directory).1, state("10.96.7.9"));
    }
}

#[test]
fn a_partial_file_of_a_crash_is_overwritten() {
    let directory = tempfile::tempdir().unwrap();
    open(&directory).0.save(&state("10.96.7.8")).unwrap();
    fs::write(file(&directory).with_extension("json.new"), "{").unwrap();
    assert_eq!(open(&directory).1, state("10.96.7.8"));
    open(&directory).0.save(&state("10.96.7.9")).unwrap();
    assert_eq!(open(&directory).1, state("10.96.7.9"));
}

#[test]
fn the_error_about_an_unwritable_directory_names_a_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let (mut store, _) = open(&directory);
    fs::write(directory.path().join("state"), "in the way").unwrap();
    let error = store.save(&state("10.96.7.8")).unwrap_err().to_string();
    assert!(
        error.starts_with("cannot be written") && error.contains("--state-directory"),
        "{error}"
    );
    // The next attempt succeeds.
    fs::remove_file(directory.path().join("state")).unwrap();
    store.save(&state("10.96.7.8")).unwrap();
    assert_eq!(open(&directory).1, state("10.96.7.8"));
}

#[test]
fn one_agent_writes_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let ((mut first, _), (mut second, _)) = (open(&directory), open(&directory));
    first.save(&state("10.96.7.8")).unwrap();
    let error = second.save(&state("10.96.7.9")).unwrap_err().to_string();
    assert!(
        error.contains("another agent") && error.contains("--state-directory"),
        "{error}"
    );
    assert_eq!(open(&directory).1, state("10.96.7.8"));
    drop(first);
    second.save(&state("10.96.7.9")).unwrap();
    assert_eq!(open(&directory).1, state("10.96.7.9"));
}
