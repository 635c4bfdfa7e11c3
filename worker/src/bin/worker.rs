//! `llm2clip-worker`: the daemon of one machine.
fn main() {}
