// What postgres (postgres.js) does with a database: log in, query, transactions, COPY, cancel, survive a freeze and a stop.
// Run with a URL. Prints `pause freeze` or `pause stop` and waits for a line when the test is to do that; ends with `done`.

import assert from "node:assert/strict";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import postgres from "postgres";
import { done, pause } from "./pause.mjs";

const options = { max: 1, onnotice: () => {} };
let sql = postgres(process.argv[2], options);

assert.equal((await sql`SELECT ${40}::int + ${2}::int AS n`)[0].n, 42);
assert.equal((await sql`SELECT ${"naïve ☃"}::text AS t`)[0].t, "naïve ☃");
await sql`DROP TABLE IF EXISTS postgres_t`;
await sql`CREATE TABLE postgres_t (n int PRIMARY KEY, t text)`;

await sql.begin((sql) => sql`INSERT INTO postgres_t VALUES (1, 'kept')`);
await assert.rejects(
  sql.begin(async (sql) => {
    await sql`INSERT INTO postgres_t VALUES (2, 'rolled back')`;
    throw new Error("changed my mind");
  }),
  /changed my mind/,
);
assert.equal((await sql`SELECT count(*)::int AS n FROM postgres_t`)[0].n, 1);

const lines = Array.from({ length: 5000 }, (_, i) => `${1000 + i}\trow ${1000 + i}\n`);
await pipeline(Readable.from(lines), await sql`COPY postgres_t FROM STDIN`.writable());
// A connection of postgres 3.4.9 stands still, on any server, after a COPY whose reader was ever slower than the server.
let copied = "";
const out = await sql`COPY (SELECT n FROM postgres_t WHERE n >= 5500 ORDER BY n) TO STDOUT`.readable();
for await (const chunk of out) copied += chunk;
assert.deepEqual(copied.trim().split("\n").map(Number), Array.from({ length: 500 }, (_, i) => 5500 + i));

const sleeping = sql`SELECT pg_sleep(60)`.execute();
setTimeout(() => sleeping.cancel(), 500);
await assert.rejects(sleeping, { code: "57014" });

await sql`CREATE TEMP TABLE mine AS SELECT 7 AS n`;
const server = (await sql`SELECT pg_backend_pid() AS pid`)[0].pid;
await pause("freeze");
assert.equal((await sql`SELECT n FROM mine`)[0].n, 7);
assert.equal((await sql`SELECT pg_backend_pid() AS pid`)[0].pid, server);
await sql.end();

await pause("stop");
sql = postgres(process.argv[2], { ...options, max: 4 });
const counts = await Promise.all(Array.from({ length: 8 }, () => sql`SELECT count(*)::int AS n FROM postgres_t`));
for (const [row] of counts) assert.equal(row.n, 5001);
await sql.end();
done();
