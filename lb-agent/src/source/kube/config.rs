//! Where the API server is and which credentials to use: from kubeconfigs as kubectl reads them,
//! otherwise from the Pod's service account.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;

use hyper::Uri;
use hyper_util::client::proxy::matcher::Matcher;
use kube::Config;
use kube::config::{Cluster, KubeConfigOptions, Kubeconfig, KubeconfigError};

use super::KubeError;

/// Infers the configuration; `variable` reads an environment variable.
pub(super) async fn infer(variable: impl Fn(&str) -> Option<OsString>) -> Result<Config, KubeError> {
    let paths = files(&variable);
    let files: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    let files = files.join(", ");
    let unusable = |source| KubeError::Kubeconfig {
        files: files.clone(),
        source: Box::new(source),
    };
    let kubeconfig = read(&paths).map_err(unusable)?;
    let configured = cluster(&kubeconfig).and_then(|cluster| cluster.proxy_url.clone());
    // Like kubectl, treat an empty kubeconfig as missing.
    let is_empty = kubeconfig.clusters.is_empty() && kubeconfig.current_context.is_none();
    let mut config = match is_empty {
        true => Config::incluster().map_err(|source| KubeError::NoConfig {
            files: files.clone(),
            source: Box::new(source),
        })?,
        false => from_kubeconfig(kubeconfig).await.map_err(unusable)?,
    };
    // This replaces kube's choice. kube matches NO_PROXY against the proxy instead of the API
    // server, and uses no proxy in a Pod.
    config.proxy_url = proxy(&config.cluster_url, configured, variable)?;
    Ok(config)
}

async fn from_kubeconfig(kubeconfig: Kubeconfig) -> Result<Config, KubeconfigError> {
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    if config.auth_info.token_file.is_some() {
        // If a user has both a token and a token file, kubectl reads the file.
        config.auth_info.token = None;
        config.auth_info.exec = None;
    }
    if config.accept_invalid_certs {
        tracing::warn!(
            "the certificate of the API server at {} is not verified: set certificate-authority in the kubeconfig instead \
             of insecure-skip-tls-verify",
            config.cluster_url
        );
    }
    Ok(config)
}

/// Describes where the API server is, for log lines and errors.
pub(super) fn place(config: &Config) -> String {
    let url = &config.cluster_url;
    // Only the proxy's host and port: its URL may contain a password.
    let proxy = config
        .proxy_url
        .as_ref()
        .map(|proxy| (proxy.host().unwrap_or_default(), proxy.port_u16()));
    match proxy {
        None => url.to_string(),
        Some((host, None)) => format!("{url} through the proxy {host}"),
        Some((host, Some(port))) => format!("{url} through the proxy {host}:{port}"),
    }
}

/// Returns the paths of kubeconfigs, which need not exist.
fn files(variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let named = variable("KUBECONFIG").unwrap_or_default();
    let mut files: Vec<_> = std::env::split_paths(&named)
        .filter(|file| !file.as_os_str().is_empty())
        .collect();
    if files.is_empty() {
        let home = variable("HOME").map(PathBuf::from);
        files.extend(home.map(|home| home.join(".kube/config")));
    }
    files
}

