//! Compiles the .proto files with protox: no protoc is needed on the machine.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/llm2clip.proto");
    let descriptors = protox::compile(["proto/llm2clip.proto"], ["proto"])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
