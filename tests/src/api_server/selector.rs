//! Label and field selectors.

use serde_json::Value;

/// A label selector.
#[derive(Clone, Debug, Default)]
pub(super) struct LabelSelector(Vec<Requirement>);

#[derive(Clone, Debug)]
enum Requirement {
    Absent(String),
    Present(String),
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
}

impl LabelSelector {
    /// Parses `key`, `!key`, `key=value`, `key==value`, `key!=value`, `key in (a,b)` and
    /// `key notin (a,b)`.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut requirements = Vec::new();
        for part in split(text) {
            requirements.push(
                requirement(part.trim()).ok_or_else(|| format!("unable to parse requirement: {part}"))?,
            );
        }
        Ok(Self(requirements))
    }

    /// Whether the selector matches the object's labels.
    pub(super) fn matches(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        let has = |key: &String, values: &[String]| {
            labels[key]
                .as_str()
                .is_some_and(|label| values.iter().any(|value| value == label))
        };
        self.0.iter().all(|requirement| match requirement {
            Requirement::Absent(key) => labels[key].is_null(),
            Requirement::Present(key) => !labels[key].is_null(),
            Requirement::In(key, values) => has(key, values),
            Requirement::NotIn(key, values) => !has(key, values),
        })
    }
}

/// Splits at commas outside of parentheses.
fn split(text: &str) -> Vec<&str> {
    let mut depth = 0;
    let parts = text.split(|character| {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        character == ',' && depth == 0
    });
    parts.filter(|part| !part.trim().is_empty()).collect()
}

fn requirement(text: &str) -> Option<Requirement> {
    if let Some(key) = text.strip_prefix('!') {
        return Some(Requirement::Absent(key.trim().to_owned()));
    }
    if let Some((key, values)) = text.split_once(" in ") {
        return Some(Requirement::In(key.trim().to_owned(), set(values)?));
    }
    if let Some((key, values)) = text.split_once(" notin ") {
        return Some(Requirement::NotIn(key.trim().to_owned(), set(values)?));
    }
    if let Some((key, value)) = text.split_once("!=") {
        return Some(Requirement::NotIn(
            key.trim().to_owned(),
            vec![value.trim().to_owned()],
        ));
    }
    if let Some((key, value)) = text.split_once('=') {
        let value = value.strip_prefix('=').unwrap_or(value).trim();
        return Some(Requirement::In(key.trim().to_owned(), vec![value.to_owned()]));
    }
    (!text.contains(char::is_whitespace)).then(|| Requirement::Present(text.to_owned()))
}

fn set(text: &str) -> Option<Vec<String>> {
    let values = text.trim().strip_prefix('(')?.strip_suffix(')')?;
    Some(values.split(',').map(|value| value.trim().to_owned()).collect())
}

/// A field selector.
#[derive(Clone, Debug, Default)]
pub(super) struct FieldSelector(Vec<(&'static str, String)>);

impl FieldSelector {
    /// Parses `metadata.name=` and `metadata.namespace=`, the only fields that every kind supports.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut fields = Vec::new();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let field = match part.split_once('=') {
                Some(("metadata.name", value)) => ("name", value),
                Some(("metadata.namespace", value)) => ("namespace", value),
                _ => return Err(format!("field label not supported: {part}")),
            };
            fields.push((field.0, field.1.trim_start_matches('=').to_owned()));
        }
        Ok(Self(fields))
    }

    /// Whether the selector matches the object.
    pub(super) fn matches(&self, object: &Value) -> bool {
        let metadata = &object["metadata"];
        self.0
            .iter()
            .all(|(field, value)| metadata[field].as_str().unwrap_or_default() == value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_selectors_match_the_labels_of_objects() {
        let object = serde_json::json!({"metadata": {"labels": {"app": "web", "a/b": ""}}});
        for (selector, selected) in [
            ("", true),
            ("app", true),
            ("!app", false),
            ("a/b", true),
            ("!c", true),
            ("app=web", true),
            ("app==web", true),
            ("app=api", false),
            ("app!=web", false),
            ("c!=d", true),
            ("app in (api, web),!c", true),
            ("app in (api,db)", false),
            ("app notin (api,db),app", true),
            ("c=", false),
        ] {
            assert_eq!(
                LabelSelector::parse(selector).unwrap().matches(&object),
                selected,
                "{selector}"
            );
        }
        assert!(LabelSelector::parse("app in web").is_err());
        assert!(LabelSelector::parse("a b").is_err());
    }

    #[test]
    fn field_selectors_match_name_and_namespace() {
        let object = serde_json::json!({"metadata": {"name": "a"}});
        assert!(FieldSelector::parse("metadata.name=a").unwrap().matches(&object));
        assert!(!FieldSelector::parse("metadata.name=b").unwrap().matches(&object));
        assert!(
            FieldSelector::parse("metadata.namespace=")
                .unwrap()
                .matches(&object)
        );
        assert!(FieldSelector::parse("spec.type=ClusterIP").is_err());
    }
}
