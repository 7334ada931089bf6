//! A bucket that speaks what an archive needs of S3, on loopback: PUT with `If-None-Match`, GET and HEAD of objects, in
//! memory. Each request is checked as S3 checks it: its signature (SigV4) over what arrived, and its body's SHA-256.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ring::{digest, hmac};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// Who may write and read.
const ACCESS_KEY: &str = "AKIATESTTESTTEST";
/// By what they show it.
pub const SECRET_KEY: &str = "a-secret-that-is-in-no-log";
/// Where it is.
const REGION: &str = "eu-central-1";

/// The bucket; dropped, its server ends.
#[derive(Debug)]
pub struct Bucket {
    address: SocketAddr,
    shared: Arc<Shared>,
    serving: tokio::task::JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Shared {
    objects: Mutex<BTreeMap<String, Vec<u8>>>,
    /// Method, path and status of each request.
    served: Mutex<Vec<String>>,
    is_away: AtomicBool,
}

impl Drop for Bucket {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Bucket {
    /// Serves an empty one, on a free port.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let (address, shared) = (listener.local_addr().expect("its address"), Arc::new(Shared::default()));
        let serving = tokio::spawn({
            let shared = shared.clone();
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(serve(stream, shared.clone()));
                }
            }
        });
        Self { address, shared, serving }
    }

    /// Variables of the environment with which its clients find it.
    pub fn variables(&self) -> [(&'static str, String); 4] {
        [
            ("AWS_ENDPOINT", format!("http://{}", self.address)),
            ("AWS_REGION", REGION.to_owned()),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
        ]
    }

    /// Its objects, by bucket and key.
    pub fn objects(&self) -> BTreeMap<String, Vec<u8>> {
        lock(&self.shared.objects).clone()
    }

    /// What it was asked, and how it answered: `PUT /bucket/key 200`.
    pub fn served(&self) -> Vec<String> {
        lock(&self.shared.served).clone()
    }

    /// Answers 503 to everything, or no longer.
    pub fn away(&self, is_away: bool) {
        self.shared.is_away.store(is_away, Ordering::SeqCst);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Asked {
    method: String,
    path: String,
    query: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

/// One request a connection, as its clients here make them.
async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let mut stream = BufReader::new(stream);
    let Some(asked) = read(&mut stream).await else { return };
    let (status, headers, body) = answer(&asked, &shared);
    lock(&shared.served).push(format!("{} {} {status}", asked.method, asked.path));
    let mut text = format!("HTTP/1.1 {status} -\r\nContent-Length: {}\r\nConnection: close\r\n", body.len());
    headers.iter().for_each(|(name, value)| text.push_str(&format!("{name}: {value}\r\n")));
    text.push_str("\r\n");
    let mut bytes = text.into_bytes();
    if asked.method != "HEAD" {
        bytes.extend(body);
    }
    // Who does not wait for the answer misses it.
    let _ = stream.get_mut().write_all(&bytes).await;
}

async fn read(stream: &mut BufReader<TcpStream>) -> Option<Asked> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok()?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").map_or(0, |length| length.parse().expect("a length"));
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some(Asked { method, path: path.to_owned(), query: query.to_owned(), headers, body })
}

type Answer = (u16, Vec<(&'static str, String)>, Vec<u8>);

fn answer(asked: &Asked, shared: &Shared) -> Answer {
    let refused = |status, code: &str| (status, Vec::new(), format!("<Error><Code>{code}</Code></Error>").into_bytes());
    if shared.is_away.load(Ordering::SeqCst) {
        return refused(503, "ServiceUnavailable");
    }
    if !is_signed(asked) {
        return refused(403, "SignatureDoesNotMatch");
    }
    let mut objects = lock(&shared.objects);
    let tag = |body: &[u8]| format!("\"{}\"", hex(digest::digest(&digest::SHA256, body).as_ref()));
    match asked.method.as_str() {
        "PUT" if asked.headers.get("if-none-match").is_some_and(|value| value == "*") => {
            if objects.contains_key(&asked.path) {
                return refused(412, "PreconditionFailed");
            }
            objects.insert(asked.path.clone(), asked.body.clone());
            (200, vec![("ETag", tag(&asked.body))], Vec::new())
        }
        "GET" | "HEAD" => match objects.get(&asked.path) {
            Some(body) => {
                let modified = ("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT".to_owned());
                (200, vec![("ETag", tag(body)), modified], body.clone())
            }
            None => refused(404, "NoSuchKey"),
        },
        // An archive never writes over an object, lists or removes any.
        _ => refused(405, "MethodNotAllowed"),
    }
}

/// Whether the secret key has signed what arrived (Signature Version 4, in headers).
fn is_signed(asked: &Asked) -> bool {
    let signed = || {
        let header = |name: &str| asked.headers.get(name).map(String::as_str);
        let part = |name: &str| {
            let parts = header("authorization")?.strip_prefix("AWS4-HMAC-SHA256 ")?.split(',');
            parts.map(str::trim).find_map(|part| part.strip_prefix(name))
        };
        let (date, scope) = (header("x-amz-date")?, part("Credential=")?.strip_prefix(&format!("{ACCESS_KEY}/"))?);
        let body = header("x-amz-content-sha256")?;
        if body != hex(digest::digest(&digest::SHA256, &asked.body).as_ref()) {
            return None;
        }
        let names = part("SignedHeaders=")?;
        let lines = names.split(';').map(|name| Some(format!("{name}:{}\n", header(name)?)));
        let lines = lines.collect::<Option<String>>()?;
        let request = format!("{}\n{}\n{}\n{lines}\n{names}\n{body}", asked.method, asked.path, asked.query);
        let request = hex(digest::digest(&digest::SHA256, request.as_bytes()).as_ref());
        let text = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{request}");
        let key = scope.split('/').fold(format!("AWS4{SECRET_KEY}").into_bytes(), |key, part| mac(&key, part));
        (hex(&mac(&key, &text)) == part("Signature=")? && names.split(';').any(|name| name == "host")).then_some(())
    };
    signed().is_some()
}

fn mac(key: &[u8], text: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
