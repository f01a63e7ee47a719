//! From the text of a manifest file to objects, with the line of everything that is wrong.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeSeed;
use serde_norway::Deserializer;

use super::fault::{Fault, MAX_BROKEN_DOCUMENTS, Reason};
use super::header::{Content, Header, ListHeader};
use super::name;
use super::typed::{Typed, TypedList};
use crate::object::{Kind, Object, ObjectReference};

/// One object of a file.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Line of the document that holds it, from 1.
    pub(super) line: usize,
    /// Kind, namespace and name of the object.
    pub(super) reference: ObjectReference,
    /// The object.
    pub(super) object: Arc<Object>,
}

/// What a file holds.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    /// The objects of all documents that could be read.
    pub(super) entries: Vec<Entry>,
    /// The documents that could not be read: while there are any, the file is broken.
    pub(super) broken: Vec<Fault>,
    /// Documents that are none of our business: the rest of the file is used.
    pub(super) ignored: Vec<Fault>,
}

/// Reads all documents of a file.
pub(super) fn parse(text: &str) -> Parsed {
    let mut parsed = Parsed::default();
    for document in documents(text.strip_prefix('\u{feff}').unwrap_or(text)) {
        if parsed.broken.len() == MAX_BROKEN_DOCUMENTS {
            parsed.broken.push(document.fault(Reason::TooManyBroken));
            break;
        }
        if let Err(fault) = document.read(&mut parsed) {
            parsed.broken.push(fault);
        }
    }
    parsed
}

/// One YAML document of a file. It is parsed on its own since the parser cannot go on in a stream after an error.
struct Document<'a> {
    /// Its first line in the file, from 1.
    line: usize,
    text: &'a str,
}

/// Splits at `---` at the start of a line, which YAML allows nowhere within a document.
fn documents(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let (mut start, mut line, mut offset) = (0, 1, 0);
    for (index, content) in text.split_inclusive('\n').enumerate() {
        let rest = content.strip_prefix("---");
        if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n'])) {
            documents.push(Document {
                line,
                text: &text[start..offset],
            });
            (start, line) = (offset, index + 1);
        }
        offset += content.len();
    }
    documents.push(Document {
        line,
        text: &text[start..],
    });
    documents.retain(|document| !document.is_empty());
    documents
}

impl Document<'_> {
    /// Whether it holds nothing but comments, directives and markers.
    fn is_empty(&self) -> bool {
        !self.text.lines().any(is_content)
    }

    fn read(&self, parsed: &mut Parsed) -> Result<(), Fault> {
        // A document that is only a marker with a comment is null: no object.
        let Some(header) = self.decode(PhantomData::<Option<Header>>).map_err(yaml)? else {
            return Ok(());
        };
        match header.content().map_err(|reason| self.fault(reason))? {
            Content::Object(kind) => {
                let object = self
                    .decode(Typed(kind))
                    .map_err(|error| about(header.describe(&kind.to_string()), error))?;
                parsed.entries.push(self.entry(kind, object)?);
            }
            Content::List(item_kind) => self.read_list(item_kind, parsed)?,
            Content::Unknown(reason) => parsed.ignored.push(self.fault(reason)),
        }
        Ok(())
    }

    /// Reads a `List`: one pass finds what its items are, the next reads each as that.
    fn read_list(&self, item_kind: Option<Kind>, parsed: &mut Parsed) -> Result<(), Fault> {
        let mut headers = self
            .decode(PhantomData::<ListHeader>)
            .map_err(yaml)?
            .items
            .unwrap_or_default();
        let mut kinds = Vec::new();
        for header in &mut headers {
            if let Some(kind) = item_kind {
                header.set_kind(kind);
            }
            kinds.push(match header.content().map_err(|reason| self.fault(reason))? {
                Content::Object(kind) => Some(kind),
                Content::List(_) => return Err(self.fault(Reason::NestedList)),
                Content::Unknown(reason) => {
                    parsed.ignored.push(self.fault(reason));
                    None
                }
            });
        }
        let position = Cell::new(0);
        let list = TypedList {
            kinds: &kinds,
            position: &position,
        };
        let objects = self.decode(list).map_err(|error| {
            match (headers.get(position.get()), kinds.get(position.get())) {
                (Some(header), Some(Some(kind))) => about(header.describe(&kind.to_string()), error),
                _ => yaml(error),
            }
        })?;
        // All or nothing, as for any document.
        let objects = objects.into_iter().zip(kinds.iter().flatten());
        let entries: Result<Vec<_>, _> = objects.map(|(object, kind)| self.entry(*kind, object)).collect();
        parsed.entries.extend(entries?);
        Ok(())
    }

    /// Runs the parser over the document.
    fn decode<T, S>(&self, seed: S) -> Result<T, serde_norway::Error>
    where
        S: for<'de> DeserializeSeed<'de, Value = T> + Copy,
    {
        seed.deserialize(Deserializer::from_str(self.text)).or_else(|_| {
            // Once more in its place in the file: some messages name lines that cannot be corrected afterwards.
            let text = "\n".repeat(self.line - 1) + self.text;
            seed.deserialize(Deserializer::from_str(&text))
        })
    }

    fn entry(&self, kind: Kind, mut object: Object) -> Result<Entry, Fault> {
        complete(kind, metadata(&mut object)).map_err(|reason| self.fault(reason))?;
        Ok(Entry {
            line: self.first_line(),
            reference: object.reference(),
            object: Arc::new(object),
        })
    }

    /// The first line that is more than a marker or a comment.
    fn first_line(&self) -> usize {
        self.line + self.text.lines().position(is_content).unwrap_or(0)
    }

    /// A fault of the document as a whole.
    fn fault(&self, reason: Reason) -> Fault {
        Fault {
            line: self.first_line(),
            reason,
        }
    }
}

