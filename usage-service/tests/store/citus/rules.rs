//! What a statement must look like, so that a Citus cluster takes it and means the same by it.
//!
//! Each rule is something that Citus refuses, or does wrongly or badly, with a table that is spread. They are about
//! the statement's tree, not its text.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use service_core::database::Spread;
use sqlparser::ast::{
    AssignmentTarget, ConflictTarget, Expr, FromTable, GroupByExpr, Insert, JoinOperator, ObjectName, OnConflictAction,
    OnInsert, Query, Select, Statement, TableFactor, TableObject, TableWithJoins, UpdateTableFromKind, Visit as _,
    Visitor,
};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;
use usage_service::store::DISTRIBUTED;

const SYSTEM_COLUMNS: [&str; 6] = ["ctid", "tableoid", "xmin", "xmax", "cmin", "cmax"];
/// What changes partitions, as the tables' owner.
const PARTITIONING: [&str; 2] = ["usage_add_partition", "usage_drop_partition"];

/// The columns of each table.
pub(crate) type Columns = BTreeMap<String, BTreeSet<String>>;

/// Where a relation's rows are.
#[derive(Debug, Clone, PartialEq)]
enum Place {
    Spread {
        key: &'static str,
    },
    Everywhere,
    /// On the coordinator.
    Local,
    /// Made in the statement itself.
    Inline,
}

#[derive(Debug)]
struct Source {
    alias: String,
    place: Place,
    /// None where they are not known.
    columns: Option<BTreeSet<String>>,
}

/// A query, or the target of a writing statement.
#[derive(Debug, Default)]
struct Frame {
    sources: Vec<Source>,
    locks: bool,
}

/// What is wrong with a statement; nothing when all is well.
pub(crate) fn violations(sql: &str, columns: &Columns) -> Vec<String> {
    let statements = match Parser::parse_sql(&PostgreSqlDialect {}, sql) {
        Ok(statements) => statements,
        Err(why) => return vec![format!("cannot be parsed: {why}")],
    };
    let mut check = Check {
        columns,
        frames: Vec::new(),
        inline: BTreeSet::new(),
        found: BTreeSet::new(),
        spread: false,
        system: false,
    };
    for statement in &statements {
        if !may_be_sent(statement) {
            check.found.insert("is no statement that reads or writes rows, nor of a transaction".into());
        }
        let _ = statement.visit(&mut check);
    }
    if check.spread && check.system {
        check.found.insert("names a system column: each shard has its own".into());
    }
    check.found.into_iter().collect()
}

/// Whether a statement changes partitions.
pub(crate) fn changes_partitions(sql: &str) -> bool {
    PARTITIONING.iter().any(|function| sql.contains(function))
}

/// Whether a statement touches a table that is on the workers.
pub(crate) fn touches_workers(sql: &str) -> bool {
    DISTRIBUTED.iter().any(|table| sql.contains(table.table))
}

fn may_be_sent(statement: &Statement) -> bool {
    matches!(
        statement,
        Statement::Query(_)
            | Statement::Insert(_)
            | Statement::Update(_)
            | Statement::Delete(_)
            | Statement::StartTransaction { .. }
            | Statement::Commit { .. }
            | Statement::Rollback { .. }
            | Statement::Savepoint { .. }
            | Statement::ReleaseSavepoint { .. }
            | Statement::Set(_)
    )
}

struct Check<'a> {
    columns: &'a Columns,
    frames: Vec<Frame>,
    /// Names of queries of WITH.
    inline: BTreeSet<String>,
    found: BTreeSet<String>,
    /// Whether the statement touches a table that is spread.
    spread: bool,
    system: bool,
}

fn last(name: &ObjectName) -> String {
    name.0.last().and_then(|part| part.as_ident()).map(|ident| ident.value.clone()).unwrap_or_default()
}

