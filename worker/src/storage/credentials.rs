//! From environment variables to a client of one bucket; and which variable is missing when it cannot be.

use super::{Location, ObjectUrl, Scheme, StorageError};
use object_store::{
    ClientOptions, ObjectStore, RetryConfig, aws::AmazonS3Builder, azure::MicrosoftAzureBuilder,
    gcp::GoogleCloudStorageBuilder, multipart::MultipartStore,
};
use std::{fmt, sync::Arc, time::Duration};

/// Variables that say who asks S3, any one of which is enough.
const S3_IDENTITIES: [&str; 4] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
];

/// A client of one bucket. Both are the same client.
#[derive(Clone)]
pub struct Client {
    /// Of whole objects.
    pub objects: Arc<dyn ObjectStore>,
    /// Of objects that come in parts.
    pub parts: Arc<dyn MultipartStore>,
}

impl Client {
    fn of(store: impl ObjectStore + MultipartStore) -> Self {
        let store = Arc::new(store);
        Self { objects: store.clone(), parts: store }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.objects.fmt(f)
    }
}

/// The environment, or what a test puts in its place.
#[derive(Debug)]
pub struct Environment(pub Vec<(String, String)>);

impl Environment {
    /// A client of the bucket that `url` lies in. It does not try again by itself: `retry` does, and counts.
    pub fn client(&self, url: &ObjectUrl, attempt: Duration) -> Result<Client, StorageError> {
        let refused = |reason: String| StorageError::Credentials { location: Location::Object(url.clone()), reason };
        if let Some(missing) = self.half_a_pair(url.scheme) {
            return Err(refused(missing));
        }
        // `retry` bounds each try; the client's own limit stands behind it.
        let options = ClientOptions::new()
            .with_timeout(attempt * 2)
            .with_connect_timeout(attempt.min(Duration::from_secs(5)))
            .with_allow_http(self.endpoint_is_http(url.scheme));
        let retry = RetryConfig { max_retries: 0, retry_timeout: attempt, ..RetryConfig::default() };
        let built: Result<Client, object_store::Error> = match url.scheme {
            Scheme::S3 => self
                .of("AWS_")
                .fold(AmazonS3Builder::new(), |builder, (key, value)| match key.parse() {
                    Ok(key) => builder.with_config(key, value),
                    Err(_) => builder,
                })
                .with_bucket_name(&url.bucket)
                .with_client_options(options)
                .with_retry(retry)
                .build()
                .map(Client::of),
            Scheme::Gs => self
                .of("GOOGLE_")
                .fold(GoogleCloudStorageBuilder::new(), |builder, (key, value)| match key.parse() {
                    Ok(key) => builder.with_config(key, value),
                    Err(_) => builder,
                })
                .with_bucket_name(&url.bucket)
                .with_client_options(options)
                .with_retry(retry)
                .build()
                .map(Client::of),
            Scheme::Az => self
                .of("AZURE_")
                .fold(MicrosoftAzureBuilder::new(), |builder, (key, value)| match key.parse() {
                    Ok(key) => builder.with_config(key, value),
                    Err(_) => builder,
                })
                .with_container_name(&url.bucket)
                .with_client_options(options)
                .with_retry(retry)
                .build()
                .map(Client::of),
        };
        built.map_err(|error| refused(format!("{error}{}", self.hint(url.scheme))))
    }

    /// What may be wrong with the environment, as the end of a sentence about a failure; empty when nothing is known.
    pub fn hint(&self, scheme: Scheme) -> String {
        let text = match scheme {
            Scheme::S3 if self.get("AWS_SKIP_SIGNATURE").is_some_and(|value| value == "true") => "",
            Scheme::S3 if !S3_IDENTITIES.iter().any(|name| self.get(name).is_some()) => {
                "; AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set (for a public bucket set AWS_SKIP_SIGNATURE=true), \
                 so the machine's own role was asked for"
            }
            Scheme::Gs if self.of("GOOGLE_").next().is_none() => {
                "; GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT is not set, so the machine's own account was asked for"
            }
            Scheme::Az if self.get("AZURE_STORAGE_ACCOUNT_NAME").is_none() => "; AZURE_STORAGE_ACCOUNT_NAME is not set",
            _ => "",
        };
        text.to_owned()
    }

