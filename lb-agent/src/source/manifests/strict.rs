//! Fields of a document that have no effect: unknown fields and repeated keys.
//!
//! kubectl (`--validate=warn`) and the API server (`fieldValidation=Warn`) warn about them, too.
//! Otherwise nobody would notice a misspelt field.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error, IgnoredAny, MapAccess, SeqAccess, Visitor,
};
use serde_ignored::Path;

use super::decode::Source;

/// The maximum number of reported unknown fields, and of repeated keys, of one document.
pub(super) const REPORTED_FIELDS_MAX: usize = 20;

/// Deserializes with `seed`, and collects the unknown fields.
#[derive(Clone, Copy)]
pub(super) struct CollectingUnknown<'a, S> {
    /// The seed of the object.
    pub(super) seed: S,
    /// The unknown fields, in the notation of [`find`].
    pub(super) unknown: &'a RefCell<Vec<String>>,
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for CollectingUnknown<'_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        let mut note = |path: Path<'_>| self.unknown.borrow_mut().push(show(&path));
        self.seed
            .deserialize(serde_ignored::Deserializer::new(deserializer, &mut note))
    }
}

/// A path in the notation of the parser's error messages: `spec.ports[0].port`.
fn show(path: &Path<'_>) -> String {
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => element(&show(parent), *index),
        Path::Map { parent, key } => field(&show(parent), key),
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
            show(parent)
        }
    }
}

fn field(parent: &str, key: &str) -> String {
    match parent {
        "" => key.to_owned(),
        _ => format!("{parent}.{key}"),
    }
}

fn element(parent: &str, index: usize) -> String {
    format!("{parent}[{index}]")
}

/// Returns the line of a field, counted from 1; `None` if it is not in the text itself, but comes
/// from a merge key.
pub(super) fn line_of(source: &Source<'_>, path: &str) -> Option<usize> {
    find(source, |key, _| key == path).map(|(line, _)| line)
}

/// Returns the lines and names of repeated keys.
pub(super) fn repeated(source: &Source<'_>) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    while found.len() < REPORTED_FIELDS_MAX {
        let skipped = Cell::new(found.len());
        let next = find(source, |_, is_repeated| {
            is_repeated && skipped.replace(skipped.get().saturating_sub(1)) == 0
        });
        let Some(next) = next else { break };
        found.push(next);
    }
    found
}

/// Returns the line and the name of the first key for which `wanted` returns true. Its arguments
/// are the name, and whether the key is repeated.
fn find(source: &Source<'_>, wanted: impl Fn(&str, bool) -> bool) -> Option<(usize, String)> {
    let found = RefCell::new(None);
    let walk = Walk {
        path: "",
        wanted: &wanted,
        found: &found,
    };
    // The parser reports lines only in errors, so a match is reported as an error.
    let error = source.decode_text(walk).err()?;
    Some((error.line?, found.into_inner()?))
}

/// Visits all keys of a value.
struct Walk<'a> {
    path: &'a str,
    wanted: &'a dyn Fn(&str, bool) -> bool,
    found: &'a RefCell<Option<String>>,
}

impl Walk<'_> {
    fn at<'b>(&'b self, path: &'b str) -> Walk<'b> {
        Walk {
            path,
            wanted: self.wanted,
            found: self.found,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// Visitor methods for values that have no keys.
macro_rules! scalar {
    ($($name:ident($($type:ty)?)),*) => {
        $(fn $name<E: Error>(self $(, _: $type)?) -> Result<(), E> {
            Ok(())
        })*
    };
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    scalar!(
        visit_bool(bool),
        visit_i64(i64),
        visit_i128(i128),
        visit_u64(u64),
        visit_u128(u128),
        visit_f64(f64),
        visit_str(&str),
        visit_unit(),
        visit_none()
    );

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let mut index = 0;
        while items
            .next_element_seed(self.at(&element(self.path, index)))?
            .is_some()
        {
            index += 1;
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        loop {
            let key = Key {
                walk: &self,
                seen: &mut seen,
            };
            let Some(path) = map.next_key_seed(key)? else {
                return Ok(());
            };
            map.next_value_seed(self.at(&path))?;
        }
    }

    /// A tagged value.
    fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<(), A::Error> {
        data.variant::<IgnoredAny>().map(|_| ())
    }
}

/// Reads the key of a mapping, and returns the path of the field.
struct Key<'a> {
    walk: &'a Walk<'a>,
    seen: &'a mut HashSet<String>,
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Key<'_> {
    type Value = String;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<String, E> {
        let path = field(self.walk.path, key);
        let is_repeated = !self.seen.insert(key.to_owned());
        if (self.walk.wanted)(&path, is_repeated) {
            self.walk.found.replace(Some(path));
            return Err(E::custom("found"));
        }
        Ok(path)
    }
}
