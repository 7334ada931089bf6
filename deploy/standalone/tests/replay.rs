//! Replayed files: what each row and record becomes, by the rules that the
//! modules state. The expected values were worked out apart from our code (Python's
//! hashlib).
#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::PathBuf;

use activity_proto::audit::v1::{ActorKind, Outcome};
use standalone::replay::actions::actions;
use standalone::replay::requests::requests;
use standalone::time::micros;

const UNTIL_US: i64 = 1_795_435_200_000_000;

const CSV: &str = "TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:17:03.9799600,4808,10
2023-11-16 18:17:04.0319609,3180,8
";

#[test]
fn row_alone_decides_who_asked_for_what() {
    let events = requests(CSV.as_bytes(), UNTIL_US).unwrap();
    let found: Vec<_> = events
        .iter()
        .map(|event| {
            let tokens = event.tokens.unwrap();
            (
                event.id.as_str(),
                micros(event.occurred_at.as_ref().unwrap()),
                event.user_id.as_str(),
                event.team_id.as_str(),
                event.api_key_id.as_str(),
                event.provider.as_str(),
                event.model.as_str(),
                tokens.input_uncached(),
                tokens.output(),
            )
        })
        .collect();
    assert_eq!(found, EXPECTED);
    assert_eq!(events[1].request_id, "replay-1");
    assert_eq!(requests(CSV.as_bytes(), UNTIL_US).unwrap(), events);
}

#[test]
fn times_are_cut_to_microseconds_and_end_at_the_given_moment() {
    let events = requests(CSV.as_bytes(), UNTIL_US).unwrap();
    let times: Vec<i64> = events.iter().map(|event| micros(event.occurred_at.as_ref().unwrap())).collect();
    // .9799600 and .0319609 are 52,000 whole microseconds apart.
    assert_eq!(times, [UNTIL_US - 52_000, UNTIL_US]);
}