fn metadata(object: &mut Object) -> &mut ObjectMeta {
    match object {
        Object::Service(object) => &mut object.metadata,
        Object::EndpointSlice(object) => &mut object.metadata,
        Object::Node(object) => &mut object.metadata,
        Object::Pod(object) => &mut object.metadata,
    }
}

fn is_content(line: &str) -> bool {
    let line = line.strip_prefix("---").unwrap_or(line).trim();
    !matches!(line, "" | "...") && !line.starts_with(['#', '%'])
}

fn yaml(error: serde_norway::Error) -> Fault {
    fault_at(error, Reason::Yaml)
}

fn about(object: String, error: serde_norway::Error) -> Fault {
    fault_at(error, |fault| Reason::Object { object, fault })
}

fn fault_at(error: serde_norway::Error, reason: impl FnOnce(String) -> Reason) -> Fault {
    let message = error.to_string();
    // Without a location it is the parser's limit against documents that blow up.
    let Some(location) = error.location() else {
        return Fault {
            line: 1,
            reason: reason(message),
        };
    };
    // The line is said already.
    let suffix = format!(" at line {} column {}", location.line(), location.column());
    let message = message
        .strip_suffix(&suffix)
        .map_or(message.clone(), str::to_owned);
    Fault {
        line: location.line(),
        reason: reason(message),
    }
}

