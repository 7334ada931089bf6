//! What happens on the sample platform, in three strands.

use activity_proto::audit::v1::{Operation, Outcome, Stage};
use rand::Rng;
use serde_json::{Value, json};

use super::Script;
use super::admins::{BELA, DANA, INGRID, LUCA, OMAR, PLATFORM, TERRAFORM};
use crate::sample::STAGING;
use crate::sample::models::{ALIAS, ALIAS_SPIKE, ALIAS_USUAL};
use crate::sample::people::SPIKE_TEAM;
use crate::time::{HOUR_US, MINUTE_US, SECOND_US};

const NONE: Value = Value::Null;

/// The platform is set up and changes: each known action at least once, among
/// them ones that failed, were denied, or were made for somebody else.
pub(super) fn platform(s: &mut Script) {
    sign_in(s);
    providers_and_models(s);
    tools(s);
    people(s);
}

fn sign_in(s: &mut Script) {
    let okta = [("sso", "sso_okta", "Okta")];
    let us = s.at(0.010);
    s.act(
        us,
        &INGRID,
        "sso.configured",
        &okta,
        &[
            ("/protocol", NONE, json!("saml2")),
            ("/metadata_url", NONE, json!("https://example.okta.com/app/metadata")),
            ("/certificate_sha256", NONE, json!("9f2c4b71d0e8")),
        ],
    )
    .reason = "SEC-880: one sign-in for all".into();
    let us = s.at(0.045);
    s.act(us, &INGRID, "sso.enabled", &okta, &[("/enabled", json!(false), json!(true))]).reason = "SEC-880".into();

    let us = s.at(0.420);
    let denied = s.act(us, &BELA, "sso.disabled", &okta, &[]);
    denied.outcome = Outcome::Denied.into();
    denied.reason = "role member may not change sign-in".into();
    denied.details_json = json!({"required_role": "super_admin", "role": "member"}).to_string();

    // Staging gets a new certificate: off, changed, on again.
    let staging = [("sso", "sso_okta_staging", "Okta (staging)")];
    for (fraction, action, changes) in [
        (0.450, "sso.disabled", vec![("/enabled", json!(true), json!(false))]),
        (0.490, "sso.configured", vec![("/certificate_sha256", json!("9f2c4b71d0e8"), json!("51aa07c3be92"))]),
        (0.530, "sso.enabled", vec![("/enabled", json!(false), json!(true))]),
    ] {
        let us = s.at(fraction);
        let event = s.act(us, &INGRID, action, &staging, &changes);
        event.instance_id = STAGING.into();
        event.reason = "SEC-912: certificate expires".into();
    }
}

fn providers_and_models(s: &mut Script) {
    let mistral = [("provider", "mistral", "Mistral")];
    let us = s.at(0.070);
    let failed = s.act(us, &DANA, "provider.created", &mistral, &[]);
    failed.outcome = Outcome::Failure.into();
    failed.reason = "the provider answered 401 to the credentials".into();
    s.act(
        us + 9 * MINUTE_US,
        &DANA,
        "provider.created",
        &mistral,
        &[
            ("/base_url", NONE, json!("https://api.mistral.ai/v1")),
            ("/credentials/secret_ref", NONE, json!("vault:providers/mistral#2")),
        ],
    )
    .reason = "CHG-2207: code completion in the editor".into();
    s.act(
        us + 16 * MINUTE_US,
        &DANA,
        "model.enabled",
        &[("model", "mistral/codestral-2508", "codestral-2508")],
        &[("/enabled", json!(false), json!(true))],
    )
    .reason = "CHG-2207".into();

    let us = s.at(0.120);
    s.act(
        us,
        &DANA,
        "provider.updated",
        &[("provider", "deepseek", "DeepSeek")],
        &[
            ("/limits/requests_per_minute", json!(120), json!(60)),
            ("/timeouts/first_token_ms", json!(20_000), json!(45_000)),
        ],
    )
    .reason = "CHG-2215: slow by day".into();

    let us = s.at(0.160);
    for (delay, action, resource, changes) in [
        (
            0,
            "provider.created",
            ("provider", "self-hosted", "Self-hosted"),
            vec![("/base_url", NONE, json!("http://inference.internal:8000/v1"))],
        ),
        (
            3 * SECOND_US,
            "model.enabled",
            ("model", "self-hosted/llama-3.3-70b-instruct", "llama-3.3-70b-instruct"),
            vec![("/enabled", NONE, json!(true))],
        ),
    ] {
        let event = s.act(us + delay, &TERRAFORM, action, &[resource], &changes);
        if let Some(actor) = &mut event.actor {
            actor.on_behalf_of = DANA.id.into();
        }
        event.reason = "CHG-2231".into();
        event.details_json = json!({"commit": "4be0c19", "plan": "2 to add, 0 to change, 0 to destroy"}).to_string();
    }

    let audio = [("model", "openai/gpt-4o-audio-preview", "gpt-4o-audio-preview")];
    let us = s.at(0.550);
    s.act(us, &DANA, "model.enabled", &audio, &[("/enabled", json!(false), json!(true))]).reason =
        "CHG-2260: trial of dictation".into();
    let us = s.at(0.600);
    s.act(us, &DANA, "model.disabled", &audio, &[("/enabled", json!(true), json!(false))]).reason =
        "CHG-2260: trial is over".into();

    let groq = [("provider", "groq", "Groq")];
    let us = s.at(0.510);
    let event =
        s.act(us, &DANA, "provider.created", &groq, &[("/base_url", NONE, json!("https://api.groq.com/openai/v1"))]);
    event.instance_id = STAGING.into();
    event.reason = "CHG-2255: trial".into();
    let us = s.at(0.660);
    s.act_in_two(
        us,
        &DANA,
        "provider.deleted",
        &groq,
        &[("/base_url", json!("https://api.groq.com/openai/v1"), NONE)],
        "CHG-2255: trial is over",
    );
}

