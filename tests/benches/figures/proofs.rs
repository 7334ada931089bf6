//! What the proofs of the audit log cost: verifying, proving, signing, and their share of what storing an entry takes.
//!
//! - the verifier over entries that are parsed already, and over the bytes of an export;
//! - inclusion proofs at random places of a large log, from its tiles in SQLite to a proof that holds;
//! - from an entry's acknowledgement to the checkpoint that is over it;
//! - hashes, tree and tiles by themselves, beside all of a write.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use activity_proto::audit::v1::audit_ingest_service_client::AuditIngestServiceClient;
use activity_proto::audit::v1::audit_trust_service_client::AuditTrustServiceClient;
use activity_proto::audit::v1::{GetCheckpointRequest, RecordEventsRequest};
use audit_service::canonical::{self, Prefix};
use audit_service::checkpoint::{KeyKind, SigningKey};
use audit_service::event::{Actor, ActorKind, Change, Entry, Event, Outcome, Resource};
use audit_service::ingest::Batch;
use audit_service::merkle::{Frontier, Hash, Plan, Tile, TileId, WIDTH, verify_inclusion};
use audit_service::store::Store;
use audit_service::verify::Verifier;
use clap::Args;
use e2e::{Service, events};
use sea_orm::{ConnectionTrait as _, Database, Statement, TransactionTrait as _};
use service_core::auth::Access;
use service_core::config::{DatabaseConfig, DatabaseUrl};
use uuid::Uuid;

use crate::machine::ms;

const INSTANCE: &str = "eu-1";
/// Entries of one write, as group commit has them under load.
const GROUP: usize = 1_000;

#[derive(Args)]
pub(crate) struct Arguments {
    /// How many entries are verified.
    #[arg(long, default_value_t = 200_000)]
    entries: u64,
    /// How many entries the log has in which places are proven, rounded up to whole tiles.
    #[arg(long, default_value_t = 1_000_000)]
    leaves: u64,
    /// How many proofs are made.
    #[arg(long, default_value_t = 1_000)]
    proofs: u64,
    /// How many checkpoints are waited for.
    #[arg(long, default_value_t = 20)]
    checkpoints: u64,
    /// How many entries are written.
    #[arg(long, default_value_t = 100_000)]
    written: u64,
}

pub(crate) async fn run(arguments: Arguments) {
    verifier(arguments.entries);
    proofs(arguments.leaves, arguments.proofs).await;
    checkpoints(arguments.checkpoints).await;
    maintenance(arguments.written).await;
}

fn entry(sequence: u64) -> Entry {
    let text = |what: &str, of: u64| format!("{what}-{}", sequence % of);
    let at_us = 1_767_225_600_000_000 + sequence.cast_signed();
    let event = Event {
        id: Uuid::from_u128((0x7 << 76) | (0x2 << 62) | u128::from(sequence)),
        occurred_at_us: at_us,
        instance_id: INSTANCE.to_owned(),
        actor: Actor {
            id: text("admin", 7),
            kind: Some(ActorKind::User),
            display_name: format!("admin{}@example.com", sequence % 7),
            ..Actor::default()
        },
        action: "model.enabled".to_owned(),
        resources: vec![Resource { kind: "model".to_owned(), id: text("model", 40), name: text("Model", 40) }],
        outcome: Outcome::Success,
        reason: format!("ticket OPS-{sequence}"),
        changes: vec![Change {
            path: "/enabled".to_owned(),
            old_value: Some("false".to_owned()),
            new_value: Some("true".to_owned()),
        }],
        details_json: String::new(),
        request_id: String::new(),
        operation: None,
        producer: None,
    };
    Entry { event, sequence, recorded_at_us: at_us, recorded_by: "gateway".to_owned() }
}