impl Check<'_> {
    fn place(&self, table: &str) -> Place {
        if self.inline.contains(table) {
            return Place::Inline;
        }
        match DISTRIBUTED.iter().find(|distributed| distributed.table == table).map(|table| table.spread) {
            Some(Spread::By(key)) => Place::Spread { key },
            Some(Spread::Everywhere) => Place::Everywhere,
            None => Place::Local,
        }
    }

    fn table(&mut self, name: &ObjectName, alias: Option<String>) -> Source {
        let table = last(name);
        for spread in DISTRIBUTED.iter().filter(|table| matches!(table.spread, Spread::By(_))) {
            if table.starts_with(&format!("{}_", spread.table)) {
                self.found.insert(format!("names a partition ({table}): the service has no right to it"));
            }
        }
        let place = self.place(&table);
        self.spread |= matches!(place, Place::Spread { .. });
        let columns = self.columns.get(&table).cloned();
        Source { alias: alias.unwrap_or(table), place, columns }
    }

    fn source(&mut self, factor: &TableFactor) -> Vec<Source> {
        let inline = |alias: &Option<sqlparser::ast::TableAlias>| {
            let alias = alias.as_ref().map(|alias| alias.name.value.clone()).unwrap_or_default();
            vec![Source { alias, place: Place::Inline, columns: None }]
        };
        match factor {
            TableFactor::Table { name, alias, args: None, .. } => {
                vec![self.table(name, alias.as_ref().map(|alias| alias.name.value.clone()))]
            }
            TableFactor::Table { alias, .. } | TableFactor::UNNEST { alias, .. } => inline(alias),
            TableFactor::Derived { lateral, alias, .. } | TableFactor::Function { lateral, alias, .. } => {
                if *lateral {
                    self.found.insert("has LATERAL: Citus joins it only by the distribution column".into());
                }
                inline(alias)
            }
            TableFactor::NestedJoin { table_with_joins, .. } => self.sources(std::slice::from_ref(table_with_joins)),
            other => {
                self.found.insert(format!("reads from {other}, which no rule knows"));
                Vec::new()
            }
        }
    }

    fn sources(&mut self, from: &[TableWithJoins]) -> Vec<Source> {
        let mut all = Vec::new();
        for table in from {
            let mut left = self.source(&table.relation);
            for join in &table.joins {
                let right = self.source(&join.relation);
                let spread = |sources: &[Source]| sources.iter().any(|at| matches!(at.place, Place::Spread { .. }));
                let outer = match &join.join_operator {
                    JoinOperator::Left(_) | JoinOperator::LeftOuter(_) => spread(&right) && !spread(&left),
                    JoinOperator::Right(_) | JoinOperator::RightOuter(_) => spread(&left) && !spread(&right),
                    JoinOperator::FullOuter(_) => spread(&left) || spread(&right),
                    _ => false,
                };
                if outer {
                    self.found.insert("has an outer join that keeps rows beside those of a spread table".into());
                }
                left.extend(right);
            }
            all.extend(left);
        }
        all
    }

    /// Adds what the innermost query, or the statement itself, reads from.
    fn read(&mut self, from: &[TableWithJoins]) {
        let sources = self.sources(from);
        if let Some(frame) = self.frames.last_mut() {
            frame.sources.extend(sources);
        }
    }

    fn insert(&mut self, insert: &Insert) {
        let TableObject::TableName(name) = &insert.table else {
            self.found.insert("inserts into what is no table".into());
            return;
        };
        let alias = insert.table_alias.as_ref().map(|alias| alias.alias.value.clone());
        let target = self.table(name, alias);
        if let Place::Spread { key } = target.place {
            if !insert.columns.iter().any(|column| last(column) == key) {
                self.found.insert(format!("inserts without naming the distribution column {key}"));
            }
            if let Some(OnInsert::OnConflict(conflict)) = &insert.on {
                if insert.returning.is_none() && from_a_query(insert) {
                    self.found.insert("skips conflicts without RETURNING: Citus counts what was skipped".into());
                }
                if let Some(ConflictTarget::Columns(columns)) = &conflict.conflict_target
                    && !columns.iter().any(|column| column.value == key)
                {
                    self.found.insert(format!("has a conflict target without the distribution column {key}"));
                }
                if let OnConflictAction::DoUpdate(update) = &conflict.action {
                    self.assigns(update.assignments.iter().map(|assignment| &assignment.target), key);
                }
            }
        }
        self.push(vec![target]);
    }

    fn assigns<'b>(&mut self, targets: impl Iterator<Item = &'b AssignmentTarget>, key: &str) {
        for target in targets {
            let names = match target {
                AssignmentTarget::ColumnName(name) => std::slice::from_ref(name),
                AssignmentTarget::Tuple(names) => names,
            };
            if names.iter().any(|name| last(name) == key) {
                self.found.insert(format!("changes the distribution column {key}"));
            }
        }
    }

    fn push(&mut self, sources: Vec<Source>) {
        self.frames.push(Frame { sources, locks: false });
    }

    /// What is known once all of a query, or of a statement's own level, has been seen.
    fn pop(&mut self) {
        let Some(frame) = self.frames.pop() else {
            return;
        };
        let any = |wanted: fn(&Place) -> bool| frame.sources.iter().any(|source| wanted(&source.place));
        let spread = any(|place| matches!(place, Place::Spread { .. }));
        if spread && any(|place| *place == Place::Local) {
            self.found.insert("joins a spread table with one of the coordinator's".into());
        }
        if frame.locks && (spread || any(|place| *place == Place::Everywhere)) {
            self.found.insert("locks rows of a table that is on the workers".into());
        }
    }

    /// How many queries out the name's owner is; none where it is nobody's.
    fn owner(&self, qualifier: Option<&str>, column: &str) -> Option<usize> {
        self.frames.iter().rev().position(|frame| {
            frame.sources.iter().any(|source| match qualifier {
                Some(qualifier) => source.alias == qualifier,
                None => source.columns.as_ref().is_none_or(|columns| columns.contains(column)),
            })
        })
    }

    fn name(&mut self, qualifier: Option<&str>, column: &str) {
        self.system |= SYSTEM_COLUMNS.contains(&column);
        if let Some(out) = self.owner(qualifier, column).filter(|out| *out > 0) {
            let between = self.frames.iter().rev().take(out + 1);
            let spread = between.flat_map(|frame| &frame.sources).any(|at| matches!(at.place, Place::Spread { .. }));
            if spread {
                self.found.insert(format!("has a correlated subquery beside a spread table (by {column})"));
            }
        }
    }
}

