//! Tests with valid and broken documents.

use super::*;

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n";

fn yaml(text: &str) -> Parsed {
    parse(text, Syntax::Yaml)
}

fn json(text: &str) -> Parsed {
    parse(text, Syntax::Json)
}

fn references(parsed: &Parsed) -> Vec<String> {
    parsed
        .entries
        .iter()
        .map(|entry| format!("{}:{}", entry.line, entry.reference))
        .collect()
}

fn faults(faults: &[Fault]) -> Vec<String> {
    faults
        .iter()
        .map(|fault| format!("{}: {}", fault.line, fault.reason))
        .collect()
}

#[test]
fn an_empty_document_has_no_object_and_no_error() {
    for text in [
        "",
        "\n\n",
        "# note\n",
        "---\n---\n",
        "--- # note\n",
        "%YAML 1.1\n---\n...\n",
        "\u{feff}",
    ] {
        let parsed = yaml(text);
        assert!(
            parsed.entries.is_empty() && parsed.broken.is_empty(),
            "{text:?}: {parsed:?}"
        );
    }
}

#[test]
fn one_file_may_contain_all_kinds() {
    let text = "# first\n---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n\
        --- # slices\n\nkind: EndpointSlice\napiVersion: discovery.k8s.io/v1\nmetadata: {name: web-1}\n\
        ---\r\napiVersion: v1\nkind: Node\nmetadata: {name: n.example}\n\
        ---\napiVersion: v1\nkind: Pod\nmetadata: {name: web-x}\nspec: {containers: [{name: a, resources: {limits: {cpu: 1}}}]}\n";
    let parsed = yaml(text);
    assert_eq!(faults(&parsed.broken), [""; 0]);
    assert_eq!(
        references(&parsed),
        [
            "3:Service shop/web",
            "8:EndpointSlice default/web-1",
            "12:Node n.example",
            "16:Pod default/web-x"
        ]
    );
}

#[test]
fn json_files_may_contain_several_objects() {
    let web = r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}}"#;
    assert_eq!(references(&yaml(web)), ["1:Service default/web"]);
    assert_eq!(references(&json(web)), ["1:Service default/web"]);
    // One character, and a line that would separate YAML documents.
    let api = "{\n\"apiVersion\": \"v1\", \"kind\": \"Service\",\n\"metadata\": {\"name\": \"api\",\n\
        \"annotations\": {\"smile\": \"\\ud83d\\ude00\"}}\n}\n";
    let parsed = json(&format!("\u{feff}{web}\n\n{api}"));
    assert_eq!(faults(&parsed.broken), [""; 0]);
    assert_eq!(
        references(&parsed),
        ["1:Service default/web", "3:Service default/api"]
    );
    let Object::Service(service) = &*parsed.entries[1].object else {
        panic!("{parsed:?}");
    };
    assert_eq!(
        service.metadata.annotations.as_ref().unwrap()["smile"],
        "\u{1f600}"
    );
}

#[test]
fn broken_json_names_its_line() {
    let web = r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}}"#;
    for (text, fault) in [
        ("\n{\"kind\": Service}\n", "2: expected value"),
        (
            "{\"apiVersion\": \"v1\",\n\"kind\": \"Service\", \"metadata\": {\"name\": \"a\"},\n\
             \"spec\": {\"ports\": [{\"port\": \"abc\"}]}}",
            "3: Service a: invalid type: string \"abc\", expected i32",
        ),
        ("apiVersion: v1\n", "1: expected value"),
    ] {
        let parsed = json(&format!("{web}\n{text}"));
        let (line, message) = fault.split_once(':').unwrap();
        let fault = format!("{}:{message}", line.parse::<usize>().unwrap() + 1);
        assert_eq!(faults(&parsed.broken), [fault], "{text:?}");
        assert_eq!(references(&parsed), ["1:Service default/web"]);
    }
    assert!(json(" \n\t").entries.is_empty());
    assert_eq!(json(&"[".repeat(2_000)).broken.len(), 1);
}

