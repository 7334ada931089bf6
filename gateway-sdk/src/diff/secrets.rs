//! Which values are secrets, and what is shown in their stead.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;

use ring::hmac;
use serde::{Serialize, Serializer};

use crate::Error;

/// In names of several words these stand anywhere, with or without what is between the words:
/// `db_password`, `apiKey`, `X-Api-Key`, `apikey2`.
const ANYWHERE: [&str; 21] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "apikey",
    "accesskey",
    "privatekey",
    "signingkey",
    "encryptionkey",
    "clientkey",
    "sharedkey",
    "masterkey",
    "credential",
    "authorization",
    "cookie",
    "bearer",
    "connectionstring",
    "accesstoken",
    "refreshtoken",
    "authtoken",
    "apitoken",
];
/// As a word of its own, or at the end: `token`, `sessionToken`, `authtoken`; not `max_tokens`.
const WORDS: [&str; 5] = ["token", "pwd", "jwt", "otp", "dsn"];
/// Behind one of them, these say something about it and not it: `api_key_id`, `token_limit`.
const ABOUT: [&str; 19] = [
    "id", "ids", "name", "names", "type", "kind", "count", "limit", "limits", "ttl", "at", "expiry", "expires",
    "policy", "enabled", "required", "length", "min", "max",
];

/// Bytes of a key.
const MIN_KEY_BYTES: usize = 32;
const MAX_KEY_ID_BYTES: usize = 64;
/// What serde is told of a marked field.
pub(super) const MARK: &str = "$gateway_sdk::secret";
/// Whatever was secret, where there is no key.
const SILENT: &str = "[secret]";

/// Which values of a [`Diff`](crate::Diff) are secrets, and the key of what is shown in their
/// stead.
///
/// A value is a secret **by its name**: a member of an object, at any depth, whose name has
/// `password`, `passwd`, `passphrase`, `secret`, `api_key`, `access_key`, `private_key`,
/// `signing_key`, `encryption_key`, `client_key`, `shared_key`, `master_key`, `credential`,
/// `authorization`, `cookie`, `bearer` or `connection_string` in it, or `token`, `pwd`, `jwt`,
/// `otp` or `dsn` as a word or at its end; capitals and what is between words do not matter. Names that go
/// on to say something about it (`api_key_id`, `token_limit`, `password_expires_at`) are no
/// secrets, nor are counts (`max_tokens`). More names: [`name`](Self::name); fewer:
/// [`not_secret`](Self::not_secret). Or **by a marker** on its field: [`secret`].
///
/// Everything below such a member is one secret, whatever its type: a text, a number, `null`, an
/// object. What is shown is one token for the whole:
///
/// - with a key `"[secret k1:5d41…]"`: the key's id and an HMAC-SHA-256 (64 hexadecimal digits)
///   of the value's JSON text. Equal values have equal tokens, whatever their path or time;
///   nothing else can be told from it without the key, not even a length or a type.
/// - without a key `"[secret]"`, which says nothing.
///
/// Names of members are shown, and so are secrets in values that nothing marks, such as
/// a password within a URL or in an element of an array: mark those.
#[derive(Clone, Default)]
pub struct Secrets {
    key: Option<Arc<Key>>,
    names: Vec<Vec<String>>,
    not: Vec<String>,
}

struct Key {
    id: String,
    mac: hmac::Key,
}

impl Secrets {
    /// With a key: its id, 1 to 64 letters, digits, `-`, `_` and `.`, and at least 32 random bytes.
    /// Give a new key a new id.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for an id or a key that is none.
    pub fn with_key(id: impl Into<String>, key: impl AsRef<[u8]>) -> Result<Self, Error> {
        let (id, key) = (id.into(), key.as_ref());
        let wrong = |message: String| Err(Error::Config { setting: "secrets", message });
        let plain = |char: char| char.is_ascii_alphanumeric() || "-_.".contains(char);
        if id.is_empty() || id.len() > MAX_KEY_ID_BYTES || !id.chars().all(plain) {
            return wrong(format!(
                "the key's id is {id:?}; 1 to {MAX_KEY_ID_BYTES} letters, digits, '-', '_' and '.' are allowed"
            ));
        }
        if key.len() < MIN_KEY_BYTES {
            return wrong(format!("the key has {} bytes; at least {MIN_KEY_BYTES} are needed", key.len()));
        }
        let mac = hmac::Key::new(hmac::HMAC_SHA256, key);
        Ok(Self { key: Some(Arc::new(Key { id, mac })), ..Self::default() })
    }