fn tools(s: &mut Script) {
    let jira = [("mcp_server", "mcp_jira", "Jira")];
    let us = s.at(0.200);
    s.act(
        us,
        &LUCA,
        "mcp_server.created",
        &jira,
        &[
            ("/url", NONE, json!("https://mcp.example.com/jira")),
            ("/tools", NONE, json!(["issue.read", "issue.comment"])),
        ],
    )
    .reason = "CHG-2240".into();
    let us = s.at(0.260);
    s.act(
        us,
        &LUCA,
        "mcp_server.updated",
        &jira,
        &[(
            "/tools",
            json!(["issue.read", "issue.comment"]),
            json!(["issue.read", "issue.comment", "issue.transition"]),
        )],
    )
    .reason = "asked for by the support team".into();

    let client = [("mcp_oauth_client", "moc_7d1f", "Jira connector"), jira[0]];
    for (fraction, action, changes) in [
        (
            0.230,
            "mcp_oauth_client.created",
            vec![("/redirect_uris", NONE, json!(["https://platform.example.com/mcp/callback"]))],
        ),
        (
            0.300,
            "mcp_oauth_client.updated",
            vec![("/redirect_uris/1", NONE, json!("https://staging.example.com/mcp/callback"))],
        ),
        (0.340, "mcp_oauth_client.secret_rotated", vec![("/secret_sha256", json!("c07d…"), json!("11e4…"))]),
        (0.720, "mcp_oauth_client.deleted", vec![("/enabled", json!(true), NONE)]),
    ] {
        let us = s.at(fraction);
        s.act(us, &LUCA, action, &client, &changes);
    }

    let wiki = [("mcp_server", "mcp_old_wiki", "Old wiki")];
    let us = s.at(0.580);
    s.act(us, &LUCA, "mcp_server.created", &wiki, &[("/url", NONE, json!("https://mcp.example.com/wiki"))]);
    let us = s.at(0.700);
    s.act(us, &LUCA, "mcp_server.deleted", &wiki, &[("/url", json!("https://mcp.example.com/wiki"), NONE)]).reason =
        "nobody used it".into();

    // The backend died between the two halves: the intent stands open.
    let us = s.at(0.975);
    let open = s.act(
        us,
        &LUCA,
        "mcp_server.deleted",
        &[("mcp_server", "mcp_browser", "Browser")],
        &[("/url", json!("https://mcp.example.com/browser"), NONE)],
    );
    open.outcome = Outcome::Unknown.into();
    open.operation = Some(Operation { id: "op_browser_removal".into(), stage: Stage::Intent.into() });
}

fn people(s: &mut Script) {
    let maintenance = [("announcement", "ann_0101", "Maintenance on Saturday")];
    let us = s.at(0.060);
    s.act(
        us,
        &LUCA,
        "announcement.created",
        &maintenance,
        &[
            ("/text", NONE, json!("The platform is read-only on Saturday from 06:00 to 07:00 UTC.")),
            ("/severity", NONE, json!("info")),
        ],
    );
    let us = s.at(0.110);
    s.act(us, &PLATFORM, "announcement.archived", &maintenance, &[("/archived", json!(false), json!(true))]).reason =
        "its time is over".into();

    let bela = [("user", BELA.id, BELA.name)];
    let us = s.at(0.400);
    let denied = s.act(us, &BELA, "user.role_changed", &bela, &[("/role", json!("member"), json!("super_admin"))]);
    denied.outcome = Outcome::Denied.into();
    denied.reason = "nobody changes their own role".into();
    let us = s.at(0.640);
    s.act(
        us,
        &INGRID,
        "user.role_changed",
        &[("user", "usr_0042", "nadia.weiss@example.com")],
        &[("/role", json!("member"), json!("auditor"))],
    )
    .reason = "SEC-930: yearly audit".into();
    let us = s.at(0.620);
    s.act(
        us,
        &INGRID,
        "api_key.revoked",
        &[("api_key", "key_5e1ace00", "nightly-eval")],
        &[("/status", json!("active"), json!("revoked"))],
    )
    .reason = "INC-398: found in a public repository".into();
}