/// `../shared/cases/yaml-merge-keys`
#[test]
fn merge_keys_are_expanded() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: names}\nspec:\n  ports:\n\
        \x20 - &udp {name: a, port: 53, targetPort: 5353, protocol: UDP}\n  - {<<: *udp, name: b, port: 54}\n\
        \x20 - {<<: [{name: c}, *udp], port: 55}\n---\n\
        apiVersion: v1\nkind: Service\nmetadata: {name: files}\nspec:\n  <<: {internalTrafficPolicy: Local}\n\
        \x20 ports: [{port: 80}]\n---\n\
        a: &a {apiVersion: v1}\nb: &b {<<: *a, kind: Service}\n<<: *b\nmetadata: {name: both}\n";
    let parsed = yaml(text);
    assert_eq!(faults(&parsed.broken), [""; 0]);
    assert_eq!(
        faults(&parsed.harmless),
        [
            "17: Service both: the field a is not known and has no effect: correct its name or remove it",
            "18: Service both: the field b is not known and has no effect: correct its name or remove it",
        ]
    );
    let services: Vec<_> = parsed
        .entries
        .iter()
        .map(|entry| match &*entry.object {
            Object::Service(service) => service.spec.clone().unwrap_or_default(),
            other => panic!("{other:?}"),
        })
        .collect();
    let ports: Vec<_> = services[0]
        .ports
        .iter()
        .flatten()
        .map(|port| (port.name.as_deref().unwrap(), port.protocol.as_deref(), port.port))
        .collect();
    let udp = Some("UDP");
    assert_eq!(ports, [("a", udp, 53), ("b", udp, 54), ("c", udp, 55)]);
    assert_eq!(services[1].internal_traffic_policy.as_deref(), Some("Local"));
    assert_eq!(references(&parsed)[2], "17:Service default/both");
}

#[test]
fn merge_keys_without_a_mapping_are_errors() {
    for (merged, fault) in [
        (
            "5",
            "6: expected a mapping or list of mappings for merging, but found scalar",
        ),
        ("[[]]", "6: expected a mapping for merging, but found sequence"),
    ] {
        let parsed = yaml(&format!("{SERVICE}---\n# x\n<<: {merged}\n{SERVICE}"));
        assert_eq!(references(&parsed), ["1:Service default/web"]);
        let [found] = &faults(&parsed.broken)[..] else {
            panic!("{parsed:?}");
        };
        assert!(found.starts_with(fault), "{found}");
    }
    let mut text = "a0: &a0 {x: 1}\n".to_owned();
    for level in 1..100 {
        text += &format!("a{level}: &a{level} {{<<: *a{}}}\n", level - 1);
    }
    assert_eq!(yaml(&text).broken.len(), 1);
    // This looks like a merge key, but is not one.
    let text = SERVICE.replace("web", "web, annotations: {'<<<': '<<'}");
    assert_eq!(references(&yaml(&text)), ["1:Service default/web"]);
}

