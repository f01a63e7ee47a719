//! Tests of requests and their answers.

use super::*;

fn store(names: &[&str]) -> Store {
    let mut store = Store::new();
    for name in names {
        store.apply(object(name, &json!({})));
    }
    store
}

fn object(name: &str, labels: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": labels}})
}

fn ask(store: &Store, query: &str) -> Answer {
    let uri = format!("/api/v1/services?{query}").parse().unwrap();
    get(store, resource(&uri).unwrap(), &uri)
}

fn body(store: &Store, query: &str) -> (u16, Value) {
    match ask(store, query) {
        Answer::Object(code, body) => (code.as_u16(), body),
        _ => panic!("{query} is a watch"),
    }
}

fn lines(store: &Store, query: &str) -> Vec<String> {
    let lines = match ask(store, query) {
        Answer::Lines(lines) => lines,
        Answer::Watch(watch) => {
            let mut lines = watch.lines;
            lines.extend(store.events(&watch.selection, watch.version));
            lines
        }
        Answer::Object(code, body) => panic!("{code}: {body}"),
    };
    let show = |line: &Value| {
        let (change, object) = (line["type"].as_str().unwrap(), &line["object"]);
        let metadata = &object["metadata"];
        match change {
            "ERROR" => format!("ERROR {}", object["code"]),
            "BOOKMARK" => format!("BOOKMARK {metadata}"),
            _ => format!(
                "{change} {} {} {}",
                object["kind"], metadata["name"], metadata["resourceVersion"]
            ),
        }
    };
    lines.iter().map(|line| show(line).replace('"', "")).collect()
}

fn names(list: &Value) -> Vec<&str> {
    list["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["metadata"]["name"].as_str().unwrap())
        .collect()
}

#[test]
fn later_pages_show_the_version_of_the_first_page() {
    let mut store = store(&["a", "b", "c"]);
    let (_, first) = body(&store, "limit=2");
    assert_eq!(names(&first), ["a", "b"]);
    assert_eq!(first["items"][0]["kind"], Value::Null);
    store.apply(object("d", &json!({})));
    let next = format!(
        "limit=2&continue={}",
        first["metadata"]["continue"].as_str().unwrap()
    );
    let (_, second) = body(&store, &next);
    assert_eq!(names(&second), ["c"]);
    assert_eq!(second["metadata"], json!({"resourceVersion": "103"}));
    store.expire();
    assert_eq!(body(&store, &next).0, 410);
    assert_eq!(
        names(&body(&store, "limit=2&resourceVersion=0").1),
        ["a", "b", "c", "d"]
    );
}

#[test]
fn future_versions_fail_lists_and_silence_watches() {
    let (code, status) = body(&store(&[]), "resourceVersion=101");
    assert_eq!(
        (code, &status["details"]["causes"][0]["reason"]),
        (504, &json!("ResourceVersionTooLarge"))
    );
    let mut store = store(&[]);
    let Answer::Watch(watch) = ask(&store, "watch=true&resourceVersion=101") else {
        panic!("no watch");
    };
    assert_eq!((watch.version, watch.bookmark(&store)), (101, None));
    for name in ["lost", "seen"] {
        store.apply(object(name, &json!({})));
    }
    assert!(watch.bookmark(&store).is_some());
    assert_eq!(
        lines(&store, "watch=true&resourceVersion=101"),
        ["ADDED Service seen 102"]
    );
}

#[test]
fn malformed_requests_are_refused() {
    for (query, code) in [
        ("fieldSelector=spec.type%3Dx", 400),
        ("labelSelector=a+b", 400),
        ("resourceVersion=x", 400),
        ("continue=x", 400),
        ("watch=1&sendInitialEvents=true", 422),
        ("watch=1&resourceVersionMatch=NotOlderThan", 422),
    ] {
        assert_eq!(body(&store(&[]), query).0, code, "{query}");
    }
}

#[test]
fn watches() {
    let mut store = store(&["a", "b"]);
    assert_eq!(
        lines(&store, "watch=1&resourceVersion=101"),
        ["ADDED Service b 102"]
    );
    assert_eq!(
        lines(&store, "watch=1"),
        ["ADDED Service a 101", "ADDED Service b 102"]
    );
    let query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan";
    let end =
        "BOOKMARK {annotations:{k8s.io/initial-events-end:true},creationTimestamp:null,resourceVersion:102}";
    assert_eq!(
        lines(&store, query),
        ["ADDED Service a 101", "ADDED Service b 102", end]
    );
    store.expire();
    assert_eq!(lines(&store, "watch=1&resourceVersion=102"), ["ERROR 410"]);
    assert_eq!(lines(&store, "watch=1&resourceVersion=103"), [""; 0]);
}

#[test]
fn leaving_the_selector_is_a_deletion_with_the_old_labels() {
    let mut store = store(&["a"]);
    store.apply(object("a", &json!({"x": "y"})));
    store.apply(object("a", &json!({"x": "z"})));
    let query = "watch=1&resourceVersion=101&labelSelector=x%20in%20(y)";
    assert_eq!(
        lines(&store, query),
        ["ADDED Service a 102", "DELETED Service a 103"]
    );
    let query = "watch=1&resourceVersion=101&labelSelector=!x";
    assert_eq!(lines(&store, query), ["DELETED Service a 102"]);
    store.delete(&object("a", &json!({})));
    assert_eq!(
        lines(&store, "watch=1&resourceVersion=103"),
        ["DELETED Service a 104"]
    );
}
