//! The archive in a bucket: S3 and what speaks its protocol, Google Cloud Storage, Azure Blob Storage.
//!
//! object_store knows the protocols and how each cloud gives credentials. It is given our own way to the network, rustls
//! with ring as everywhere here: its own brings reqwest and aws-lc-rs, 33 more in Cargo.lock, of which one is built by cmake.

use std::fmt;
use std::path::Path as FilePath;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::client::{HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path;
use object_store::{ClientOptions, ObjectStore, RetryConfig};
use service_core::config::ConfigError;
use service_core::http_client::{HttpClient, Unanswered};

use super::SEGMENT_BYTES;

/// A whole segment goes or comes in one request: this is 1 Mbit/s.
const TIMEOUT: Duration = Duration::from_secs(300);
/// Of what does not compress, lines take a little more than they are; the last one may pass the bound.
const MAX_ANSWER_BYTES: usize = 2 * SEGMENT_BYTES as usize;
/// Whoever writes the archive tries again by itself.
const RETRIES: usize = 3;

/// Variables of the environment by which the clouds' own tools are told what they may: `AWS_ACCESS_KEY_ID` and so on.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct CloudVariables(Vec<(String, String)>);

impl CloudVariables {
    const PREFIXES: [&str; 3] = ["AWS_", "GOOGLE_", "AZURE_"];

    /// Those among all variables.
    pub fn of(env: impl IntoIterator<Item = (String, String)>) -> Self {
        let ours = |name: &str| Self::PREFIXES.iter().any(|prefix| name.starts_with(prefix));
        Self(env.into_iter().filter(|(name, _)| ours(name)).collect())
    }

    /// Gives a builder those that it knows.
    fn fold<B, K: FromStr>(&self, builder: B, with: impl Fn(B, K, String) -> B) -> B {
        let known = self.0.iter().filter_map(|(name, value)| Some((name.to_ascii_lowercase().parse().ok()?, value)));
        known.fold(builder, |builder, (key, value)| with(builder, key, value.clone()))
    }

    /// A text without what they hold, for people to read.
    fn without_values(&self, text: String) -> String {
        let secret = |value: &&String| value.len() > 3;
        self.0.iter().map(|(_, value)| value).filter(secret).fold(text, |text, value| text.replace(value, "\u{2026}"))
    }
}

/// Their names; a value may be a secret.
impl fmt::Debug for CloudVariables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

/// The bucket of a URL, and the path in it.
pub(super) fn open(url: &str, variables: &CloudVariables) -> anyhow::Result<(Arc<dyn ObjectStore>, Path)> {
    let refused = |why: String| ConfigError::Refused(format!("retention.archive is {url}: {why}"));
    let (scheme, rest) = url.split_once("://").unwrap_or_default();
    let (bucket, path) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() || bucket.contains('@') {
        // The text is not repeated: somebody may have put a password into it.
        let why =
            "retention.archive is a URL without a bucket, or with a user in it: credentials are in the environment";
        return Err(ConfigError::Refused(why.to_owned()).into());
    }
    let path = Path::from_url_path(path).map_err(|error| refused(error.to_string()))?;
    let connector = Connector(HttpClient::new(FilePath::new(""), TIMEOUT, MAX_ANSWER_BYTES).context("HTTP client")?);
    let retry = RetryConfig { max_retries: RETRIES, ..RetryConfig::default() };
    let objects: object_store::Result<Arc<dyn ObjectStore>> = match scheme {
        "s3" => {
            let builder = variables
                .fold(AmazonS3Builder::new(), |builder, key: AmazonS3ConfigKey, value| builder.with_config(key, value));
            let builder = builder.with_url(url).with_retry(retry).with_http_connector(connector);
            builder.build().map(|objects| Arc::new(objects) as _)
        }
        "gs" => {
            let builder = variables.fold(GoogleCloudStorageBuilder::new(), |builder, key: GoogleConfigKey, value| {
                builder.with_config(key, value)
            });
            let builder = builder.with_url(url).with_retry(retry).with_http_connector(connector);
            builder.build().map(|objects| Arc::new(objects) as _)
        }
        "az" => {
            let builder = variables.fold(MicrosoftAzureBuilder::new(), |builder, key: AzureConfigKey, value| {
                builder.with_config(key, value)
            });
            let builder = builder.with_url(url).with_retry(retry).with_http_connector(connector);
            builder.build().map(|objects| Arc::new(objects) as _)
        }
        _ => return Err(refused("allowed are a folder, file://, s3://, gs:// and az://".to_owned()).into()),
    };
    let objects = objects.map_err(|error| refused(variables.without_values(error.to_string())))?;
    Ok((objects, path))
}

/// object_store's way to the network.
#[derive(Debug, Clone)]
struct Connector(HttpClient);

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<object_store::client::HttpClient> {
        Ok(object_store::client::HttpClient::new(self.clone()))
    }
}

#[tonic::async_trait]
impl HttpService for Connector {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let answer = self.0.send(request).await.map_err(|error| {
            let kind = match &error {
                Unanswered::NotSent(_) => HttpErrorKind::Connect,
                Unanswered::Broken(_) => HttpErrorKind::Interrupted,
                Unanswered::Late => HttpErrorKind::Timeout,
            };
            HttpError::new(kind, error)
        })?;
        Ok(answer.map(|body: Bytes| body.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(all: &[(&str, &str)]) -> CloudVariables {
        CloudVariables::of(all.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
    }

    #[test]
    fn a_bucket_is_opened_by_its_url_and_the_variables_of_its_cloud() {
        let aws =
            variables(&[("AWS_ACCESS_KEY_ID", "AKIA"), ("AWS_SECRET_ACCESS_KEY", "hush"), ("AWS_REGION", "eu-1")]);
        let azure = variables(&[("AZURE_STORAGE_ACCOUNT_NAME", "acme"), ("AZURE_STORAGE_ACCOUNT_KEY", "aHVzaA==")]);
        for (url, variables, path) in [
            ("s3://bucket", &aws, ""),
            ("s3://bucket/audit/eu%201", &aws, "audit/eu 1"),
            ("gs://bucket/audit/", &variables(&[]), "audit"),
            ("az://container/audit", &azure, "audit"),
        ] {
            let (objects, root) = open(url, variables).unwrap();
            assert_eq!(root, Path::parse(path).unwrap(), "{url}");
            assert!(!format!("{objects:?}").contains("hush"), "{url}");
        }
    }

    #[test]
    fn what_is_no_bucket_is_refused_and_no_secret_is_told() {
        let secret = variables(&[
            ("AWS_SECRET_ACCESS_KEY", "hush-hush"),
            ("AZURE_STORAGE_ACCOUNT_KEY", "hush-hush"),
            ("HOME", "/"),
        ]);
        for (url, why) in [
            ("ftp://host/a", "allowed are a folder, file://, s3://, gs:// and az://"),
            ("s3://", "without a bucket"),
            ("s3://AKIA:hush-hush@bucket/a", "credentials are in the environment"),
            ("az://container/a", "Account must be specified"),
        ] {
            let refused = open(url, &secret).unwrap_err();
            assert!(refused.is::<ConfigError>());
            let refused = format!("{refused:#} {refused:?}");
            assert!(refused.contains(why) && !refused.contains("hush-hush"), "{url}: {refused}");
        }
        assert_eq!(format!("{secret:?}"), r#"["AWS_SECRET_ACCESS_KEY", "AZURE_STORAGE_ACCOUNT_KEY"]"#);
    }
}
