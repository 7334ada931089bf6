//! Certificates and tokens as they are given out for real, and the settings of a server that believes them.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use ring::rand::SystemRandom;
use ring::rsa::PublicKeyComponents;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair,
};
use ring::{hmac, rsa};
use serde_json::{Value, json};
use tempfile::TempDir;

/// What tokens of a [`Realm`] are issued by, and for whom.
pub const ISSUER: &str = "https://login.example.com";
/// See [`ISSUER`].
pub const AUDIENCE: &str = "activity";

/// A root, and what is made under it.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

impl Authority {
    /// A new root of this name.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().expect("key")).expect("root"))
    }

    /// The root's certificate.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// Certificate and key for a name such as `dns:localhost` or `uri:spiffe://example.com/gateway`.
    pub fn issue(&self, san: &str) -> (String, String) {
        self.issue_until(san, None)
    }

    /// The same, which holds until this many seconds after the epoch.
    pub fn issue_until(&self, san: &str, not_after_s: Option<u64>) -> (String, String) {
        let mut params = CertificateParams::default();
        let (kind, name) = san.split_once(':').expect("a kind");
        let text = name.try_into().expect("ASCII");
        params.subject_alt_names = vec![if kind == "dns" { SanType::DnsName(text) } else { SanType::URI(text) }];
        if let Some(seconds) = not_after_s {
            params.not_after = (UNIX_EPOCH + std::time::Duration::from_secs(seconds)).into();
        }
        let key = KeyPair::generate().expect("key");
        (params.signed_by(&key, &self.0).expect("signed").pem(), key.serialize_pem())
    }

    /// `certificate.pem` and `key.pem` of a server on this machine.
    pub fn write(&self, folder: &Path) {
        let (certificate, key) = self.issue("dns:localhost");
        std::fs::write(folder.join("key.pem"), key).expect("written");
        std::fs::write(folder.join("certificate.pem"), certificate).expect("written");
    }
}

/// What a provider signs tokens with.
pub enum Signer {
    /// RS256.
    Rs256(Box<RsaKeyPair>),
    /// ES256.
    Es256(Box<EcdsaKeyPair>),
    /// EdDSA with Ed25519.
    EdDsa(Box<Ed25519KeyPair>),
    /// HS256.
    Hs256(Vec<u8>),
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.algorithm())
    }
}

/// base64url without padding.
pub fn base64url(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Signer {
    /// With an RSA key, always the same: making one takes long.
    pub fn rsa() -> Self {
        let pem = include_str!("identity/rsa_test_key.pem");
        let base64: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
        let der = STANDARD.decode(base64).expect("base64");
        Self::Rs256(Box::new(RsaKeyPair::from_pkcs8(&der).expect("PKCS #8")))
    }

    /// With a new key on P-256.
    pub fn ec() -> Self {
        let (kind, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let key = EcdsaKeyPair::generate_pkcs8(kind, &random).expect("key");
        Self::Es256(Box::new(EcdsaKeyPair::from_pkcs8(kind, key.as_ref(), &random).expect("key")))
    }

    /// With a new Ed25519 key.
    pub fn ed() -> Self {
        let key = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("key");
        Self::EdDsa(Box::new(Ed25519KeyPair::from_pkcs8(key.as_ref()).expect("key")))
    }

    /// As in a token's header.
    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::Rs256(_) => "RS256",
            Self::Es256(_) => "ES256",
            Self::EdDsa(_) => "EdDSA",
            Self::Hs256(_) => "HS256",
        }
    }

    /// The public key, as a key set has it.
    pub fn jwk(&self, id: &str) -> Value {
        let mut jwk = match self {
            Self::Rs256(key) => {
                let public: PublicKeyComponents<Vec<u8>> = rsa::KeyPair::public(key).into();
                let (n, e) = (base64url(public.n), base64url(public.e));
                json!({ "kty": "RSA", "n": n, "e": e, "use": "sig", "alg": "RS256" })
            }
            Self::Es256(key) => {
                let (x, y) = key.public_key().as_ref()[1..].split_at(32);
                json!({ "kty": "EC", "crv": "P-256", "x": base64url(x), "y": base64url(y) })
            }
            Self::EdDsa(key) => json!({ "kty": "OKP", "crv": "Ed25519", "x": base64url(key.public_key()) }),
            Self::Hs256(secret) => json!({ "kty": "oct", "k": base64url(secret) }),
        };
        jwk["kid"] = json!(id);
        jwk
    }

    /// A token with this header and these claims, whatever they are.
    pub fn signed(&self, header: &Value, claims: &Value) -> String {
        let message = format!("{}.{}", base64url(header.to_string()), base64url(claims.to_string()));
        let (bytes, random) = (message.as_bytes(), SystemRandom::new());
        let signature = match self {
            Self::Rs256(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(&RSA_PKCS1_SHA256, &random, bytes, &mut signature).expect("signed");
                signature
            }
            Self::Es256(key) => key.sign(&random, bytes).expect("signed").as_ref().to_vec(),
            Self::EdDsa(key) => key.sign(bytes).as_ref().to_vec(),
            Self::Hs256(secret) => hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), bytes).as_ref().to_vec(),
        };
        format!("{message}.{}", base64url(signature))
    }

    /// A token with the usual header.
    pub fn token(&self, id: &str, claims: &Value) -> String {
        self.signed(&json!({ "alg": self.algorithm(), "kid": id, "typ": "JWT" }), claims)
    }
}

