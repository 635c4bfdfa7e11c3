//! `llm2clip`: argv in, exit code out.
fn main() {}
