//! What the tests share: a Postgres, a ladder, a gateway in front of them, and clients.

pub(crate) mod client;
pub(crate) mod door;
pub(crate) mod ladder;
pub(crate) mod postgres;

pub(crate) use client::Conversation;
pub(crate) use door::{Door, DoorOptions};