fn a_second(count: u64, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

fn verifier(count: u64) {
    let entries: Vec<(String, Entry)> =
        (0..count).map(entry).map(|entry| (canonical::to_string(&entry), entry)).collect();
    let export: String = entries.iter().map(|(line, _)| format!("{line}\n")).collect();
    let key = SigningKey::generate("localhost/audit", KeyKind::Log).unwrap().0.verifier().clone();
    let mut verifier = Verifier::new([key.clone()]).unwrap();
    let begun = Instant::now();
    entries.iter().for_each(|(line, entry)| verifier.entry(line, entry));
    drop(verifier.finish());
    let parsed = a_second(count, begun.elapsed());
    let mut verifier = Verifier::new([key]).unwrap();
    let begun = Instant::now();
    verifier.export(export.as_bytes()).unwrap();
    drop(verifier.finish());
    let whole = a_second(count, begun.elapsed());
    let bytes = export.len() as u64 / count;
    println!(
        "verifier, one core, {count} entries of {bytes} bytes: {parsed:.0} entries/s parsed before, {whole:.0} with parsing"
    );
}

/// A leaf that is made of its place, without an entry.
fn leaf(index: u64) -> Hash {
    audit_service::merkle::leaf_hash(&index.to_be_bytes())
}

async fn proofs(leaves: u64, count: u64) {
    let folder = tempfile::tempdir().unwrap();
    let url = DatabaseUrl::sqlite(folder.path().join("audit.db"));
    Store::open(&url, &DatabaseConfig::default()).await.unwrap().close().await;
    let tiles = leaves.div_ceil(WIDTH);
    let (size, mut frontier) = (tiles * WIDTH, Frontier::default());
    let db = Database::connect(url.expose()).await.unwrap();
    let transaction = db.begin().await.unwrap();
    let mut pending: Vec<(u64, Vec<Hash>)> = Vec::new();
    for index in 0..tiles {
        let hashes: Vec<Hash> = (index * WIDTH..(index + 1) * WIDTH).map(leaf).collect();
        hashes.iter().for_each(|leaf| {
            frontier.push(*leaf);
        });
        // Those above get full by it, level by level.
        let mut full = Some((0_u8, index, Tile::new(hashes).unwrap()));
        while let Some((level, at, tile)) = full.take() {
            let sql = "INSERT INTO audit_tiles (instance_id, level, tile, root, hashes) VALUES ($1, $2, $3, $4, $5)";
            let root = tile.root();
            let values = [
                INSTANCE.into(),
                i16::from(level).into(),
                at.cast_signed().into(),
                root.to_vec().into(),
                tile.to_bytes().into(),
            ];
            let statement = Statement::from_sql_and_values(transaction.get_database_backend(), sql, values);
            transaction.execute_raw(statement).await.unwrap();
            if pending.len() <= usize::from(level) {
                pending.push((0, Vec::new()));
            }
            let (next, roots) = &mut pending[usize::from(level)];
            roots.push(root);
            if roots.len() as u64 == WIDTH {
                full = Some((level + 1, *next, Tile::new(std::mem::take(roots)).unwrap()));
                *next += 1;
            }
        }
    }
    let sql = "INSERT INTO audit_log_heads (instance_id, next_sequence, tree_size, frontier) VALUES ($1, $2, $2, $3)";
    let values = [INSTANCE.into(), size.cast_signed().into(), frontier.to_bytes().into()];
    let statement = Statement::from_sql_and_values(transaction.get_database_backend(), sql, values);
    transaction.execute_raw(statement).await.unwrap();
    transaction.commit().await.unwrap();
    db.close().await.unwrap();

    let store = Store::open(&url, &DatabaseConfig::default()).await.unwrap();
    let (access, root) = (Access::unrestricted(), frontier.root());
    let mut times: Vec<Duration> = Vec::new();
    for n in 0..count {
        // Spread over all of it.
        let index = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) % size;
        let begun = Instant::now();
        let plan = Plan::inclusion(index, size).unwrap();
        let proof = plan.prove(&store.tiles(&access, INSTANCE, &plan).await.unwrap()).unwrap();
        times.push(begun.elapsed());
        verify_inclusion(index, size, &leaf(index), &proof, &root).unwrap();
    }
    times.sort_unstable();
    let at = |part: usize| ms(times[(times.len() - 1) * part / 100]);
    println!("a proof over {size} entries, from SQLite: median {:.2} ms, p99 {:.2} ms", at(50), at(99));
    store.close().await;
}

