//! grpcurl commands to paste, with the addresses and the range that are in use.

use crate::time::rfc3339;

/// One command: what it answers, and its parts.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// The question.
    pub question: String,
    /// The address it goes to.
    pub address: String,
    /// `package.Service/Method`.
    pub method: &'static str,
    /// The request as JSON.
    pub data: String,
}

impl Recipe {
    /// For a shell. The JSON is within single quotes; one inside it is taken out
    /// of them.
    pub fn command(&self) -> String {
        format!("grpcurl -plaintext -d '{}' {} {}", self.data.replace('\'', r"'\''"), self.address, self.method)
    }
}

/// What the recipes are about; names come from the services' own answers.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Where the audit service listens.
    pub audit: String,
    /// Where the usage service listens.
    pub usage: String,
    /// The range: from, exclusive end.
    pub range: (i64, i64),
    /// A model that was looked into.
    pub model: Option<String>,
    /// A user with requests.
    pub user: Option<String>,
    /// An instance with audit entries.
    pub instance: Option<String>,
}

/// The commands in the order of the demo's questions.
pub fn recipes(subject: &Subject) -> Vec<Recipe> {
    let range = format!(
        r#""time_range":{{"interval":{{"start":"{}","end":"{}"}}}}"#,
        rfc3339(subject.range.0),
        rfc3339(subject.range.1)
    );
    let usage = |question: &str, method, data: String| Recipe {
        question: question.into(),
        address: subject.usage.clone(),
        method,
        data,
    };
    let audit = |question: &str, method, data: String| Recipe {
        question: question.into(),
        address: subject.audit.clone(),
        method,
        data,
    };
    let mut all = vec![
        usage(
            "what is the platform doing, and how is that against the range before?",
            "activity.usage.v1.UsageQueryService/GetSummary",
            format!(r#"{{{range},"compare_to_previous":true}}"#),
        ),
        usage(
            "who spends most?",
            "activity.usage.v1.UsageQueryService/ListBreakdown",
            format!(r#"{{{range},"group_by":["DIMENSION_USER"],"order_by":"METRIC_COST","limit":10}}"#),
        ),
        usage(
            "what does each provider cost a day?",
            "activity.usage.v1.UsageQueryService/GetTimeSeries",
            format!(r#"{{{range},"bucket":"BUCKET_DAY","group_by":["DIMENSION_PROVIDER"],"limit":5}}"#),
        ),
    ];
    if let Some(user) = &subject.user {
        let user = serde_json::json!([user]);
        all.push(usage(
            "which requests did that user make?",
            "activity.usage.v1.UsageQueryService/ListRequests",
            format!(r#"{{{range},"filter":{{"user_ids":{user}}},"page_size":5}}"#),
        ));
    }
    all.push(audit(
        "what did administrators do?",
        "activity.audit.v1.AuditQueryService/ListEntries",
        format!(r#"{{{range},"page_size":10}}"#),
    ));
    if let Some(model) = &subject.model {
        let model = serde_json::json!([model]);
        all.push(audit(
            "who changed that model?",
            "activity.audit.v1.AuditQueryService/ListEntries",
            format!(r#"{{{range},"filter":{{"resources":{model}}}}}"#),
        ));
    }
    if let Some(instance) = &subject.instance {
        let instance = serde_json::json!(instance);
        all.push(audit(
            "what happens next? (until Ctrl-C)",
            "activity.audit.v1.AuditQueryService/TailEntries",
            format!(r#"{{"instance_id":{instance}}}"#),
        ));
    }
    all.push(usage(
        "what would a request cost?",
        "activity.usage.v1.PricingService/EstimateCost",
        r#"{"provider":"openai","model":"gpt-5.4-mini","tokens":{"input_uncached":2000,"output":300}}"#.into(),
    ));
    all
}
