//! `llm2clip`: the command line of llm2clip.

fn main() -> std::process::ExitCode {
    coordinator::cli::main()
}
