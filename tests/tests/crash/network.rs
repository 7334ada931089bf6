//! The network between a gateway and its services is cut, in all ways that there are, and a service answers UNAVAILABLE,
//! while the gateway is killed as well.

use super::*;
use std::net::SocketAddr;

use e2e::Engine;
use e2e::proxy::{Proxy, Weather};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Status;
use tonic::service::Routes;
use tonic::transport::Server;

/// A server that takes nothing at the moment, as a load balancer before a service that is away.
async fn unavailable() -> SocketAddr {
    let refuse = async || Status::unavailable("nobody is behind this").into_http::<axum::body::Body>();
    let routes = Routes::from(axum::Router::new().fallback(refuse));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(Server::builder().add_routes(routes).serve_with_incoming(TcpListenerStream::new(listener)));
    address
}

/// Holds until the gateway went on recording, and until it felt the weather: where that lets nothing through, it has given
/// its connection up and made another one since there were so many.
async fn felt(gateway: &ChildProcess, proxy: &Proxy, weather: Weather, connections: u64) {
    let lines = gateway.lines().len();
    testkit::eventually(PATIENCE, async || {
        let now = (gateway.lines().len() - lines, proxy.accepted() - connections);
        let felt = now.0 > 100 && (weather.is_fair() || now.1 > 0);
        if felt { Ok(()) } else { Err((weather, now)) }
    })
    .await;
}

async fn drill(lives: u64) {
    let sandbox = Sandbox::start(Engine::Sqlite).await;
    let (usage, audit) = (Proxy::start(sandbox.usage.address()).await, Proxy::start(sandbox.audit.address()).await);
    let spool = sandbox.folder.path().join("spool");
    let all = [
        Weather::Slow(Duration::from_millis(20)),
        Weather::Stalled,
        Weather::Mute,
        Weather::HalfOpen,
        Weather::Reset,
        Weather::Astray(unavailable().await),
    ];
    let mut recorded = Recorded::default();
    for life in 0..lives {
        let gateway = ChildProcess::start(&mut recorder(&spool, &audit.address(), &usage.address(), "paced"));
        gateway.line("begins", PATIENCE).await;
        // It begins in clear weather, and sees two kinds of bad one. Some lives end in it.
        for step in 0..2 {
            felt(&gateway, &usage, Weather::Clear, 0).await;
            let weather = all[usize::try_from(2 * life + step).unwrap() % all.len()];
            let (of_usage, of_audit) = (usage.accepted(), audit.accepted());
            usage.set(weather);
            audit.set(weather);
            felt(&gateway, &usage, weather, of_usage).await;
            felt(&gateway, &audit, weather, of_audit).await;
            if step == 1 && random(2) == 0 {
                continue;
            }
            usage.set(Weather::Clear);
            audit.set(Weather::Clear);
        }
        recorded.take(gateway).await;
        usage.set(Weather::Clear);
        audit.set(Weather::Clear);
    }
    let mut drain = recorder(&spool, &audit.address(), &usage.address(), "drain");
    deliver_the_rest(&mut drain).await;
    recorded.assert_kept(&sandbox, &spool).await;
    let found = (recorded.usage.len(), recorded.audit.len());
    assert!(found.0 > 500 && found.1 > 10, "{found:?}");
}

#[tokio::test]
async fn what_was_recorded_while_the_network_was_cut_is_stored_once_and_no_number_is_missing() {
    tokio::time::timeout(Duration::from_secs(3_000), drill(rounds(3, 60))).await.unwrap();
}
