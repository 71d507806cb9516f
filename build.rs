//! Compiles the contract in `proto/` with protox, so that a fresh machine needs no `protoc`.

use std::path::PathBuf;

use prost::Message as _;

const PROTO_ROOT: &str = "proto";
const PROTO_DIR: &str = "proto/codex/sidecar/v1";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed={PROTO_ROOT}");
    let mut files = std::fs::read_dir(PROTO_DIR)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<PathBuf>, _>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "proto"));
    files.sort();

    let descriptors = protox::compile(&files, [PROTO_ROOT])?;
    // Served by reflection, so that grpcurl needs no copy of the contract.
    let out_dir = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out_dir.join("codex_sidecar_descriptor.bin"), descriptors.encode_to_vec())?;

    tonic_prost_build::configure()
        // An event's variants differ much in size; boxing the large ones would be visible in the
        // generated API for no measurable gain.
        .server_mod_attribute(".", "#[allow(clippy::large_enum_variant, reason = \"generated\")]")
        .compile_fds(descriptors)?;
    Ok(())
}