/// Everything that a server needs to show who it is and to know who calls: a root that has certified it, and a
/// provider whose key set it has, as files in a folder.
#[derive(Debug)]
pub struct Realm {
    /// Of the server, and of clients with certificates.
    pub authority: Authority,
    /// Of tokens; its key id is `1`.
    pub signer: Signer,
    /// `certificate.pem`, `key.pem`, `clients.pem`, `jwks.json`.
    pub folder: TempDir,
}

impl Default for Realm {
    fn default() -> Self {
        Self::new()
    }
}

impl Realm {
    /// A new one.
    pub fn new() -> Self {
        let (authority, signer) = (Authority::new("root"), Signer::ed());
        let folder = tempfile::tempdir().expect("folder");
        authority.write(folder.path());
        std::fs::write(folder.path().join("clients.pem"), authority.pem()).expect("written");
        let jwks = json!({ "keys": [signer.jwk("1")] });
        std::fs::write(folder.path().join("jwks.json"), jwks.to_string()).expect("written");
        Self { authority, signer, folder }
    }

    /// A file of the folder.
    pub fn path(&self, file: &str) -> String {
        self.folder.path().join(file).to_str().expect("UTF-8").to_owned()
    }

    /// `[tls]` and `[auth]` of a server, as variables without the service's prefix: `TLS__KEY_FILE`.
    pub fn settings(&self) -> Vec<(String, String)> {
        [
            ("TLS__CERTIFICATE_FILE", self.path("certificate.pem")),
            ("TLS__KEY_FILE", self.path("key.pem")),
            ("AUTH__ISSUER", ISSUER.to_owned()),
            ("AUTH__AUDIENCES", json!([AUDIENCE]).to_string()),
            ("AUTH__JWKS_FILE", self.path("jwks.json")),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
    }

    /// A token of the next ten minutes.
    pub fn token(&self, subject: &str, roles: &[&str], instances: &[&str]) -> String {
        self.token_with(subject, roles, instances, &json!({}))
    }

    /// The same with some claims changed, and those that are null left out.
    pub fn token_with(&self, subject: &str, roles: &[&str], instances: &[&str], changes: &Value) -> String {
        let mut claims = json!({
            "iss": ISSUER, "aud": AUDIENCE, "exp": now_s() + 600,
            "sub": subject, "roles": roles, "instances": instances,
        });
        for (name, value) in changes.as_object().expect("an object") {
            claims[name] = value.clone();
        }
        claims.as_object_mut().expect("an object").retain(|_, value| !value.is_null());
        self.signer.token("1", &claims)
    }
}

/// Seconds since the epoch.
fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}