async fn checkpoints(count: u64) {
    let folder = tempfile::tempdir().unwrap();
    let url = DatabaseUrl::sqlite(folder.path().join("audit.db"));
    let service = Service::start("audit", url.expose(), &[]).await;
    let mut writer = AuditIngestServiceClient::new(service.channel());
    let mut trust = AuditTrustServiceClient::new(service.channel());
    let (now, mut times) = (SystemTime::now(), Vec::new());
    for n in 0..count {
        let request = RecordEventsRequest { events: vec![events::audit(now, n)], ..Default::default() };
        writer.record_events(request).await.unwrap();
        let acknowledged = Instant::now();
        let wanted = GetCheckpointRequest { instance_id: INSTANCE.into(), min_size: Some(n + 1) };
        while trust.get_checkpoint(wanted.clone()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        times.push(acknowledged.elapsed());
    }
    times.sort_unstable();
    let last = times.last().copied().unwrap_or_default();
    println!(
        "from an acknowledgement to its checkpoint, {count} times: median {:.0} ms, at most {:.0} ms",
        ms(times[times.len() / 2]),
        ms(last)
    );
}

async fn maintenance(count: u64) {
    let folder = tempfile::tempdir().unwrap();
    let url = DatabaseUrl::sqlite(folder.path().join("audit.db"));
    let store = Store::open(&url, &DatabaseConfig::default()).await.unwrap();
    let prepared: Vec<Event> = (0..count).map(|sequence| entry(sequence).event).collect();
    let batches: Vec<Batch> = prepared
        .chunks(GROUP)
        .map(|events| Batch { events: events.iter().cloned().map(Into::into).collect(), ..Batch::default() })
        .collect();
    let begun = Instant::now();
    for batch in &batches {
        store.write(std::slice::from_ref(batch)).await.unwrap();
    }
    let all = begun.elapsed();
    store.close().await;

    // The same once more without a database: the leaf hash is over a text that is written anyway.
    let prefixes: Arc<[Prefix]> = prepared.iter().map(Prefix::new).collect();
    let begun = Instant::now();
    let texts: Vec<String> = (0..).zip(&*prefixes).map(|(sequence, prefix)| prefix.finish(sequence, 0, "").0).collect();
    let writing = begun.elapsed();
    let begun = Instant::now();
    let (mut frontier, mut hashes, mut tiles) = (Frontier::default(), Vec::new(), Vec::new());
    for text in &texts {
        let leaf = canonical::leaf_hash(text);
        hashes.push(leaf);
        if frontier.push(leaf).is_some() {
            tiles.push(Tile::new(std::mem::take(&mut hashes)).unwrap());
        }
    }
    let hashing = begun.elapsed();
    let other = DatabaseUrl::sqlite(folder.path().join("tiles.db"));
    Store::open(&other, &DatabaseConfig::default()).await.unwrap().close().await;
    let db = Database::connect(other.expose()).await.unwrap();
    let begun = Instant::now();
    for (index, tiles) in (0_u64..).zip(tiles.chunks(GROUP.div_ceil(WIDTH as usize))) {
        let transaction = db.begin().await.unwrap();
        for (at, tile) in (index * 4..).zip(tiles) {
            let id = TileId { level: 0, index: at };
            let sql = "INSERT INTO audit_tiles (instance_id, level, tile, root, hashes) VALUES ($1, 0, $2, $3, $4)";
            let values =
                [INSTANCE.into(), id.index.cast_signed().into(), tile.root().to_vec().into(), tile.to_bytes().into()];
            let statement = Statement::from_sql_and_values(transaction.get_database_backend(), sql, values);
            transaction.execute_raw(statement).await.unwrap();
        }
        // Not committed: the commit is the entries'.
        transaction.rollback().await.unwrap();
    }
    let storing = begun.elapsed();
    db.close().await.unwrap();
    let log = hashing + storing;
    println!(
        "{count} entries written to SQLite in {:.0} ms; their hashes, tree and tiles alone in {:.0} ms (of which {:.0} ms \
         storing; their texts {:.0} ms): {:.1} % of the rest",
        ms(all),
        ms(log),
        ms(storing),
        ms(writing),
        100.0 * log.as_secs_f64() / all.saturating_sub(log).as_secs_f64()
    );
}