    /// A key without its secret, or the other way round.
    fn half_a_pair(&self, scheme: Scheme) -> Option<String> {
        let pair = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"];
        let [key, secret] = pair.map(|name| self.get(name).is_some());
        (scheme == Scheme::S3 && key != secret).then(|| {
            let (has, lacks) = if key { (pair[0], pair[1]) } else { (pair[1], pair[0]) };
            format!("{has} is set and {lacks} is not; set both, or neither to use the machine's own role")
        })
    }

    /// Unencrypted requests are made only where the user wrote http:// into an endpoint.
    fn endpoint_is_http(&self, scheme: Scheme) -> bool {
        let names: &[&str] = match scheme {
            Scheme::S3 => &["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"],
            Scheme::Gs => &["GOOGLE_BASE_URL"],
            Scheme::Az => &["AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"],
        };
        let endpoint = names.iter().find_map(|name| self.get(name));
        endpoint.is_some_and(|url| url.starts_with("http://"))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// The variables with a prefix, their names in lower case as `object_store` wants them.
    fn of(&self, prefix: &'static str) -> impl Iterator<Item = (String, &str)> {
        let ours = self.0.iter().filter(move |(key, value)| key.starts_with(prefix) && !value.is_empty());
        ours.map(|(key, value)| (key.to_ascii_lowercase(), value.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(scheme: Scheme) -> ObjectUrl {
        ObjectUrl { scheme, bucket: "b".to_owned(), key: "k".to_owned() }
    }

    fn environment(variables: &[(&str, &str)]) -> Environment {
        Environment(variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn a_key_without_its_secret_is_refused_and_the_missing_one_named() {
        for (set, missing) in [
            ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY is not"),
            ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID is not"),
        ] {
            let client = environment(&[(set, "x")]).client(&url(Scheme::S3), Duration::from_secs(1));
            let error = client.unwrap_err().to_string();
            assert!(error.contains(missing) && error.contains("s3://b/k"), "{error}");
        }
        let client = environment(&[]).client(&url(Scheme::Az), Duration::from_secs(1));
        let error = client.unwrap_err().to_string();
        assert!(error.contains("AZURE_STORAGE_ACCOUNT_NAME") && error.contains("az://b/k"), "{error}");
    }

    #[test]
    fn a_failure_without_credentials_says_which_variables_are_missing() {
        assert!(environment(&[]).hint(Scheme::S3).contains("AWS_ACCESS_KEY_ID"));
        assert!(environment(&[]).hint(Scheme::Gs).contains("GOOGLE_APPLICATION_CREDENTIALS"));
        let set = environment(&[("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b")]);
        assert_eq!(set.hint(Scheme::S3), "");
        assert_eq!(environment(&[("AWS_SKIP_SIGNATURE", "true")]).hint(Scheme::S3), "");
    }

    #[test]
    fn clients_of_all_three_stores_are_built() {
        let all = environment(&[
            ("AWS_ACCESS_KEY_ID", "a"),
            ("AWS_SECRET_ACCESS_KEY", "b"),
            ("AWS_REGION", "eu-west-1"),
            ("AZURE_STORAGE_ACCOUNT_NAME", "account"),
            ("AZURE_STORAGE_ACCOUNT_KEY", "a2V5"),
            ("GOOGLE_SKIP_SIGNATURE", "true"),
        ]);
        for scheme in [Scheme::S3, Scheme::Gs, Scheme::Az] {
            all.client(&url(scheme), Duration::from_secs(1)).unwrap();
        }
    }
}
