//! The parsers of documents: from text to values. Errors contain the line.

use serde::Deserialize;
use serde::de::DeserializeSeed;
use serde_norway::Value;

/// The maximum depth of nested merges.
const MERGES_MAX: usize = 16;

/// The syntax of a document.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Syntax {
    /// YAML.
    Yaml,
    /// JSON (RFC 8259). A YAML parser does not accept all of it: `"\ud83d\ude00"` is one character
    /// in JSON and invalid in YAML.
    Json,
}

/// Why a document could not be decoded.
#[derive(Debug)]
pub(super) struct DecodeError {
    /// The line, counted from 1, if it is known.
    pub(super) line: Option<usize>,
    /// What is wrong.
    pub(super) message: String,
}

impl DecodeError {
    /// Creates an error. If the message ends with its location, that part is removed.
    fn new(message: String, place: Option<(usize, usize)>) -> Self {
        let Some((line, column)) = place else {
            return Self { line: None, message };
        };
        let suffix = format!(" at line {line} column {column}");
        Self {
            line: Some(line),
            message: message
                .strip_suffix(&suffix)
                .map_or(message.clone(), str::to_owned),
        }
    }
}

impl From<serde_norway::Error> for DecodeError {
    fn from(error: serde_norway::Error) -> Self {
        // An error without a location means that the document exceeds the parser's limit for alias
        // expansion.
        let place = error.location().map(|place| (place.line(), place.column()));
        Self::new(error.to_string(), place)
    }
}

impl From<serde_json::Error> for DecodeError {
    fn from(error: serde_json::Error) -> Self {
        let place = (error.line() != 0).then(|| (error.line(), error.column()));
        Self::new(error.to_string(), place)
    }
}

/// A document's text, which may be decoded several times.
pub(super) struct Source<'a> {
    syntax: Syntax,
    text: &'a str,
    /// The value after expanding merge keys; `None` if the text has no merge key.
    merged: Option<Value>,
}

impl<'a> Source<'a> {
    /// Takes a text, and expands the merge keys (`<<`) of YAML 1.1, as kubectl does.
    ///
    /// # Errors
    ///
    /// If a merge key refers to something other than a mapping, or merges are nested too deeply.
    pub(super) fn new(syntax: Syntax, text: &'a str) -> Result<Self, DecodeError> {
        let may_merge = syntax == Syntax::Yaml && text.contains("<<");
        let merged = if may_merge { merge(text)? } else { None };
        Ok(Self { syntax, text, merged })
    }

    /// Decodes the text with its merge keys expanded. If there are merge keys, errors have no line.
    pub(super) fn decode<T, S>(&self, seed: S) -> Result<T, DecodeError>
    where
        S: for<'de> DeserializeSeed<'de, Value = T>,
    {
        match &self.merged {
            Some(value) => Ok(seed.deserialize(value.clone())?),
            None => self.decode_text(seed),
        }
    }

    /// Decodes the text as it is written.
    pub(super) fn decode_text<T, S>(&self, seed: S) -> Result<T, DecodeError>
    where
        S: for<'de> DeserializeSeed<'de, Value = T>,
    {
        match self.syntax {
            Syntax::Yaml => Ok(seed.deserialize(serde_norway::Deserializer::from_str(self.text))?),
            Syntax::Json => {
                let mut deserializer = serde_json::Deserializer::from_str(self.text);
                let value = seed.deserialize(&mut deserializer)?;
                deserializer.end()?;
                Ok(value)
            }
        }
    }
}

/// Returns the value of a text with its merge keys expanded; `None` if it has no merge keys.
fn merge(text: &str) -> Result<Option<Value>, DecodeError> {
    let mut value = Value::deserialize(serde_norway::Deserializer::from_str(text))?;
    if !merges(&value) {
        return Ok(None);
    }
    // Each pass expands the outermost level. A merged mapping may itself contain merge keys.
    for _ in 0..MERGES_MAX {
        value.apply_merge()?;
        if !merges(&value) {
            return Ok(Some(value));
        }
    }
    Err(DecodeError {
        line: None,
        message: format!("more than {MERGES_MAX} nested merges (`<<`): write the fields out"),
    })
}

/// Whether there is a merge key anywhere.
fn merges(value: &Value) -> bool {
    match value {
        Value::Mapping(mapping) => mapping.contains_key("<<") || mapping.values().any(merges),
        Value::Sequence(sequence) => sequence.iter().any(merges),
        Value::Tagged(tagged) => merges(&tagged.value),
        _ => false,
    }
}
