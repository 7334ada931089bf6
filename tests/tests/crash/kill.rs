//! kill -9 of a gateway at any instant, and of the services beside it.

use super::*;
use e2e::Engine;

async fn drill(lives: u64) {
    let mut sandbox = Sandbox::start(Engine::Sqlite).await;
    let spool = sandbox.folder.path().join("spool");
    let mut recorded = Recorded::default();
    for life in 0..lives {
        // Some lives begin while a service is away, some see one go, some see one come back.
        let away = match life % 4 {
            1 => Some(&mut sandbox.usage),
            2 => Some(&mut sandbox.audit),
            _ => None,
        };
        if let Some(service) = away
            && random(2) == 0
        {
            service.kill();
        }
        let mut gateway = recorder(&spool, sandbox.audit.address(), sandbox.usage.address(), "");
        let gateway = ChildProcess::start(&mut gateway);
        gateway.line("begins", PATIENCE).await;
        let enough = usize::try_from(random(4_000)).unwrap();
        let meanwhile = enough / 2;
        testkit::eventually(PATIENCE, async || gateway.lines().len() > meanwhile).await;
        match life % 4 {
            1 => {
                sandbox.usage.kill();
                sandbox.usage.start_again().await;
            }
            2 => {
                sandbox.audit.kill();
                sandbox.audit.start_again().await;
            }
            3 => {
                sandbox.usage.kill();
                sandbox.audit.kill();
            }
            _ => {}
        }
        testkit::eventually(PATIENCE, async || gateway.lines().len() > enough).await;
        recorded.take(gateway).await;
        if life % 4 == 3 {
            sandbox.usage.start_again().await;
            sandbox.audit.start_again().await;
        }
    }
    let mut drain = recorder(&spool, sandbox.audit.address(), sandbox.usage.address(), "drain");
    deliver_the_rest(&mut drain).await;
    recorded.assert_kept(&sandbox, &spool).await;
    let found = (recorded.usage.len(), recorded.audit.len(), recorded.refused.len());
    assert!(found.0 > 1_000 && found.1 > 20 && found.2 > 0, "{found:?}");
}

#[tokio::test]
async fn what_a_killed_gateway_had_recorded_is_stored_once_and_no_number_is_missing() {
    tokio::time::timeout(Duration::from_secs(3_000), drill(rounds(12, 200))).await.unwrap();
}
