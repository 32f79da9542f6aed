// Inserts the rows that standard input names (`row nonce payload`), one transaction each; prints each committed row.

import { createInterface } from "node:readline";
import pg from "pg";

const [connectionString, database] = process.argv.slice(2);
const client = new pg.Client({ connectionString });
client.on("error", () => process.exit(1));
await client.connect();
await client.query(
  "CREATE TABLE IF NOT EXISTS ledger (row bigint PRIMARY KEY, database text NOT NULL, version bigint NOT NULL, " +
    "nonce bigint NOT NULL, payload text NOT NULL)",
);
for await (const line of createInterface({ input: process.stdin })) {
  const [row, nonce, payload] = line.split(" ");
  await client.query("INSERT INTO ledger VALUES ($1, $2, 1, $3, $4)", [row, database, nonce, payload]);
  console.log(row);
}
await client.end();