/// Checks the names, and fills in the namespace that an object without one is in.
fn complete(kind: Kind, metadata: &mut ObjectMeta) -> Result<(), Reason> {
    let name = metadata.name.clone().ok_or(Reason::Unnamed(kind))?;
    let fault = match kind {
        Kind::Service => name::label_fault(&name),
        Kind::EndpointSlice | Kind::Node | Kind::Pod => name::subdomain_fault(&name),
    };
    let bad = |what, name, fault| Reason::Name {
        kind,
        what,
        name,
        fault,
    };
    if let Some(fault) = fault {
        return Err(bad("name", name, fault));
    }
    if kind == Kind::Node {
        metadata.namespace = None;
        return Ok(());
    }
    let namespace = metadata.namespace.get_or_insert_with(|| "default".to_owned());
    match name::label_fault(namespace) {
        Some(fault) => Err(bad("namespace", namespace.clone(), fault)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n";

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
    fn nothing_is_no_object_and_no_fault() {
        for text in [
            "",
            "\n\n",
            "# note\n",
            "---\n---\n",
            "--- # note\n",
            "%YAML 1.1\n---\n...\n",
            "\u{feff}",
        ] {
            let parsed = parse(text);
            assert!(
                parsed.entries.is_empty() && parsed.broken.is_empty(),
                "{text:?}: {parsed:?}"
            );
        }
    }

    #[test]
    fn all_kinds_in_one_file() {
        let text = "# first\n---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n\
            --- # slices\n\nkind: EndpointSlice\napiVersion: discovery.k8s.io/v1\nmetadata: {name: web-1}\n\
            ---\r\napiVersion: v1\nkind: Node\nmetadata: {name: n.example}\n\
            ---\napiVersion: v1\nkind: Pod\nmetadata: {name: web-x}\nspec: {containers: [{name: a, resources: {limits: {cpu: 1}}}]}\n";
        let parsed = parse(text);
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
    fn json() {
        let parsed = parse(r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}}"#);
        assert_eq!(references(&parsed), ["1:Service default/web"]);
    }

    #[test]
    fn wrong_types_name_line_object_and_field() {
        let text = format!(
            "{SERVICE}---\napiVersion: v1\nkind: Service\nmetadata: {{name: api}}\nspec:\n  ports:\n  - name: http\n    port: abc\n\
             ---\napiVersion: v1\nkind: Service\nmetadata: {{name: big}}\nspec:\n  ports:\n  - port: 99999999999\n"
        );
        let parsed = parse(&text);
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
    fn invalid_yaml_leaves_the_other_documents() {
        let parsed = parse(&format!(
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
        let parsed = parse(text);
        assert_eq!(faults(&parsed.broken), [""; 0]);
        let known = "only v1 Service, Node, Pod and discovery.k8s.io/v1 EndpointSlice are read";
        assert_eq!(
            faults(&parsed.ignored),
            [
                format!("1: v1 ConfigMap b/a is ignored: {known}"),
                format!("6: discovery.k8s.io/v1beta1 EndpointSlice old is ignored: {known}"),
            ]
        );
    }

    #[test]
    fn documents_that_are_no_objects() {
        for (text, fault) in [
            (
                "hello\n",
                "1: invalid type: string \"hello\", expected a Kubernetes object",
            ),
            ("- a\n", "1: invalid type: sequence, expected a Kubernetes object"),
            (
                "kind: Service\n",
                "1: no Kubernetes object: apiVersion is missing",
            ),
            (
                "---\n# x\napiVersion: v1\n",
                "3: no Kubernetes object: kind is missing",
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
            assert_eq!(faults(&parse(text).broken), [fault], "{text:?}");
        }
    }

    #[test]
    fn bad_names() {
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
            assert_eq!(faults(&parse(&text).broken), [fault], "{text:?}");
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
        let parsed = parse(text);
        assert_eq!(faults(&parsed.broken), [""; 0]);
        assert_eq!(
            references(&parsed),
            ["1:Service default/web", "1:Node n", "15:Service default/api"]
        );
        assert_eq!(parsed.ignored.len(), 1);
    }

    #[test]
    fn faults_within_lists_name_line_and_object() {
        let text = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Service\n  metadata: {name: web}\n\
            - apiVersion: v1\n  kind: Service\n  metadata: {name: api}\n  spec:\n    ports:\n    - port: abc\n";
        assert_eq!(
            faults(&parse(text).broken),
            ["12: Service api: items[1].spec.ports[0].port: invalid type: string \"abc\", expected i32"]
        );
        let nested = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: List\n";
        assert_eq!(
            faults(&parse(nested).broken),
            ["1: a List within a List: put its items into the outer one"]
        );
    }

    #[test]
    fn no_end_of_broken_documents() {
        let parsed = parse(&"---\na: b: c\n".repeat(1000));
        assert_eq!(parsed.broken.len(), MAX_BROKEN_DOCUMENTS + 1);
    }

    #[test]
    fn documents_that_blow_up_are_refused() {
        let mut text = "a0: &a0 [x]\n".to_owned();
        for level in 1..40 {
            let below = format!("*a{}, ", level - 1).repeat(9);
            text += &format!("a{level}: &a{level} [{below}]\n");
        }
        assert_eq!(parse(&text).broken.len(), 1);
        assert_eq!(parse(&"[".repeat(2_000)).broken.len(), 1);
    }

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in "(---|\\.\\.\\.|apiVersion: v1|kind: (Service|List|Node)|items:|- |metadata: \\{name: a\\}|[&*%#'\":\\[{ \\n\\t\r]|[a-zé\u{feff}]){0,60}") {
            parse(&text);
        }
    }
}
