//! One line of `lb-agent check`.

use std::fmt;

use serde::Serialize;

use crate::datapath::foreign::ForeignProgram;

/// Whether a feature is present.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Availability {
    /// It is present.
    Present,
    /// It is missing.
    Absent,
    /// The check failed.
    Unknown,
}

impl fmt::Display for Availability {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Present => "present",
            Self::Absent => "absent",
            Self::Unknown => "unknown",
        })
    }
}

/// A feature of the kernel or host that the agent uses.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Feature {
    /// Its name.
    pub(super) name: &'static str,
    /// Whether the agent cannot start without it.
    pub(super) required: bool,
    /// The first kernel version that has it. `None` if it does not depend on the version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) since: Option<&'static str>,
    /// What the agent uses it for.
    pub(super) needed_for: &'static str,
    /// What happens without it.
    pub(super) without: &'static str,
    /// Whether it is present.
    pub(super) state: Availability,
    /// What was found, what is missing or why the check failed, and the remedy.
    pub(super) detail: String,
    /// Programs of other software on the devices' hooks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) programs: Vec<ForeignProgram>,
}

/// The result of a probe.
pub(super) struct Found {
    pub(super) state: Availability,
    pub(super) detail: String,
}

impl Found {
    pub(super) fn present(detail: impl Into<String>) -> Self {
        Self::new(Availability::Present, detail)
    }

    pub(super) fn absent(detail: impl Into<String>) -> Self {
        Self::new(Availability::Absent, detail)
    }

    pub(super) fn unknown(error: impl Into<anyhow::Error>) -> Self {
        Self::new(Availability::Unknown, crate::describe(error.into().as_ref()))
    }

    fn new(state: Availability, detail: impl Into<String>) -> Self {
        Self {
            state,
            detail: detail.into(),
        }
    }
}

impl<E: Into<anyhow::Error>> From<Result<bool, E>> for Found {
    fn from(supported: Result<bool, E>) -> Self {
        match supported {
            Ok(true) => Self::present(""),
            Ok(false) => Self::absent(""),
            Err(error) => Self::unknown(error),
        }
    }
}

impl Feature {
    /// A feature without which the agent does not start.
    pub(super) fn required(name: &'static str, needed_for: &'static str, found: Found) -> Self {
        Self {
            required: true,
            ..Self::optional(name, needed_for, "the agent does not start", found)
        }
    }

    /// A feature that the agent can replace or do without.
    pub(super) fn optional(
        name: &'static str,
        needed_for: &'static str,
        without: &'static str,
        found: Found,
    ) -> Self {
        Self {
            name,
            required: false,
            since: None,
            needed_for,
            without,
            state: found.state,
            detail: found.detail,
            programs: Vec::new(),
        }
    }

    pub(super) fn since(self, version: &'static str) -> Self {
        Self {
            since: Some(version),
            ..self
        }
    }

    /// Whether the feature is required but not known to be present.
    pub(super) fn fatal(&self) -> bool {
        self.required && self.state != Availability::Present
    }

    /// Returns the note for the table: the details, and the consequence if the feature is missing.
    pub(super) fn note(&self) -> String {
        match (self.state, self.detail.as_str()) {
            (Availability::Present, detail) => detail.to_owned(),
            (Availability::Absent, "") => format!("without it: {}", self.without),
            (Availability::Absent, detail) => format!("without it: {}; {detail}", self.without),
            (Availability::Unknown, detail) => format!("cannot check: {detail}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feature(found: Found) -> Feature {
        Feature::optional("a", "b", "slower", found)
    }

    #[test]
    fn the_note_contains_the_consequence_of_a_missing_feature() {
        assert_eq!(feature(Found::present("here")).note(), "here");
        assert_eq!(feature(Found::absent("")).note(), "without it: slower");
        assert_eq!(
            feature(Found::absent("do this")).note(),
            "without it: slower; do this"
        );
        let error = std::io::Error::other("no answer");
        assert_eq!(feature(Found::unknown(error)).note(), "cannot check: no answer");
    }

    #[test]
    fn only_required_features_are_fatal() {
        let error = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        assert!(!feature(Found::absent("")).fatal());
        assert!(!Feature::required("a", "b", Found::present("")).fatal());
        assert!(Feature::required("a", "b", Found::absent("")).fatal());
        assert!(Feature::required("a", "b", Found::unknown(error)).fatal());
    }
}