#[test]
fn unknown_and_repeated_fields_are_reported() {
    let text = format!(
        "{SERVICE}spec:\n  clusterIp: 10.96.0.1\n  ports:\n  - port: 80\n    targetport: 8080\n    port: 81\n\
         ---\napiVersion: v1\nkind: List\nspec: {{}}\nitems:\n- apiVersion: v1\n  kind: Secret\n  data: {{a: b, a: c}}\n\
         - apiVersion: discovery.k8s.io/v1\n  kind: EndpointSlice\n  metadata: {{name: web-1}}\n  addressType: IPv4\n\
         \x20 endpoints:\n  - addresses: [10.0.0.1]\n    condition: {{ready: false}}\n\
         ---\n{SERVICE}spec: {{ports: !tag [{{port: 1}}], externalIPs: null}}\nstatus: {{}}\n"
    );
    let parsed = yaml(&text);
    assert_eq!(faults(&parsed.broken), [""; 0]);
    let end = "is not known and has no effect: correct its name or remove it";
    assert_eq!(
        faults(&parsed.harmless),
        [
            format!("5: Service web: the field spec.clusterIp {end}"),
            format!("8: Service web: the field spec.ports[0].targetport {end}"),
            "9: Service web: spec.ports[0].port occurs twice, and only the last one is used: remove the other".to_owned(),
            "11: v1 Secret without a name is ignored: only v1 Service, Node, Pod and discovery.k8s.io/v1 EndpointSlice are read".to_owned(),
            format!("24: EndpointSlice web-1: the field items[1].endpoints[0].condition {end}"),
        ]
    );
    let text = r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"sessionAffinitty": "ClientIP",
        "type": "NodePort", "type": "ClusterIP"}}"#;
    assert_eq!(
        faults(&json(text).harmless),
        [
            format!("2: Service web: the field spec.sessionAffinitty {end}"),
            "3: Service web: spec.type occurs twice, and only the last one is used: remove the other"
                .to_owned(),
        ]
    );
    let many: String = (0..1000).map(|field| format!("field{field}: 1\n")).collect();
    assert_eq!(
        yaml(&format!("{SERVICE}{many}")).harmless.len(),
        strict::REPORTED_FIELDS_MAX
    );
}

#[test]
fn slices_of_headless_services_are_skipped() {
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web-1, labels: {LABEL: ''}}\n\
        addressType: IPv4\nendpoints: []\n";
    for (label, count) in [(HEADLESS_LABEL, 0), ("other", 1)] {
        let parsed = yaml(&slice.replace("LABEL", label));
        assert_eq!(parsed.entries.len(), count, "{label}: {parsed:?}");
        assert_eq!(faults(&parsed.broken), [""; 0]);
    }
}

#[test]
fn type_errors_contain_line_object_and_field() {
    let text = format!(
        "{SERVICE}---\napiVersion: v1\nkind: Service\nmetadata: {{name: api}}\nspec:\n  ports:\n  - name: http\n    port: abc\n\
         ---\napiVersion: v1\nkind: Service\nmetadata: {{name: big}}\nspec:\n  ports:\n  - port: 99999999999\n"
    );
    let parsed = yaml(&text);
    assert_eq!(references(&parsed), ["1:Service default/web"]);
    assert_eq!(
        faults(&parsed.broken),
        [
            "11: Service api: spec.ports[0].port: invalid type: string \"abc\", expected i32",
            "18: Service big: spec.ports[0].port: invalid value: integer `99999999999`, expected i32",
        ]
    );
}

#[test]
fn invalid_yaml_does_not_affect_other_documents() {
    let parsed = yaml(&format!(
        "{SERVICE}---\na: b: c\n---\n{}",
        SERVICE.replace("web", "api")
    ));
    assert_eq!(
        references(&parsed),
        ["1:Service default/web", "7:Service default/api"]
    );
    assert_eq!(
        faults(&parsed.broken),
        ["5: mapping values are not allowed in this context"]
    );
}

#[test]
fn unknown_kinds_are_ignored() {
    let text = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a, namespace: b}\nitems: 5\n---\n\
        apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\nmetadata: {name: old}\n";
    let parsed = yaml(text);
    assert_eq!(faults(&parsed.broken), [""; 0]);
    let known = "only v1 Service, Node, Pod and discovery.k8s.io/v1 EndpointSlice are read";
    assert_eq!(
        faults(&parsed.harmless),
        [
            format!("1: v1 ConfigMap b/a is ignored: {known}"),
            format!("6: discovery.k8s.io/v1beta1 EndpointSlice old is ignored: {known}"),
        ]
    );
}