    /// A further name of secrets: `pin` is found in `pin`, `cardPin` and `PIN-code`, not in `spin`.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        let words = words(name);
        if !words.is_empty() {
            self.names.push(words);
        }
        self
    }

    /// A member of exactly this name is no secret, but for marked ones.
    #[must_use]
    pub fn not_secret(mut self, name: impl Into<String>) -> Self {
        self.not.push(name.into());
        self
    }

    /// Whether a member of this name is a secret.
    pub(super) fn covers(&self, name: &str) -> bool {
        if self.not.iter().any(|not| not == name) {
            return false;
        }
        let words = words(name);
        if self.names.iter().any(|own| words.windows(own.len()).any(|some| some == own.as_slice())) {
            return true;
        }
        let joined = words.concat();
        let known = ANYWHERE.iter().any(|part| joined.contains(part))
            || WORDS.iter().any(|word| joined.ends_with(word) || words.iter().any(|own| own == word));
        known && !words.last().is_some_and(|last| ABOUT.contains(&last.as_str()))
    }

    /// What is shown instead of a value.
    pub(super) fn token(&self, plain: &str) -> String {
        let Some(key) = &self.key else { return SILENT.to_owned() };
        let mut mac = hmac::Context::with_key(&key.mac);
        // Nothing else that this key may be used for makes the same.
        mac.update(b"activity secret 1\0");
        mac.update(plain.as_bytes());
        let mut token = format!("[secret {}:", key.id);
        for byte in mac.sign().as_ref() {
            token.push_str(&format!("{byte:02x}"));
        }
        token.push(']');
        token
    }
}

/// Without the key.
impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secrets")
            .field("key", &self.key.as_ref().map(|key| &key.id))
            .field("names", &self.names)
            .field("not_secret", &self.not)
            .finish()
    }
}

/// Lower-case words of a name: `X-Api-Key`, `apiKey` and `api_key` have the same two, `APIKey` too.
fn words(name: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let chars: Vec<char> = name.chars().collect();
    let mut inside = false;
    for (at, char) in chars.iter().enumerate() {
        if !char.is_alphanumeric() {
            inside = false;
            continue;
        }
        let before = at.checked_sub(1).and_then(|at| chars.get(at));
        let after = chars.get(at + 1);
        // A capital begins a word after a small letter, and as the last of several before one.
        let begins = char.is_uppercase()
            && (before.is_some_and(|before| !before.is_uppercase()) || after.is_some_and(|after| after.is_lowercase()));
        match words.last_mut().filter(|_| inside && !begins) {
            Some(word) => word.extend(char.to_lowercase()),
            None => words.push(char.to_lowercase().collect()),
        }
        inside = true;
    }
    words
}

/// Marks a field as a secret, whatever its name is; other formats see the plain value.
///
/// ```
/// #[derive(serde::Serialize)]
/// struct Webhook {
///     url: String,
///     #[serde(serialize_with = "gateway_sdk::secret")]
///     pin: u32,
/// }
///
/// let webhook = |pin| Webhook { url: "https://example.com".into(), pin };
/// let diff = gateway_sdk::Diff::between(&webhook(1234), &webhook(5678));
/// assert_eq!(diff.changes()[0].new_value.as_deref(), Some("\"[secret]\""));
/// assert_eq!(serde_json::to_string(&webhook(1234)).unwrap(), r#"{"url":"https://example.com","pin":1234}"#);
/// ```
///
/// Of a flattened field (`#[serde(flatten)]`), and of a variant of an enum with a tag inside, each
/// member is a secret of its own, the tag too.
///
/// # Errors
///
/// Those of the serializer.
pub fn secret<T: Serialize + ?Sized, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_newtype_struct(MARK, &Marked(value))
}

