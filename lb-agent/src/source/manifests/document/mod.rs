//! Converts the text of a manifest file to objects. Every error has a line.

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::{DeserializeSeed, IgnoredAny};

use super::decode::{DecodeError, Source, Syntax};
use super::fault::{Fault, MAX_BROKEN_DOCUMENTS, Reason};
use super::header::{Content, Header, ListHeader};
use super::name;
use super::strict::{self, CollectingUnknown};
use super::typed::{Typed, TypedList};
use crate::model::HEADLESS_LABEL;
use crate::object::{Object, ObjectKind, ObjectReference};

/// One object of a file.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// The line of the document that contains it, counted from 1.
    pub(super) line: usize,
    /// Kind, namespace and name of the object.
    pub(super) reference: ObjectReference,
    /// The object.
    pub(super) object: Arc<Object>,
}

/// The content of a file.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    /// The objects of all valid documents.
    pub(super) entries: Vec<Entry>,
    /// The errors of invalid documents. If there are any, the file is broken.
    pub(super) broken: Vec<Fault>,
    /// Objects that the agent does not use, and fields that have no effect. The rest of the file is
    /// used.
    pub(super) harmless: Vec<Fault>,
}

/// Reads all documents of a file.
pub(super) fn parse(text: &str, syntax: Syntax) -> Parsed {
    let mut parsed = Parsed::default();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let documents = match syntax {
        Syntax::Yaml => yaml_documents(text),
        Syntax::Json => json_documents(text),
    };
    for document in documents {
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

/// One document of a file. Documents are parsed separately, because the parser cannot continue in a
/// stream after an error.
struct Document<'a> {
    /// Its first line in the file, counted from 1.
    line: usize,
    syntax: Syntax,
    text: &'a str,
}

/// Splits consecutive JSON values, as kubectl does.
fn json_documents(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<IgnoredAny>();
    let (mut start, mut line) = (0, 1);
    while let Some(value) = values.next() {
        // The end of an invalid value is unknown.
        let end = if value.is_ok() {
            values.byte_offset()
        } else {
            text.len()
        };
        let text = &text[start..end];
        documents.push(Document {
            line,
            syntax: Syntax::Json,
            text,
        });
        line += text.matches('\n').count();
        if value.is_err() {
            break;
        }
        start = end;
    }
    documents
}

/// Splits at `---` at the start of a line. YAML does not allow it within a document.
fn yaml_documents(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let (mut start, mut line, mut offset) = (0, 1, 0);
    for (index, content) in text.split_inclusive('\n').enumerate() {
        let rest = content.strip_prefix("---");
        if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n'])) {
            documents.push(Document {
                line,
                syntax: Syntax::Yaml,
                text: &text[start..offset],
            });
            (start, line) = (offset, index + 1);
        }
        offset += content.len();
    }
    documents.push(Document {
        line,
        syntax: Syntax::Yaml,
        text: &text[start..],
    });
    documents.retain(|document| !document.is_empty());
    documents
}

