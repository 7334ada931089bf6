//! What the tables that are spread must look like, read from the catalog.

use service_core::database::Spread;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use usage_service::store::DISTRIBUTED;

/// Each finds what Citus refuses or can't keep, of the tables in `$1` (and of their partitions, where it matters):
/// the rule, and a query for the names of those that break it. `$2` are their distribution columns.
const RULES: [(&str, &str); 9] = [
    (
        "a unique index, exclusion or key must hold the distribution column",
        "SELECT index.indexrelid::regclass::text FROM pg_index AS index \
         JOIN unnest($1::text[], $2::text[]) AS spread (name, key) ON index.indrelid = spread.name::regclass \
         WHERE (index.indisunique OR index.indisexclusion) AND spread.key <> '' AND NOT EXISTS ( \
             SELECT 1 FROM pg_attribute AS attribute \
             WHERE attribute.attrelid = index.indrelid AND attribute.attname = spread.key \
               AND attribute.attnum = ANY (index.indkey[0:index.indnkeyatts - 1]))",
    ),
    (
        "the distribution column must be there, and never null",
        "SELECT name FROM unnest($1::text[], $2::text[]) AS spread (name, key) WHERE key <> '' AND NOT EXISTS ( \
             SELECT 1 FROM pg_attribute WHERE attrelid = name::regclass AND attname = key AND attnotnull)",
    ),
    (
        "a table on the workers has no triggers",
        "SELECT tgname::text FROM pg_trigger WHERE tgrelid = ANY ($1::regclass[]) AND NOT tgisinternal",
    ),
    (
        "a table on the workers has no rules",
        "SELECT rulename::text FROM pg_rewrite WHERE ev_class = ANY ($1::regclass[])",
    ),
    (
        "a foreign key from or to a table on the workers must stay among them",
        "SELECT conname::text FROM pg_constraint WHERE contype = 'f' \
         AND (conrelid = ANY ($1::regclass[])) <> (confrelid = ANY ($1::regclass[]))",
    ),
    (
        "no column of a table on the workers is filled by a sequence",
        "SELECT attrelid::regclass::text || '.' || attname FROM pg_attribute \
         LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum \
         WHERE attrelid = ANY ($1::regclass[]) AND attnum > 0 \
           AND (attidentity <> '' OR pg_get_expr(adbin, adrelid) ILIKE '%nextval%')",
    ),
    (
        "no table on the workers has row security or inherits but by partitions",
        "SELECT relname::text FROM pg_class WHERE oid = ANY ($1::regclass[]) AND (relrowsecurity OR relkind NOT IN ('r', 'p'))",
    ),
    (
        "no view or function of SQL's new style depends on a table on the workers",
        "SELECT classid::regclass::text FROM pg_depend WHERE refobjid = ANY ($1::regclass[]) \
         AND classid IN ('pg_rewrite'::regclass, 'pg_proc'::regclass)",
    ),
    (
        "functions name no row by its place, lock no row of the workers and make partitions by ATTACH",
        "SELECT proname::text FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND proname LIKE 'usage%' \
         AND prosrc ~* '\\m(ctid|tableoid)\\M|FOR\\s+(UPDATE|SHARE|NO KEY|KEY SHARE)|PARTITION\\s+OF|CONCURRENTLY|SET\\s+STORAGE'",
    ),
];

/// What breaks a rule: the rule, and what.
pub(crate) async fn violations(url: &str) -> Vec<String> {
    let mut connection = PgConnection::connect(url).await.unwrap();
    let mut tables = Vec::new();
    let mut keys = Vec::new();
    for table in DISTRIBUTED {
        tables.push(table.table.to_owned());
        keys.push(match table.spread {
            Spread::By(key) => key.to_owned(),
            Spread::Everywhere => String::new(),
        });
    }
    // Partitions are spread as their table is.
    for (table, key) in tables.clone().into_iter().zip(keys.clone()) {
        let partitions: Vec<String> =
            sqlx::query_scalar("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = $1::text::regclass")
                .bind(table)
                .fetch_all(&mut connection)
                .await
                .unwrap();
        keys.extend(partitions.iter().map(|_| key.clone()));
        tables.extend(partitions);
    }
    let mut found = Vec::new();
    for (rule, sql) in RULES {
        let query = sqlx::query_scalar::<_, String>(AssertSqlSafe(sql)).bind(&tables);
        let query = if sql.contains("$2") { query.bind(&keys) } else { query };
        let names = query.fetch_all(&mut connection).await.unwrap_or_else(|why| panic!("{rule}: {why}"));
        found.extend(names.into_iter().map(|name| format!("{rule}: {name}")));
    }
    found
}