/// Merges the kubeconfigs that exist. If two of them set the same value, the first one wins.
fn read(files: &[PathBuf]) -> Result<Kubeconfig, KubeconfigError> {
    let mut all = Kubeconfig::default();
    for file in files {
        match Kubeconfig::read_from(file) {
            Ok(kubeconfig) => all = all.merge(kubeconfig)?,
            Err(KubeconfigError::ReadConfig(error, _)) if error.kind() == std::io::ErrorKind::NotFound => {
                tracing::debug!(file = %file.display(), "no such kubeconfig");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

/// The cluster of the current context.
fn cluster(kubeconfig: &Kubeconfig) -> Option<&Cluster> {
    let name = kubeconfig.current_context.as_ref()?;
    let mut contexts = kubeconfig.contexts.iter();
    let context = contexts.find(|context| context.name == *name)?.context.as_ref()?;
    let mut clusters = kubeconfig.clusters.iter();
    clusters
        .find(|cluster| cluster.name == context.cluster)?
        .cluster
        .as_ref()
}

/// Returns the proxy for connections to the API server: the kubeconfig's, otherwise the
/// environment's. The environment's proxy is not used for loopback addresses and hosts that
/// NO_PROXY contains.
fn proxy(
    url: &Uri,
    configured: Option<String>,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<Option<Uri>, KubeError> {
    let set = |name: &str| {
        let value = variable(name).or_else(|| variable(&name.to_lowercase()))?;
        value.into_string().ok().filter(|value| !value.is_empty())
    };
    if let Some(configured) = configured.filter(|configured| !configured.is_empty()) {
        return parse("proxy-url in the kubeconfig", &configured).map(Some);
    }
    let name = match url.scheme_str() {
        Some("http") => "HTTP_PROXY",
        _ => "HTTPS_PROXY",
    };
    let Some(text) = set(name) else {
        return Ok(None);
    };
    let proxy = parse(name, &text)?;
    let matcher = Matcher::builder()
        .all(text)
        .no(set("NO_PROXY").unwrap_or_default())
        .build();
    let is_needed = !is_here(url) && matcher.intercept(url).is_some();
    Ok(is_needed.then_some(proxy))
}

fn parse(setting: &'static str, text: &str) -> Result<Uri, KubeError> {
    let full = match text.contains("://") {
        true => text.to_owned(),
        false => format!("http://{text}"),
    };
    full.parse()
        .map_err(|source| KubeError::Proxy { setting, source })
}

fn is_here(url: &Uri) -> bool {
    let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Returns a function that reads the given variables.
    fn environment(variables: &[(&str, &str)]) -> impl Fn(&str) -> Option<OsString> {
        let variables: Vec<_> = variables
            .iter()
            .map(|(name, value)| (name.to_string(), OsString::from(value)))
            .collect();
        move |asked| {
            let mut variables = variables.iter();
            variables
                .find(|(name, _)| name == asked)
                .map(|(_, value)| value.clone())
        }
    }

    fn write(directory: &Path, name: &str, config: &serde_json::Value) -> String {
        let file = directory.join(name);
        std::fs::write(&file, config.to_string()).unwrap();
        file.to_str().unwrap().to_owned()
    }

    fn kubeconfig(server: &str, more: &[(&str, &str)]) -> serde_json::Value {
        let mut cluster = serde_json::json!({"server": server});
        for (key, value) in more {
            cluster[*key] = (*value).into();
        }
        serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "here",
            "clusters": [{"name": "here", "cluster": cluster}],
            "users": [{"name": "me", "user": {"token": "old", "tokenFile": "token"}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
        })
    }

    async fn infer_from(files: &[&str]) -> Result<Config, KubeError> {
        infer(environment(&[("KUBECONFIG", &files.join(":"))])).await
    }

    #[tokio::test]
    async fn kubeconfigs_that_are_missing_are_skipped() {
        let directory = tempfile::tempdir().unwrap();
        let first = write(
            directory.path(),
            "first",
            &kubeconfig("https://first.example/", &[]),
        );
        let second = write(
            directory.path(),
            "second",
            &kubeconfig("https://second.example/", &[]),
        );
        for files in [
            ["/nowhere", &first, &second],
            [&first, "/nowhere", &second],
            ["", &first, ""],
        ] {
            let config = infer_from(&files).await.unwrap();
            assert_eq!(config.cluster_url, "https://first.example/", "{files:?}");
        }
    }

    #[tokio::test]
    async fn errors_name_the_files() {
        let directory = tempfile::tempdir().unwrap();
        let broken = write(directory.path(), "broken", &serde_json::json!("broken"));
        let error = infer_from(&["/nowhere", &broken]).await.unwrap_err();
        assert!(matches!(error, KubeError::Kubeconfig { .. }), "{error}");
        assert!(error.to_string().contains(&broken), "{error}");
        let error = infer_from(&["/nowhere"]).await.unwrap_err();
        assert!(matches!(error, KubeError::NoConfig { .. }), "{error}");
        assert!(error.to_string().contains("/nowhere"), "{error}");
    }

    #[tokio::test]
    async fn without_kubeconfig_variable_the_file_in_home_is_used() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".kube")).unwrap();
        write(
            home.path(),
            ".kube/config",
            &kubeconfig("https://home.example/", &[]),
        );
        let variables = [("HOME", home.path().to_str().unwrap()), ("KUBECONFIG", "")];
        let config = infer(environment(&variables)).await.unwrap();
        assert_eq!(config.cluster_url, "https://home.example/");
    }

    #[tokio::test]
    async fn a_token_file_takes_precedence_over_a_token() {
        let directory = tempfile::tempdir().unwrap();
        let file = write(
            directory.path(),
            "config",
            &kubeconfig("https://api.example/", &[]),
        );
        let user = infer_from(&[&file]).await.unwrap().auth_info;
        assert!(user.token.is_none());
        // The path is relative to the kubeconfig's directory.
        assert_eq!(
            user.token_file.unwrap(),
            directory.path().join("token").to_str().unwrap()
        );
    }

    #[tokio::test]
    async fn the_kubeconfig_proxy_overrides_the_environment() {
        let directory = tempfile::tempdir().unwrap();
        let proxy = [("proxy-url", "http://me:secret@proxy.example:3128")];
        let config = kubeconfig("https://api.example/", &proxy);
        let file = write(directory.path(), "config", &config);
        let variables = [
            ("KUBECONFIG", file.as_str()),
            ("NO_PROXY", "proxy.example,api.example"),
        ];
        let config = infer(environment(&variables)).await.unwrap();
        let url = config.proxy_url.clone().unwrap().to_string();
        assert_eq!(url, "http://me:secret@proxy.example:3128/");
        assert_eq!(
            place(&config),
            "https://api.example/ through the proxy proxy.example:3128"
        );
    }

    #[test]
    fn the_environment_selects_the_proxy() {
        const PROXY: &str = "http://proxy.example:3128/";
        for (url, variables, expected) in [
            ("https://api.example/", &[][..], None),
            ("https://api.example/", &[("HTTPS_PROXY", PROXY)], Some(PROXY)),
            ("https://api.example/", &[("https_proxy", PROXY)], Some(PROXY)),
            (
                "https://api.example/",
                &[("HTTPS_PROXY", "proxy.example:3128")],
                Some(PROXY),
            ),
            ("https://api.example/", &[("HTTPS_PROXY", "")], None),
            ("https://api.example/", &[("HTTP_PROXY", PROXY)], None),
            ("http://api.example/", &[("HTTP_PROXY", PROXY)], Some(PROXY)),
            (
                "https://api.example/",
                &[("HTTPS_PROXY", PROXY), ("NO_PROXY", "x,, .example")],
                None,
            ),
            (
                "https://api.example/",
                &[("HTTPS_PROXY", PROXY), ("no_proxy", "api.example")],
                None,
            ),
            (
                "https://api.example/",
                &[("HTTPS_PROXY", PROXY), ("NO_PROXY", "proxy.example")],
                Some(PROXY),
            ),
            (
                "https://10.96.0.1/",
                &[("HTTPS_PROXY", PROXY), ("NO_PROXY", "10.96.0.0/12")],
                None,
            ),
            (
                "https://[fd00::1]/",
                &[("HTTPS_PROXY", PROXY), ("NO_PROXY", "fd00::/8")],
                None,
            ),
            ("https://[::1]:6443/", &[("HTTPS_PROXY", PROXY)], None),
            ("https://127.0.0.1:6443/", &[("HTTPS_PROXY", PROXY)], None),
        ] {
            let proxy = proxy(&url.parse().unwrap(), None, environment(variables)).unwrap();
            let proxy = proxy.map(|proxy| proxy.to_string());
            assert_eq!(proxy.as_deref(), expected, "{url} {variables:?}");
        }
    }

    #[test]
    fn an_invalid_proxy_url_is_an_error_that_hides_the_password() {
        let variables = environment(&[("HTTPS_PROXY", "http://me:secret@[/")]);
        let error = proxy(&Uri::from_static("https://api.example/"), None, variables).unwrap_err();
        assert!(error.to_string().starts_with("HTTPS_PROXY is not"), "{error}");
        assert!(!crate::describe(&error).contains("secret"), "{error}");
    }
}
