//! `egret-export`.
#![forbid(unsafe_code)]

use std::path::Path;

use firmware_config::manifest::Precision;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let precision = match args.get(4).map(String::as_str) {
        Some("fp16") => Precision::Fp16,
        Some("int8") => Precision::Int8,
        _ => Precision::Fp32,
    };
    exporter::export(Path::new(&args[2]), Path::new(&args[3]), &exporter::Options { precision, name: None, replace: true })?;
    Ok(())
}
