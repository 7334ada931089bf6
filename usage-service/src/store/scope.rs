//! Which rows an answer is about, as a condition. Everything that a client gave
//! is a bound parameter.

use sea_orm::sea_query::{Alias, Condition, Expr, ExprTrait as _, Func};
use sea_orm::{ColumnTrait as _, DbBackend};
use service_core::auth::Instances;

use super::entity::request::Column;
use super::partitions;
use crate::model::{Scope, Status};

/// Rows in the window that the caller may see, and the filter lets through.
pub(super) fn condition(scope: &Scope, backend: DbBackend) -> Condition {
    let filter = &scope.filter;
    let mut all = Condition::all().add(Column::OccurredAt.gte(scope.start_us)).add(Column::OccurredAt.lt(scope.end_us));
    if backend == DbBackend::Postgres {
        // Says nothing new, but which partitions to leave out.
        let (from, to) = partitions::id_bounds(scope.start_us, scope.end_us);
        all = all.add_option(from.map(|id| Column::Id.gte(id))).add_option(to.map(|id| Column::Id.lt(id)));
    }
    if let Instances::Only(instances) = scope.access.instances() {
        all = all.add(Column::InstanceId.is_in(instances.iter().map(String::as_str)));
    }
    if let Some(user) = scope.access.user() {
        all = all.add(Column::UserId.eq(user));
    }
    if let Some(watermark) = scope.watermark {
        all = all.add(Column::CommitNumber.lte(watermark));
    }
    let lists = [
        (Column::InstanceId, &filter.instance_ids),
        (Column::UserId, &filter.user_ids),
        (Column::TeamId, &filter.team_ids),
        (Column::ApiKeyId, &filter.api_key_ids),
        (Column::Provider, &filter.providers),
        (Column::Model, &filter.models),
    ];
    for (column, values) in lists {
        if !values.is_empty() {
            all = all.add(column.is_in(values.iter().map(String::as_str)));
        }
    }
    if !filter.statuses.is_empty() {
        all = all.add(Column::Status.is_in(filter.statuses.iter().copied().map(Status::number)));
    }
    for (key, value) in &filter.labels {
        all = all.add(has_label(key, value, backend));
    }
    all
}

/// Labels are stored as a JSON object in one form (`serde_json`, no blanks), so a
/// member is there exactly if its text is, after `{` or `,`. A look-alike inside
/// another key or value has its quotes escaped and is no match:
///
/// ```text
/// {"env":"prod","note":"x,\"env\":\"dev"}     holds ,"env":"prod" … but not ,"env":"dev"
/// ```
fn has_label(key: &str, value: &str, backend: DbBackend) -> Condition {
    let text = |text: &str| serde_json::Value::from(text).to_string();
    let member = format!("{}:{}", text(key), text(value));
    let find = match backend {
        DbBackend::Sqlite => "instr",
        _ => "strpos",
    };
    let holds = |before: char| {
        Expr::expr(
            Func::cust(Alias::new(find))
                .arg(Expr::col((super::entity::request::Entity, Column::Labels)))
                .arg(format!("{before}{member}")),
        )
        .gt(0)
    };
    Condition::any().add(holds('{')).add(holds(','))
}
