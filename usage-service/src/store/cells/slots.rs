//! The number of a request's bucket, as an SQL expression.
//!
//! Buckets are not all of one width: days have 23 or 25 hours where clocks change,
//! months have 28 to 31 days, and the range cuts the first and the last. But next
//! to each other they mostly are. So the edges are taken as *runs* of buckets of
//! equal width; within a run the number is a division, and which run it is, a tree
//! of comparisons finds in a few steps:
//!
//! ```text
//! days of 2024 in Berlin:  │ 90 days of 24 h │ 1 of 23 h │ 210 of 24 h │ 1 of 25 h │ 64 of 24 h │
//! ```

/// Buckets of one width, side by side.
struct Run {
    start_us: i64,
    width_us: i64,
    first: usize,
    buckets: usize,
}

/// The index of the bucket that holds `column`, for rising edges, given that the
/// column lies within them.
pub(super) fn expression(column: &str, edges: &[i64]) -> String {
    let mut runs: Vec<Run> = Vec::new();
    for (index, edge) in edges.windows(2).enumerate() {
        let width_us = edge[1] - edge[0];
        match runs.last_mut() {
            Some(run) if run.width_us == width_us => run.buckets += 1,
            _ => runs.push(Run { start_us: edge[0], width_us, first: index, buckets: 1 }),
        }
    }
    let mut sql = String::new();
    tree(column, &runs, &mut sql);
    sql
}

fn tree(column: &str, runs: &[Run], sql: &mut String) {
    let (left, right) = runs.split_at(runs.len() / 2);
    match (left, right) {
        ([], []) => sql.push('0'),
        ([], [run, ..]) if run.buckets == 1 => sql.push_str(&run.first.to_string()),
        ([], [run, ..]) => {
            let Run { start_us, width_us, first, .. } = run;
            sql.push_str(&format!("{first} + ({column} - {start_us}) / {width_us}"));
        }
        (_, [middle, ..]) => {
            sql.push_str(&format!("CASE WHEN {column} < {} THEN ", middle.start_us));
            tree(column, left, sql);
            sql.push_str(" ELSE ");
            tree(column, right, sql);
            sql.push_str(" END");
        }
        // The right half is never the smaller one.
        (_, []) => tree(column, left, sql),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_widths_are_one_division() {
        assert_eq!(expression("t", &[10, 20, 30, 40]), "0 + (t - 10) / 10");
        assert_eq!(expression("t", &[10, 20]), "0");
        assert_eq!(expression("t", &[10]), "0");
    }

    #[test]
    fn other_widths_are_found_by_comparison() {
        assert_eq!(
            expression("t", &[5, 10, 20, 30, 33]),
            "CASE WHEN t < 10 THEN 0 ELSE CASE WHEN t < 30 THEN 1 + (t - 10) / 10 ELSE 3 END END"
        );
    }
}
