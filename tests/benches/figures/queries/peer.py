"""DuckDB's answers to the questions on standard input, and how long each took, on standard output."""

import json
import os
import sys
import time

import duckdb

COLUMNS = {
    "id": "UUID",
    "occurred_at": "BIGINT",
    "instance_id": "VARCHAR",
    "user_id": "VARCHAR",
    "team_id": "VARCHAR",
    "api_key_id": "VARCHAR",
    "provider": "VARCHAR",
    "model": "VARCHAR",
    "status": "SMALLINT",
    "input_uncached": "BIGINT",
    "input_cache_read": "BIGINT",
    "input_cache_write": "BIGINT",
    "input_cache_write_1h": "BIGINT",
    "output": "BIGINT",
    "output_reasoning": "BIGINT",
    "cost_nanos": "BIGINT",
}


def load(database, csv):
    """Makes the table of the rows in the file, as a table on disk, compressed as DuckDB likes."""
    making = database + ".new"
    if os.path.exists(making):
        os.remove(making)
    connection = duckdb.connect(making, config={"threads": 2, "memory_limit": "8GB"})
    connection.execute(
        f"CREATE TABLE requests AS SELECT * FROM read_csv('{csv}', header = false, columns = {COLUMNS})"
    )
    connection.execute("CHECKPOINT")
    connection.close()
    os.rename(making, database)


def timed(connection, statements, runs):
    """The rows of all statements together, and the times of that."""
    times = []
    rows = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        rows = [row for sql in statements for row in connection.execute(sql).fetchall()]
        times.append(time.perf_counter() - start)
    # The first one reads from disk.
    return [[str(cell) for cell in row] for row in rows], times[1:]


def main():
    asked = json.load(sys.stdin)
    if not os.path.exists(asked["database"]):
        load(asked["database"], asked["csv"])
    connection = duckdb.connect(asked["database"], read_only=True, config={"threads": 2, "memory_limit": "8GB"})
    count = connection.execute("SELECT count(*) FROM requests").fetchone()[0]
    groups = connection.execute(
        "SELECT count(*) FROM (SELECT DISTINCT user_id, api_key_id, provider, model, occurred_at // 86400000000 FROM requests)"
    ).fetchone()[0]
    answers = []
    for question in asked["questions"]:
        rows, times = timed(connection, question["sql"], asked["runs"])
        sums = timed(connection, question["sums"], asked["runs"])[1] if question["sums"] else []
        answers.append({"rows": rows, "times": times, "sums": sums})
    json.dump({"version": duckdb.__version__, "count": count, "groups": groups, "answers": answers}, sys.stdout)


main()
