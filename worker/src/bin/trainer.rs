//! `llm2clip-trainer`: one process per device.
fn main() {}