impl Visitor for Check<'_> {
    type Break = ();

    fn pre_visit_statement(&mut self, statement: &Statement) -> ControlFlow<()> {
        match statement {
            Statement::Insert(insert) => self.insert(insert),
            Statement::Update(update) => {
                let target = self.sources(std::slice::from_ref(&update.table));
                for source in &target {
                    if let Place::Spread { key } = source.place {
                        self.assigns(update.assignments.iter().map(|assignment| &assignment.target), key);
                    }
                }
                self.push(target);
                if let Some(UpdateTableFromKind::BeforeSet(from) | UpdateTableFromKind::AfterSet(from)) = &update.from {
                    self.read(from);
                }
            }
            Statement::Delete(delete) => {
                self.push(Vec::new());
                let (FromTable::WithFromKeyword(from) | FromTable::WithoutKeyword(from)) = &delete.from;
                self.read(from);
                self.read(delete.using.as_deref().unwrap_or_default());
            }
            _ => self.push(Vec::new()),
        }
        ControlFlow::Continue(())
    }

    fn post_visit_statement(&mut self, _: &Statement) -> ControlFlow<()> {
        self.pop();
        ControlFlow::Continue(())
    }

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        if let Some(with) = &query.with {
            self.inline.extend(with.cte_tables.iter().map(|cte| cte.alias.name.value.clone()));
            if with.recursive {
                self.found.insert("is recursive: Citus refuses that with tables on the workers".into());
            }
        }
        self.push(Vec::new());
        if let Some(frame) = self.frames.last_mut() {
            frame.locks = !query.locks.is_empty();
        }
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.pop();
        ControlFlow::Continue(())
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<()> {
        self.read(&select.from);
        if select.into.is_some() {
            self.found.insert("makes a table by SELECT INTO".into());
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_group_by(&mut self, group_by: &GroupByExpr) -> ControlFlow<()> {
        if let GroupByExpr::Expressions(by, modifiers) = group_by {
            let sets = |expr: &Expr| matches!(expr, Expr::GroupingSets(_) | Expr::Cube(_) | Expr::Rollup(_));
            if !modifiers.is_empty() || by.iter().any(sets) {
                self.found.insert("has grouping sets: Citus refuses them over shards".into());
            }
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        match expr {
            Expr::Identifier(column) => self.name(None, &column.value.to_lowercase()),
            Expr::CompoundIdentifier(parts) => {
                if let [.., qualifier, column] = parts.as_slice() {
                    self.name(Some(&qualifier.value), &column.value.to_lowercase());
                }
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

fn from_a_query(insert: &Insert) -> bool {
    insert.source.as_ref().is_some_and(|source| !matches!(*source.body, sqlparser::ast::SetExpr::Values(_)))
}
