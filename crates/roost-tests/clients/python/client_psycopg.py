"""What psycopg does with a database: log in, query, transactions, COPY, cancel, survive a freeze and a stop.

Run with a URL. Prints `pause freeze` or `pause stop` and waits for a line when the test is to do that; ends with `done`.
"""

import sys
import threading
import time

import psycopg


def pause(what):
    print("pause", what, flush=True)
    sys.stdin.readline()


def main(url):
    with psycopg.connect(url, autocommit=True) as connection:
        assert connection.execute("SELECT %s::int + %s::int", (40, 2)).fetchone() == (42,)
        assert connection.execute("SELECT %s::text", ("naïve ☃",)).fetchone() == ("naïve ☃",)
        connection.execute("DROP TABLE IF EXISTS psycopg_t")
        connection.execute("CREATE TABLE psycopg_t (n int PRIMARY KEY, t text)")

        with connection.transaction():
            connection.execute("INSERT INTO psycopg_t VALUES (1, 'kept')")
        try:
            with connection.transaction():
                connection.execute("INSERT INTO psycopg_t VALUES (2, 'rolled back')")
                raise psycopg.Rollback
        except psycopg.Rollback:
            pass
        assert connection.execute("SELECT count(*) FROM psycopg_t").fetchone() == (1,)

        with connection.cursor() as cursor:
            with cursor.copy("COPY psycopg_t FROM STDIN") as copy:
                for n in range(1000, 6000):
                    copy.write_row((n, f"row {n}"))
            with cursor.copy("COPY (SELECT n FROM psycopg_t WHERE n >= 1000 ORDER BY n) TO STDOUT") as copy:
                copied = [int(row[0]) for row in copy.rows()]
            assert copied == list(range(1000, 6000))

        with connection.pipeline(), connection.cursor() as cursor:
            for n in range(100):
                cursor.execute("INSERT INTO psycopg_t VALUES (%s, 'pipelined')", (10000 + n,))

        threading.Timer(0.5, connection.cancel_safe).start()
        begun = time.monotonic()
        try:
            connection.execute("SELECT pg_sleep(60)")
            raise AssertionError("the query was not cancelled")
        except psycopg.errors.QueryCanceled:
            assert time.monotonic() - begun < 30

        connection.execute("PREPARE doubled AS SELECT $1::int * 2")
        connection.execute("CREATE TEMP TABLE mine AS SELECT 7 AS n")
        server = connection.info.backend_pid
        pause("freeze")
        assert connection.execute("EXECUTE doubled (21)").fetchone() == (42,)
        assert connection.execute("SELECT n FROM mine").fetchone() == (7,)
        assert connection.info.backend_pid == server

    pause("stop")
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM psycopg_t").fetchone() == (5101,)
    print("done", flush=True)


main(sys.argv[1])