impl Document<'_> {
    /// Whether it contains only comments, directives and markers.
    fn is_empty(&self) -> bool {
        !self.text.lines().any(is_content)
    }

    fn read(&self, parsed: &mut Parsed) -> Result<(), Fault> {
        let yaml = |error| self.error(error, Reason::Yaml);
        let source = Source::new(self.syntax, self.text).map_err(yaml)?;
        // A document with only a marker and a comment is null, which is no object.
        let header = self
            .decode(&source, PhantomData::<Option<Header>>)
            .map_err(yaml)?;
        let Some(header) = header else {
            return Ok(());
        };
        match header.content().map_err(|reason| self.fault(reason))? {
            Content::Object(kind) => {
                let name = header.describe(&kind.to_string());
                let unknown = RefCell::default();
                let seed = CollectingUnknown {
                    seed: Typed(kind),
                    unknown: &unknown,
                };
                let object = self
                    .decode(&source, seed)
                    .map_err(|error| self.error(error, about(&name)))?;
                parsed.entries.extend(self.entry(kind, object)?);
                self.report_ineffective_fields(&source, unknown.take(), |_| Some(name.clone()), parsed);
            }
            Content::List(item_kind) => self.read_list(&source, item_kind, parsed)?,
            Content::Unknown(reason) => parsed.harmless.push(self.fault(reason)),
        }
        Ok(())
    }

    /// Reads a `List`. The first pass determines the kinds of the items, the second pass reads the
    /// items.
    fn read_list(
        &self,
        source: &Source<'_>,
        item_kind: Option<ObjectKind>,
        parsed: &mut Parsed,
    ) -> Result<(), Fault> {
        let mut headers = self
            .decode(source, PhantomData::<ListHeader>)
            .map_err(|error| self.error(error, Reason::Yaml))?
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
                    parsed.harmless.push(self.fault(reason));
                    None
                }
            });
        }
        let name = |index: usize| Some(headers.get(index)?.describe(&(*kinds.get(index)?)?.to_string()));
        let position = Cell::new(0);
        let unknown = RefCell::default();
        let seed = CollectingUnknown {
            seed: TypedList {
                kinds: &kinds,
                position: &position,
            },
            unknown: &unknown,
        };
        let objects = self
            .decode(source, seed)
            .map_err(|error| match name(position.get()) {
                Some(name) => self.error(error, about(&name)),
                None => self.error(error, Reason::Yaml),
            })?;
        // As for any document, one error rejects all of it.
        let objects = objects.into_iter().zip(kinds.iter().flatten());
        let entries: Result<Vec<_>, _> = objects.map(|(object, kind)| self.entry(*kind, object)).collect();
        parsed.entries.extend(entries?.into_iter().flatten());
        self.report_ineffective_fields(source, unknown.take(), |field| name(item_of(field)?), parsed);
        Ok(())
    }

    /// Reports unknown and repeated fields of the objects for which `name` returns a name.
    fn report_ineffective_fields(
        &self,
        source: &Source<'_>,
        unknown: Vec<String>,
        name: impl Fn(&str) -> Option<String>,
        parsed: &mut Parsed,
    ) {
        let in_file = |line: usize| line + self.line - 1;
        for field in unknown.into_iter().take(strict::REPORTED_FIELDS_MAX) {
            let Some(object) = name(&field) else { continue };
            parsed.harmless.push(Fault {
                line: strict::line_of(source, &field).map_or(self.first_line(), in_file),
                reason: Reason::UnknownField { object, field },
            });
        }
        for (line, field) in strict::repeated(source) {
            let Some(object) = name(&field) else { continue };
            parsed.harmless.push(Fault {
                line: in_file(line),
                reason: Reason::Repeated { object, field },
            });
        }
    }

    /// Runs the parser over the document.
    fn decode<T, S>(&self, source: &Source<'_>, seed: S) -> Result<T, DecodeError>
    where
        S: for<'de> DeserializeSeed<'de, Value = T> + Copy,
    {
        source.decode(seed).or_else(|error| {
            if error.line.is_none() {
                return Err(error);
            }
            // Parse again at the document's position in the file: some messages contain lines that
            // cannot be corrected afterwards.
            let text = "\n".repeat(self.line - 1) + self.text;
            Source::new(self.syntax, &text)?.decode(seed)
        })
    }

    /// Converts an error of the parser. Uses the parser's line if it has one.
    fn error(&self, error: DecodeError, reason: impl FnOnce(String) -> Reason) -> Fault {
        Fault {
            line: error.line.unwrap_or_else(|| self.first_line()),
            reason: reason(error.message),
        }
    }

    /// Returns an object of the document; `None` for objects that the API source does not watch
    /// either.
    fn entry(&self, kind: ObjectKind, mut object: Object) -> Result<Option<Entry>, Fault> {
        let metadata = metadata(&mut object);
        complete(kind, metadata).map_err(|reason| self.fault(reason))?;
        let has_label = |label| {
            metadata
                .labels
                .as_ref()
                .is_some_and(|labels| labels.contains_key(label))
        };
        if kind == ObjectKind::EndpointSlice && has_label(HEADLESS_LABEL) {
            return Ok(None);
        }
        Ok(Some(Entry {
            line: self.first_line(),
            reference: object.reference(),
            object: Arc::new(object),
        }))
    }

    /// The first line that is not a marker or a comment.
    fn first_line(&self) -> usize {
        self.line + self.text.lines().position(is_content).unwrap_or(0)
    }

    /// An error of the whole document.
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
        Object::ServiceCidr(object) => &mut object.metadata,
        Object::Pod(object) => &mut object.metadata,
    }
}

fn is_content(line: &str) -> bool {
    let line = line.strip_prefix("---").unwrap_or(line).trim();
    !matches!(line, "" | "...") && !line.starts_with(['#', '%'])
}

fn about(object: &str) -> impl FnOnce(String) -> Reason {
    let object = object.to_owned();
    |fault| Reason::Object { object, fault }
}

/// Returns the index of the `List` item that contains a field; `None` if the field is in no item.
fn item_of(field: &str) -> Option<usize> {
    let (index, field) = field.strip_prefix("items[")?.split_once(']')?;
    field.starts_with('.').then_some(index.parse().ok()?)
}

/// Checks the names, and sets the default namespace if there is none.
fn complete(kind: ObjectKind, metadata: &mut ObjectMeta) -> Result<(), Reason> {
    let name = metadata.name.clone().ok_or(Reason::Unnamed(kind))?;
    let fault = match kind {
        ObjectKind::Service => name::label_fault(&name),
        ObjectKind::EndpointSlice | ObjectKind::Node | ObjectKind::ServiceCidr | ObjectKind::Pod => {
            name::subdomain_fault(&name)
        }
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
    if matches!(kind, ObjectKind::Node | ObjectKind::ServiceCidr) {
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
mod tests;
