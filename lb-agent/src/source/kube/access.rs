//! A client for the API server that uses the current credentials from their files.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper::header::{AUTHORIZATION, HeaderValue};
use kube::client::AuthError;
use kube::{Client, Config};

use super::config::place;
use super::{KubeError, root_cause};

/// How long the client waits for data from the server. It is longer than the silence between two
/// events of a watch.
const READ_TIMEOUT: Duration = Duration::from_secs(360);

/// Makes the client.
pub(super) fn client(mut config: Config) -> Result<Client, KubeError> {
    config.read_timeout.get_or_insert(READ_TIMEOUT);
    // The watch does its own retries, with a longer backoff and with a warning to the operator.
    // Also, status 504 may mean that a resource version is unknown; a retry does not help.
    config.default_retry = false;
    // Otherwise the timeout includes the time that a connection was idle.
    config.reset_reader_on_write = true;
    let place = place(&config);
    // kube reads the file about once a minute. That is too late for a token that was rotated early,
    // and never happens if the clock was set back. kube also does not accept a trailing newline.
    let token_file = config.auth_info.token_file.take().map(TokenFile::new);
    let inner = Client::try_from(config.clone()).map_err(|source| KubeError::Client {
        place: place.clone(),
        source: Box::new(source),
    })?;
    let namespace = config.default_namespace.clone();
    let access = Arc::new(Access {
        config,
        place,
        token_file,
        inner: Mutex::new(inner),
    });
    let service = tower::service_fn(move |request| {
        let access = access.clone();
        async move { access.send(request).await }
    });
    Ok(Client::new(service, namespace))
}

type Request = hyper::Request<kube::client::Body>;
type Response = hyper::Response<kube::client::Body>;

struct Access {
    config: Config,
    place: String,
    token_file: Option<TokenFile>,
    inner: Mutex<Client>,
}

impl Access {
    async fn send(&self, mut request: Request) -> Result<Response, kube::Error> {
        if let Some(file) = &self.token_file {
            let header = file.header(&self.place).map_err(kube::Error::Auth)?;
            request.headers_mut().insert(AUTHORIZATION, header);
        }
        let client = lock(&self.inner).clone();
        let response = client.send(request).await?;
        if response.status().as_u16() == 401 {
            self.renew().await;
        }
        Ok(response)
    }

    /// Makes a new client. It reads certificates from their files and runs the exec plugin again.
    async fn renew(&self) {
        let config = self.config.clone();
        // An exec plugin may take long.
        match tokio::task::spawn_blocking(move || Client::try_from(config)).await {
            Ok(Ok(client)) => *lock(&self.inner) = client,
            Ok(Err(error)) => tracing::warn!(
                "cannot renew the credentials for the API server at {}, using the old ones: correct those in the \
                 kubeconfig: {}",
                self.place,
                root_cause(&error)
            ),
            Err(error) => tracing::debug!(%error, "the task that renews the credentials failed"),
        }
    }
}

/// A file with a token that may change at any time.
struct TokenFile {
    path: PathBuf,
    /// The header from the last successful read.
    last: Mutex<Option<HeaderValue>>,
}

impl TokenFile {
    fn new(path: String) -> Self {
        Self {
            path: path.into(),
            last: Mutex::new(None),
        }
    }

    /// Returns the header with the file's token. If the file is not usable, returns the last
    /// header: the writer may remove the file for a moment.
    fn header(&self, place: &str) -> Result<HeaderValue, AuthError> {
        let mut last = lock(&self.last);
        match (self.read(), &*last) {
            (Ok(header), _) => Ok(last.insert(header).clone()),
            (Err(error), None) => Err(error),
            (Err(error), Some(header)) => {
                tracing::warn!(
                    "cannot read the token for the API server at {place} from {}, using the previous one: give the file \
                     a token: {}",
                    self.path.display(),
                    root_cause(&error)
                );
                Ok(header.clone())
            }
        }
    }

    fn read(&self) -> Result<HeaderValue, AuthError> {
        let unreadable = |error| AuthError::ReadTokenFile(error, self.path.clone());
        let text = std::fs::read_to_string(&self.path).map_err(unreadable)?;
        let token = text.trim();
        if token.is_empty() {
            return Err(unreadable(std::io::Error::other("it is empty")));
        }
        let mut header =
            HeaderValue::try_from(format!("Bearer {token}")).map_err(AuthError::InvalidBearerToken)?;
        header.set_sensitive(true);
        Ok(header)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