/// The spike's cause, and its end.
///
/// ```text
/// -26 min  model.enabled    the expensive model, for one team
///   0      provider.updated it becomes the default of that team's agents (in two entries)
///  +26 h   provider.updated taken back, by somebody else
///          model.disabled   and switched off
/// ```
pub(super) fn spike(s: &mut Script) {
    let spike = s.plan.spike();
    let path = format!("/routing/{ALIAS}/model");
    let effort = format!("/routing/{ALIAS}/reasoning_effort");
    let id = format!("openai/{ALIAS_SPIKE}");
    let model = ("model", id.as_str(), ALIAS_SPIKE);
    let resources = [("provider", "openai", "OpenAI"), model, ("team", SPIKE_TEAM, SPIKE_TEAM)];
    let because = "CHG-2291: agents give up too early on long tasks";

    s.act(
        spike.start_us - 26 * MINUTE_US,
        &DANA,
        "model.enabled",
        &[model],
        &[("/enabled", json!(false), json!(true)), ("/teams", json!([]), json!([SPIKE_TEAM]))],
    )
    .reason = because.into();
    s.act_in_two(
        spike.start_us - 2 * SECOND_US,
        &DANA,
        "provider.updated",
        &resources,
        &[(&path, json!(ALIAS_USUAL), json!(ALIAS_SPIKE)), (&effort, json!("low"), json!("high"))],
        because,
    );

    let because = "INC-417: the spend of the agents is many times the usual";
    s.act(
        spike.end_us,
        &OMAR,
        "provider.updated",
        &resources,
        &[(&path, json!(ALIAS_SPIKE), json!(ALIAS_USUAL)), (&effort, json!("high"), json!("low"))],
    )
    .reason = because.into();
    s.act(
        spike.end_us + 4 * MINUTE_US,
        &OMAR,
        "model.disabled",
        &[model],
        &[("/enabled", json!(true), json!(false)), ("/teams", json!([SPIKE_TEAM]), json!([]))],
    )
    .reason = because.into();
    let note = [("announcement", "ann_0107", "Agents are back on their usual model")];
    s.act(
        spike.end_us + 20 * MINUTE_US,
        &OMAR,
        "announcement.created",
        &note,
        &[("/text", NONE, json!(format!("{ALIAS} is served by {ALIAS_USUAL} again.")))],
    );
    s.act(spike.end_us + HOUR_US, &OMAR, "announcement.archived", &note, &[("/archived", json!(false), json!(true))]);
}

/// What happens every week: about three actions in two days.
pub(super) fn routine(s: &mut Script) {
    let count = s.plan.days * 3 / 2;
    for number in 0..count {
        let fraction = (f64::from(number) + s.rng.random::<f64>()) / f64::from(count.max(1));
        let us = s.at(fraction * 0.999);
        let user = s.rng.random_range(1..400);
        let user_id = format!("usr_{user:04}");
        match s.rng.random_range(0..10) {
            0..5 => {
                let key = format!("key_{:08x}", s.rng.random::<u32>());
                s.act(
                    us,
                    &INGRID,
                    "api_key.revoked",
                    &[("api_key", &key, "")],
                    &[("/status", json!("active"), json!("revoked"))],
                )
                .reason = "unused for 90 days".into();
            }
            5..8 => {
                let roles = ["member", "billing_admin", "auditor"];
                let old = s.rng.random_range(0..roles.len());
                let new = roles[(old + s.rng.random_range(1..roles.len())) % roles.len()];
                s.act(
                    us,
                    &INGRID,
                    "user.role_changed",
                    &[("user", &user_id, "")],
                    &[("/role", json!(roles[old]), json!(new))],
                );
            }
            _ => {
                let limit = s.rng.random_range(1..20) * 50;
                let event = s.act(
                    us,
                    &TERRAFORM,
                    "provider.updated",
                    &[("provider", "anthropic", "Anthropic")],
                    &[("/limits/requests_per_minute", json!(limit), json!(limit + 50))],
                );
                event.instance_id = STAGING.into();
            }
        }
    }
}
