//! Child processes, ports, memory and waiting.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use testkit::{ChildProcess, Signal, eventually, free_port, rss_bytes};

const TIMEOUT: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(50);

fn shell(script: &str) -> ChildProcess {
    ChildProcess::start(Command::new("sh").args(["-c", script]))
}

#[tokio::test]
async fn a_line_is_waited_for_and_both_outputs_are_kept() {
    let mut child = shell("echo one; echo why >&2; echo ready 1.2.3.4:5; exit 3");
    assert_eq!(child.line("ready", TIMEOUT).await, "ready 1.2.3.4:5");
    assert_eq!(child.exited(TIMEOUT).await.code(), Some(3));
    assert_eq!(child.lines(), ["one", "ready 1.2.3.4:5"]);
    assert_eq!(child.log(), "why\n");
}

#[tokio::test]
#[should_panic(expected = "ended without a line that begins with \"ready\"")]
async fn a_child_that_ends_early_is_not_waited_for() {
    let child = shell("echo hello");
    child.line("ready", TIMEOUT).await;
}

#[tokio::test]
#[should_panic(expected = "printed no line that begins with \"ready\" within 50ms")]
async fn a_silent_child_is_waited_for_as_long_as_said() {
    let child = shell("exec sleep 600");
    child.line("ready", SHORT).await;
}

#[tokio::test]
#[should_panic(expected = "still runs after 50ms")]
async fn an_end_is_waited_for_as_long_as_said() {
    shell("exec sleep 600").exited(SHORT).await;
}

#[tokio::test]
async fn signals_reach_the_child() {
    let mut child = shell("trap 'echo asked; exit 0' TERM; echo ready; while :; do sleep 0.01; done");
    child.line("ready", TIMEOUT).await;
    child.terminate();
    assert!(child.exited(TIMEOUT).await.success());
    assert_eq!(child.lines(), ["ready", "asked"]);
    // It is gone, and its process id may be another's: nothing is sent any more.
    child.signal(Signal::KILL);

    let mut child = shell("exec sleep 600");
    child.kill();
    assert_eq!(child.exited(SHORT).await.signal(), Some(9));
}

#[tokio::test]
async fn a_dropped_child_is_killed() {
    let child = shell("exec sleep 600");
    let process = format!("/proc/{}", child.pid());
    assert!(Path::new(&process).exists());
    drop(child);
    assert!(!Path::new(&process).exists());
}

#[tokio::test]
async fn a_condition_is_waited_for_and_its_value_given() {
    let mut tries = 0;
    let value = eventually(TIMEOUT, async || {
        tries += 1;
        if tries < 3 { Err("too early") } else { Ok(tries) }
    });
    assert_eq!(value.await, 3);
}

#[tokio::test]
#[should_panic(expected = "tests/process.rs")]
async fn a_condition_that_never_holds_is_reported_at_the_caller() {
    eventually(SHORT, async || Err::<(), _>("locked")).await;
}

#[tokio::test]
#[should_panic(expected = "the last answer was: \"locked\"")]
async fn a_condition_that_never_holds_is_reported_with_its_last_answer() {
    eventually(SHORT, async || Err::<(), _>("locked")).await;
}

#[tokio::test]
#[should_panic(expected = "the last answer was: no answer")]
async fn a_check_that_hangs_is_given_up() {
    eventually(SHORT, std::future::pending::<bool>).await;
}

#[test]
fn a_free_port_is_bindable_and_not_one_of_the_kernels() {
    let mut held = Vec::new();
    for _ in 0..20 {
        let port = free_port();
        assert!((20_000..32_000).contains(&port));
        // Bound once and kept: let go, it could be held by a child that another test starts at this moment.
        held.push(TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap());
    }
}

#[test]
fn memory_is_measured_in_bytes() {
    let before = rss_bytes(std::process::id());
    let held = vec![1_u8; 64 << 20];
    let after = rss_bytes(std::process::id());
    assert!(after >= before + held.len() as u64 / 2, "{before} then {after}");
    assert!(after < before + (1 << 30), "{before} then {after}");
}

#[test]
fn open_files_are_counted() {
    // A child's, because the other tests of this process open files of their own; the two differ by these three.
    let with = |redirections: &str| {
        let mut shell = std::process::Command::new("sh")
            .args(["-c", &format!("exec {redirections}; echo ready; read wait")])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        std::io::Read::read_exact(shell.stdout.as_mut().unwrap(), &mut ready).unwrap();
        let count = testkit::open_files(shell.id());
        drop(shell.stdin.take());
        shell.wait().unwrap();
        count
    };
    assert_eq!(with("3</dev/null 4</dev/null 5</dev/null"), with("3<&- 4<&- 5<&-") + 3);
}
