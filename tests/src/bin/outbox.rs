//! A platform for crash drills: `outbox DATABASE AUDIT`. Changes things as fast as it may, each with its event in the same
//! transaction, every third rolled back; relays meanwhile; prints each id that was committed, until it is killed.
#![expect(clippy::expect_used, reason = "a program of the tests: a panic is its failure")]

use std::io::Write as _;
use std::time::Duration;

use gateway_outbox::{Relay, enqueue};
use gateway_sdk::{Actor, AuditEvent, GatewaySdk, Resource};
use sea_orm::{ConnectionTrait as _, Database, TransactionTrait as _};

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [database, audit] = &arguments[..] else { panic!("outbox DATABASE AUDIT") };
    let db = Database::connect(database).await.expect("the database");
    let sdk = GatewaySdk::builder().audit_endpoint(audit).instance("eu-1").build().expect("the SDK");
    let relay = Relay::new(db.clone(), sdk.audit().clone()).interval(Duration::from_millis(1));
    tokio::spawn(relay.run(std::future::pending()));
    for n in 0_u64.. {
        let event =
            AuditEvent::builder(Actor::user("bob"), "model.disabled", Resource::new("model", format!("k-{n}"))).build();
        let id = event.id();
        let change = async {
            let transaction = db.begin().await?;
            transaction.execute_unprepared(&format!("INSERT INTO changes VALUES ('{id}')")).await?;
            enqueue(&transaction, event).await.expect("an event that is well");
            if n % 3 == 2 { transaction.rollback().await } else { transaction.commit().await }
        };
        // SQLite is locked at times: what is not committed is not printed.
        if change.await.is_ok() && n % 3 != 2 {
            std::io::stdout().lock().write_all(format!("committed {id}\n").as_bytes()).expect("standard output");
        }
    }
}
