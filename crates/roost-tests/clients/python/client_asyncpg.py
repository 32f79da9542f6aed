"""What asyncpg does with a database: log in, query, transactions, COPY, cancel, survive a freeze and a stop.

Run with a URL. Prints `pause freeze` or `pause stop` and waits for a line when the test is to do that; ends with `done`.
"""

import asyncio
import sys
import time

import asyncpg


async def pause(what):
    print("pause", what, flush=True)
    await asyncio.to_thread(sys.stdin.readline)


async def main(url):
    connection = await asyncpg.connect(url)
    assert await connection.fetchval("SELECT $1::int + $2::int", 40, 2) == 42
    assert await connection.fetchval("SELECT $1::text", "naïve ☃") == "naïve ☃"
    await connection.execute("DROP TABLE IF EXISTS asyncpg_t")
    await connection.execute("CREATE TABLE asyncpg_t (n int PRIMARY KEY, t text)")

    async with connection.transaction():
        await connection.execute("INSERT INTO asyncpg_t VALUES (1, 'kept')")
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("INSERT INTO asyncpg_t VALUES (2, 'rolled back')")
    await transaction.rollback()
    assert await connection.fetchval("SELECT count(*) FROM asyncpg_t") == 1

    records = [(n, f"row {n}") for n in range(1000, 6000)]
    await connection.copy_records_to_table("asyncpg_t", records=records)
    copied = bytearray()

    async def collect(data):
        copied.extend(data)

    query = "SELECT n FROM asyncpg_t WHERE n >= 1000 ORDER BY n"
    await connection.copy_from_query(query, output=collect)
    assert [int(line) for line in copied.split()] == list(range(1000, 6000))

    await connection.executemany("INSERT INTO asyncpg_t VALUES ($1, 'many')", [(10000 + n,) for n in range(100)])

    begun = time.monotonic()
    try:
        await connection.fetchval("SELECT pg_sleep(60)", timeout=0.5)
        raise AssertionError("the query was not cancelled")
    except TimeoutError:
        assert time.monotonic() - begun < 30
    assert await connection.fetchval("SELECT 1") == 1

    doubled = await connection.prepare("SELECT $1::int * 2")
    await connection.execute("CREATE TEMP TABLE mine AS SELECT 7 AS n")
    server = connection.get_server_pid()
    await pause("freeze")
    assert await doubled.fetchval(21) == 42
    assert await connection.fetchval("SELECT n FROM mine") == 7
    assert connection.get_server_pid() == server
    await connection.close()

    await pause("stop")
    pool = await asyncpg.create_pool(url, min_size=1, max_size=4)
    assert await pool.fetchval("SELECT count(*) FROM asyncpg_t") == 5101
    await pool.close()
    print("done", flush=True)


asyncio.run(main(sys.argv[1]))
