//! Compiles the .proto files with protox: no protoc is needed on the machine.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    for file in ["proto/llm2clip.proto", "proto/etcd.proto"] {
        println!("cargo:rerun-if-changed={file}");
        tonic_prost_build::configure().compile_fds(protox::compile([file], ["proto"])?)?;
    }
    Ok(())
}
