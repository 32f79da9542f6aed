"""Inserts the rows that standard input names (`row nonce payload`), one transaction each; prints each committed row."""

import sys

import psycopg

url, database = sys.argv[1:3]
with psycopg.connect(url, autocommit=True) as connection:
    connection.execute(
        "CREATE TABLE IF NOT EXISTS ledger (row bigint PRIMARY KEY, database text NOT NULL, version bigint NOT NULL, "
        "nonce bigint NOT NULL, payload text NOT NULL)"
    )
    for line in sys.stdin:
        row, nonce, payload = line.split()
        connection.execute(
            "INSERT INTO ledger VALUES (%s, %s, 1, %s, %s)", (int(row), database, int(nonce), payload)
        )
        print(row, flush=True)