#[test]
fn documents_without_an_object_are_errors() {
    for (text, fault) in [
        (
            "hello\n",
            "1: invalid type: string \"hello\", expected a Kubernetes object",
        ),
        ("- a\n", "1: invalid type: sequence, expected a Kubernetes object"),
        (
            "kind: Service\n",
            "1: not a Kubernetes object: apiVersion is missing",
        ),
        (
            "---\n# x\napiVersion: v1\n",
            "3: not a Kubernetes object: kind is missing",
        ),
        (
            "apiVersion: v1\nkind: Service\n",
            "1: Service without metadata.name: give it a name",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {generateName: a}\n",
            "1: Service without metadata.name: give it a name",
        ),
        ("a: &a [*b]\n", "1: unknown anchor"),
    ] {
        assert_eq!(faults(&yaml(text).broken), [fault], "{text:?}");
    }
}

#[test]
fn invalid_names_are_errors() {
    for (text, fault) in [
        (
            SERVICE.replace("web", "a.b"),
            "1: Service with the name \"a.b\": it must consist of a-z, 0-9 and '-', with a letter or digit at both ends",
        ),
        (
            SERVICE.replace("web", "web, namespace: A"),
            "1: Service with the namespace \"A\": it must consist of a-z, 0-9 and '-', with a letter or digit at both ends",
        ),
        (
            SERVICE.replace("web", "''"),
            "1: Service with the name \"\": it must consist of a-z, 0-9 and '-', with a letter or digit at both ends",
        ),
    ] {
        assert_eq!(faults(&yaml(&text).broken), [fault], "{text:?}");
    }
}

#[test]
fn lists() {
    let text = "apiVersion: v1\nkind: List\nmetadata: {}\nitems:\n\
        - apiVersion: v1\n  kind: Secret\n  metadata: {name: s}\n\
        - apiVersion: v1\n  kind: Service\n  metadata: {name: web}\n\
        - apiVersion: v1\n  kind: Node\n  metadata: {name: n}\n\
        ---\napiVersion: v1\nkind: ServiceList\nitems:\n- metadata: {name: api}\n\
        ---\napiVersion: v1\nkind: List\nitems:\n\
        ---\napiVersion: v1\nkind: List\nitems: []\n";
    let parsed = yaml(text);
    assert_eq!(faults(&parsed.broken), [""; 0]);
    assert_eq!(
        references(&parsed),
        ["1:Service default/web", "1:Node n", "15:Service default/api"]
    );
    assert_eq!(parsed.harmless.len(), 1);
}

#[test]
fn errors_in_lists_contain_line_and_object() {
    let text = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Service\n  metadata: {name: web}\n\
        - apiVersion: v1\n  kind: Service\n  metadata: {name: api}\n  spec:\n    ports:\n    - port: abc\n";
    assert_eq!(
        faults(&yaml(text).broken),
        ["12: Service api: items[1].spec.ports[0].port: invalid type: string \"abc\", expected i32"]
    );
    let nested = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: List\n";
    assert_eq!(
        faults(&yaml(nested).broken),
        ["1: a List within a List: put its items into the outer one"]
    );
}

#[test]
fn reading_stops_after_too_many_broken_documents() {
    let parsed = yaml(&"---\na: b: c\n".repeat(1000));
    assert_eq!(parsed.broken.len(), MAX_BROKEN_DOCUMENTS + 1);
}

#[test]
fn documents_that_expand_excessively_are_rejected() {
    let mut text = "a0: &a0 [x]\n".to_owned();
    for level in 1..40 {
        let below = format!("*a{}, ", level - 1).repeat(9);
        text += &format!("a{level}: &a{level} [{below}]\n");
    }
    assert_eq!(yaml(&text).broken.len(), 1);
    assert_eq!(yaml(&"[".repeat(2_000)).broken.len(), 1);
}

proptest::proptest! {
    #[test]
    fn random_text_never_panics(text in "(---|\\.\\.\\.|apiVersion: v1|kind: (Service|List|Node)|items:|- |metadata: \\{name: a\\}|[&*%#'\":\\[{ \\n\\t\r]|[a-zé\u{feff}]){0,60}") {
        yaml(&text);
    }
}