/// A marked value. serde's serializers for flattened fields and for tags inside take its members
/// one by one, and tell nobody of the mark: it is known while they are taken.
struct Marked<'a, T: ?Sized>(&'a T);

thread_local! {
    /// How many marked values this thread is within.
    static WITHIN: Cell<usize> = const { Cell::new(0) };
}

impl<T: Serialize + ?Sized> Serialize for Marked<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        /// Also where the application's own `Serialize` panics.
        struct Leave;
        impl Drop for Leave {
            fn drop(&mut self) {
                WITHIN.with(|within| within.set(within.get().saturating_sub(1)));
            }
        }
        WITHIN.with(|within| within.set(within.get() + 1));
        let _leave = Leave;
        self.0.serialize(serializer)
    }
}

/// Whether what is serialized now is part of a marked value.
pub(super) fn is_marked() -> bool {
    WITHIN.with(Cell::get) > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_secrets_are_known_however_they_are_written() {
        let secrets = Secrets::default();
        for name in [
            "password",
            "db_password",
            "Password",
            "userPassword2",
            "PASSWD",
            "client_secret",
            "clientSecret",
            "secrets",
            "token",
            "TOKEN",
            "access_token",
            "accessToken",
            "accesstoken",
            "token_value",
            "refresh_tokens",
            "api_key",
            "apiKey",
            "APIKey",
            "X-Api-Key",
            "apikey",
            "api_keys",
            "private_key",
            "privateKeyPem",
            "authorization",
            "Authorization",
            "set-cookie",
            "credentials",
            "passphrase",
            "connection_string",
            "bearer",
            "DATABASE_DSN",
        ] {
            assert!(secrets.covers(name), "{name}");
        }
        for name in [
            "",
            "name",
            "max_tokens",
            "tokens",
            "input_tokens",
            "tokens_per_minute",
            "api_key_id",
            "apiKeyName",
            "token_limit",
            "password_expires_at",
            "secret_name",
            "key",
            "tokenizer",
            "enabled",
            "token_type",
        ] {
            assert!(!secrets.covers(name), "{name}");
        }
    }

    #[test]
    fn names_are_added_and_taken_away() {
        let secrets = Secrets::default().name("pin").name("home address").not_secret("secret_of_success");
        for name in ["pin", "cardPin", "PIN-code", "HomeAddress", "old_home_address"] {
            assert!(secrets.covers(name), "{name}");
        }
        for name in ["spin", "pinned", "address", "secret_of_success"] {
            assert!(!secrets.covers(name), "{name}");
        }
        assert!(secrets.covers("Secret_of_success"), "only exactly this name");
    }

    #[test]
    fn the_token_is_the_hmac_of_the_json_text_under_the_key_named() {
        let secrets = Secrets::with_key("k1", [7; 32]).unwrap();
        // python3: hmac.new(bytes([7]*32), b'activity secret 1\0"hunter2"', 'sha256').hexdigest()
        assert_eq!(
            secrets.token("\"hunter2\""),
            "[secret k1:3f99a67c935ff6945251cd54215b1e47994962a67d12e03ea65353832046fc25]"
        );
        assert!(!format!("{secrets:?}").contains("7, 7"), "{secrets:?}");
    }

    #[test]
    fn keys_that_are_none_are_refused() {
        let wrong = |id: &str, key: &[u8]| Secrets::with_key(id, key).unwrap_err().to_string();
        assert_eq!(wrong("k1", &[1; 31]), "secrets: the key has 31 bytes; at least 32 are needed");
        assert!(wrong("a b", &[1; 32]).starts_with("secrets: the key's id is \"a b\""));
    }
}
