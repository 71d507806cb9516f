//! Compiles the contract in `proto/` with protox, so that a fresh machine needs no `protoc`.
//!
//! The messages are generated once, without tonic, and the stubs of both sides over them. In the
//! server's stubs, the two responses that carry a turn's event carry it encoded.

use std::error::Error;
use std::path::{Path, PathBuf};

use prost::Message as _;
use tonic_prost_build::Builder;

const PROTO_ROOT: &str = "proto";
const PROTO_DIR: &str = "proto/codex/sidecar/v1";
const PACKAGE: &str = ".codex.sidecar.v1";

fn main() -> Result<(), Box<dyn Error>> {
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

    let generate = |name: &str, configure: &dyn Fn(Builder) -> Builder| {
        let builder = tonic_prost_build::configure().build_server(false).build_client(false);
        configure(builder).out_dir(made(&out_dir.join(name))?).compile_fds(descriptors.clone())
    };
    let over_messages = |builder: Builder| builder.extern_path(PACKAGE, "crate::pb");
    // Sorted, so that equal messages encode alike.
    generate("messages", &|builder| builder.btree_map(PACKAGE))?;
    generate("client", &|builder| over_messages(builder).build_client(true))?;
    generate("server", &|builder| {
        let encoded = ["RunTurnResponse", "AttachTurnResponse"];
        let builder = encoded.iter().fold(over_messages(builder), |builder, response| {
            let ours = format!("crate::grpc::api::{response}");
            builder.extern_path(format!("{PACKAGE}.{response}"), ours)
        });
        builder.build_server(true)
    })?;
    Ok(())
}

/// The directory, made.
fn made(directory: &Path) -> std::io::Result<&Path> {
    std::fs::create_dir_all(directory)?;
    Ok(directory)
}
