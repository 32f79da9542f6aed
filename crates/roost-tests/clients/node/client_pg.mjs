// What pg does with a database: log in, query, transactions, COPY, cancel, survive a freeze and a stop.
// Run with a URL. Prints `pause freeze` or `pause stop` and waits for a line when the test is to do that; ends with `done`.

import assert from "node:assert/strict";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import pg from "pg";
import copy from "pg-copy-streams";
import { done, pause } from "./pause.mjs";

const connectionString = process.argv[2];
const client = new pg.Client({ connectionString });
await client.connect();

const value = async (query, parameters) => Object.values((await client.query(query, parameters)).rows[0])[0];

assert.equal(await value("SELECT $1::int + $2::int", [40, 2]), 42);
assert.equal(await value("SELECT $1::text", ["naïve ☃"]), "naïve ☃");
await client.query("DROP TABLE IF EXISTS pg_t");
await client.query("CREATE TABLE pg_t (n int PRIMARY KEY, t text)");

await client.query("BEGIN");
await client.query("INSERT INTO pg_t VALUES (1, 'kept')");
await client.query("COMMIT");
await client.query("BEGIN");
await client.query("INSERT INTO pg_t VALUES (2, 'rolled back')");
await client.query("ROLLBACK");
assert.equal(await value("SELECT count(*)::int FROM pg_t"), 1);

const lines = Array.from({ length: 5000 }, (_, i) => `${1000 + i}\trow ${1000 + i}\n`);
await pipeline(Readable.from(lines), client.query(copy.from("COPY pg_t FROM STDIN")));
let copied = "";
for await (const chunk of client.query(copy.to("COPY (SELECT n FROM pg_t WHERE n >= 1000 ORDER BY n) TO STDOUT"))) {
  copied += chunk;
}
assert.deepEqual(copied.trim().split("\n").map(Number), Array.from({ length: 5000 }, (_, i) => 1000 + i));

// pg has no call for it in its documentation; its own pool and other libraries cancel by a second client like this.
const sleeping = new pg.Query("SELECT pg_sleep(60)");
const cancelled = new Promise((resolve, reject) => {
  sleeping.on("error", resolve);
  sleeping.on("end", () => reject(new Error("the query was not cancelled")));
});
client.query(sleeping);
setTimeout(() => new pg.Client({ connectionString }).cancel(client, sleeping), 500);
assert.equal((await cancelled).code, "57014");

const doubled = { name: "doubled", text: "SELECT $1::int * 2 AS n" };
assert.equal((await client.query(doubled, [1])).rows[0].n, 2);
await client.query("CREATE TEMP TABLE mine AS SELECT 7 AS n");
const server = await value("SELECT pg_backend_pid()");
await pause("freeze");
assert.equal((await client.query(doubled, [21])).rows[0].n, 42);
assert.equal(await value("SELECT n FROM mine"), 7);
assert.equal(await value("SELECT pg_backend_pid()"), server);
await client.end();

await pause("stop");
const pool = new pg.Pool({ connectionString, max: 4 });
const answers = await Promise.all(Array.from({ length: 8 }, () => pool.query("SELECT count(*)::int AS n FROM pg_t")));
for (const answer of answers) assert.equal(answer.rows[0].n, 5001);
await pool.end();
done();
