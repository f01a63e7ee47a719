//! Names that Kubernetes allows.

/// Returns why a name is not a DNS label (RFC 1123). Services and namespaces need one.
pub(super) fn label_fault(name: &str) -> Option<&'static str> {
    if name.len() > 63 {
        return Some("must have at most 63 characters");
    }
    if !is_label(name) {
        return Some("must consist of a-z, 0-9 and '-', with a letter or digit at both ends");
    }
    None
}

/// Returns why a name is not a DNS subdomain (RFC 1123). EndpointSlices, Nodes and Pods need one.
pub(super) fn subdomain_fault(name: &str) -> Option<&'static str> {
    if name.len() > 253 {
        return Some("must have at most 253 characters");
    }
    // Kubernetes does not limit the length of one part of a subdomain.
    if !name.split('.').all(is_label) {
        return Some(
            "must consist of a-z, 0-9, '-' and '.', with a letter or digit at both ends of each part",
        );
    }
    None
}

fn is_label(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !name.is_empty() && name.bytes().all(allowed) && !name.starts_with('-') && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels() {
        for good in ["a", "web-1", "1", &"a".repeat(63)] {
            assert_eq!(label_fault(good), None, "{good}");
        }
        for bad in ["", "-a", "a-", "a.b", "A", "a_b", "a b", "ä", &"a".repeat(64)] {
            assert!(label_fault(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn only_valid_subdomains_are_accepted() {
        for good in ["a", "a.b", "ip-10-0-0-1.internal", &"a".repeat(253)] {
            assert_eq!(subdomain_fault(good), None, "{good}");
        }
        for bad in ["", ".", "a.", ".a", "a..b", "a.-b", "A.b", &"a".repeat(254)] {
            assert!(subdomain_fault(bad).is_some(), "{bad}");
        }
    }
}
