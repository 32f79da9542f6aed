//! `make soak`: load and faults for as long as told, and every acknowledged write accounted for.

use anyhow::Result;
use roost_tests::soak::{Scale, run};

#[tokio::main]
async fn main() -> Result<()> {
    run(Scale::from_environment()).await
}
