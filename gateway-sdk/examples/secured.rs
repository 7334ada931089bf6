//! A gateway with a certificate of its own (mutual TLS), and an admin backend with a
//! token: `cargo run --example secured -- FOLDER`, where the folder holds `ca.pem`,
//! `gateway.pem`, `gateway.key` and `token`.

use std::path::PathBuf;
use std::time::Duration;

use gateway_sdk::{AccessProblem, Credentials, GatewaySdk, Tls, Tokens, UsageEvent, UsageQuery};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder: PathBuf = std::env::args().nth(1).ok_or("which folder?")?.into();
    let believed = Tls::new().roots_file(folder.join("ca.pem"));

    // The services know a writer by its certificate. New files count from the next
    // connection on.
    let writer = GatewaySdk::builder()
        .usage_endpoint("https://localhost:50052")
        .audit_endpoint("https://localhost:50051")
        .tls(believed.clone().identity_files(folder.join("gateway.pem"), folder.join("gateway.key")))
        .instance("production")
        .build()?;
    let tokens = Tokens { input_uncached: 800, output: 120, ..Tokens::default() };
    writer.usage().record(UsageEvent::builder("openai", "gpt-4o").user("ada").tokens(tokens));
    let left = writer.shutdown(Duration::from_secs(10)).await;
    let usage = writer.stats().usage;
    println!("delivered {}, left {:?}, refused streams {}", usage.acknowledged, left.usage, usage.refused);

    // A reader brings a token; the file is read again before the token in it expires.
    let reader = GatewaySdk::builder()
        .usage_endpoint("https://localhost:50052")
        .tls(believed)
        .credentials(Credentials::file(folder.join("token")))
        .build()?;
    match reader.usage().summary(&UsageQuery::new()).await {
        Ok(answer) => println!("{:?}", answer.summary),
        Err(error) => match error.access() {
            Some(AccessProblem::Expired) => eprintln!("renew the token: {error}"),
            Some(problem) => eprintln!("{problem}: {error}"),
            None => return Err(error.into()),
        },
    }
    Ok(())
}