#[test]
fn row_that_does_not_fit_is_refused_with_its_line() {
    for (csv, line, word) in [
        ("a,b,c\n", 1, "columns"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,2\n", 2, "TIMESTAMP"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.97,1,-2\n", 2, "GeneratedTokens"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.97,1\n", 2, "fields"),
    ] {
        let error = requests(csv.as_bytes(), UNTIL_US).unwrap_err();
        assert_eq!(error.line, line);
        assert!(error.to_string().contains(word), "{error}");
    }
}

const RECORD: &str = r#"{"eventTime":"2023-07-10T11:54:39Z","eventSource":"rds.amazonaws.com","eventName":"CreateDBInstance","awsRegion":"us-east-1","sourceIPAddress":"192.168.10.20","userAgent":"aws-cli/2","userIdentity":{"type":"IAMUser","arn":"arn:aws:iam::1:user/bert-jan","userName":"bert-jan"},"requestParameters":{"dBInstanceIdentifier":"db-1","dBSubnetGroupName":"vpc","allocatedStorage":10,"tags":[{"value":"true","key":"a/b"}]},"responseElements":{"status":"creating"},"requestID":"r-1","eventID":"e-1","recipientAccountId":"123"}"#;

#[test]
fn record_becomes_an_action_with_actor_resources_and_diff() {
    let event = actions(RECORD, UNTIL_US).unwrap().remove(0);
    assert_eq!(event.action, "rds.create_db_instance");
    assert_eq!(event.instance_id, "aws-123");
    let actor = event.actor.as_ref().unwrap();
    assert_eq!(actor.id, "arn:aws:iam::1:user/bert-jan");
    assert_eq!(actor.display_name, "bert-jan");
    assert_eq!(actor.kind(), ActorKind::User);
    assert_eq!(actor.ip_address, "192.168.10.20");
    let resources: Vec<_> =
        event.resources.iter().map(|resource| (resource.r#type.as_str(), resource.id.as_str())).collect();
    assert_eq!(resources, [("d_b_instance", "db-1"), ("d_b_subnet_group", "vpc")]);
    let changes: Vec<_> = event
        .changes
        .iter()
        .map(|change| (change.path.as_str(), change.old_value.as_deref(), change.new_value.as_deref()))
        .collect();
    assert_eq!(
        changes,
        [
            ("/requestParameters/allocatedStorage", None, Some("10")),
            ("/requestParameters/dBInstanceIdentifier", None, Some("\"db-1\"")),
            ("/requestParameters/dBSubnetGroupName", None, Some("\"vpc\"")),
            ("/requestParameters/tags", None, Some(r#"[{"key":"a/b","value":"true"}]"#)),
            ("/responseElements/status", None, Some("\"creating\"")),
        ]
    );
    assert_eq!(event.outcome(), Outcome::Success);
    assert_eq!(event.reason, "");
    assert_eq!(micros(event.occurred_at.as_ref().unwrap()), UNTIL_US);
    assert_eq!(actions(RECORD, UNTIL_US).unwrap(), [event]);
}

#[test]
fn error_code_decides_the_outcome_and_says_the_reason() {
    let with = |error: &str| RECORD.replacen('{', &format!("{{{error},"), 1);
    for (error, outcome, reason) in [
        (r#""errorCode":"AccessDenied","errorMessage":"no\nway""#, Outcome::Denied, "AccessDenied: no way"),
        (r#""errorCode":"Client.UnauthorizedOperation""#, Outcome::Denied, "Client.UnauthorizedOperation"),
        (r#""errorCode":"ThrottlingException""#, Outcome::Failure, "ThrottlingException"),
    ] {
        let event = actions(&with(error), UNTIL_US).unwrap().remove(0);
        assert_eq!((event.outcome(), event.reason.as_str()), (outcome, reason));
    }
}

#[test]
fn call_that_takes_away_has_old_values_and_versions_are_left_out() {
    for (name, action, takes_away) in [
        ("DeleteFunction20150331", "rds.delete_function", true),
        ("AddPermission20150331v2", "rds.add_permission", false),
        ("TerminateInstances", "rds.terminate_instances", true),
    ] {
        let event = actions(&RECORD.replace("CreateDBInstance", name), UNTIL_US).unwrap().remove(0);
        assert_eq!(event.action, action);
        let change = &event.changes[0];
        assert_eq!((change.old_value.is_some(), change.new_value.is_some()), (takes_away, !takes_away));
    }
}

#[test]
fn large_values_are_told_by_their_hash() {
    let large = RECORD.replace("\"db-1\"", &format!("{:?}", "x".repeat(40_000)));
    let event = actions(&large, UNTIL_US).unwrap().remove(0);
    let value = event.changes[1].new_value.as_deref().unwrap();
    assert!(value.starts_with("\"sha256:") && value.len() == 73, "{value}");
}

#[test]
fn whole_real_files_are_understood() {
    let shared = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    let trace = shared.join("azure-llm-2023-code.csv");
    let trail = shared.join("cloudtrail.jsonl");
    if !trace.exists() || !trail.exists() {
        eprintln!("no ../shared/data beside the project: the real files are not replayed");
        return;
    }
    let events = requests(std::fs::File::open(trace).unwrap(), UNTIL_US).unwrap();
    assert_eq!(events.len(), 8_819);
    let tokens: i64 =
        events.iter().map(|event| event.tokens.unwrap().input_uncached() + event.tokens.unwrap().output()).sum();
    assert_eq!(tokens, 18_059_974 + 245_896);

    let events = actions(&std::fs::read_to_string(trail).unwrap(), UNTIL_US).unwrap();
    assert_eq!(events.len(), 287);
    let failed = events.iter().filter(|event| event.outcome() == Outcome::Failure).count();
    assert_eq!(failed, 44);
}

type Row = (&'static str, i64, &'static str, &'static str, &'static str, &'static str, &'static str, i64, i64);

const EXPECTED: [Row; 2] = [
    (
        "01a20846-fdcc-7769-929e-d51582987206",
        1795435199948000,
        "user-046",
        "team-10",
        "key-046-0",
        "anthropic",
        "claude-sonnet-4-5",
        4808,
        10,
    ),
    (
        "01a20846-fe00-7e55-b3a0-777f52eb02f3",
        1795435200000000,
        "user-129",
        "team-09",
        "key-129-0",
        "openai",
        "gpt-4.1-mini",
        3180,
        8,
    ),
];
