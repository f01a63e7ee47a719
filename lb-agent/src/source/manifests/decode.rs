//! The parsers of documents: from text to values, with the line of what is wrong.

use serde::Deserialize;
use serde::de::DeserializeSeed;
use serde_norway::Value;

/// How many merges may stand one in another.
const MERGES_MAX: usize = 16;

/// What a document is written in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Syntax {
    /// YAML.
    Yaml,
    /// JSON (RFC 8259). A YAML parser does not read all of it: `"\ud83d\ude00"` is one character
    /// there and none here.
    Json,
}

/// Why a document could not be decoded.
#[derive(Debug)]
pub(super) struct DecodeError {
    /// The line, from 1, if it is known.
    pub(super) line: Option<usize>,
    /// What is wrong.
    pub(super) message: String,
}

impl DecodeError {
    /// An error whose message may end with the place that it names, which is left out.
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
        // Without a location it is the parser's limit against documents that blow up.
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

/// A document's text, ready to be decoded as often as needed.
pub(super) struct Source<'a> {
    syntax: Syntax,
    text: &'a str,
    /// What the text says after its merge keys have been followed; `None` if it has none.
    merged: Option<Value>,
}

impl<'a> Source<'a> {
    /// Takes a text, and follows the merge keys (`<<`) of YAML 1.1, as kubectl does.
    ///
    /// # Errors
    ///
    /// If what a merge key names is no mapping, or merges stand one in another too deeply.
    pub(super) fn new(syntax: Syntax, text: &'a str) -> Result<Self, DecodeError> {
        let may_merge = syntax == Syntax::Yaml && text.contains("<<");
        let merged = if may_merge { merge(text)? } else { None };
        Ok(Self { syntax, text, merged })
    }

    /// Decodes the text, or what its merge keys make of it: errors know no line then.
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

/// What a text says with its merge keys followed; `None` if it has none.
fn merge(text: &str) -> Result<Option<Value>, DecodeError> {
    let mut value = Value::deserialize(serde_norway::Deserializer::from_str(text))?;
    if !merges(&value) {
        return Ok(None);
    }
    // Each time follows those of the outermost level: what is merged may merge in turn.
    for _ in 0..MERGES_MAX {
        value.apply_merge()?;
        if !merges(&value) {
            return Ok(Some(value));
        }
    }
    Err(DecodeError {
        line: None,
        message: format!("more than {MERGES_MAX} merges (`<<`) one in another: write the fields out"),
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
