// How a client script asks the test to freeze or stop its database: it says so and waits for a line.

import { createInterface } from "node:readline";

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

export async function pause(what) {
  console.log(`pause ${what}`);
  await lines.next();
}

export function done() {
  console.log("done");
  process.exit(0);
}
